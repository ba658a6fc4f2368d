package journal

import (
	"fmt"

	"gantline/internal/record"
)

// Append writes records behind the last one. Their numbers go on from Cursors().Appended without a hole, each lies in
// its row of the epoch table. When it returns the records survive the death of the process; a later Sync makes them
// survive the machine's. Data is not kept. A CRC that is not 0 is taken as the data's, else it is computed.
//
// It is one system call for the data and one for the entries, one more where a ring's end or a device's is crossed.
//
// ErrFull, and all errors about the records themselves, change nothing. A write that fails breaks the journal.
func (j *Journal) Append(recs []record.Record) error {
	j.writer.Lock()
	defer j.writer.Unlock()
	if len(recs) == 0 {
		return j.Err()
	}
	p, err := j.plan(recs, false)
	if err != nil {
		return err
	}
	return j.write(recs, p)
}

// AppendAfterGap is Append for a receiver whose sender goes on with a step: the first record is a begin, and may leave
// numbers out. That there is a hole is durable before the begin is written. At most 64 holes are kept at a time.
func (j *Journal) AppendAfterGap(recs []record.Record) error {
	j.writer.Lock()
	defer j.writer.Unlock()
	if len(recs) == 0 {
		return j.Err()
	}
	p, err := j.plan(recs, true)
	if err != nil {
		return err
	}
	if recs[0].Seq > p.after+1 {
		hole := gap{after: p.after, begin: recs[0].Seq}
		err := j.update(func(s *super) error {
			if len(s.gaps) == maxGaps {
				return fmt.Errorf("%w: it has %d holes already", ErrFull, maxGaps)
			}
			s.gaps = append(s.gaps, hole)
			return nil
		}, nil)
		if err != nil {
			return err
		}
	}
	return j.write(recs, p)
}

// plan is where a batch will stand.
type plan struct {
	after   record.Seq // the record in front of it
	durable record.Seq // as its entries will tell
	pos     uint64     // of its data
	bytes   uint64     // of its data, aligned
}

// plan checks a batch against the log's end, the table and the free space. It is called with writer held.
func (j *Journal) plan(recs []record.Record, mayGap bool) (plan, error) {
	j.mu.Lock()
	s, err := j.s, j.usable()
	p := plan{after: j.appended, durable: j.durable, pos: j.head}
	writable := j.writable
	j.mu.Unlock()
	switch {
	case err != nil:
		return p, err
	case !writable:
		return p, ErrNotOpened
	case uint64(len(recs)) > s.entries:
		return p, fmt.Errorf("%w: %d records at once, the journal has %d entries", ErrTooLarge, len(recs), s.entries)
	}
	want := p.after + 1
	if mayGap && recs[0].Op == record.OpBegin && recs[0].Seq > want {
		want = recs[0].Seq
	}
	if recs[0].Seq != want {
		return p, fmt.Errorf("%w: %d after %d", ErrSequence, recs[0].Seq, p.after)
	}
	var row record.Row
	for i := range recs {
		r := &recs[i]
		if r.Seq != want+record.Seq(i) || r.Seq > record.MaxSeq {
			return p, fmt.Errorf("%w: %d, expected %d", ErrSequence, r.Seq, want+record.Seq(i))
		}
		if i == 0 || !row.Contains(r.Seq) {
			row, _ = s.table.At(r.Seq)
		}
		if r.Epoch != row.Epoch || r.Incarnation != row.Incarnation || row.Epoch == 0 {
			return p, fmt.Errorf("%w: sequence %d is of epoch %d incarnation %d, its row is epoch %d incarnation %d",
				ErrRow, r.Seq, r.Epoch, r.Incarnation, row.Epoch, row.Incarnation)
		}
		if err := checkRecord(r); err != nil {
			return p, err
		}
		p.bytes += aligned(uint64(len(r.Data)))
	}
	return p, j.fits(s, p, len(recs))
}

