package manager

import (
	"slices"
	"strings"
	"time"

	"gantline/internal/control"
)

// The manager's part of a move. Everything that decides is here and pure; moveloop.go carries it out.
//
//	           make, register      through        switch     confirm        run               (target drives)
//	record ─────────────────▶ registered ──▶ through ──▶ vvols moved ──▶ switched ──▶ run asked ─▶ pending … filled
//	   │                          │             │             │              │            │            │ commit
//	   └──────────── back ────────┴─────────────┴─────────────┴──────────────┘         oppose,         ▼
//	                  │                                                                correct    committed
//	                  ▼                                                                   │
//	               failed ◀──────────────────────────────────────────────────────────────-┘ then undo
//
// Order and why. The record is stored before anything is made: a manager that dies later finds what it was at. Made
// volumes are listed in it first, so that a repeat knows them for its own. migrate.register goes to the secondary first,
// which must know e+1 and e+2 before anybody can open them, then to the source, which must know before it is asked to
// seal, then to the target. RunAsked is stored before migrate.run is sent: from there on only the target's durable
// refusal or the opposite swap ends the move, because the target may already hold the hand-over. Going back rewrites the
// virtual volumes and ends the phase in one transaction; the calls that tidy up are listed in it (Undo) and made until
// they are acknowledged.
//
// An abort by command is the same swap, made at any step before the decision (moveabort.go). It has the phase aborted only when
// the source serves again.

// moveFacts is what the loop knows beside the record; nothing of it survives the process.
type moveFacts struct {
	Target   *control.MigrationStatus // the target's latest word; nil: none since the loop began
	RunAcked bool                     // migrate.run was answered in this run of the loop
	Refusal  string                   // the present step was answered with no
	Failing  time.Duration            // since when the present step's calls find nobody
	Silent   time.Duration            // since when the target does not answer
	Away     []string                 // who was not there when it was last to be told of the move's end
}

// givesUp is how long calls are tried before a move goes back.
const givesUp = 60 * time.Second

type moveAction string

const (
	moveRegister   moveAction = "register"   // S601–604: make what is to be made, tell the three nodes
	moveCopying    moveAction = "copy"       // copy-first: wait until the target is filled
	moveThrough    moveAction = "through"    // S701
	movePath       moveAction = "path"       // S702–704, one by one: one more gateway
	moveSwitch     moveAction = "switch"     // S702–704: rewrite the virtual volumes, for all gateways
	moveConfirm    moveAction = "confirm"    // wait for the gateways
	moveRun        moveAction = "run"        // S705
	moveWatch      moveAction = "watch"      // S706: look at the target
	moveBack       moveAction = "back"       // before run: nothing has been sealed
	moveOppose     moveAction = "oppose"     // the opposite swap: source, e+2
	moveCorrect    moveAction = "correct"    // the target has durably refused: so has the store
	moveUndo       moveAction = "undo"       // tell the nodes that it is over
	moveAborted    moveAction = "aborted"    // of an abort nothing is left that anybody waits for
	moveDeregister moveAction = "deregister" // S1601–1602
	moveStop       moveAction = "stop"       // nothing left to do
)

// moveNext is the whole policy of the manager.
func moveNext(r *control.Migration, f moveFacts) moveAction {
	switch {
	case r.Phase == control.PhaseFailed || r.Phase == control.PhaseAborted:
		if len(r.Undo) > 0 {
			return moveUndo
		}
		return moveStop
	case r.Returning():
		return moveNextBack(r, f)
	case r.Phase == control.PhaseCommitted:
		return moveStop
	case r.Phase == control.PhaseFilled:
		if r.Commit {
			return moveDeregister
		}
		return moveStop
	case r.Stopped():
		return moveStop
	case r.RunAsked:
		return moveNextRun(r, f)
	case f.Refusal != "" || f.Failing > givesUp:
		return moveBack
	}
	switch r.Phase {
	case "":
		return moveRegister
	case control.PhaseRegistered, control.PhaseCopying:
		if r.Strategy == control.StrategyCopyFirst && !slices.ContainsFunc(r.Steps, isCopied) {
			return moveCopying
		}
		return moveThrough
	case control.PhaseThrough:
		switch {
		case r.VvolsMoved:
			return moveConfirm
		case r.Paths == control.PathsOneByOne && (r.Gateways == nil || r.NextPath() != nil):
			return movePath
		}
		return moveSwitch
	}
	return moveRun
}

func isCopied(s control.Step) bool { return s.Step == control.StepCopy }

// moveNextRun is moveNext once the target may have taken over.
func moveNextRun(r *control.Migration, f moveFacts) moveAction {
	switch {
	case f.Target != nil && f.Target.Refused:
		return moveCorrect
	case r.Decided == control.DecidedNone && (f.Refusal != "" || f.Silent > givesUp):
		return moveOppose
	case f.Target == nil:
		return moveWatch
	case !f.RunAcked && f.Refusal == "" && !control.After(f.Target.Phase, control.PhasePending):
		return moveRun
	}
	return moveWatch
}

