package block

import "fmt"

// Growing a bitmap moves its copy 1, and so cannot be done page by page. The longer bitmap is one generation higher and is
// written whole, copy 1 first: that lies behind all of the old copy 0.
//
//	old  ├ copy 0 ┼ copy 1 ┤
//	new  ├── copy 0 ──┼── copy 1 ──┤
//
//	crash while                      Open takes
//	before, device made larger       the old one; pages of an earlier try behind its end are zeroed first
//	copy 1 is being written          the old one, from its copy 0; the new one if all of its copy 1 is there
//	copy 0 is being written          the new one, from its copy 1
//
// A page of the new generation in its copy 0 tells that its copy 1 had been flushed: so from any one of them on, the new one
// counts, whatever else is bad (newCounts). A bitmap that CreateBitmap wrote over an older one begins with its copy 0, and
// counts from its first page on.

// Grow makes the bitmap longer, by clear bits; the longer one is durable, in both copies, on return, with all changes made
// before. The device is grown if that is needed and it can be (Grower). Changing bits waits meanwhile, reading does not. A
// length that it has already is no error; a shorter one, or one beyond MaxBits, is ErrInvalid. After an error its length is
// what it was; if the device has failed half way, the length found at the next Open may be either, and until then every
// Flush fails.
func (b *Bitmap) Grow(length int64) error {
	b.flushing.Lock()
	defer b.flushing.Unlock()
	old := b.shape.Load()
	switch {
	case length < old.bits || length > MaxBits:
		return fmt.Errorf("grow a bitmap of %d bits to %d: %w", old.bits, length, ErrInvalid)
	case length == old.bits:
		return nil
	}
	// Both copies good, and the same: what is found after a crash of what follows.
	if err := b.flush(); err != nil {
		return fmt.Errorf("grow bitmap: %w", err)
	}
	if b.dev != nil {
		if err := growDevice(b.dev, BitmapSize(length)); err != nil {
			return fmt.Errorf("grow bitmap: %w", err)
		}
		if err := b.clearBehind(length); err != nil {
			return fmt.Errorf("grow bitmap: %w", err)
		}
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	next := newShape(length)
	for i := range old.words {
		next.words[i].Store(old.words[i].Load())
	}
	pages := bitmapPages(length)
	writes := make([]uint64, pages)
	for page := range writes {
		writes[page] = 1
	}
	if b.dev != nil {
		for half := range 2 {
			if err := b.writeGrown(next, uint8(1-half)); err != nil {
				b.broken = fmt.Errorf("grow bitmap to %d bits: %w", length, err)
				return b.broken
			}
		}
		b.generation++
	}
	b.writes, b.lead, b.dirty = writes, make([]uint8, pages), make([]uint64, (pages+63)/64)
	b.shape.Store(next)
	return nil
}

func growDevice(dev Device, size int64) error {
	if dev.Size() >= size {
		return nil
	}
	g, ok := dev.(Grower)
	if !ok {
		return fmt.Errorf("device of %d bytes cannot grow to %d: %w", dev.Size(), size, ErrUnsupported)
	}
	return g.Grow(size)
}

// clearBehind makes sure that what lies behind the old layout is no page that an earlier try has left.
func (b *Bitmap) clearBehind(length int64) error {
	from, to := BitmapSize(b.Bits()), BitmapSize(length)
	if from == to {
		return nil // Open has made all of it pages of this bitmap
	}
	if err := b.dev.Zero(from, to-from, true); err != nil {
		return err
	}
	return b.dev.Flush()
}

// clearLeftover zeroes what lies behind the layout, if a page is there: the rest of a growth that did not count, or of a
// longer bitmap. Should all pages of this one be lost one day, those must not be found in their place.
func (b *Bitmap) clearLeftover() error {
	buf := make([]byte, bitmapPage)
	from, end := BitmapSize(b.Bits()), min(b.dev.Size(), BitmapSize(MaxBits))
	for at := from; at+bitmapPage <= end; at += bitmapPage {
		if _, good := readPage(b.dev, buf, at); !good {
			continue
		}
		if err := b.dev.Zero(from, end-from, true); err != nil {
			return err
		}
		return b.dev.Flush()
	}
	return nil
}

// writeGrown writes one copy of the longer bitmap, and flushes; mu is held.
func (b *Bitmap) writeGrown(next *bitmapShape, copy uint8) error {
	pages := bitmapPages(next.bits)
	images := make([]byte, min(pages, flushPages)*bitmapPage)
	for first := int64(0); first < pages; first += flushPages {
		n := min(flushPages, pages-first)
		for i := range n {
			next.encode(images[i*bitmapPage:(i+1)*bitmapPage], first+i, pageHeader{generation: b.generation + 1, write: 1})
		}
		if _, err := b.dev.WriteAt(images[:n*bitmapPage], (int64(copy)*pages+first)*bitmapPage); err != nil {
			return err
		}
	}
	return b.dev.Flush()
}

// newCounts says whether a bitmap, of which a page was found behind an older one, is to be believed: a page of its copy 0 is
// there, or all of its copy 1.
func newCounts(dev Device, h pageHeader) bool {
	buf := make([]byte, bitmapPage)
	pages := bitmapPages(h.bits)
	is := func(slot, page int64) bool {
		got, good := readPage(dev, buf, slot*bitmapPage)
		return good && got.generation == h.generation && got.bits == h.bits && got.page == page
	}
	whole := true
	for page := range pages {
		if is(page, page) {
			return true
		}
		whole = whole && is(pages+page, page)
	}
	return whole
}