// fits checks the free space.
func (j *Journal) fits(s *super, p plan, n int) error {
	if p.bytes > uint64(s.dataRing.size) {
		return fmt.Errorf("%w: %d bytes at once, the data area has %d", ErrTooLarge, p.bytes, s.dataRing.size)
	}
	if p.pos+p.bytes-s.trimmedPos > uint64(s.dataRing.size) {
		return fmt.Errorf("%w: %d bytes of %d used, %d wanted", ErrFull, p.pos-s.trimmedPos, s.dataRing.size, p.bytes)
	}
	if used := s.index(p.after) - s.index(s.trimmed); used+uint64(n) > s.entries {
		return fmt.Errorf("%w: %d entries of %d used, %d wanted", ErrFull, used, s.entries, n)
	}
	return nil
}

// checkRecord refuses what would not come back as it went in.
func checkRecord(r *record.Record) error {
	if len(r.Data) > MaxPayload {
		return fmt.Errorf("%w: sequence %d has %d bytes, at most %d are allowed", ErrTooLarge, r.Seq, len(r.Data), MaxPayload)
	}
	bad := false
	switch r.Op {
	case record.OpWrite:
		bad = len(r.Data) != int(r.Length) || r.Length == 0
	case record.OpCopy:
		empty := r.Flags&record.FlagEmpty != 0
		bad = empty && len(r.Data) != 0 || !empty && len(r.Data) != int(r.Length)
	case record.OpZero, record.OpTrim, record.OpBegin, record.OpEnd:
		bad = len(r.Data) != 0
	case record.OpMember, record.OpDigest, record.OpFence:
	default:
		return fmt.Errorf("%w: sequence %d has unknown op %d", ErrRecord, r.Seq, r.Op)
	}
	if bad || len(r.Data) == 0 && r.CRC != 0 {
		return fmt.Errorf("%w: sequence %d, op %d, says length %d and checksum %#x, and has %d bytes",
			ErrRecord, r.Seq, r.Op, r.Length, r.CRC, len(r.Data))
	}
	return nil
}

// write puts a planned batch into the rings: data, then entries. A process killed between has no entry without data.
func (j *Journal) write(recs []record.Record, p plan) error {
	j.mu.Lock()
	s := j.s
	j.mu.Unlock()
	if need := len(recs) * entrySize; cap(j.entries) < need {
		j.entries = make([]byte, need, 2*need)
	}
	j.entries, j.iov = j.entries[:len(recs)*entrySize], j.iov[:0]
	e := entry{run: s.run, durable: p.durable, pos: p.pos}
	for i := range recs {
		e.rec = recs[i]
		e.length = uint32(len(e.rec.Data))
		if e.length > 0 {
			if e.rec.CRC == 0 {
				e.rec.CRC = record.Checksum(e.rec.Data)
			}
			j.iov = append(j.iov, e.rec.Data)
			if pad := aligned(uint64(e.length)) - uint64(e.length); pad > 0 {
				j.iov = append(j.iov, zeros[:pad])
			}
		}
		e.encode(j.entries[i*entrySize:], j.seed)
		e.pos = e.end()
	}
	var touched uint64
	var err error
	if p.bytes > 0 {
		touched, err = s.dataRing.write(j.iov, int64(p.bytes), p.pos)
	}
	clear(j.iov) // do not keep the callers' data alive
	if err == nil {
		j.one[0] = j.entries
		var more uint64
		more, err = s.entryRing.write(j.one[:], int64(len(j.entries)), s.slot(recs[0].Seq))
		touched |= more
	}
	if err != nil {
		return j.fail(fmt.Errorf("append sequence %d: %w", recs[0].Seq, err))
	}
	j.mu.Lock()
	defer j.mu.Unlock()
	// Only now: a sync that began earlier covers neither these records nor, for sure, their bytes.
	j.dirty |= touched
	j.appended, j.head = recs[len(recs)-1].Seq, e.pos
	return nil
}
