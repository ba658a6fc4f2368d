package block

import (
	"errors"
	"math/rand/v2"
	"testing"

	"pgregory.net/rapid"
)

// TestBitmapGrowCrashAtEveryCall loses power, in several ways, before each call of a growth, opens what survived, grows that
// again, with crashes too, and looks at all bits: each growth is there or is not, and no bit is lost by either.
func TestBitmapGrowCrashAtEveryCall(t *testing.T) {
	olds, news := 0, 0
	rapid.Check(t, func(t *rapid.T) {
		lengths := rapid.SampledFrom([][2]int64{
			{100, 200}, {100, pageBits + 1}, {pageBits, 2 * pageBits}, {2 * pageBits, 3*pageBits - 7},
			{2*pageBits + 1, 3 * pageBits}, {3 * pageBits, 4 * pageBits}, {2 * pageBits, 9 * pageBits},
		}).Draw(t, "lengths")
		seed := rapid.Int64().Draw(t, "seed")
		g := growth{rng: newRand(seed), from: lengths[0], to: lengths[1]}
		dev := NewCrashable(BitmapSize(g.from), seed)
		b, err := CreateBitmap(dev, g.from, 1)
		if err != nil {
			t.Fatal(err)
		}
		g.set = map[int64]bool{}
		for range 40 {
			bit := g.rng.Int64N(g.from)
			g.set[bit] = true
			b.Set(bit)
		}
		if err := b.Flush(); err != nil {
			t.Fatal(err)
		}
		g.grow(t, dev, b, 0)
		olds += g.olds
		news += g.news
	})
	t.Logf("%d crashes left the old length, %d the new one", olds, news)
	if olds == 0 || news == 0 {
		t.Error("the crashes took no hold")
	}
}

type growth struct {
	rng        *rand.Rand
	from, to   int64
	set        map[int64]bool
	olds, news int
}

// grow grows the bitmap with a crash before each call; each survivor is read, and, to some depth, gets another bit and is
// grown again.
func (g *growth) grow(t *rapid.T, dev *Crashable, b *Bitmap, depth int) {
	dev.SetHook(func(call Call, _, _ int64) error {
		if call == CallRead || depth >= 2 {
			return nil
		}
		for range 2 {
			g.survive(t, dev.Peek(g.rng.Int64()), depth)
		}
		return nil
	})
	if err := b.Grow(g.to); err != nil {
		t.Fatalf("grow: %v", err)
	}
	dev.SetHook(nil)
	g.read(t, b, g.to)
	after, losses, err := OpenBitmap(dev.Crash())
	if err != nil || len(losses) > 0 {
		t.Fatalf("after the growth: %v, losses %v", err, losses)
	}
	if len(after.Repairs()) > 0 {
		t.Fatalf("the growth has not left two good copies: %v", after.Repairs())
	}
	g.read(t, after, g.to)
}

func (g *growth) survive(t *rapid.T, dev *Crashable, depth int) {
	b, losses, err := OpenBitmap(dev)
	if err != nil || len(losses) > 0 {
		t.Fatalf("after a crash: %v, losses %v", err, losses)
	}
	switch b.Bits() {
	case g.from:
		g.olds++
	case g.to:
		g.news++
	default:
		t.Fatalf("after a crash the bitmap has %d bits, neither %d nor %d", b.Bits(), g.from, g.to)
	}
	g.read(t, b, b.Bits())
	if b.Bits() == g.to || g.rng.IntN(4) > 0 {
		return
	}
	// What is set now must not be lost to pages that this growth has left behind.
	next := growth{rng: g.rng, from: g.from, to: g.to, set: map[int64]bool{}}
	for bit := range g.set {
		next.set[bit] = true
	}
	bit := g.rng.Int64N(g.from)
	next.set[bit] = true
	b.Set(bit)
	if err := b.Flush(); err != nil {
		t.Fatal(err)
	}
	next.grow(t, dev, b, depth+1)
	g.olds, g.news = g.olds+next.olds, g.news+next.news
}

