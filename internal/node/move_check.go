package node

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"

	"gantline/internal/block"
	"gantline/internal/control"
	"gantline/internal/migrate"
	"gantline/internal/record"
	"gantline/internal/volume"
)

// Before a commit lets go of the source, source and target are compared as of the cut. The source is sealed, so its image
// is that of the cut. The target knows which blocks hosts have written since (cutName); all others are to be what the source
// has. What differs is listed, and nothing is changed. A check is kept nowhere: one that dies with its target is begun anew.

const (
	checkRetry = 300 * time.Millisecond // before the source is asked again
	checkAsk   = 10 * time.Second       // for one answer of its
	checkRest  = 3                      // while hosts are at work: times as long as the last extent took
	maxRest    = 50 * time.Millisecond
)

// moveCheck is one comparison, from its begin on for as long as the process has the move.
type moveCheck struct {
	o    *targetOps
	stop context.CancelFunc

	mu      sync.Mutex
	st      control.MoveCheck
	last    control.VerifyExtent // that differs
	blocked error                // why it waits

	hostOps uint64
}

// status is where the check is.
func (c *moveCheck) status() (st control.MoveCheck, blocked error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	st = c.st
	st.Different = slices.Clone(st.Different)
	return st, c.blocked
}

// moveCompare begins the comparison that a commit asks for, or says where it is.
func (n *Node) moveCompare(in control.MoveCompare) (control.MoveCheck, error) {
	n.config.Lock() // the move does not end meanwhile
	defer n.config.Unlock()
	m, _, err := n.move(in.ID)
	if err != nil {
		return control.MoveCheck{}, err
	}
	t := m.target.Load()
	if t == nil {
		return control.MoveCheck{}, notFound("migration %s: node %s is not its target, or has ended it", in.ID, n.cfg.Name)
	}
	if rec, _ := t.View(); rec.Stage != migrate.Filled {
		return control.MoveCheck{}, refused("migration %s: the target is not filled yet (%s)", in.ID, rec.Stage)
	}
	c := m.ops.check.Load()
	if c == nil || c.st.Try != in.Try { // Try does not change
		if c, err = m.ops.beginCheck(in.Try); err != nil {
			return control.MoveCheck{}, err
		}
	}
	st, _ := c.status()
	return st, nil
}

// beginCheck begins anew; an earlier check is given up.
func (o *targetOps) beginCheck(try int) (*moveCheck, error) {
	if old := o.check.Load(); old != nil {
		old.stop()
	}
	ctx, stop := context.WithCancel(o.checks.ctx)
	c := &moveCheck{o: o, stop: stop}
	c.st = control.MoveCheck{Try: try, State: control.CheckRunning, Different: []control.VerifyExtent{}}
	for _, d := range o.disk {
		c.st.TotalBytes += d.mv.Size
	}
	vg := o.running()
	switch {
	case vg == nil:
		stop()
		return nil, refused("group %s is not open on node %s", o.spec.Group.Name, o.n.cfg.Name)
	case vg.Subscriber(cutName) == nil:
		c.st.State, c.st.WrittenBytes = control.CheckSkipped, c.st.TotalBytes
		c.st.Reason = fmt.Sprintf("node %s has no map of what hosts have written since the cut (the move was begun by an older "+
			"version, or the map was lost): all counts as written", o.n.cfg.Name)
	case !o.checks.begin(func() { c.run(ctx) }):
		stop()
		return nil, refused("node %s is stopping", o.n.cfg.Name)
	}
	o.check.Store(c)
	return c, nil
}

