package volume

import (
	"context"
	"errors"
	"fmt"
	"time"

	"gantline/internal/block"
	"gantline/internal/record"
)

// backing is a group's devices as its MemoryLog sees them.
type backing struct{ g *Group }

func (g *Group) logName() string {
	if g.mem != nil {
		return "a log in memory"
	}
	return "a log on disk"
}

// Write brings records to the devices, adjacent ones in one call. It runs under the commit mutex, so what it has written
// is seen by reads before the record is numbered for anybody else; a copy that reads beside it is hit (copyRange).
func (b backing) Write(recs []record.Record) error {
	var few [16]segment
	for i := 0; i < len(recs); {
		var m *member
		run := few[:0]
		for ; i < len(recs) && len(run) < maxRunBufs; i++ {
			s, ok := segmentOf(&recs[i])
			if !ok || recs[i].Flags&record.FlagCopied != 0 {
				continue // is on the device already, or does not concern it
			}
			if len(run) == 0 {
				if m = b.g.member(recs[i].Volume); m == nil {
					return fmt.Errorf("%w: %d", ErrUnknownVolume, recs[i].Volume)
				}
			} else if recs[i].Volume != m.number || !follows(run, s) {
				break
			}
			run = append(run, s)
		}
		if len(run) == 0 {
			continue
		}
		if err := m.writeRun(run); err != nil {
			return fmt.Errorf("writing to volume %s: %w", m.vol.name, err)
		}
	}
	return nil
}

// follows says whether s can be written by one call with the run in front of it.
func follows(run []segment, s segment) bool {
	return s.kind == kindData && run[0].kind == kindData && s.off == run[len(run)-1].end && s.off-run[0].off < maxRun
}

// Flush makes durable what Write has brought.
func (b backing) Flush() error {
	for _, m := range b.g.each() {
		if err := m.flush(); err != nil {
			return fmt.Errorf("flushing volume %s: %w", m.vol.name, err)
		}
	}
	return nil
}

// writeAgain writes the regions in doubt once more where they stand. A flush that failed may have left pages in the
// cache that are read, and will never reach the disk: nothing may be promised or shipped of them before.
func (g *Group) writeAgain() error {
	buf := make([]byte, 1<<20)
	for _, m := range g.each() {
		for _, e := range g.mem.Doubt(m.number) {
			data, err := m.vol.dev.Extents(e.Offset, min(e.Length, m.vol.Size()-e.Offset))
			if err != nil {
				return err
			}
			for _, d := range data {
				if d.Type != block.ExtentData {
					continue
				}
				for off := d.Offset; off < d.Offset+d.Length; off += int64(len(buf)) {
					p := buf[:min(int64(len(buf)), d.Offset+d.Length-off)]
					if _, err := m.vol.dev.ReadAt(p, off); err != nil {
						return err
					}
					if _, err := m.vol.dev.WriteAt(p, off); err != nil {
						return err
					}
				}
			}
		}
	}
	return backing{g}.Flush()
}

// sealPatience is how long a seal waits until the subscribers have all that a log in memory holds. Hosts are held meanwhile.
const sealPatience = 3 * time.Second

// sealMemory seals a log in memory. What it has not sent would be lost with its process, so first each subscriber gets all
// of it, durably. Then one write ends the row and names the next owner: dead before it nothing is sealed, dead behind it
// nobody lacks anything that only this log could give. There is no fence: the last record is the cut.
func (g *Group) sealMemory(ctx context.Context, next record.EpochID) (record.Seq, error) {
	ctx, cancel := context.WithTimeout(ctx, sealPatience)
	defer cancel()
	g.mu.Lock()
	empty := g.Tip() < g.row.First
	g.mu.Unlock()
	if empty { // an epoch has a last record
		if _, err := g.appendControl(record.Record{Op: record.OpEnd}, nil); err != nil {
			return 0, err
		}
	}
	for {
		cut := g.Tip()
		if err := g.syncTo(cut); err != nil {
			return 0, err
		}
		if err := g.awaitThere(ctx, cut); err != nil {
			return 0, err
		}
		if sealed, err := g.sealAt(cut, next); sealed || err != nil {
			return cut, err
		}
	}
}

// awaitThere returns nil once each subscriber in the stream has all records up to seq durably.
func (g *Group) awaitThere(ctx context.Context, seq record.Seq) error {
	tick := time.NewTicker(2 * time.Millisecond)
	defer tick.Stop()
	for {
		if err := errors.Join(g.Err(), g.neededThere()); err != nil {
			return err
		}
		if g.there(seq) {
			return nil
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("group %s: not sealed: the secondary does not have all of %s, up to %d, yet: %w", g.cfg.Name, g.logName(), seq,
				context.Cause(ctx))
		case <-tick.C:
		}
	}
}

func (g *Group) there(seq record.Seq) bool {
	for _, s := range *g.subs.Load() {
		if _, durable, _ := s.Cursor(); s.State() == SubStreaming && !s.Resting() && durable < seq {
			return false
		}
	}
	return true
}

