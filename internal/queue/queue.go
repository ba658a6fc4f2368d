package queue

import (
	"errors"
	"fmt"
	"sync"

	"gantline/internal/block"
	"gantline/internal/latency"
	"gantline/internal/record"
)

// Backing is the group's devices, as the queue uses them.
type Backing interface {
	// Write brings records to their devices, in order, so that they survive the death of the process. Copied blocks
	// and records of the group itself it leaves out. Calls come one at a time.
	Write(recs []record.Record) error
	// Flush makes durable all that a Write that had returned before the call brought there.
	Flush() error
}

// Cursors of a queue: Trimmed ≤ Durable ≤ Appended. Records in (Trimmed, Appended] are in memory.
type Cursors struct{ Trimmed, Durable, Appended record.Seq }

// reserve is how many numbers are reserved on disk at a time.
const reserve = 1 << 16

// Queue is an open queue. All methods may be called concurrently; appends are put in a row.
//
// Locks, in the order they are taken: writer, flushing (of the devices), marking (flushes of the maps), saving, mu.
type Queue struct {
	dev      block.Device
	limit    int64
	base     record.Seq // numbers up to here are of earlier runs
	suspect  bool
	repaired string
	back     Backing

	writer   sync.Mutex
	flushing sync.Mutex
	marking  sync.Mutex
	saving   sync.Mutex
	stateBad bool // under saving: a save has failed

	mu       sync.Mutex // what follows; never held over input or output
	s        *state
	log      entries
	trimmed  record.Seq
	durable  record.Seq
	appended record.Seq
	planned  record.Seq // the highest number that an Append under way or past has taken
	settled  record.Seq // as of the last Trim
	oldEnd   record.Seq // the highest number that the intents' old generation may have
	intents  map[record.VolumeNumber]*intents
	writable bool
	broken   error
	closed   bool
	synced   uint64 // records that a flush has made durable in this run

	syncs latency.Histogram
}

// Open goes on with a queue whose state is on dev, which it takes over; on an error dev stays the caller's. Records of
// earlier runs are gone; limit bounds, in bytes, what is kept in memory of this one. Before anything else come
// AddVolume for each volume, and Attach.
func Open(dev block.Device, limit int64) (*Queue, error) {
	if err := dev.Flush(); err != nil { // a killed process's page cache is not the disk yet
		return nil, fmt.Errorf("sync queue state: %w", err)
	}
	s, first, repaired, err := loadState(dev)
	if err != nil {
		return nil, err
	}
	next := *s
	next.generation++
	next.table = s.table.Close(s.reserved)
	for _, slot := range [2]int{first, 1 - first} {
		if err := saveState(dev, slot, next.encode()); err != nil {
			return nil, err
		}
	}
	q := &Queue{
		dev: dev, limit: max(limit, entryWeight), base: s.reserved, suspect: s.failed, repaired: repaired, s: &next,
		trimmed: s.reserved, durable: s.reserved, appended: s.reserved, planned: s.reserved, settled: s.reserved,
		// What is marked already counts as touched by this run's first record: its marks go only once that is settled.
		oldEnd:  s.reserved + 1,
		intents: map[record.VolumeNumber]*intents{},
	}
	return q, nil
}

// AddVolume gives the queue a volume's intent map, of Regions(size) bits, all durable. It stays the caller's to close,
// after Close.
func (q *Queue) AddVolume(n record.VolumeNumber, m *block.Bitmap) error {
	q.mu.Lock()
	defer q.mu.Unlock()
	if q.intents[n] != nil || n == 0 {
		return fmt.Errorf("%w: volume number %d is taken", ErrVolume, n)
	}
	q.intents[n] = newIntents(m)
	return nil
}

// Grow makes a volume's intent map as long as a volume of size bytes needs; durable on return.
func (q *Queue) Grow(n record.VolumeNumber, size int64) error {
	q.mu.Lock()
	defer q.mu.Unlock()
	in := q.intents[n]
	if in == nil {
		return fmt.Errorf("%w: volume number %d", ErrVolume, n)
	}
	return in.grow(Regions(size))
}

// Attach tells the queue its devices.
func (q *Queue) Attach(b Backing) { q.back = b }

// Base is the last number of earlier runs, 0 if there were none. Who had records of those needs a step now.
func (q *Queue) Base() record.Seq { return q.base }

// Suspect: the run before ended on a failure of a disk, so what it wrote last must be written again before it counts.
func (q *Queue) Suspect() bool { return q.suspect }

// Repaired says in words what was mended at Open, "" if nothing.
func (q *Queue) Repaired() string { return q.repaired }

