package volume

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"gantline/internal/record"
)

// writeBack brings the caches' content to the devices.
//
// A round: T = tip; then take each cache's segments, whatever their sequence; wait until the log is durable past the
// newest taken (write-ahead); write them in order of offset, adjacent ones merged; a segment leaves its cache after the
// device write of its bytes has returned, if no newer record has replaced it. All records ≤ T had been put into the
// caches before T was read, so afterwards each byte of a record ≤ T is on the device or superseded: by a newer segment
// that was taken and written too. Segments in absent regions of a move's target are not written: they are postponed,
// and the lowest sequence among them bounds the checkpoint. A superseded record below that bound needs no care: what
// superseded it is in the log, durable, and above the bound, or on the device.
//
// Making the devices durable is separate and rare (checkpoint.go).
type writeBack struct {
	rounds    sync.Mutex // one round at a time; the results of one, and the checkpoint, change under it
	scratch   []segment
	bufs      [][]byte
	roundTip  record.Seq // T of the last round
	postponed record.Seq // lowest sequence postponed by it, 0: none
	ckpt      record.Seq // all records up to it are flushed on the devices
	// covered: the done requests on disk, or the log above it, have every record up to it. Nothing above it is freed.
	covered  atomic.Uint64
	snapshot bool // this run has written one
	ckptAt   time.Time

	checkpoints    sync.Mutex // one checkpoint at a time
	checkpointKick chan struct{}
	roomWanted     atomic.Bool // MakeRoom

	roundKick       chan struct{}
	roundDue        atomic.Bool  // something has been cached since the last round began
	roundFull       atomic.Bool  // the cache has passed RoundBytes since then
	postponedBytes  atomic.Int64 // as of the last round
	sinceCheckpoint atomic.Int64 // bytes appended
}

const (
	maxRun     = 1 << 20 // bytes merged into one device write
	maxRunBufs = 512
	maxLeave   = 32 // segments that leave a cache at once: who writes meanwhile waits for that, some 20 µs
)

func (g *Group) kickRound() { poke(g.roundKick) }

// writeBackLoop starts a round RoundDelay after the first write, or when RoundBytes are cached.
func (g *Group) writeBackLoop(ctx context.Context) error {
	delay := time.NewTimer(g.cfg.CheckpointEvery)
	defer delay.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-g.roundKick:
		case <-delay.C:
		}
		if !g.awaitRound(ctx, delay) {
			return nil
		}
		if err := g.roundNow(); err != nil {
			return err
		}
		poke(g.checkpointKick)
		delay.Reset(g.cfg.CheckpointEvery)
	}
}

// awaitRound lets writes gather, so that overwritten and adjacent ones go to the device once.
func (g *Group) awaitRound(ctx context.Context, delay *time.Timer) bool {
	delay.Reset(g.cfg.RoundDelay)
	for g.cached.Load()-g.postponedBytes.Load() < g.cfg.RoundBytes {
		select {
		case <-ctx.Done():
			return false
		case <-g.roundKick:
			if g.cached.Load() >= g.cfg.CacheBytes {
				return true
			}
		case <-delay.C:
			return true
		}
	}
	return ctx.Err() == nil
}

func (g *Group) roundNow() error {
	g.rounds.Lock()
	defer g.rounds.Unlock()
	return g.round()
}

