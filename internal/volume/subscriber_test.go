package volume

import (
	"bytes"
	"context"
	"errors"
	"math/rand/v2"
	"sync"
	"testing"
	"time"

	"gantline/internal/block"
	"gantline/internal/record"
)

const markSize = 8 << 10

// mirror is a follower fed by a subscriber: what sender, receiver and apply do, in the plainest form.
type mirror struct {
	*site
	sub    *Subscriber
	maps   []*block.Crashable
	paused bool
	mu     sync.Mutex
	broken func(error) // who uses pumping hears here that the stream has ended by itself
}

func newMaps(t testing.TB, seed uint64) []*block.Crashable {
	var maps []*block.Crashable
	for i := range testVolumes {
		d := block.NewCrashable(block.BitmapSize(testSize/markSize), int64(seed)+int64(i))
		if _, err := block.CreateBitmap(d, testSize/markSize, 1); err != nil {
			t.Fatal(err)
		}
		maps = append(maps, d)
	}
	return maps
}

// subscribe registers the follower at a primary that has just been opened.
func (m *mirror) subscribe(p *site) {
	m.t.Helper()
	changed := map[record.VolumeNumber]Bitmap{}
	for i, d := range m.maps {
		b, _, err := block.OpenBitmap(d)
		if err != nil {
			m.t.Fatal(err)
		}
		changed[record.VolumeNumber(i+1)] = b
	}
	var err error
	if m.sub, err = p.g.Subscribe("m", SubscriberConfig{Changed: changed, BlockSize: markSize}); err != nil {
		m.t.Fatal(err)
	}
}

// pump moves records until ctx ends or the subscriber is suspended. Step records are kept and applied whole.
func (m *mirror) pump(ctx context.Context) error {
	for ctx.Err() == nil {
		c := m.jnl.Cursors()
		if err := m.sub.Wait(ctx, c.Appended, nil); err != nil {
			return err
		}
		recs, err := m.sub.Read(c.Appended+1, 50, 64<<10)
		if err != nil {
			return err
		}
		if len(recs) == 0 {
			time.Sleep(time.Millisecond)
			continue
		}
		if err := m.take(recs); err != nil {
			return err
		}
		c = m.jnl.Cursors()
		if err := m.sub.Acked(c.Appended, c.Durable, m.g.Applied()); err != nil {
			return err
		}
	}
	return nil
}

func (m *mirror) take(recs []record.Record) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	if row, ok := m.sub.Table().At(recs[0].Seq); ok {
		if have, ok := m.jnl.Table().At(recs[0].Seq); !ok || !have.Same(row) {
			if err := m.jnl.AdoptTable(m.sub.Table()); err != nil {
				return err
			}
		}
	}
	for i := range recs {
		if recs[i].Op != record.OpBegin {
			continue
		}
		if i > 0 {
			recs = recs[:i] // the rest is read again
		} else if err := m.dropUnfinished(); err != nil {
			return err
		}
		break
	}
	if err := m.jnl.AppendAfterGap(recs); errors.Is(err, ErrFull) {
		return m.g.Checkpoint(context.Background()) // read again
	} else if err != nil {
		if err := m.jnl.AdoptTable(m.sub.Table()); err != nil {
			return err
		}
		return nil
	}
	if _, err := m.jnl.Sync(); err != nil {
		return err
	}
	return m.applyStored()
}

// dropUnfinished takes a step out of the log that has no end: another begins.
func (m *mirror) dropUnfinished() error {
	if err := m.applyStored(); err != nil { // after a death it may not be there yet, with what lies before the step
		return err
	}
	applied := m.g.Applied()
	if m.jnl.Cursors().Appended == applied {
		return nil
	}
	recs, err := m.jnl.Read(applied+1, 1<<12, 64<<20)
	if err != nil || recs[0].Op != record.OpBegin {
		return err
	}
	return m.jnl.Cut(applied)
}