// Doubt lists the regions of a volume that its subscribers may not have, or the disk may not.
func (q *Queue) Doubt(n record.VolumeNumber) []block.Extent {
	q.mu.Lock()
	in := q.intents[n]
	q.mu.Unlock()
	if in == nil {
		return nil
	}
	var list []block.Extent
	for r, ok := in.bits.NextSet(0); ok; {
		end, more := in.bits.NextClear(r)
		if !more {
			end = in.bits.Bits()
		}
		list = append(list, block.Extent{Offset: r * Region, Length: (end - r) * Region, Type: block.ExtentData})
		r, ok = in.bits.NextSet(end)
	}
	return list
}

// InDoubt says whether any region is marked.
func (q *Queue) InDoubt() bool {
	q.mu.Lock()
	defer q.mu.Unlock()
	for _, in := range q.intents {
		if in.bits.Count() > 0 {
			return true
		}
	}
	return false
}

func (q *Queue) Cursors() Cursors {
	q.mu.Lock()
	defer q.mu.Unlock()
	return Cursors{Trimmed: q.trimmed, Durable: q.durable, Appended: q.appended}
}

// Table is the epoch table. The caller must not change it.
func (q *Queue) Table() record.Table {
	q.mu.Lock()
	defer q.mu.Unlock()
	return q.s.table[:len(q.s.table):len(q.s.table)]
}

// Meta is the owner's blob. The caller must not change it.
func (q *Queue) Meta() []byte {
	q.mu.Lock()
	defer q.mu.Unlock()
	return q.s.meta
}

// Space returns used and whole capacity, in bytes of memory.
func (q *Queue) Space() (used, capacity int64) {
	q.mu.Lock()
	defer q.mu.Unlock()
	return q.log.used, q.limit
}

// Err is nil, or what ended the use of the queue.
func (q *Queue) Err() error {
	q.mu.Lock()
	defer q.mu.Unlock()
	return q.usable()
}

// usable is called with mu held.
func (q *Queue) usable() error {
	if q.broken != nil {
		return q.broken
	}
	if q.closed {
		return ErrClosed
	}
	return nil
}

// breakBy marks the queue broken and says whether it was not before.
func (q *Queue) breakBy(cause error) (first bool, err error) {
	q.mu.Lock()
	defer q.mu.Unlock()
	if first = q.broken == nil; first {
		q.broken = fmt.Errorf("%w: %w", ErrBroken, cause)
	}
	return first, q.broken
}

// fail marks the queue broken because a device or a map has failed. The next run is told, if the state's disk still
// takes it: the copy that is not being written stays whole whatever happens.
func (q *Queue) fail(cause error) error {
	first, err := q.breakBy(cause)
	if !first {
		return err
	}
	q.saving.Lock()
	defer q.saving.Unlock()
	if q.stateBad {
		return err
	}
	next := *q.s
	next.generation++
	next.failed = true
	for slot := range 2 {
		if saveState(q.dev, slot, next.encode()) != nil {
			break
		}
	}
	return err
}

// save makes a changed copy of the state durable and puts it in force.
func (q *Queue) save(change func(*state) error) error {
	q.saving.Lock()
	defer q.saving.Unlock()
	q.mu.Lock()
	err, next := q.usable(), *q.s
	q.mu.Unlock()
	if err != nil {
		return err
	}
	if err := change(&next); err != nil {
		return err
	}
	next.generation++
	b := next.encode()
	for slot := range 2 {
		if err := saveState(q.dev, slot, b); err != nil {
			q.stateBad = true // the other copy is whole, and must not be touched any more
			_, err = q.breakBy(err)
			return err
		}
	}
	q.mu.Lock()
	defer q.mu.Unlock()
	q.s = &next
	return nil
}

// SetMeta durably replaces the owner's blob.
func (q *Queue) SetMeta(meta []byte) error {
	if len(meta) > MaxMeta {
		return fmt.Errorf("%w: %d bytes, at most %d are kept", ErrMeta, len(meta), MaxMeta)
	}
	return q.save(func(s *state) error {
		s.meta = append([]byte(nil), meta...)
		return nil
	})
}

// OpenRow durably begins a row of the epoch table behind the last number, in a higher epoch or incarnation. What was
// written before is made durable first. From then on Append takes records.
func (q *Queue) OpenRow(row record.Row) error {
	q.writer.Lock()
	defer q.writer.Unlock()
	if c := q.Cursors(); row.First != c.Appended+1 {
		return fmt.Errorf("%w: row begins at %d, the queue ends at %d", ErrSequence, row.First, c.Appended)
	}
	if _, err := q.flush(0); err != nil {
		return err
	}
	err := q.save(func(s *state) error {
		table, err := s.table.Forget(row.First-1, record.MaxRows-1).Extend(row)
		s.table = table
		s.reserved = max(s.reserved, row.First-1+reserve)
		s.failed = false
		return err
	})
	if err != nil {
		return err
	}
	q.mu.Lock()
	defer q.mu.Unlock()
	q.writable = true
	return nil
}

