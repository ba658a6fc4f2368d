package queue

import (
	"fmt"
	"time"

	"gantline/internal/latency"
	"gantline/internal/record"
)

// Prepare marks the regions that records will write, durably. Append does so too; done before, by many at a time, one
// flush of the maps serves them all. An error is Append's to tell.
func (q *Queue) Prepare(recs []record.Record) {
	q.mu.Lock()
	ready := q.touch(recs, q.planned)
	q.mu.Unlock()
	if !ready {
		_ = q.makeReady()
	}
}

// Append marks the regions in doubt, writes the records to their devices and queues them with copies of their data. Their
// numbers go on from Cursors().Appended without a hole, in the row that is open. When it returns they survive the
// death of the process; a later Sync makes them survive the machine's.
//
// ErrFull, ErrTooLarge, and all errors about the records themselves, change nothing. A write that fails breaks the queue.
func (q *Queue) Append(recs []record.Record) error {
	q.writer.Lock()
	defer q.writer.Unlock()
	if len(recs) == 0 {
		return q.Err()
	}
	last := recs[len(recs)-1].Seq
	if err := q.admit(recs); err != nil {
		return err
	}
	if err := q.reserveTo(last); err != nil {
		return err
	}
	q.mu.Lock()
	ready := q.touch(recs, last)
	q.mu.Unlock()
	if !ready {
		if err := q.makeReady(); err != nil {
			return err
		}
	}
	if err := q.back.Write(recs); err != nil {
		return q.fail(fmt.Errorf("write sequence %d: %w", recs[0].Seq, err))
	}
	q.mu.Lock()
	defer q.mu.Unlock()
	if err := q.usable(); err != nil {
		return err
	}
	q.log.push(recs)
	q.appended = last
	return nil
}

// admit checks a batch against the queue's end, the row and the free memory.
func (q *Queue) admit(recs []record.Record) error {
	q.mu.Lock()
	defer q.mu.Unlock()
	if err := q.usable(); err != nil {
		return err
	}
	row, ok := q.s.table.Current()
	if !ok || !q.writable || q.back == nil {
		return fmt.Errorf("%w: no row is open", ErrSequence)
	}
	for i := range recs {
		r := &recs[i]
		if r.Seq != q.appended+1+record.Seq(i) || r.Seq > record.MaxSeq {
			return fmt.Errorf("%w: %d, expected %d", ErrSequence, r.Seq, q.appended+1+record.Seq(i))
		}
		if r.Epoch != row.Epoch || r.Incarnation != row.Incarnation || !row.Contains(r.Seq) {
			return fmt.Errorf("%w: %d is of epoch %d incarnation %d, the open row is epoch %d incarnation %d",
				ErrSequence, r.Seq, r.Epoch, r.Incarnation, row.Epoch, row.Incarnation)
		}
		if r.Op == record.OpFence {
			return fmt.Errorf("%w: %d is a fence; what a sealed queue has not sent would be lost with its process", ErrUnsupported, r.Seq)
		}
		if _, last, ok := regionsOf(r); ok {
			if in := q.intents[r.Volume]; in == nil || last >= in.bits.Bits() {
				return fmt.Errorf("%w: %d, volume %d, %d bytes at %d", ErrVolume, r.Seq, r.Volume, r.Length, r.Offset)
			}
		}
	}
	bytes := weight(recs)
	switch {
	case q.log.len() == 0 && len(recs) == 1 || q.log.used+bytes <= q.limit:
		return nil
	case bytes > q.limit && len(recs) > 1:
		return fmt.Errorf("%w: %d bytes at once, the limit is %d", ErrTooLarge, bytes, q.limit)
	}
	return fmt.Errorf("%w: %d bytes of %d used, %d wanted", ErrFull, q.log.used, q.limit, bytes)
}

// touch marks, with mu held, and says whether all marks are durable. upTo is the highest number that may be written
// under these marks.
func (q *Queue) touch(recs []record.Record, upTo record.Seq) bool {
	q.planned = max(q.planned, upTo)
	ready := true
	for i := range recs {
		first, last, ok := regionsOf(&recs[i])
		if in := q.intents[recs[i].Volume]; ok && in != nil && last < in.bits.Bits() {
			ready = in.touch(first, last, forward(&recs[i])) && ready
		}
	}
	return ready
}

