package processes

import (
	"context"
	"math/rand/v2"
	"testing"
	"time"

	"gantline/internal/proof"
	"gantline/test/site"
)

// The secondary is killed at random moments before, during and after a move under a load on three volumes, and looked at
// while nobody can reach it: what its disk holds is always a prefix, over all volumes.
func TestOrderOfSecondary(t *testing.T) {
	t.Parallel()
	seed := site.Seed(t)
	rnd := rand.New(rand.NewPCG(seed, 2))
	s := site.Start(t, nil)
	g := s.Pair("db", 3, 64*mib, "256MiB")
	load := proof.New(s.Disks(s.G, g), proof.Options{Seed: seed, Depth: 32, FlushEvery: 50, Rate: 2500, Span: 48 * mib})
	running := site.Run(load)

	look := func(when string) {
		s.WaitFor(20*time.Second, "the link is up", func() bool { return linkUp(s, "db") })
		time.Sleep(time.Duration(200+rnd.IntN(400)) * time.Millisecond)
		s.C.Kill()
		s.C.StartIsolated()
		time.Sleep(2 * time.Second)
		s.Prefix(load, "exports of the killed secondary "+when, s.Exports(s.C, g))
		s.C.Stop()
		s.Prefix(load, "files of the stopped secondary "+when, s.Files(s.C, g))
		s.C.Start()
	}
	rounds := max(1, site.Campaign())
	for range rounds {
		look("before the move")
	}
	s.WaitFor(20*time.Second, "the link is up", func() bool { return linkUp(s, "db") })
	s.Do("migrate", "start", "db", "--to", "b", "--no-wait", "--limit", "20MiB")
	s.AwaitPhase("db", 30*time.Second, "migrating", "filled")
	look("during the move")
	s.AwaitPhase("db", 90*time.Second, "filled")
	for range rounds {
		look("after the move")
	}
	s.Do("migrate", "commit", "db")
	time.Sleep(200 * time.Millisecond)
	if err := running.Stop(); err != nil {
		t.Errorf("the host saw an error: %v", err)
	}
	s.AwaitInStep("db", 30*time.Second)
	s.Equal(load, "secondary at the end", s.Exports(s.C, g))
	s.Equal(load, "primary at the end", s.Exports(s.B, g))
	t.Logf("%+v", load.Stats())
}

func linkUp(s *site.Site, group string) bool {
	l := s.Group(group).Link
	return l != nil && *l == "up"
}

// When the source site is gone the secondary has all that reached it within two seconds, all volumes at one sequence; a
// killed primary that comes back lacks nothing that was answered, and hosts go on.
func TestSourceSiteKilled(t *testing.T) {
	t.Parallel()
	seed := site.Seed(t)
	rnd := rand.New(rand.NewPCG(seed, 3))
	s := site.Start(t, nil)
	g := s.Pair("db", 3, 64*mib, "128MiB")
	load := proof.New(s.Disks(s.A, g), proof.Options{Seed: seed, Depth: 32, MaxBlocks: 8, FlushEvery: 20, Tolerate: true, Span: 48 * mib})
	for round := range max(2, site.Campaign()) {
		ctx, cancel := context.WithCancel(context.Background())
		done := make(chan error, 1)
		go func() { done <- load.Run(ctx) }()
		time.Sleep(time.Duration(300+rnd.IntN(700)) * time.Millisecond)
		s.A.Kill()
		cancel()
		<-done
		time.Sleep(2 * time.Second)
		s.Prefix(load, "exports of the secondary whose source is gone", s.Exports(s.C, g))
		if round%2 == 1 {
			s.C.Stop()
			s.Prefix(load, "files of the stopped secondary", s.Files(s.C, g))
			s.A.Start()
			s.C.Start()
		} else {
			s.A.Start()
		}
		images := s.Exports(s.A, g)
		s.Equal(load, "primary after its death", images)
		// What was in flight at the death may or may not be there; the load goes on from what is.
		if err := load.Forget(images); err != nil {
			t.Fatal(err)
		}
		load.SetDisks(s.Disks(s.A, g))
	}
	s.AwaitInStep("db", 30*time.Second)
	s.Equal(load, "secondary at the end", s.Exports(s.C, g))
	if load.Stats().Writes == 0 {
		t.Error("the load wrote nothing")
	}
}

// A group moves away and, once its old volumes are deleted, back again, under a load that never stops.
func TestThereAndBack(t *testing.T) {
	t.Parallel()
	seed := site.Seed(t)
	s := site.Start(t, nil)
	g := s.Pair("db", 2, 64*mib, "64MiB")
	running := site.Run(proof.New(s.Disks(s.G, g), proof.Options{Seed: seed, Depth: 16, MaxBlocks: 8, FlushEvery: 30, Rate: 800}))
	time.Sleep(300 * time.Millisecond)
	for _, leg := range []struct{ from, to string }{{"a", "b"}, {"b", "a"}} {
		s.Do("migrate", "start", "db", "--to", leg.to, "--commit")
		m := s.Move("db")
		if g := s.Group("db"); m.Phase != "committed" || g.Primary != leg.to || m.PauseMS == nil {
			t.Fatalf("after the move to %s: phase %s, primary %s", leg.to, m.Phase, g.Primary)
		}
		t.Logf("to %s: pause %.1f ms, epoch %v, fetched %v in the background, %v on demand, %v twice", leg.to, *m.PauseMS,
			deref(m.Epoch), deref(m.Bytes.Background), deref(m.Bytes.OnDemand), deref(m.Bytes.Twice))
		for _, v := range g.Volumes {
			s.Do("volume", "delete", leg.from+"/"+v, "--yes")
		}
		s.Do("journal", "delete", leg.from+"/db-log", "--yes")
	}
	if err := running.Stop(); err != nil {
		t.Errorf("the host saw an error: %v", err)
	}
	s.AwaitInStep("db", 30*time.Second)
	wanFits(t, s, running.Stats().Bytes, 0)
	s.Equal(running.Load, "secondary", s.Exports(s.C, g))
	s.Equal(running.Load, "primary", s.Exports(s.A, g))
	t.Logf("%+v", running.Stats())
}
