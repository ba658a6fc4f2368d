package processes

import (
	"encoding/json"
	"strings"
	"testing"
	"time"

	"gantline/internal/control"
	"gantline/internal/proof"
	"gantline/test/site"
)

// A node is drained of three groups under load, and of one without pairs, with the manager killed on the way: everything is served at
// the other node, hosts see no error, the copies are equal. Two volumes in no group move with them.
func TestDrain(t *testing.T) {
	t.Parallel()
	seed := site.Seed(t)
	s := site.Start(t, nil)
	var made []*site.Made
	var loads []*site.Running
	for i, name := range []string{"one", "three", "two"} {
		g := s.Pair(name, 1+i%2*2, 16*mib, "32MiB")
		made = append(made, g)
		loads = append(loads, site.Run(proof.New(s.Disks(s.G, g), proof.Options{Seed: seed, Depth: 4, MaxBlocks: 8, FlushEvery: 30, Rate: 200})))
	}
	s.Pair("none", 0, 0, "32MiB")
	s.Do("volume", "create", "a/idle", "--size", "1MiB")
	lone := alone(s, "lone", 16*mib)
	host := site.Run(proof.New(s.Disks(s.G, lone), proof.Options{Seed: seed, Depth: 4, MaxBlocks: 8, FlushEvery: 30, Rate: 200}))
	if out := s.Do("node drain a --to b --dry-run"); !strings.Contains(out, "move a/lone from a to b") {
		t.Errorf("the plan:\n%s", out)
	}
	s.Do("node", "drain", "a", "--to", "b", "--no-wait")
	time.Sleep(300 * time.Millisecond)
	s.Manager.Kill()
	s.Manager.Start()
	s.WaitFor(60*time.Second, "the drain has ended", func() bool {
		var v control.OperationView
		return s.Get("/v1/operations/drain-a", &v) == nil && v.Phase == control.DrainDone
	})
	var v control.OperationView
	again := s.Do("node", "drain", "a", "--to", "b", "--commit", "-o", "json")
	if err := json.Unmarshal([]byte(again), &v); err != nil || v.Phase != control.DrainDone {
		t.Errorf("repeated with --commit: %+v, %v", v, err)
	}
	for i, g := range made {
		v := s.AwaitPhase(g.Name, 30*time.Second, "committed")
		if gr := s.Group(g.Name); gr.Primary != "b" || v.ID != g.Name+"-1" {
			t.Errorf("%s: primary %s after %s", g.Name, gr.Primary, v.ID)
		}
		if err := loads[i].Stop(); err != nil {
			t.Errorf("%s: the host saw an error: %v", g.Name, err)
		}
		s.AwaitInStep(g.Name, 30*time.Second)
		s.Equal(loads[i].Load, "secondary of "+g.Name, s.Exports(s.C, g))
		s.Equal(loads[i].Load, "primary of "+g.Name, s.Exports(s.B, g))
		t.Logf("%s: pause %v ms, longest gap %v", g.Name, deref(v.PauseMS), loads[i].Stats().LongestGap)
	}
	s.AwaitPhase("none", 30*time.Second, "committed")
	s.AwaitPhase("a.lone", 30*time.Second, "committed")
	s.AwaitPhase("a.idle", 30*time.Second, "committed")
	if err := host.Stop(); err != nil {
		t.Errorf("lone: the host saw an error: %v", err)
	}
	s.Equal(host.Load, "b/lone", s.Exports(s.B, lone))
	for _, v := range []string{"b/lone", "b/idle"} {
		if v := volumeOf(s, v); v.Role == nil || *v.Role != control.RoleLone || v.Group != "" {
			t.Errorf("%+v", v)
		}
	}
	s.Do("volume", "create", "b/late", "--size", "1MiB")
	s.Do("volume", "create", "c/late", "--size", "1MiB")
	s.Do("pair", "add", "none", "b/late", "c/late")
	if out := s.Do("node", "drain", "a", "--to", "b", "--dry-run"); !strings.Contains(out, "nothing of a") || strings.Contains(out, "from a to b") {
		t.Errorf("what is left to drain:\n%s", out)
	}
}
