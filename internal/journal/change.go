package journal

import (
	"fmt"

	"gantline/internal/record"
)

// OpenRow begins a row of the epoch table, durably, and closes the one before.
//
// A primary opens its row right behind the last record: row.First is Cursors().Appended+1, in a higher epoch, or in
// the same one with a higher incarnation. From then on Append takes records. What was appended before is made durable
// first, so that no row ever begins beyond the end of what is recovered. Rows it had been told of that would have
// begun later are dropped.
//
// A receiver may be told of a row that begins later (First above Appended+1); that does not open the journal.
// Opening the row that is open already changes nothing.
func (j *Journal) OpenRow(row record.Row) error {
	j.writer.Lock()
	defer j.writer.Unlock()
	j.mu.Lock()
	appended, writable, table := j.appended, j.writable, j.s.table
	j.mu.Unlock()
	if cur, ok := table.Current(); ok && writable && cur.Same(row) && !cur.Closed && !row.Closed {
		return j.Err()
	}
	if row.First <= appended {
		return fmt.Errorf("%w: row begins at %d, the log ends at %d", ErrRow, row.First, appended)
	}
	here := row.First == appended+1
	if here {
		if _, err := j.Sync(); err != nil {
			return err
		}
	}
	return j.update(func(s *super) error {
		next, err := s.table.Forget(s.trimmed, record.MaxRows-1).Extend(row)
		if err != nil {
			return fmt.Errorf("%w: %w", ErrRow, err)
		}
		s.table = next
		return nil
	}, func() { j.writable = j.writable || here })
}

// AdoptTable replaces the epoch table by the sender's, durably. It must name the same rows for all that is stored
// here; where it does not, Cut comes first. Rows may be known ahead of their records.
func (j *Journal) AdoptTable(table record.Table) error {
	if err := table.Validate(); err != nil {
		return fmt.Errorf("%w: %w", ErrRow, err)
	}
	j.writer.Lock()
	defer j.writer.Unlock()
	return j.update(func(s *super) error {
		appended := j.Cursors().Appended
		if len(s.table) > 0 && appended > 0 && s.table.Agree(table) < appended {
			return fmt.Errorf("%w: the tables agree up to %d, stored is %d", ErrRow, s.table.Agree(table), appended)
		}
		for seq := s.trimmed + 1; seq <= appended; {
			a, okA := s.table.At(seq)
			b, okB := table.At(seq)
			if !okA || !okB || !a.Same(b) {
				return fmt.Errorf("%w: the tables differ at stored sequence %d", ErrRow, seq)
			}
			seq = appended + 1
			for _, r := range [2]record.Row{a, b} {
				if r.Closed {
					seq = min(seq, r.Last+1)
				}
			}
		}
		s.table = table.Clone()
		return nil
	}, nil)
}

// Resume lets a receiver go on appending behind what was recovered, in the rows of its table. A primary must not use
// it: its next record needs a new incarnation. Leftovers beyond the recovered end are no danger, although they may
// carry the same epoch, incarnation and numbers as what comes now: they are of an earlier run (see the package).
func (j *Journal) Resume() error {
	j.writer.Lock()
	defer j.writer.Unlock()
	j.mu.Lock()
	defer j.mu.Unlock()
	if err := j.usable(); err != nil {
		return err
	}
	j.writable = true
	return nil
}

// Trim frees all records up to upTo, which must be durable. That it did is durable in both superblocks before their
// space is used again. It costs two syncs: call it rarely.
func (j *Journal) Trim(upTo record.Seq) error { return j.trim(upTo, nil, false) }

// TrimWithMeta is Trim and SetMeta in one durable step. upTo may be what is trimmed already.
func (j *Journal) TrimWithMeta(upTo record.Seq, meta []byte) error { return j.trim(upTo, meta, true) }

