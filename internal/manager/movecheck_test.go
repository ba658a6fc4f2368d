package manager

import (
	"slices"
	"strings"
	"testing"

	"gantline/internal/control"
)

func differing() *control.MoveCheck {
	c := &control.MoveCheck{State: control.CheckDifferent, TotalBytes: 1 << 20, DoneBytes: 1 << 20}
	c.Add(control.VerifyExtent{Volume: "b/v1", Offset: 65536, Length: 65536}, false)
	return c
}

// finds has a target find something at the next commits; nil: nothing differs.
func (s *system) finds(node string, c *control.MoveCheck) {
	s.nodes[node].Lock()
	defer s.nodes[node].Unlock()
	s.nodes[node].Check = c
}

// What a new commit means, by what the last one has found.
func TestAskCommit(t *testing.T) {
	mg := &control.Migration{Phase: control.PhaseFilled}
	if !askCommit(mg, false) || !mg.Commit || mg.CommitTry != 0 || askCommit(mg, false) {
		t.Fatalf("the first: %+v", mg)
	}
	if !endCheck(mg, *differing()) || mg.Commit || !mg.Check.Failed() || mg.Check.Passed() || endCheck(mg, *differing()) {
		t.Fatalf("different: %+v", mg)
	}
	again := *mg
	if !askCommit(&again, false) || again.Check != nil || again.CommitTry != 1 {
		t.Errorf("anew: %+v", again)
	}
	if !askCommit(&again, true) || !again.Accept || askCommit(&again, true) || askCommit(&again, false) || !again.Accept {
		t.Errorf("accepted while it compares: %+v", again)
	}
	if !endCheck(&again, *differing()) || !again.Commit || !again.Check.Accepted || !again.Check.Passed() {
		t.Errorf("different, and accepted before: %+v", again)
	}
	found := mg.Check
	if !askCommit(mg, true) || !mg.Commit || mg.CommitTry != 0 || !mg.Check.Passed() || found.Accepted {
		t.Errorf("accepted afterwards: %+v", mg)
	}
	same := &control.Migration{Phase: control.PhaseFilled, Commit: true}
	if !endCheck(same, control.MoveCheck{State: control.CheckSame}) || !same.Commit || !same.Check.Passed() || same.Check.Failed() {
		t.Errorf("same: %+v", same)
	}
}

// Differences end a commit, with nobody deregistered; the next one compares anew, and one that accepts them does not.
func TestCommitFindsDifferences(t *testing.T) {
	for _, accept := range []bool{false, true} {
		s := newSystem(t, "a", "b", "c")
		s.pair()
		s.finds("b", differing())
		s.must("POST", "/v1/migrations", control.MoveRequest{Group: "g", To: "b", Commit: true}, nil)
		var v control.MigrationView
		s.eventually("it is found", func() bool { v = s.move("g-1"); return v.Check.Failed() })
		if v.Phase != control.PhaseFilled || v.Check.Places != 1 || !slices.Equal(v.Check.Different, differing().Different) {
			t.Errorf("%+v, %+v", v, v.Check)
		}
		for _, n := range []string{"a", "b", "c"} {
			if s.called(n, control.CallMigrateDeregister) > 0 {
				t.Errorf("node %s was deregistered", n)
			}
		}
		var st control.StatusView
		s.must("GET", "/v1/status", nil, &st)
		if !slices.ContainsFunc(st.Problems, func(p string) bool { return strings.Contains(p, "65536 bytes at 65536") }) {
			t.Errorf("problems: %q", st.Problems)
		}
		asked := s.called("b", control.CallMigrateCompare)
		if !accept {
			s.finds("b", nil)
		}
		s.must("POST", "/v1/migrations/g/commit", control.MoveCommitRequest{AcceptDifferences: accept}, nil)
		v = s.waitPhase("g-1", control.PhaseCommitted)
		if accept != v.Check.Accepted || accept != (v.Check.State == control.CheckDifferent) || accept != (s.called("b", control.CallMigrateCompare) == asked) {
			t.Errorf("accepted %v: %+v, asked %d times", accept, v.Check, s.called("b", control.CallMigrateCompare))
		}
	}
}

// A drain that is to commit stops at what differs, and says so.
func TestDrainFindsDifferences(t *testing.T) {
	s := newSystem(t, "a", "b", "c")
	s.groups(1)
	s.finds("b", differing())
	s.must("POST", "/v1/nodes/a/drain", control.DrainRequest{To: "b", Commit: true}, nil)
	if v := s.drain(control.DrainFailed); !strings.Contains(v.Error, "65536 bytes at 65536") || !strings.Contains(v.Error, "--accept-differences") {
		t.Errorf("%+v", v)
	}
	if v := s.move("g1-1"); v.Phase != control.PhaseFilled {
		t.Errorf("%+v", v)
	}
}

// A manager that dies around the result goes on with it.
func TestManagerKilledAtACheck(t *testing.T) {
	s := newSystem(t, "a", "b", "c")
	s.pair()
	s.must("POST", "/v1/migrations", control.MoveRequest{Group: "g", To: "b"}, nil)
	s.waitPhase("g-1", control.PhaseFilled)
	running := control.MoveCheck{State: control.CheckRunning, TotalBytes: 100, DoneBytes: 7}
	s.finds("b", &running)
	s.must("POST", "/v1/migrations/g/commit", struct{}{}, nil)
	s.eventually("it compares", func() bool { c := s.move("g-1").Check; return c != nil && c.DoneBytes == 7 })
	s.stop()
	s.finds("b", differing())
	s.start()
	s.eventually("it is found", func() bool { return s.move("g-1").Check.Failed() })
	s.stop()
	s.start()
	if v := s.move("g-1"); !v.Check.Failed() || v.Phase != control.PhaseFilled {
		t.Errorf("%+v", v)
	}
}
