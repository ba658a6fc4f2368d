package volume

import (
	"context"
	"fmt"
	"sync"
	"time"

	"gantline/internal/record"
)

// Front is a log that ends with a fence and that another one goes on from: records are read and freed, none is added.
type Front interface {
	Read(from record.Seq, maxRecords, maxBytes int) ([]record.Record, error)
	// Entries is Read without the records' data.
	Entries(from record.Seq, maxRecords int) ([]record.Record, error)
	Trim(upTo record.Seq) error
	Cursors() Cursors
	Close() error
}

// Chain is the log of a group that has taken over another node's, and with it what of that the secondary still lacks:
//
//	(base, cut]  the front: carried from the node before, in a log of its own, only read and freed
//	(cut, …      the Log: all that is numbered here
//
// To all who read it is one log. It has no front until the group is given one (PutFront), and none any more once nobody
// needs it (TakeFront).
type Chain struct {
	Log

	mu    sync.RWMutex // held to read while the front is read: it is not closed meanwhile
	front Front
	cut   record.Seq
	base  record.Seq    // before the front's first record, when it was put here
	bytes int64         // of data that the front's records had then
	since time.Duration // since began: how old the oldest record of the front counts as
}

// NewChain is log alone, or, with a front, both: a group that is opened with the front it had.
func NewChain(log Log, front Front, cut record.Seq, bytes int64) *Chain {
	c := &Chain{Log: log}
	if front != nil {
		c.attach(front, cut, bytes, time.Since(began))
	}
	return c
}

func (c *Chain) attach(front Front, cut record.Seq, bytes int64, since time.Duration) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.front, c.cut, c.base, c.bytes, c.since = front, cut, front.Cursors().Trimmed, bytes, since
}

// Cursors are those of both as one log.
func (c *Chain) Cursors() Cursors {
	own := c.Log.Cursors()
	if trimmed, cut := c.carried(); trimmed < cut {
		own.Trimmed = trimmed
	}
	return own
}

// carried is how far the front is freed, and where it ends; both 0: there is none.
func (c *Chain) carried() (trimmed, cut record.Seq) {
	c.mu.RLock()
	defer c.mu.RUnlock()
	if c.front == nil {
		return 0, 0
	}
	return c.front.Cursors().Trimmed, c.cut
}

// Read does not read beyond the front's end in one call.
func (c *Chain) Read(from record.Seq, maxRecords, maxBytes int) ([]record.Record, error) {
	c.mu.RLock()
	if c.front != nil && from <= c.cut {
		defer c.mu.RUnlock()
		return c.front.Read(from, maxRecords, maxBytes)
	}
	c.mu.RUnlock()
	return c.Log.Read(from, maxRecords, maxBytes)
}

// entries is Read for who wants to know what the records touch. Of a front, of which memory has no list and which may have
// gigabytes, it reads no data: hosts may wait for it.
func (c *Chain) entries(from record.Seq) ([]record.Record, error) {
	c.mu.RLock()
	if c.front != nil && from <= c.cut {
		defer c.mu.RUnlock()
		return c.front.Entries(from, replayRecords)
	}
	c.mu.RUnlock()
	return c.Log.Read(from, replayRecords, replayBytes)
}

// Trim frees of both what lies at or below upTo.
func (c *Chain) Trim(upTo record.Seq) error {
	c.mu.RLock()
	defer c.mu.RUnlock()
	if c.front != nil {
		if err := c.front.Trim(min(upTo, c.cut)); err != nil {
			return fmt.Errorf("what was carried here: %w", err)
		}
		if upTo <= c.cut {
			return nil
		}
	}
	return c.Log.Trim(upTo)
}

// Reset begins the log anew, which never happens while there is a front.
func (c *Chain) Reset(base record.Seq, table record.Table, meta []byte) error {
	if _, cut := c.carried(); cut != 0 {
		return fmt.Errorf("%w: the log still has records up to %d that were carried here", ErrBusy, cut)
	}
	return c.Log.Reset(base, table, meta)
}

// Close closes both.
func (c *Chain) Close() error {
	front := c.take()
	err := c.Log.Close()
	if front != nil {
		if failed := front.Close(); err == nil {
			err = failed
		}
	}
	return err
}

func (c *Chain) take() Front {
	c.mu.Lock()
	defer c.mu.Unlock()
	front := c.front
	c.front, c.cut = nil, 0
	return front
}

// left is how many bytes of the front lie behind a record, by the share of its records, and since when they wait; false:
// none do.
func (c *Chain) left(after record.Seq) (bytes int64, since time.Duration, ok bool) {
	c.mu.RLock()
	defer c.mu.RUnlock()
	if c.front == nil || after >= c.cut {
		return 0, 0, false
	}
	after = max(after, c.base)
	return int64(float64(c.bytes) * float64(c.cut-after) / float64(max(c.cut-c.base, 1))), c.since, true
}

// carriedLeft is what of the front of the group's log, if it has one, lies behind a record.
func (g *Group) carriedLeft(after record.Seq) (bytes int64, since time.Duration, ok bool) {
	if c, chained := g.log.(*Chain); chained {
		return c.left(after)
	}
	return 0, 0, false
}

