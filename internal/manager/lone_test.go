package manager

import (
	"context"
	"fmt"
	"strings"
	"testing"
	"time"

	"gantline/internal/control"
)

// lone makes a volume in no group at a, with a virtual volume.
func (s *system) lone() {
	s.t.Helper()
	s.must("POST", "/v1/volumes", control.VolumeRequest{Name: "a/v1", Size: 1 << 20}, nil)
	s.must("POST", "/v1/vvols", control.VvolRequest{Name: "v1", Volume: "a/v1"}, nil)
}

// ungrouped: neither the store nor the node that serves has the group of the move any more, and the volume is in none.
func (s *system) ungrouped(node, volume string) {
	s.t.Helper()
	if entries, _, err := s.store.List(context.Background(), control.KindGroup+"/"); err != nil || len(entries) > 0 {
		s.t.Errorf("the store has %v, %v", entries, err)
	}
	n := s.nodes[node]
	n.Lock()
	if len(n.Groups)+len(n.Moves) > 0 {
		s.t.Errorf("node %s has %v, %v", node, n.Groups, n.Moves)
	}
	n.Unlock()
	if v, err := load[control.Volume](context.Background(), s.m, control.KindVolume, volume); err != nil || v.V.Group != "" {
		s.t.Errorf("%s: %+v, %v", volume, v.V, err)
	}
}

// The group that is made for the move of a volume in no group goes with it, also when the manager dies around its end and the node that
// serves cannot be reached then; the record of the move stays.
func TestMoveLoneEnds(t *testing.T) {
	for _, edge := range []string{"before", "after"} {
		t.Run(edge, func(t *testing.T) {
			s := newSystem(t, "a", "b", "c")
			s.lone()
			s.must("POST", "/v1/migrations", control.MoveRequest{Group: "a/v1", To: "b"}, nil)
			s.waitPhase("a.v1-1", control.PhaseFilled)
			if v := s.move("a%2Fv1"); v.ID != "a.v1-1" || v.Group != "a/v1" {
				t.Errorf("by the volume's name: %+v", v)
			}
			pair := control.PairRequest{Primary: "b/v1", Secondary: "c/v1"}
			for path, in := range map[string]any{"suspend": struct{}{}, "promote": struct{}{}, "pairs": pair} {
				s.refused(control.KindNotFound, "group a.v1", "POST", "/v1/groups/a.v1/"+path, in)
			}
			s.refused(control.KindRefused, "commit that first", "POST", "/v1/volumes/b/v1/resize", control.VolumeResizeRequest{Size: 2 << 20})
			away, asked, dies := true, false, true
			b := s.nodes["b"]
			b.Lock()
			b.Fail = func(call string) error {
				if away && strings.HasPrefix(call, control.CallGroupDelete) {
					asked = true
					return control.Errorf(control.KindUnreachable, "it is away")
				}
				return nil
			}
			b.Unlock()
			reached := make(chan bool)
			s.point = func(step, at string) {
				if dies && step == control.PointUngroup && at == edge {
					dies = false
					s.cut()
					close(reached)
				}
			}
			s.must("POST", "/v1/migrations/a.v1/commit", struct{}{}, nil)
			s.eventually("the target is asked to end the group", func() bool {
				b.Lock()
				defer b.Unlock()
				return asked
			})
			if v := s.move("a.v1-1"); v.Phase != control.PhaseFilled {
				t.Errorf("committed while %s is away: %+v", v.Target, v)
			}
			b.Lock()
			away = false
			b.Unlock()
			<-reached
			s.stop()
			s.start()
			s.waitPhase("a.v1-1", control.PhaseCommitted)
			s.ungrouped("b", "b/v1")
			if v, err := load[control.Vvol](context.Background(), s.m, control.KindVvol, "v1"); err != nil || v.V.Volume != "b/v1" {
				t.Errorf("%+v, %v", v.V, err)
			}
		})
	}
}

// Records of moves of volumes in no group that have ended are bounded, and a volume's numbers go on.
func TestLoneMovesAreForgotten(t *testing.T) {
	s := newSystem(t, "a", "b", "c")
	s.lone()
	begun := time.Now().UTC()
	for i := range maxLoneMoves + 10 {
		name := fmt.Sprintf("a.w%d", i)
		mg := control.Migration{ID: name + "-1", Group: name, Lone: "a/w", Phase: control.PhaseCommitted,
			Steps: []control.Step{control.StepAt(control.StepDeregister, begun.Add(time.Duration(i)*time.Second))}}
		if _, err := s.m.commit(context.Background(), s.m.change().put(control.Key(control.KindMigration, mg.ID), 0, mg)); err != nil {
			t.Fatal(err)
		}
	}
	for i := range 2 {
		id := fmt.Sprintf("a.v1-%d", i+1)
		s.must("POST", "/v1/migrations", control.MoveRequest{Group: "a/v1", To: "b", StopAt: control.PhaseRegistered}, nil)
		s.waitPhase(id, control.PhaseRegistered)
		s.must("POST", "/v1/migrations/"+id+"/abort", struct{}{}, nil)
		s.waitPhase(id, control.PhaseAborted)
		s.ungrouped("a", "a/v1")
	}
	all, err := loadAll[control.Migration](context.Background(), s.m, control.KindMigration)
	if err != nil || len(all) != maxLoneMoves || all[0].V.ID != "a.v1-2" {
		t.Errorf("%d records, the first %s: %v", len(all), all[0].V.ID, err)
	}
	if _, err := load[control.Migration](context.Background(), s.m, control.KindMigration, "a.w9-1"); control.KindOf(err) != control.KindNotFound {
		t.Errorf("an old one: %v", err)
	}
}
