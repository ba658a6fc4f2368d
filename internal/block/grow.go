package block

import (
	"fmt"

	"golang.org/x/sys/unix"
)

// Grower is a Device that can become larger while it is in use.
type Grower interface {
	Device
	// Grow makes the device at least size bytes; the larger size is durable when it returns nil. Of what lies behind the
	// old end nothing is promised but that it can be read: who needs zeros there trims it. A size that the device has
	// already is no error. After an error the device has its old size; after ErrUnsure, or a crash, either.
	Grow(size int64) error
}

var (
	_ Grower = (*File)(nil)
	_ Grower = (*Crashable)(nil)
)

// Grow extends a regular file by a hole. A raw device cannot be extended from here: its size is asked for anew, and it is
// ErrNoSpace if the device below is smaller than size.
func (f *File) Grow(size int64) error {
	if err := f.enter("grow", 0, 0); err != nil {
		return err
	}
	defer f.leave()
	f.growing.Lock()
	defer f.growing.Unlock()
	old := f.size.Load()
	if size <= old {
		return nil
	}
	if f.id.raw {
		return f.growRaw(old, size)
	}
	if err := retryInterrupted(func() error { return unix.Ftruncate(f.fd, size) }); err != nil {
		return f.fault("grow", old, size-old, err)
	}
	if err := retryInterrupted(func() error { return unix.Fsync(f.fd) }); err != nil {
		f.flush.lost(err) // the system tells it once: a Flush that comes now would not hear of it
		return f.fault("grow", old, size-old, fmt.Errorf("%w: %w", ErrUnsure, err))
	}
	f.splits.grow(size)
	f.size.Store(size)
	return nil
}

func (f *File) growRaw(old, size int64) error {
	now, err := rawSize(f.fd)
	switch {
	case err != nil:
		return f.fault("size of", 0, old, err)
	case now < size:
		return fmt.Errorf("grow %s: %w: the device has %d bytes, %d are needed: make it larger first", f.path, ErrNoSpace, now, size)
	}
	f.size.Store(now)
	return nil
}

// grow makes room for the regions of a larger file. One that has become too large for counters keeps those it has, and
// goes without for the rest (has).
func (s *splitter) grow(size int64) {
	if s == nil || size > splitMaxBytes {
		return
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	regions := make([]splitRegion, (size+splitLength-1)/splitLength)
	copy(regions, s.regions)
	s.regions = regions
}

// Grow adds zeros. It is durable at once; a hook that looks at crashes before it sees the old size.
func (d *Crashable) Grow(size int64) error {
	if size > maxMemory {
		return fmt.Errorf("grow to %d bytes, at most %d: %w", size, int64(maxMemory), ErrNoSpace)
	}
	if err := d.ask(CallGrow, d.Size(), size-d.Size()); err != nil {
		return err
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.dead != nil {
		return d.dead
	}
	if size <= d.size.Load() {
		return nil
	}
	more := make([]*memPage, (size+memoryPage-1)/memoryPage-int64(len(d.cache)))
	d.cache, d.disk = append(d.cache, more...), append(d.disk, more...)
	d.size.Store(size)
	return nil
}
