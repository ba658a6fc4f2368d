package node

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/time/rate"

	"gantline/internal/block"
	"gantline/internal/control"
	"gantline/internal/copier"
	"gantline/internal/migrate"
	"gantline/internal/receiver"
	"gantline/internal/record"
	"gantline/internal/wire"
)

const (
	copyTick      = 100 * time.Millisecond // between looks at the source
	copyRetry     = 300 * time.Millisecond // before it is joined again
	copySyncDelay = 50 * time.Millisecond
	copySyncBytes = 8 << 20
	copyBatch     = 512 << 10 // bytes that are fetched at once
	copyWorkers   = 4
	// copyClose is how far behind the target may be when it begins to hold hosts, in time; copyBudget how long they are
	// held at most for it to come in step. Then they go on at the source, and it is tried again.
	copyClose  = 250 * time.Millisecond
	copyBudget = time.Second
	// copyPatience is how long they go on at the source at least, and copyTold how often that is told.
	copyPatience = 2 * time.Second
	copyTold     = 30 * time.Second
)

// copyFirst fills the target of a copy-first move before hosts are led to it, and keeps it in step from then on. It
// begins with the present maps, in each run of this node and of the source anew; until the move is decided its image is
// nobody's truth.
type copyFirst struct {
	o    *targetOps
	rec  record.EpochID // of the source
	stop context.CancelFunc
	work sync.WaitGroup

	mu      sync.Mutex
	run     *copyRun // now; nil: the source has not been joined
	blocked error    // why the copy waits
	behind  error    // why hosts went back to the source the last time
	backAt  time.Time
	toldAt  time.Time
	brought int64  // bytes fetched by runs that are over
	reached uint64 // the image is complete, durably, up to this cut: nothing more is written
	wan     int64  // what the source had put on the link to the secondary, when last heard

	began atomic.Bool // kill points
	done  atomic.Bool
}

// copyRun is the copy in one run of the source.
type copyRun struct {
	join  control.CopyJoin
	image *copyImage
	rcv   *receiver.Receiver
	ctx   context.Context
	busy  atomic.Bool // hosts use the source

	streams sync.WaitGroup // joined when nobody finds the run any more
}

// moveCopy begins to fill the target of a copy-first move. Repeated, it changes nothing.
func (n *Node) moveCopy(_ context.Context, id string) error {
	n.config.Lock() // it is not cancelled meanwhile
	defer n.config.Unlock()
	m, _, err := n.move(id)
	if err != nil {
		return err
	}
	t := m.target.Load()
	if t == nil || !m.ops.spec.CopyFirst() {
		return refused("migration %s: node %s is not the target of a copy-first move", id, n.cfg.Name)
	}
	if m.ops.copy.Load() != nil {
		return nil
	}
	if err := t.Update(func(r *migrate.Record) { r.Copying = true }); err != nil {
		return err
	}
	rec, _ := t.View()
	m.ops.startCopy(&rec)
	return nil
}

// startCopy begins the copy, unless the record says that it has not been ordered, or is over.
func (o *targetOps) startCopy(rec *migrate.Record) {
	if !rec.Copying {
		return
	}
	switch rec.Stage {
	case migrate.Registered, migrate.Through, migrate.Ordered:
	default:
		return
	}
	ctx, stop := context.WithCancel(o.ctx)
	c := &copyFirst{o: o, stop: stop, rec: record.EpochID{Number: o.spec.Group.Epoch, Node: o.spec.Source}}
	o.copy.Store(c)
	c.work.Go(func() { c.keep(ctx) })
}

// end joins what the copy runs. The streams that it has taken end with it.
func (c *copyFirst) end() {
	if c == nil {
		return
	}
	c.stop()
	c.work.Wait()
}

// keep joins the source again whenever a run is over.
func (c *copyFirst) keep(ctx context.Context) {
	for ctx.Err() == nil {
		err := c.once(ctx)
		if ctx.Err() != nil {
			return
		}
		c.block(err)
		select {
		case <-ctx.Done():
		case <-time.After(copyRetry):
		}
	}
}

func (c *copyFirst) block(err error) {
	c.mu.Lock()
	was := c.blocked
	c.blocked = err
	c.mu.Unlock()
	if err != nil && (was == nil || was.Error() != err.Error()) {
		c.o.n.log.Info("copying to the target waits", "id", c.o.spec.ID, "cause", err)
	}
}

