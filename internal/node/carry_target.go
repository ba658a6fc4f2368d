package node

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"gantline/internal/block"
	"gantline/internal/control"
	"gantline/internal/journal"
	"gantline/internal/migrate"
	"gantline/internal/record"
	"gantline/internal/volume"
)

// carrier brings what the secondary lacks of the source's log to the target of a move, into a log of its own.
//
//	made      before hosts are held, as large as the backlog then, with room to spare; made anew if that has grown
//	fetched   behind the cut, while the target serves: each record's checksum is that of the host's write
//	whole     durable up to the fence. It is noted, put in front of the group's log, and the source stops sending
//
// Until it is noted the source sends as in any other move, and what is here is nobody's: dead before that, it is gone on with,
// or made anew. Should the source have sent all first, it is dropped.
type carrier struct {
	o    *targetOps
	path string
	stop context.CancelFunc
	work sync.WaitGroup

	mu      sync.Mutex
	jnl     *journal.Journal // nil: not made, or the group's
	size    int64            // of its device
	need    int64            // of what there is to be carried, when last heard
	heard   bool
	base    record.Seq
	cut     record.Seq
	total   int64 // bytes, once the cut is known
	done    int64
	whole   bool
	ended   bool
	blocked error
}

const (
	carryTick  = 300 * time.Millisecond
	carrySync  = 32 << 20 // bytes between syncs
	carryCall  = 5 * time.Second
	carryGrace = 2 * time.Second // how long the source is waited for to be told that it may stop
)

// carryMeta is the blob of a log of what is carried: whose it is.
type carryMeta struct {
	Move string `json:"move"`
	Cut  uint64 `json:"cut"`
}

// startCarry goes on with the carrying; nothing is left of it once the record says that all is here, or that the source has
// sent it.
func (o *targetOps) startCarry(rec *migrate.Record) {
	if !rec.Spec.Carries() || rec.Carried {
		return
	}
	switch rec.Stage {
	case migrate.Registered, migrate.Through, migrate.Ordered, migrate.Adopted, migrate.Opened:
	default:
		return
	}
	ctx, cancel := context.WithCancel(o.ctx)
	c := &carrier{o: o, path: o.n.carriedPath(rec.Spec.ID), stop: cancel}
	o.carry.Store(c)
	c.work.Go(func() { c.run(ctx) })
}

func (c *carrier) run(ctx context.Context) {
	for ctx.Err() == nil {
		over, err := c.step(ctx)
		if ctx.Err() != nil {
			return
		}
		c.mu.Lock()
		told := c.blocked != nil && err != nil && c.blocked.Error() == err.Error()
		c.blocked = err
		c.mu.Unlock()
		if err != nil && !told {
			c.o.n.log.Warn("the backlog is not carried yet", "id", c.o.spec.ID, "cause", err)
		}
		if over {
			return
		}
		select {
		case <-ctx.Done():
		case <-time.After(carryTick):
		}
	}
}

// step does what the stage of the move allows; over: nothing is left.
func (c *carrier) step(ctx context.Context) (over bool, err error) {
	rec, _ := c.o.m.target.Load().View()
	switch rec.Stage {
	case migrate.Registered, migrate.Through, migrate.Ordered, migrate.Adopted:
		page, err := c.ask(ctx, 0, 0)
		if err != nil {
			return false, err
		}
		return false, c.ensure(withSlack(page.Size), page.Size)
	case migrate.Opened:
		if rec.Handover.Copy.Suspended {
			return true, nil // what it lacks is marked
		}
		return c.fetch(ctx, record.Seq(rec.Cut()))
	}
	return true, nil
}

func (c *carrier) ask(ctx context.Context, from record.Seq, at int64) (control.CarryPage, error) {
	ctx, cancel := context.WithTimeout(ctx, carryCall)
	defer cancel()
	var page control.CarryPage
	in := control.CarryAsk{ID: c.o.spec.ID, From: uint64(from), At: at}
	if err := c.o.n.call(ctx, c.o.spec.Source, control.CallMigrateCarry, in, &page); err != nil {
		return page, fmt.Errorf("what node %s has to carry: %w", c.o.spec.Source, err)
	}
	c.mu.Lock()
	c.need, c.heard = page.Size, true
	c.mu.Unlock()
	return page, nil
}

