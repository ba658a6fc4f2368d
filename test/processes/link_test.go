package processes

import (
	"syscall"
	"testing"
	"time"

	"gantline/internal/proof"
	"gantline/test/site"
)

// An end of the link that is frozen says nothing and closes nothing. The other notices within seconds and says so; the
// link is used again within two seconds of the thaw. Hosts go on, and the copy is right.
func TestFrozenSecondary(t *testing.T) {
	t.Parallel()
	s := site.Start(t, nil)
	g := s.Pair("db", 2, 64*mib, "256MiB")
	load := proof.New(s.Disks(s.G, g), proof.Options{Seed: site.Seed(t), Depth: 8, FlushEvery: 50, Rate: 500, Span: 16 * mib})
	running := site.Run(load)
	for range max(2, site.Campaign()) {
		s.WaitFor(20*time.Second, "the link is up", func() bool { return linkUp(s, "db") })
		s.C.Signal(syscall.SIGSTOP)
		s.WaitFor(8*time.Second, "the link is told as down", func() bool { return !linkUp(s, "db") })
		v := s.Group("db")
		if v.BlockedOn == nil || *v.BlockedOn == "" || v.State == nil || *v.State != "paired" || v.Lag.Writes != nil {
			t.Errorf("with the secondary frozen: %+v", v)
		}
		time.Sleep(4 * time.Second) // attempts pile up at the frozen process
		s.C.Signal(syscall.SIGCONT)
		s.WaitFor(3*time.Second, "the link is up after the thaw", func() bool { return linkUp(s, "db") })
		writes := load.Stats().Writes
		s.WaitFor(10*time.Second, "hosts go on", func() bool { return load.Stats().Writes > writes+200 })
	}
	if err := running.Stop(); err != nil {
		t.Errorf("the host saw an error: %v", err)
	}
	s.AwaitInStep("db", 30*time.Second)
	s.Equal(load, "secondary", s.Exports(s.C, g))
}
