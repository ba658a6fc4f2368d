package node

import (
	"bytes"
	"context"
	"math/rand/v2"
	"slices"
	"sync"
	"testing"
	"time"

	"gantline/internal/block"
	"gantline/internal/record"
)

// liveSource is a volume that is written while it is fetched, with the log of its writes.
type liveSource struct {
	mu   sync.Mutex
	data []byte
	log  []record.Record
}

func (s *liveSource) write(rng *rand.Rand) {
	s.mu.Lock()
	defer s.mu.Unlock()
	n := 1 + rng.IntN(3*regionSize/2)
	off := rng.IntN(len(s.data) - n)
	r := record.Record{Seq: record.Seq(len(s.log) + 1), Volume: 1, Offset: uint64(off), Length: uint32(n)}
	switch rng.IntN(6) {
	case 0:
		r.Op = record.OpTrim
	case 1:
		r.Op = record.OpZero
	default:
		r.Op, r.Data = record.OpWrite, bytes.Repeat([]byte{byte(1 + rng.IntN(255))}, n)
	}
	clear(s.data[off : off+n])
	copy(s.data[off:], r.Data)
	s.log = append(s.log, r)
}

// fetch sees some of what is written meanwhile, and some not.
func (s *liveSource) fetch(_ context.Context, off, n int64) ([]byte, error) {
	out := make([]byte, 0, n)
	for part := n / 4; n > 0; n -= part {
		part = min(part, n)
		s.mu.Lock()
		out = append(out, s.data[off:off+part]...)
		s.mu.Unlock()
		off += part
		time.Sleep(50 * time.Microsecond)
	}
	return out, nil
}

// The image of a source that is written all the time is the source's own once it has all its records, though its process
// dies and its power fails on the way. What was acknowledged is not sent again.
func TestCopyImageConverges(t *testing.T) {
	t.Parallel()
	for seed := range uint64(8) {
		rng := rand.New(rand.NewPCG(seed, 1))
		src := &liveSource{data: make([]byte, 12*regionSize-4096)}
		for range 20 {
			src.write(rng)
		}
		dev, maps := block.NewCrashable(int64(len(src.data)), int64(seed)), block.NewCrashable(block.BitmapSize(12), int64(seed)+100)
		if _, err := dev.WriteAt(bytes.Repeat([]byte{9}, len(src.data)), 0); err != nil { // what it held before
			t.Fatal(err)
		}
		if _, err := block.CreateBitmap(maps, 12, 1); err != nil {
			t.Fatal(err)
		}
		acked := record.Seq(len(src.log))
		for life := 0; ; life++ {
			present, _, err := block.OpenBitmap(maps)
			if err != nil {
				t.Fatal(err)
			}
			d := &copyDisk{dev: dev, size: int64(len(src.data)), present: present, fetch: src.fetch}
			im := newCopyImage(acked, nil, map[record.VolumeNumber]*copyDisk{1: d})
			last := life == 4
			copyALife(t, rng, src, im, d, last)
			acked, _ = im.Cursors()
			if last {
				break
			}
			im.close()
			if rng.IntN(2) == 0 {
				dev, maps = dev.Crash(), maps.Crash()
			}
		}
		got := make([]byte, len(src.data))
		if _, err := dev.ReadAt(got, 0); err != nil {
			t.Fatal(err)
		}
		if !bytes.Equal(got, src.data) {
			t.Fatalf("seed %d: the image is not the source's", seed)
		}
	}
}

// copyALife fetches, writes and ships side by side for a while, or to the end.
func copyALife(t *testing.T, rng *rand.Rand, src *liveSource, im *copyImage, d *copyDisk, last bool) {
	var work sync.WaitGroup
	ctx, cancel := context.WithCancel(t.Context())
	fetches := rand.New(rand.NewPCG(rng.Uint64(), 2))
	ships := rand.New(rand.NewPCG(rng.Uint64(), 3))
	work.Go(func() {
		for ctx.Err() == nil {
			region, ok := d.Next(int64(fetches.IntN(12)))
			if !ok {
				if region, ok = d.Next(0); !ok {
					return
				}
			}
			off := region * regionSize
			if err := d.bring(ctx, off, min(2*regionSize, d.size-off)); err != nil {
				t.Error(err)
				return
			}
		}
	})
	work.Go(func() {
		for ctx.Err() == nil {
			_, stored := im.Cursors()
			src.mu.Lock()
			end := min(int(stored)+1+ships.IntN(4), len(src.log))
			recs := src.log[stored:end]
			src.mu.Unlock()
			if len(recs) == 0 {
				time.Sleep(50 * time.Microsecond)
				continue
			}
			if err := im.Append(recs); err != nil {
				t.Error(err)
				return
			}
		}
	})
	for range 30 {
		src.write(rng)
		time.Sleep(100 * time.Microsecond)
		if rng.IntN(3) > 0 {
			continue
		}
		fresh := im.takeFresh()
		src.mu.Lock()
		tip := record.Seq(len(src.log))
		src.mu.Unlock()
		im.confirm(fresh, tip)
		if _, err := im.Sync(); err != nil {
			t.Error(err)
		}
	}
	if last {
		end := record.Seq(len(src.log))
		for whole := false; !whole || im.stored < end; {
			im.confirm(im.takeFresh(), end)
			if _, err := im.Sync(); err != nil {
				t.Fatal(err)
			}
			time.Sleep(time.Millisecond)
			whole, _ = im.whole()
			if _, written := im.whole(); written >= end && whole {
				break
			}
		}
	}
	cancel()
	work.Wait()
}

