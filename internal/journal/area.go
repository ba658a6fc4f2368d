package journal

import (
	"fmt"

	"gantline/internal/block"
)

// extent is a row of the address table: length bytes on a device. The extents of an area, in order, are its bytes.
type extent struct {
	device int
	off    int64 // on the device, bytes
	length int64 // bytes, a multiple of pageSize
}

// area is the management or the data area: a ring of bytes that lies on one or more devices.
type area struct {
	devs    []block.Device
	extents []extent
	size    int64 // sum of the extents, less what the ring does not use at its end
}

func newArea(devs []block.Device, extents []extent) area {
	a := area{devs: devs, extents: extents}
	for _, e := range extents {
		a.size += e.length
	}
	return a
}

// piece is a part of an area that lies on one device in one run.
type piece struct {
	device int
	off    int64
	n      int64
}

// piece returns the run that begins at off and is at most n bytes long; off and n are within the area.
func (a *area) piece(off, n int64) piece {
	for _, e := range a.extents {
		if off < e.length {
			return piece{device: e.device, off: e.off + off, n: min(n, e.length-off)}
		}
		off -= e.length
	}
	panic(fmt.Sprintf("journal: offset lies %d bytes beyond its area", off))
}

// next is the part of [pos, pos+n) up to the first device boundary or the ring's end; pos counts on without wrapping.
func (a *area) next(pos uint64, n int64) piece {
	off := int64(pos % uint64(a.size))
	return a.piece(off, min(n, a.size-off))
}

// read fills p from position pos on.
func (a *area) read(p []byte, pos uint64) error {
	for len(p) > 0 {
		at := a.next(pos, int64(len(p)))
		if _, err := a.devs[at.device].ReadAt(p[:at.n], at.off); err != nil {
			return err
		}
		p, pos = p[at.n:], pos+uint64(at.n)
	}
	return nil
}

// write puts bufs, n bytes in all, at position pos and returns the devices touched as a bit mask. It may change bufs'
// elements, never their bytes. One system call, unless the range crosses the ring's end or a device boundary.
func (a *area) write(bufs [][]byte, n int64, pos uint64) (touched uint64, err error) {
	for n > 0 {
		at := a.next(pos, n)
		touched |= 1 << at.device
		var part [][]byte
		part, bufs = split(bufs, at.n)
		if err := a.devs[at.device].WritevAt(part, at.off); err != nil {
			return touched, err
		}
		n, pos = n-at.n, pos+uint64(at.n)
	}
	return touched, nil
}

// split cuts bufs behind n bytes. The common case, all of it, costs nothing.
func split(bufs [][]byte, n int64) (head, tail [][]byte) {
	for i, b := range bufs {
		if int64(len(b)) < n {
			n -= int64(len(b))
			continue
		}
		if int64(len(b)) == n {
			return bufs[:i+1], bufs[i+1:]
		}
		// The buffer in the middle belongs to both sides.
		head = append(bufs[:i:i], b[:n])
		bufs[i] = b[n:]
		return head, bufs[i:]
	}
	return bufs, nil
}