// applyStored applies what may be: everything outside a step, a step once its end is stored.
func (m *mirror) applyStored() error {
	for from := m.g.Applied() + 1; from <= m.jnl.Cursors().Durable; from = m.g.Applied() + 1 {
		recs, err := m.jnl.Read(from, 1<<12, 64<<20)
		if err != nil {
			return err
		}
		if recs[0].Op == record.OpBegin {
			end := -1
			for i := range recs {
				if recs[i].Op == record.OpEnd {
					end = i
				}
			}
			if end < 0 {
				return nil
			}
			if err := m.g.Intend(recs[end].Seq); err != nil {
				return err
			}
		}
		for i := range recs {
			if i > 0 && recs[i].Op == record.OpBegin {
				recs = recs[:i]
				break
			}
		}
		if err := m.g.Apply(recs); err != nil {
			return err
		}
	}
	return nil
}

func images(t testing.TB, s *site) [][]byte {
	var all [][]byte
	for _, v := range s.vols {
		all = append(all, image(t, v))
	}
	return all
}

func newPair(t *testing.T, seed uint64, journalSize int64) (*site, *mirror) {
	p := newSite(t, seed, testVolumes, testSize, journalSize)
	p.cfg = Config{RoundBytes: 64 << 10, RoundDelay: 2 * time.Millisecond, CheckpointFilled: 0.2, SyncDelay: time.Millisecond}
	p.open()
	m := &mirror{site: newSite(t, seed+100, testVolumes, testSize, 8<<20), maps: newMaps(t, seed+200)}
	m.cfg, m.follow = p.cfg, true
	m.open()
	m.subscribe(p)
	return p, m
}

// TestFollowerIsAPrefixAtAnyCrash: I2 and I5 at the secondary, its power cut at random moments under load.
func TestFollowerIsAPrefixAtAnyCrash(t *testing.T) {
	rng, seed := seeded(t)
	p, m := newPair(t, seed, 16<<20)
	h := &history{}
	rounds := 12
	if testing.Short() {
		rounds = 4
	}
	for i := range rounds {
		ctx, stop := context.WithCancel(t.Context())
		ended := make(chan error, 1)
		go func() { ended <- m.pump(ctx) }()
		if _, err := load(rng, p, h, 150); err != nil {
			t.Fatal(err)
		}
		time.Sleep(time.Duration(rng.IntN(5)) * time.Millisecond)
		stop()
		if err := <-ended; err != nil && !errors.Is(err, context.Canceled) {
			t.Fatalf("round %d: %v", i, err)
		}
		if rng.IntN(2) == 0 {
			m.crash()
		} else {
			m.kill()
		}
		m.open()
		if k := h.isPrefix(images(t, m.site), 0); k < 0 {
			t.Fatalf("round %d: the secondary at %d is no prefix of %d writes", i, m.g.Applied(), len(h.events))
		}
		if err := m.applyStored(); err != nil {
			t.Fatal(err)
		}
		if k := h.isPrefix(images(t, m.site), 0); k < 0 {
			t.Fatalf("round %d: the secondary at %d is no prefix after applying its log", i, m.g.Applied())
		}
	}
	finish(t, p, m)
	p.close()
	m.close()
	for i := range m.devs {
		if !bytes.Equal(deviceBytes(t, m.devs[i].Kill()), deviceBytes(t, p.devs[i].Kill())) {
			t.Fatalf("device %d differs after both were closed", i)
		}
	}
}

// pumpAll pumps until the follower has everything, or limit has passed.
func pumpAll(t *testing.T, p *site, m *mirror, limit time.Duration) {
	t.Helper()
	if err := p.g.Sync(t.Context()); err != nil {
		t.Fatal(err)
	}
	ctx, stop := context.WithTimeout(t.Context(), limit)
	defer stop()
	ended := make(chan error, 1)
	go func() { ended <- m.pump(ctx) }()
	for m.g.Applied() < p.g.Appended() && ctx.Err() == nil {
		time.Sleep(time.Millisecond)
	}
	stop()
	<-ended
}

