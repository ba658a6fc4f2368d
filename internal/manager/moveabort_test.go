package manager

import (
	"runtime"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"gantline/internal/control"
	"gantline/internal/wire"
)

// stopAt has a move stand still in a phase, by a call that finds nobody or a target that waits; the function lets it go on.
func (s *system) stopAt(phase string) func() {
	b := s.nodes["b"]
	b.Lock()
	defer b.Unlock()
	call := map[string]string{"": control.CallMigrateRegister, control.PhaseRegistered: control.CallMigrateThrough,
		control.PhaseSwitched: control.CallMigrateRun}[phase]
	hold := make(chan struct{})
	if call == "" {
		b.Hold = hold
	} else {
		b.Fail = func(c string) error {
			if strings.HasPrefix(c, call) {
				return &wire.Error{Kind: wire.KindUnavailable, Message: "by the test"}
			}
			return nil
		}
	}
	return func() {
		b.Lock()
		defer b.Unlock()
		b.Fail, b.Hold = nil, nil
		close(hold)
	}
}

// A move is turned back at each of its steps: the source has group and hosts again, what the move has made is gone, a second
// move succeeds.
func TestAbortAtEachStep(t *testing.T) {
	for _, c := range []struct {
		phase string
		epoch uint64
	}{{"", 1}, {control.PhaseRegistered, 1}, {control.PhaseSwitched, 3}, {control.PhasePending, 3}} {
		t.Run("at "+c.phase, func(t *testing.T) {
			s := newSystem(t, "a", "b", "c")
			s.pair()
			goOn := s.stopAt(c.phase)
			s.must("POST", "/v1/migrations", control.MoveRequest{Group: "g", To: "b"}, nil)
			s.waitPhase("g-1", c.phase)
			s.eventually("the call was tried", func() bool {
				mg, err := load[control.Migration](t.Context(), s.m, control.KindMigration, "g-1")
				return err == nil && mg.V.RunAsked == (c.epoch == 3)
			})
			var plan control.PlanView
			s.must("POST", "/v1/migrations/g/abort?dry_run=true", struct{}{}, &plan)
			if text := strings.Join(plan.Plan, "\n"); !strings.Contains(text, "b/v1") || strings.Contains(text, "epoch 3") != (c.epoch == 3) {
				t.Errorf("plan:\n%s", text)
			}
			s.must("POST", "/v1/migrations/g/abort", struct{}{}, nil)
			v := s.waitPhase("g-1", control.PhaseAborted)
			if !strings.Contains(v.Error, "by command") || v.Decided != control.DecidedSource {
				t.Errorf("aborted with %q, decided %q", v.Error, v.Decided)
			}
			g := s.group()
			if g.Primary != "a" || g.Epoch != c.epoch || g.Pairs[0].Primary != "a/v1" || g.PrimaryJournal != "a/g" {
				t.Errorf("group %+v", g)
			}
			var vv control.VvolView
			if s.must("GET", "/v1/vvols/disk", nil, &vv); vv.Volume != "a/v1" {
				t.Errorf("hosts are led to %s", vv.Volume)
			}
			s.refused(control.KindNotFound, "b/v1", "GET", "/v1/volumes/b/v1", nil)
			s.refused(control.KindNotFound, "b/g", "GET", "/v1/journals/b/g", nil)
			s.must("POST", "/v1/migrations/g/abort", struct{}{}, nil) // done already
			goOn()
			s.must("POST", "/v1/migrations", control.MoveRequest{Group: "g", To: "b"}, nil)
			s.waitPhase("g-2", control.PhaseFilled)
			s.refused(control.KindRefused, "decided", "POST", "/v1/migrations/g/abort", struct{}{})
			s.must("POST", "/v1/migrations/g-1/abort", struct{}{}, nil)
		})
	}
}

// Volumes and a journal that were named stay, and are free again.
func TestAbortLeavesWhatWasNamed(t *testing.T) {
	s := newSystem(t, "a", "b", "c")
	s.pair()
	s.must("POST", "/v1/volumes", control.VolumeRequest{Name: "b/mine", Size: 1 << 20}, nil)
	s.must("POST", "/v1/journals", control.JournalRequest{Name: "b/log", Size: 1 << 20}, nil)
	goOn := s.stopAt(control.PhasePending)
	defer goOn()
	s.must("POST", "/v1/migrations", control.MoveRequest{Group: "g", To: "b", Map: map[string]string{"a/v1": "b/mine"}, Journal: "b/log"}, nil)
	s.waitPhase("g-1", control.PhasePending)
	s.must("POST", "/v1/migrations/g/abort", struct{}{}, nil)
	s.waitPhase("g-1", control.PhaseAborted)
	s.must("DELETE", "/v1/volumes/b/mine", nil, nil)
	s.must("DELETE", "/v1/journals/b/log", nil, nil)
}

