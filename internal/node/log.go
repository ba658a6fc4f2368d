package node

import (
	"errors"
	"fmt"

	"gantline/internal/journal"
	"gantline/internal/receiver"
	"gantline/internal/record"
	"gantline/internal/volume"
)

// groupLog is a journal as a group's volumes and its appliers know it.
type groupLog struct{ *journal.Journal }

func (l groupLog) Cursors() volume.Cursors {
	c := l.Journal.Cursors()
	return volume.Cursors{Trimmed: c.Trimmed, Durable: c.Durable, Appended: c.Appended}
}

func (l groupLog) Append(recs []record.Record) error { return logError(l.Journal.Append(recs)) }

func (l groupLog) AppendAfterGap(recs []record.Record) error {
	return logError(l.Journal.AppendAfterGap(recs))
}

func (l groupLog) Read(from record.Seq, maxRecords, maxBytes int) ([]record.Record, error) {
	recs, err := l.Journal.Read(from, maxRecords, maxBytes)
	return recs, logError(err)
}

func (l groupLog) Entries(from record.Seq, maxRecords int) ([]record.Record, error) {
	recs, err := l.Journal.Entries(from, maxRecords)
	return recs, logError(err)
}

func logError(err error) error {
	switch {
	case errors.Is(err, journal.ErrFull):
		return fmt.Errorf("%w: %w", volume.ErrFull, err)
	case errors.Is(err, journal.ErrTooLarge):
		return fmt.Errorf("%w: %w", volume.ErrTooLarge, err)
	case errors.Is(err, journal.ErrTrimmed):
		return fmt.Errorf("%w: %w", volume.ErrTrimmed, err)
	}
	return err
}

// storeLog is the same journal as a receiver knows it. One that is full asks the group for a checkpoint: the receiver tries
// again in a moment, and no journal stays full of what has been applied. That may be so with hardly a byte in it: of the
// gaps in front of steps it keeps a few dozen only.
type storeLog struct {
	*journal.Journal
	group *volume.Group
}

func (l storeLog) Cursors() (durable, stored record.Seq) {
	c := l.Journal.Cursors()
	return c.Durable, c.Appended
}

func (l storeLog) Append(recs []record.Record) error { return l.stored(l.Journal.Append(recs)) }

func (l storeLog) AppendAfterGap(recs []record.Record) error {
	return l.stored(l.Journal.AppendAfterGap(recs))
}

func (l storeLog) Sync() (record.Seq, error) {
	durable, err := l.Journal.Sync()
	if errors.Is(err, journal.ErrCut) {
		err = fmt.Errorf("%w: %w", receiver.ErrCut, err)
	}
	return durable, err
}

// stored: a batch too large for the journal is tried in smaller parts, like one for which there is no room now.
func (l storeLog) stored(err error) error {
	if errors.Is(err, journal.ErrFull) {
		l.group.MakeRoom()
	}
	if errors.Is(err, journal.ErrFull) || errors.Is(err, journal.ErrTooLarge) {
		return fmt.Errorf("%w: %w", receiver.ErrFull, err)
	}
	return err
}