// ownFrom is where the group's own log begins: behind what was carried here, which is on no device of this node by way of
// the log.
func (g *Group) ownFrom() record.Seq {
	if c, ok := g.log.(*Chain); ok {
		return c.Log.Cursors().Trimmed
	}
	return g.log.Cursors().Trimmed
}

// heldFrom is the first record from one on that the log has or will have. Between a front and the log behind it some may be
// missing: those that a subscriber out of the stream had marked, durably, before the front was put there.
func (g *Group) heldFrom(from record.Seq) record.Seq {
	own := g.log
	if c, ok := own.(*Chain); ok {
		if trimmed, cut := c.carried(); max(from, trimmed+1) <= cut {
			return max(from, trimmed+1)
		}
		own = c.Log
	}
	return max(from, own.Cursors().Trimmed+1)
}

// PutFront puts in front of the group's log what its subscriber still lacks of the log before: records up to cut, where
// this one began, all durable. One in the stream gets them before all that is numbered here; for one that is out of it
// they are marked, durably, and may go. age is how old the oldest of them is, bytes how much data they have. The front is
// the group's from then on. Repeated, it changes nothing.
func (g *Group) PutFront(name string, front Front, cut record.Seq, bytes int64, age time.Duration) error {
	c, ok := g.log.(*Chain)
	if !ok {
		return fmt.Errorf("%w: the log of group %s cannot take a front", ErrRole, g.cfg.Name)
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	g.rounds.Lock() // nothing is trimmed meanwhile
	defer g.rounds.Unlock()
	if err := g.Err(); err != nil {
		return err
	}
	if _, has := c.carried(); has != 0 {
		return nil
	}
	f := front.Cursors()
	s := g.Subscriber(name)
	switch {
	case s == nil:
		return fmt.Errorf("%w: group %s has no subscriber %s", ErrRole, g.cfg.Name, name)
	case f.Appended != cut || f.Durable != cut || c.Log.Cursors().Trimmed < cut:
		return fmt.Errorf("%w: what was carried is durable up to %d and ends at %d, the log goes on from %d", ErrRole, f.Durable, f.Appended, cut)
	case s.State() == SubResyncing:
		return fmt.Errorf("%w: subscriber %s is %s", ErrRole, name, s.State())
	}
	c.attach(front, cut, bytes, time.Since(began)-age)
	if s.State() == SubSuspended {
		if err := s.markRange(f.Trimmed+1, cut); err != nil {
			g.cfg.Logger.Error("marking by what was carried failed, all is marked", "subscriber", name, "error", err)
			s.markAll()
		}
		if err := s.flushMaps(); err != nil {
			return g.fail(fmt.Errorf("changed map of %s: %w", name, err))
		}
	} else {
		s.lackFrom(f.Trimmed, cut)
	}
	return g.saveMeta(func(*meta) {})
}

// lackFrom takes the cursors back to base, if they say no more than that the log begins at cut.
func (s *Subscriber) lackFrom(base, cut record.Seq) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.durable > cut {
		return
	}
	s.stored, s.durable, s.applied, s.acked = base, base, base, base
	s.relied = min(s.relied, base)
	s.ackStored.Store(uint64(base))
	s.ackDurable.Store(uint64(base))
	s.changed.Broadcast()
}

// FreeFront frees what nobody needs of the front, by a checkpoint if there is anything, and says whether all of it may
// go: the subscriber has it, as Retain counts, or has it marked. Nothing is freed before that.
func (g *Group) FreeFront(ctx context.Context, name string) (done bool, err error) {
	c, ok := g.log.(*Chain)
	if !ok {
		return false, nil
	}
	_, cut := c.carried()
	s := g.Subscriber(name)
	if cut == 0 || s == nil {
		return false, nil
	}
	if keep, holds := s.keeps(); holds && keep < cut {
		return false, nil
	}
	if err := g.Checkpoint(ctx); err != nil {
		return false, err
	}
	trimmed, cut := c.carried()
	return cut != 0 && trimmed >= cut, nil
}

// TakeFront takes away a front that is freed whole (FreeFront), and closes it.
func (g *Group) TakeFront() error {
	c, ok := g.log.(*Chain)
	if !ok {
		return nil
	}
	if trimmed, cut := c.carried(); trimmed < cut {
		return fmt.Errorf("%w: records %d to %d of what was carried are still needed", ErrBusy, trimmed+1, cut)
	}
	if front := c.take(); front != nil {
		return front.Close()
	}
	return nil
}

// CarriedLeft is what the front of the log still holds for a subscriber, in records and bytes of their data, the latter
// by share.
func (g *Group) CarriedLeft(name string) (records, bytes int64) {
	s := g.Subscriber(name)
	c, ok := g.log.(*Chain)
	if s == nil || !ok {
		return 0, 0
	}
	_, durable, _ := s.Cursor()
	_, cut := c.carried()
	if left, _, some := c.left(durable); some && cut > durable {
		return int64(cut - durable), left
	}
	return 0, 0
}
