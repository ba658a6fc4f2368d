package queue

import (
	"math/bits"

	"gantline/internal/block"
	"gantline/internal/record"
)

const (
	// Region is what one bit of an intent map stands for, in bytes.
	Region = 1 << 20
	// ahead is how many regions are marked at once where a write begins at the start of one behind a marked one, so that a
	// sequential writer does not wait for a flush at each of them.
	ahead = 16
)

// Regions is the length of an intent map for a volume of that size.
func Regions(size int64) int64 { return (size + Region - 1) / Region }

type bitset []uint64

func (b bitset) has(i int64) bool { return b[i>>6]>>(i&63)&1 != 0 }
func (b bitset) set(i int64)      { b[i>>6] |= 1 << (i & 63) }
func (b bitset) clear(i int64)    { b[i>>6] &^= 1 << (i & 63) }

// intents are the marked regions of one volume, under Queue.mu.
//
// A mark may go once all writes to its region are settled. Instead of a number for each region there are two
// generations: young, touched since the last turn, and old, touched in the one before. A turn is taken when all numbers
// of the old generation are settled: what is old and not young goes, the young become old. So a region that is written
// again and again keeps its mark, and pays for it once.
type intents struct {
	bits       *block.Bitmap
	ready      bitset  // marked, and that is durable
	pending    []int64 // marked, and that is not durable yet
	young, old bitset
}

func newIntents(m *block.Bitmap) *intents {
	words := (m.Bits() + 63) / 64
	in := &intents{bits: m, ready: make(bitset, words), young: make(bitset, words), old: make(bitset, words)}
	for r, ok := m.NextSet(0); ok; r, ok = m.NextSet(r + 1) {
		in.ready.set(r) // found on the disk, or set by who opened the map, which flushed it
		in.old.set(r)
	}
	return in
}

// grow adds regions that are not marked.
func (in *intents) grow(regions int64) error {
	if regions <= in.bits.Bits() {
		return nil
	}
	if err := in.bits.Grow(regions); err != nil {
		return err
	}
	more := int((regions+63)/64) - len(in.ready)
	for _, b := range []*bitset{&in.ready, &in.young, &in.old} {
		*b = append(*b, make(bitset, more)...)
	}
	return nil
}

// touch notes that regions first … last are about to be written. False: not all marks are durable yet. With forward the
// writes come to the first of them from the one before.
func (in *intents) touch(first, last int64, forward bool) bool {
	ready := true
	for r := first; r <= last; r++ {
		in.young.set(r)
		if !in.ready.has(r) {
			ready = false
			in.mark(r)
		}
	}
	if next := last + 1; forward && first > 0 && in.bits.Test(first-1) && next < in.bits.Bits() && !in.bits.Test(next) {
		ready = false // now, so that it is not at each of them
		for ; next <= min(last+ahead, in.bits.Bits()-1); next++ {
			in.mark(next)
		}
	}
	return ready
}

func (in *intents) mark(r int64) {
	if !in.ready.has(r) && in.bits.Set(r) {
		in.pending = append(in.pending, r)
	}
}

// durable notes that marks that were pending have been flushed. They count as young: while they were not ready no turn
// could take them.
func (in *intents) durable(flushed []int64) {
	for _, r := range flushed {
		in.ready.set(r)
		in.young.set(r)
	}
}

// turn clears what was not touched since the last one. It says whether anything was cleared.
func (in *intents) turn() (cleared bool) {
	for w, word := range in.old {
		for gone := word &^ in.young[w] & in.ready[w]; gone != 0; gone &= gone - 1 {
			r := int64(w)<<6 + int64(bits.TrailingZeros64(gone))
			in.bits.Clear(r)
			in.ready.clear(r)
			cleared = true
		}
	}
	in.old, in.young = in.young, in.old
	clear(in.young)
	return cleared
}

// regionsOf is what a record writes on its volume's device; false: nothing.
func regionsOf(r *record.Record) (first, last int64, ok bool) {
	if !writesDevice(r) || r.Length == 0 {
		return 0, 0, false
	}
	return int64(r.Offset) / Region, (int64(r.Offset) + int64(r.Length) - 1) / Region, true
}

// forward says that a write comes into a region from its start.
func forward(r *record.Record) bool { return r.Offset%Region == 0 }

// writesDevice: a host's write does; a copied block is on the device already.
func writesDevice(r *record.Record) bool {
	switch r.Op {
	case record.OpWrite, record.OpZero, record.OpTrim:
		return r.Flags&record.FlagCopied == 0
	}
	return false
}
