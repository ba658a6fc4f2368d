package powerloss

import (
	"fmt"
	"math/rand/v2"
	"os"
	"slices"
	"sync"
	"testing"
	"time"

	"gantline/internal/control"
)

// moment is where in a move a node loses its power.
type moment struct {
	node, step, edge string
}

func (m moment) String() string { return m.node + "@" + m.step + "." + m.edge }

// moments are all places of a move that nodes tell of.
func moments() []moment {
	at := []struct {
		step  string
		nodes []string
	}{
		{control.StepRegister, []string{"a", "b", "c"}},
		{control.StepThrough, []string{"b"}},
		{control.StepPend, []string{"b"}},
		{control.StepSeal, []string{"a", "b"}},
		{control.StepDecide, []string{"b"}},
		{control.StepSource, []string{"b", "c"}},
		{control.StepRun, []string{"b"}},
		{control.StepDrained, []string{"a", "b"}},
		{control.StepSingle, []string{"b", "c"}},
		{control.StepFill, []string{"b"}},
		{control.StepDeregister, []string{"a", "b", "c"}},
	}
	var all []moment
	for _, a := range at {
		for _, n := range a.nodes {
			all = append(all, moment{n, a.step, "before"}, moment{n, a.step, "after"})
		}
	}
	return all
}

// mayLose: the node numbers what hosts write at that moment, so that its power takes what is under no flush.
func (m moment) mayLose() bool {
	switch m.node {
	case "a":
		return m.step == control.StepRegister || m.step == control.StepSeal && m.edge == "before"
	case "b":
		return m.step == control.StepRun && m.edge == "after" || slices.Contains([]string{control.StepDrained,
			control.StepSingle, control.StepFill, control.StepDeregister}, m.step)
	}
	return false
}

// patience is how long a target waits for a source that is away before hosts meet errors for regions not there yet.
const patience = 5 * time.Second

// lookAtSecondary cuts c off for a moment in the middle of things and wants a prefix.
func (s *site) lookAtSecondary() verdict {
	s.t.Helper()
	s.net.link("*", "c", false)
	defer s.net.link("*", "c", true)
	s.until(10*time.Second, "the secondary has applied what it holds", func() bool {
		st, err := s.status("c")
		return err == nil && st.Applied == st.Appended && !st.LinkUp
	})
	return s.checkSecondary()
}

// trap takes the power of a node at the next time it comes to a step.
func (s *site) trap(m moment) <-chan struct{} { return s.trapTo(m, func() { s.crash(m.node) }) }

// trapTo does something at the next time that a node, or the gateway, comes to a step.
func (s *site) trapTo(m moment, do func()) <-chan struct{} {
	took := make(chan struct{})
	if m.node == gatewayName {
		once := sync.OnceFunc(func() { do(); close(took) })
		point := func(edge string) {
			if edge == m.edge {
				once()
			}
		}
		s.switched.Store(&point)
		return took
	}
	mc := s.node[m.node]
	mc.mu.Lock()
	defer mc.mu.Unlock()
	done := false
	mc.point = func(step, edge string) {
		if done || step != m.step || edge != m.edge {
			return
		}
		done = true
		do()
		close(took)
	}
	return took
}

// startMove begins a move of the group to b and returns its id.
func (s *site) startMove() string {
	s.t.Helper()
	var m control.MigrationView
	s.must(s.do("POST", "/v1/migrations", control.MoveRequest{Group: group, To: "b", Limit: 2 << 20}, &m))
	return m.ID
}

func (s *site) move(id string) (m control.MigrationView) {
	s.t.Helper()
	s.must(s.do("GET", "/v1/migrations/"+id, nil, &m))
	return m
}

// ended waits for a move to be filled, or to have gone back.
func (s *site) ended(id string) (m control.MigrationView) {
	s.t.Helper()
	for end := time.Now().Add(90 * time.Second); time.Now().Before(end); time.Sleep(20 * time.Millisecond) {
		m = s.move(id)
		switch m.Phase {
		case control.PhaseFilled, control.PhaseAborted, control.PhaseFailed, control.PhaseCommitted:
			return m
		}
	}
	for name := range s.node {
		st, err := s.status(name)
		var ms control.MigrationStatus
		_ = s.call(name, control.CallMigrateStatus, control.MigrationID{ID: id}, &ms)
		s.t.Logf("%s: %+v %v\n  %+v", name, st, err, ms)
	}
	blocked := ""
	if m.BlockedOn != nil {
		blocked = *m.BlockedOn
	}
	s.t.Fatalf("move %s is still %s after 90 s, blocked on %q, error %q", id, m.Phase, blocked, m.Error)
	return m
}

