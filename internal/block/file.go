package block

import (
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"

	"golang.org/x/sys/unix"
)

// maxVectors is Linux's IOV_MAX: buffers that one pwritev takes.
const maxVectors = 1024

// File is a Device on a regular file or a raw block device, through the page cache.
type File struct {
	path string
	id   identity
	size atomic.Int64

	growing sync.Mutex // held by Grow

	// gate is held for reading by every call and for writing by Close, so that no call meets a descriptor that was
	// closed, or opened anew by somebody else.
	gate   sync.RWMutex
	fd     int
	closed bool

	flush  *flusher
	splits *splitter // nil: not for this one

	// What the file system or device below was found not to support, so that it is asked once.
	noNowait, noPunch, noZeroRange, noSeek atomic.Bool
}

var _ Device = (*File)(nil)

// OpenFile opens the regular file or raw block device at path for exclusive use. ErrInUse if it is open already, here
// or elsewhere, under this or another path; a raw device is also in use while it is mounted, or a partition of it, or
// the disk it is a partition of. Every other error wraps the system's.
func OpenFile(path string) (Device, error) {
	f, err := openFile(path)
	if err != nil {
		return nil, err
	}
	return f, nil
}

func openFile(path string) (*File, error) {
	var before unix.Stat_t
	if err := unix.Stat(path, &before); err != nil {
		return nil, &os.PathError{Op: "open", Path: path, Err: err}
	}
	flags := unix.O_RDWR | unix.O_CLOEXEC
	switch before.Mode & unix.S_IFMT {
	case unix.S_IFREG:
	case unix.S_IFBLK:
		flags |= unix.O_EXCL
	default:
		return nil, fmt.Errorf("open %s: %w: neither a regular file nor a block device", path, ErrInvalid)
	}
	f, err := openClaimed(path, flags)
	if err != nil {
		return nil, err
	}
	if f.id != identify(&before) {
		return nil, errors.Join(fmt.Errorf("open %s: %w: it was replaced meanwhile", path, ErrInUse), f.Close())
	}
	if f.size.Load() <= 0 {
		return nil, errors.Join(fmt.Errorf("open %s: %w: it is empty", path, ErrInvalid), f.Close())
	}
	if err := f.settle(); err != nil {
		return nil, errors.Join(err, f.Close())
	}
	return f, nil
}

// settle makes what is read from now on what the disk has. An earlier process may have left pages in the page cache
// that are not written yet, and, after a failed fdatasync, pages that never will be though they read as if they had.
func (f *File) settle() error {
	if err := f.flush.Flush(); err != nil {
		return fmt.Errorf("what an earlier process wrote was lost; opening it again goes on with what the disk has: %w",
			f.fault("open", 0, f.size.Load(), err))
	}
	_ = unix.Fadvise(f.fd, 0, 0, unix.FADV_DONTNEED) // advice: nothing to do where it is not taken
	return nil
}

// openClaimed opens path, takes the claim and learns the size.
func openClaimed(path string, flags int) (*File, error) {
	fd, err := unix.Open(path, flags, 0o600)
	if errors.Is(err, unix.EBUSY) {
		return nil, fmt.Errorf("open %s: %w: %w", path, ErrInUse, err)
	}
	if err != nil {
		return nil, &os.PathError{Op: "open", Path: path, Err: err}
	}
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		_ = unix.Close(fd)
		return nil, &os.PathError{Op: "stat", Path: path, Err: err}
	}
	f := &File{path: path, fd: fd, id: identify(&st)}
	f.size.Store(st.Size)
	f.flush = newFlusher(func() error {
		return retryInterrupted(func() error { return unix.Fdatasync(f.fd) })
	})
	if f.id.raw {
		size, err := rawSize(fd)
		if err != nil {
			_ = unix.Close(fd)
			return nil, &os.PathError{Op: "size of", Path: path, Err: err}
		}
		f.size.Store(size)
	}
	if err := claim(fd, f.id, path); err != nil {
		_ = unix.Close(fd)
		return nil, err
	}
	if !f.id.raw {
		f.splits = newSplitter(f.size.Load())
	}
	return f, nil
}

