package volume

import (
	"bytes"
	"context"
	"errors"
	"math/rand/v2"
	"sync/atomic"
	"testing"
	"time"

	"gantline/internal/block"
)

const regionSize = 16 << 10

// sealedSource answers fetches from an image, may be away, and counts.
type sealedSource struct {
	image []byte
	away  atomic.Bool
	got   atomic.Int64
	delay time.Duration
	asked [testSize / regionSize / 8]atomic.Bool // eight regions each, of which the zeros are known
}

// Hole knows what fetches have told, and now and then forgets it.
func (s *sealedSource) Hole(off, n int64) bool {
	for r := off / regionSize; r*regionSize < off+n; r++ {
		if !s.asked[r/8].Load() {
			return false
		}
	}
	return block.IsZero(s.image[off : off+n])
}

func (s *sealedSource) Fetch(ctx context.Context, off int64, p []byte) error {
	time.Sleep(s.delay)
	if s.away.Load() {
		return errors.New("source is away")
	}
	s.got.Add(int64(len(p)))
	asked := &s.asked[off/regionSize/8]
	asked.Store(!asked.Load())
	copy(p, s.image[off:])
	return nil
}

// target is a site whose volumes are being filled.
type target struct {
	*site
	sources []*sealedSource
	maps    []*block.Crashable
	stopAll context.CancelFunc
	filled  chan error
}

func newTarget(t *testing.T, rng *rand.Rand, seed uint64) *target {
	x := &target{site: newSite(t, seed, testVolumes, testSize, 4<<20)}
	x.cfg = Config{CacheBytes: 512 << 10, RoundBytes: 32 << 10, RoundDelay: time.Millisecond, CheckpointFilled: 0.1}
	for i := range testVolumes {
		src := &sealedSource{image: make([]byte, testSize), delay: time.Duration(rng.IntN(300)) * time.Microsecond}
		for off := 0; off < testSize; off += regionSize {
			if rng.IntN(4) > 0 {
				copy(src.image[off:], stamp(rng.Int(), regionSize))
			}
		}
		x.sources = append(x.sources, src)
		fillSome(rng, x.devs[i]) // what the target's device held before must never show
		d := block.NewCrashable(block.BitmapSize(testSize/regionSize), int64(seed)+int64(i)+50)
		if _, err := block.CreateBitmap(d, testSize/regionSize, 1); err != nil {
			t.Fatal(err)
		}
		x.maps = append(x.maps, d)
	}
	return x
}

// begin sets the presence, as after a restart: the group has been opened blind.
func (x *target) begin() {
	x.t.Helper()
	x.open()
	for i, v := range x.vols {
		b, losses, err := block.OpenBitmap(x.maps[i])
		if err != nil || len(losses) > 0 {
			x.t.Fatal(err, losses)
		}
		if err := v.SetPresence(Presence{Map: b, Region: regionSize, Fetch: x.sources[i], Parallel: 2, Patience: 20 * time.Millisecond}); err != nil {
			x.t.Fatal(err)
		}
		if err := v.SetMode(x.t.Context(), ModeMigrating, true); err != nil {
			x.t.Fatal(err)
		}
	}
	ctx, stop := context.WithCancel(context.Background())
	x.stopAll, x.filled = stop, make(chan error, testVolumes)
	for _, v := range x.vols {
		go func() { x.filled <- v.Fill(ctx) }()
	}
}

func (x *target) stopFill() {
	x.stopAll()
	for range x.vols {
		<-x.filled
	}
}

func (x *target) lose(rng *rand.Rand) {
	x.stopFill()
	if rng.IntN(2) == 0 {
		for i := range x.maps {
			x.maps[i] = x.maps[i].Crash()
		}
		x.crash()
		return
	}
	for i := range x.maps {
		x.maps[i] = x.maps[i].Kill()
	}
	x.kill()
}

