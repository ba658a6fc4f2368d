package journal

import (
	"fmt"
	"math"

	"gantline/internal/record"
)

const maxReadRecords = 4096

// Read returns records from sequence from on: at least one, at most maxRecords, and no more than maxBytes of data
// unless the first alone has more. It may return fewer than there are. It stops in front of a gap, and beginning in one
// it begins behind it. Checksums are verified. The records share one buffer that is the caller's from then on.
//
// ErrTrimmed if from has been freed, ErrNotStored if it has not been appended; ErrRot if a record is damaged.
func (j *Journal) Read(from record.Seq, maxRecords, maxBytes int) ([]record.Record, error) {
	return j.read(from, maxRecords, maxBytes, true)
}

// Entries is Read without the records' data: what they touch, for a small part of the reading. Their data is not verified.
func (j *Journal) Entries(from record.Seq, maxRecords int) ([]record.Record, error) {
	return j.read(from, maxRecords, math.MaxInt, false)
}

func (j *Journal) read(from record.Seq, maxRecords, maxBytes int, data bool) ([]record.Record, error) {
	j.mu.Lock()
	s, appended, lives, closed := j.s, j.appended, j.lives, j.closed
	j.mu.Unlock()
	switch {
	case closed:
		return nil, ErrClosed
	case from <= s.trimmed:
		return nil, fmt.Errorf("%w: %d, trimmed is %d", ErrTrimmed, from, s.trimmed)
	case from > appended:
		return nil, fmt.Errorf("%w: %d, stored is %d", ErrNotStored, from, appended)
	}
	from = s.following(from - 1)
	recs, err := j.readRun(s, from, appended, max(1, maxRecords), maxBytes, data)
	// What was freed or cut while it was read may have been overwritten: that is no damage, and not to be returned.
	j.mu.Lock()
	defer j.mu.Unlock()
	switch {
	case j.lives != lives && (err != nil || j.appended < recs[len(recs)-1].Seq):
		return nil, ErrCut
	case j.s.trimmed >= from:
		return nil, fmt.Errorf("%w: %d, trimmed is %d", ErrTrimmed, from, j.s.trimmed)
	}
	return recs, err
}

// readRun reads records whose entries and data lie behind one another: one read of each ring, unless it wraps.
func (j *Journal) readRun(s *super, from, appended record.Seq, maxRecords, maxBytes int, whole bool) ([]record.Record, error) {
	count := min(s.index(appended)-s.index(from)+1, uint64(maxRecords), maxReadRecords, uint64(max(maxBytes, 0))/512+16)
	buf := make([]byte, count*entrySize)
	if err := s.entryRing.read(buf, s.slot(from)); err != nil {
		return nil, fmt.Errorf("read entries from sequence %d on: %w", from, err)
	}
	recs := make([]record.Record, 0, count)
	var first, end uint64
	lengths := make([]uint32, 0, count)
	for want := from; uint64(len(recs)) < count; want++ {
		if want != from && s.following(want-1) != want {
			break
		}
		e, why := decodeEntry(buf[uint64(len(recs))*entrySize:], j.seed)
		if why == "" {
			why = j.misplaced(s, &e, want, end, len(recs) > 0)
		}
		if why != "" {
			return nil, &RotError{Seq: want, Mark: appended, Why: why}
		}
		if len(recs) == 0 {
			first = e.pos
		} else if e.end()-first > uint64(max(maxBytes, 0)) && e.length > 0 {
			break
		}
		end = e.end()
		recs, lengths = append(recs, e.rec), append(lengths, e.length)
	}
	if !whole {
		return recs, nil
	}
	data := make([]byte, end-first)
	if err := s.dataRing.read(data, first); err != nil {
		return nil, fmt.Errorf("read data from sequence %d on: %w", from, err)
	}
	for i := range recs {
		n := lengths[i]
		if n == 0 {
			continue
		}
		recs[i].Data = data[:n:n]
		data = data[aligned(uint64(n)):]
		if record.Checksum(recs[i].Data) != recs[i].CRC {
			return nil, &RotError{Seq: recs[i].Seq, Mark: appended, Why: "data checksum does not match"}
		}
	}
	return recs, nil
}

// misplaced says why a slot's entry is not that of want; "" if it is.
func (j *Journal) misplaced(s *super, e *entry, want record.Seq, end uint64, behind bool) string {
	row, ok := s.table.At(want)
	switch {
	case e.rec.Seq != want:
		return fmt.Sprintf("its slot holds sequence %d", e.rec.Seq)
	case !ok || row.Epoch != e.rec.Epoch || row.Incarnation != e.rec.Incarnation:
		return fmt.Sprintf("epoch %d incarnation %d does not fit its row", e.rec.Epoch, e.rec.Incarnation)
	case e.run > s.run || want >= s.runFirst && e.run != s.run:
		return fmt.Sprintf("left over from run %d", e.run)
	case e.length > MaxPayload || aligned(uint64(e.length)) > uint64(s.dataRing.size) || behind && e.pos != end:
		return fmt.Sprintf("data of %d bytes at position %d is out of place", e.length, e.pos)
	}
	return ""
}

// endOf is the data position behind the record seq, which is stored and not trimmed.
func (j *Journal) endOf(s *super, seq record.Seq) (uint64, error) {
	var b [entrySize]byte
	if err := s.entryRing.read(b[:], s.slot(seq)); err != nil {
		return 0, fmt.Errorf("read entry of sequence %d: %w", seq, err)
	}
	e, why := decodeEntry(b[:], j.seed)
	if why == "" {
		why = j.misplaced(s, &e, seq, 0, false)
	}
	if why != "" {
		return 0, &RotError{Seq: seq, Mark: seq, Why: why}
	}
	return e.end(), nil
}
