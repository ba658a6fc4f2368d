package manager

import (
	"fmt"
	"slices"
	"strings"
	"testing"

	"gantline/internal/control"
)

// groups makes n groups g1… from a to c, with one pair each.
func (s *system) groups(n int) {
	s.t.Helper()
	for i := 1; i <= n; i++ {
		g, v := fmt.Sprintf("g%d", i), fmt.Sprintf("v%d", i)
		for _, node := range []string{"a", "c"} {
			s.must("POST", "/v1/volumes", control.VolumeRequest{Name: node + "/" + v, Size: 1 << 20}, nil)
		}
		s.must("POST", "/v1/groups", control.GroupRequest{Name: g, Primary: "a", Secondary: "c"}, nil)
		s.must("POST", "/v1/groups/"+g+"/pairs", control.PairRequest{Primary: "a/" + v, Secondary: "c/" + v}, nil)
	}
}

func (s *system) drain(phase string) control.OperationView {
	s.t.Helper()
	var v control.OperationView
	s.eventually("the drain is "+phase, func() bool {
		v = control.OperationView{}
		return s.do("GET", "/v1/operations/drain-a", nil, &v) == nil && v.Phase == phase
	})
	return v
}

// called counts calls of a method at a node.
func (s *system) called(node, method string) int {
	n := 0
	for _, c := range s.nodes[node].Called() {
		if strings.HasPrefix(c, method+" ") {
			n++
		}
	}
	return n
}

// Three groups move, two at a time, over a restart of the manager; a repetition finds nothing to move, and with --commit what is to
// be committed.
func TestDrain(t *testing.T) {
	s := newSystem(t, "a", "b", "c")
	s.groups(3)
	goOn := s.stopAt(control.PhasePending)
	in := control.DrainRequest{To: "b"}
	s.must("POST", "/v1/nodes/a/drain", in, nil)
	s.must("POST", "/v1/nodes/a/drain", in, nil) // joins
	s.refused(control.KindRefused, "being drained", "POST", "/v1/nodes/a/drain", control.DrainRequest{To: "c"})
	for _, id := range []string{"g1-1", "g2-1"} {
		s.waitPhase(id, control.PhasePending)
	}
	s.stop()
	s.start()
	if v := s.drain(control.DrainMoving); len(v.Items) != 3 || v.Items[2].Phase != control.DrainWaiting || v.Items[2].Migration != "" {
		t.Errorf("while two move: %+v", v)
	}
	if n := s.called("b", control.CallMigrateRun); n > 4 { // each asked again by the new manager
		t.Errorf("%d moves were begun", n)
	}
	goOn()
	v := s.drain(control.DrainDone)
	if v.Percent == nil || *v.Percent != 100 || v.Items[2].Migration != "g3-1" {
		t.Errorf("done: %+v", v)
	}
	for i := 1; i <= 3; i++ {
		s.waitPhase(fmt.Sprintf("g%d-1", i), control.PhaseFilled)
	}
	s.must("POST", "/v1/nodes/a/drain", control.DrainRequest{To: "b", Commit: true}, nil)
	s.drain(control.DrainDone)
	for i := 1; i <= 3; i++ {
		s.waitPhase(fmt.Sprintf("g%d-1", i), control.PhaseCommitted)
	}
}

// A repetition that names another number of moves at a time has it in force; one that names none leaves it.
func TestDrainParallelChanges(t *testing.T) {
	s := newSystem(t, "a", "b", "c")
	s.groups(3)
	goOn := s.stopAt(control.PhasePending)
	defer goOn()
	s.must("POST", "/v1/nodes/a/drain", control.DrainRequest{To: "b", Parallel: 1}, nil)
	s.waitPhase("g1-1", control.PhasePending)
	s.must("POST", "/v1/nodes/a/drain", control.DrainRequest{To: "b"}, nil)
	if v := s.drain(control.DrainMoving); v.Items[1].Phase != control.DrainWaiting {
		t.Errorf("with one at a time: %+v", v.Items)
	}
	s.must("POST", "/v1/nodes/a/drain", control.DrainRequest{To: "b", Parallel: 3}, nil)
	for _, id := range []string{"g2-1", "g3-1"} {
		s.waitPhase(id, control.PhasePending)
	}
}

