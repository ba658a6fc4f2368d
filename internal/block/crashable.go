package block

import (
	"bytes"
	"fmt"
	"math/rand/v2"
	"sync"
	"sync/atomic"
)

const (
	sectorSize     = 512
	memoryPage     = 4096
	pageSectors    = memoryPage / sectorSize
	allSectors     = uint8(1<<pageSectors - 1)
	maxMemory      = 16 << 30 // bytes: two page tables of 32 MiB
	maxUnsynced    = 1 << 15  // pages (128 MiB of them): beyond it the oldest half is written back, as a kernel does
	slabPages      = 16       // pages of one write that share an allocation
	nowaitMissMask = 7        // one ReadNowait in eight misses
)

// Call names a Device method to a Hook.
type Call string

const (
	CallRead       Call = "read"
	CallReadNowait Call = "read-nowait"
	CallWrite      Call = "write" // WriteAt and WritevAt
	CallFlush      Call = "flush"
	CallZero       Call = "zero"
	CallTrim       Call = "trim"
	CallExtents    Call = "extents"
	CallGrow       Call = "grow" // off is the old size, n what is added
)

// Hook is asked before a call takes effect, without any lock held: it may wait, count, crash the device, or fail the
// call by returning an error. For CallFlush off and n are 0.
type Hook func(call Call, off, n int64) error

// Crashable is a Device in memory that behaves as badly as a disk behind a page cache may. For tests.
//
//   - What was written and not flushed survives Crash as any selection of 512-byte sectors; an older unflushed version
//     of a sector may survive instead of a newer one.
//   - Flush makes durable what was written before it was called, not what came while it ran.
//   - A failed write (by the hook) may have written any of its sectors.
//   - A failed Flush makes some of the dirty sectors durable and forgets the others: they may still be read, or
//     already be gone, and no later Flush writes them. Flushes that were running beside it fail too, later ones do not.
//   - ReadNowait misses now and then, and leaves rubbish in the buffer when it does.
//
// Memory is taken in pages of 4 KiB that never change once they stand in a table, so that images share them.
type Crashable struct {
	size atomic.Int64
	hook atomic.Pointer[Hook]
	tick atomic.Uint64 // varies ReadNowait

	mu       sync.RWMutex
	dead     error // ErrCrashed or ErrClosed, once it is so
	rng      *rand.Rand
	cache    []*memPage // what is read now
	disk     []*memPage // what has been made durable
	dirty    []sectors  // written since, in order
	base     uint64     // number of dirty[0], counting from the device's beginning
	failures uint64     // failed flushes
}

// memPage is a page's content; nil in a table: a hole; &reservedZeros: zeros with space kept.
type memPage [memoryPage]byte

var reservedZeros memPage

// rubbish is what a ReadNowait that misses leaves.
var rubbish = memPage(bytes.Repeat([]byte{0xee}, memoryPage))

// sectors is one unflushed write to one page: of content, those sectors that are in mask.
type sectors struct {
	page    int
	content *memPage
	mask    uint8
}

var _ Device = (*Crashable)(nil)

// NewCrashable makes a device of zeros. With the same seed, and calls in the same order, it does the same. It panics
// if size is not within 1 byte and 16 GiB.
func NewCrashable(size, seed int64) *Crashable {
	if size <= 0 || size > maxMemory {
		panic(fmt.Sprintf("block.NewCrashable: size %d outside 1…%d", size, int64(maxMemory)))
	}
	pages := (size + memoryPage - 1) / memoryPage
	d := &Crashable{
		rng:   newRand(seed),
		cache: make([]*memPage, pages),
		disk:  make([]*memPage, pages),
	}
	d.size.Store(size)
	return d
}

func newRand(seed int64) *rand.Rand { return rand.New(rand.NewPCG(uint64(seed), 0x67616e746c696e65)) }

// SetHook replaces the hook; nil: none. The devices made by Crash, Kill and Peek begin with none.
func (d *Crashable) SetHook(h Hook) {
	if h == nil {
		d.hook.Store(nil)
		return
	}
	d.hook.Store(&h)
}

func (d *Crashable) ask(call Call, off, n int64) error {
	if h := d.hook.Load(); h != nil {
		return (*h)(call, off, n)
	}
	return nil
}

// Size is what it was made with, or has grown to.
func (d *Crashable) Size() int64 { return d.size.Load() }