func (g *growth) read(t *rapid.T, b *Bitmap, length int64) {
	if b.Bits() != length || b.Count() != int64(len(g.set)) {
		t.Fatalf("%d bits, %d set; want %d, %d", b.Bits(), b.Count(), length, len(g.set))
	}
	for bit := range g.set {
		if !b.Test(bit) {
			t.Fatalf("bit %d of %d was lost", bit, length)
		}
	}
}

// A growth that fails half way leaves a bitmap that promises nothing any more, and a device that is one or the other.
func TestBitmapGrowFails(t *testing.T) {
	for fail := 0; ; fail++ {
		dev := NewCrashable(BitmapSize(2*pageBits), int64(fail))
		b, err := CreateBitmap(dev, 2*pageBits, 1)
		if err != nil {
			t.Fatal(err)
		}
		b.Set(pageBits + 3)
		calls := 0
		dev.SetHook(func(call Call, _, _ int64) error {
			if calls++; calls == fail+1 {
				return errInjected
			}
			return nil
		})
		err = b.Grow(3 * pageBits)
		if calls <= fail {
			if err != nil || fail < 8 {
				t.Fatalf("%d calls, %v", calls, err)
			}
			return
		}
		dev.SetHook(nil)
		if !errors.Is(err, errInjected) || b.Bits() != 2*pageBits {
			t.Fatalf("call %d failed: %v, %d bits", fail, err, b.Bits())
		}
		flushed := b.Flush() == nil
		again, losses, err := OpenBitmap(dev.Kill())
		if err != nil || len(losses) > 0 {
			t.Fatalf("call %d failed: %v, losses %v", fail, err, losses)
		}
		if got := again.Test(pageBits + 3); flushed && !got || again.Bits() != 2*pageBits && !got {
			t.Fatalf("call %d failed: the bit is %v at %d bits, flushed %v", fail, got, again.Bits(), flushed)
		}
	}
}

// Pages that a cut-short growth has left behind the bitmap are not found in its place when all of it is lost.
func TestBitmapGrowLeavesNothing(t *testing.T) {
	dev := NewCrashable(BitmapSize(100), 1)
	b, err := CreateBitmap(dev, 100, 1)
	if err != nil {
		t.Fatal(err)
	}
	writes := 0
	var cut *Crashable
	dev.SetHook(func(call Call, off, _ int64) error {
		if call == CallWrite && off == 0 && cut == nil && writes > 0 { // copy 1 of the longer one is flushed
			cut = dev.Peek(7)
		}
		if call == CallWrite {
			writes++
		}
		return nil
	})
	if err := b.Grow(5 * pageBits); err != nil || cut == nil {
		t.Fatalf("grow: %v, cut %v", err, cut != nil)
	}
	old, losses, err := OpenBitmap(cut)
	if err != nil || len(losses) > 0 || old.Bits() != 100 {
		t.Fatalf("%v, losses %v, %d bits", err, losses, old.Bits())
	}
	if err := cut.Zero(0, BitmapSize(100), false); err != nil {
		t.Fatal(err)
	}
	if _, _, err := OpenBitmap(cut); !errors.Is(err, ErrNoBitmap) {
		t.Fatalf("a bitmap that is lost: %v", err)
	}
}

func TestBitmapGrowRefuses(t *testing.T) {
	b := NewBitmap(100)
	b.Set(99)
	for _, length := range []int64{99, MaxBits + 1} {
		if err := b.Grow(length); !errors.Is(err, ErrInvalid) {
			t.Errorf("%d: %v", length, err)
		}
	}
	if err := b.Grow(100); err != nil {
		t.Error(err)
	}
	if err := b.Grow(1 << 20); err != nil || b.Test(100) || !b.Test(99) || b.Count() != 1 || b.Bits() != 1<<20 {
		t.Errorf("%v, %d bits", err, b.Bits())
	}
}
