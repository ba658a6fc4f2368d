package volume

import (
	"bytes"
	"errors"
	"math/rand/v2"
	"slices"
	"testing"
	"time"

	"gantline/internal/block"
	"gantline/internal/record"
)

const (
	sinceVolumes = 2
	sinceSize    = 3<<20 + 4096 // the last block is a short one
	sinceBlocks  = (sinceSize + DigestBlock - 1) / DigestBlock
)

// sinceSite is a site whose volumes began as the images then, with maps of what has been written since.
type sinceSite struct {
	*site
	then [][]byte
	maps []*block.Crashable
	sub  *Subscriber
}

func newSinceSite(t *testing.T, seed uint64, queue bool) *sinceSite {
	t.Helper()
	s := &sinceSite{site: newSite(t, seed, sinceVolumes, sinceSize, 4<<20)}
	s.cfg = Config{CacheBytes: 512 << 10, RoundBytes: 64 << 10, RoundDelay: time.Millisecond, CheckpointFilled: 0.05}
	if queue {
		var err error
		if s.mem, err = newMemDevs(seed, sinceVolumes, sinceSize, 1<<20); err != nil {
			t.Fatal(err)
		}
		s.cfg.CheckpointEvery = 5 * time.Millisecond
	}
	for i, d := range s.devs {
		img := make([]byte, sinceSize)
		for off := int64(0); off < sinceSize; off += 512 << 10 { // the rest is zeros
			copy(img[off:], stamp(1000*i+int(off>>9), min(256<<10, sinceSize-off)))
		}
		if _, err := d.WriteAt(img, 0); err != nil {
			t.Fatal(err)
		}
		if err := d.Flush(); err != nil {
			t.Fatal(err)
		}
		s.then = append(s.then, img)
		m := block.NewCrashable(block.BitmapSize(sinceBlocks), int64(seed)+int64(i)+300)
		if _, err := block.CreateBitmap(m, sinceBlocks, 1); err != nil {
			t.Fatal(err)
		}
		s.maps = append(s.maps, m)
	}
	return s
}

// begin opens and subscribes, as a node does: there may be records by then.
func (s *sinceSite) begin(first bool) {
	s.t.Helper()
	s.open()
	cfg := SubscriberConfig{Changed: map[record.VolumeNumber]Bitmap{}, BlockSize: DigestBlock, Images: true}
	if first {
		cfg.State = SubSuspended
	} else if !s.g.Remembers("cut") {
		s.t.Fatal("forgotten by the log")
	}
	for i, d := range s.maps {
		b, lost, err := block.OpenBitmap(d)
		if err != nil || len(lost) > 0 {
			s.t.Fatal(err, lost)
		}
		cfg.Changed[record.VolumeNumber(i+1)] = b
	}
	var err error
	if s.sub, err = s.g.Subscribe("cut", cfg); err != nil {
		s.t.Fatal(err)
	}
}

func (s *sinceSite) die(power bool) {
	for i := range s.maps {
		if power {
			s.maps[i] = s.maps[i].Crash()
		} else {
			s.maps[i] = s.maps[i].Kill()
		}
	}
	if power {
		s.crash()
	} else {
		s.kill()
	}
}

// differ compares an extent of a volume with what it was.
func (s *sinceSite) differ(vol int, off, length int64) ([]block.Extent, error) {
	n := record.VolumeNumber(vol + 1)
	now, err := s.g.Sums(s.t.Context(), n, off, length)
	if err != nil {
		return nil, err
	}
	return s.sub.Differ(n, off, length, sumBlocks(nil, s.then[vol][off:off+length]), now)
}

// all compares everything, in extents of a random length.
func (s *sinceSite) all(rng *rand.Rand) (found []block.Extent, err error) {
	for vol := range s.then {
		for off := int64(0); off < sinceSize; {
			n := min(DigestExtent, (rng.Int64N(16)+1)*DigestBlock, sinceSize-off)
			some, err := s.differ(vol, off, n)
			if err != nil {
				return nil, err
			}
			found, off = append(found, some...), off+n
		}
	}
	return found, nil
}

// some writes a little, everywhere, and flushes now and then. It ends with the first error.
func (s *sinceSite) some(rng *rand.Rand, steps int) error {
	for range steps {
		v := s.vols[rng.IntN(sinceVolumes)]
		off := rng.Int64N(sinceSize/512-8) * 512
		var err error
		switch rng.IntN(12) {
		case 0:
			err = flush(v)
		case 1:
			r, w := newRequest(block.OpTrim, off&^4095, 4096)
			err = submit(v, r, w)
		case 2:
			_, err = s.g.Append(record.OpMember, 1, []byte(`{}`)) // touches nothing
		default:
			err = write(v, off, stamp(rng.Int(), (rng.Int64N(8)+1)*512), 0)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// Whatever dies, and whenever it is looked: a block that was written is marked before anybody can read it otherwise than it was, so
// nothing is ever said to differ.
func TestWrittenSinceIsNeverCompared(t *testing.T) {
	t.Parallel()
	for name, queue := range map[string]bool{"journal": false, "queue": true} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			rng, seed := seeded(t)
			for range roundsOf(2, 20) {
				s := newSinceSite(t, seed+rng.Uint64N(1<<20), queue)
				for round := range 8 {
					s.begin(round == 0)
					s.never(rng)
					s.strike(rng)
					_ = s.some(rng, 3+rng.IntN(20)) // until the power is about to go
					s.die(rng.IntN(3) > 0)
				}
				s.begin(false)
				if left := s.never(rng); left == 0 {
					t.Error("all is marked: nothing was compared at the end")
				}
				s.close()
			}
		})
	}
}