// The source does not wait for a target that is dead; that one is told when it returns. Without its source an abort waits, and
// says so.
func TestAbortWithADeadNode(t *testing.T) {
	for _, dead := range []string{"a", "b"} {
		t.Run(dead, func(t *testing.T) {
			s := newSystem(t, "a", "b", "c")
			s.pair()
			goOn := s.stopAt(control.PhasePending)
			s.must("POST", "/v1/migrations", control.MoveRequest{Group: "g", To: "b"}, nil)
			s.waitPhase("g-1", control.PhasePending)
			n := s.nodes[dead]
			n.Stop()
			s.must("POST", "/v1/migrations/g/abort", struct{}{}, nil)
			if dead == "a" {
				s.eventually("it says what it waits for", func() bool {
					v := s.move("g-1")
					return v.Phase == control.PhasePending && v.BlockedOn != nil && strings.Contains(*v.BlockedOn, "node a")
				})
				s.refused(control.KindRefused, "being aborted", "POST", "/v1/migrations", control.MoveRequest{Group: "g", To: "b"})
			} else {
				s.waitPhase("g-1", control.PhaseAborted)
				s.eventually("the source serves", func() bool {
					return slices.Contains(s.nodes["a"].Called(), control.CallMigrateReopen+" g-1")
				})
			}
			goOn()
			if err := n.Start(s.client, "run2"); err != nil {
				t.Fatal(err)
			}
			s.waitPhase("g-1", control.PhaseAborted)
			s.eventually("a second move begins", func() bool {
				return s.do("POST", "/v1/migrations", control.MoveRequest{Group: "g", To: "b"}, nil) == nil
			})
			s.waitPhase("g-2", control.PhaseFilled)
		})
	}
}

// A secondary that nobody can reach is told of a move when it is back: of one that is decided; of one that was turned back behind the
// order to the target, so that it may believe the source's e+2, which then is taken back from the target; of another one not at all.
func TestMoveThatTheSecondaryIsToldLater(t *testing.T) {
	for name, c := range map[string]struct {
		abort string
		calls []string
	}{
		"decided":                   {"", []string{control.CallMigrateRegister + " g-1"}},
		"aborted":                   {control.PhasePending, []string{control.CallMigrateRegister + " g-1", control.CallMigrateCancel + " g-1"}},
		"aborted before it was run": {control.PhaseRegistered, nil},
	} {
		t.Run(name, func(t *testing.T) {
			s := newSystem(t, "a", "b", "c")
			s.pair()
			away := s.nodes["c"]
			away.Stop()
			s.nodes["a"].Lock()
			s.nodes["a"].LinkDown = true
			s.nodes["a"].Unlock()
			goOn := func() {}
			if c.abort != "" {
				goOn = s.stopAt(c.abort)
			} else { // a target is not filled before the secondary knows it
				s.nodes["b"].Lock()
				s.nodes["b"].Rest = make(chan struct{})
				s.nodes["b"].Unlock()
			}
			s.must("POST", "/v1/migrations", control.MoveRequest{Group: "g", To: "b"}, nil)
			if c.abort == "" {
				s.eventually("decided", func() bool { return s.group().Primary == "b" })
			} else {
				s.waitPhase("g-1", c.abort)
				s.must("POST", "/v1/migrations/g/abort", struct{}{}, nil)
				s.waitPhase("g-1", control.PhaseAborted)
				goOn()
			}
			if c.abort == control.PhasePending {
				s.refused(control.KindRefused, "has not acknowledged the end of migration g-1", "POST", "/v1/migrations", control.MoveRequest{Group: "g", To: "b"})
			}
			before := len(away.Called())
			if err := away.Start(s.client, "run2"); err != nil {
				t.Fatal(err)
			}
			told := func() (calls []string) {
				for _, call := range away.Called()[before:] {
					if strings.HasPrefix(call, control.CallMigrateRegister) || strings.HasPrefix(call, control.CallMigrateCancel) {
						calls = append(calls, call)
					}
				}
				return calls
			}
			s.eventually("the secondary was told", func() bool {
				mg, err := load[control.Migration](t.Context(), s.m, control.KindMigration, "g-1")
				return err == nil && len(told()) >= len(c.calls) && (c.abort == "" || len(mg.V.Undo) == 0)
			})
			if got := told(); !slices.Equal(got, c.calls) {
				t.Errorf("the secondary was told %q, wanted %q", got, c.calls)
			}
		})
	}
}

