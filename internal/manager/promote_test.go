package manager

import (
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