// ensure has a log of at least need bytes, made with want if it has to be made. What was in one that is too small is dropped: the
// source has it.
func (c *carrier) ensure(want, need int64) error {
	c.mu.Lock()
	jnl, size := c.jnl, c.size
	c.mu.Unlock()
	if jnl == nil {
		var err error
		if jnl, size, err = c.o.n.openJournalAt(c.path); err != nil {
			c.o.n.log.Warn("the log for what is carried is made anew", "id", c.o.spec.ID, "cause", err)
			jnl, size = nil, 0
		}
		if jnl != nil {
			if err := jnl.Resume(); err != nil {
				return errors.Join(err, jnl.Close())
			}
		}
	}
	if jnl != nil && size >= need {
		c.keep(jnl, size)
		return nil
	}
	if jnl != nil {
		if err := c.discard(jnl); err != nil {
			return err
		}
	}
	jnl, err := c.make(max(want, need))
	if err != nil {
		return err
	}
	c.keep(jnl, max(want, need))
	return nil
}

func (c *carrier) keep(jnl *journal.Journal, size int64) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.jnl, c.size = jnl, size
}

// make makes the log empty. All of its device is written: the room is this log's from then on.
func (c *carrier) make(size int64) (*journal.Journal, error) {
	n := c.o.n
	size = (size + 4095) &^ 4095
	if err := n.removeMap(c.path); err != nil {
		return nil, err
	}
	free, err := freeBytes(c.path)
	if err != nil {
		return nil, err
	}
	if size > free {
		return nil, refused("migration %s: %d bytes are needed for what is to be carried, %d are free below %s: make room; the source keeps "+
			"it until then", c.o.spec.ID, size, free, n.cfg.DataDir)
	}
	n.cfg.Point(control.PointCarryMake, "before")
	dev, err := n.makeDevice("what migration "+c.o.spec.ID+" carries", c.path, size)
	if err != nil {
		return nil, err
	}
	if err := errors.Join(journal.Create([]block.Device{dev}, newJournalID()), dev.Close()); err != nil {
		return nil, errors.Join(err, n.removeMap(c.path))
	}
	jnl, _, err := n.openJournalAt(c.path)
	if err == nil {
		err = jnl.Resume()
	}
	n.cfg.Point(control.PointCarryMake, "after")
	return jnl, err
}

