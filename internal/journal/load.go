package journal

import (
	"errors"
	"fmt"
	"hash/crc32"

	"gantline/internal/block"
	"gantline/internal/record"
)

// image is a journal as it stands on its devices, read and not changed.
type image struct {
	devs    []block.Device // in the label's order
	labels  []label
	badAt   [][]int // per device: which copies of the label are damaged
	supers  [2]*super
	superOK [2]error
	s       *super // the newer of the good copies
	first   int    // the copy that was attempted last: the one to write first
	seed    uint32
}

// load reads labels and superblocks and checks that they describe these devices.
func load(devs []block.Device) (*image, error) {
	im := &image{}
	if err := im.readLabels(devs); err != nil {
		return nil, err
	}
	if err := im.readSupers(); err != nil {
		return nil, err
	}
	for _, list := range [][]extent{im.s.management, im.s.data} {
		for _, e := range list {
			if e.device >= len(im.devs) {
				return nil, fmt.Errorf("%w: the journal has %d devices, %d were given", ErrForeign, im.s.devices(), len(im.devs))
			}
			if e.off+e.length > im.labels[e.device].size {
				return nil, fmt.Errorf("%w: address table points outside device %d", ErrSuperblock, e.device)
			}
		}
	}
	im.seed = im.s.id.seed()
	im.s.rings(im.devs)
	return im, nil
}

func readLabel(dev block.Device, at int) (label, error) {
	if dev.Size() < dataAtN {
		return label{}, fmt.Errorf("%w: %d bytes are too short for a label", ErrForeign, dev.Size())
	}
	b := make([]byte, labelSize)
	if _, err := dev.ReadAt(b, int64(at*labelSize)); err != nil {
		return label{}, fmt.Errorf("read label: %w", err)
	}
	return decodeLabel(b)
}

// readLabels finds each device's place. The devices may be given in any order.
func (im *image) readLabels(devs []block.Device) error {
	if len(devs) == 0 || len(devs) > MaxDevices {
		return fmt.Errorf("%w: %d devices, allowed are 1 to %d", ErrForeign, len(devs), MaxDevices)
	}
	im.devs, im.labels, im.badAt = make([]block.Device, len(devs)), make([]label, len(devs)), make([][]int, len(devs))
	for i, dev := range devs {
		l, bad, err := chooseLabel(dev)
		if err != nil {
			return fmt.Errorf("device %d: %w", i, err)
		}
		switch {
		case l.count > len(devs) || l.index >= len(devs):
			return fmt.Errorf("%w: device %d belongs to a journal of %d devices, %d were given", ErrForeign, i, l.count, len(devs))
		case im.devs[l.index] != nil:
			return fmt.Errorf("%w: device %d says it is number %d, which another one is already", ErrForeign, i, l.index)
		case dev.Size() < l.size:
			return fmt.Errorf("%w: device %d has %d bytes, it had %d", ErrTruncated, i, dev.Size(), l.size)
		}
		im.devs[l.index], im.labels[l.index], im.badAt[l.index] = dev, l, bad
	}
	for i, l := range im.labels {
		if l.id != im.labels[0].id {
			return fmt.Errorf("%w: device %d is of journal %v, device 0 of %v", ErrForeign, i, l.id, im.labels[0].id)
		}
	}
	return nil
}

// chooseLabel reads both copies of a device's label and lists the damaged ones.
func chooseLabel(dev block.Device) (l label, bad []int, err error) {
	var errs [2]error
	for at := range 2 {
		got, err := readLabel(dev, at)
		if err != nil {
			bad, errs[at] = append(bad, at), err
			continue
		}
		l = got
	}
	if len(bad) < 2 {
		return l, bad, nil
	}
	for _, err := range errs {
		if errors.Is(err, ErrVersion) {
			return l, bad, err
		}
	}
	if errors.Is(errs[0], ErrForeign) && errors.Is(errs[1], ErrForeign) {
		return l, bad, errs[0]
	}
	return l, bad, fmt.Errorf("%w: label: %w, its copy: %w", ErrSuperblock, errs[0], errs[1])
}

// readSupers reads both superblocks and chooses.
func (im *image) readSupers() error {
	b := make([]byte, superSlot)
	for slot := range 2 {
		if im.devs[0].Size() < dataAt0 {
			return fmt.Errorf("%w: device 0 ends before its superblocks", ErrTruncated)
		}
		if _, err := im.devs[0].ReadAt(b, superAt+int64(slot)*superSlot); err != nil {
			im.superOK[slot] = err
			continue
		}
		im.supers[slot], im.superOK[slot] = decodeSuper(b)
		if im.superOK[slot] == nil && im.supers[slot].id != im.labels[0].id {
			im.superOK[slot] = fmt.Errorf("superblock of journal %v", im.supers[slot].id)
		}
	}
	a, b2 := im.superOK[0] == nil, im.superOK[1] == nil
	switch {
	case !a && !b2:
		return fmt.Errorf("%w: A: %w, B: %w", ErrSuperblock, im.superOK[0], im.superOK[1])
	case !a:
		im.s, im.first = im.supers[1], 0
	case !b2:
		im.s, im.first = im.supers[0], 1
	case im.supers[0].generation > im.supers[1].generation:
		im.s, im.first = im.supers[0], 0
	default:
		// B is the newer one, or they are equal and B was written last.
		im.s, im.first = im.supers[1], 1
	}
	return nil
}

