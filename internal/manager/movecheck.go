package manager

import (
	"context"

	"gantline/internal/control"
)

// A commit compares source and target before it lets go of the source. The target does it, and tells how far it is when it
// is asked again; what comes out is stored before anybody is deregistered. Differences end the commit: the move stays filled,
// and the source as it is, until they are accepted or another commit finds none.

// listed is how many places are told in a sentence.
const listed = 4

// askCommit has a filled move committed, in its record. With what was found before, accept lets go of the source at once;
// every other new commit compares anew.
func askCommit(v *control.Migration, accept bool) (changed bool) {
	switch {
	case v.Commit:
		changed = accept && !v.Accept
		v.Accept = v.Accept || accept
		return changed
	case accept && v.Check.Failed():
		found := *v.Check
		found.Accepted = true
		v.Check = &found
	case v.Check != nil:
		v.Check = nil
		v.CommitTry++
	}
	v.Commit, v.Accept = true, accept
	return true
}

// endCheck takes over what has come out of the comparison. Differences that nobody has accepted end the commit.
func endCheck(v *control.Migration, found control.MoveCheck) bool {
	if !v.Commit || v.Check != nil || v.Phase != control.PhaseFilled {
		return false
	}
	found.Accepted = v.Accept && found.State == control.CheckDifferent
	v.Check = &found
	v.Commit = v.Check.Passed()
	return true
}

// compared says whether the commit may go on. It returns false while the comparison runs, and when it has ended the commit.
func (m *Manager) compared(ctx context.Context, mg *control.Migration) (bool, error) {
	if mg.Check.Passed() {
		return true, nil
	}
	var found control.MoveCheck
	switch _, exists, err := find[control.Node](ctx, m, control.KindNode, mg.Source); {
	case err != nil:
		return false, err
	case !exists:
		found = control.MoveCheck{State: control.CheckSkipped, Reason: "node " + mg.Source + " was forgotten, and what it has with it"}
	default:
		in := control.MoveCompare{ID: mg.ID, Try: mg.CommitTry}
		err := m.nodes.call(ctx, mg.Target, control.CallMigrateCompare, in, &found, callTimeout)
		if control.KindOf(err) == control.KindNotFound { // it has ended the move, or is of a version that does not compare
			found, err = control.MoveCheck{State: control.CheckSkipped, Reason: err.Error()}, nil
		}
		if err != nil || found.State == control.CheckRunning {
			sleep(ctx, watchSlow)
			return false, err
		}
	}
	found.Try = mg.CommitTry
	if found.Different == nil {
		found.Different = []control.VerifyExtent{}
	}
	m.point(control.PointCompare, "before")
	passed := false
	_, err := m.editMove(ctx, mg.ID, func(c *change, v *control.Migration) bool {
		if !endCheck(v, found) {
			return false
		}
		passed = v.Check.Passed()
		m.tellCheck(c, v)
		return true
	})
	if err == nil {
		m.point(control.PointCompare, "after")
	}
	return passed, err
}

func (m *Manager) tellCheck(c *change, v *control.Migration) {
	object, found := "migration/"+v.ID, v.Check
	switch {
	case found.State == control.CheckSkipped:
		c.event(object, "not-compared", "commit", "%s and %s were not compared: %s", v.Source, v.Target, found.Reason)
	case found.State == control.CheckSame:
		c.event(object, "compared", "commit", "%s and %s agree at the cut, but for %d bytes that hosts have written to since",
			v.Source, v.Target, found.WrittenBytes)
	default:
		c.event(object, "different", "commit", "%s", differs(v.ID, v.Source, v.Target, found))
	}
}

// differs tells what was found and, unless it is accepted, what can be done.
func differs(id, source, target string, c *control.MoveCheck) string {
	return control.Differs(id, source, target, c, listed)
}

// checkOf is what `migrate show` has of the comparison: the stored end of one, else how far the target is.
func checkOf(mg *control.Migration, st *control.MigrationStatus) *control.MoveCheck {
	switch {
	case mg.Check != nil:
		return mg.Check
	case !mg.Commit || st == nil || st.Check == nil || st.Check.Try != mg.CommitTry || mg.Phase != control.PhaseFilled:
		return nil
	}
	now := *st.Check
	now.State, now.Different = control.CheckRunning, []control.VerifyExtent{} // until what came out is stored
	return &now
}

// deregister is a commit's loop.
func (r *moveRunner) deregister(ctx context.Context, mg *control.Migration) error {
	err := r.m.commitGuard(ctx, mg)
	if err == nil {
		var passed bool
		if passed, err = r.m.compared(ctx, mg); err == nil && !passed {
			return nil
		}
	}
	if err == nil {
		err = r.m.deregisterMove(ctx, mg)
	}
	if err == nil || ctx.Err() != nil {
		return nil
	}
	if !isNodeError(err) && !unreachable(err) {
		return err
	}
	if why := err.Error(); why != r.waits {
		r.m.log.Info("commit waits", "migration", r.id, "error", err)
		r.waits = why
	}
	sleep(ctx, retryUndo)
	return nil
}
