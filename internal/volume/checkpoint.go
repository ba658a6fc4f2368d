package volume

import (
	"context"
	"fmt"
	"time"

	"gantline/internal/record"
)

// Checkpoint writes everything back, makes it durable on the devices and frees what the log need not keep.
func (g *Group) Checkpoint(ctx context.Context) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	return g.checkpoint()
}

// checkpoint, in this order: round → device flushes → present maps → changed maps → the log's owner blob → trim.
//
// Each step makes true what the next one relies on after a crash: a region counts as present only once its data is
// flushed; the checkpoint passes a record only once the device and, for one in a region just fetched, the present map
// hold it; a record is freed only once, for a subscriber that is cut off, its mark is durable (I7).
//
// While the devices are flushed, rounds go on: what they write meanwhile is newer than what the checkpoint speaks for, and
// the log has it.
func (g *Group) checkpoint() error {
	g.checkpoints.Lock()
	defer g.checkpoints.Unlock()
	reached, covered, done, err := g.beginCheckpoint()
	if err != nil {
		return err
	}
	if err := g.flushDevices(reached); err != nil {
		return err
	}
	g.rounds.Lock()
	defer g.rounds.Unlock()
	g.ckpt = max(g.ckpt, reached)
	g.covered.Store(uint64(max(covered, record.Seq(g.covered.Load()))))
	g.snapshot = true
	g.ckptAt = time.Now()
	return g.trim(done)
}

// beginCheckpoint writes everything back and returns the last record that the devices then have, with all before it; and
// the done requests to be kept with it, with the last record that they cover. What hosts write between that snapshot and
// the round reaches the devices and is not in it: the log keeps it for its session and number.
func (g *Group) beginCheckpoint() (reached, covered record.Seq, done []byte, err error) {
	g.rounds.Lock()
	defer g.rounds.Unlock()
	g.sinceCheckpoint.Store(0)
	// The snapshot of done requests must not know more than the durable log: after a power loss a replay of a write
	// that is gone must execute. So: snapshot, then sync past it.
	done, covered = g.doneSnapshot()
	if err := g.syncTo(covered); err != nil {
		return 0, 0, nil, err
	}
	if err := g.round(); err != nil {
		return 0, 0, nil, err
	}
	reached = g.roundTip
	if g.postponed != 0 {
		reached = min(reached, g.postponed-1)
	}
	return reached, covered, done, nil
}

// doneSnapshot is the encoded table of done requests and the tip that it belongs to.
func (g *Group) doneSnapshot() ([]byte, record.Seq) {
	g.done.mu.Lock()
	defer g.done.mu.Unlock()
	return g.done.encodeLocked(maxDoneBytes), g.Tip()
}

// flushDevices makes the records up to seq, which have been written, durable on the devices.
func (g *Group) flushDevices(seq record.Seq) error {
	if g.mem != nil {
		// By the log's own sync: two flushes beside each other would each see half of the writes. With nothing new in the log
		// that does nothing, and what was fetched is flushed all the same; one that runs has perhaps taken it over, and is awaited.
		if err := g.syncTo(seq); err != nil || !g.filling() {
			return err
		}
		if err := g.mem.Flush(); err != nil {
			return g.fail(fmt.Errorf("flushing what was fetched: %w", err))
		}
		return nil
	}
	for _, m := range g.each() {
		if err := m.flush(); err != nil {
			return g.fail(fmt.Errorf("flushing volume %s: %w", m.vol.name, err))
		}
	}
	return nil
}

// flush makes a member's device durable, then the presence of what had been fetched before that.
func (m *member) flush() error {
	var arrived []regionRun
	p := m.vol.presence.Load()
	if p != nil {
		arrived = p.takeArrived()
	}
	if !m.unflushed.Swap(false) && len(arrived) == 0 {
		return nil
	}
	if err := m.long.writeOut(m.vol.dev); err != nil {
		return err
	}
	if err := m.vol.dev.Flush(); err != nil {
		return err
	}
	if p != nil {
		return p.makeDurable(arrived)
	}
	return nil
}

// trim frees the log up to the checkpoint and the subscribers' cursors. The bound is taken before the changed maps are
// flushed: a subscriber cut off later was still bounding it; the marks of one cut off before were set before that.
func (g *Group) trim(done []byte) error {
	upTo := g.freeable(g.ckpt)
	for _, s := range *g.subs.Load() {
		if err := s.flushMaps(); err != nil {
			return g.fail(fmt.Errorf("changed map of %s: %w", s.name, err))
		}
	}
	err := g.saveMeta(func(m *meta) {
		m.Checkpoint = g.ckpt
		if done != nil {
			m.done = done
		}
	})
	if err != nil {
		return err
	}
	if g.mem == nil && upTo <= g.log.Cursors().Trimmed {
		return nil
	}
	if err := g.log.Trim(upTo); err != nil {
		return g.fail(fmt.Errorf("trimming the log: %w", err))
	}
	return nil
}

