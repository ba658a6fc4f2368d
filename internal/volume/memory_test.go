package volume

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"testing"
	"time"

	"gantline/internal/block"
	"gantline/internal/journal"
	"gantline/internal/record"
)

const (
	memVolumes = 2
	memSize    = 6 << 20 // bytes of a volume: six regions
)

// memLoad writes at random over all volumes and flushes now and then. It returns how many events an acknowledged FLUSH or
// FUA covers.
func memLoad(rng *rand.Rand, s *site, h *history, steps int) (durable int, err error) {
	for range steps {
		v := rng.IntN(len(s.vols))
		if rng.IntN(12) == 0 {
			upTo := len(h.events)
			if err := flush(s.vols[v]); err != nil {
				return durable, err
			}
			durable = upTo
			continue
		}
		e := event{vol: v, n: (rng.Int64N(24) + 1) * 512}
		e.off = rng.Int64N((memSize-e.n)/512) * 512
		if rng.IntN(3) > 0 {
			e.off, e.n = e.off%(1<<20)&^4095, 4096 // many in one region
		}
		r, w := newRequest(block.OpWrite, e.off, e.n)
		switch rng.IntN(12) {
		case 0:
			r.Op = block.OpZero
		case 1:
			r.Op = block.OpTrim
		default:
			e.data = stamp(len(h.events)+1, e.n)
			r.Data = bytes.Clone(e.data)
		}
		if rng.IntN(10) == 0 {
			r.Flags |= block.FlagFUA
		}
		h.events = append(h.events, e)
		if err := submit(s.vols[v], r, w); err != nil {
			return durable, err
		}
		clear(r.Data) // the request is answered: its bytes are the host's again
		if r.Flags&block.FlagFUA != 0 {
			durable = len(h.events)
		}
	}
	return durable, nil
}

// survives checks an image after a loss of power as a disk may leave it: each sector as of the last flush, or as some
// later write has made it.
func survives(h *history, durable int, got [][]byte) error {
	base := h.images(len(got), int64(len(got[0])), durable)
	for v := range got {
		for off := 0; off < len(got[v]); off += 512 {
			sector := got[v][off : off+512]
			ok := bytes.Equal(sector, base[v][off:off+512])
			for _, e := range h.events[durable:] {
				if ok {
					break
				}
				if e.vol != v || int64(off) < e.off || int64(off)+512 > e.off+e.n {
					continue
				}
				want := make([]byte, 512)
				if e.data != nil {
					want = e.data[int64(off)-e.off:][:512]
				}
				ok = bytes.Equal(sector, want)
			}
			if !ok {
				return fmt.Errorf("volume %d, sector at %d is neither as flushed nor as written since", v, off)
			}
		}
	}
	return nil
}

// newMemPair is a primary on a queue and a secondary on a journal.
func newMemPair(t *testing.T, seed uint64, limit int64) (*site, *mirror) {
	t.Helper()
	p := &site{t: t, size: memSize, epoch: 1}
	m := &mirror{site: &site{t: t, size: memSize, follow: true}}
	var err error
	if p.mem, err = newMemDevs(seed, memVolumes, memSize, limit); err != nil {
		t.Fatal(err)
	}
	for i := range memVolumes {
		p.devs = append(p.devs, block.NewCrashable(memSize, int64(seed)+int64(i)+1))
		m.devs = append(m.devs, block.NewCrashable(memSize, int64(seed)+int64(i)+50))
		d := block.NewCrashable(block.BitmapSize(memSize/markSize), int64(seed)+int64(i)+70)
		if _, err := block.CreateBitmap(d, memSize/markSize, 1); err != nil {
			t.Fatal(err)
		}
		m.maps = append(m.maps, d)
	}
	m.jdev = newJournal(t, 96<<20, int64(seed)+90, journal.ID{2})
	return p, m
}

// step carries what is in doubt, as a node does after a restart, and waits until the secondary has applied it.
func step(p *site, m *mirror) error {
	if m.sub.State() == SubStreaming {
		return nil
	}
	if _, err := m.sub.BeginStep(false); err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	defer cancel()
	ctx, broken := context.WithCancelCause(ctx)
	pumped := make(chan error, 1)
	pumping, stop := context.WithCancel(ctx)
	go func() {
		err := m.pump(pumping)
		if pumping.Err() == nil {
			broken(fmt.Errorf("the stream ended: %w", err))
		}
		pumped <- err
	}()
	err := m.sub.RunCopy(ctx, CopyOptions{Parallel: 2})
	if err == nil {
		_, err = m.sub.EndStep(ctx)
	}
	for err == nil && m.sub.State() == SubResyncing && ctx.Err() == nil {
		time.Sleep(time.Millisecond)
	}
	stop()
	<-pumped
	return errors.Join(err, context.Cause(ctx))
}