// brokenFlush fails once, as a disk does, and then says that all is well.
type brokenFlush struct {
	block.Device
	failed bool
}

func (b *brokenFlush) Flush() error {
	if !b.failed {
		b.failed = true
		return block.ErrIO
	}
	return b.Device.Flush()
}

// A flush that has failed is not made good by the next one: nothing is acknowledged any more, no region counts as here.
func TestCopyImageFlushFails(t *testing.T) {
	t.Parallel()
	maps := block.NewCrashable(block.BitmapSize(2), 1)
	present, err := block.CreateBitmap(maps, 2, 1)
	if err != nil {
		t.Fatal(err)
	}
	src := &liveSource{data: bytes.Repeat([]byte{1}, 2*regionSize)}
	d := &copyDisk{dev: &brokenFlush{Device: block.NewCrashable(2*regionSize, 2)}, size: 2 * regionSize, present: present, fetch: src.fetch}
	im := newCopyImage(10, nil, map[record.VolumeNumber]*copyDisk{1: d})
	if err := d.bring(t.Context(), 0, regionSize); err != nil {
		t.Fatal(err)
	}
	rec := record.Record{Seq: 11, Op: record.OpWrite, Volume: 1, Length: 4096, Data: make([]byte, 4096)}
	if err := im.Append([]record.Record{rec}); err != nil {
		t.Fatal(err)
	}
	fresh := im.takeFresh()
	if _, err := im.Sync(); err == nil {
		t.Fatal("the flush has not failed")
	}
	im.confirm(fresh, 11)
	if upTo, err := im.Sync(); err == nil {
		t.Errorf("behind a flush that has failed all up to %d is acknowledged", upTo)
	}
	if durable, _ := im.Cursors(); durable != 10 || present.Count() != 0 {
		t.Errorf("durable up to %d, %d regions here", durable, present.Count())
	}
}

// What an answer about extents says nothing of is fetched: it is limited in number, and may end early.
func TestExtentsThatEndEarly(t *testing.T) {
	t.Parallel()
	const size = 8 * regionSize
	hole := block.Extent{Offset: 0, Length: 3*regionSize + 512, Type: block.ExtentHole}
	dev := block.NewCrashable(size, 1)
	present, err := block.CreateBitmap(block.NewCrashable(block.BitmapSize(8), 2), 8, 1)
	if err != nil {
		t.Fatal(err)
	}
	d := &copyDisk{dev: dev, size: size, present: present}
	newCopyImage(0, nil, map[record.VolumeNumber]*copyDisk{1: d})
	if err := d.skip(0, size, func() ([]block.Extent, error) { return []block.Extent{hole}, nil }); err != nil {
		t.Fatal(err)
	}
	if d.Left() != 5 || d.Needs(2) || !d.Needs(3) || !d.Needs(7) {
		t.Errorf("%d regions are left to be fetched, of 5 of which nothing was said", d.Left())
	}
	for _, c := range []struct{ answer, want []block.Extent }{
		{nil, []block.Extent{{Offset: 100, Length: 50, Type: block.ExtentData}}},
		{[]block.Extent{{Offset: 0, Length: 120, Type: block.ExtentHole}, {Offset: 120, Length: 10, Type: block.ExtentData}},
			[]block.Extent{{Offset: 120, Length: 10, Type: block.ExtentData}, {Offset: 130, Length: 20, Type: block.ExtentData}}},
		{[]block.Extent{{Offset: 100, Length: 50, Type: block.ExtentZero}}, nil},
	} {
		if got := dataIn(c.answer, 100, 50); !slices.Equal(got, c.want) {
			t.Errorf("%v: data in %v, not in %v", c.answer, got, c.want)
		}
	}
}