// CreateFile makes a sparse regular file of size bytes and opens it; file and name are durable when it returns. A file
// that exists is os.ErrExist, unless it is empty: that is what a crash in here leaves, and it is taken over.
func CreateFile(path string, size int64) (Device, error) {
	if size <= 0 {
		return nil, fmt.Errorf("create %s: %w: size %d", path, ErrInvalid, size)
	}
	var before unix.Stat_t
	if err := unix.Stat(path, &before); err == nil && (before.Mode&unix.S_IFMT != unix.S_IFREG || before.Size != 0) {
		return nil, &os.PathError{Op: "create", Path: path, Err: os.ErrExist}
	}
	f, err := openClaimed(path, unix.O_RDWR|unix.O_CLOEXEC|unix.O_CREAT)
	if err != nil {
		return nil, err
	}
	// Only now, with the claim in hand, is the size that of a file nobody else is creating.
	if f.id.raw || f.size.Load() != 0 {
		return nil, errors.Join(&os.PathError{Op: "create", Path: path, Err: os.ErrExist}, f.Close())
	}
	if err := f.establish(size); err != nil {
		return nil, errors.Join(err, f.Close(), os.Remove(path))
	}
	return f, nil
}

// establish gives a new file its size and makes size and name durable.
func (f *File) establish(size int64) error {
	if err := retryInterrupted(func() error { return unix.Ftruncate(f.fd, size) }); err != nil {
		return f.fault("create", 0, size, err)
	}
	if err := unix.Fsync(f.fd); err != nil {
		return f.fault("create", 0, size, err)
	}
	dir, err := os.Open(filepath.Dir(f.path))
	if err != nil {
		return err
	}
	defer dir.Close()
	if err := dir.Sync(); err != nil {
		return err
	}
	f.splits = newSplitter(size)
	f.size.Store(size)
	return nil
}

// Size changes by Grow alone.
func (f *File) Size() int64 { return f.size.Load() }

// Path is the path it was opened under.
func (f *File) Path() string { return f.path }

// Raw tells a raw block device from a regular file.
func (f *File) Raw() bool { return f.id.raw }

// enter admits a call on [off, off+n); leave ends it.
func (f *File) enter(op string, off, n int64) error {
	if err := checkRange(op, off, n, f.size.Load()); err != nil {
		return err
	}
	f.gate.RLock()
	if f.closed {
		f.gate.RUnlock()
		return fmt.Errorf("%s %s: %w", op, f.path, ErrClosed)
	}
	return nil
}

func (f *File) leave() { f.gate.RUnlock() }

func (f *File) ReadAt(p []byte, off int64) (int, error) {
	if err := f.enter("read", off, int64(len(p))); err != nil {
		return 0, err
	}
	defer f.leave()
	f.splits.moved(off, int64(len(p)))
	done := 0
	for done < len(p) {
		n, err := unix.Pread(f.fd, p[done:], off+int64(done))
		switch {
		case errors.Is(err, unix.EINTR):
			continue
		case err != nil:
			return done, f.fault("read", off, int64(len(p)), err)
		case n == 0: // somebody made the file shorter
			return done, f.fault("read", off, int64(len(p)), io.ErrUnexpectedEOF)
		}
		done += n
	}
	return done, nil
}

func (f *File) ReadNowait(p []byte, off int64) bool {
	if f.noNowait.Load() || f.enter("read", off, int64(len(p))) != nil {
		return false
	}
	defer f.leave()
	n, err := unix.Preadv2(f.fd, [][]byte{p}, off, unix.RWF_NOWAIT)
	if unsupported(err) {
		f.noNowait.Store(true)
	}
	return err == nil && n == len(p)
}

func (f *File) WriteAt(p []byte, off int64) (int, error) {
	if err := f.enter("write", off, int64(len(p))); err != nil {
		return 0, err
	}
	defer f.leave()
	if f.splits.due(off, int64(len(p))) {
		f.split(off)
	}
	n, err := f.write("write", p, off)
	if f.splits.moved(off, int64(n)) {
		f.beginWriteBack(off-off%splitLength, splitLength)
	}
	return n, err
}

