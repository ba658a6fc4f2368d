package block

import (
	"encoding/binary"
	"fmt"
)

// flushPages is how many pages one pass of Flush holds in memory: 4 MiB.
const flushPages = 1024

// PageRepair tells of a copy of a page that Open wrote anew from the other one. That is what a crash during Flush
// leaves; without a crash before, it is a medium that forgets.
type PageRepair struct {
	Page  int64
	Copy  int  // 0 or 1
	Stale bool // it was whole, only older
}

func (r PageRepair) String() string {
	if r.Stale {
		return fmt.Sprintf("copy %d of page %d was older than the other and was written anew", r.Copy, r.Page)
	}
	return fmt.Sprintf("copy %d of page %d was bad and was repaired from the other", r.Copy, r.Page)
}

// PageLoss tells of a page of which both copies are bad. Its bits read as clear until the caller has decided: a map of
// changes sets them all, a map of what is present stops. It is reported again at the next Open unless they were
// flushed.
type PageLoss struct {
	Page  int64
	First int64 // its first bit
	Bits  int64
}

func (l PageLoss) String() string {
	return fmt.Sprintf("both copies of page %d (bits %d…%d) are bad", l.Page, l.First, l.First+l.Bits-1)
}

// CreateBitmap writes a bitmap of clear bits over whatever dev holds; it is durable on return. The generation comes
// back from Generation: a caller that writes it down elsewhere knows its own bitmap again, and one whose creation a
// crash has cut short. ErrInvalid: the length is outside 1…MaxBits, or dev smaller than BitmapSize.
func CreateBitmap(dev Device, length int64, generation uint64) (*Bitmap, error) {
	if length <= 0 || length > MaxBits || dev.Size() < BitmapSize(length) {
		return nil, fmt.Errorf("create bitmap of %d bits on %d bytes: %w", length, dev.Size(), ErrInvalid)
	}
	b := newStored(dev, length, generation)
	for page := range bitmapPages(length) {
		b.dirty[page>>6] |= 1 << (page & 63)
	}
	if err := b.Flush(); err != nil {
		return nil, fmt.Errorf("create bitmap: %w", err)
	}
	return b, nil
}

func newStored(dev Device, length int64, generation uint64) *Bitmap {
	b := NewBitmap(length)
	b.dev, b.generation = dev, generation
	b.writes = make([]uint64, bitmapPages(length))
	b.lead = make([]uint8, bitmapPages(length))
	return b
}

// Flush makes durable, in both copies, every change whose call had returned before Flush was called. Changes made
// meanwhile stay for the next one. After an error everything that was to be written is still to be written, and the
// device still holds each page as of some Flush or later, whole.
func (b *Bitmap) Flush() error {
	b.flushing.Lock()
	defer b.flushing.Unlock()
	return b.flush()
}

// flush is Flush, under flushing.
func (b *Bitmap) flush() error {
	if b.dev == nil {
		return nil
	}
	if b.broken != nil {
		return b.broken
	}
	var batch flushBatch
	for page := range bitmapPages(b.Bits()) {
		if !b.take(page, &batch) || len(batch.pages) < flushPages {
			continue
		}
		if err := b.writeBatch(&batch); err != nil {
			return err
		}
	}
	return b.writeBatch(&batch)
}

// flushBatch is pages as they will be written to both places; the same bytes, for the words may change meanwhile.
type flushBatch struct {
	pages  []int64 // ascending
	images []byte  // one after the other
}

// take adds a page to the batch if it is dirty, and makes it clean.
func (b *Bitmap) take(page int64, batch *flushBatch) bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.dirty[page>>6]>>(page&63)&1 == 0 {
		return false
	}
	b.dirty[page>>6] &^= 1 << (page & 63)
	b.writes[page]++
	batch.pages = append(batch.pages, page)
	batch.images = append(batch.images, zeros[:bitmapPage]...)
	b.encode(batch.images[len(batch.images)-bitmapPage:], page)
	return true
}

// encode fills image with a page as it stands in memory.
func (b *Bitmap) encode(image []byte, page int64) {
	b.shape.Load().encode(image, page, pageHeader{generation: b.generation, write: b.writes[page]})
}

func (s *bitmapShape) encode(image []byte, page int64, h pageHeader) {
	clear(image)
	for i, at := int(page)*pageWords, bitmapHeader; i < min(int(page+1)*pageWords, len(s.words)); i, at = i+1, at+8 {
		binary.LittleEndian.PutUint64(image[at:], s.words[i].Load())
	}
	h.page, h.bits = page, s.bits
	sealPage(image, h)
}

// writeBatch writes the batch to the first places, flushes, writes it to the second, flushes, and empties it. On an
// error its pages are dirty again.
func (b *Bitmap) writeBatch(batch *flushBatch) error {
	if len(batch.pages) == 0 {
		return nil
	}
	err := b.writeHalf(batch, 0)
	if err == nil {
		if err = b.writeHalf(batch, 1); err != nil {
			// The first places are good, the second may hold anything: the next write must begin there.
			for _, page := range batch.pages {
				b.lead[page] ^= 1
			}
		}
	}
	if err != nil {
		b.mu.Lock()
		for _, page := range batch.pages {
			b.dirty[page>>6] |= 1 << (page & 63)
		}
		b.mu.Unlock()
		return fmt.Errorf("flush bitmap: %w", err)
	}
	batch.pages, batch.images = batch.pages[:0], batch.images[:0]
	return nil
}

// writeHalf writes each page of the batch to its first (half 0) or second (half 1) place, neighbours together, and
// flushes.
func (b *Bitmap) writeHalf(batch *flushBatch, half uint8) error {
	for i := 0; i < len(batch.pages); {
		at := b.place(batch.pages[i], b.lead[batch.pages[i]]^half)
		run := i + 1
		for run < len(batch.pages) &&
			b.place(batch.pages[run], b.lead[batch.pages[run]]^half) == at+int64(run-i)*bitmapPage {
			run++
		}
		if _, err := b.dev.WriteAt(batch.images[i*bitmapPage:run*bitmapPage], at); err != nil {
			return err
		}
		i = run
	}
	return b.dev.Flush()
}

// place is where a copy of a page stands on the device.
func (b *Bitmap) place(page int64, copy uint8) int64 {
	return (int64(copy)*bitmapPages(b.Bits()) + page) * bitmapPage
}
