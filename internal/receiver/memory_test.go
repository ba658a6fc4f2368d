package receiver_test

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"sync"
	"testing"
	"time"

	"gantline/internal/receiver"
	"gantline/internal/record"
	"gantline/internal/sender"
)

// memLog is a log as its sender sees it: records, how far they are durable, and what the subscriber has told.
type memLog struct {
	mu      sync.Mutex
	recs    []record.Record // recs[0].Seq is first
	table   record.Table
	durable record.Seq
	trimmed record.Seq // records up to here are gone
	changed chan struct{}
	stored  record.Seq
	acked   record.Seq // durable
	applied record.Seq
	err     error // of Read
}

func newLog(table record.Table, base record.Seq) *memLog {
	return &memLog{table: table, durable: base, trimmed: base, stored: 0, changed: make(chan struct{})}
}

// add appends and makes durable.
func (l *memLog) add(recs ...record.Record) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.recs = append(l.recs, recs...)
	l.durable = recs[len(recs)-1].Seq
	close(l.changed)
	l.changed = make(chan struct{})
}

func (l *memLog) Table() record.Table {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.table.Clone()
}

func (l *memLog) Durable() record.Seq {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.durable
}

func (l *memLog) Wait(ctx context.Context, after record.Seq, _ func() (record.Seq, bool)) error {
	for {
		l.mu.Lock()
		durable, changed := l.durable, l.changed
		l.mu.Unlock()
		if durable > after {
			return nil
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

func (l *memLog) Read(from record.Seq, maxRecords, maxBytes int) ([]record.Record, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.err != nil {
		return nil, l.err
	}
	if from <= l.trimmed {
		return nil, fmt.Errorf("%w: %d, trimmed is %d", sender.ErrTrimmed, from, l.trimmed)
	}
	return read(l.recs, from, maxRecords, maxBytes)
}

var errNotStored = errors.New("not stored")

// read stops in front of a gap, and begins behind one.
func read(recs []record.Record, from record.Seq, maxRecords, maxBytes int) ([]record.Record, error) {
	i, _ := slices.BinarySearchFunc(recs, from, func(r record.Record, seq record.Seq) int { return int(r.Seq) - int(seq) })
	if i == len(recs) {
		return nil, errNotStored
	}
	n, bytes := 1, len(recs[i].Data)
	for i+n < len(recs) && n < maxRecords && recs[i+n].Seq == recs[i+n-1].Seq+1 && bytes+len(recs[i+n].Data) <= maxBytes {
		bytes += len(recs[i+n].Data)
		n++
	}
	return slices.Clone(recs[i : i+n]), nil
}

func (l *memLog) Acked(stored, durable, applied record.Seq) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.stored, l.acked, l.applied = stored, max(l.acked, durable), max(l.applied, applied)
	return nil
}

func (l *memLog) has() (stored, durable, applied record.Seq) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.stored, l.acked, l.applied
}

// memStore is a subscriber's journal. A crash forgets any tail of what was not synced; rows and cuts are durable.
type memStore struct {
	mu      sync.Mutex
	recs    []record.Record
	table   record.Table
	durable record.Seq
	saved   []byte // the receiver's state
	hook    func(op string) error
	dead    bool
	appends int
	syncs   int
}

var errDead = errors.New("power is off")

func (m *memStore) call(op string) error {
	if m.dead {
		return errDead
	}
	if m.hook != nil {
		return m.hook(op)
	}
	return nil
}

func (m *memStore) storedLocked() record.Seq {
	if len(m.recs) == 0 {
		return 0
	}
	return m.recs[len(m.recs)-1].Seq
}

func (m *memStore) append(recs []record.Record, gap bool) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	if err := m.call("append"); err != nil {
		return err
	}
	want := m.storedLocked() + 1
	if gap && recs[0].Op == record.OpBegin && recs[0].Seq > want {
		want = recs[0].Seq
	}
	for i := range recs {
		row, ok := m.table.At(recs[i].Seq)
		if recs[i].Seq != want+record.Seq(i) || !ok || row.Epoch != recs[i].Epoch || row.Incarnation != recs[i].Incarnation {
			return fmt.Errorf("store: record %d of epoch %d/%d where %d of epoch %d/%d was due", recs[i].Seq, recs[i].Epoch,
				recs[i].Incarnation, want+record.Seq(i), row.Epoch, row.Incarnation)
		}
	}
	m.recs = append(m.recs, recs...)
	m.appends++
	return nil
}

