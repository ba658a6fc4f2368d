package manager

import (
	"slices"
	"strings"
	"testing"

	"gantline/internal/control"
	"gantline/internal/wire"
)

// A move stops where it was told to, over a restart of the manager too, and goes on when it is told.
func TestStopAtAndContinue(t *testing.T) {
	for _, phase := range []string{control.PhaseRegistered, control.PhaseSwitched} {
		t.Run(phase, func(t *testing.T) {
			s := newSystem(t, "a", "b", "c")
			s.pair()
			s.must("POST", "/v1/migrations", control.MoveRequest{Group: "g", To: "b", StopAt: phase}, nil)
			s.must("POST", "/v1/migrations", control.MoveRequest{Group: "g", To: "b", StopAt: phase}, nil) // joins
			s.waitPhase("g-1", phase)
			s.stop()
			s.start()
			s.eventually("it says what it waits for", func() bool {
				v := s.move("g-1")
				return v.Phase == phase && v.BlockedOn != nil && strings.Contains(*v.BlockedOn, "migrate continue g-1")
			})
			s.refused(control.KindRefused, "migrate continue g-1", "POST", "/v1/migrations", control.MoveRequest{Group: "g", To: "b"})
			if slices.Contains(s.nodes["b"].Called(), control.CallMigrateRun+" g-1") {
				t.Error("the target was asked to take over")
			}
			s.must("POST", "/v1/migrations/g/continue", struct{}{}, nil)
			s.waitPhase("g-1", control.PhaseFilled)
			s.must("POST", "/v1/migrations/g/continue", struct{}{}, nil) // done already
		})
	}
}

// A limit that is set reaches the target: at once, or when it is back.
func TestMoveLimit(t *testing.T) {
	s := newSystem(t, "a", "b", "c")
	s.pair()
	goOn := s.stopAt(control.PhasePending)
	s.must("POST", "/v1/migrations", control.MoveRequest{Group: "g", To: "b", Limit: 1 << 20}, nil)
	s.waitPhase("g-1", control.PhasePending)
	b := s.nodes["b"]
	limit := func() int64 {
		b.Lock()
		defer b.Unlock()
		return b.Moves["g-1"].Spec.Limit
	}
	set := func(n int64) error {
		return s.do("POST", "/v1/migrations/g/set", control.MoveSetRequest{Limit: &n}, nil)
	}
	if err := set(2 << 20); err != nil || limit() != 2<<20 {
		t.Fatalf("limit %d, %v", limit(), err)
	}
	b.Lock()
	b.Fail = func(call string) error {
		if strings.HasPrefix(call, control.CallMigrateSet) {
			return &wire.Error{Kind: wire.KindUnavailable, Message: "by the test"}
		}
		return nil
	}
	b.Unlock()
	if err := set(3 << 20); err != nil {
		t.Fatal(err)
	}
	if err := set(-1); control.KindOf(err) != control.KindUsage {
		t.Errorf("a negative limit: %v", err)
	}
	b.Lock()
	b.Fail = nil
	b.Unlock()
	s.eventually("the target is told when it answers", func() bool { return limit() == 3<<20 })
	if v := s.move("g-1"); v.Limit != 3<<20 {
		t.Errorf("shown: %d", v.Limit)
	}
	goOn()
	s.waitPhase("g-1", control.PhaseFilled)
	if err := set(0); control.KindOf(err) != control.KindRefused {
		t.Errorf("of a filled move: %v", err)
	}
}