// makeReady makes durable all marks that are pending. Who comes while it runs waits, and mostly finds nothing left to do.
func (q *Queue) makeReady() error {
	q.marking.Lock()
	defer q.marking.Unlock()
	type flushed struct {
		in      *intents
		regions []int64
	}
	var todo []flushed
	q.mu.Lock()
	err := q.usable()
	for _, in := range q.intents {
		if len(in.pending) > 0 {
			todo = append(todo, flushed{in, in.pending})
			in.pending = nil
		}
	}
	q.mu.Unlock()
	if err != nil {
		return err
	}
	for _, f := range todo {
		if err := f.in.bits.Flush(); err != nil {
			return q.fail(fmt.Errorf("intent map: %w", err))
		}
		q.mu.Lock()
		f.in.durable(f.regions)
		q.mu.Unlock()
	}
	return nil
}

// reserveTo makes sure that numbers up to last are reserved on disk.
func (q *Queue) reserveTo(last record.Seq) error {
	q.mu.Lock()
	enough := last <= q.s.reserved
	q.mu.Unlock()
	if enough {
		return nil
	}
	return q.save(func(s *state) error {
		s.reserved = max(s.reserved, last+reserve)
		return nil
	})
}

// Sync flushes the devices and returns the durable cursor: at least all that was appended before the call. Callers that
// come while one runs share the next.
func (q *Queue) Sync() (record.Seq, error) { return q.flush(q.Cursors().Appended) }

// Flush flushes the devices even if nothing was appended since the last time.
func (q *Queue) Flush() error {
	_, err := q.flush(0)
	return err
}

// flush makes all that is appended durable, unless all up to enough is; 0: always.
func (q *Queue) flush(enough record.Seq) (record.Seq, error) {
	q.flushing.Lock()
	defer q.flushing.Unlock()
	q.mu.Lock()
	err, durable, upTo, low := q.usable(), q.durable, q.appended, q.writable && q.s.reserved-q.appended < reserve/2
	q.mu.Unlock()
	if err != nil {
		return 0, err
	}
	if enough != 0 && durable >= enough {
		return durable, nil
	}
	began := time.Now()
	err = q.back.Flush()
	q.syncs.Observe(time.Since(began), 1)
	if err != nil {
		return 0, q.fail(err)
	}
	if low && q.isWritable() { // here nobody who writes waits for it
		if err := q.reserveTo(upTo + reserve); err != nil {
			return 0, err
		}
	}
	q.mu.Lock()
	defer q.mu.Unlock()
	if err := q.usable(); err != nil {
		return 0, err
	}
	if upTo > q.durable {
		q.synced += uint64(upTo - q.durable)
		q.durable = upTo
	}
	return q.durable, nil
}

// Syncs says how long flushes of the devices for records have taken in this run, and how many records they have made
// durable.
func (q *Queue) Syncs() (syncs latency.Snapshot, records uint64) {
	q.mu.Lock()
	defer q.mu.Unlock()
	return q.syncs.Snapshot(), q.synced
}

// Read returns records from `from` on: one at least, at most maxRecords, and no more than maxBytes of data beyond the
// first. The records are the caller's, their data must not be changed.
func (q *Queue) Read(from record.Seq, maxRecords, maxBytes int) ([]record.Record, error) {
	q.mu.Lock()
	defer q.mu.Unlock()
	switch {
	case q.closed:
		return nil, ErrClosed
	case from <= q.trimmed:
		return nil, fmt.Errorf("%w: %d, trimmed is %d", ErrTrimmed, from, q.trimmed)
	case from > q.appended:
		return nil, fmt.Errorf("%w: %d, the queue ends at %d", ErrNotStored, from, q.appended)
	}
	return q.log.read(from, maxRecords, maxBytes), nil
}

// Forget frees the memory of records up to upTo that are durable: nobody will read them any more. Their regions stay
// marked.
func (q *Queue) Forget(upTo record.Seq) {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.forget(upTo)
}

func (q *Queue) forget(upTo record.Seq) {
	if upTo = min(upTo, q.durable); upTo > q.trimmed {
		q.log.drop(upTo)
		q.trimmed = upTo
	}
}

// Trim frees the records up to upTo, which all subscribers have durably, or have durable marks of, and lets go of the
// regions that were written by none but them and not since the Trim before. That is durable when it returns.
func (q *Queue) Trim(upTo record.Seq) error {
	q.mu.Lock()
	upTo = min(upTo, q.durable)
	q.forget(upTo)
	q.settled = max(q.settled, upTo)
	cleared := q.turn()
	err := q.usable()
	q.mu.Unlock()
	if err != nil {
		return err
	}
	q.marking.Lock()
	defer q.marking.Unlock()
	for _, m := range cleared {
		if err := m.Flush(); err != nil {
			return q.fail(fmt.Errorf("intent map: %w", err))
		}
	}
	return nil
}