// once joins the source, and copies until that is over.
func (c *copyFirst) once(parent context.Context) (err error) {
	ctx, cancel := context.WithCancelCause(parent)
	defer cancel(nil)
	var join control.CopyJoin
	if err := c.ask(ctx, control.CallMigrateJoin, control.MigrationID{ID: c.o.spec.ID}, &join); err != nil {
		return fmt.Errorf("joining the source: %w", err)
	}
	if join.Marked {
		if err := c.takeMarks(ctx, join); err != nil {
			return fmt.Errorf("what has changed: %w", err)
		}
	}
	run, err := c.begin(ctx, join)
	if err != nil {
		return err
	}
	var work sync.WaitGroup
	defer func() {
		c.mu.Lock()
		c.run = nil
		for _, d := range run.image.disks {
			c.brought += d.bytes()
		}
		c.mu.Unlock()
		run.image.close()
		cancel(err)
		work.Wait()
		run.streams.Wait() // nothing of this run is written once another has begun
	}()
	work.Go(func() {
		if err := run.rcv.Run(ctx); err != nil {
			cancel(err)
		}
	})
	work.Go(func() {
		if err := c.fill(ctx, run); err != nil {
			cancel(err)
		}
	})
	return c.follow(ctx, run)
}

func (c *copyFirst) ask(ctx context.Context, method string, in, out any) error {
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	return c.o.n.call(ctx, c.o.spec.Source, method, in, out)
}

// takeMarks makes absent, durably, what the source says to have changed while this side was not in the stream; then the
// source may forget it.
func (c *copyFirst) takeMarks(ctx context.Context, join control.CopyJoin) error {
	for _, d := range c.o.disk {
		for from := int64(0); from >= 0; {
			var out control.CopyMarked
			in := control.CopyMarks{ID: c.o.spec.ID, Run: join.Run, Number: d.mv.Number, From: from}
			if err := c.ask(ctx, control.CallMigrateMarks, in, &out); err != nil {
				return err
			}
			for _, run := range out.Runs {
				for bit := run[0]; bit < run[0]+run[1] && bit < d.present.Bits(); bit++ {
					d.present.Clear(bit)
				}
			}
			from = out.Next
		}
		if err := d.present.Flush(); err != nil {
			return err
		}
	}
	return c.ask(ctx, control.CallMigrateTaken, control.CopyTaken{ID: c.o.spec.ID, Run: join.Run, Token: join.Token}, nil)
}

// begin makes the image, and lets the source's stream in.
func (c *copyFirst) begin(ctx context.Context, join control.CopyJoin) (*copyRun, error) {
	disks := map[record.VolumeNumber]*copyDisk{}
	for _, d := range c.o.disk {
		disks[record.VolumeNumber(d.mv.Number)] = &copyDisk{dev: d.vol.dev, size: d.mv.Size, present: d.present, fetch: d.peer.fetchNow}
	}
	run := &copyRun{join: join, ctx: ctx, image: newCopyImage(record.Seq(join.Base), tableOf(join.Table), disks)}
	rcv, err := receiver.Open(receiver.Config{Group: c.o.spec.Group.Name, Store: run.image, Applier: copyApplier{},
		Applied: record.Seq(join.Base), Save: func([]byte) error { return nil }, Logger: c.o.n.log, SyncDelay: copySyncDelay,
		SyncBytes: copySyncBytes})
	if err == nil {
		err = rcv.Believe(receiver.Permit{Epoch: c.rec})
	}
	if err != nil {
		return nil, err
	}
	run.rcv = rcv
	c.mu.Lock()
	defer c.mu.Unlock()
	c.run = run
	return run, nil
}