// never compares all, beside hosts and at rest. It returns how many blocks are not marked.
func (s *sinceSite) never(rng *rand.Rand) int64 {
	s.t.Helper()
	beside := rand.New(rand.NewPCG(rng.Uint64(), 3))
	ended := make(chan error, 1)
	go func() { ended <- s.some(beside, 12) }()
	for busy := true; busy; {
		select {
		case err := <-ended:
			if err != nil {
				s.t.Fatal(err)
			}
			busy = false
		default:
		}
		found, err := s.all(rng)
		if err != nil || len(found) > 0 {
			s.t.Fatalf("differ: %v, %v", found, err)
		}
	}
	return sinceVolumes*sinceBlocks - s.sub.ChangedBytes()/DigestBlock
}

// strike has the power go at some call of a device from now on.
func (s *sinceSite) strike(rng *rand.Rand) {
	left := 1 + rng.IntN(60)
	var turn = make(chan struct{}, 1)
	hook := func(call block.Call, _, _ int64) error {
		if call != block.CallWrite && call != block.CallFlush {
			return nil
		}
		turn <- struct{}{}
		defer func() { <-turn }()
		if left--; left < 0 {
			return errors.New("power is about to go")
		}
		return nil
	}
	devs := append(slices.Clone(s.devs), s.maps...)
	if s.mem != nil {
		devs = append(append(devs, s.mem.state), s.mem.maps...)
	} else {
		devs = append(devs, s.jdev)
	}
	for _, d := range devs {
		d.SetHook(hook)
	}
}

// What has changed behind the group's back is listed exactly, but where hosts have written.
func TestDifferIsExact(t *testing.T) {
	t.Parallel()
	rng, seed := seeded(t)
	s := newSinceSite(t, seed, false)
	s.begin(true)
	if err := write(s.vols[0], 5*DigestBlock+512, stamp(7, 4096), 0); err != nil {
		t.Fatal(err)
	}
	if err := s.g.Checkpoint(t.Context()); err != nil {
		t.Fatal(err)
	}
	flip := func(dev *block.Crashable, off int64) {
		var b [1]byte
		if _, err := dev.ReadAt(b[:], off); err != nil {
			t.Fatal(err)
		}
		b[0] ^= 1
		if _, err := dev.WriteAt(b[:], off); err != nil {
			t.Fatal(err)
		}
	}
	for _, b := range []int64{4, 5, 6, 20} {
		flip(s.devs[0], b*DigestBlock+rng.Int64N(DigestBlock))
	}
	flip(s.devs[1], sinceSize-1)
	found, err := s.differ(0, 0, 16*DigestBlock)
	want := []block.Extent{{Offset: 4 * DigestBlock, Length: DigestBlock}, {Offset: 6 * DigestBlock, Length: DigestBlock}}
	if err != nil || !slices.Equal(found, want) {
		t.Errorf("%v, %v, want %v", found, err, want)
	}
	found, err = s.differ(1, sinceBlocks*DigestBlock-2*DigestBlock, sinceSize-(sinceBlocks-2)*DigestBlock)
	want = []block.Extent{{Offset: (sinceBlocks - 1) * DigestBlock, Length: 4096}}
	if err != nil || !slices.Equal(found, want) {
		t.Errorf("%v, %v, want %v", found, err, want)
	}
	if !s.sub.AllMarked(1, 5*DigestBlock, DigestBlock) || s.sub.AllMarked(1, 5*DigestBlock, 2*DigestBlock) {
		t.Error("what is marked")
	}
	s.close()
}

// Records that only send blocks again leave the image as it is: they mark nothing here, and all of it for another.
func TestCopiesAreNoWrites(t *testing.T) {
	t.Parallel()
	_, seed := seeded(t)
	s := newSinceSite(t, seed, false)
	s.begin(true)
	bits := map[record.VolumeNumber]Bitmap{1: block.NewBitmap(sinceBlocks)}
	other, err := s.g.Subscribe("other", SubscriberConfig{Changed: bits, BlockSize: DigestBlock, State: SubSuspended})
	if err != nil {
		t.Fatal(err)
	}
	s.g.mu.Lock()
	_, err = s.g.controlLocked(record.Record{Op: record.OpCopy, Flags: record.FlagEmpty, Volume: 1, Offset: 0, Length: DigestBlock}, nil)
	if err == nil {
		_, err = s.g.controlLocked(record.Record{Op: record.OpTrim, Flags: record.FlagCopied, Volume: 1, Offset: 7 * DigestBlock, Length: DigestBlock}, nil)
	}
	s.g.mu.Unlock()
	if err != nil || s.sub.ChangedBytes() != 0 || other.ChangedBytes() != 2*DigestBlock {
		t.Errorf("%v; marked %d, the other %d", err, s.sub.ChangedBytes(), other.ChangedBytes())
	}
	if !bytes.Equal(image(t, s.vols[0]), s.then[0]) {
		t.Error("the image has changed")
	}
	s.close()
}