// run compares all volumes, window by window. What cannot be had now is waited for.
func (c *moveCheck) run(ctx context.Context) {
	defer c.stop()
	before := int64(0)
	for _, d := range c.o.disk {
		for off := int64(0); off < d.mv.Size; off += zeroWindow {
			n := min(zeroWindow, d.mv.Size-off)
			if !c.window(ctx, d, off, n, before) {
				return
			}
			c.reached(before + off + n)
		}
		before += d.mv.Size
	}
	c.o.n.cfg.Point(control.PointCompare, "after")
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.st.State = control.CheckSame; c.st.Places > 0 {
		c.st.State = control.CheckDifferent
	}
	c.blocked = nil
	c.st.WrittenBytes = c.o.writtenBytes()
	c.o.n.log.Info("source and target compared", "migration", c.o.spec.ID, "state", c.st.State, "places", c.st.Places,
		"written", c.st.WrittenBytes, "different", c.st.List(8))
}

func (o *targetOps) writtenBytes() (sum int64) {
	for _, d := range o.disk {
		sum += min(d.written.Count()*markSize, d.mv.Size)
	}
	return sum
}

func (c *moveCheck) reached(bytes int64) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.st.DoneBytes = bytes
}

// persist does something until it succeeds; false: ctx has ended before.
func (c *moveCheck) persist(ctx context.Context, do func(ctx context.Context) error) bool {
	for ctx.Err() == nil {
		try, cancel := context.WithTimeout(ctx, checkAsk)
		err := do(try)
		cancel()
		c.mu.Lock()
		told := c.blocked != nil
		c.blocked = err
		c.mu.Unlock()
		if err == nil {
			return true
		}
		if !told && ctx.Err() == nil {
			c.o.n.log.Info("comparing source and target waits", "migration", c.o.spec.ID, "cause", err)
		}
		select {
		case <-ctx.Done():
		case <-time.After(checkRetry):
		}
	}
	return false
}

// window compares what is not zeros on both sides. Extents are asked for anew: what earlier answers said may not be so any more.
func (c *moveCheck) window(ctx context.Context, d *targetDisk, off, n, before int64) bool {
	var parts []block.Extent
	ok := c.persist(ctx, func(ctx context.Context) error {
		there, err := d.peer.extentsNow(ctx, off, n)
		if err != nil {
			return fmt.Errorf("extents at the source %s: %w", d.mv.Source, err)
		}
		vg := c.o.running()
		if vg == nil {
			return errors.New("the group is closed")
		}
		here, err := vg.Data(record.VolumeNumber(d.mv.Number), off, n)
		if err != nil {
			return fmt.Errorf("extents of %s: %w", d.mv.Target, err)
		}
		parts = checkParts(off, n, dataIn(there, off, n), here)
		return nil
	})
	for _, e := range parts {
		start := time.Now()
		compare := func(ctx context.Context) error { return c.compare(ctx, d, e) }
		if !ok || c.o.pace(ctx, e.Length) != nil || !c.persist(ctx, compare) {
			return false
		}
		c.reached(before + e.Offset + e.Length)
		c.rest(ctx, time.Since(start))
	}
	return ok
}

// checkParts is what of a window may hold data by one of two lists, in whole blocks, as extents that one answer covers.
func checkParts(off, n int64, lists ...[]block.Extent) (parts []block.Extent) {
	var z zeroAnswer
	for _, list := range lists {
		for _, e := range list {
			from, to := max(e.Offset, off), min(e.Offset+e.Length, off+n)
			for b := (from - off) / markSize; from < to && b*markSize < to-off; b++ {
				z[b/64] |= 1 << (b % 64)
			}
		}
	}
	for b := int64(0); b*markSize < n; b++ {
		if z[b/64]&(1<<(b%64)) == 0 {
			continue
		}
		from, to := off+b*markSize, min(off+(b+1)*markSize, off+n)
		if k := len(parts) - 1; k >= 0 && parts[k].Offset+parts[k].Length == from && from%volume.DigestExtent != 0 {
			parts[k].Length += to - from
			continue
		}
		parts = append(parts, block.Extent{Offset: from, Length: to - from})
	}
	return parts
}

