package processes

import (
	"math/rand/v2"
	"testing"
	"time"

	"gantline/internal/proof"
	"gantline/test/site"
)

// A secondary that pulls, with retention by transfer and transfers at intervals: ends are killed and stay away for a
// while under a load through the gateway, push and pull are changed for each other, and the group moves. The secondary is a
// prefix whenever it is looked at, equal at the end, and the WAN has carried what was written and little more.
func TestPull(t *testing.T) {
	t.Parallel()
	seed := site.Seed(t)
	rnd := rand.New(rand.NewPCG(seed, 4))
	s := site.Start(t, nil)
	g := s.Pair("db", 2, 64*mib, "128MiB", "--transfer", "pull", "--retain", "transferred", "--send-every", "100ms",
		"--send-bytes", "256KiB")
	load := proof.New(s.Disks(s.G, g), proof.Options{Seed: seed, Depth: 16, FlushEvery: 40, Rate: 800, Span: 32 * mib})
	running := site.Run(load)
	up := func() { s.WaitFor(20*time.Second, "the link is up", func() bool { return linkUp(s, "db") }) }
	deaths := int64(0)
	for range max(2, site.Campaign()) {
		up()
		time.Sleep(time.Duration(200+rnd.IntN(500)) * time.Millisecond)
		s.C.Kill()
		time.Sleep(time.Second) // an outage
		s.C.Start()
		up()
		time.Sleep(time.Duration(rnd.IntN(300)) * time.Millisecond)
		// Both, in either order: the secondary, alone, is looked at. With its source alive it would go on asking that.
		if rnd.IntN(2) == 0 {
			s.A.Kill()
			time.Sleep(time.Duration(rnd.IntN(100)) * time.Millisecond)
			s.C.Kill()
		} else {
			s.C.Kill()
			time.Sleep(time.Duration(rnd.IntN(100)) * time.Millisecond)
			s.A.Kill()
		}
		s.C.StartIsolated()
		time.Sleep(time.Second)
		s.Prefix(load, "killed secondary", s.Exports(s.C, g))
		s.C.Stop()
		s.Prefix(load, "files of the stopped secondary", s.Files(s.C, g))
		s.A.Start()
		s.C.Start()
		deaths += 3
	}
	up()
	s.Do("group", "set", "db", "--transfer", "push")
	up()
	time.Sleep(300 * time.Millisecond)
	s.Do("group", "set", "db", "--transfer", "pull", "--retain", "applied", "--send-every", "0s", "--send-bytes", "0")
	up()
	s.Do("migrate", "start", "db", "--to", "b", "--commit")
	if m := s.Move("db"); m.Phase != "committed" {
		t.Fatalf("the move is %s", m.Phase)
	}
	time.Sleep(300 * time.Millisecond)
	if err := running.Stop(); err != nil {
		t.Errorf("the host saw an error: %v", err)
	}
	s.AwaitInStep("db", 30*time.Second)
	s.Equal(load, "secondary at the end", s.Exports(s.C, g))
	s.Equal(load, "primary at the end", s.Exports(s.B, g))
	// Records in flight at a death go again: at most what is asked for at a time. An entry takes 80 bytes.
	st := load.Stats()
	if sent, most := s.Group("db").WANBytesSent, st.Bytes+st.Writes*160+(deaths+4)*8*mib; sent == nil || *sent < st.Bytes || *sent > most {
		t.Errorf("%v bytes sent for %d written, at most %d were due", deref(sent), st.Bytes, most)
	}
	t.Logf("%+v, sent %v", st, deref(s.Group("db").WANBytesSent))
}
