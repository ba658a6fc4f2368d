package volume

import "errors"

var (
	// ErrFull: the log has no room for the append and has changed nothing. A Log's adapter wraps it.
	ErrFull = errors.New("log is full")
	// ErrTooLarge: the records are more than the log can ever take at once; it has changed nothing. A Log's adapter
	// wraps it.
	ErrTooLarge = errors.New("records exceed the log's limits")
	// ErrTrimmed: the records asked for have been freed. A Log's adapter wraps it.
	ErrTrimmed = errors.New("records have been trimmed")
	// ErrGap: the records do not continue what has been applied.
	ErrGap = errors.New("records do not follow what has been applied")
	// ErrEpoch: the record or row does not belong to the epoch table.
	ErrEpoch = errors.New("record does not belong to the epoch table")
	// ErrStep: a step's records came before its end was announced (see Group.Intend).
	ErrStep = errors.New("step was not announced before its records")
	// ErrNotDurable: a follower applies only what its own log holds durably.
	ErrNotDurable = errors.New("record is not durable in the follower's log")
	// ErrRole: the group does not play the role that the call needs.
	ErrRole = errors.New("group is not in the role for this")
	// ErrBehind: the group has not applied all that its log holds.
	ErrBehind = errors.New("log holds records that have not been applied")
	// ErrFailed: the group stopped on an error; only reopening it through recovery helps.
	ErrFailed = errors.New("group has failed")
	// ErrSourceAway: a region is absent here and the source of the move cannot be reached.
	ErrSourceAway = errors.New("region is absent and the source of the move is away")
	// ErrSuspended: the subscriber is suspended; what it lacks stands in its changed map.
	ErrSuspended = errors.New("subscriber is suspended")
	// ErrHeldBack: the log is full of what a lost subscriber lacks, and hosts would rather stop than go on without it.
	ErrHeldBack = errors.New("log is full of what the secondary lacks, and --on-link-loss is stop")
	// ErrUnknownVolume: a record names a volume number that is no member.
	ErrUnknownVolume = errors.New("record names a volume that is no member of the group")
	// ErrMeta: the owner's blob in the log is not ours or damaged.
	ErrMeta = errors.New("log's owner blob is not readable")
	// ErrBusy: the volume has a group already, the number or name is taken, or a limit is reached.
	ErrBusy = errors.New("in use or at a limit")
)

var (
	errNoRelay = errors.New("volume is in through mode and has nobody to relay to")
	errClosed  = errors.New("group is closed")
)
