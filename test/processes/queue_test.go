package processes

import (
	"bytes"
	"math/rand/v2"
	"strings"
	"testing"
	"time"

	"gantline/internal/proof"
	"gantline/test/site"
)

// A primary with its log in memory: primary, secondary and both are killed at random moments under a load through the
// gateway. Hosts see no error; the secondary is a prefix whenever it is looked at; the pair comes back by itself, with
// equal images, and sends no more than what is in doubt.
func TestQueueKilled(t *testing.T) {
	t.Parallel()
	seed := site.Seed(t)
	rnd := rand.New(rand.NewPCG(seed, 7))
	s := site.Start(t, nil)
	g := s.PairOnQueue("db", 2, 64*mib, "256MiB")
	load := proof.New(s.FirmDisks(s.G, g), proof.Options{Seed: seed, Depth: 16, ReadPercent: 20, FlushEvery: 30, Rate: 1000, Span: 16 * mib})
	running := site.Run(load)
	groups := [][]*site.Process{{s.A}, {s.C}, {s.A, s.C}, {s.G, s.A}, {s.C, s.A}}
	if testing.Short() {
		groups = groups[1:3]
	}
	restarts := int64(0) // of the primary
	for range max(1, site.Campaign()) {
		for _, procs := range groups {
			time.Sleep(time.Duration(100+rnd.IntN(600)) * time.Millisecond)
			names, primary := "", false
			for _, p := range procs {
				names += " " + p.Name
				p.Kill()
				primary = primary || p == s.A
			}
			if primary {
				restarts++
				if !s.C.Alive() {
					s.C.StartIsolated()
				}
				time.Sleep(2 * time.Second) // the secondary has applied all that it can
				s.Prefix(load, "secondary after the death of"+names, s.Exports(s.C, g))
				if rnd.IntN(2) == 0 {
					s.C.Kill()
				}
			}
			for _, i := range rnd.Perm(len(s.All())) {
				if p := s.All()[i]; !p.Alive() {
					p.Start()
				} else if p == s.C && primary {
					p.Restart() // where it listens to the others again
				}
			}
			writes := load.Stats().Writes
			s.WaitFor(20*time.Second, "hosts go on after the death of"+names, func() bool { return load.Stats().Writes > writes+200 })
			s.WaitFor(30*time.Second, "group paired after the death of"+names, func() bool { return s.State("db") == "paired" && linkUp(s, "db") })
		}
	}
	if err := running.Stop(); err != nil {
		t.Errorf("the host saw an error: %v", err)
	}
	s.AwaitInStep("db", 30*time.Second)
	s.Equal(load, "secondary", s.Exports(s.C, g))
	s.Equal(load, "primary", s.Exports(s.A, g))
	sent, host := *s.Group("db").WANBytesSent, load.Stats().Bytes
	if doubt := 2 * 16 * mib; sent > host*102/100+mib+restarts*doubt*102/100+int64(2*len(groups))*host/16 {
		t.Errorf("%d bytes over the WAN for %d of hosts and %d restarts with at most %d in doubt", sent, host, restarts, doubt)
	}
	t.Logf("%d bytes over the WAN, %d restarts of the primary, %+v", sent, restarts, load.Stats())

	onlyDoubt(t, s, g)
	for _, i := range rnd.Perm(len(s.All())) {
		s.All()[i].Stop()
	}
	for _, v := range g.Volumes {
		s.Tool("cmp", s.A.Dir+"/volumes/"+v+".raw", s.C.Dir+"/volumes/"+v+".raw")
	}
}

// onlyDoubt: a stop at rest sends nothing again; a death sends the regions that were being written, not the rest.
func onlyDoubt(t *testing.T, s *site.Site, g *site.Made) {
	t.Helper()
	before := *s.Group("db").WANBytesSent
	s.A.Stop()
	s.A.Start()
	s.AwaitInStep("db", 20*time.Second)
	if sent := *s.Group("db").WANBytesSent - before; sent > 64<<10 {
		t.Errorf("a restart at rest sent %d bytes", sent)
	}
	host := s.Dial(s.A, g.Volumes[0])
	for i := range int64(3) {
		if err := site.Write(host, (40+4*i)*mib, bytes.Repeat([]byte{byte(i + 1)}, 4096), 10*time.Second); err != nil {
			t.Fatal(err)
		}
	}
	s.AwaitInStep("db", 20*time.Second)
	before = *s.Group("db").WANBytesSent
	s.A.Kill()
	s.C.Kill()
	s.A.Start()
	s.WaitFor(10*time.Second, "the primary shows what is in doubt", func() bool { v := s.Group("db"); return v.ChangedBytes != nil && *v.ChangedBytes > 0 })
	if marked := *s.Group("db").ChangedBytes; marked != 3*mib {
		t.Errorf("%d bytes are in doubt after writes to three regions of 1 MiB", marked)
	}
	s.C.Start()
	s.AwaitInStep("db", 20*time.Second)
	if sent := *s.Group("db").WANBytesSent - before; sent > 3*mib*102/100+64<<10 {
		t.Errorf("%d bytes were sent for 3 MiB in doubt", sent)
	}
}

// With the link dead and hosts at full rate the primary's memory stays what it may be; hosts notice nothing; the group is
// suspended, and a resume sends what was marked.
func TestQueueFull(t *testing.T) {
	t.Parallel()
	seed := site.Seed(t)
	s := site.Start(t, nil)
	g := s.PairOnQueue("db", 2, 64*mib, "256MiB")
	if v := s.Group("db"); v.Log != "queue" || v.PrimaryJournal != "" || v.Journal.CapacityBytes == nil || *v.Journal.CapacityBytes != 64*mib {
		t.Errorf("log %s, journal %q, capacity %v", v.Log, v.PrimaryJournal, deref(v.Journal.CapacityBytes))
	}
	if r := s.CLI("migrate start db --to b --journal b/other"); r.Code != 2 || !strings.Contains(r.Err, "--log queue") {
		t.Errorf("a journal for the move of a group on a queue: %v", r)
	}
	load := proof.New(s.Disks(s.G, g), proof.Options{Seed: seed, Depth: 32, MaxBlocks: 8, FlushEvery: 200, Span: 8 * mib})
	running := site.Run(load)
	time.Sleep(500 * time.Millisecond)
	s.C.Kill()
	s.WaitFor(60*time.Second, "the group is suspended", func() bool { return s.State("db") == "suspended" })
	most := int64(0)
	for range 20 {
		time.Sleep(100 * time.Millisecond)
		most = max(most, s.A.MemoryBytes())
	}
	if err := running.Stop(); err != nil {
		t.Errorf("the host saw an error: %v", err)
	}
	t.Logf("at most %d MiB of memory, %+v", most/mib, load.Stats())
	if most > (256+64)*mib { // what connections hold in flight comes on top
		t.Errorf("the primary takes %d MiB of memory, --memory is 256 MiB", most/mib)
	}
	s.C.Start()
	before := s.Group("db")
	s.Do("group resume db")
	s.AwaitInStep("db", 30*time.Second)
	if sent, marked := *s.Group("db").WANBytesSent-*before.WANBytesSent, *before.ChangedBytes; sent > marked*102/100+mib {
		t.Errorf("resume sent %d bytes, marked were %d", sent, marked)
	}
	s.Equal(load, "secondary after the resume", s.Exports(s.C, g))
}
