package processes

import (
	"math/rand/v2"
	"testing"
	"time"

	"gantline/internal/proof"
	"gantline/test/site"
)

// A periodic group whose nodes are killed at random moments: between two steps, inside one, while one is applied. The
// secondary, looked at while nobody can reach it, stands still at one cut over all volumes; no mark is lost; hosts see
// nothing. Live switches to asynchronous and back copy nothing that has not changed.
func TestPeriodicKilled(t *testing.T) {
	t.Parallel()
	periodicKilled(t, (*site.Site).Pair, "128MiB")
}

// The same with the primary's log in memory.
func TestPeriodicQueueKilled(t *testing.T) {
	t.Parallel()
	periodicKilled(t, (*site.Site).PairOnQueue, "640MiB") // whatever is in doubt after a death is one step: at most all
}

func periodicKilled(t *testing.T, pair func(*site.Site, string, int, int64, string, ...string) *site.Made, journal string) {
	seed := site.Seed(t)
	rnd := rand.New(rand.NewPCG(seed, 9))
	s := site.Start(t, nil)
	g := pair(s, "db", 2, 64*mib, journal)
	s.Do("group", "set", "db", "--mode", "periodic", "--interval", "300ms")
	if v := s.Group("db"); v.Mode != "periodic" || v.IntervalSeconds != 0.3 {
		t.Fatalf("mode %s, interval %v s", v.Mode, v.IntervalSeconds)
	}
	load := proof.New(s.FirmDisks(s.G, g), proof.Options{Seed: seed, Depth: 16, FlushEvery: 20, Rate: 1000, Span: 16 * mib})
	running := site.Run(load)
	copied := func(after uint64) func() bool {
		return func() bool {
			v := s.Group("db")
			return v.SecondarySequence.Applied != nil && *v.SecondarySequence.Applied > after
		}
	}
	applied := func() uint64 {
		if seq := s.Group("db").SecondarySequence.Applied; seq != nil {
			return *seq
		}
		return 0
	}
	for range 3 * max(1, site.Campaign()) {
		s.WaitFor(20*time.Second, "a step has ended", copied(applied()))
		time.Sleep(time.Duration(rnd.IntN(400)) * time.Millisecond)
		s.C.Kill()
		s.C.StartIsolated()
		first := s.Prefix(load, "exports of the killed secondary", s.Exports(s.C, g))
		time.Sleep(200 * time.Millisecond)
		if again := s.Prefix(load, "the same a moment later", s.Exports(s.C, g)); again.Present != first.Present {
			t.Errorf("the image without a source has moved on from %d to %d writes", first.Present, again.Present)
		}
		if rnd.IntN(2) == 0 {
			s.A.Kill()
			s.A.Start()
		}
		s.C.Stop()
		s.Prefix(load, "files of the stopped secondary", s.Files(s.C, g))
		s.C.Start()
		s.WaitFor(20*time.Second, "a step has ended", copied(applied()))
		time.Sleep(time.Duration(rnd.IntN(400)) * time.Millisecond)
		writes := load.Stats().Writes
		s.A.Kill()
		time.Sleep(time.Duration(rnd.IntN(200)) * time.Millisecond)
		s.A.Start()
		s.WaitFor(20*time.Second, "hosts go on", func() bool { return load.Stats().Writes > writes+100 })
	}
	before := s.Group("db").WANBytesSent
	wrote := load.Stats().Bytes
	s.Do("group", "set", "db", "--mode", "async")
	s.WaitFor(20*time.Second, "asynchronous", func() bool { return s.State("db") == "paired" })
	s.Do("group", "set", "db", "--mode", "periodic", "--interval", "200ms")
	time.Sleep(300 * time.Millisecond)
	s.Do("group", "suspend", "db")
	if st := s.State("db"); st != "suspended" {
		t.Errorf("%s after a suspension", st)
	}
	s.Do("group", "resume", "db")
	if err := running.Stop(); err != nil {
		t.Errorf("the host saw an error: %v", err)
	}
	s.AwaitInStep("db", 30*time.Second)
	s.Equal(load, "secondary", s.Exports(s.C, g))
	s.Equal(load, "primary", s.Exports(s.A, g))
	after := s.Group("db").WANBytesSent
	// The load uses 32 MiB of 128, so a full copy of what holds data in each of three steps would be 96 MiB.
	if before != nil && after != nil && *after-*before > 64*mib+2*(load.Stats().Bytes-wrote) {
		t.Errorf("the switches sent %d bytes", *after-*before)
	}
	if n := s.Group("db").Overruns; n == nil {
		t.Error("overruns are not known")
	}
}

// An initial copy of volumes that hold data, with both ends killed at random moments, ends, shows how far it is, and is
// exact.
func TestInitialCopyKilled(t *testing.T) {
	t.Parallel()
	seed := site.Seed(t)
	rnd := rand.New(rand.NewPCG(seed, 10))
	s := site.Start(t, nil)
	s.Do("group", "create", "db", "--primary", "a", "--secondary", "c")
	g := &site.Made{Name: "db", Size: 256 * mib}
	for _, v := range []string{"db-1", "db-2"} {
		g.Volumes = append(g.Volumes, v)
		for _, node := range []string{"a", "c"} {
			s.Do("volume", "create", node+"/"+v, "--size", "256MiB")
		}
		s.Do("vvol", "create", v, "--volume", "a/"+v)
	}
	load := proof.New(s.FirmDisks(s.G, g), proof.Options{Seed: seed, Depth: 16, FlushEvery: 20, MaxBlocks: 64})
	running := site.Run(load)
	time.Sleep(1500 * time.Millisecond)
	if err := running.Stop(); err != nil {
		t.Fatal(err)
	}
	for _, v := range g.Volumes {
		s.Do("pair", "add", "db", "a/"+v, "c/"+v, "--no-wait")
	}
	seen := false
	for range 4 * max(1, site.Campaign()) {
		p := s.A
		if rnd.IntN(2) == 0 {
			p = s.C
		}
		time.Sleep(time.Duration(rnd.IntN(150)) * time.Millisecond)
		if c := s.Group("db").Copy; c != nil {
			seen = true
			if c.Kind != "initial" || c.BytesTotal <= 0 || c.BytesDone < 0 || c.BytesDone > c.BytesTotal || c.Percent < 0 || c.Percent > 100 {
				t.Errorf("progress: %+v", *c)
			}
		}
		p.Kill()
		p.Start()
	}
	s.AwaitInStep("db", 60*time.Second)
	s.Equal(load, "secondary", s.Exports(s.C, g))
	s.Equal(load, "primary", s.Exports(s.A, g))
	t.Logf("progress seen: %v; %d bytes over the WAN for %d of hosts", seen, deref(s.Group("db").WANBytesSent), load.Stats().Bytes)
}