// slot is the position of seq's entry in the management area.
func (s *super) slot(seq record.Seq) uint64 { return s.index(seq) % s.entries * entrySize }

// highestMark is the highest sequence that is known to have been durable. A mark in an entry counts if this run wrote
// it: an earlier run's were taken over into the superblock when that run was recovered, as far as its log went, and
// may speak of records that were cut since.
func (im *image) highestMark() (record.Seq, error) {
	mark := im.s.durable
	buf := make([]byte, min(1<<20, im.s.entryRing.size))
	for off := int64(0); off < im.s.entryRing.size; off += int64(len(buf)) {
		p := buf[:min(int64(len(buf)), im.s.entryRing.size-off)]
		if err := im.s.entryRing.read(p, uint64(off)); err != nil {
			return 0, fmt.Errorf("read management area: %w", err)
		}
		for ; len(p) >= entrySize; p = p[entrySize:] {
			if le.Uint32(p) != entryMagic || le.Uint32(p[28:]) != im.s.run {
				continue
			}
			if e, why := decodeEntry(p, im.seed); why == "" && e.durable < e.rec.Seq {
				mark = max(mark, e.durable)
			}
		}
	}
	return mark, nil
}

// walker reads the log's records one after the other and says where and why they end.
type walker struct {
	im      *image
	s       *super
	last    record.Seq // the last good record, or trimmed
	head    uint64     // data position behind it
	run     uint32     // its run
	entries []byte     // slots read ahead
	at      uint64     // index of entries[0]
	window  []byte     // data read ahead
	ahead   uint64     // its position
	filled  int
}

func (im *image) walk() *walker {
	return &walker{im: im, s: im.s, last: im.s.trimmed, head: im.s.trimmedPos, window: make([]byte, min(1<<20, im.s.dataRing.size))}
}

// next is the record behind last. why: the log ends, because the entry expected at e.rec.Seq is not good.
func (w *walker) next() (e entry, why string, err error) {
	want := w.s.following(w.last)
	b, err := w.slot(w.s.index(want))
	if err != nil {
		return e, "", fmt.Errorf("read entry of sequence %d: %w", want, err)
	}
	e, why = decodeEntry(b, w.im.seed)
	if why == "" {
		why = w.fits(&e, want)
	}
	if why == "" && e.length > 0 {
		sum, err := w.checksum(e.pos, e.length)
		if err != nil {
			return e, "", fmt.Errorf("read data of sequence %d: %w", want, err)
		}
		if sum != e.rec.CRC {
			why = "data checksum does not match"
		}
	}
	e.rec.Seq = want
	if why == "" {
		w.last, w.head, w.run = want, e.end(), e.run
	}
	return e, why, nil
}

// fits says why the entry is not the one that belongs to want: "" if it is.
func (w *walker) fits(e *entry, want record.Seq) string {
	row, ok := w.s.table.At(want)
	switch {
	case e.rec.Seq != want:
		return fmt.Sprintf("its slot holds sequence %d", e.rec.Seq)
	case want >= w.s.runFirst && e.run != w.s.run:
		return fmt.Sprintf("left over from run %d, this is run %d", e.run, w.s.run)
	case e.run > w.s.run, want < w.s.runFirst && e.run == w.s.run:
		return fmt.Sprintf("written by run %d, which began at sequence %d", e.run, w.s.runFirst)
	case e.run < w.run:
		return fmt.Sprintf("written by run %d behind a record of run %d", e.run, w.run)
	case !ok:
		return "no row of the epoch table covers it"
	case row.Epoch != e.rec.Epoch || row.Incarnation != e.rec.Incarnation:
		return fmt.Sprintf("epoch %d incarnation %d, its row is epoch %d incarnation %d",
			e.rec.Epoch, e.rec.Incarnation, row.Epoch, row.Incarnation)
	case e.pos != w.head:
		return fmt.Sprintf("data at position %d, expected at %d", e.pos, w.head)
	case e.length > MaxPayload || e.end()-w.s.trimmedPos > uint64(w.s.dataRing.size):
		return fmt.Sprintf("data of %d bytes does not fit the data area", e.length)
	case e.length == 0 && e.rec.CRC != 0:
		return "checksum without data"
	}
	return ""
}

// slot reads the entry of an index, and those behind it.
func (w *walker) slot(index uint64) ([]byte, error) {
	if w.entries == nil || index < w.at || index-w.at >= uint64(len(w.entries))/entrySize {
		if w.entries == nil {
			w.entries = make([]byte, min(4096, w.s.entries)*entrySize)
		}
		w.at = index
		if err := w.s.entryRing.read(w.entries, index%w.s.entries*entrySize); err != nil {
			w.entries = nil
			return nil, err
		}
	}
	return w.entries[(index-w.at)*entrySize:], nil
}

// checksum is the CRC of n bytes of data from pos on.
func (w *walker) checksum(pos uint64, n uint32) (sum uint32, err error) {
	for left := uint64(n); left > 0; {
		if pos < w.ahead || pos >= w.ahead+uint64(w.filled) {
			if err := w.s.dataRing.read(w.window, pos); err != nil {
				return 0, err
			}
			w.ahead, w.filled = pos, len(w.window)
		}
		p := w.window[pos-w.ahead : w.filled]
		p = p[:min(uint64(len(p)), left)]
		sum = crc32.Update(sum, castagnoli, p)
		pos, left = pos+uint64(len(p)), left-uint64(len(p))
	}
	return sum, nil
}