// round is one write-back round, under rounds.
func (g *Group) round() error {
	if err := g.Err(); err != nil {
		return err
	}
	g.roundDue.Store(false)
	g.roundFull.Store(false)
	tip := g.Tip()
	members := g.each()
	taken := make([][]segment, len(members))
	newest := record.Seq(0)
	g.scratch = g.scratch[:0]
	for i, m := range members {
		from := len(g.scratch)
		g.scratch = m.cache.snapshot(g.scratch)
		taken[i] = g.scratch[from:len(g.scratch):len(g.scratch)]
		for j := range taken[i] {
			newest = max(newest, taken[i][j].seq)
		}
	}
	defer func() { clear(g.scratch) }()
	if err := g.allowOnDevice(newest); err != nil {
		return err
	}
	postponed, postponedBytes := record.Seq(0), int64(0)
	for i, m := range members {
		low, bytes, err := m.writeOut(taken[i])
		if err != nil {
			return g.fail(fmt.Errorf("writing to volume %s: %w", m.vol.name, err))
		}
		if low != 0 && (postponed == 0 || low < postponed) {
			postponed = low
		}
		postponedBytes += bytes
	}
	g.roundTip, g.postponed = tip, postponed
	g.postponedBytes.Store(postponedBytes)
	return nil
}

// allowOnDevice waits until nothing up to seq can be lost by the log. A follower also notes durably how far its devices
// may be: after a crash it replays at least so far, for a half written device is no prefix.
func (g *Group) allowOnDevice(seq record.Seq) error {
	if err := g.syncTo(seq); err != nil {
		return err
	}
	if g.Role() != RoleFollowing || seq <= g.mayHaveApplied() {
		return nil
	}
	return g.saveMeta(func(m *meta) { m.Applied = max(seq, m.Applied) })
}

// writeOut writes segments, in order, those of present regions, and takes them out of the cache, some at a time. It returns
// the lowest sequence and the bytes of the others.
func (m *member) writeOut(segs []segment) (low record.Seq, bytes int64, err error) {
	absent := m.absence()
	from, written := 0, int64(0) // segs[from:i] are on the device and still in the cache
	leave := func(i int) {
		for from < i {
			next := min(i, from+maxLeave)
			m.group.grow(-m.cache.removeWritten(segs[from:next]))
			from = next
		}
		from, written = i, 0
	}
	for i := 0; i < len(segs); {
		if absent(segs[i].off) {
			leave(i)
			if low == 0 || segs[i].seq < low {
				low = segs[i].seq
			}
			bytes += segs[i].weight()
			i++
			from = i
			continue
		}
		n := runLength(segs[i:], absent)
		if err := m.writeRun(segs[i : i+n]); err != nil {
			return 0, 0, err
		}
		i += n
		if written += segs[i-1].end - segs[i-n].off; written >= maxRun || i-from >= maxLeave {
			leave(i)
		}
	}
	leave(len(segs))
	return low, bytes, nil
}

// runLength counts the segments from the first on that make one device write.
func runLength(segs []segment, absent func(off int64) bool) int {
	if segs[0].kind != kindData {
		return 1
	}
	n, bytes := 1, segs[0].end-segs[0].off
	for n < len(segs) && n < maxRunBufs && bytes < maxRun && segs[n].kind == kindData &&
		segs[n].off == segs[n-1].end && !absent(segs[n].off) {
		bytes += segs[n].end - segs[n].off
		n++
	}
	return n
}

func (m *member) writeRun(run []segment) error {
	m.unflushed.Store(true)
	defer m.unflushed.Store(true) // again: a flush beside it may have taken the mark before it met the bytes
	first, dev := run[0], m.vol.dev
	switch {
	case first.kind == kindZero:
		return dev.Zero(first.off, first.end-first.off, true)
	case first.kind == kindTrim:
		return dev.Trim(first.off, first.end-first.off)
	case len(run) == 1:
		_, err := dev.WriteAt(first.data, first.off)
		m.long.note(dev, first.off, first.end-first.off)
		return err
	}
	g := m.group
	g.bufs = g.bufs[:0]
	for i := range run {
		g.bufs = append(g.bufs, run[i].data)
	}
	defer clear(g.bufs)
	if err := dev.WritevAt(g.bufs, first.off); err != nil {
		return err
	}
	m.long.note(dev, first.off, run[len(run)-1].end-first.off)
	return nil
}

func sortedKeys[V any](m map[record.VolumeNumber]V) []record.VolumeNumber {
	return slices.Sorted(maps.Keys(m))
}