// finish pumps until the follower has everything and compares.
func finish(t *testing.T, p *site, m *mirror) {
	t.Helper()
	pumpAll(t, p, m, 20*time.Second)
	got, want := images(t, m.site), images(t, p)
	for i := range got {
		if !bytes.Equal(got[i], want[i]) {
			t.Fatalf("volume %d differs: follower at %d, primary at %d, lag %+v", i, m.g.Applied(), p.g.Appended(), m.sub.Lag())
		}
	}
	if lag := m.sub.Lag(); lag != (Lag{}) {
		t.Fatalf("lag of equal images: %+v", lag)
	}
}

// TestFullLogCutsOffAndResyncs: a subscriber that stands still is cut off when the log is full, the host goes on, and
// a resync of what was marked, as one step and under load, makes the images equal; power losses of the primary in
// between lose no mark (I7).
func TestFullLogCutsOffAndResyncs(t *testing.T) {
	rng, seed := seeded(t)
	p, m := newPair(t, seed, 2<<20)
	h := &history{}
	rounds := 6
	if testing.Short() {
		rounds = 2
	}
	for i := range rounds {
		if err := pumpFor(t, m, 20*time.Millisecond); err != nil && m.sub.State() != SubSuspended {
			t.Fatal(err)
		}
		for n := 0; m.sub.State() != SubSuspended; n++ {
			if _, err := load(rng, p, h, 50); err != nil {
				t.Fatal("the host was stopped:", err)
			}
			if n > 200 {
				t.Fatal("the log never filled up")
			}
		}
		if rng.IntN(2) == 0 {
			for i := range m.maps {
				m.maps[i] = m.maps[i].Crash()
			}
			p.crash()
			p.open()
			m.subscribe(p)
			if m.sub.State() != SubSuspended {
				t.Fatalf("after a crash the subscriber is %s", m.sub.State())
			}
			h.events = nil
		}
		if _, err := load(rng, p, h, 20); err != nil {
			t.Fatal(err)
		}
		before := images(t, m.site)
		resync(t, rng, p, m, h, before)
		if i%2 == 0 {
			finish(t, p, m)
		}
	}
	p.close()
	m.close()
}

func pumpFor(t *testing.T, m *mirror, d time.Duration) error {
	ctx, stop := context.WithTimeout(t.Context(), d)
	defer stop()
	err := m.pump(ctx)
	if errors.Is(err, context.DeadlineExceeded) {
		return nil
	}
	return err
}

// resync runs a step under load; until it is applied the follower's image stands still.
func resync(t *testing.T, rng *rand.Rand, p *site, m *mirror, h *history, before [][]byte) {
	t.Helper()
	begin, err := m.sub.BeginStep(false)
	if err != nil {
		t.Fatal(err)
	}
	ctx, stop := context.WithTimeout(t.Context(), 20*time.Second)
	defer stop()
	ended := make(chan error, 1)
	go func() { ended <- m.pump(ctx) }()
	copied := make(chan error, 1)
	go func() { copied <- m.sub.RunCopy(ctx, CopyOptions{Parallel: 2}) }()
	if _, err := load(rng, p, h, 40); err != nil {
		t.Fatal(err)
	}
	if err := <-copied; err != nil {
		t.Fatal("copy:", err)
	}
	for i, img := range images(t, m.site) {
		if !bytes.Equal(img, before[i]) {
			t.Fatalf("volume %d of the follower changed inside the step that began at %d", i, begin)
		}
	}
	if _, err := m.sub.EndStep(ctx); err != nil {
		t.Fatal(err)
	}
	for m.sub.State() != SubStreaming && ctx.Err() == nil {
		time.Sleep(time.Millisecond)
	}
	stop()
	<-ended
	if m.sub.State() != SubStreaming || m.sub.ChangedBytes() != 0 {
		t.Fatalf("after the step the subscriber is %s with %d bytes marked", m.sub.State(), m.sub.ChangedBytes())
	}
}

