package manager

import (
	"slices"
	"strings"
	"testing"

	"gantline/internal/control"
)

// The primary is gone; the manager has the secondary promoted, and everything leads there.
func TestPromote(t *testing.T) {
	s := newSystem(t, "a", "c")
	s.pair()
	s.nodes["a"].Stop()
	s.refused(control.KindRefused, "--force", "POST", "/v1/groups/g/promote", control.PromoteRequest{})
	var plan control.PlanView
	s.must("POST", "/v1/groups/g/promote?dry_run=true", control.PromoteRequest{Force: true}, &plan)
	if len(plan.Plan) != 1 || len(plan.Refusals) != 0 || s.group().Primary != "a" {
		t.Fatalf("dry run: %+v", plan)
	}
	for range 2 { // repeated: the same
		var v control.PromoteView
		s.must("POST", "/v1/groups/g/promote", control.PromoteRequest{Force: true}, &v)
		if v != (control.PromoteView{Group: "g", Epoch: 2, Cut: 100}) {
			t.Fatalf("%+v", v)
		}
	}
	s.turned(t)
	s.refused(control.KindRefused, "no secondary", "POST", "/v1/volumes/c/v1/resize", control.VolumeResizeRequest{Size: 2 << 20})
	var status control.StatusView
	s.must("GET", "/v1/status", nil, &status)
	if status.Healthy {
		t.Fatal("healthy without a copy")
	}
}

func (s *system) turned(t *testing.T) {
	t.Helper()
	g := s.group()
	if g.Primary != "c" || g.Secondary != "a" || g.Epoch != 2 || g.Promoted == nil || g.Promoted.Cut != 100 ||
		g.Pairs[0] != (control.PairView{Primary: "c/v1", Secondary: "a/v1", Size: 1 << 20}) || g.PrimaryJournal != "c/g" {
		t.Fatalf("%+v", g)
	}
	var v control.VvolView
	s.must("GET", "/v1/vvols/disk", nil, &v)
	if v.Volume != "c/v1" || v.Epoch != 2 {
		t.Fatalf("%+v", v)
	}
}

// A promotion by the node's own socket is adopted from the node's report, but only from the group's own secondary, in a higher
// epoch, in the place of the group's present primary; and while no move has the group in hand.
func TestPromotionIsAdopted(t *testing.T) {
	s := newSystem(t, "a", "c")
	s.pair()
	report := func(node string, p control.Promotion) {
		t.Helper()
		in := s.nodes[node].Report()
		in.Promoted = map[string]*control.Promotion{"g": &p, "none": &p}
		s.must("POST", "/v1/internal/nodes/"+node+"/sync", in, nil)
	}
	report("c", control.Promotion{Epoch: 1, Cut: 100, From: "a"})
	report("c", control.Promotion{Epoch: 2, Cut: 100, From: "b"})
	report("a", control.Promotion{Epoch: 2, Cut: 100, From: "a"})
	if g := s.group(); g.Primary != "a" || g.Epoch != 1 {
		t.Fatalf("%+v", g)
	}
	for range 2 {
		report("c", control.Promotion{Epoch: 2, Cut: 100, From: "a"})
		s.turned(t)
	}
	s.eventually("a is told that it is the secondary now", func() bool {
		s.nodes["a"].Lock()
		defer s.nodes["a"].Unlock()
		spec := s.nodes["a"].Specs["g"]
		return spec.Role == control.RoleSecondary && spec.Group.Epoch == 2 && spec.Group.Promotion != nil
	})
}

