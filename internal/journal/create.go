package journal

import (
	"errors"
	"fmt"

	"gantline/internal/block"
)

// Create makes an empty journal of all the space on devs. What they held is lost. It writes every byte once: blocks
// that have been written are synced several times faster than such that are only reserved. The journal is empty, its
// first record will be number 1, and it has no row yet.
func Create(devs []block.Device, id ID) error { return create(devs, id, 0, minData) }

// create makes a journal with the given number of entries (0: as many as there are pages of data) and at least
// leastData bytes of data area.
func create(devs []block.Device, id ID, entries uint64, leastData int64) error {
	s, err := layout(devs, id, entries, leastData)
	if err != nil {
		return err
	}
	// First the old labels go, durably: a crash in here must not leave another journal's label on top of zeros.
	for _, dev := range devs {
		if err := fill(dev, 0, dataAtN); err != nil {
			return err
		}
		if err := dev.Flush(); err != nil {
			return err
		}
	}
	for _, dev := range devs {
		if err := fill(dev, dataAtN, dev.Size()&^(pageSize-1)); err != nil {
			return err
		}
		if err := dev.Flush(); err != nil {
			return err
		}
	}
	for slot := range 2 {
		if err := writeSuper(devs[0], slot, s.encode()); err != nil {
			return err
		}
	}
	for i, dev := range devs {
		if err := writeLabel(dev, label{id: id, index: i, count: len(devs), size: dev.Size()}); err != nil {
			return err
		}
	}
	return nil
}

// layout shares the devices' space out: the management area comes first, the data area takes the rest.
func layout(devs []block.Device, id ID, entries uint64, leastData int64) (*super, error) {
	if len(devs) == 0 || len(devs) > MaxDevices {
		return nil, fmt.Errorf("%w: %d devices, allowed are 1 to %d", ErrTooSmall, len(devs), MaxDevices)
	}
	var free []extent
	var total int64
	for i, dev := range devs {
		at := int64(dataAtN)
		if i == 0 {
			at = dataAt0
		}
		n := dev.Size()&^(pageSize-1) - at
		if n < pageSize {
			return nil, fmt.Errorf("%w: device %d has %d bytes, its own part of the format takes %d", ErrTooSmall, i, dev.Size(), at+pageSize)
		}
		free = append(free, extent{device: i, off: at, length: n})
		total += n
	}
	if entries == 0 {
		entries = max(minEntries, uint64(total)/(pageSize+entrySize))
	}
	mgmt := int64(aligned(entries * entrySize))
	if total-mgmt < leastData {
		return nil, fmt.Errorf("%w: %d bytes are usable, at least %d are needed", ErrTooSmall, total, mgmt+leastData)
	}
	s := &super{id: id, generation: 1, run: 1, runFirst: 1, entries: entries, tableRev: 1}
	s.management, free = take(free, mgmt)
	s.data, _ = take(free, total-mgmt)
	return s, nil
}

// take cuts n bytes off the front of the list.
func take(free []extent, n int64) (taken, rest []extent) {
	for n > 0 {
		e := free[0]
		part := min(n, e.length)
		taken = append(taken, extent{device: e.device, off: e.off, length: part})
		if part == e.length {
			free = free[1:]
		} else {
			free = append([]extent{{device: e.device, off: e.off + part, length: e.length - part}}, free[1:]...)
		}
		n -= part
	}
	return taken, free
}

// fillStep is what fill hands the disk at a time, in bytes; two of them are on their way at most. A gigabyte in the disk's
// queue would stand in front of every sync of the groups that are being served.
const fillStep = 4 << 20

// fill writes zeros to [from, to).
func fill(dev block.Device, from, to int64) error {
	eager, _ := dev.(interface {
		BeginWriteBack(off, n int64)
		WriteBack(off, n int64) error
	})
	buf := make([]byte, min(1<<20, to-from))
	for begun := from; from < to; {
		n := min(int64(len(buf)), to-from)
		if _, err := dev.WriteAt(buf[:n], from); err != nil {
			return fmt.Errorf("write journal area at %d: %w", from, err)
		}
		from += n
		if eager == nil || from-begun < fillStep {
			continue
		}
		eager.BeginWriteBack(begun, from-begun)
		if before := max(begun-fillStep, 0); before < begun {
			if err := eager.WriteBack(before, begun-before); err != nil {
				return fmt.Errorf("write journal area at %d: %w", before, err)
			}
		}
		begun = from
	}
	return nil
}

// writeSuper writes one copy of the superblock and makes it durable.
func writeSuper(dev block.Device, slot int, b []byte) error {
	if _, err := dev.WriteAt(b, superAt+int64(slot)*superSlot); err != nil {
		return fmt.Errorf("write superblock %c: %w", 'A'+slot, err)
	}
	if err := dev.Flush(); err != nil {
		return fmt.Errorf("sync superblock %c: %w", 'A'+slot, err)
	}
	return nil
}

// Probe says whether a device carries a journal's label, and which journal's.
func Probe(dev block.Device) (ID, bool) {
	for at := range 2 {
		if l, err := readLabel(dev, at); err == nil || errors.Is(err, ErrVersion) {
			return l.id, true
		}
	}
	return ID{}, false
}

// Space is what the journal of these devices would have: bytes of data area and entries, if Create accepts them.
func Space(devs []block.Device) (data int64, entries int64, err error) {
	s, err := layout(devs, ID{}, 0, minData)
	if err != nil {
		return 0, 0, err
	}
	return newArea(devs, s.data).size, int64(s.entries), nil
}

// SmallestSize is the size in bytes of the smallest single device that Create accepts.
func SmallestSize() int64 { return dataAt0 + minEntries*entrySize + minData }