func (d *Crashable) ReadAt(p []byte, off int64) (int, error) {
	if err := checkRange("read", off, int64(len(p)), d.Size()); err != nil {
		return 0, err
	}
	if err := d.ask(CallRead, off, int64(len(p))); err != nil {
		return 0, err
	}
	d.mu.RLock()
	defer d.mu.RUnlock()
	if d.dead != nil {
		return 0, d.dead
	}
	readPages(d.cache, p, off)
	return len(p), nil
}

func readPages(table []*memPage, p []byte, off int64) {
	for len(p) > 0 {
		page, in := int(off/memoryPage), int(off%memoryPage)
		n := min(len(p), memoryPage-in)
		if content := table[page]; content != nil {
			copy(p[:n], content[in:])
		} else {
			clear(p[:n])
		}
		p, off = p[n:], off+int64(n)
	}
}

func (d *Crashable) ReadNowait(p []byte, off int64) bool {
	n := int64(len(p))
	if checkRange("read", off, n, d.Size()) != nil || d.ask(CallReadNowait, off, n) != nil {
		return false
	}
	d.mu.RLock()
	defer d.mu.RUnlock()
	if d.dead != nil {
		return false
	}
	if d.tick.Add(0x9e3779b97f4a7c15)>>32&nowaitMissMask == 0 {
		for len(p) > 0 {
			p = p[copy(p, rubbish[:]):]
		}
		return false
	}
	readPages(d.cache, p, off)
	return true
}

func (d *Crashable) WriteAt(p []byte, off int64) (int, error) {
	if err := d.WritevAt([][]byte{p}, off); err != nil {
		return 0, err
	}
	return len(p), nil
}

func (d *Crashable) WritevAt(bufs [][]byte, off int64) error {
	total := totalLength(bufs)
	if err := checkRange("write", off, total, d.Size()); err != nil {
		return err
	}
	failed := d.ask(CallWrite, off, total)
	source := gather{bufs: bufs}
	return d.change(off, total, failed, source.page)
}

func (d *Crashable) Zero(off, n int64, keep bool) error {
	if err := checkRange("zero", off, n, d.Size()); err != nil {
		return err
	}
	failed := d.ask(CallZero, off, n)
	if keep {
		return d.change(off, n, failed, func(old *memPage, in, n int) *memPage { return zeroed(old, in, n, &reservedZeros) })
	}
	return d.change(off, n, failed, func(old *memPage, in, n int) *memPage { return zeroed(old, in, n, nil) })
}

func (d *Crashable) Trim(off, n int64) error {
	if err := checkRange("trim", off, n, d.Size()); err != nil {
		return err
	}
	failed := d.ask(CallTrim, off, n)
	return d.change(off, n, failed, func(old *memPage, in, n int) *memPage { return zeroed(old, in, n, nil) })
}

// zeroed returns old with n bytes from in on zeroed; whole, if that is all of the page.
func zeroed(old *memPage, in, n int, whole *memPage) *memPage {
	if n == memoryPage {
		return whole
	}
	if old == nil || old == &reservedZeros {
		return old
	}
	fresh := *old
	clear(fresh[in : in+n])
	return &fresh
}

// gather hands out the bytes of several buffers as pages.
type gather struct {
	bufs [][]byte
	slab []memPage
}

// page returns old overlaid with the next n bytes, at in.
func (g *gather) page(old *memPage, in, n int) *memPage {
	if len(g.slab) == 0 {
		left := (totalLength(g.bufs) + memoryPage - 1) / memoryPage
		g.slab = make([]memPage, max(1, min(left, slabPages)))
	}
	fresh := &g.slab[0]
	g.slab = g.slab[1:]
	if old != nil && n < memoryPage {
		*fresh = *old
	}
	for n > 0 {
		k := copy(fresh[in:in+n], g.bufs[0])
		if g.bufs[0] = g.bufs[0][k:]; len(g.bufs[0]) == 0 {
			g.bufs = g.bufs[1:]
		}
		in, n = in+k, n-k
	}
	return fresh
}