// serve takes the source's stream.
func (c *copyFirst) serve(ctx context.Context, in *wire.Incoming) error {
	c.mu.Lock()
	run := c.run
	if run != nil {
		run.streams.Add(1)
		defer run.streams.Done()
	}
	c.mu.Unlock()
	if run == nil {
		return &wire.Error{Kind: wire.KindUnavailable, Message: "the target has not joined yet"}
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	defer context.AfterFunc(run.ctx, cancel)()
	return run.rcv.Handle(ctx, in)
}

// fill brings what is absent, one volume after the other: first what the source has holes for, then the data.
func (c *copyFirst) fill(ctx context.Context, run *copyRun) error {
	limiter := c.o.limiter
	for _, d := range c.o.disk {
		disk := run.image.disks[record.VolumeNumber(d.mv.Number)]
		if err := c.skipHoles(ctx, d, disk); err != nil {
			return err
		}
		if err := c.fillDisk(ctx, run, disk, limiter); err != nil {
			return err
		}
	}
	return nil
}

func (c *copyFirst) skipHoles(ctx context.Context, d *targetDisk, disk *copyDisk) error {
	for off := int64(0); off < d.mv.Size; off += zeroWindow {
		n := min(zeroWindow, d.mv.Size-off)
		for {
			err := disk.skip(off, n, func() ([]block.Extent, error) { return d.peer.extentsNow(ctx, off, n) })
			if err == nil {
				break
			}
			c.block(fmt.Errorf("volume %s: %w", d.mv.Target, err))
			select {
			case <-ctx.Done():
				return context.Cause(ctx)
			case <-time.After(copyRetry):
			}
		}
	}
	return nil
}

func (c *copyFirst) fillDisk(ctx context.Context, run *copyRun, disk *copyDisk, limiter *rate.Limiter) error {
	return copier.New(copier.Config{
		Set: disk, Region: regionSize, Size: func() int64 { return disk.size }, Batch: copyBatch / regionSize, Parallel: copyWorkers,
		Busy: run.busy.Load, Limit: limiter,
		Work: func(ctx context.Context, off, n int64) error {
			ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
			defer cancel()
			err := disk.bring(ctx, off, n)
			if c.began.CompareAndSwap(false, true) && err == nil {
				c.o.n.cfg.Point(control.StepCopy, "before")
			}
			return err
		},
	}).Run(ctx)
}

// follow asks the source again and again how far it is: for what has been fetched, and whether it is still the same.
func (c *copyFirst) follow(ctx context.Context, run *copyRun) error {
	tick := time.NewTicker(copyTick)
	defer tick.Stop()
	ops := uint64(0)
	for {
		fresh := run.image.takeFresh()
		tip, err := c.tip(ctx, run, false)
		switch {
		case ctx.Err() != nil:
			return context.Cause(ctx)
		case errors.Is(err, errRejoin):
			return err
		case err != nil:
			run.image.putBack(fresh)
		default:
			run.image.confirm(fresh, record.Seq(tip.Tip))
			run.busy.Store(tip.HostOps != ops)
			ops = tip.HostOps
		}
		c.block(err)
		if run.image.owes() {
			if _, err := run.image.Sync(); err != nil {
				return err
			}
		}
		durable, _ := run.image.Cursors()
		run.rcv.Applied(min(durable, run.rcv.Status().Durable)) // the image's own flush may be ahead of what it knows of
		if whole, _ := run.image.whole(); whole && c.done.CompareAndSwap(false, true) {
			c.o.n.cfg.Point(control.StepCopy, "after")
		}
		select {
		case <-ctx.Done():
			return context.Cause(ctx)
		case <-tick.C:
		}
	}
}

// errRejoin: the run is over, and another begins.
var errRejoin = errors.New("the copy goes on anew")

// tip asks the source how far it is. A source that has been restarted since it was joined may have lost what fetches have
// seen.
func (c *copyFirst) tip(ctx context.Context, run *copyRun, hasten bool) (control.CopyTip, error) {
	var tip control.CopyTip
	if err := c.ask(ctx, control.CallMigrateTip, control.CopyAsk{ID: c.o.spec.ID, Hasten: hasten}, &tip); err != nil {
		return tip, err
	}
	c.mu.Lock()
	c.wan = max(c.wan, tip.WANBytes)
	c.mu.Unlock()
	switch {
	case tip.Run != run.join.Run:
		return tip, fmt.Errorf("%w: the source was restarted", errRejoin)
	case !tip.Streaming:
		return tip, fmt.Errorf("%w: the source's log was full of what is not here", errRejoin)
	}
	return tip, nil
}

func (d *copyDisk) bytes() int64 {
	d.image.mu.Lock()
	defer d.image.mu.Unlock()
	return d.brought
}

// copyingTo is the copy that fills a group here; nil: none does.
func (n *Node) copyingTo(group string) *copyFirst {
	n.mu.Lock()
	defer n.mu.Unlock()
	for _, m := range n.moves {
		if m.ops != nil && m.ops.spec.Group.Name == group {
			if c := m.ops.copy.Load(); c != nil {
				return c
			}
		}
	}
	return nil
}
