package manager

import (
	"fmt"
	"runtime"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"gantline/internal/control"
)

// gateways starts some that take what they are given.
func (s *system) gateways(names ...string) map[string]*fakeGateway {
	s.t.Helper()
	all := map[string]*fakeGateway{}
	for _, name := range names {
		g := &fakeGateway{name: name, client: s.client}
		g.start(s.t)
		all[name] = g
	}
	for _, g := range all {
		s.eventually(g.name+" has a route", func() bool { return len(g.routes()) == 1 })
	}
	return all
}

func (g *fakeGateway) at() string { return g.routes()[0].Node }

func (g *fakeGateway) set(stuck bool) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.stuck = stuck
}

func paths(v control.MigrationView) string {
	var out []string
	for _, p := range v.Gateways {
		out = append(out, p.Gateway+" "+p.State)
	}
	return strings.Join(out, ", ")
}

// Gateways are switched one after the other, each confirmed before the next; one that is dead is named and passed over. One that
// registers meanwhile is led with all of them.
func TestMoveOneByOne(t *testing.T) {
	s := newSystem(t, "a", "b", "c")
	s.pair()
	all := s.gateways("g1", "g2", "g3")
	all["g1"].stop() // registered, and gone
	all["g2"].set(true)
	s.must("POST", "/v1/migrations", control.MoveRequest{Group: "g", To: "b", Paths: "one-by-one", InFlight: "hold"}, nil)
	var v control.MigrationView
	s.eventually("g2 is asked to confirm", func() bool {
		return s.do("GET", "/v1/migrations/g-1", nil, &v) == nil && paths(v) == "g1 late, g2 led, g3 waits"
	})
	if at := all["g3"].at(); at != "a" || v.Phase != control.PhaseThrough || !strings.Contains(*v.BlockedOn, "gateway g2") {
		t.Fatalf("g3 leads to %s; %s, blocked on %q", at, v.Phase, *v.BlockedOn)
	}
	var vvol control.VvolView
	s.must("GET", "/v1/vvols/disk", nil, &vvol)
	if vvol.Volume != "a/v1" || fmt.Sprint(vvol.Gateways[0].Volume, vvol.Gateways[1].Volume, vvol.Gateways[2].Volume) != "b/v1b/v1a/v1" {
		t.Fatalf("vvol %+v", vvol)
	}
	late := s.gateways("g0")["g0"]
	if late.at() != "a" {
		t.Fatalf("a new gateway leads to %s", late.at())
	}
	all["g2"].set(false)
	v = s.waitPhase("g-1", control.PhaseFilled)
	if got := paths(v); got != "g1 late, g2 confirmed, g3 confirmed" {
		t.Fatalf("paths: %s", got)
	}
	for _, g := range []*fakeGateway{all["g2"], all["g3"], late} {
		if r := g.routes()[0]; r.Node != "b" || r.InFlight != "hold" {
			t.Errorf("%s: %+v", g.name, r)
		}
	}
	s.must("GET", "/v1/vvols/disk", nil, &vvol)
	if vvol.Volume != "b/v1" {
		t.Errorf("vvol %+v", vvol)
	}
	var said []string
	_ = s.client.Events(t.Context(), 0, false, func(e control.Event) error {
		if strings.HasPrefix(e.Kind, "path-") {
			said = append(said, e.Kind+": "+e.Message)
		}
		return nil
	})
	if len(said) != 3 || !strings.HasPrefix(said[0], "path-late: gateway g1") || !strings.HasPrefix(said[1], "path-switched: gateway g2") {
		t.Errorf("events %q", said)
	}
}

