package queue

import "errors"

var (
	// ErrFull: the records do not fit now; nothing has changed. Forget or Trim makes room.
	ErrFull = errors.New("queue is full")
	// ErrTooLarge: the records do not fit together even into an empty queue; one alone always does.
	ErrTooLarge = errors.New("too large for the queue")
	// ErrTrimmed: the records have been freed, or are of an earlier run.
	ErrTrimmed = errors.New("record has been freed")
	// ErrNotStored: the records have not been appended.
	ErrNotStored = errors.New("record is not stored")
	// ErrSequence: records, or a row, do not follow what is there.
	ErrSequence = errors.New("out of sequence")
	// ErrVolume: a record's volume has no intent map.
	ErrVolume = errors.New("volume is not known to the queue")
	// ErrUnsupported: what only a log on disk can do.
	ErrUnsupported = errors.New("a log in memory cannot do that")
	// ErrDamaged: both copies of the state are bad: which numbers have been used is not known.
	ErrDamaged = errors.New("queue state is damaged")
	// ErrMeta: the owner's blob is larger than the state keeps.
	ErrMeta = errors.New("owner's data is too large")
	// ErrBroken: a write or flush has failed, of the devices, of a map or of the state. The queue is not used any more.
	ErrBroken = errors.New("queue is broken")
	// ErrClosed: it is closed.
	ErrClosed = errors.New("queue is closed")
)
