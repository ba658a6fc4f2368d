package block

import (
	"fmt"
	"math/bits"
	"sync"
	"sync/atomic"
)

// Bitmap is a bitmap in memory, durable on a device as of its last Flush. All methods may be called concurrently.
//
// Reading takes no lock. Changing takes mu, and marks the page dirty before it gives mu back: who finds a bit already
// set may rely on it that a Flush begun from then on, which takes mu, writes it.
type Bitmap struct {
	shape atomic.Pointer[bitmapShape] // replaced under mu, by Grow
	count atomic.Int64

	mu    sync.Mutex // changing words and shape; dirty
	dirty []uint64   // a bit for each page

	// What Flush and Open alone touch, under flushing.
	flushing   sync.Mutex
	dev        Device // nil: memory only
	generation uint64
	writes     []uint64 // by page: number of its last write
	lead       []uint8  // by page: the copy to write first, 0 or 1
	repairs    []PageRepair
	broken     error // Grow has failed half way: the device may hold the longer bitmap
}

// bitmapShape is the bits of a bitmap at one length.
type bitmapShape struct {
	bits  int64
	words []atomic.Uint64
}

func newShape(length int64) *bitmapShape {
	return &bitmapShape{bits: length, words: make([]atomic.Uint64, (length+63)/64)}
}

// NewBitmap makes a bitmap in memory only, all clear. Flush does nothing.
func NewBitmap(length int64) *Bitmap {
	checkBits(length)
	b := &Bitmap{dirty: make([]uint64, (bitmapPages(length)+63)/64)}
	b.shape.Store(newShape(length))
	return b
}

func checkBits(length int64) {
	if length <= 0 || length > MaxBits {
		panic(fmt.Sprintf("block: bitmap of %d bits, outside 1…%d", length, MaxBits))
	}
}

// Bits is the length. It changes by Grow alone.
func (b *Bitmap) Bits() int64 { return b.shape.Load().bits }

// Count is the number of set bits.
func (b *Bitmap) Count() int64 { return b.count.Load() }

// Generation is the number its creator gave it, and one more for each time that it has grown.
func (b *Bitmap) Generation() uint64 {
	b.flushing.Lock()
	defer b.flushing.Unlock()
	return b.generation
}

// Test panics, as all that take a bit, if the bit lies outside the bitmap.
func (b *Bitmap) Test(bit int64) bool {
	s := b.check(bit, 1)
	return s.words[bit>>6].Load()>>(bit&63)&1 != 0
}

// Set sets a bit and says whether that changed it.
func (b *Bitmap) Set(bit int64) bool {
	if b.Test(bit) {
		return false
	}
	return b.change(bit, 1, true) != 0
}

// Clear clears a bit and says whether that changed it.
func (b *Bitmap) Clear(bit int64) bool {
	if !b.Test(bit) {
		return false
	}
	return b.change(bit, 1, false) != 0
}

// SetRange sets n bits from first on and returns how many were clear. Other calls may see a part of it done.
func (b *Bitmap) SetRange(first, n int64) int64 {
	b.check(first, n)
	return b.change(first, n, true)
}

// ClearRange clears n bits from first on and returns how many were set. Other calls may see a part of it done.
func (b *Bitmap) ClearRange(first, n int64) int64 {
	b.check(first, n)
	return b.change(first, n, false)
}

// SetAll sets all bits.
func (b *Bitmap) SetAll() { b.SetRange(0, b.Bits()) }

// ClearAll clears all bits.
func (b *Bitmap) ClearAll() { b.ClearRange(0, b.Bits()) }

func (b *Bitmap) check(first, n int64) *bitmapShape {
	s := b.shape.Load()
	if first < 0 || n < 0 || n > s.bits || first > s.bits-n {
		panic(fmt.Sprintf("block: bits %d+%d of a bitmap of %d", first, n, s.bits))
	}
	return s
}

// change works page by page, so that no other call waits longer than a page takes.
func (b *Bitmap) change(first, n int64, set bool) int64 {
	var changed int64
	for n > 0 {
		page := first / pageBits
		k := min(n, (page+1)*pageBits-first)
		b.mu.Lock()
		delta := b.changeWords(first, k, set)
		if delta != 0 {
			b.dirty[page>>6] |= 1 << (page & 63)
		}
		if set {
			b.count.Add(delta)
		} else {
			b.count.Add(-delta)
		}
		b.mu.Unlock()
		changed += delta
		first, n = first+k, n-k
	}
	return changed
}

// changeWords returns how many bits it changed; mu is held.
func (b *Bitmap) changeWords(first, n int64, set bool) int64 {
	changed := 0
	words := b.shape.Load().words
	for n > 0 {
		shift := first & 63
		k := min(n, 64-shift)
		mask := ^uint64(0) >> (64 - k) << shift
		word := &words[first>>6]
		old := word.Load()
		fresh := old | mask
		if !set {
			fresh = old &^ mask
		}
		if fresh != old {
			changed += bits.OnesCount64(fresh ^ old)
			word.Store(fresh)
		}
		first, n = first+k, n-k
	}
	return int64(changed)
}

// NextSet returns the first set bit at or after from; false if there is none.
func (b *Bitmap) NextSet(from int64) (int64, bool) { return b.next(from, 0) }

// NextClear returns the first clear bit at or after from; false if there is none.
func (b *Bitmap) NextClear(from int64) (int64, bool) { return b.next(from, ^uint64(0)) }

// next finds a bit that differs from those of skip.
func (b *Bitmap) next(from int64, skip uint64) (int64, bool) {
	from = max(from, 0)
	s := b.shape.Load()
	if from >= s.bits {
		return 0, false
	}
	i := from >> 6
	word := (s.words[i].Load() ^ skip) >> (from & 63) << (from & 63)
	for word == 0 {
		if i++; i == int64(len(s.words)) {
			return 0, false
		}
		word = s.words[i].Load() ^ skip
	}
	bit := i<<6 + int64(bits.TrailingZeros64(word))
	return bit, bit < s.bits // the last word's unused bits are clear
}