// Turned back in the middle, those that were switched lead to the source again, and what is in flight finishes.
func TestMoveOneByOneIsAborted(t *testing.T) {
	s := newSystem(t, "a", "b", "c")
	s.pair()
	all := s.gateways("g1", "g2")
	all["g2"].set(true)
	s.must("POST", "/v1/migrations", control.MoveRequest{Group: "g", To: "b", Paths: "one-by-one", InFlight: "error", StopAt: "switched"}, nil)
	s.eventually("g1 is switched", func() bool { return all["g1"].at() == "b" })
	begin := time.Now()
	s.must("POST", "/v1/migrations/g/abort", struct{}{}, nil)
	all["g2"].set(false)
	v := s.waitPhase("g-1", control.PhaseAborted)
	if d := time.Since(begin); d > 3*time.Second {
		t.Errorf("the abort took %v", d)
	}
	for _, g := range all {
		if r := g.routes()[0]; r.Node != "a" || r.InFlight != "finish" {
			t.Errorf("%s: %+v", g.name, r)
		}
	}
	if v.Gateways[1].State == control.PathConfirmed {
		t.Errorf("paths: %s", paths(v))
	}
	s.must("POST", "/v1/migrations", control.MoveRequest{Group: "g", To: "b", Paths: "one-by-one", StopAt: "switched"}, nil)
	s.waitPhase("g-2", control.PhaseSwitched)
	for _, g := range all {
		if g.at() != "b" {
			t.Errorf("%s leads to %s", g.name, g.at())
		}
	}
	s.must("POST", "/v1/migrations/g/continue", struct{}{}, nil)
	s.waitPhase("g-2", control.PhaseFilled)
}

// The manager dies around the switch of one gateway, is started again on the same store, and the move ends.
func TestManagerKilledAtAPath(t *testing.T) {
	for _, edge := range []string{"before", "after"} {
		t.Run(edge, func(t *testing.T) {
			s := newSystem(t, "a", "b", "c")
			s.pair()
			all := s.gateways("g1", "g2")
			died := make(chan struct{})
			var count atomic.Int32
			s.point = func(st, e string) {
				if st == control.PointPath && e == edge && count.Add(1) == 2 { // the second gateway
					close(died)
					runtime.Goexit()
				}
			}
			s.must("POST", "/v1/migrations", control.MoveRequest{Group: "g", To: "b", Paths: "one-by-one"}, nil)
			select {
			case <-died:
			case <-time.After(10 * time.Second):
				t.Fatal("the point was not reached: the fault did not take hold")
			}
			s.kill()
			s.start()
			v := s.waitPhase("g-1", control.PhaseFilled)
			if got := paths(v); got != "g1 confirmed, g2 confirmed" || all["g1"].at() != "b" || all["g2"].at() != "b" {
				t.Errorf("paths: %s", got)
			}
		})
	}
}

// A virtual volume is led elsewhere at one gateway, which holds that volume like any other way to it.
func TestVvolSwitchAtAGateway(t *testing.T) {
	s := newSystem(t, "a", "b", "c")
	s.pair()
	all := s.gateways("g1", "g2")
	s.must("POST", "/v1/volumes", control.VolumeRequest{Name: "b/copy", Size: 1 << 20}, nil)
	to := func(volume string, gateways ...string) control.SwitchRequest {
		return control.SwitchRequest{Volume: volume, InFlight: "hold", Gateways: gateways}
	}
	s.must("POST", "/v1/vvols/disk/switch", to("b/copy", "g1"), nil)
	if r := all["g1"].routes()[0]; r.Volume != "copy" || r.InFlight != "hold" || all["g2"].at() != "a" {
		t.Fatalf("g1: %+v, g2 at %s", r, all["g2"].at())
	}
	s.refused(control.KindNotFound, "gateway g9", "POST", "/v1/vvols/disk/switch", to("b/copy", "g9"))
	s.refused(control.KindRefused, "in use", "DELETE", "/v1/volumes/b/copy", nil)
	s.must("POST", "/v1/vvols/disk/switch", to("a/v1", "g1"), nil)
	if all["g1"].at() != "a" {
		t.Fatal("g1 is not led back")
	}
	s.must("POST", "/v1/vvols/disk/switch", to("b/copy", "g1"), nil)
	s.must("POST", "/v1/vvols/disk/switch", to("a/v1"), nil) // everywhere
	if all["g1"].at() != "a" || all["g2"].at() != "a" {
		t.Fatal("not led back everywhere")
	}
	s.must("DELETE", "/v1/volumes/b/copy", nil, nil)
}
