package control

import (
	"context"
	"encoding/json"
	"slices"
	"strings"
	"sync"
)

// Memory is a Store that forgets everything with its process: for tests and for the demo.
type Memory struct {
	mu       sync.Mutex
	revision uint64
	entries  map[string]Entry
	events   int
	history  History
	closed   bool
}

// NewMemory returns an empty store.
func NewMemory() *Memory { return &Memory{entries: map[string]Entry{}} }

// Get implements Store.
func (m *Memory) Get(_ context.Context, key string) (Entry, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.closed {
		return Entry{}, ErrClosed
	}
	e, ok := m.entries[key]
	if !ok {
		return Entry{}, ErrNotFound
	}
	e.Value = slices.Clone(e.Value)
	return e, nil
}

// List implements Store.
func (m *Memory) List(_ context.Context, prefix string) ([]Entry, uint64, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.closed {
		return nil, 0, ErrClosed
	}
	return m.list(prefix), m.revision, nil
}

func (m *Memory) list(prefix string) []Entry {
	var out []Entry
	for k, e := range m.entries {
		if strings.HasPrefix(k, prefix) {
			e.Value = slices.Clone(e.Value)
			out = append(out, e)
		}
	}
	slices.SortFunc(out, func(a, b Entry) int { return strings.Compare(a.Key, b.Key) })
	return out
}

// Commit implements Store.
func (m *Memory) Commit(_ context.Context, txn Txn) (uint64, error) {
	if err := txn.Validate(); err != nil {
		return 0, err
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.closed {
		return 0, ErrClosed
	}
	for _, c := range txn.Checks {
		if m.entries[c.Key].Revision != c.Revision {
			return 0, ErrConflict
		}
	}
	m.revision++
	rev := m.revision
	var changes []Change
	for i, ev := range txn.Events {
		ev.Revision = rev
		value, err := json.Marshal(ev)
		if err != nil {
			return 0, err
		}
		txn.Puts = append(slices.Clip(txn.Puts), Put{Key: EventKey(rev, i), Value: value})
	}
	for _, p := range txn.Puts {
		value := slices.Clone(p.Value)
		m.entries[p.Key] = Entry{Key: p.Key, Value: value, Revision: rev}
		changes = append(changes, Change{Key: p.Key, Value: value, Revision: rev})
	}
	for _, k := range txn.Deletes {
		if _, ok := m.entries[k]; ok {
			delete(m.entries, k)
			changes = append(changes, Change{Key: k, Deleted: true, Revision: rev})
		}
	}
	if m.events += len(txn.Events); m.events > MaxEvents {
		m.dropEvents()
	}
	m.history.Publish(changes)
	return rev, nil
}

// dropEvents forgets the oldest events, some more than needed so that it is rarely called.
func (m *Memory) dropEvents() {
	all := m.list(KindEvent + "/")
	drop := len(all) - MaxEvents*9/10
	for _, e := range all[:drop] {
		delete(m.entries, e.Key)
	}
	m.events = len(all) - drop
}

// Watch implements Store.
func (m *Memory) Watch(ctx context.Context, from uint64) (<-chan Change, error) {
	return m.history.Watch(ctx, from)
}

// Close implements Store.
func (m *Memory) Close() error {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.closed = true
	m.history.Close()
	return nil
}