// TestInitialCopyUnderLoad: volumes that hold data, and holes where the follower holds something old, are equal after a
// copy in the stream beside host writes.
func TestInitialCopyUnderLoad(t *testing.T) {
	rng, seed := seeded(t)
	p := newSite(t, seed, testVolumes, testSize, 8<<20)
	m := &mirror{site: newSite(t, seed+100, testVolumes, testSize, 8<<20), maps: newMaps(t, seed+200)}
	for i := range testVolumes {
		fillSome(rng, p.devs[i])
		fillSome(rng, m.devs[i])
	}
	p.cfg.RoundDelay = time.Millisecond
	p.open()
	m.follow = true
	m.open()
	m.subscribe(p)
	h := &history{}
	ctx, stop := context.WithTimeout(t.Context(), 30*time.Second)
	defer stop()
	ended := make(chan error, 1)
	go func() { ended <- m.pump(ctx) }()
	copied := make(chan error, 1)
	go func() {
		for n := range testVolumes {
			if err := m.sub.MarkData(record.VolumeNumber(n + 1)); err != nil {
				copied <- err
				return
			}
		}
		copied <- m.sub.RunCopy(ctx, CopyOptions{AtOnce: true})
	}()
	if _, err := load(rng, p, h, 300); err != nil {
		t.Fatal(err)
	}
	if err := <-copied; err != nil {
		t.Fatal(err)
	}
	if left := m.sub.ChangedBytes(); left != 0 {
		t.Fatalf("%d bytes are marked after the copy", left)
	}
	stop()
	<-ended
	finish(t, p, m)
	p.close()
	m.close()
}

func fillSome(rng *rand.Rand, d block.Device) {
	for off := int64(0); off < d.Size(); off += 16 << 10 {
		if rng.IntN(2) == 0 {
			d.WriteAt(stamp(rng.Int(), 16<<10), off)
		}
	}
	d.Flush()
}

// TestApplyRefuses: gaps, other epochs, what is not durable, unannounced steps; duplicates change nothing.
func TestApplyRefuses(t *testing.T) {
	_, seed := seeded(t)
	m := newSite(t, seed, 1, testSize, 4<<20)
	m.follow = true
	m.open()
	if err := m.jnl.Reset(0, record.Table{{Epoch: 1, Incarnation: 1, Node: "a", First: 1}}, nil); err != nil {
		t.Fatal(err)
	}
	rec := func(seq record.Seq, op record.Op, n int) record.Record {
		r := record.Record{Seq: seq, Epoch: 1, Incarnation: 1, Op: op}
		if op == record.OpWrite {
			r.Volume, r.Length, r.Data = 1, 4096, stamp(n, 4096)
		}
		return r
	}
	recs := []record.Record{rec(1, record.OpWrite, 1), rec(2, record.OpWrite, 2), rec(3, record.OpBegin, 0), rec(4, record.OpWrite, 3), rec(5, record.OpEnd, 0)}
	if err := m.jnl.Append(recs); err != nil {
		t.Fatal(err)
	}
	apply := func(want error, recs ...record.Record) {
		t.Helper()
		if err := m.g.Apply(recs); !errors.Is(err, want) {
			t.Fatalf("applying %d: %v, want %v", recs[0].Seq, err, want)
		}
	}
	apply(ErrNotDurable, recs[0])
	if _, err := m.jnl.Sync(); err != nil {
		t.Fatal(err)
	}
	apply(ErrGap, recs[1])
	other := recs[0]
	other.Epoch = 2
	apply(ErrEpoch, other)
	unknown := recs[0]
	unknown.Volume = 7
	apply(ErrUnknownVolume, unknown)
	apply(nil, recs[0], recs[1])
	apply(nil, recs[0], rec(2, record.OpWrite, 9))
	if got := read(t, m.vols[0], 0, 4096); string(got) != string(stamp(2, 4096)) {
		t.Fatal("a duplicate changed the image")
	}
	apply(ErrStep, recs[2])
	if err := m.g.Intend(9); !errors.Is(err, ErrNotDurable) {
		t.Fatalf("a step was announced beyond the log: %v", err)
	}
	if err := m.g.Intend(5); err != nil {
		t.Fatal(err)
	}
	apply(nil, recs[2], recs[3])
	if err := write(m.vols[0], 0, stamp(1, 4096), 0); !errors.Is(err, block.ErrReadOnly) {
		t.Fatalf("a follower took a write: %v", err)
	}
	if err := m.g.Serve(record.Row{Epoch: 2, Incarnation: 1, Node: "b", First: 6}); !errors.Is(err, ErrBehind) {
		t.Fatalf("it serves inside a step: %v", err)
	}
	m.crash()
	m.open()
	if m.g.Applied() != 5 || string(read(t, m.vols[0], 0, 4096)) != string(stamp(3, 4096)) {
		t.Fatalf("recovery left the step at %d", m.g.Applied())
	}
	m.close()
}

