package processes

import (
	"fmt"
	"math/rand/v2"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"gantline/internal/control"
	"gantline/internal/proof"
	"gantline/test/site"
)

// Journals of several devices, other ones at each side. In an outage the primary's fills up, which is told with its cause; it
// is grown under the load, its node killed while it grows, and the group is never suspended. In the end the images are
// equal and the alarm is cleared.
func TestJournalsOfSeveralDevices(t *testing.T) {
	t.Parallel()
	seed := site.Seed(t)
	rnd := rand.New(rand.NewPCG(seed, 5))
	s := site.Start(t, nil)
	dir := t.TempDir()
	s.Do("journal", "create", "a/db-log", "--size", "32MiB", "--device", filepath.Join(dir, "a1"), "--device", filepath.Join(dir, "a2"))
	s.Do("journal", "create", "c/db-log", "--size", "32MiB", "--device", filepath.Join(dir, "c1"), "--device", filepath.Join(dir, "c2"),
		"--device", filepath.Join(dir, "c3"))
	g := s.Pair("db", 2, 64*mib, "32MiB")
	load := proof.New(s.Disks(s.G, g), proof.Options{Seed: seed, Depth: 8, MaxBlocks: 8, FlushEvery: 40, Rate: 100, Span: 32 * mib})
	running := site.Run(load)
	show := func(name string) (v control.JournalView) {
		t.Helper()
		if err := s.Get("/v1/journals/"+name, &v); err != nil {
			t.Fatal(err)
		}
		return v
	}
	time.Sleep(300 * time.Millisecond)
	s.C.Kill()
	told := func(what string) func() bool {
		return func() bool { return strings.Contains(s.Do("events"), what) }
	}
	s.WaitFor(40*time.Second, "the alarm", told("journal a/db-log is more than"))
	if v := show("a/db-log"); v.Alarm == nil || *v.Alarm < 70 || *v.Cause == "" {
		t.Errorf("with an alarm: %+v", v)
	}
	if out := s.CLI("status").Out; !strings.Contains(out, "journal a/db-log is more than") {
		t.Errorf("status does not tell: %s", out)
	}
	s.Do("journal", "add", "a/db-log", "--size", "16MiB")
	if v := show("a/db-log"); len(v.Devices) != 3 || v.Size != 48*mib || *v.CapacityBytes < 44*mib {
		t.Errorf("grown: %+v", v)
	}
	for i := range max(2, site.Campaign()) {
		done := make(chan struct{})
		go func() {
			defer close(done)
			s.CLI("journal", "add", "a/db-log", "--size", "16MiB", "--timeout", "3s")
		}()
		time.Sleep(time.Duration(rnd.IntN(60)) * time.Millisecond)
		s.A.Kill()
		<-done
		s.A.Start()
		s.WaitFor(20*time.Second, "the repeated command", func() bool {
			return s.CLI("journal", "add", "a/db-log", "--size", "16MiB").Code == 0
		})
		if n := len(show("a/db-log").Devices); n < 4+i {
			t.Errorf("%d devices after %d additions", n, i+2)
		}
	}
	if st := s.State("db"); st != "paired" {
		t.Errorf("the group is %s", st)
	}
	s.C.Start()
	s.Do("journal", "add", "c/db-log", "--size", "8MiB")
	if err := running.Stop(); err != nil {
		t.Errorf("the host saw an error: %v", err)
	}
	s.AwaitInStep("db", 60*time.Second)
	s.Equal(load, "secondary", s.Exports(s.C, g))
	s.WaitFor(40*time.Second, "the alarm's end", told("journal a/db-log is less than"))
	if v := show("a/db-log"); v.Alarm == nil || *v.Alarm != 0 {
		t.Errorf("without an alarm: %+v", v)
	}
	s.A.Stop()
	s.C.Stop()
	s.Equal(load, "files of the primary", s.Files(s.A, g))
	t.Log(fmt.Sprint(load.Stats()))
}