// TestQueueCrashes is I1, I2, I4 and I5 for a primary on a queue: whatever dies, flushed writes survive; the secondary's
// image is a prefix of what was flushed until the step after the restart has ended, and equal to the primary's then;
// the step carries no more than the regions in doubt.
func TestQueueCrashes(t *testing.T) {
	rng, seed := seeded(t)
	rounds := roundsOf(12, 24)
	if testing.Short() {
		rounds = 8
	}
	p, m := newMemPair(t, seed, 1<<20)
	p.cfg = Config{SyncDelay: 2 * time.Millisecond, SyncBytes: 128 << 10, CheckpointEvery: 20 * time.Millisecond}
	h := &history{}
	durable := 0
	for i := range rounds {
		p.open()
		got := images(t, p.with(p.vols))
		if err := survives(h, durable, got); err != nil {
			t.Fatalf("round %d: %v", i, err)
		}
		h = historyFrom(got)
		m.open()
		doubt := marked(t, m.maps)
		m.subscribe(p)
		for n := range memVolumes {
			for _, e := range p.mem.q.Doubt(record.VolumeNumber(n + 1)) {
				doubt += e.Length
			}
		}
		if i > 0 && m.sub.State() != SubSuspended {
			t.Fatalf("round %d: after a restart the subscriber is %s", i, m.sub.State())
		}
		if have := m.sub.ChangedBytes(); have > doubt {
			t.Fatalf("round %d: %d bytes are marked, %d are in doubt", i, have, doubt)
		}
		if rng.IntN(4) > 0 { // else hosts write before the step, and the process dies without one
			if err := step(p, m); err != nil {
				t.Fatalf("round %d: step: %v", i, err)
			}
			same(t, fmt.Sprintf("round %d, behind the step", i), images(t, p), images(t, m.site))
		}
		ctx, stop := context.WithCancel(context.Background())
		pumped := make(chan error, 1)
		go func() { pumped <- m.pump(ctx) }()
		var err error
		durable, err = memLoad(rng, p, h, 20+rng.IntN(200))
		if err != nil {
			t.Fatalf("round %d: %v", i, err)
		}
		durable = max(durable, memVolumes) // what was found is what there is
		streaming := m.sub.State() == SubStreaming
		if rng.IntN(3) == 0 && streaming {
			waitFor(t, func() bool { _, _, a := m.sub.Cursor(); return a == p.g.Tip() })
		}
		stop()
		<-pumped
		if k := h.isPrefix(images(t, m.site), memVolumes); streaming && k < 0 {
			t.Fatalf("round %d: the secondary is no prefix of the %d writes", i, len(h.events))
		}
		switch rng.IntN(4) {
		case 0:
			p.close()
			p.reopenDevices()
			durable = len(h.events)
		case 1:
			p.kill()
			durable = len(h.events)
		default:
			p.crash()
		}
		if rng.IntN(2) == 0 {
			m.crash()
		} else {
			m.close()
			m.reopenDevices()
		}
		for j := range m.maps {
			m.maps[j] = m.maps[j].Crash()
		}
	}
}

// marked is what changed maps say, in bytes.
func marked(t *testing.T, maps []*block.Crashable) (bytes int64) {
	t.Helper()
	for i, d := range maps {
		b, _, err := block.OpenBitmap(d.Peek(int64(i)))
		if err != nil {
			t.Fatal(err)
		}
		bytes += b.Count() * markSize
	}
	return bytes
}

// with is a site of the same volumes, for images.
func (s *site) with(vols []*Volume) *site { return &site{t: s.t, vols: vols} }

// historyFrom begins a history with the images that are there.
func historyFrom(img [][]byte) *history {
	h := &history{}
	for v := range img {
		h.events = append(h.events, event{vol: v, n: int64(len(img[v])), data: img[v]})
	}
	return h
}

func same(t *testing.T, when string, a, b [][]byte) {
	t.Helper()
	for v := range a {
		if !bytes.Equal(a[v], b[v]) {
			at := 0
			for a[v][at] == b[v][at] {
				at++
			}
			t.Fatalf("%s: volume %d differs at %d", when, v, at)
		}
	}
}

func waitFor(t *testing.T, ok func() bool) {
	t.Helper()
	for end := time.Now().Add(20 * time.Second); !ok(); time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			t.Fatal("waited in vain")
		}
	}
}

