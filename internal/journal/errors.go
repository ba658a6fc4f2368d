package journal

import (
	"errors"
	"fmt"

	"gantline/internal/record"
)

var (
	// ErrTooSmall: the devices together cannot hold the smallest journal.
	ErrTooSmall = errors.New("devices are too small for a journal")
	// ErrForeign: a device is not part of a journal, or not of this one, or one is missing. Nothing was written to it.
	ErrForeign = errors.New("not a device of this journal")
	// ErrTruncated: a device is shorter than when the journal was made.
	ErrTruncated = errors.New("journal device is truncated")
	// ErrVersion: the journal was written in a format this program does not know.
	ErrVersion = errors.New("journal format version is not supported")
	// ErrSuperblock: both copies of a management record are damaged. Nothing can be believed without it.
	ErrSuperblock = errors.New("both copies of the journal's management record are damaged")
	// ErrRot: a record that was durable cannot be read back. See RotError for which.
	ErrRot = errors.New("journal record is damaged")
	// ErrBroken: a write or sync failed. The journal takes and confirms nothing more until it is opened anew.
	ErrBroken = errors.New("journal has failed and must be reopened")
	// ErrClosed: the journal was closed.
	ErrClosed = errors.New("journal is closed")
	// ErrFull: no room for these records until some are trimmed. Nothing was changed.
	ErrFull = errors.New("journal is full")
	// ErrTooLarge: these records would not fit an empty journal, or exceed a limit.
	ErrTooLarge = errors.New("records exceed the journal's limits")
	// ErrSequence: the numbers do not continue those in the journal, or its present bounds.
	ErrSequence = errors.New("sequence number is out of order")
	// ErrRow: a record does not lie in its row of the epoch table, or a row does not follow the table.
	ErrRow = errors.New("record or row does not fit the epoch table")
	// ErrRecord: a record contradicts itself.
	ErrRecord = errors.New("record is not valid")
	// ErrNotOpened: the journal was recovered, but neither OpenRow (to number) nor Resume (to receive) was called since.
	ErrNotOpened = errors.New("journal has no row open for appending")
	// ErrTrimmed: the record has been freed.
	ErrTrimmed = errors.New("record was trimmed from the journal")
	// ErrNotStored: the record has not been appended yet.
	ErrNotStored = errors.New("record is not stored yet")
	// ErrCut: the journal was cut or reset while the caller waited for its records to become durable.
	ErrCut = errors.New("journal was cut back meanwhile")
	// ErrMeta: the owner's blob is too long.
	ErrMeta = errors.New("journal owner's data is too long")
)

// RotError names the damaged record. errors.Is(err, ErrRot) holds.
type RotError struct {
	Seq  record.Seq
	Mark record.Seq // all up to here was durable once
	Why  string
}

func (e *RotError) Error() string {
	return fmt.Sprintf("%v: sequence %d, durable up to %d: %s", ErrRot, e.Seq, e.Mark, e.Why)
}

// Is makes errors.Is(err, ErrRot) true.
func (e *RotError) Is(target error) bool { return target == ErrRot }