// TestFillUnderLoadAndPowerLoss is I10: at every recovery the image is the source's with a prefix of the writes on top,
// copied data never replaces newer host data, and at the end all is present.
func TestFillUnderLoadAndPowerLoss(t *testing.T) {
	rng, seed := seeded(t)
	tries := 12
	if testing.Short() {
		tries = 4
	}
	for range tries {
		x := newTarget(t, rng, seed+rng.Uint64N(1<<20))
		h := &history{}
		for i := range x.sources {
			h.events = append(h.events, event{vol: i, n: testSize, data: x.sources[i].image})
		}
		for round := 0; ; round++ {
			x.begin()
			if got := images(t, x.site); round > 0 {
				k := h.isPrefix(got, testVolumes)
				if k < 0 {
					t.Fatalf("round %d: the image is not the source's with a prefix of the writes", round)
				}
				h.events = h.events[:k]
			}
			if round == 3 {
				break
			}
			if _, err := load(rng, x.site, h, 30+rng.IntN(100)); err != nil {
				t.Fatal(err)
			}
			x.lose(rng)
		}
		for range x.vols {
			if err := <-x.filled; err != nil {
				t.Fatal("fill:", err)
			}
		}
		for _, v := range x.vols {
			if st, _ := v.PresenceStatus(); st.Present != st.Regions {
				t.Fatalf("%d of %d regions present", st.Present, st.Regions)
			}
			if err := v.SetMode(t.Context(), ModeNormal, true); err != nil {
				t.Fatal(err)
			}
			if err := v.ClearPresence(); err != nil {
				t.Fatal(err)
			}
		}
		want := h.images(testVolumes, testSize, len(h.events))
		for i, img := range images(t, x.site) {
			if !bytes.Equal(img, want[i]) {
				t.Fatalf("volume %d differs after the fill", i)
			}
		}
		x.close()
	}
}

// TestSourceAway: writes to absent regions fail before they take a number, reads of them fail, other regions go on, and
// what is in the log stays and is seen when the source is back.
func TestSourceAway(t *testing.T) {
	rng, seed := seeded(t)
	x := newTarget(t, rng, seed)
	for _, s := range x.sources {
		s.away.Store(true)
	}
	x.begin()
	v := x.vols[0]
	if err := write(v, 512, stamp(1, 512), 0); err != nil {
		t.Fatal("the first write is numbered before it is known that the source is away:", err)
	}
	r, w := newRequest(block.OpRead, 0, 4096)
	if err := submit(v, r, w); !errors.Is(err, ErrSourceAway) {
		t.Fatalf("read of an absent region: %v", err)
	}
	if got := read(t, v, 512, 512); !bytes.Equal(got, stamp(1, 512)) {
		t.Fatal("what is in the log must be readable")
	}
	deadline := time.Now().Add(10 * time.Second)
	for {
		before := x.g.Appended()
		err := write(v, 5*regionSize, stamp(2, 512), 0)
		if errors.Is(err, ErrSourceAway) {
			if x.g.Appended() != before {
				t.Fatal("a refused write took a number")
			}
			break
		}
		if time.Now().After(deadline) {
			t.Fatal("writes to absent regions are never refused")
		}
		time.Sleep(5 * time.Millisecond)
	}
	if err := x.g.Checkpoint(t.Context()); err != nil {
		t.Fatal(err)
	}
	if c := x.jnl.Cursors(); c.Trimmed != 0 {
		t.Fatalf("the log was freed to %d though its writes are nowhere else", c.Trimmed)
	}
	x.lose(rng)
	x.begin()
	for _, s := range x.sources {
		s.away.Store(false)
	}
	want := bytes.Clone(x.sources[0].image[:4096])
	copy(want[512:], stamp(1, 512))
	for {
		r, w := newRequest(block.OpRead, 0, 4096)
		if err := submit(x.vols[0], r, w); err == nil || time.Now().After(deadline) {
			break
		}
	}
	if got := read(t, x.vols[0], 0, 4096); !bytes.Equal(got, want) {
		t.Fatal("the block is not the source's with the logged write on top")
	}
	for range x.vols {
		if err := <-x.filled; err != nil {
			t.Fatal(err)
		}
	}
	x.close()
}

