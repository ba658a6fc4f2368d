package block

import (
	"encoding/binary"
	"fmt"
	"math/bits"
)

// OpenBitmap reads a bitmap back. Where one copy of a page is bad, or older than the other, it is written anew from the
// other (Repairs tells), and what is believed is durable, in both copies, before OpenBitmap returns. Where both are
// bad it is a PageLoss, and no error. ErrNoBitmap: not one page was found, so the length is not known either; a caller
// who knows it treats that as the loss of all pages (a map of changes: CreateBitmap, SetAll, Flush). Other errors are
// the device's.
func OpenBitmap(dev Device) (*Bitmap, []PageLoss, error) {
	// After a killed process the page cache is not the disk: first make them one.
	if err := dev.Flush(); err != nil {
		return nil, nil, fmt.Errorf("open bitmap: %w", err)
	}
	first, err := findPage(dev)
	if err != nil {
		return nil, nil, err
	}
	var never uint64 // the generation of a growth that was cut short before it counted
	for {
		b := newStored(dev, first.bits, first.generation)
		newer, losses, err := b.load(never)
		if err != nil {
			return nil, nil, fmt.Errorf("open bitmap: %w", err)
		}
		switch {
		case newer == nil:
			if err := b.clearLeftover(); err != nil {
				return nil, nil, fmt.Errorf("open bitmap: %w", err)
			}
			return b, losses, nil
		case newCounts(dev, *newer):
			first = *newer
		default:
			never = newer.generation
		}
	}
}

// Repairs tells what OpenBitmap wrote anew.
func (b *Bitmap) Repairs() []PageRepair { return b.repairs }

// findPage looks for a page that tells the layout: the very first, unless that is bad.
func findPage(dev Device) (pageHeader, error) {
	buf := make([]byte, bitmapPage)
	end := min(dev.Size(), BitmapSize(MaxBits))
	for at := int64(0); at+bitmapPage <= end; at += bitmapPage {
		if h, good := readPage(dev, buf, at); good && fits(h, at, dev.Size()) {
			return h, nil
		}
	}
	return pageHeader{}, fmt.Errorf("open bitmap: %w", ErrNoBitmap)
}

// fits tells whether a page stands where its own layout puts it.
func fits(h pageHeader, at, size int64) bool {
	slot, pages := at/bitmapPage, bitmapPages(h.bits)
	return (slot == h.page || slot == pages+h.page) && BitmapSize(h.bits) <= size
}

// readPage treats a page that cannot be read as a bad one: the other copy is there for that.
func readPage(dev Device, buf []byte, at int64) (pageHeader, bool) {
	if _, err := dev.ReadAt(buf, at); err != nil {
		return pageHeader{}, false
	}
	return parsePage(buf)
}

// load reads all pages and repairs. If it meets a page of a higher generation it changes nothing and returns that
// page's header: a newer bitmap was written here, and the page that load began with is a leftover. A page of the generation
// never is a bad one.
func (b *Bitmap) load(never uint64) (newer *pageHeader, losses []PageLoss, err error) {
	var repairs []PageRepair
	copies := [2][]byte{make([]byte, bitmapPage), make([]byte, bitmapPage)}
	var count int64
	for page := range bitmapPages(b.Bits()) {
		var heads [2]pageHeader
		var good [2]bool
		for c := range copies {
			at := b.place(page, uint8(c))
			heads[c], good[c] = readPage(b.dev, copies[c], at)
			if good[c] && heads[c].generation > b.generation && heads[c].generation != never && fits(heads[c], at, b.dev.Size()) {
				return &heads[c], nil, nil
			}
			good[c] = good[c] && heads[c] == pageHeader{b.generation, page, b.Bits(), heads[c].write}
		}
		best, bad := choosePage(heads, good)
		if !good[best] {
			losses = append(losses, b.lose(page))
			continue
		}
		count += b.adopt(page, copies[best])
		b.writes[page] = heads[best].write
		if bad {
			repairs = append(repairs, PageRepair{Page: page, Copy: 1 - best, Stale: good[1-best]})
		}
	}
	b.count.Store(count)
	if err := b.repair(repairs); err != nil {
		return nil, nil, err
	}
	b.repairs = repairs
	return nil, losses, nil
}

// choosePage picks the copy to believe, and tells whether the other must be written anew.
func choosePage(heads [2]pageHeader, good [2]bool) (best int, repair bool) {
	switch {
	case good[0] && good[1] && heads[0].write == heads[1].write:
		return 0, false
	case good[0] && (!good[1] || heads[0].write > heads[1].write):
		return 0, true
	default:
		return 1, true
	}
}

// lose leaves the page's bits clear and the page to be written by the next Flush.
func (b *Bitmap) lose(page int64) PageLoss {
	b.dirty[page>>6] |= 1 << (page & 63)
	first := page * pageBits
	return PageLoss{Page: page, First: first, Bits: min(pageBits, b.Bits()-first)}
}

// adopt takes a page's words, of which none is set yet, and returns how many bits are.
func (b *Bitmap) adopt(page int64, image []byte) int64 {
	count := 0
	s := b.shape.Load()
	for i, at := int(page)*pageWords, bitmapHeader; i < min(int(page+1)*pageWords, len(s.words)); i, at = i+1, at+8 {
		word := binary.LittleEndian.Uint64(image[at:])
		if i == len(s.words)-1 && s.bits&63 != 0 {
			word &= 1<<(s.bits&63) - 1
		}
		if word != 0 {
			s.words[i].Store(word)
			count += bits.OnesCount64(word)
		}
	}
	return int64(count)
}

// repair writes copies anew, from memory, with the write number of the good ones.
func (b *Bitmap) repair(repairs []PageRepair) error {
	if len(repairs) == 0 {
		return nil
	}
	image := make([]byte, bitmapPage)
	for _, r := range repairs {
		b.encode(image, r.Page)
		if _, err := b.dev.WriteAt(image, b.place(r.Page, uint8(r.Copy))); err != nil {
			return err
		}
	}
	return b.dev.Flush()
}
