package migrate

import (
	"time"

	"gantline/internal/control"
)

// Stage is how far a node has durably come in a move. A stage is on disk before anything acts on it, but for adopted, which
// stands for what is in the log: see Target.seal.
type Stage string

// Stages of the target, in order; what may follow stands beside each.
const (
	Registered   Stage = "registered"   // through, deregistered (cancelled)
	Through      Stage = "through"      // ordered, deregistered (cancelled)
	Ordered      Stage = "ordered"      // told to take over: adopted, refused
	Adopted      Stage = "adopted"      // the hand-over is in the log here, durably: opened, refused
	Opened       Stage = "opened"       // serves in e+1: drained
	Refused      Stage = "refused"      // will never serve in e+1: returned
	Returned     Stage = "returned"     // the source has confirmed that it goes on: deregistered
	Drained      Stage = "drained"      // the secondary has everything up to the cut: single
	Single       Stage = "single"       // the secondary copies from the target alone: filled
	Filled       Stage = "filled"       // every region is here, durably: deregistered
	Deregistered Stage = "deregistered" // end
)

// Stages of the source: registered, then sealed is known from its log's fence, reopened or deregistered from here.
const (
	Reopened Stage = "reopened" // goes on as primary in e+2; never seals for this move again
)

var legal = map[Stage][]Stage{
	Registered: {Through, Reopened, Deregistered, Single},
	Through:    {Ordered, Deregistered},
	Ordered:    {Adopted, Refused},
	Adopted:    {Opened, Refused},
	Opened:     {Drained},
	Refused:    {Returned},
	Returned:   {Deregistered},
	Drained:    {Single},
	Single:     {Filled, Deregistered},
	Filled:     {Deregistered},
	Reopened:   {Deregistered},
}

// Legal says whether a record may go from one stage to another. Staying is legal: steps are repeated after a crash.
func Legal(from, to Stage) bool {
	if from == to {
		return true
	}
	for _, s := range legal[from] {
		if s == to {
			return true
		}
	}
	return false
}

// Record is what a node keeps on disk of a move it takes part in.
type Record struct {
	Spec     control.MigrationSpec `json:"spec"`
	Role     string                `json:"role"` // control.RoleSource, RoleTarget, RoleSecondary
	Stage    Stage                 `json:"stage"`
	Handover *control.Handover     `json:"handover,omitempty"` // target, from adopted on
	Steps    []control.Step        `json:"steps"`
	PauseMS  *float64              `json:"pause_ms"`
	Error    string                `json:"error"`
	// Returned, at the target: the move was refused and the source has confirmed that it goes on in e+2.
	Returned bool `json:"returned"`
	// Aborted, at the target: the refusal was by command.
	Aborted bool `json:"aborted,omitempty"`
	// Abandoned, at source and target: the secondary is gone for good. Nobody waits for what it lacks.
	Abandoned bool `json:"abandoned,omitempty"`
	// SourceLost, at the target: the source is gone for good, and nobody else has what is absent here: it reads as zeros.
	SourceLost bool `json:"source_lost,omitempty"`
	// Carried, at the target: what the secondary lacked of the source's log is here, durably. At the source: the target has said
	// so, and nothing is sent from here any more.
	Carried bool `json:"carried,omitempty"`
	// CarriedBytes is, at the target, how much that was.
	CarriedBytes int64 `json:"carried_bytes,omitempty"`
	// Copying, at the target: the copy of a copy-first move has been begun.
	Copying bool `json:"copying,omitempty"`
	// WANBytes is, at the target, what the source had put on the link to the secondary when it was drained.
	WANBytes int64 `json:"wan_bytes"`
	// WANBytesStart is this node's counter at registration.
	WANBytesStart int64 `json:"wan_bytes_start"`
	// Fetched bytes, so that status survives a restart; approximate after a kill.
	Background int64 `json:"background"`
	OnDemand   int64 `json:"on_demand"`
	Twice      int64 `json:"twice"`
}

// Cut is N, the last sequence of the source's epoch; 0 until it is known.
func (r *Record) Cut() uint64 {
	if r.Handover == nil {
		return 0
	}
	return r.Handover.Cut
}

// TargetEpoch is e+1, SourceEpoch e+2.
func (r *Record) TargetEpoch() uint64 { return r.Spec.Group.Epoch + 1 }
func (r *Record) SourceEpoch() uint64 { return r.Spec.Group.Epoch + 2 }

// Did says whether the step has been noted.
func (r *Record) Did(step string) bool {
	for _, s := range r.Steps {
		if s.Step == step {
			return true
		}
	}
	return false
}

// Note adds the step once.
func (r *Record) Note(step string, at time.Time) {
	if !r.Did(step) {
		r.Steps = append(r.Steps, control.Step{Step: step, At: at.UTC()})
	}
}

// Phase is the last thing the target has completed, in INTERFACE's words.
func (r *Record) Phase() string {
	switch {
	case r.Aborted && r.Returned:
		return control.PhaseAborted
	case r.Stage == Refused || r.Stage == Returned || r.Returned:
		return control.PhaseFailed
	case r.Did(control.StepDeregister):
		return control.PhaseCommitted
	case r.Did(control.StepFill):
		return control.PhaseFilled
	case r.Did(control.StepRun):
		return control.PhaseMigrating
	case r.Did(control.StepSource):
		return control.PhaseTransitional
	case r.Did(control.StepPend):
		return control.PhasePending
	case r.Did(control.StepThrough):
		return control.PhaseThrough
	}
	return control.PhaseRegistered
}