// A promotion inside a move ends the move, before its decision and behind it, whomever the promoted node takes for the old primary: the
// store follows, hosts are led to the promoted node from both sides, and both sides are told. A node that is gone for good is forgotten.
func TestPromotionInsideAMove(t *testing.T) {
	for _, c := range []struct{ phase, from string }{{control.PhaseRegistered, "a"}, {control.PhasePending, "a"}, {"filled", "b"}, {"filled", "a"}} {
		t.Run(c.phase+" from "+c.from, func(t *testing.T) {
			s := newSystem(t, "a", "b", "c")
			s.pair()
			goOn := func() {}
			if c.phase != control.PhaseFilled {
				goOn = s.stopAt(c.phase)
			}
			s.must("POST", "/v1/migrations", control.MoveRequest{Group: "g", To: "b"}, nil)
			s.waitPhase("g-1", c.phase)
			in := s.nodes["c"].Report()
			in.Promoted = map[string]*control.Promotion{"g": {Epoch: 4, Cut: 100, From: c.from}}
			s.must("POST", "/v1/internal/nodes/c/sync", in, nil)
			s.waitPhase("g-1", control.PhaseFailed)
			g := s.group()
			if g.Primary != "c" || g.Secondary != c.from || g.Epoch != 4 || g.Pairs[0].Secondary != c.from+"/v1" {
				t.Errorf("%+v", g)
			}
			var v control.VvolView
			if s.must("GET", "/v1/vvols/disk", nil, &v); v.Volume != "c/v1" {
				t.Errorf("hosts are led to %s", v.Volume)
			}
			if mg := s.move("g-1"); !strings.Contains(mg.Error, "promoted") {
				t.Errorf("%+v", mg)
			}
			goOn()
			s.eventually("both are told", func() bool {
				mg, err := load[control.Migration](t.Context(), s.m, control.KindMigration, "g-1")
				return err == nil && len(mg.V.Undo) == 0 && s.called("a", control.CallMigrateCancel) > 0 && s.called("b", control.CallMigrateCancel) > 0
			})
			s.nodes["a"].Stop()
			s.m.presence.forget("a") // instead of six seconds
			s.refused(control.KindUnreachable, "gantline node remove a --forget", "DELETE", "/v1/groups/g", nil)
			s.must("DELETE", "/v1/nodes/a?forget=true", nil, nil)
			s.must("DELETE", "/v1/vvols/disk", nil, nil)
			s.must("DELETE", "/v1/groups/g", nil, nil)
			if !slices.Contains(s.nodes["b"].Called(), control.CallGroupDelete+" g") {
				t.Error("the target keeps the group")
			}
		})
	}
}

// A node that is gone for good is forgotten with what it had: its group can be deleted, or the move whose source it was committed. It
// is told when it comes back, and its name is free.
func TestForgottenNode(t *testing.T) {
	gone := func(t *testing.T, s *system, name string) {
		s.nodes[name].Stop()
		s.m.presence.forget(name) // instead of six seconds
	}
	told := func(t *testing.T, s *system, name string) {
		t.Helper()
		in := s.nodes[name].Report()
		reply, err := s.client.SyncNode(t.Context(), in)
		if err != nil || !strings.Contains(reply.Refused, "--forget") || !strings.Contains(reply.Refused, "groups g") ||
			!strings.Contains(reply.Refused, "volumes v1") {
			t.Errorf("it is told %q, %v", reply.Refused, err)
		}
		in.Node.Install = "another"
		if reply, err = s.client.SyncNode(t.Context(), in); err != nil || reply.Refused != "" {
			t.Errorf("another of its name: %q, %v", reply.Refused, err)
		}
	}
	t.Run("secondary", func(t *testing.T) {
		s := newSystem(t, "a", "c")
		s.pair()
		gone(t, s, "c")
		s.refused(control.KindRefused, "--forget", "DELETE", "/v1/nodes/c", nil)
		s.refused(control.KindUnreachable, "gantline node remove c --forget", "DELETE", "/v1/groups/g", nil)
		s.must("DELETE", "/v1/nodes/c?forget=true", nil, nil)
		if g := s.group(); g.Primary != "a" {
			t.Errorf("%+v", g)
		}
		s.must("DELETE", "/v1/groups/g", nil, nil)
		told(t, s, "c")
	})
	t.Run("primary", func(t *testing.T) {
		s := newSystem(t, "a", "c")
		s.pair()
		gone(t, s, "a")
		s.refused(control.KindRefused, "promote", "DELETE", "/v1/nodes/a?forget=true", nil)
		s.must("POST", "/v1/groups/g/promote", control.PromoteRequest{Force: true}, nil)
		s.must("DELETE", "/v1/nodes/a?forget=true", nil, nil)
		s.must("DELETE", "/v1/groups/g", nil, nil)
		told(t, s, "a")
	})
	t.Run("source", func(t *testing.T) {
		s := newSystem(t, "a", "b", "c")
		s.pair()
		goOn := s.stopAt(control.PhasePending)
		s.must("POST", "/v1/migrations", control.MoveRequest{Group: "g", To: "b"}, nil)
		s.waitPhase("g-1", control.PhasePending)
		gone(t, s, "a")
		s.refused(control.KindRefused, "promote g --force", "DELETE", "/v1/nodes/a?forget=true", nil)
		goOn()
		s.waitPhase("g-1", control.PhaseFilled)
		s.must("DELETE", "/v1/nodes/a?forget=true", nil, nil)
		s.must("POST", "/v1/migrations/g/commit", struct{}{}, nil)
		if v := s.waitPhase("g-1", control.PhaseCommitted); v.Check == nil || v.Check.State != control.CheckSkipped || !strings.Contains(v.Check.Reason, "forgotten") {
			t.Errorf("compared with nobody: %+v", v.Check)
		}
		told(t, s, "a")
	})
}