// change puts [off, off+n) into the cache page by page: next gets a page's old content and the part to change, and
// returns the new content. If failed is not nil, any of the sectors may have been changed all the same.
func (d *Crashable) change(off, n int64, failed error, next func(old *memPage, in, n int) *memPage) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.dead != nil {
		return d.dead
	}
	for n > 0 {
		page, in := int(off/memoryPage), int(off%memoryPage)
		k := int(min(n, int64(memoryPage-in)))
		first, last := in/sectorSize, (in+k-1)/sectorSize
		w := sectors{page: page, mask: allSectors << first & (allSectors >> (pageSectors - 1 - last))}
		w.content = next(d.cache[page], in, k)
		if failed != nil {
			w.mask &= uint8(d.rng.Uint32())
		}
		if w.mask != 0 {
			apply(d.cache, w)
			d.dirty = append(d.dirty, w)
		}
		off, n = off+int64(k), n-int64(k)
	}
	if len(d.dirty) > maxUnsynced {
		d.retire(len(d.dirty)-maxUnsynced/2, nil)
	}
	return failed
}

// apply puts w's sectors into a table. Pages are replaced, never changed.
func apply(table []*memPage, w sectors) {
	old := table[w.page]
	if w.mask == allSectors || old == w.content {
		table[w.page] = w.content
		return
	}
	if w.mask == 0 {
		return
	}
	var fresh memPage
	if old != nil {
		fresh = *old
	}
	for s := range pageSectors {
		if w.mask>>s&1 == 0 {
			continue
		}
		part := fresh[s*sectorSize : (s+1)*sectorSize]
		if w.content == nil {
			clear(part)
		} else {
			copy(part, w.content[s*sectorSize:])
		}
	}
	table[w.page] = &fresh
}

// retire takes the oldest n writes off the list and makes them durable: whole, or what survives says.
func (d *Crashable) retire(n int, survives func(sectors) sectors) {
	for _, w := range d.dirty[:n] {
		if survives != nil {
			w = survives(w)
		}
		apply(d.disk, w)
	}
	d.base += uint64(n)
	rest := copy(d.dirty, d.dirty[n:])
	clear(d.dirty[rest:])
	d.dirty = d.dirty[:rest]
}

func (d *Crashable) Flush() error {
	d.mu.RLock()
	dead, before, failures := d.dead, d.base+uint64(len(d.dirty)), d.failures
	d.mu.RUnlock()
	if dead != nil {
		return dead
	}
	failed := d.ask(CallFlush, 0, 0)

	d.mu.Lock()
	defer d.mu.Unlock()
	if d.dead != nil {
		return d.dead
	}
	if failed == nil && d.failures != failures {
		failed = fmt.Errorf("flush beside a failed one: %w", ErrIO)
	}
	n := 0
	if before > d.base {
		n = int(before - d.base)
	}
	if failed == nil {
		d.retire(n, nil)
		return nil
	}
	d.failures++
	d.drop(n)
	return failed
}

// drop is what a failed write-back does to the oldest n writes: some sectors reached the disk, none is dirty any more,
// and some of the pages, if nothing newer makes them dirty, are read from the disk again.
func (d *Crashable) drop(n int) {
	touched := make(map[int]bool)
	for _, w := range d.dirty[:n] {
		touched[w.page] = true
	}
	d.retire(n, d.coin(d.rng.Float64()))
	for _, w := range d.dirty {
		delete(touched, w.page)
	}
	for _, page := range sortedKeys(touched) {
		if d.rng.IntN(2) == 0 {
			d.cache[page] = d.disk[page]
		}
	}
}

func (d *Crashable) Extents(off, n int64) ([]Extent, error) {
	if err := checkRange("extents", off, n, d.Size()); err != nil {
		return nil, err
	}
	if err := d.ask(CallExtents, off, n); err != nil {
		return nil, err
	}
	d.mu.RLock()
	defer d.mu.RUnlock()
	if d.dead != nil {
		return nil, d.dead
	}
	var list []Extent
	for end := off + n; off < end; {
		next := min(end, (off/memoryPage+1)*memoryPage)
		typ := ExtentData
		switch d.cache[off/memoryPage] {
		case nil:
			typ = ExtentHole
		case &reservedZeros:
			typ = ExtentZero
		}
		list = appendExtent(list, off, next, typ)
		off = next
	}
	return list, nil
}

// Close flushes nothing. As a closed file's, its unflushed writes live on in the page cache: Kill gives the device as
// it would be opened again, Crash what a power loss after Close leaves.
func (d *Crashable) Close() error {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.dead == ErrCrashed {
		return d.dead
	}
	d.dead = ErrClosed
	return nil
}