// compare compares one extent. Both sides read at the same time; whether hosts have written there is looked at behind that.
func (c *moveCheck) compare(ctx context.Context, d *targetDisk, e block.Extent) error {
	vg, n := c.o.running(), record.VolumeNumber(d.mv.Number)
	if vg == nil {
		return errors.New("the group is closed")
	}
	sub := vg.Subscriber(cutName)
	if sub == nil {
		return errors.New("the map of what has been written since the cut is closed")
	}
	if sub.AllMarked(n, e.Offset, e.Length) {
		return nil
	}
	var here []byte
	var failed error
	var read sync.WaitGroup
	read.Go(func() { here, failed = vg.Sums(ctx, n, e.Offset, e.Length) })
	var there control.Digests
	in := control.DigestsAsked{ID: c.o.spec.ID, Number: d.mv.Number, Offset: e.Offset, Length: e.Length}
	err := c.o.n.call(ctx, c.o.spec.Source, control.CallMigrateDigests, in, &there)
	read.Wait()
	switch {
	case err != nil:
		return fmt.Errorf("source %s: %w", c.o.spec.Source, err)
	case ctx.Err() != nil:
		return context.Cause(ctx)
	case vg.Err() != nil:
		return vg.Err()
	case failed != nil:
		c.differ(d, []block.Extent{e}, failed.Error())
		return nil
	case there.Error != "":
		c.differ(d, []block.Extent{e}, there.Error)
		return nil
	}
	c.o.n.cfg.Point(control.PointCompare, "before")
	found, err := sub.Differ(n, e.Offset, e.Length, there.Sums, here)
	if err != nil {
		return err
	}
	c.differ(d, found, "")
	return nil
}

// differ notes what differs, or could not be read.
func (c *moveCheck) differ(d *targetDisk, found []block.Extent, unreadable string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if unreadable != "" {
		c.st.Unreadable = unreadable
	}
	for _, e := range found {
		next := c.last.Volume == d.mv.Target && c.last.Offset+c.last.Length == e.Offset
		c.last = control.VerifyExtent{Volume: d.mv.Target, Offset: e.Offset, Length: e.Length}
		c.st.Add(c.last, next)
	}
}

// rest stands back while hosts are at work here.
func (c *moveCheck) rest(ctx context.Context, took time.Duration) {
	vg := c.o.running()
	if vg == nil {
		return
	}
	ops := vg.HostOps()
	if ops == c.hostOps {
		return
	}
	c.hostOps = ops
	select {
	case <-ctx.Done():
	case <-time.After(min(checkRest*took, maxRest)):
	}
}

// moveDigests answers at a sealed source with digests of what it holds, which is its image at the cut.
func (n *Node) moveDigests(ctx context.Context, in control.DigestsAsked) (control.Digests, error) {
	n.mu.Lock()
	known := n.moves[in.ID] != nil
	n.mu.Unlock()
	rec := n.state.move(in.ID)
	if !known || rec == nil {
		return control.Digests{}, notFound("migration %s is not known on node %s", in.ID, n.cfg.Name)
	}
	g := n.group(rec.Spec.Group.Name)
	if rec.Role != control.RoleSource || g == nil || !g.sealed() {
		return control.Digests{}, refused("migration %s: node %s is not its sealed source", in.ID, n.cfg.Name)
	}
	vg := g.running()
	if vg == nil {
		return control.Digests{}, refused("group %s is closed on node %s", g.name, n.cfg.Name)
	}
	n.cfg.Point(control.PointCompare, "before")
	sums, err := vg.Sums(ctx, record.VolumeNumber(in.Number), in.Offset, in.Length)
	switch {
	case err == nil:
	case errors.Is(err, block.ErrRange) || errors.Is(err, volume.ErrUnknownVolume):
		return control.Digests{}, invalid("migration %s: volume %d, %d bytes at %d: %v", in.ID, in.Number, in.Length,
			in.Offset, err)
	case ctx.Err() != nil || vg.Err() != nil:
		return control.Digests{}, err
	default:
		return control.Digests{Error: fmt.Sprintf("node %s: %v", n.cfg.Name, err)}, nil
	}
	return control.Digests{Sums: sums}, nil
}
