package block

// Device is a run of bytes on a file, a raw device or in memory. All methods may be called concurrently; the caller
// orders overlapping writes. Offsets and lengths are bytes. A write is durable only after a later Flush returned nil.
// After Flush has failed once, what was written since the last good Flush may be gone even if a later Flush succeeds
// (Linux drops dirty pages it could not write): callers write it again or stop.
type Device interface {
	// ReadAt fills p or fails; a range outside the device is ErrRange.
	ReadAt(p []byte, off int64) (int, error)
	// ReadNowait fills p only if that needs no waiting for a disk (RWF_NOWAIT); false: nothing is promised of p.
	ReadNowait(p []byte, off int64) bool
	WriteAt(p []byte, off int64) (int, error)
	// WritevAt writes the buffers one behind the other from off on, with as few system calls as possible.
	WritevAt(bufs [][]byte, off int64) error
	// Flush makes durable all that was written before it was called (fdatasync).
	Flush() error
	// Zero makes the range read as zeros; keep: without giving its space back.
	Zero(off, n int64, keep bool) error
	// Trim makes the range read as zeros and gives its space back where that is possible.
	Trim(off, n int64) error
	Size() int64
	// Extents lists what [off, off+n) holds: adjacent, in order, covering all of it.
	Extents(off, n int64) ([]Extent, error)
	Close() error
}