// AppendAfterGap and Cut are for the log of a secondary: it keeps a journal.
func (q *Queue) AppendAfterGap([]record.Record) error { return ErrUnsupported }
func (q *Queue) Cut(record.Seq) error                 { return ErrUnsupported }

// Reset makes a queue in which no row is open go on behind base, with the table and the owner's blob, all in one durable
// step: the target of a move takes over the counter. What it held is forgotten.
func (q *Queue) Reset(base record.Seq, table record.Table, meta []byte) error {
	q.writer.Lock()
	defer q.writer.Unlock()
	if q.isWritable() {
		return fmt.Errorf("%w: a row is open", ErrSequence)
	}
	if len(meta) > MaxMeta {
		return fmt.Errorf("%w: %d bytes, at most %d are kept", ErrMeta, len(meta), MaxMeta)
	}
	err := q.save(func(s *state) error {
		s.reserved, s.table, s.meta = base, table.Close(base), append([]byte(nil), meta...)
		return s.table.Validate()
	})
	if err != nil {
		return err
	}
	q.mu.Lock()
	defer q.mu.Unlock()
	q.log, q.base = entries{}, 0
	q.trimmed, q.durable, q.appended, q.planned, q.settled, q.oldEnd = base, base, base, base, base, base+1
	return nil
}

// Seal ends the open row at the newest record, which must be `last` and durable, and replaces the owner's blob, in one durable
// step. Until another row is opened nothing is appended; the next run begins behind last too.
func (q *Queue) Seal(last record.Seq, meta []byte) error {
	q.writer.Lock()
	defer q.writer.Unlock()
	if c := q.Cursors(); c.Appended != last || c.Durable != last {
		return fmt.Errorf("%w: sealing at %d, the queue ends at %d, durable is %d", ErrSequence, last, c.Appended, c.Durable)
	}
	if len(meta) > MaxMeta {
		return fmt.Errorf("%w: %d bytes, at most %d are kept", ErrMeta, len(meta), MaxMeta)
	}
	q.mu.Lock()
	was := q.writable
	q.writable = false // first: nobody reserves numbers above from here on
	q.mu.Unlock()
	err := q.save(func(s *state) error {
		s.reserved, s.table, s.meta = last, s.table.Close(last), append([]byte(nil), meta...)
		return nil
	})
	if err != nil && q.Err() == nil { // nothing was written
		q.mu.Lock()
		q.writable = was
		q.mu.Unlock()
	}
	return err
}

func (q *Queue) isWritable() bool {
	q.mu.Lock()
	defer q.mu.Unlock()
	return q.writable
}

// Close flushes the devices and closes the state. Where all is settled, nothing is in doubt and no number lost: the next
// run has nothing to send again.
func (q *Queue) Close() error {
	q.writer.Lock()
	defer q.writer.Unlock()
	q.mu.Lock()
	err, closed := q.usable(), q.closed
	q.mu.Unlock()
	if closed {
		return nil
	}
	if err == nil {
		err = q.finish()
	} else {
		err = nil // it has been told
	}
	q.saving.Lock()
	defer q.saving.Unlock()
	q.mu.Lock()
	q.closed = true
	q.log = entries{}
	q.mu.Unlock()
	return errors.Join(err, q.dev.Close())
}

func (q *Queue) finish() error {
	if q.back != nil && q.writable {
		if _, err := q.flush(0); err != nil {
			return err
		}
	}
	q.mu.Lock()
	appended := q.appended
	for range 2 {
		q.turn()
	}
	maps := q.maps()
	q.mu.Unlock()
	for _, m := range maps {
		if err := m.Flush(); err != nil {
			return q.fail(fmt.Errorf("intent map: %w", err))
		}
	}
	if !q.writable {
		return nil
	}
	return q.save(func(s *state) error {
		s.reserved = appended
		return nil
	})
}

// turn clears the marks that are settled, with mu held, and lists the maps of which some were.
func (q *Queue) turn() (cleared []*block.Bitmap) {
	if q.settled < q.oldEnd {
		return nil
	}
	for _, in := range q.intents {
		if in.turn() {
			cleared = append(cleared, in.bits)
		}
	}
	q.oldEnd = q.planned
	return cleared
}

// maps is called with mu held.
func (q *Queue) maps() []*block.Bitmap {
	list := make([]*block.Bitmap, 0, len(q.intents))
	for _, in := range q.intents {
		list = append(list, in.bits)
	}
	return list
}