// sealAt is false if the log has gone on meanwhile, or a step has ended.
func (g *Group) sealAt(cut record.Seq, next record.EpochID) (bool, error) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if err := errors.Join(g.Err(), g.neededThere()); err != nil {
		return false, err
	}
	if g.Tip() != cut || !g.there(cut) {
		return false, nil
	}
	g.cutSteps()
	err := g.saveMetaBy(func(m *meta) { m.Sealed = &metaSeal{Cut: cut, Epoch: g.row.Epoch, Next: next} },
		func(blob []byte) error { return g.mem.Seal(cut, blob) })
	if err != nil {
		return false, err
	}
	g.cut, g.next = cut, next
	g.role.Store(uint32(RoleSealed))
	return true, nil
}

// mustBringIn says that a write has to wait for a region: see bringIn.
func (m *member) mustBringIn(reqs []*block.Request) bool {
	p := m.vol.presence.Load()
	if p == nil || p.safeCount.Load() == p.total {
		return false
	}
	for _, q := range reqs {
		for r := q.Offset / p.region; r*p.region < q.Offset+q.Length; r++ {
			if !p.isSafe(r) {
				return true
			}
		}
	}
	return false
}

// commitLater commits the batch's writes on a goroutine of their own, together and in their order: who submits them, or
// releases what was held, does not wait for a fetch.
func (m *member) commitLater(p *period, epoch uint64, b *batch) {
	later := batches.Get().(*batch)
	later.reqs = append(later.reqs, b.reqs...)
	later.total = len(later.reqs)
	for _, r := range later.reqs {
		if r.Flags&block.FlagFUA != 0 {
			later.waits++
		}
	}
	b.waits -= later.waits
	clear(b.reqs)
	b.reqs = b.reqs[:0]
	m.vol.background.Add(1)
	go func() {
		defer m.vol.background.Done()
		defer later.release()
		m.group.commit(m, p, epoch, later)
		if later.waiting > 0 {
			m.group.wantSync(p, later)
		}
	}()
}

// bringIn has the regions that a write touches fetched and durably present, before the write is numbered: with no record of it
// on disk, a region that is fetched again after a death would wipe it out.
func (p *presence) bringIn(g *Group, off, length int64) error {
	if p.safeCount.Load() == p.total {
		return nil
	}
	var absent []int64
	safe := true
	for r := off / p.region; r*p.region < off+length; r++ {
		safe = safe && p.isSafe(r)
		if !p.has(r) {
			absent = append(absent, r)
		}
	}
	if safe {
		return nil
	}
	if len(absent) > 0 {
		if p.job.Away() {
			p.job.Want(absent[0]) // tries the source again
			return fmt.Errorf("%w: %w", block.ErrIO, ErrSourceAway)
		}
		ctx, cancel := context.WithTimeout(context.Background(), fetchPatience)
		defer cancel()
		if err := p.wait(ctx, absent...); err != nil {
			return err
		}
	}
	p.settling.Lock()
	defer p.settling.Unlock()
	for r := off / p.region; r*p.region < off+length; r++ {
		if p.isSafe(r) {
			continue
		}
		if err := g.mem.Flush(); err != nil {
			return g.hostError(g.fail(fmt.Errorf("flushing what was fetched: %w", err)))
		}
		if !p.isSafe(r) {
			return fmt.Errorf("%w: volume %s: region %d was flushed and is not present", block.ErrIO, p.v.name, r)
		}
	}
	return nil
}

// collectStep, under Subscriber.mu, counts what hosts wrote inside a step as the subscriber's once it is durable there:
// the memory of the log is not kept for a whole step. Should the step be dropped, it would lack that: so the blocks are
// marked, and stand beside those that were copied (blocks.collected) until the step is applied. It returns how far.
func (s *Subscriber) collectStep() record.Seq {
	upTo := s.durable
	if s.end != 0 {
		upTo = min(upTo, s.end)
	}
	if upTo <= s.acked {
		return s.acked
	}
	err := s.g.eachExtent(s.acked+1, upTo, s.collect)
	if err != nil {
		s.g.cfg.Logger.Error("records of a step are kept until it is applied", "subscriber", s.name, "error", err)
		return s.acked
	}
	return upTo
}

// collect marks what the subscriber has durably as a part of the step.
func (s *Subscriber) collect(e *extentRef) {
	b := s.volumes()[e.volume]
	if b == nil || e.length == 0 || e.op != record.OpWrite && e.op != record.OpZero && e.op != record.OpTrim {
		return
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	last := min((e.off+int64(e.length)-1)/s.cfg.BlockSize, b.marks.Bits()-1)
	for bit := e.off / s.cfg.BlockSize; bit <= last; bit++ {
		if b.marks.Set(bit) { // one that is marked already is still to be copied, or collected
			b.collected.set(bit)
		}
	}
}
