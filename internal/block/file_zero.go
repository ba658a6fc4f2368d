package block

import (
	"errors"

	"golang.org/x/sys/unix"
)

const (
	// rawAlign is what a raw device's zeroing calls are aligned to: no logical block is larger, and no page of the
	// cache is then zeroed in part.
	rawAlign = 4096
	// zeroStep is the most that one zeroing call is asked for: it can be interrupted by a signal only as a whole.
	zeroStep = 256 << 20
	// maxExtents is where Extents stops asking; the rest of the range is then called data.
	maxExtents = 1 << 16
)

// zeros is written where nothing faster makes zeros. Never changed.
var zeros [256 << 10]byte

// Zero makes the range read as zeros. keep: it stays, or becomes, allocated where the file system can tell
// (FALLOC_FL_ZERO_RANGE, BLKZEROOUT), so that a later write of it does not run out of space; otherwise as Trim.
func (f *File) Zero(off, n int64, keep bool) error {
	if err := f.enter("zero", off, n); err != nil {
		return err
	}
	defer f.leave()
	return f.zero("zero", off, n, keep)
}

// Trim punches a hole. On a raw device too it is the kernel's punch (write zeroes, with unmap), because a plain
// BLKDISCARD promises nothing of what is read afterwards.
func (f *File) Trim(off, n int64) error {
	if err := f.enter("trim", off, n); err != nil {
		return err
	}
	defer f.leave()
	return f.zero("trim", off, n, false)
}

// zero does the part of the range that a raw device can only write, and gives the rest to clear in steps.
func (f *File) zero(op string, off, n int64, keep bool) error {
	if f.id.raw {
		head := min(n, (rawAlign-off%rawAlign)%rawAlign)
		if err := f.writeZeros(op, off, head); err != nil {
			return err
		}
		off, n = off+head, n-head
		tail := n % rawAlign
		if err := f.writeZeros(op, off+n-tail, tail); err != nil {
			return err
		}
		n -= tail
	}
	for n > 0 {
		step := min(n, zeroStep)
		if err := f.clear(op, off, step, keep); err != nil {
			return err
		}
		off, n = off+step, n-step
	}
	return nil
}

// clear tries the ways to make zeros, the one that does most first.
func (f *File) clear(op string, off, n int64, keep bool) error {
	if !keep && !f.noPunch.Load() {
		err := f.fallocate(unix.FALLOC_FL_PUNCH_HOLE|unix.FALLOC_FL_KEEP_SIZE, off, n)
		if !unsupported(err) {
			return f.zeroFault(op, off, n, err)
		}
		f.noPunch.Store(true)
	}
	if !f.noZeroRange.Load() {
		var err error
		if f.id.raw {
			err = retryInterrupted(func() error { return rawZeroOut(f.fd, off, n) })
		} else {
			err = f.fallocate(unix.FALLOC_FL_ZERO_RANGE|unix.FALLOC_FL_KEEP_SIZE, off, n)
		}
		if !unsupported(err) && !errors.Is(err, unix.ENOTTY) {
			return f.zeroFault(op, off, n, err)
		}
		f.noZeroRange.Store(true)
	}
	return f.writeZeros(op, off, n)
}

func (f *File) fallocate(mode uint32, off, n int64) error {
	return retryInterrupted(func() error { return unix.Fallocate(f.fd, mode, off, n) })
}

func (f *File) zeroFault(op string, off, n int64, err error) error {
	if err == nil {
		return nil
	}
	return f.fault(op, off, n, err)
}

func (f *File) writeZeros(op string, off, n int64) error {
	for n > 0 {
		step := min(n, int64(len(zeros)))
		if _, err := f.write(op, zeros[:step], off); err != nil {
			return err
		}
		off, n = off+step, n-step
	}
	return nil
}

// Extents asks the file system (SEEK_DATA, SEEK_HOLE). A range it does not know to be a hole is data, as are raw
// devices whole, and what lies behind 65536 extents. Space that was reserved and never written counts as a hole.
func (f *File) Extents(off, n int64) ([]Extent, error) {
	if err := f.enter("extents", off, n); err != nil {
		return nil, err
	}
	defer f.leave()
	var list []Extent
	for end := off + n; off < end; {
		if f.id.raw || f.noSeek.Load() || len(list) >= maxExtents {
			return appendExtent(list, off, end, ExtentData), nil
		}
		data, err := f.seek(off, unix.SEEK_DATA)
		if errors.Is(err, unix.ENXIO) { // no data from here to the file's end
			return appendExtent(list, off, end, ExtentHole), nil
		}
		if errors.Is(err, unix.EINVAL) || unsupported(err) {
			f.noSeek.Store(true)
			continue
		}
		if err != nil {
			return nil, f.fault("extents", off, n, err)
		}
		list = appendExtent(list, off, min(data, end), ExtentHole)
		if off = data; off >= end {
			break
		}
		hole, err := f.seek(off, unix.SEEK_HOLE)
		if err != nil {
			return nil, f.fault("extents", off, n, err)
		}
		if hole <= off { // a hole was punched here since SEEK_DATA looked: ask again, but always move on
			hole = min(off+1, end)
		}
		list = appendExtent(list, off, min(hole, end), ExtentData)
		off = hole
	}
	return list, nil
}

// seek moves the descriptor's own position, which nothing here uses.
func (f *File) seek(off int64, whence int) (at int64, err error) {
	err = retryInterrupted(func() error { at, err = unix.Seek(f.fd, off, whence); return err })
	return at, err
}

// appendExtent adds [from, to), joining it to the one before where both are of one type.
func appendExtent(list []Extent, from, to int64, typ ExtentType) []Extent {
	if from >= to {
		return list
	}
	if k := len(list) - 1; k >= 0 && list[k].Type == typ && list[k].Offset+list[k].Length == from {
		list[k].Length += to - from
		return list
	}
	return append(list, Extent{Offset: from, Length: to - from, Type: typ})
}
