package volume

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/time/rate"

	"gantline/internal/block"
	"gantline/internal/copier"
)

// Bitmap is what volume needs of block.Bitmap: bits that a Flush makes durable. Safe for concurrent use.
type Bitmap interface {
	Set(bit int64) (changed bool)
	SetRange(first, n int64) (changed int64)
	Clear(bit int64) (changed bool)
	Test(bit int64) bool
	Count() int64
	Bits() int64
	NextSet(from int64) (int64, bool)
	NextClear(from int64) (int64, bool)
	Flush() error
	Grow(length int64) error // by clear bits, durable on return
}

// Fetcher reads the sealed source of a move. Safe for concurrent use.
type Fetcher interface {
	// Fetch fills p or fails; it ends when ctx does.
	Fetch(ctx context.Context, off int64, p []byte) error
	// Hole says whether a range is known to be zeros alone, from what earlier fetches have brought to light. It neither asks
	// nor waits.
	Hole(off, n int64) bool
}

// Presence says which regions of a move's target hold the source's data already.
type Presence struct {
	Map      Bitmap // set: present, durably; owned by the volume until ClearPresence
	Region   int64  // bytes, a multiple of 4096
	Fetch    Fetcher
	Parallel int           // fetches at once, for each of background and demand; default 4
	Limit    *rate.Limiter // bytes of the background fetches
	// Patience is how long fetches must have failed until the source counts as away and hosts get errors; default 5 s,
	// as long as a move may hold them. This node's own restart, or the source's, is shorter.
	Patience time.Duration
}

// PresenceStatus is for the operator.
type PresenceStatus struct {
	Regions, Present   int64 // Present: durable
	Arrived            int64 // fetched, durably present or not
	Background, Demand int64 // bytes fetched
	BytesPerSecond     float64
	Away               bool // the source cannot be reached
	Err                error
}

// fetchTimeout bounds one attempt to fetch regions.
const fetchTimeout = 5 * time.Second

// fetchBatch is what the background fetches at once, in bytes: less, and a fill is mostly wake-ups; more, and a demand
// for a region on its way waits for too many others.
const fetchBatch = 512 << 10

const sourcePatience = 5 * time.Second

// presence is the state of a target's regions. A region arrives when its data has been written to the device, which
// only the fetch does while it is absent; from then on rounds and readers use the device. Its bit in the durable map is
// set by the checkpoint, between the device flush and the advance of the checkpoint. After a crash in between the
// region is fetched again, and all records written to it are replayed over it: they lie above the checkpoint.
type presence struct {
	cfg    Presence
	v      *Volume
	region int64
	total  int64
	here   []atomic.Uint64 // arrived or durably present
	count  atomic.Int64    // of here
	full   atomic.Int64    // so many words of here, from the first on, are known to have all bits set
	job    *copier.Job
	idle   sync.Pool // buffers of as many regions as are fetched at once

	calm calm

	mu    sync.Mutex
	fresh []regionRun // arrived, not durable yet

	settling  sync.Mutex      // one flush serves all who wait for it: bringIn
	safe      []atomic.Uint64 // durably present
	safeCount atomic.Int64
}

// regionRun is n regions in a row.
type regionRun struct{ first, n int64 }