// TestMarksOutliveAPowerLossThatTheMapDidNot: a suspended subscriber's marks are set anew from the log.
func TestMarksOutliveAPowerLossThatTheMapDidNot(t *testing.T) {
	_, seed := seeded(t)
	p, m := newPair(t, seed, 8<<20)
	if err := m.sub.Suspend("by command"); err != nil {
		t.Fatal(err)
	}
	for i := range int64(5) {
		if err := write(p.vols[1], i*4*markSize, stamp(1, 512), block.FlagFUA); err != nil {
			t.Fatal(err)
		}
	}
	for i := range m.maps {
		m.maps[i] = m.maps[i].Crash()
	}
	p.crash()
	p.open()
	m.subscribe(p)
	if m.sub.State() != SubSuspended || m.sub.ChangedBytes() != 5*markSize {
		t.Fatalf("%s, %d bytes marked, want %d", m.sub.State(), m.sub.ChangedBytes(), 5*markSize)
	}
	p.close()
	m.close()
}

// slowMap is a changed map whose flush takes as long as the test wants.
type slowMap struct {
	Bitmap
	begun, goOn chan struct{}
	once        sync.Once
}

func (m *slowMap) Flush() error {
	m.once.Do(func() {
		close(m.begun)
		<-m.goOn
	})
	return m.Bitmap.Flush()
}

// Whoever has unsubscribed may close the maps: a checkpoint that has begun before does not flush them any more, which would
// take the group with it.
func TestUnsubscribeWaitsForTheTrim(t *testing.T) {
	_, seed := seeded(t)
	p := newSite(t, seed, testVolumes, testSize, 8<<20)
	p.open()
	bits, _, err := block.OpenBitmap(newMaps(t, seed+200)[0])
	if err != nil {
		t.Fatal(err)
	}
	slow := &slowMap{Bitmap: bits, begun: make(chan struct{}), goOn: make(chan struct{})}
	if _, err := p.g.Subscribe("m", SubscriberConfig{Changed: map[record.VolumeNumber]Bitmap{1: slow}, BlockSize: markSize}); err != nil {
		t.Fatal(err)
	}
	checked, gone := make(chan error, 1), make(chan error, 1)
	go func() { checked <- p.g.Checkpoint(t.Context()) }()
	<-slow.begun
	go func() { gone <- p.g.Unsubscribe("m") }()
	select {
	case err := <-gone:
		t.Errorf("unsubscribed (%v) while a checkpoint flushes the map", err)
	case <-time.After(50 * time.Millisecond):
	}
	close(slow.goOn)
	if err := errors.Join(<-checked, <-gone); err != nil {
		t.Error(err)
	}
	p.close()
}