// lossDuring runs one move with one power loss in it.
func lossDuring(t *testing.T, at moment, down time.Duration) {
	seed, rnd := seedOf(t)
	s := newSite(t, seed, rnd)
	s.load.resume()
	time.Sleep(300 * time.Millisecond)
	wan, bytes := s.net.sent("a", "c")+s.net.sent("b", "c"), s.written()
	took := s.trap(at)
	id := s.startMove()
	commits := at.step == control.StepDeregister
	if commits {
		if m := s.ended(id); m.Phase != control.PhaseFilled {
			t.Fatalf("move ended as %s: %s", m.Phase, m.Error)
		}
		go func() { _ = s.do("POST", "/v1/migrations/"+id+"/commit", struct{}{}, nil) }()
	}
	select {
	case <-took:
	case <-time.After(30 * time.Second):
		t.Fatalf("the move never came to %v: %+v", at, s.move(id))
	}
	time.Sleep(down)
	s.gone(at.node)
	if at.mayLose() {
		s.load.primaryBegins()
	}
	s.start(at.node)
	if !at.mayLose() { // else nobody can tell a prefix before the history is reconciled
		s.pause(0, 300*time.Millisecond)
		v := s.lookAtSecondary()
		s.say("in the middle of it the secondary is a prefix, %d behind", v.behind)
	}
	if rnd.IntN(3) == 0 {
		again := []string{"a", "b", "c"}[rnd.IntN(3)]
		s.say("power of %s goes too, at %s", again, s.move(id).Phase)
		s.crash(again)
		s.restart(again)
	}
	m := s.ended(id)
	s.say("%v, %v without power: %s in %d steps, %s", at, down.Round(time.Millisecond), m.Phase, len(m.Steps), m.Error)
	s.afterMove(at, id, m)
	sent, wrote := s.net.sent("a", "c")+s.net.sent("b", "c")-wan, s.written()-bytes
	if sent > wrote+wrote/2+s.marked+4<<20 {
		t.Errorf("%d bytes were sent to the secondary while hosts wrote %d (I4)", sent, wrote)
	}
	n, errs, first := s.load.counts()
	if errs > 0 && (at.node != "a" || down < patience) {
		t.Errorf("hosts met %d errors: %v", errs, first)
	}
	t.Logf("%v: %d writes, %d lost, %d errors (%v), longest wait %v, WAN %d bytes for %d written", at, n, s.load.h.lost, errs, first, s.load.longest, sent, wrote)
}

func (s *site) written() int64 {
	s.load.mu.Lock()
	defer s.load.mu.Unlock()
	return s.load.bytes
}

// afterMove checks all that must hold whether the move has ended or gone back; one that has gone back is done again.
func (s *site) afterMove(at moment, id string, m control.MigrationView) {
	s.t.Helper()
	if m.Phase == control.PhaseAborted || m.Phase == control.PhaseFailed {
		s.settle()
		if p := s.serving(); p != "a" {
			s.t.Fatalf("the move went back, but %q serves", p)
		}
		s.load.resume()
		s.until(30*time.Second, "the aborted move is undone", func() bool {
			var ms control.MigrationStatus
			return s.call("a", control.CallMigrateStatus, control.MigrationID{ID: id}, &ms) != nil &&
				s.call("b", control.CallMigrateStatus, control.MigrationID{ID: id}, &ms) != nil
		})
		for _, v := range append([]string{"journals/b/jg"}, "volumes/b/v1", "volumes/b/v2", "volumes/b/v3") {
			_ = s.do("DELETE", "/v1/"+v, nil, nil)
		}
		again := s.startMove()
		if m = s.ended(again); m.Phase != control.PhaseFilled {
			s.t.Fatalf("the second move ended as %s: %s", m.Phase, m.Error)
		}
		id = again
	}
	s.settle()
	if p := s.serving(); p != "b" {
		s.t.Fatalf("after the move %q serves", p)
	}
	s.load.resume()
	time.Sleep(200 * time.Millisecond)
	if m.Phase != control.PhaseCommitted {
		s.must(s.do("POST", "/v1/migrations/"+id+"/commit", struct{}{}, nil))
	}
	s.until(30*time.Second, "committed", func() bool { return s.move(id).Phase == control.PhaseCommitted })
	s.settle()
	if st := s.mustStatus("c"); st.CopySource != "b" {
		s.t.Fatalf("after the commit the secondary copies from %q", st.CopySource)
	}
}

// A node loses its power at a step of a move. The move ends, or goes back and can be done again; what a flush covers is
// there, the secondary is equal in the end, and nobody ever served beside another. GANTLINE_MOMENT=b@seal.after is that one
// alone.
func TestMoveSurvivesPowerLossAtEachStep(t *testing.T) {
	_, rnd := seedOf(t)
	all := moments()
	if only := os.Getenv("GANTLINE_MOMENT"); only != "" {
		all = slices.DeleteFunc(all, func(m moment) bool { return m.String() != only })
	} else if campaign() == 0 {
		rnd.Shuffle(len(all), func(i, j int) { all[i], all[j] = all[j], all[i] })
		all = all[:6]
	}
	for range max(1, campaign()) {
		for _, at := range all {
			down := rand.N(800 * time.Millisecond)
			if rnd.IntN(6) == 0 {
				down += 5500 * time.Millisecond // longer than hosts are held
			}
			t.Run(at.String(), func(t *testing.T) { lossDuring(t, at, down) })
		}
	}
}

// Nodes lose their power at any moment of a move, two of them now and then, one of them again while it recovers.
func TestMoveSurvivesPowerLossAnywhere(t *testing.T) {
	for i := range rounds(2) {
		t.Run(fmt.Sprint(i), lossAnywhere)
	}
}

func lossAnywhere(t *testing.T) {
	seed, rnd := seedOf(t)
	s := newSite(t, seed, rnd)
	s.load.resume()
	s.pause(100*time.Millisecond, 300*time.Millisecond)
	id := s.startMove()
	for range 1 + rnd.IntN(3) {
		s.pause(0, 700*time.Millisecond)
		node := []string{"a", "b", "c"}[rnd.IntN(3)]
		s.say("power of %s goes at %s", node, s.move(id).Phase)
		s.crash(node)
		s.pause(0, 500*time.Millisecond)
		s.restart(node)
	}
	m := s.ended(id)
	s.say("%s: %s", m.Phase, m.Error)
	s.afterMove(moment{"a", "random", ""}, id, m)
	n, errs, first := s.load.counts()
	if errs > 0 {
		t.Errorf("hosts met %d errors: %v", errs, first)
	}
	t.Logf("%d writes, %d lost, %d errors (%v), longest wait %v", n, s.load.h.lost, errs, first, s.load.longest)
}
