package volume

import (
	"fmt"

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
