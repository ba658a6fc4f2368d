package processes

import (
	"strings"
	"testing"
	"time"

	"gantline/internal/proof"
	"gantline/test/site"
)

// Pairs come and go in a live group, whoever is killed meanwhile: the group's other volumes stay a prefix and end equal,
// and what was removed is a volume in no group on both sides.
func TestPairsComeAndGo(t *testing.T) {
	t.Parallel()
	seed := site.Seed(t)
	s := site.Start(t, nil)
	g := s.Pair("db", 1, 64*mib, "64MiB")
	load := proof.New(s.FirmDisks(s.G, g), proof.Options{Seed: seed, Depth: 8, ReadPercent: 20, FlushEvery: 30, Rate: 1000})
	running := site.Run(load)
	for _, node := range []string{"a", "c"} {
		s.Do("volume", "create", node+"/extra", "--size", "16MiB")
	}
	s.Do("pair", "add", "db", "a/extra", "c/extra", "--assume-equal") // both are all zeros
	s.WaitFor(20*time.Second, "paired", func() bool { return s.State("db") == "paired" })
	for _, victim := range []*site.Process{s.A, s.C, s.Manager} {
		s.WaitFor(30*time.Second, "paired", func() bool { return s.State("db") == "paired" && linkUp(s, "db") })
		done := make(chan site.Result, 1)
		go func() { done <- s.CLI("pair", "remove", "db", "a/extra") }()
		time.Sleep(10 * time.Millisecond)
		victim.Kill()
		victim.Start()
		t.Logf("with %s killed: %v", victim.Name, <-done)
		s.WaitFor(30*time.Second, "removed", func() bool {
			r := s.CLI("pair", "remove", "db", "a/extra")
			return r.Code == 0 || r.Code == 3 && strings.Contains(r.Err, "no primary of a pair")
		})
		for _, node := range []string{"a", "c"} {
			s.WaitFor(20*time.Second, "lone", func() bool {
				return strings.Contains(s.CLI("volume", "show", node+"/extra", "-o", "json").Out, `"role": "lone"`)
			})
		}
		s.WaitFor(30*time.Second, "added again", func() bool {
			return s.CLI("pair", "add", "db", "a/extra", "c/extra", "--assume-equal").Code == 0
		})
	}
	if err := running.Stop(); err != nil {
		t.Errorf("the host saw an error: %v", err)
	}
	s.AwaitInStep("db", 30*time.Second)
	s.Do("group", "verify", "db")
	s.Do("pair", "remove", "db", "a/extra")
	disk := s.Dial(s.C, "extra")
	if err := site.Write(disk, 0, make([]byte, 4096), 5*time.Second); err != nil {
		t.Errorf("a removed secondary is not written: %v", err)
	}
	if err := site.Write(s.Dial(s.A, "extra"), 8192, []byte("not at the secondary"), 5*time.Second); err != nil {
		t.Fatal(err)
	}
	if r := s.CLI("pair", "add", "db", "a/extra", "c/extra", "--assume-equal"); r.Code != 4 || !strings.Contains(r.Err, "differ") {
		t.Fatalf("unequal volumes: %v", r)
	}
	s.Do("pair", "add", "db", "a/extra", "c/extra")
	s.AwaitInStep("db", 30*time.Second)
	s.Do("group", "verify", "db")
	s.Equal(load, "secondary", s.Exports(s.C, g))
}