// SetPresence makes the volume the target of a move, before it joins a group or serves.
func (v *Volume) SetPresence(cfg Presence) error {
	if cfg.Region <= 0 || cfg.Region%4096 != 0 || cfg.Fetch == nil || cfg.Map == nil {
		return fmt.Errorf("volume %s: regions of %d bytes, a map and a fetcher are needed", v.name, cfg.Region)
	}
	if old := v.presence.Load(); old != nil && old.cfg.Map == cfg.Map && old.region == cfg.Region {
		return nil
	}
	if cfg.Patience <= 0 {
		cfg.Patience = sourcePatience
	}
	total := (v.Size() + cfg.Region - 1) / cfg.Region
	if cfg.Map.Bits() != total {
		return fmt.Errorf("volume %s: the map has %d regions, the volume %d", v.name, cfg.Map.Bits(), total)
	}
	p := &presence{cfg: cfg, v: v, region: cfg.Region, total: total, here: make([]atomic.Uint64, (total+63)/64),
		safe: make([]atomic.Uint64, (total+63)/64)}
	for bit, ok := cfg.Map.NextSet(0); ok; bit, ok = cfg.Map.NextSet(bit + 1) {
		p.arrive(bit)
		p.keep(bit)
	}
	batch := max(fetchBatch/cfg.Region, 1)
	p.idle.New = func() any { b := make([]byte, batch*cfg.Region); return &b }
	p.job = copier.New(copier.Config{
		Set: p, Region: cfg.Region, Size: v.Size, Work: p.fetch, Batch: batch, Hole: p.hole, Busy: p.busy,
		Parallel: cfg.Parallel, Limit: cfg.Limit, Patience: cfg.Patience,
	})
	m := v.member.Load()
	if m != nil {
		m.group.mu.Lock()
		defer m.group.mu.Unlock()
		m.group.rounds.Lock()
		defer m.group.rounds.Unlock()
		m.group.grow(m.cache.splitAt(cfg.Region))
	}
	if !v.presence.CompareAndSwap(nil, p) {
		return fmt.Errorf("%w: volume %s is the target of a move already", ErrBusy, v.name)
	}
	if m == nil {
		return nil // Open notes it
	}
	m.blind.Store(false)
	m.group.kickRound()
	return m.group.saveMeta(func(*meta) {})
}

// ClearPresence ends that; refused while a region is absent or not durable.
func (v *Volume) ClearPresence() error {
	p := v.presence.Load()
	if p == nil {
		return nil
	}
	if n := p.cfg.Map.Count(); n != p.total {
		return fmt.Errorf("%w: volume %s has %d of %d regions", ErrBusy, v.name, n, p.total)
	}
	v.presence.CompareAndSwap(p, nil)
	if m := v.member.Load(); m != nil {
		m.cache.splitAt(0)
		return m.group.saveMeta(func(*meta) {})
	}
	return nil
}

// DropPresence ends a move whose target will never serve: what is absent stays absent, and the volume holds nothing that
// anybody may rely on.
func (v *Volume) DropPresence() error {
	v.presence.Store(nil)
	m := v.member.Load()
	if m == nil {
		return nil
	}
	m.blind.Store(false)
	m.cache.splitAt(0)
	return m.group.saveMeta(func(*meta) {})
}

// Fill fetches all absent regions in the background and serves the demands meanwhile. It must run while the volume is
// in migrating mode. It returns nil once all regions are present, flushed, and their bits durable.
func (v *Volume) Fill(ctx context.Context) error {
	p := v.presence.Load()
	if p == nil {
		return nil
	}
	if err := p.job.Run(ctx); err != nil {
		return fmt.Errorf("filling volume %s: %w", v.name, err)
	}
	m := v.member.Load()
	if m == nil {
		return fmt.Errorf("%w: volume %s is in no group", ErrRole, v.name)
	}
	if err := m.group.Checkpoint(ctx); err != nil {
		return err
	}
	if n := p.cfg.Map.Count(); n != p.total {
		return fmt.Errorf("filling volume %s: %d of %d regions are present", v.name, n, p.total)
	}
	return nil
}

// PresenceStatus is false for a volume that is not the target of a move.
func (v *Volume) PresenceStatus() (PresenceStatus, bool) {
	p := v.presence.Load()
	if p == nil {
		return PresenceStatus{}, false
	}
	pr := p.job.Progress()
	return PresenceStatus{
		Regions: p.total, Present: p.cfg.Map.Count(), Arrived: p.count.Load(), Background: pr.Background, Demand: pr.Demand,
		BytesPerSecond: pr.BytesPerSecond, Away: p.job.Away(), Err: pr.Err,
	}, true
}

func (p *presence) has(region int64) bool {
	return p.here[region/64].Load()&(1<<(region%64)) != 0
}

