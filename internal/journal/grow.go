package journal

import (
	"fmt"

	"gantline/internal/block"
)

// A journal grows by a device while it is in use, in three steps; dead between any two of them, nothing is lost and the
// next opening goes on:
//
//	Prepare       zeros, then the label: the device says for which journal it is, and as which
//	the owner     notes the device durably, so that it is given to every Open from now on
//	Join, or Open the address table has it, in both superblocks
//
// Where the new space goes. Both rings are cut at their heads, where the next record will stand, and the new piece is put
// in between. What is stored lies behind the head and keeps its place; so does what is free in front of it. Hence the
// new space is usable at once, wherever the ring has wrapped, and no record is ever moved.
//
//	before          | d e f   ^head . . . . a b c |          position p stands at p modulo the size
//	cut and filled  | d e f | n n n n | . . . . a b c |
//	turned          | n n . . . . a b c d e f | n n |        so that it stands at p modulo the new size again
//
// The list is turned since a position's place follows from the size alone.

// devices is how many the address table names.
func (s *super) devices() int {
	n := 0
	for _, list := range [][]extent{s.management, s.data} {
		for _, e := range list {
			n = max(n, e.device+1)
		}
	}
	return n
}

// share divides the space of a device that joins: entries for as many pages as are left behind them.
func share(device int, size int64) (entries, data extent, err error) {
	usable := size&^(pageSize-1) - dataAtN
	if usable < 2*pageSize {
		return entries, data, fmt.Errorf("%w: device %d has %d bytes, its own part of the format takes %d", ErrTooSmall, device,
			size, dataAtN+2*pageSize)
	}
	slots := max(1, usable/(pageSize+entrySize))
	n := int64(aligned(uint64(slots) * entrySize))
	return extent{device, dataAtN, n}, extent{device, dataAtN + n, usable - n}, nil
}

// growBehind puts a device of so many bytes into the rings behind the last record: head is the position of the next data,
// next the index of the next entry.
func (s *super) growBehind(device int, size int64, head, next uint64) error {
	entries, data, err := share(device, size)
	if err != nil {
		return err
	}
	if len(s.management)+len(s.data)+6 > maxExtents {
		return fmt.Errorf("%w: its address table is full", ErrTooLarge)
	}
	ring, _ := take(s.management, int64(s.entries)*entrySize) // its last page may not be used up
	more := s.entries + uint64(entries.length/entrySize)
	s.management = insert(ring, int64(next%s.entries)*entrySize, int64(next%more)*entrySize, entries)
	s.entries = more
	old := sum(s.data)
	s.data = insert(s.data, int64(head%uint64(old)), int64(head%uint64(old+data.length)), data)
	s.tableRev++
	return nil
}

// grow is growBehind for a log that ends with the last durable record.
func (s *super) grow(device int, size int64, head uint64) error {
	return s.growBehind(device, size, head, s.index(s.durable)+1)
}

func sum(ring []extent) (n int64) {
	for _, e := range ring {
		n += e.length
	}
	return n
}

// insert puts a piece into a ring at an offset and turns the ring so that the piece begins at the offset want.
func insert(ring []extent, at, want int64, piece extent) []extent {
	left, right := take(ring, at)
	grown := append(append(append([]extent(nil), left...), piece), right...)
	turn := at - want
	if turn < 0 {
		turn += sum(grown)
	}
	front, rest := take(grown, turn)
	return joined(append(append([]extent(nil), rest...), front...))
}

// joined makes one of neighbours that lie behind one another on a device.
func joined(ring []extent) []extent {
	out := ring[:1]
	for _, e := range ring[1:] {
		if last := &out[len(out)-1]; last.device == e.device && last.off+last.length == e.off {
			last.length += e.length
			continue
		}
		out = append(out, e)
	}
	return out
}

// Prepare makes a device ready to join the journal id as its device number index, counted from 0. What the device held
// is lost. All of it is written once, as by Create. The journal is not touched.
func Prepare(dev block.Device, id ID, index int) error {
	if index < 1 || index >= MaxDevices {
		return fmt.Errorf("%w: device number %d, at most %d are allowed", ErrTooLarge, index, MaxDevices)
	}
	if _, _, err := share(index, dev.Size()); err != nil {
		return err
	}
	// First the old label goes, durably: it must not be left on top of zeros.
	for _, part := range [2][2]int64{{0, dataAtN}, {dataAtN, dev.Size() &^ (pageSize - 1)}} {
		if err := fill(dev, part[0], part[1]); err != nil {
			return err
		}
		if err := dev.Flush(); err != nil {
			return err
		}
	}
	return writeLabel(dev, label{id: id, index: index, count: index + 1, size: dev.Size()})
}

// writeLabel writes both copies of a label and makes them durable.
func writeLabel(dev block.Device, l label) error {
	for at := range 2 {
		if _, err := dev.WriteAt(l.encode(), int64(at*labelSize)); err != nil {
			return err
		}
	}
	return dev.Flush()
}

// Join takes a prepared device into the journal, durably; its space is usable when it returns, and the device is the
// journal's to close. On an error it stays the caller's, unless the journal is broken by it (Err): then the device may
// have joined, and must be given to the next Open.
func (j *Journal) Join(dev block.Device) error {
	l, bad, err := chooseLabel(dev)
	if err != nil {
		return err
	}
	j.writer.Lock()
	defer j.writer.Unlock()
	j.mu.Lock()
	id, index, appended, head := j.s.id, len(j.devs), j.appended, j.head
	j.mu.Unlock()
	if l.id != id || l.index != index || len(bad) > 0 || dev.Size() < l.size {
		return fmt.Errorf("%w: the device is prepared as number %d of journal %v, not as %d of %v", ErrForeign, l.index, l.id, index, id)
	}
	devs := append(j.devices(), dev)
	return j.update(func(s *super) error {
		if err := s.growBehind(index, l.size, head, s.index(appended)+1); err != nil {
			return err
		}
		s.rings(devs)
		return nil
	}, func() { j.devs = devs })
}