func (j *Journal) trim(upTo record.Seq, meta []byte, setMeta bool) error {
	if len(meta) > MaxMeta {
		return fmt.Errorf("%w: %d bytes, at most %d are allowed", ErrMeta, len(meta), MaxMeta)
	}
	if !setMeta && upTo <= j.Cursors().Trimmed {
		return j.Err()
	}
	return j.update(func(s *super) error {
		if setMeta {
			s.meta = append([]byte(nil), meta...)
		}
		if upTo <= s.trimmed {
			return nil
		}
		if upTo > s.durable {
			return fmt.Errorf("%w: cannot trim to %d, durable is %d", ErrSequence, upTo, s.durable)
		}
		last, pos := s.lastAt(upTo), s.trimmedPos
		if last > s.trimmed {
			var err error
			if pos, err = j.endOf(s, last); err != nil {
				return err
			}
		}
		s.trimTo(upTo, pos)
		s.table = s.table.Forget(upTo, record.MaxRows/2)
		return nil
	}, nil)
}

// SetMeta stores the owner's blob, durably and twice.
func (j *Journal) SetMeta(meta []byte) error {
	if len(meta) > MaxMeta {
		return fmt.Errorf("%w: %d bytes, at most %d are allowed", ErrMeta, len(meta), MaxMeta)
	}
	return j.update(func(s *super) error {
		s.meta = append([]byte(nil), meta...)
		return nil
	}, nil)
}

// Cut drops all records above upTo, durably, with the rows that begin there. A receiver does so when its sender's
// table differs. A row left that is closed beyond upTo stays so until another table is adopted or a row opened.
func (j *Journal) Cut(upTo record.Seq) error {
	j.writer.Lock()
	defer j.writer.Unlock()
	c := j.Cursors()
	if upTo >= c.Appended {
		return j.Err()
	}
	// What is kept becomes the new run's past, and that is durable by definition.
	if _, err := j.Sync(); err != nil {
		return err
	}
	var head uint64
	last := upTo
	return j.update(func(s *super) error {
		if upTo < s.trimmed {
			return fmt.Errorf("%w: cannot cut back to %d, trimmed is %d", ErrTrimmed, upTo, s.trimmed)
		}
		last = max(s.lastAt(upTo), s.trimmed)
		head = s.trimmedPos
		if last > s.trimmed {
			var err error
			if head, err = j.endOf(s, last); err != nil {
				return err
			}
		}
		s.run++
		s.runFirst, s.durable = last+1, last
		s.table = s.table.Truncate(last)
		s.dropGaps(last)
		return nil
	}, func() { j.restart(last, head) })
}

// Reset forgets all records and the table, durably: the next record is base+1, in the rows of table, and Append takes
// it. meta replaces the owner's blob in the same durable step; nil keeps the one that is there.
func (j *Journal) Reset(base record.Seq, table record.Table, meta []byte) error {
	if len(meta) > MaxMeta {
		return fmt.Errorf("%w: %d bytes, at most %d are allowed", ErrMeta, len(meta), MaxMeta)
	}
	if err := table.Validate(); err != nil {
		return fmt.Errorf("%w: %w", ErrRow, err)
	}
	if base >= record.MaxSeq {
		return fmt.Errorf("%w: base %d", ErrSequence, base)
	}
	j.writer.Lock()
	defer j.writer.Unlock()
	j.mu.Lock()
	head := j.head
	j.mu.Unlock()
	return j.update(func(s *super) error {
		s.run++
		s.runFirst, s.durable = base+1, base
		s.trimmed, s.trimmedPos, s.shift, s.gaps = base, head, 0, nil
		s.table = table.Clone()
		if meta != nil {
			s.meta = append([]byte(nil), meta...)
		}
		return nil
	}, func() {
		j.restart(base, head)
		j.writable = true
	})
}

// restart puts the cursors where a cut or reset left the log. It is called with mu held.
func (j *Journal) restart(last record.Seq, head uint64) {
	j.appended, j.durable, j.head = last, last, head
	j.lives++
	j.wake.Broadcast()
}

// lastAt is the last record at or below seq: seq, unless it lies in a gap.
func (s *super) lastAt(seq record.Seq) record.Seq {
	for _, g := range s.gaps {
		if seq > g.after && seq < g.begin {
			return g.after
		}
	}
	return seq
}