// TestBlindUntilPresenceIsKnown: a target that restarts before it has been told its regions writes and reads nothing.
func TestBlindUntilPresenceIsKnown(t *testing.T) {
	rng, seed := seeded(t)
	x := newTarget(t, rng, seed)
	x.sources[0].delay = time.Hour
	x.open()
	b, _, err := block.OpenBitmap(x.maps[0])
	if err != nil {
		t.Fatal(err)
	}
	if err := x.vols[0].SetPresence(Presence{Map: b, Region: regionSize, Fetch: x.sources[0]}); err != nil {
		t.Fatal(err)
	}
	if err := write(x.vols[0], 0, stamp(3, 4096), block.FlagFUA); err != nil {
		t.Fatal(err)
	}
	x.kill()
	before := deviceBytes(t, x.devs[0])
	x.open()
	if err := x.g.Checkpoint(t.Context()); err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(before, deviceBytes(t, x.devs[0])) {
		t.Fatal("a blind volume's device was written")
	}
	r, w := newRequest(block.OpRead, 8192, 4096)
	if err := submit(x.vols[0], r, w); !errors.Is(err, ErrSourceAway) {
		t.Fatalf("a blind volume's device was read: %v", err)
	}
	r, w = newRequest(block.OpExtents, 8192, 4096)
	if err := submit(x.vols[0], r, w); !errors.Is(err, ErrSourceAway) {
		t.Fatalf("a blind volume's device was asked for holes: %v, %v", r.Extents, err)
	}
	if err := write(x.vols[0], 0, stamp(3, 4096), 0); !errors.Is(err, ErrSourceAway) {
		t.Fatalf("a blind volume took a write: %v", err)
	}
	x.crash()
}

// TestRegionIsPresentOnlyOnceItsDataIsFlushed: the map is written behind the device flush.
func TestRegionIsPresentOnlyOnceItsDataIsFlushed(t *testing.T) {
	rng, seed := seeded(t)
	x := newTarget(t, rng, seed)
	var early, writes atomic.Int64
	for i, m := range x.maps {
		dev := x.devs[i]
		m.SetHook(func(c block.Call, _, _ int64) error {
			if c == block.CallWrite {
				writes.Add(1)
				early.Add(int64(dev.Unsynced()))
			}
			return nil
		})
	}
	x.open()
	for i, v := range x.vols {
		b, _, err := block.OpenBitmap(x.maps[i])
		if err == nil {
			err = v.SetPresence(Presence{Map: b, Region: regionSize, Fetch: x.sources[i]})
		}
		if err == nil {
			err = v.Fill(t.Context())
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	if writes.Load() == 0 || early.Load() != 0 {
		t.Fatalf("%d map writes, %d sectors of data were not flushed before", writes.Load(), early.Load())
	}
	x.close()
}

// slowAnswer is a device whose answer about its extents is on its way for a while.
type slowAnswer struct {
	block.Device
	meanwhile func()
}

func (d slowAnswer) Extents(off, n int64) ([]block.Extent, error) {
	ext, err := d.Device.Extents(off, n)
	d.meanwhile()
	return ext, err
}

// TestARegionThatArrivesIsNoHole: the device was asked while the region was absent, and its answer comes when it is not any more. An
// initial copy would take that for a hole, and trim the secondary there.
func TestARegionThatArrivesIsNoHole(t *testing.T) {
	_, seed := seeded(t)
	x := &target{site: newSite(t, seed, 1, testSize, 4<<20)}
	src := &sealedSource{image: stamp(1, testSize)}
	d := block.NewCrashable(block.BitmapSize(testSize/regionSize), int64(seed)+50)
	b, err := block.CreateBitmap(d, testSize/regionSize, 1)
	if err != nil {
		t.Fatal(err)
	}
	x.mend = func(*site) {
		v := x.vols[0]
		v.dev = slowAnswer{v.dev, func() {
			if err := v.presence.Load().fetch(t.Context(), 0, regionSize); err != nil {
				t.Error(err)
			}
		}}
		if err := v.SetPresence(Presence{Map: b, Region: regionSize, Fetch: src}); err != nil {
			t.Fatal(err)
		}
	}
	x.open()
	r, w := newRequest(block.OpExtents, 0, 2*regionSize)
	if err := submit(x.vols[0], r, w); err != nil {
		t.Fatal(err)
	}
	if len(r.Extents) != 1 || r.Extents[0].Type != block.ExtentData {
		t.Fatalf("extents %v", r.Extents)
	}
	x.close()
}