// moveNextBack is moveNext of an abort. It has ended when the source serves and everybody else knows who can be reached: a
// target that is gone for good is not waited for.
func moveNextBack(r *control.Migration, f moveFacts) moveAction {
	for _, entry := range r.Undo {
		if u := parseUndo(entry); u.node == r.Source || !slices.Contains(f.Away, u.node) {
			return moveUndo
		}
	}
	return moveAborted
}

// mergeStatus takes over what the target tells, and says whether it is worth storing: a new phase or step.
func mergeStatus(r *control.Migration, st *control.MigrationStatus) bool {
	changed := false
	switch st.Phase {
	case control.PhasePending, control.PhaseTransitional, control.PhaseMigrating, control.PhaseFilled:
		changed = r.Advance(st.Phase)
	}
	for _, s := range st.Steps {
		if s.Step != control.StepDeregister && r.Note(s) {
			changed = true
		}
	}
	s := &r.Seen
	if st.Cut != nil {
		s.Cut = ptr(*st.Cut)
	}
	if st.Epoch != nil {
		s.Epoch = ptr(*st.Epoch)
	}
	if st.PauseMS != nil {
		s.PauseMS = ptr(*st.PauseMS)
	}
	s.Total, s.Present = ptr(st.Total), ptr(st.Present)
	s.Background, s.OnDemand, s.Twice = ptr(st.Background), ptr(st.OnDemand), ptr(st.TwiceBytes)
	if c := st.Carry; c != nil {
		s.Carried, s.CarryTotal = ptr(c.Done), ptr(c.Total)
	}
	return changed
}

// undo is one thing to be done after a move has gone back.
type undo struct{ method, node, name string }

// undoGateways waits for the gateways to lead to the source; in the place of the node stands gatewaysName, which no node has.
const (
	undoGateways = "gateways"
	gatewaysName = "-"
)

func undoEntry(method, node string) string { return method + " " + node }

// parseUndo reads "METHOD NODE" or "METHOD NODE NAME".
func parseUndo(entry string) undo {
	f := append(strings.Fields(entry), "", "", "")
	return undo{f[0], f[1], f[2]}
}

// undoParts has everybody forget the move. The source of a volume in no group then ends the group that was made for it.
func undoParts(r *control.Migration, secondary string) (list []string) {
	for _, node := range []string{r.Target, r.Source, secondary} {
		if node != "" {
			list = append(list, undoEntry(control.CallMigrateCancel, node))
		}
	}
	if r.Lone != "" {
		list = append(list, undoEntry(control.CallGroupDelete, r.Source)+" "+r.Group)
	}
	return list
}

// failMove ends a record on the source's side. reopen: the source may have been sealed.
func failMove(r *control.Migration, secondary, why string, reopen bool) {
	r.Undo = nil
	if reopen {
		r.Undo = append(r.Undo, undoEntry(control.CallMigrateReopen, r.Source))
	}
	r.Undo = append(r.Undo, undoParts(r, secondary)...)
	r.Phase, r.Error, r.Decided, r.VvolsMoved = control.PhaseFailed, why, control.DecidedSource, false
}

// abortMove turns a record back by command. What the move has made at the target goes when the target has let go of it. The
// source comes first, and depends on nobody.
func abortMove(r *control.Migration, secondary, why string) {
	r.Undo = nil
	if r.RunAsked {
		r.Undo = append(r.Undo, undoEntry(control.CallMigrateReopen, r.Source), undoEntry(control.CallMigrateAbort, r.Target))
	}
	r.Undo = append(r.Undo, undoEntry(undoGateways, gatewaysName))
	r.Undo = append(r.Undo, undoParts(r, secondary)...)
	for _, full := range r.MadeVolumes {
		r.Undo = append(r.Undo, undoEntry(control.CallVolumeDelete, r.Target)+" "+control.BaseOf(full))
	}
	if r.MadeJournal != "" {
		r.Undo = append(r.Undo, undoEntry(control.CallJournalDelete, r.Target)+" "+control.BaseOf(r.MadeJournal))
	}
	r.Abort, r.Error, r.Decided, r.VvolsMoved = why, why, control.DecidedSource, false
}

// ownGroup gives the group to one side of a move: its node, volumes and journal.
func ownGroup(g *control.Group, r *control.Migration, target bool, epoch uint64) {
	g.Primary, g.PrimaryJournal, g.Epoch = r.Source, r.SourceJournal, epoch
	if target {
		g.Primary, g.PrimaryJournal = r.Target, r.TargetJournal
	}
	g.Pairs = slices.Clone(g.Pairs)
	for i := range g.Pairs {
		for _, mv := range r.Volumes {
			if mv.Number != g.Pairs[i].Number {
				continue
			}
			g.Pairs[i].Primary = mv.Source
			if target {
				g.Pairs[i].Primary = mv.Target
			}
		}
	}
	g.Revision++
}