// A stop with everything settled leaves nothing in doubt: the step after it is empty.
func TestQueueCleanStopCostsNothing(t *testing.T) {
	rng, seed := seeded(t)
	p, m := newMemPair(t, seed, 1<<20)
	p.open()
	m.open()
	m.subscribe(p)
	ctx, stop := context.WithCancel(context.Background())
	pumped := make(chan error, 1)
	go func() { pumped <- m.pump(ctx) }()
	if _, err := memLoad(rng, p, &history{}, 100); err != nil {
		t.Fatal(err)
	}
	waitFor(t, func() bool { _, _, a := m.sub.Cursor(); return a == p.g.Tip() })
	stop()
	<-pumped
	tip := p.g.Tip()
	p.close()
	p.reopenDevices()
	p.open()
	m.subscribe(p)
	if p.g.Tip() != tip || m.sub.ChangedBytes() != 0 || !m.sub.Lapsed() {
		t.Fatalf("tip %d, was %d; %d bytes marked; lapsed %v", p.g.Tip(), tip, m.sub.ChangedBytes(), m.sub.Lapsed())
	}
	if err := step(p, m); err != nil {
		t.Fatal(err)
	}
	if p.g.Tip() != tip+2 {
		t.Errorf("the empty step took %d numbers", p.g.Tip()-tip)
	}
	same(t, "behind the empty step", images(t, p), images(t, m.site))
	p.close()
	m.close()
}

// With nobody who takes the records the memory stays bounded, the subscriber is cut off, hosts go on; a resync under
// load mends it, and needs no more memory for the step than for the stream.
func TestQueueFullCutsOffAndResyncs(t *testing.T) {
	rng, seed := seeded(t)
	const limit = 256 << 10
	p, m := newMemPair(t, seed, limit)
	p.cfg = Config{SyncDelay: 2 * time.Millisecond, CheckpointEvery: 20 * time.Millisecond, CopyBytes: 128 << 10}
	p.open()
	m.open()
	m.subscribe(p)
	h := &history{}
	for range 40 {
		if _, err := memLoad(rng, p, h, 40); err != nil {
			t.Fatal(err)
		}
		if used, capacity := p.g.log.Space(); used > capacity || capacity != limit {
			t.Fatalf("%d bytes of %d used", used, capacity)
		}
	}
	if m.sub.State() != SubSuspended {
		t.Fatalf("the subscriber is %s", m.sub.State())
	}
	if !errors.Is(m.sub.Wait(t.Context(), 0, nil), ErrSuspended) {
		t.Error("a subscriber that is cut off may wait for records")
	}
	// The step's own copies and what is written meanwhile are together more than the queue may hold.
	loaded := make(chan error, 1)
	go func() {
		time.Sleep(5 * time.Millisecond)
		var err error
		for range 25 {
			if _, err = memLoad(rng, p, h, 4); err != nil {
				break
			}
			time.Sleep(2 * time.Millisecond)
		}
		loaded <- err
	}()
	if err := step(p, m); err != nil {
		t.Fatal(err)
	}
	if err := <-loaded; err != nil {
		t.Fatal(err)
	}
	ctx, stop := context.WithCancel(context.Background())
	pumped := make(chan error, 1)
	go func() { pumped <- m.pump(ctx) }()
	waitFor(t, func() bool { _, _, a := m.sub.Cursor(); return a == p.g.Tip() && m.sub.State() == SubStreaming })
	stop()
	<-pumped
	same(t, "at the end", images(t, p), images(t, m.site))
	same(t, "at the end, as written", h.images(memVolumes, memSize, len(h.events)), images(t, p))
	waitFor(t, func() bool { return !p.mem.q.InDoubt() }) // marks go by themselves once hosts are quiet
	p.close()
	m.close()
}

// TestQueueCrashAtEveryDeviceCall cuts the power at single writes and flushes: of the state, the maps and the volumes.
func TestQueueCrashAtEveryDeviceCall(t *testing.T) {
	rng, seed := seeded(t)
	for at := 1; ; at = nextCall(rng, at, 8) {
		if !queueCrashAt(t, seed, at) {
			if at < 20 {
				t.Fatalf("the history had only %d calls", at)
			}
			return
		}
		if testing.Short() && at > 100 {
			return
		}
	}
}