// What would be refused is refused by name before anything moves; a dry run tells all of it.
func TestDrainRefusals(t *testing.T) {
	s := newSystem(t, "a", "b", "c")
	s.groups(2)
	s.must("POST", "/v1/volumes", control.VolumeRequest{Name: "a/lone", Size: 1 << 20}, nil)
	s.must("POST", "/v1/volumes", control.VolumeRequest{Name: "b/v2", Size: 1 << 20}, nil)
	s.must("POST", "/v1/volumes", control.VolumeRequest{Name: "b/lone", Size: 1 << 20}, nil)
	in := control.DrainRequest{To: "b"}
	var plan control.PlanView
	s.must("POST", "/v1/nodes/a/drain?dry_run=true", in, &plan)
	for _, word := range []string{"b/lone", "b/v2"} {
		if !slices.ContainsFunc(plan.Refusals, func(r string) bool { return strings.Contains(r, word) }) {
			t.Errorf("%s is not among %q", word, plan.Refusals)
		}
		s.refused(control.KindRefused, word, "POST", "/v1/nodes/a/drain", in)
	}
	if len(plan.Plan) != 3 || s.called("b", control.CallMigrateRegister) != 0 {
		t.Errorf("plan %q", plan.Plan)
	}
	s.refused(control.KindUsage, "itself", "POST", "/v1/nodes/a/drain", control.DrainRequest{To: "a"})
	s.refused(control.KindUsage, "--parallel", "POST", "/v1/nodes/a/drain", control.DrainRequest{To: "b", Parallel: 99})
	s.refused(control.KindNotFound, "node z", "POST", "/v1/nodes/a/drain", control.DrainRequest{To: "z"})
	s.must("DELETE", "/v1/volumes/a/lone", nil, nil)
	s.must("DELETE", "/v1/volumes/b/v2", nil, nil)
	b := s.nodes["b"]
	b.Lock()
	b.Free = 1<<30 + 1<<29 // room for one journal of a GiB, not for two
	b.Unlock()
	s.refused(control.KindRefused, "are free", "POST", "/v1/nodes/a/drain", in)
}

// The drain stops at the first move that goes back, with what it has done; the rest is moved by a repetition.
func TestDrainStops(t *testing.T) {
	s := newSystem(t, "a", "b", "c")
	s.groups(3)
	b := s.nodes["b"]
	b.Lock()
	b.Fail = func(call string) error {
		if call == control.CallMigrateThrough+" g2-1" {
			return control.Errorf(control.KindRefused, "no relay")
		}
		return nil
	}
	b.Unlock()
	in := control.DrainRequest{To: "b", Parallel: 1}
	s.must("POST", "/v1/nodes/a/drain", in, nil)
	v := s.drain(control.DrainFailed)
	var phases []string
	for _, it := range v.Items {
		phases = append(phases, it.Phase)
	}
	if fmt.Sprint(phases) != "[done failed waiting]" || !strings.Contains(v.Error, "g2") || !strings.Contains(v.Error, "no relay") {
		t.Errorf("stopped with %v: %q", phases, v.Error)
	}
	s.must("DELETE", "/v1/volumes/b/v2", nil, nil)
	s.must("DELETE", "/v1/journals/b/g2", nil, nil)
	s.eventually("the rest can be moved", func() bool { return s.do("POST", "/v1/nodes/a/drain", in, nil) == nil })
	if v := s.drain(control.DrainDone); len(v.Items) != 3 { // g1 is filled and may be committed
		t.Errorf("the rest: %+v", v.Items)
	}
	for _, id := range []string{"g1-1", "g2-2", "g3-1"} {
		s.waitPhase(id, control.PhaseFilled)
	}
}