// The manager dies at the points of an abort; started again it ends the abort, or goes on with the move if nothing was stored.
func TestManagerKilledInAnAbort(t *testing.T) {
	for _, point := range []string{control.PointAbort, control.PointAborted} {
		for _, edge := range []string{"before", "after"} {
			t.Run(point+"."+edge, func(t *testing.T) {
				s := newSystem(t, "a", "b", "c")
				s.pair()
				died := make(chan struct{})
				var once atomic.Bool
				s.point = func(st, e string) {
					if st == point && e == edge && !once.Swap(true) {
						close(died)
						runtime.Goexit() // nothing of the old process is seen any more
					}
				}
				goOn := s.stopAt(control.PhasePending)
				s.must("POST", "/v1/migrations", control.MoveRequest{Group: "g", To: "b"}, nil)
				s.waitPhase("g-1", control.PhasePending)
				go func() { _ = s.do("POST", "/v1/migrations/g/abort", struct{}{}, nil) }()
				select {
				case <-died:
				case <-time.After(10 * time.Second):
					t.Fatal("the point was not reached: the fault did not take hold")
				}
				s.kill()
				s.start()
				want := control.PhaseAborted
				if point == control.PointAbort && edge == "before" {
					want = control.PhaseFilled
				}
				if want == control.PhaseFilled {
					goOn()
				} else {
					defer goOn()
				}
				s.waitPhase("g-1", want)
			})
		}
	}
}

// What somebody has made under a name that the move was to make is neither overwritten nor removed.
func TestMoveTakesOnlyWhatItHasMade(t *testing.T) {
	s := newSystem(t, "a", "b", "c")
	s.pair()
	s.must("POST", "/v1/volumes", control.VolumeRequest{Name: "b/v1", Size: 1 << 20}, nil)
	s.must("POST", "/v1/journals", control.JournalRequest{Name: "b/g", Size: 1 << 20}, nil)
	mg := &control.Migration{ID: "g-1", Group: "g", Source: "a", Target: "b", MadeVolumes: []string{"b/v1"}, MadeJournal: "b/g",
		TargetJournal: "b/g", JournalSize: 1 << 20, Volumes: []control.MovedVolume{{Number: 1, Source: "a/v1", Target: "b/v1", Size: 1 << 20}}}
	for what, err := range map[string]error{"volume b/v1": s.m.makeTargetVolume(t.Context(), mg, "b/v1"),
		"journal b/g": s.m.makeTargetJournal(t.Context(), mg)} {
		if control.KindOf(err) != control.KindRefused || !strings.Contains(err.Error(), what) {
			t.Errorf("%s: %v", what, err)
		}
	}
	c := s.m.change()
	s.must("POST", "/v1/vvols", control.VvolRequest{Name: "other", Volume: "b/v1"}, nil)
	if err := s.m.leadVvols(t.Context(), c, mg, false); err != nil || len(c.txn.Puts) > 0 {
		t.Errorf("a virtual volume of somebody else is led elsewhere: %v, %v", c.plan, err)
	}
	s.must("DELETE", "/v1/vvols/other", nil, nil)
	if left, err := s.m.freeSide(t.Context(), c, mg, true, false); err != nil || len(left) > 0 {
		t.Errorf("left: %v, %v", left, err)
	}
	abortMove(mg, "c", "by the test")
	for _, e := range mg.Undo {
		if u := parseUndo(e); u.name != "" {
			if err := s.m.undoOne(t.Context(), mg, u); err != nil {
				t.Errorf("%s: %v", e, err)
			}
			if err := s.m.forgetMade(t.Context(), c, mg, u); err != nil {
				t.Errorf("%s: %v", e, err)
			}
		}
	}
	if n := s.called("b", control.CallVolumeDelete) + s.called("b", control.CallJournalDelete); n > 0 {
		t.Errorf("%d removals", n)
	}
	s.must("DELETE", "/v1/volumes/b/v1", nil, nil)
	s.must("DELETE", "/v1/journals/b/g", nil, nil)
}