func (p *presence) arrive(region int64) {
	if old := p.here[region/64].Or(1 << (region % 64)); old&(1<<(region%64)) == 0 {
		p.count.Add(1)
	}
}

// busy says whether hosts have used the group lately.
func (p *presence) busy() bool {
	g := p.v.Group()
	return g != nil && p.calm.busy(g.HostOps())
}

// Next, Needs and Left make it a copier.Set.
func (p *presence) Next(from int64) (int64, bool) {
	full := p.full.Load()
	for r := max(from, full*64); r < p.total; r++ {
		if r%64 == 0 && p.here[r/64].Load() == ^uint64(0) {
			if r/64 == full { // what has arrived stays: nobody has to look there again
				full++
				p.full.Store(full)
			}
			r += 63
			continue
		}
		if !p.has(r) {
			return r, true
		}
	}
	return 0, false
}

func (p *presence) Needs(region int64) bool { return !p.has(region) }
func (p *presence) Left() int64             { return p.total - p.count.Load() }

// hole says whether a region is known to be one at the source.
func (p *presence) hole(region int64) bool {
	off := region * p.region
	return p.cfg.Fetch.Hole(off, min(p.region, p.v.Size()-off))
}

// fetch brings regions in a row to the device. Nothing else writes there: rounds postpone what the cache has for them.
func (p *presence) fetch(ctx context.Context, off, n int64) error {
	m := p.v.member.Load()
	if m == nil {
		return fmt.Errorf("%w: volume %s is in no group", ErrRole, p.v.name)
	}
	if err := m.group.Err(); err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, fetchTimeout)
	defer cancel()
	if p.cfg.Fetch.Hole(off, n) {
		m.unflushed.Store(true)
		if err := p.v.dev.Trim(off, n); err != nil {
			return m.group.fail(fmt.Errorf("clearing a part of volume %s: %w", p.v.name, err))
		}
		p.came(m, off, n)
		return nil
	}
	held := p.idle.Get().(*[]byte)
	defer p.idle.Put(held)
	for n > 0 { // once, unless what was known to be a hole has been forgotten
		buf := (*held)[:min(n, int64(len(*held)))]
		if err := p.cfg.Fetch.Fetch(ctx, off, buf); err != nil {
			return err
		}
		m.unflushed.Store(true)
		if err := p.store(buf, off); err != nil {
			return m.group.fail(fmt.Errorf("writing to volume %s: %w", p.v.name, err))
		}
		p.came(m, off, int64(len(buf)))
		off, n = off+int64(len(buf)), n-int64(len(buf))
	}
	return nil
}

// came notes that regions are on the device.
func (p *presence) came(m *member, off, n int64) {
	m.unflushed.Store(true) // again: a flush may have come between
	run := regionRun{off / p.region, (n + p.region - 1) / p.region}
	p.mu.Lock()
	for i := range run.n {
		p.arrive(run.first + i)
	}
	if k := len(p.fresh) - 1; k >= 0 && p.fresh[k].first+p.fresh[k].n == run.first {
		p.fresh[k].n += run.n
	} else {
		p.fresh = append(p.fresh, run)
	}
	p.mu.Unlock()
	if m.group.postponedBytes.Load() > 0 || m.group.cached.Load() > 0 {
		m.group.kickRound()
	}
}

// store writes fetched regions to the device. Those of zeros take no space, and lose what the device held before.
func (p *presence) store(buf []byte, off int64) error {
	for len(buf) > 0 {
		zero := block.IsZero(buf[:min(p.region, int64(len(buf)))])
		n := min(p.region, int64(len(buf)))
		for n < int64(len(buf)) && block.IsZero(buf[n:min(n+p.region, int64(len(buf)))]) == zero {
			n = min(n+p.region, int64(len(buf)))
		}
		var err error
		if zero {
			err = p.v.dev.Trim(off, n)
		} else {
			_, err = p.v.dev.WriteAt(buf[:n], off)
		}
		if d, ok := p.v.dev.(interface{ WriteBack(off, n int64) error }); err == nil && ok && n >= longRun {
			// At most what all fetches hold is then on its way to the disk, where the hosts' syncs have to pass it.
			err = d.WriteBack(off, n)
		}
		if err != nil {
			return err
		}
		buf, off = buf[n:], off+n
	}
	return nil
}