func (m *memStore) Append(recs []record.Record) error         { return m.append(recs, false) }
func (m *memStore) AppendAfterGap(recs []record.Record) error { return m.append(recs, true) }

func (m *memStore) Sync() (record.Seq, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if err := m.call("sync"); err != nil {
		return 0, err
	}
	m.syncs++
	m.durable = m.storedLocked()
	return m.durable, nil
}

func (m *memStore) Cut(upTo record.Seq) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	for len(m.recs) > 0 && m.storedLocked() > upTo {
		m.recs = m.recs[:len(m.recs)-1]
	}
	m.durable = m.storedLocked()
	m.table = m.table.Truncate(m.durable)
	return m.call("cut")
}

func (m *memStore) OpenRow(row record.Row) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	if row.First <= m.storedLocked() {
		return fmt.Errorf("store: row begins at %d, stored is %d", row.First, m.storedLocked())
	}
	next, err := m.table.Extend(row)
	if err == nil {
		err = m.call("row")
	}
	if err != nil {
		return err
	}
	m.table, m.durable = next, m.storedLocked()
	return nil
}

func (m *memStore) Table() record.Table {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.table.Clone()
}

func (m *memStore) Cursors() (durable, stored record.Seq) {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.durable, m.storedLocked()
}

func (m *memStore) Read(from record.Seq, maxRecords, maxBytes int) ([]record.Record, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	return read(m.recs, from, maxRecords, maxBytes)
}

func (m *memStore) state() []byte { return m.saved }

func (m *memStore) save(b []byte) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	if err := m.call("save"); err != nil {
		return err
	}
	m.saved = slices.Clone(b)
	return nil
}

func (m *memStore) records() []record.Record {
	m.mu.Lock()
	defer m.mu.Unlock()
	return slices.Clone(m.recs)
}

// crash is the store as recovery finds it after power loss; the old one is dead.
func (m *memStore) crash(rnd *rand.Rand) *memStore {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.dead = true
	recs := slices.Clone(m.recs)
	for len(recs) > 0 && recs[len(recs)-1].Seq > m.durable && rnd.IntN(4) > 0 {
		recs = recs[:len(recs)-1]
	}
	n := &memStore{recs: recs, table: m.table.Clone(), saved: slices.Clone(m.saved)}
	n.durable = n.storedLocked() // recovery syncs before it believes
	return n
}

// volumes is the sink: what has been applied, in order.
type volumes struct {
	mu   sync.Mutex
	recs []record.Record
}

func (v *volumes) Intend(record.Seq) error { return nil }

func (v *volumes) Apply(recs []record.Record) error {
	v.mu.Lock()
	defer v.mu.Unlock()
	for _, r := range recs {
		if n := len(v.recs); n > 0 && r.Seq != v.recs[n-1].Seq+1 && r.Op != record.OpBegin {
			return fmt.Errorf("volumes: record %d behind %d", r.Seq, v.recs[n-1].Seq)
		}
		v.recs = append(v.recs, r)
	}
	return nil
}

func (v *volumes) applied() []record.Record {
	v.mu.Lock()
	defer v.mu.Unlock()
	return slices.Clone(v.recs)
}

func (v *volumes) last() record.Seq {
	v.mu.Lock()
	defer v.mu.Unlock()
	if len(v.recs) == 0 {
		return 0
	}
	return v.recs[len(v.recs)-1].Seq
}

// eventually polls, since the other end is real.
func eventually(t testing.TB, what string, ok func() bool) {
	t.Helper()
	for deadline := time.Now().Add(20 * time.Second); !ok(); time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("never: %s", what)
		}
	}
}

var _ receiver.Store = (*memStore)(nil)
var _ sender.Source = (*memLog)(nil)
