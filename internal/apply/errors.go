package apply

import "errors"

var (
	// ErrGap: a record does not follow the one stored before it, and is no begin.
	ErrGap = errors.New("record does not follow the last one stored")
	// ErrApplied: a cut would take back what has been applied.
	ErrApplied = errors.New("already applied")
	// ErrTooManySteps: more steps wait in the log than this side keeps track of.
	ErrTooManySteps = errors.New("too many steps wait to be applied")
	// ErrRange: the caller reports progress that was not asked for.
	ErrRange = errors.New("range was not issued")
	// ErrLog: the log gave back other records than those that were asked for.
	ErrLog = errors.New("log returned unexpected records")
	// ErrStopped: the loop has ended and applies nothing more.
	ErrStopped = errors.New("applying has ended")
)