// near is nil once there is room for all that is to be carried: only then hosts are held. One that is sealed already goes on in
// any case; the room is made behind it.
func (c *carrier) near(ctx context.Context) (sealed bool, err error) {
	page, err := c.ask(ctx, 0, 0)
	if err != nil {
		return false, err
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	switch {
	case page.Cut != 0:
		return true, nil
	case c.jnl == nil && c.blocked != nil:
		return false, c.blocked
	case c.jnl == nil || c.size < page.Size:
		return false, fmt.Errorf("room for %d bytes to be carried is being made", page.Size)
	}
	return false, nil
}

// nearCarry: see Near. Hosts that are held since before a restart go back to the source, unless that is sealed.
func (o *targetOps) nearCarry(ctx context.Context) error {
	c := o.carry.Load()
	if c == nil {
		return nil
	}
	sealed, err := c.near(ctx)
	if sealed || err == nil {
		return nil
	}
	c.mu.Lock()
	heard := c.heard
	c.mu.Unlock()
	if !heard {
		return err // nobody knows whether the source is sealed: who is held stays so
	}
	if relay := o.relayAsOrdered(); relay != nil {
		return relay
	}
	return err
}

// end stops the carrying in this run. What is here stays.
func (c *carrier) end() {
	if c == nil {
		return
	}
	c.stop()
	c.work.Wait()
	c.mu.Lock()
	jnl := c.jnl
	c.jnl, c.ended = nil, true
	c.mu.Unlock()
	if jnl != nil {
		if err := jnl.Close(); err != nil {
			c.o.n.log.Warn("closing what was carried", "id", c.o.spec.ID, "cause", err)
		}
	}
}

// drop ends it for good: nobody needs what is here.
func (o *targetOps) dropCarry() error {
	if !o.spec.Carries() {
		return nil
	}
	o.carry.Swap(nil).end()
	return o.n.removeMap(o.n.carriedPath(o.spec.ID))
}

// drainedHere: all that the secondary lacks is here, durably, and the source has been told, if it can be, that it need not send
// more. The note comes first: from then on this node feeds the secondary with it, whatever dies.
func (o *targetOps) drainedHere(ctx context.Context) (bool, int64, error) {
	t := o.m.target.Load()
	rec, _ := t.View()
	c := o.carry.Load()
	if !rec.Carried {
		if c == nil || !c.isWhole() {
			return false, 0, nil
		}
		o.n.cfg.Point(control.PointCarry, "before")
		if err := t.Update(func(r *migrate.Record) { r.Carried, r.CarriedBytes = true, c.record().Bytes }); err != nil {
			return false, 0, err
		}
		o.n.cfg.Point(control.PointCarry, "after")
	}
	if c != nil {
		if err := o.putFront(c); err != nil {
			return false, 0, err
		}
	}
	wan := rec.Handover.Copy.WANBytes
	if rec.Abandoned {
		return true, wan, nil // nobody is fed any more
	}
	var end control.CarryEnd
	call, cancel := context.WithTimeout(ctx, carryGrace)
	defer cancel()
	if err := o.n.call(call, o.spec.Source, control.CallMigrateCarried, control.MigrationID{ID: o.spec.ID}, &end); err != nil {
		o.n.log.Warn("the source was not told that it need not send any more", "id", o.spec.ID, "cause", err)
		return true, wan, nil // the secondary forgets it
	}
	if rec.Handover.Copy.Marked {
		if err := o.settleChanged(call); err != nil {
			o.n.log.Warn("what the source has copied last is copied again", "id", o.spec.ID, "cause", err)
		}
	}
	return true, end.WANBytes, nil
}

// putFront gives the log to the group.
func (o *targetOps) putFront(c *carrier) error {
	c.mu.Lock()
	jnl, cut, bytes := c.jnl, c.cut, c.done
	c.mu.Unlock()
	if jnl == nil {
		return errors.New("the log of what was carried is closed")
	}
	g := o.group()
	o.n.cfg.Point(control.PointCarryFront, "before")
	rec, _ := o.m.target.Load().View()
	age := time.Duration(rec.Handover.Copy.LagMS) * time.Millisecond
	if err := g.vg.PutFront(secondaryName, groupLog{jnl}, cut, bytes, age); err != nil {
		return err
	}
	o.carry.Store(nil)
	c.mu.Lock()
	c.jnl = nil
	c.mu.Unlock()
	c.end()
	o.n.cfg.Point(control.PointCarryFront, "after")
	g.watchFront()
	return nil
}

// carriedRecord is what Save notes of the log with the record that it is whole.
func (c *carrier) record() *carriedRecord {
	c.mu.Lock()
	defer c.mu.Unlock()
	return &carriedRecord{Move: c.o.spec.ID, Device: c.path, Cut: uint64(c.cut), Bytes: c.done}
}

func (c *carrier) isWhole() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.whole
}

// carryStatus tells how far it is.
func (o *targetOps) carryStatus(st *control.MigrationStatus, rec *migrate.Record) {
	if !o.spec.Carries() {
		return
	}
	if rec.Carried {
		st.Carry = &control.CarryStatus{Total: rec.CarriedBytes, Done: rec.CarriedBytes, Whole: true}
		return
	}
	c := o.carry.Load()
	if c == nil {
		return
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.cut != 0 { // all of it is there only when that is noted
		st.Carry = &control.CarryStatus{Total: max(c.total, c.done+1), Done: c.done}
	}
	if c.blocked != nil && (st.BlockedOn == "" || c.jnl == nil) {
		st.BlockedOn = "carry: " + c.blocked.Error()
	}
}

var _ volume.Front = groupLog{}
