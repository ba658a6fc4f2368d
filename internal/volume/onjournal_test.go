package volume

import (
	"errors"
	"fmt"

	"gantline/internal/journal"
	"gantline/internal/record"
)

// onJournal is a journal as a Log.
type onJournal struct{ *journal.Journal }

func (j onJournal) Append(recs []record.Record) error { return logError(j.Journal.Append(recs)) }
func (j onJournal) AppendAfterGap(recs []record.Record) error {
	return logError(j.Journal.AppendAfterGap(recs))
}

func (j onJournal) Read(from record.Seq, maxRecords, maxBytes int) ([]record.Record, error) {
	recs, err := j.Journal.Read(from, maxRecords, maxBytes)
	return recs, logError(err)
}

func (j onJournal) Cursors() Cursors {
	c := j.Journal.Cursors()
	return Cursors{Trimmed: c.Trimmed, Durable: c.Durable, Appended: c.Appended}
}

func logError(err error) error {
	for _, e := range [...][2]error{
		{journal.ErrFull, ErrFull}, {journal.ErrTooLarge, ErrTooLarge}, {journal.ErrTrimmed, ErrTrimmed},
	} {
		if errors.Is(err, e[0]) {
			return fmt.Errorf("%w: %w", e[1], err)
		}
	}
	return err
}

var _ Log = onJournal{}
