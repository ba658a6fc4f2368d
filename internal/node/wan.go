package node

import (
	"encoding/binary"
	"errors"
	"os"
	"path/filepath"
	"sync"

	"golang.org/x/sys/unix"
)

// wanSize is the file: the count, u64 little-endian.
const wanSize = 8

// wanCounter counts bytes put on links to a group's secondary by this node, across restarts. It is a mapped file: a
// killed process loses nothing of it, a power loss some seconds. Nothing is decided by it, it is a figure for people and
// for tests of what was sent. The zero value counts, and is not kept.
type wanCounter struct {
	mu     sync.Mutex
	count  uint64
	mapped []byte // nil once closed
}

func (n *Node) wanPath(group string) string {
	return filepath.Join(n.cfg.DataDir, "maps", group+".wan")
}

// forgetWAN lets a group that is new here count from 0, whatever an earlier one of its name has sent.
func (n *Node) forgetWAN(group string) error {
	if err := os.Remove(n.wanPath(group)); err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	return nil
}

// open continues the count of earlier runs. A file of another size counts as none.
func (w *wanCounter) open(path string) (err error) {
	w.mu.Lock() // the group's status may be asked for while it opens
	defer w.mu.Unlock()
	f, err := os.OpenFile(path, os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	raw := make([]byte, wanSize)
	if info, err := f.Stat(); err != nil {
		return err
	} else if info.Size() == wanSize {
		if _, err := f.ReadAt(raw, 0); err != nil {
			return err
		}
	} else if err := f.Truncate(0); err != nil {
		return err
	}
	// Written once the ordinary way: a full disk is an error here, where through the map it would be a signal.
	if _, err := f.WriteAt(raw, 0); err != nil {
		return err
	}
	w.count = binary.LittleEndian.Uint64(raw)
	w.mapped, err = unix.Mmap(int(f.Fd()), 0, wanSize, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
	return err
}

func (w *wanCounter) add(n int64) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.count += uint64(n)
	if w.mapped != nil {
		binary.LittleEndian.PutUint64(w.mapped, w.count)
	}
}

func (w *wanCounter) total() int64 {
	w.mu.Lock()
	defer w.mu.Unlock()
	return int64(w.count)
}

// close leaves the count readable.
func (w *wanCounter) close() error {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.mapped == nil {
		return nil
	}
	err := unix.Munmap(w.mapped)
	w.mapped = nil
	return err
}