func queueCrashAt(t *testing.T, seed uint64, at int) bool {
	rng := rand.New(rand.NewPCG(seed, 3))
	p, m := newMemPair(t, seed, 1<<20)
	p.cfg = Config{SyncDelay: time.Millisecond, CheckpointEvery: 5 * time.Millisecond}
	calls := make(chan struct{}, 1<<16)
	struck := errors.New("power is about to go")
	hook := func(call block.Call, _, _ int64) error {
		if call == block.CallRead || call == block.CallReadNowait || call == block.CallExtents {
			return nil
		}
		calls <- struct{}{}
		if len(calls) >= at {
			return struck
		}
		return nil
	}
	h := &history{}
	m.open()
	p.open()
	m.subscribe(p)
	for _, d := range append(append([]*block.Crashable{p.mem.state}, p.mem.maps...), p.devs...) {
		d.SetHook(hook)
	}
	ctx, stop := context.WithCancel(context.Background())
	pumped := make(chan error, 1)
	go func() { pumped <- m.pump(ctx) }()
	durable, err := memLoad(rng, p, h, 40)
	if err == nil {
		err = p.g.Checkpoint(t.Context())
	}
	stop()
	<-pumped
	if k := h.isPrefix(images(t, m.site), 0); k < 0 {
		t.Fatalf("call %d: the secondary is no prefix", at)
	}
	if rng.IntN(2) == 0 {
		p.crash()
	} else {
		p.kill() // after a failed flush the cache may hold what the disk will never get
	}
	for j := range m.maps {
		m.maps[j] = m.maps[j].Crash()
	}
	p.open()
	if err := survives(h, durable, images(t, p)); err != nil {
		t.Fatalf("call %d: %v", at, err)
	}
	m.subscribe(p)
	if err := step(p, m); err != nil {
		t.Fatalf("call %d: step: %v", at, err)
	}
	there := images(t, m.site)
	same(t, fmt.Sprintf("call %d, behind the step", at), images(t, p), there)
	p.crash() // what the secondary has now, the primary must not lose any more
	p.open()
	same(t, fmt.Sprintf("call %d, after another loss of power", at), images(t, p), there)
	p.close()
	m.close()
	return err != nil
}

// Numbers are never used twice for other bytes, whatever died: each run begins above all that went before.
func TestQueueNumbersOnlyRise(t *testing.T) {
	rng, seed := seeded(t)
	p, _ := newMemPair(t, seed, 1<<20)
	highest := record.Seq(0)
	for range 12 {
		p.open()
		if first := p.g.Appended() + 1; first <= highest {
			t.Fatalf("the run begins at %d, %d was used before", first, highest)
		}
		if _, err := memLoad(rng, p, &history{}, 1+rng.IntN(40)); err != nil {
			t.Fatal(err)
		}
		highest = p.g.Tip()
		switch rng.IntN(3) {
		case 0:
			p.close()
			p.reopenDevices()
		case 1:
			p.kill()
		default:
			p.crash()
		}
	}
}

// What every subscriber has acknowledged is freed at once, without a checkpoint: far more passes than the memory holds. What
// one that lags has still to read is kept.
func TestQueueMemoryIsFreedByAcks(t *testing.T) {
	_, seed := seeded(t)
	const limit = 256 << 10
	p, m := newMemPair(t, seed, limit)
	p.cfg = Config{SyncDelay: time.Millisecond, CheckpointEvery: time.Hour}
	p.open()
	m.subscribe(p)
	lagging, err := p.g.Subscribe("lagging", SubscriberConfig{})
	if err != nil {
		t.Fatal(err)
	}
	ack := func(s *Subscriber, seq record.Seq) {
		t.Helper()
		if err := s.Acked(seq, seq, seq); err != nil {
			t.Fatal(err)
		}
	}
	for i := range 256 { // 1 MiB
		if err := write(p.vols[0], int64(i)*4096, stamp(i+1, 4096), 0); err != nil {
			t.Fatal(err)
		}
		if i%8 != 7 {
			continue
		}
		if err := p.g.Sync(t.Context()); err != nil {
			t.Fatal(err)
		}
		tip := p.g.Tip()
		ack(m.sub, tip)
		if used, _ := p.g.log.Space(); used < 8*4096 {
			t.Fatalf("at %d: %d bytes are kept for a subscriber that lacks 8 records", tip, used)
		}
		for next := tip - 7; next <= tip; {
			recs, err := lagging.Read(next, 3, 1<<20)
			if err != nil || len(recs) == 0 || recs[0].Seq != next || len(recs[0].Data) != 4096 {
				t.Fatalf("reading at %d: %d records, %v", next, len(recs), err)
			}
			next = recs[len(recs)-1].Seq + 1
		}
		ack(lagging, tip)
		if used, _ := p.g.log.Space(); used != 0 {
			t.Fatalf("at %d: %d bytes are kept for nobody", tip, used)
		}
	}
	for _, s := range []*Subscriber{m.sub, lagging} {
		if s.State() != SubStreaming {
			t.Errorf("%s is %s: %s", s.Name(), s.State(), s.Reason())
		}
	}
	p.close()
}
