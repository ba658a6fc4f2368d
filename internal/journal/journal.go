package journal

import (
	"errors"
	"fmt"
	"sync"

	"gantline/internal/block"
	"gantline/internal/latency"
	"gantline/internal/record"
)

// Journal is an open journal. All methods may be called concurrently; appends are put in a row.
//
// Locks, in the order they are taken: writer, superMu, flushMu, mu.
type Journal struct {
	seed     uint32
	recovery Recovery

	writer  sync.Mutex // held by Append and by all that changes the log's shape
	entries []byte     // entries being written
	iov     [][]byte   // data being written
	one     [1][]byte

	superMu sync.Mutex // one change of the superblocks at a time

	// flushMu keeps syncs and superblock writes apart: a sync that fails marks the journal broken before any other
	// write is believed, though the error is reported but once.
	flushMu sync.Mutex

	mu       sync.Mutex     // what follows; never held over input or output
	wake     sync.Cond      // a sync ended
	devs     []block.Device // appended to by Join, never changed else
	s        *super         // in force; replaced, never changed
	appended record.Seq
	durable  record.Seq
	head     uint64 // data position behind appended
	dirty    uint64 // devices written to since their last sync, by bit
	syncing  bool
	writable bool
	lives    uint64 // Cut and Reset so far
	synced   uint64 // records that a sync has made durable in this run
	broken   error
	closed   bool

	syncs latency.Histogram
}

// Cursors of a journal: Trimmed ≤ Durable ≤ Appended.
type Cursors struct {
	Trimmed  record.Seq
	Durable  record.Seq
	Appended record.Seq
}

// Cursors returns the three at one moment.
func (j *Journal) Cursors() Cursors {
	j.mu.Lock()
	defer j.mu.Unlock()
	return Cursors{Trimmed: j.s.trimmed, Durable: j.durable, Appended: j.appended}
}

// ID is the journal's name.
func (j *Journal) ID() ID {
	j.mu.Lock()
	defer j.mu.Unlock()
	return j.s.id
}

// Table is the epoch table. The caller must not change it.
func (j *Journal) Table() record.Table {
	j.mu.Lock()
	defer j.mu.Unlock()
	return j.s.table[:len(j.s.table):len(j.s.table)]
}

// Meta is the owner's blob, as last set. The caller must not change it.
func (j *Journal) Meta() []byte {
	j.mu.Lock()
	defer j.mu.Unlock()
	return j.s.meta
}

// devices are those of the journal at one moment.
func (j *Journal) devices() []block.Device {
	j.mu.Lock()
	defer j.mu.Unlock()
	return j.devs[:len(j.devs):len(j.devs)]
}

// Recovery tells what Open found.
func (j *Journal) Recovery() Recovery { return j.recovery }

// Space returns used and whole capacity in bytes of data area. Where entries are scarcer than bytes (many small
// records) used is scaled to them, so that used == capacity means full in either case.
func (j *Journal) Space() (used, capacity int64) {
	j.mu.Lock()
	defer j.mu.Unlock()
	bytes := j.head - j.s.trimmedPos
	count := j.s.index(j.appended) - j.s.index(j.s.trimmed)
	scaled := float64(count) / float64(j.s.entries) * float64(j.s.dataRing.size)
	return max(int64(bytes), int64(scaled)), j.s.dataRing.size
}

// Err is nil, or what ended the use of the journal: ErrBroken with its cause, or ErrClosed.
func (j *Journal) Err() error {
	j.mu.Lock()
	defer j.mu.Unlock()
	return j.usable()
}

// usable is called with mu held.
func (j *Journal) usable() error {
	if j.broken != nil {
		return j.broken
	}
	if j.closed {
		return ErrClosed
	}
	return nil
}

// fail marks the journal broken by cause and returns the error that everybody gets from now on.
func (j *Journal) fail(cause error) error {
	j.mu.Lock()
	defer j.mu.Unlock()
	if j.broken == nil {
		j.broken = fmt.Errorf("%w: %w", ErrBroken, cause)
	}
	j.wake.Broadcast()
	return j.broken
}

// update makes a changed copy of the superblock durable in both slots and puts it in force, along with what then does
// under mu. If change refuses, nothing happens.
func (j *Journal) update(change func(*super) error, then func()) error {
	j.superMu.Lock()
	defer j.superMu.Unlock()
	j.mu.Lock()
	err := j.usable()
	next := j.s.clone()
	next.durable = j.durable
	j.mu.Unlock()
	if err != nil {
		return err
	}
	if err := change(&next); err != nil {
		return err
	}
	next.generation++
	if err := j.writeSupers(&next); err != nil {
		return err
	}
	j.mu.Lock()
	defer j.mu.Unlock()
	j.s = &next
	if then != nil {
		then()
	}
	return nil
}

// writeSupers writes A, then B. Whatever a crash does to the one being written, the other is good.
func (j *Journal) writeSupers(next *super) error {
	j.flushMu.Lock()
	defer j.flushMu.Unlock()
	if err := j.Err(); err != nil {
		return err
	}
	b := next.encode()
	first := j.devices()[0]
	for slot := range 2 {
		if err := writeSuper(first, slot, b); err != nil {
			return j.fail(err)
		}
	}
	return nil
}

// Close makes everything durable, notes in the superblocks that it is, and closes the devices. A journal that failed
// before only closes them.
func (j *Journal) Close() error {
	j.writer.Lock()
	defer j.writer.Unlock()
	j.mu.Lock()
	closed, failed := j.closed, j.broken
	j.mu.Unlock()
	if closed {
		return nil
	}
	var err error
	if failed == nil {
		if _, err = j.Sync(); err == nil {
			err = j.update(func(*super) error { return nil }, nil)
		}
	}
	j.superMu.Lock()
	defer j.superMu.Unlock()
	j.flushMu.Lock()
	defer j.flushMu.Unlock()
	j.mu.Lock()
	j.closed = true
	j.wake.Broadcast()
	j.mu.Unlock()
	for _, dev := range j.devices() {
		err = errors.Join(err, dev.Close())
	}
	return err
}
