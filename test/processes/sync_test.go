package processes

import (
	"context"
	"math/rand/v2"
	"testing"
	"time"

	"gantline/internal/proof"
	"gantline/test/site"
)

// syncPair is a pair that is made synchronous while it lives.
func syncPair(s *site.Site, onLoss string) *site.Made {
	s.T.Helper()
	g := s.Pair("db", 2, 64*mib, "128MiB")
	s.Do("group", "set", "db", "--mode", "sync", "--on-link-loss", onLoss)
	s.WaitFor(20*time.Second, "synchronous", func() bool { return s.State("db") == "paired" && linkUp(s, "db") })
	return g
}

// The primary is killed at random moments and does not come back: the secondary's exports have every write that was
// answered, also when the secondary itself is killed behind it and reached by nobody. Then both come back.
func TestSyncPrimaryKilled(t *testing.T) {
	t.Parallel()
	seed := site.Seed(t)
	rnd := rand.New(rand.NewPCG(seed, 7))
	s := site.Start(t, nil)
	g := syncPair(s, "continue")
	load := proof.New(s.Disks(s.A, g), proof.Options{Seed: seed, Depth: 16, MaxBlocks: 8, FlushEvery: 20, Tolerate: true, Span: 48 * mib})
	holds := func(when string) {
		t.Helper()
		v, err := load.CheckPrefix(s.Exports(s.C, g))
		if err != nil {
			t.Fatal(err)
		}
		if !v.OK || v.Behind != 0 || !v.Flushed {
			t.Fatalf("%s: %+v", when, v)
		}
	}
	for round := range max(3, site.Campaign()) {
		ctx, cancel := context.WithCancel(context.Background())
		done := make(chan error, 1)
		go func() { done <- load.Run(ctx) }()
		time.Sleep(time.Duration(200+rnd.IntN(500)) * time.Millisecond)
		s.A.Kill()
		cancel()
		<-done
		time.Sleep(2 * time.Second)
		holds("secondary whose primary is gone")
		if round%2 == 1 {
			s.C.Kill()
			s.C.StartIsolated()
			time.Sleep(2 * time.Second)
			holds("secondary killed too")
			s.C.Kill()
			s.A.Start()
			s.C.Start()
		} else {
			s.A.Start()
		}
		s.AwaitInStep("db", 30*time.Second)
		s.WaitFor(20*time.Second, "synchronous again", func() bool { return s.State("db") == "paired" })
		images := s.Exports(s.A, g)
		s.Equal(load, "primary after its death", images)
		if err := load.Forget(images); err != nil {
			t.Fatal(err)
		}
		s.Equal(load, "secondary after it", s.Exports(s.C, g))
		load.SetDisks(s.Disks(s.A, g))
	}
	st := load.Stats()
	if st.Writes == 0 || st.Flushes == 0 {
		t.Errorf("the load did nothing: %+v", st)
	}
	t.Logf("%+v", st)
}

// The secondary is killed under load, again and again, for longer than hosts wait for it: they go on without an error,
// the group is suspended, and comes back by itself. What goes over the link is what hosts wrote and what was marked.
func TestSyncSecondaryKilled(t *testing.T) {
	t.Parallel()
	seed := site.Seed(t)
	s := site.Start(t, nil)
	g := syncPair(s, "continue")
	load := proof.New(s.FirmDisks(s.G, g), proof.Options{Seed: seed, Depth: 8, ReadPercent: 10, FlushEvery: 20, Rate: 800, Span: 4 * mib})
	running := site.Run(load)
	marked := int64(0)
	for range max(2, site.Campaign()) {
		time.Sleep(300 * time.Millisecond)
		s.C.Kill()
		s.WaitFor(20*time.Second, "suspended", func() bool { return s.State("db") == "suspended" })
		writes := load.Stats().Writes
		s.WaitFor(10*time.Second, "hosts go on", func() bool { return load.Stats().Writes > writes+200 })
		if b := s.Group("db").ChangedBytes; b != nil {
			marked += *b
		}
		s.C.Start()
		s.WaitFor(30*time.Second, "back in sync", func() bool { return s.State("db") == "paired" && linkUp(s, "db") })
	}
	// For a moment only: nobody is left behind.
	s.C.Kill()
	s.C.Start()
	s.A.Restart()
	s.WaitFor(30*time.Second, "back in sync", func() bool { return s.State("db") == "paired" && linkUp(s, "db") })
	if err := running.Stop(); err != nil {
		t.Errorf("the host saw an error: %v", err)
	}
	s.AwaitInStep("db", 30*time.Second)
	s.Equal(load, "secondary", s.Exports(s.C, g))
	s.Equal(load, "primary", s.Exports(s.A, g))
	st := load.Stats()
	// What hosts write while a step is under way may mark and so send blocks of 64 KiB again.
	if sent := s.Group("db").WANBytesSent; sent == nil || *sent > (st.Bytes+marked)*3/2+16*mib {
		t.Errorf("sent %v bytes for %d written and %d marked", deref(sent), st.Bytes, marked)
	}
	t.Logf("%+v", st)
}

// With stop nothing is answered without the secondary: hosts get errors when it stays away, and go on when it is back.
func TestSyncStop(t *testing.T) {
	t.Parallel()
	seed := site.Seed(t)
	s := site.Start(t, nil)
	g := syncPair(s, "stop")
	load := proof.New(s.Disks(s.A, g), proof.Options{Seed: seed, Depth: 8, FlushEvery: 20, Tolerate: true, Span: 16 * mib})
	running := site.Run(load)
	time.Sleep(500 * time.Millisecond)
	s.C.Kill()
	s.WaitFor(20*time.Second, "shown as suspended", func() bool { return s.State("db") == "suspended" })
	s.WaitFor(40*time.Second, "errors", func() bool { return load.Stats().Errors > 8 })
	_ = running.Stop()
	// Its own word of what it has: every answered write.
	s.C.StartIsolated()
	time.Sleep(2 * time.Second)
	if v, err := load.CheckPrefix(s.Exports(s.C, g)); err != nil || !v.OK || v.Behind != 0 {
		t.Fatalf("%+v %v", v, err)
	}
	s.C.Kill()
	s.C.Start()
	s.WaitFor(20*time.Second, "back in sync", func() bool { return s.State("db") == "paired" && linkUp(s, "db") })
	s.AwaitInStep("db", 20*time.Second)
	if err := load.Forget(s.Exports(s.A, g)); err != nil {
		t.Fatal(err)
	}
	s.Equal(load, "secondary", s.Exports(s.C, g))
	errors, writes := load.Stats().Errors, load.Stats().Writes
	load.SetDisks(s.Disks(s.A, g))
	running = site.Run(load)
	time.Sleep(500 * time.Millisecond)
	_ = running.Stop()
	if st := load.Stats(); st.Errors != errors || st.Writes == writes {
		t.Errorf("hosts do not go on: %+v", st)
	}
}