// takeArrived returns the regions whose data was written before the device flush that follows.
func (p *presence) takeArrived() []regionRun {
	p.mu.Lock()
	defer p.mu.Unlock()
	fresh := p.fresh
	p.fresh = nil
	return fresh
}

// makeDurable sets the bits of regions whose data has been flushed.
func (p *presence) makeDurable(regions []regionRun) error {
	for _, r := range regions {
		p.cfg.Map.SetRange(r.first, r.n)
	}
	if err := p.cfg.Map.Flush(); err != nil {
		return err
	}
	for _, r := range regions {
		for i := range r.n {
			p.keep(r.first + i)
		}
	}
	return nil
}

// keep notes that a region is durably present.
func (p *presence) keep(region int64) {
	if old := p.safe[region/64].Or(1 << (region % 64)); old&(1<<(region%64)) == 0 {
		p.safeCount.Add(1)
	}
}

func (p *presence) isSafe(region int64) bool {
	return p.safe[region/64].Load()&(1<<(region%64)) != 0
}

// freshRegions says whether fetched regions wait for their checkpoint.
func (g *Group) freshRegions() bool {
	for _, m := range g.each() {
		if p := m.vol.presence.Load(); p != nil {
			p.mu.Lock()
			n := len(p.fresh)
			p.mu.Unlock()
			if n > 0 {
				return true
			}
		}
	}
	return false
}

// filling says whether a volume is the target of a move.
func (g *Group) filling() bool {
	return slices.ContainsFunc(g.each(), func(m *member) bool { return m.vol.presence.Load() != nil })
}

// absence returns what says whether the region of an offset is absent.
func (m *member) absence() func(off int64) bool {
	p := m.vol.presence.Load()
	switch {
	case m.blind.Load():
		return func(int64) bool { return true }
	case p == nil:
		return func(int64) bool { return false }
	}
	return func(off int64) bool { return !p.has(off / p.region) }
}

// wait returns once a region is here.
func (p *presence) wait(ctx context.Context, regions ...int64) error {
	err := p.job.Wait(ctx, regions...)
	if err == nil {
		return nil
	}
	if group := p.v.Group(); group != nil && group.Err() != nil {
		return group.hostError(group.Err())
	}
	return fmt.Errorf("%w: %w: %w", block.ErrIO, ErrSourceAway, err)
}

// Absent lists what the volume lacks as the target of a move, n extents at most, and how many bytes there are besides.
func (v *Volume) Absent(n int) (list []block.Extent, left int64) {
	p := v.presence.Load()
	if p == nil {
		return nil, 0
	}
	for r, ok := p.Next(0); ok; r, ok = p.Next(r + 1) {
		from, to := r*p.region, min((r+1)*p.region, v.Size())
		last := len(list) - 1
		switch {
		case last >= 0 && list[last].Offset+list[last].Length == from && left == 0:
			list[last].Length += to - from
		case len(list) < n:
			list = append(list, block.Extent{Offset: from, Length: to - from, Type: block.ExtentData})
		default:
			left += to - from
		}
	}
	return list, left
}

func (p *presence) absentExtents(off, end int64) []block.Extent {
	var out []block.Extent
	for r, ok := p.Next(off / p.region); ok && r*p.region < end; r, ok = p.Next(r + 1) {
		from, to := max(off, r*p.region), min(end, (r+1)*p.region)
		out = append(out, block.Extent{Offset: from, Length: to - from, Type: block.ExtentData})
	}
	return out
}

