package block

import (
	"errors"
	"sync"
	"sync/atomic"
	"unsafe"

	"golang.org/x/sys/unix"
)

// splitter keeps small writes to a file cheap. Linux caches what was written or read in large pieces as large folios,
// and a file system with buffer heads (ext4) then walks the state of every block of the folio for each write to one of
// them: 10 to 25 µs for 4 KiB in a folio of 1 MiB, 2 to 3 µs in a page of its own. So the folios of a region are split
// before its first small write. What is cached stays cached, and as only what is cached is ever split, this costs no
// more in all than filling the cache did.
//
// The kernel splits a folio of which a part is advised to be cold (madvise(2), MADV_COLD), if the folio is clean. For a
// region that is not, writing it back is begun after some more small writes, and the next one tries again.
type splitter struct {
	off     atomic.Bool // the kernel does not tell what is dirty; one so old has no large folios here
	mu      sync.Mutex
	regions []splitRegion
}

type splitRegion struct {
	state splitState
	tries uint8  // that found it dirty
	small uint16 // small writes since the last of them
}

type splitState uint8

const (
	splitDue  splitState = 0 // the next small write tries
	splitWait splitState = 1 // it was dirty
	splitDone splitState = 2 // until something large is written or read
)

const (
	splitLength   = 2 << 20   // bytes of a region: no folio is larger
	splitStep     = 128 << 10 // smaller folios cost little
	splitSmall    = 16 << 10  // a write up to this size is a small one
	splitLarge    = 64 << 10  // from this size on large folios may come to be
	splitAfter    = 24        // small writes, doubled by each try: they cost what a try does
	splitTries    = 8
	splitMaxBytes = 1 << 44 // larger files go without: 32 MiB of counters
)

func newSplitter(size int64) *splitter {
	if size > splitMaxBytes {
		return nil
	}
	return &splitter{regions: make([]splitRegion, (size+splitLength-1)/splitLength)}
}

func (s *splitter) region(off int64) *splitRegion { return &s.regions[off/splitLength] }

// has says whether there are counters for the region: not behind the old end of a file that has grown too large for them.
func (s *splitter) has(off int64) bool { return off/splitLength < int64(len(s.regions)) }

// due says whether the region is to be split before a write of n bytes at off.
func (s *splitter) due(off, n int64) bool {
	if s == nil || n > splitSmall || n == 0 || s.off.Load() {
		return false
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.has(off) && s.region(off).state == splitDue
}

// tried notes how a try ended.
func (s *splitter) tried(off int64, clean bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	r := s.region(off)
	if clean {
		r.state = splitDone
		return
	}
	r.state, r.small, r.tries = splitWait, 0, min(r.tries+1, splitTries)
}

// moved is told of n bytes written or read at off; true: writing back the region is to be begun.
func (s *splitter) moved(off, n int64) bool {
	if s == nil || n > splitSmall && n < splitLarge || n == 0 {
		return false
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if n >= splitLarge {
		for i := off / splitLength; i <= (off+n-1)/splitLength && i < int64(len(s.regions)); i++ {
			s.regions[i].state = splitDue
		}
		return false
	}
	if !s.has(off) {
		return false
	}
	r := s.region(off)
	if r.state != splitWait {
		return false
	}
	if r.small++; r.small < splitAfter<<r.tries {
		return false
	}
	r.state = splitDue
	return true
}

// BeginWriteBack has the kernel begin to write a range to the disk behind the caller, whose next Flush has less to wait
// for. It promises nothing: what fails is told by that flush.
func (f *File) BeginWriteBack(off, n int64) {
	if f.enter("write back", off, n) == nil {
		defer f.leave()
		f.beginWriteBack(off, n)
	}
}

// WriteBack writes a range to the disk and waits for it: so that what is written in bulk never fills the disk's queue, in
// which all who sync a few bytes would wait behind it. It is no Flush: the disk's own cache is not flushed, nor is anything
// that is needed to find the range after a crash. An error means what that of a Flush means.
func (f *File) WriteBack(off, n int64) error {
	if err := f.enter("write back", off, n); err != nil {
		return err
	}
	defer f.leave()
	const all = unix.SYNC_FILE_RANGE_WAIT_BEFORE | unix.SYNC_FILE_RANGE_WRITE | unix.SYNC_FILE_RANGE_WAIT_AFTER
	err := retryInterrupted(func() error { return unix.SyncFileRange(f.fd, off, n, all) })
	if err == nil || unsupported(err) || errors.Is(err, unix.ESPIPE) {
		return nil
	}
	f.flush.lost(err) // the system tells it once: a Flush that comes now would not hear of it
	return f.fault("write back", off, n, err)
}

// beginWriteBack has the kernel begin to write a range back. It waits for nothing and reports nothing: what fails is told
// by the next flush.
func (f *File) beginWriteBack(off, n int64) {
	_ = unix.SyncFileRange(f.fd, off, n, unix.SYNC_FILE_RANGE_WRITE)
}

// split splits the folios of the region at off. All of it is advice: what fails costs time later and nothing else.
func (f *File) split(off int64) {
	off -= off % splitLength
	n := min(splitLength, f.size.Load()-off)
	var stat unix.Cachestat_t
	if unix.Cachestat(uint(f.fd), &unix.CachestatRange{Off: uint64(off), Len: uint64(n)}, &stat, 0) != nil {
		f.splits.off.Store(true)
		return
	}
	clean := stat.Dirty+stat.Writeback == 0
	f.splits.tried(off, clean)
	if !clean || stat.Cache == 0 {
		return
	}
	m, err := unix.Mmap(f.fd, off, int(n), unix.PROT_READ, unix.MAP_SHARED)
	if err != nil {
		return
	}
	defer func() { _ = unix.Munmap(m) }()
	page := int64(unix.Getpagesize())
	var cached [splitLength / 4096]byte // by page; what is not cached must not be touched, lest the disk be read
	if _, _, no := unix.Syscall(unix.SYS_MINCORE, uintptr(unsafe.Pointer(&m[0])), uintptr(n), uintptr(unsafe.Pointer(&cached[0]))); no != 0 {
		return
	}
	for step := int64(0); step < n; step += splitStep {
		for at := step; at < min(n, step+splitStep); at += page {
			if cached[at/page]&1 == 0 {
				continue
			}
			// Only what is mapped is looked at. Populating maps the page as touching it would, but one that has just
			// left the cache and cannot be read again is an error here, not a signal.
			one := m[at:min(n, at+page)]
			if unix.Madvise(one, unix.MADV_POPULATE_READ) == nil {
				_ = unix.Madvise(one, unix.MADV_COLD)
			}
			break
		}
	}
}