// write is WriteAt without its checks.
func (f *File) write(op string, p []byte, off int64) (int, error) {
	done := 0
	for done < len(p) {
		n, err := unix.Pwrite(f.fd, p[done:], off+int64(done))
		switch {
		case errors.Is(err, unix.EINTR):
			continue
		case err != nil:
			return done, f.fault(op, off, int64(len(p)), err)
		case n == 0:
			return done, f.fault(op, off, int64(len(p)), io.ErrShortWrite)
		}
		done += n
	}
	return done, nil
}

// WritevAt takes one system call for each 1024 buffers. The buffers' slice is not changed.
func (f *File) WritevAt(bufs [][]byte, off int64) error {
	total := totalLength(bufs)
	if err := f.enter("write", off, total); err != nil {
		return err
	}
	defer f.leave()
	if f.splits.due(off, total) {
		f.split(off)
	}
	if f.splits.moved(off, total) {
		defer f.beginWriteBack(off-off%splitLength, splitLength)
	}
	for len(bufs) > 0 {
		batch := bufs[:min(len(bufs), maxVectors)]
		n, err := unix.Pwritev(f.fd, batch, off)
		if errors.Is(err, unix.EINTR) {
			continue
		}
		if err != nil {
			return f.fault("write", off, total, err)
		}
		// A short write ends within some buffer: the rest of that one goes by itself.
		for len(batch) > 0 && n >= len(batch[0]) {
			n -= len(batch[0])
			off += int64(len(batch[0]))
			batch, bufs = batch[1:], bufs[1:]
		}
		if len(batch) > 0 {
			if _, err := f.write("write", bufs[0][n:], off+int64(n)); err != nil {
				return err
			}
			off += int64(len(bufs[0]))
			bufs = bufs[1:]
		}
	}
	return nil
}

// Flush also fails for a caller whose data another caller's failing Flush has lost.
func (f *File) Flush() error {
	if err := f.enter("flush", 0, 0); err != nil {
		return err
	}
	defer f.leave()
	if err := f.flush.Flush(); err != nil {
		return f.fault("flush", 0, f.size.Load(), err)
	}
	return nil
}

// Failed returns the first failure of a Flush since the device was opened: from then on only what was written anew,
// and flushed well, is on it.
func (f *File) Failed() error { return f.flush.Failed() }

// Close waits for running calls, gives the claim back and closes. It flushes nothing. A second Close does nothing.
func (f *File) Close() error {
	f.gate.Lock()
	defer f.gate.Unlock()
	if f.closed {
		return nil
	}
	f.closed = true
	release(f.fd, f.id)
	if err := unix.Close(f.fd); err != nil {
		return &os.PathError{Op: "close", Path: f.path, Err: err}
	}
	return nil
}

// fault wraps the cause of a failed call so that both its kind (ErrNoSpace, ErrIO) and the system's error are found.
func (f *File) fault(op string, off, n int64, cause error) error {
	kind := ErrIO
	if errors.Is(cause, unix.ENOSPC) || errors.Is(cause, unix.EDQUOT) || errors.Is(cause, unix.EFBIG) {
		kind = ErrNoSpace
	}
	return fmt.Errorf("%s %s at %d, %d bytes: %w: %w", op, f.path, off, n, kind, cause)
}

// checkRange is ErrRange unless [off, off+n) lies in a device of size bytes.
func checkRange(op string, off, n, size int64) error {
	if off < 0 || n < 0 || n > size || off > size-n {
		return fmt.Errorf("%s at %d, %d bytes of a device of %d: %w", op, off, n, size, ErrRange)
	}
	return nil
}

// unsupported tells "this file system or device cannot do that" from a failure.
func unsupported(err error) bool {
	return errors.Is(err, unix.EOPNOTSUPP) || errors.Is(err, unix.ENOSYS) || errors.Is(err, unix.ENODEV)
}

func totalLength(bufs [][]byte) int64 {
	var n int64
	for _, b := range bufs {
		n += int64(len(b))
	}
	return n
}