// In a dry run all conditions are told at once, and what is expected is what was measured.
func TestDryRunOfAMove(t *testing.T) {
	s := newSystem(t, "a", "b", "c")
	s.groups(1)
	for _, name := range []string{"b/v1", "b/small"} {
		s.must("POST", "/v1/volumes", control.VolumeRequest{Name: name, Size: 8192}, nil)
	}
	s.must("POST", "/v1/journals", control.JournalRequest{Name: "b/g1", Size: 1 << 20}, nil)
	plan := func(in control.MoveRequest) control.PlanView {
		var p control.PlanView
		s.must("POST", "/v1/migrations?dry_run=true", in, &p)
		return p
	}
	p := plan(control.MoveRequest{Group: "g1", To: "b"})
	if len(p.Refusals) != 2 || p.Seconds != nil || p.PauseMS != nil {
		t.Errorf("first: %+v", p)
	}
	p = plan(control.MoveRequest{Group: "g1", To: "b", Map: map[string]string{"a/v1": "b/small"}, Limit: 1024})
	if len(p.Refusals) != 2 || p.Seconds == nil || *p.Seconds != 4 {
		t.Errorf("with a limit: %+v", p)
	}
	for _, d := range []string{"volumes/b/v1", "journals/b/g1"} {
		s.must("DELETE", "/v1/"+d, nil, nil)
	}
	s.must("POST", "/v1/migrations", control.MoveRequest{Group: "g1", To: "b", Commit: true}, nil)
	s.waitPhase("g1-1", control.PhaseCommitted)
	for _, d := range []string{"volumes/a/v1", "journals/a/g1"} {
		s.must("DELETE", "/v1/"+d, nil, nil)
	}
	if p := plan(control.MoveRequest{Group: "g1", To: "a"}); p.PauseMS == nil || *p.PauseMS != 7.5 || len(p.Refusals) != 0 {
		t.Errorf("after a move: %+v", p)
	}
}

// A drain that is kicked again has one loop all the same.
func TestDrainHasOneLoop(t *testing.T) {
	s := newSystem(t, "a", "b", "c")
	s.groups(1)
	goOn := s.stopAt(control.PhasePending)
	s.must("POST", "/v1/nodes/a/drain", control.DrainRequest{To: "b"}, nil)
	s.waitPhase("g1-1", control.PhasePending)
	for range 3 {
		s.m.drains.kick(t.Context(), control.DrainID("a"))
	}
	s.eventually("kicked", func() bool { return len(s.m.drains.start) == 0 })
	goOn()
	s.drain(control.DrainDone)
	s.must("POST", "/v1/nodes/a/drain", control.DrainRequest{To: "b", Commit: true}, nil) // the next one has a loop too
	s.drain(control.DrainDone)
	s.waitPhase("g1-1", control.PhaseCommitted)
	n := 0
	if err := s.client.Events(t.Context(), 0, false, func(e control.Event) error {
		if e.Kind == "drained" {
			n++
		}
		return nil
	}); err != nil {
		t.Fatal(err)
	}
	if n != 2 {
		t.Errorf("%d drains have ended", n)
	}
}

// More volumes in no group than a node takes groups are refused before the first one moves, unless each move is committed at once.
func TestDrainOfManyVolumes(t *testing.T) {
	s := newSystem(t, "a", "b")
	for i := range control.MaxGroups + 1 {
		s.must("POST", "/v1/volumes", control.VolumeRequest{Name: fmt.Sprintf("a/v%d", i), Size: 4096}, nil)
	}
	s.refused(control.KindRefused, "--commit", "POST", "/v1/nodes/a/drain", control.DrainRequest{To: "b"})
	var plan control.PlanView
	s.must("POST", "/v1/nodes/a/drain?dry_run=true", control.DrainRequest{To: "b", Commit: true}, &plan)
	if len(plan.Refusals) > 0 || len(plan.Plan) != control.MaxGroups+1 {
		t.Errorf("with --commit: %q, %d moves", plan.Refusals, len(plan.Plan))
	}
}