// checkpointLoop does the checkpoints beside the rounds, which would else stand still while a device is flushed.
func (g *Group) checkpointLoop(ctx context.Context) error {
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-g.checkpointKick:
		}
		if err := g.checkpointIfDue(); err != nil {
			return err
		}
	}
}

// MakeRoom has a checkpoint done soon if one would free anything, however little the log is filled: who appends to it
// beside the group has found no room, be it for bytes, entries or gaps. It waits for nothing and may be called at any rate.
func (g *Group) MakeRoom() {
	g.roomWanted.Store(true)
	poke(g.checkpointKick)
}

// makeRoomEvery is how often MakeRoom frees less than a tenth of the log's records.
const makeRoomEvery = time.Second

// checkpointIfDue keeps the log from filling up. With a subscriber far behind, the log stays filled whatever the
// devices do: then only what its acknowledgements free is trimmed.
func (g *Group) checkpointIfDue() error {
	wanted := g.roomWanted.Swap(false)
	used, capacity := g.log.Space()
	filled := float64(used) >= g.cfg.CheckpointFilled*float64(capacity)
	g.rounds.Lock()
	moved := g.roundTip > g.ckpt
	since := time.Since(g.ckptAt)
	late := since >= g.cfg.CheckpointEvery
	behind := g.ckpt
	fetched, first := g.freshRegions(), !g.snapshot
	g.rounds.Unlock()
	switch {
	case g.mem != nil: // what is acknowledged has been forgotten already
		if late && (moved || fetched || g.mem.InDoubt()) {
			return g.checkpoint()
		}
	case late && fetched, moved && (late || filled && g.sinceCheckpoint.Load() >= capacity/10):
		return g.checkpoint()
	case wanted && g.worth(g.unneeded(g.Tip()), since >= makeRoomEvery):
		return g.checkpoint()
	case filled && first:
		return g.checkpoint() // nothing says yet how far the snapshot on disk reaches, so nothing can be freed
	case filled && g.trimmable(behind):
		g.rounds.Lock()
		defer g.rounds.Unlock()
		return g.trim(nil)
	}
	return nil
}

// trimmable says whether a tenth of the log's records could go without a new checkpoint.
func (g *Group) trimmable(ckpt record.Seq) bool { return g.worth(g.freeable(ckpt), false) }

// worth says whether a trim up to upTo frees a tenth of the log's records, or, with one, any of them.
func (g *Group) worth(upTo record.Seq, one bool) bool {
	c := g.log.Cursors()
	return upTo > c.Trimmed && (one || upTo-c.Trimmed >= (c.Appended-c.Trimmed)/10)
}

// freeable is what can go of the records up to ckpt.
func (g *Group) freeable(ckpt record.Seq) record.Seq {
	if g.mem == nil {
		ckpt = min(ckpt, record.Seq(g.covered.Load()))
	}
	return g.unneeded(ckpt)
}

// unneeded is what no subscriber needs of the records up to upTo. The fence of a sealed log always stays: it keeps the
// log sealed after a restart.
func (g *Group) unneeded(upTo record.Seq) record.Seq {
	for _, s := range *g.subs.Load() {
		if keep, ok := s.keeps(); ok {
			upTo = min(upTo, keep)
		}
	}
	// One that has not subscribed again since the restart holds the log back like those that have.
	g.metaMu.Lock()
	for name, s := range g.meta.Subs {
		switch {
		case g.Subscriber(name) != nil:
		case s.Suspended && g.mem == nil:
			// One that was cut off marks what the log still holds when it is here again: nothing of that may go before.
			upTo = min(upTo, g.log.Cursors().Trimmed)
		default:
			// With a log in memory one that was cut off too: the marks in doubt are not in its map before it is here.
			acked := s.Acked
			if acked <= g.ownFrom() { // of what was carried here it has what is freed, for sure: see Subscriber.start
				acked = g.log.Cursors().Trimmed
			}
			upTo = min(upTo, acked)
		}
	}
	g.metaMu.Unlock()
	if appended := g.log.Cursors().Appended; g.mem == nil && upTo >= appended && g.Role() == RoleSealed {
		upTo = max(appended, 1) - 1
	}
	return upTo
}