// admitAbsent looks at the writes to absent regions before they are numbered. While the source is away they are
// answered with an error. While what is postponed has used up its part of cache or log they wait for their regions.
func (m *member) admitAbsent(p *period, b *batch) {
	pr := m.vol.presence.Load()
	if m.blind.Load() {
		m.vol.refuse(p, b.reqs, fmt.Errorf("%w: %w", block.ErrIO, ErrSourceAway))
		b.reqs, b.recs = b.reqs[:0], b.recs[:0]
		return
	}
	if pr == nil {
		return
	}
	if m.group.mem != nil {
		m.admitSafe(pr, p, b)
		return
	}
	if pr.Left() == 0 {
		return
	}
	keep := 0
	for i, r := range b.reqs {
		from := len(b.want)
		for region, ok := pr.Next(r.Offset / pr.region); ok && region*pr.region < r.Offset+r.Length; region, ok = pr.Next(region + 1) {
			b.want = append(b.want, region)
		}
		if err := pr.admit(m.group, b.want[from:]); err != nil {
			b.want = b.want[:from]
			m.vol.finish(p, r, err)
			continue
		}
		b.reqs[keep], b.recs[keep] = r, b.recs[i]
		keep++
	}
	clear(b.reqs[keep:])
	clear(b.recs[keep:])
	b.reqs, b.recs = b.reqs[:keep], b.recs[:keep]
}

// admitSafe is admitAbsent with a log in memory: each write waits for its regions.
func (m *member) admitSafe(pr *presence, p *period, b *batch) {
	keep := 0
	for i, r := range b.reqs {
		if err := pr.bringIn(m.group, r.Offset, r.Length); err != nil {
			m.vol.finish(p, r, err)
			continue
		}
		b.reqs[keep], b.recs[keep] = r, b.recs[i]
		keep++
	}
	clear(b.reqs[keep:])
	clear(b.recs[keep:])
	b.reqs, b.recs = b.reqs[:keep], b.recs[:keep]
}

func (p *presence) admit(g *Group, absent []int64) error {
	if len(absent) == 0 {
		return nil
	}
	if p.job.Away() {
		p.job.Want(absent[0]) // tries the source again
		return fmt.Errorf("%w: %w", block.ErrIO, ErrSourceAway)
	}
	if !g.postponedTooMuch() {
		return nil
	}
	ctx, cancel := context.WithTimeout(context.Background(), fetchPatience)
	defer cancel()
	return p.wait(ctx, absent...)
}

// postponedTooMuch: what waits for absent regions may take half of the cache, and be the reason for a log more than
// half full.
func (g *Group) postponedTooMuch() bool {
	bytes := g.postponedBytes.Load()
	if bytes == 0 {
		return false
	}
	used, capacity := g.log.Space()
	return bytes > g.cfg.CacheBytes/2 || used > capacity/2
}

// want queues the fetches of the regions that the batch's writes touch, ahead of the background.
func (m *member) want(b *batch) {
	if len(b.want) == 0 {
		return
	}
	p := m.vol.presence.Load()
	slices.Sort(b.want)
	for _, region := range slices.Compact(b.want) {
		p.job.Want(region)
	}
}

// waitPostponed is the last resort for a full log that no subscriber holds back: the fetch of what is postponed. It
// runs under the commit mutex; the part reserved by postponedTooMuch makes it rare.
func (g *Group) waitPostponed(again func() error) error {
	ctx, cancel := context.WithTimeout(context.Background(), fetchPatience)
	defer cancel()
	for g.postponedBytes.Load() > 0 {
		if err := g.fetchPostponed(ctx); err != nil {
			return errors.Join(ErrFull, err)
		}
		if err := g.checkpoint(); err != nil {
			return err
		}
		if err := again(); !errors.Is(err, ErrFull) {
			return err
		}
	}
	return ErrFull
}

// fetchPostponed waits for the regions that the caches hold postponed segments of.
func (g *Group) fetchPostponed(ctx context.Context) error {
	for _, m := range g.each() {
		p := m.vol.presence.Load()
		if p == nil {
			continue
		}
		absent := m.absence()
		var regions []int64
		for _, s := range m.cache.snapshot(nil) {
			if absent(s.off) {
				regions = append(regions, s.off/p.region)
			}
		}
		if err := p.wait(ctx, slices.Compact(regions)...); err != nil {
			return err
		}
	}
	return nil
}
