package migrate

import (
	"time"

	"gantline/internal/control"
)

// Facts are what the target knows beside its record; none of them survives its process.
type Facts struct {
	Pending bool          // requests are held and those relayed before are answered
	Held    time.Duration // since the hold began
	Decided string        // the store's word: control.Decided…
	Running bool          // serving in e+1, held requests released
}

// HoldLimit is how long hosts' requests are held at most before the move goes back (DESIGN §7: hard limit of the pause).
const HoldLimit = 5 * time.Second

// Action is the next thing for the loop to do.
type Action string

const (
	Wait       Action = "wait"        // nothing until told otherwise
	Pend       Action = "pend"        // S802
	Seal       Action = "seal"        // S803–806: ask the source, adopt what it hands over
	Decide     Action = "decide"      // ask the store
	Open       Action = "open"        // record that we serve in e+1; S807: the secondary's source is transitional
	Run        Action = "run"         // S810–811
	AskDrained Action = "ask-drained" // S814
	AskSingle  Action = "ask-single"  // S818
	AskFilled  Action = "ask-filled"  // S820
	Refuse     Action = "refuse"      // record that we never serve in e+1
	Return     Action = "return"      // have the source go on, relay to it again
	Stop       Action = "stop"        // nothing left to do
)

// Next says what follows, from what is on disk and what is known. It is the whole policy of the target.
func Next(r *Record, f Facts) Action {
	switch r.Stage {
	case Registered, Through:
		return Wait
	case Ordered:
		switch {
		case f.Held > HoldLimit:
			return Refuse
		case !f.Pending:
			return Pend
		}
		return Seal
	case Adopted:
		switch {
		case f.Decided == control.DecidedSource, f.Decided == "" && f.Held > HoldLimit:
			return Refuse
		case !f.Pending: // restarted since
			return Pend
		case f.Decided == control.DecidedTarget:
			return Open
		}
		return Decide
	case Refused:
		return Return
	}
	return nextServing(r, f)
}

// nextServing is Next once e+1 is opened: only forward.
func nextServing(r *Record, f Facts) Action {
	switch r.Stage {
	case Opened, Drained, Single:
		if !f.Running {
			return Run
		}
	}
	switch r.Stage {
	case Opened:
		return AskDrained
	case Drained:
		return AskSingle
	case Single:
		return AskFilled
	}
	return Stop
}
