package control

import (
	"slices"
	"time"
)

// phaseOrder is the way forward. copying and transitional are passed over where they do not apply.
var phaseOrder = []string{
	"", PhaseRegistered, PhaseCopying, PhaseThrough, PhaseSwitched, PhasePending, PhaseTransitional, PhaseMigrating,
	PhaseFilled, PhaseCommitted,
}

// Ended says that a phase is the last one.
func Ended(phase string) bool {
	return phase == PhaseCommitted || phase == PhaseFailed || phase == PhaseAborted
}

// MayFollow says whether a move may go from one phase to another.
//
//	"" → registered → [copying →] through → switched → pending → [transitional →] migrating → filled → committed
//	any before filled → failed, aborted
//
// Phases may be jumped over, because a reader that was away sees only the latest; they never go back. failed from
// migrating on is the durable refusal of a target, which only a target that lost its present map or the source gives.
func MayFollow(from, to string) bool {
	if from == to {
		return true
	}
	if Ended(from) {
		return false
	}
	if to == PhaseFailed || to == PhaseAborted {
		return from != PhaseFilled
	}
	i, j := slices.Index(phaseOrder, from), slices.Index(phaseOrder, to)
	return i >= 0 && j > i
}

// After says that phase is at or beyond other on the way forward.
func After(phase, other string) bool {
	return slices.Index(phaseOrder, phase) >= slices.Index(phaseOrder, other)
}

// Active says that a move still has its group in hand: it is neither over nor waiting for its commit.
func (m *Migration) Active() bool { return !Ended(m.Phase) && m.Phase != PhaseFilled }

// Returning says that a move was aborted by command and that its source may not serve again yet.
func (m *Migration) Returning() bool { return m.Abort != "" && !Ended(m.Phase) }

// Stopped says that a move waits for `migrate continue`.
func (m *Migration) Stopped() bool {
	return m.StopAt != "" && m.Phase == m.StopAt && m.Abort == "" && !m.RunAsked
}

// Advance sets a later phase; an earlier one changes nothing, nor does any but aborted once it was aborted. It says whether it
// changed.
func (m *Migration) Advance(phase string) bool {
	if m.Phase == phase || !MayFollow(m.Phase, phase) || m.Abort != "" && phase != PhaseAborted {
		return false
	}
	m.Phase = phase
	return true
}

// stepOrder is the order in which steps are shown.
var stepOrder = []string{
	StepRegister, StepCopy, StepThrough, StepSwitch, StepPend, StepSeal, StepDecide, StepSource, StepRun, StepDrained,
	StepSingle, StepFill, StepDeregister,
}

// Note adds steps that are not known yet and says whether there were any. The first time told stays.
func (m *Migration) Note(steps ...Step) bool {
	changed := false
	for _, s := range steps {
		known := slices.ContainsFunc(m.Steps, func(o Step) bool { return o.Step == s.Step })
		if known || !slices.Contains(stepOrder, s.Step) {
			continue
		}
		s.At = s.At.UTC()
		m.Steps = append(m.Steps, s)
		changed = true
	}
	if changed {
		slices.SortStableFunc(m.Steps, func(a, b Step) int {
			return slices.Index(stepOrder, a.Step) - slices.Index(stepOrder, b.Step)
		})
	}
	return changed
}

// Done says whether a step has been noted.
func (m *Migration) Done(step string) bool {
	return slices.ContainsFunc(m.Steps, func(o Step) bool { return o.Step == step })
}

// StepAt makes a Step.
func StepAt(step string, at time.Time) Step { return Step{Step: step, At: at.UTC()} }
