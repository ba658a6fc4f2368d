package manager

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"time"

	"gantline/internal/control"
)

// maxObjects bounds each kind.
const maxObjects = 10_000

// got is an object as the store had it at a revision.
type got[T any] struct {
	Key string
	V   T
	Rev uint64
}

// singular names a kind in a message.
func singular(kind string) string { return strings.TrimSuffix(kind, "s") }

// verb is the command that handles a kind.
func verb(kind string) string {
	if kind == control.KindMigration {
		return "migrate"
	}
	return singular(kind)
}

// load reads one object; a missing one is KindNotFound.
func load[T any](ctx context.Context, m *Manager, kind, name string) (got[T], error) {
	g := got[T]{Key: control.Key(kind, name)}
	e, err := m.store.Get(ctx, g.Key)
	if errors.Is(err, control.ErrNotFound) {
		return g, control.Errorf(control.KindNotFound, "%s %s does not exist; `gantline %s list` shows what there is",
			singular(kind), name, verb(kind))
	}
	if err != nil {
		return g, fmt.Errorf("%s %s: %w", singular(kind), name, err)
	}
	g.Rev = e.Revision
	if err := json.Unmarshal(e.Value, &g.V); err != nil {
		return g, fmt.Errorf("%s %s: stored record: %w", singular(kind), name, err)
	}
	return g, nil
}

// find is load with "does not exist" as false.
func find[T any](ctx context.Context, m *Manager, kind, name string) (got[T], bool, error) {
	g, err := load[T](ctx, m, kind, name)
	if control.KindOf(err) == control.KindNotFound {
		return got[T]{Key: g.Key}, false, nil
	}
	return g, err == nil, err
}

// loadAll reads all objects of a kind, by name.
func loadAll[T any](ctx context.Context, m *Manager, kind string) ([]got[T], error) {
	entries, _, err := m.store.List(ctx, kind+"/")
	if err != nil {
		return nil, err
	}
	out := make([]got[T], 0, len(entries))
	for _, e := range entries {
		g := got[T]{Key: e.Key, Rev: e.Revision}
		if err := json.Unmarshal(e.Value, &g.V); err != nil {
			return nil, fmt.Errorf("%s: stored record: %w", e.Key, err)
		}
		out = append(out, g)
	}
	return out, nil
}

// change builds one transaction. Every object written is checked against the revision it was read at.
type change struct {
	txn   control.Txn
	plan  []string
	err   error
	clock func() time.Time
}

func (m *Manager) change() *change { return &change{clock: time.Now} }

// put writes an object that was read at rev; 0: it must not exist yet.
func (c *change) put(key string, rev uint64, v any) *change {
	value, err := json.Marshal(v)
	if err != nil {
		c.err = err
		return c
	}
	c.txn.Checks = append(c.txn.Checks, control.Check{Key: key, Revision: rev})
	c.txn.Puts = append(c.txn.Puts, control.Put{Key: key, Value: value})
	c.plan = append(c.plan, "store: write "+key)
	return c
}

// del removes an object that was read at rev.
func (c *change) del(key string, rev uint64) *change {
	c.txn.Checks = append(c.txn.Checks, control.Check{Key: key, Revision: rev})
	c.txn.Deletes = append(c.txn.Deletes, key)
	c.plan = append(c.plan, "store: delete "+key)
	return c
}

// hold demands that an object which is only read stays as it was.
func (c *change) hold(key string, rev uint64) *change {
	c.txn.Checks = append(c.txn.Checks, control.Check{Key: key, Revision: rev})
	return c
}

// event tells what happened, kept with the change.
func (c *change) event(object, kind, cause, format string, args ...any) *change {
	c.txn.Events = append(c.txn.Events, control.Event{
		At: c.clock().UTC(), Object: object, Kind: kind, Cause: cause, Message: fmt.Sprintf(format, args...),
	})
	return c
}

// commit makes a change durable; in a dry run it is only written down.
func (m *Manager) commit(ctx context.Context, c *change) (uint64, error) {
	if c.err != nil {
		return 0, c.err
	}
	if p := planOf(ctx); p != nil {
		p.add(c.plan...)
		return 0, nil
	}
	if err := m.pusher.mayPut(c.txn.Puts); err != nil {
		return 0, err
	}
	rev, err := m.store.Commit(ctx, c.txn)
	if err != nil {
		return 0, err
	}
	for _, e := range c.txn.Events {
		m.log.Info(e.Message, "object", e.Object, "event", e.Kind, "cause", e.Cause, "revision", rev)
	}
	m.pusher.kick()
	return rev, nil
}

// attempt repeats an operation that lost a race for an object's revision.
func attempt[T any](ctx context.Context, f func() (T, error)) (T, error) {
	for try := 0; ; try++ {
		v, err := f()
		if !errors.Is(err, control.ErrConflict) {
			return v, err
		}
		if try == 20 || ctx.Err() != nil {
			return v, control.Errorf(control.KindFailed, "the object keeps changing meanwhile; try again")
		}
	}
}

// tell notes something that changed no object. It must not fail the operation that it tells of.
func (m *Manager) tell(ctx context.Context, object, kind, cause, format string, args ...any) {
	if _, err := m.commit(ctx, m.change().event(object, kind, cause, format, args...)); err != nil {
		m.log.Warn("event could not be kept", "object", object, "event", kind, "error", err)
	}
}
