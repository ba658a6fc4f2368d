package powerloss

import (
	"fmt"
	"io/fs"
	"math/rand/v2"
	"strings"
	"sync"
	"sync/atomic"

	"gantline/internal/block"
)

// faultHook is asked before every call to a device of a node.
type faultHook func(path string, call block.Call, off, n int64) error

// disks are the devices of one node, by path. They outlive the node.
type disks struct {
	hook atomic.Pointer[faultHook]

	mu    sync.Mutex
	rnd   *rand.Rand
	disks map[string]*disk
}

type disk struct {
	dev  *block.Crashable
	user *handle // who has it open
	used bool    // it was opened before and is closed
}

// handle is a device as it is open.
type handle struct {
	*block.Crashable
	all *disks
	d   *disk
}

func newDisks(rnd *rand.Rand) *disks { return &disks{rnd: rnd, disks: map[string]*disk{}} }

// setHook: nil is none.
func (ds *disks) setHook(h faultHook) {
	if h == nil {
		ds.hook.Store(nil)
		return
	}
	ds.hook.Store(&h)
}

func (ds *disks) Exists(path string) (bool, error) {
	ds.mu.Lock()
	defer ds.mu.Unlock()
	return ds.disks[path] != nil, nil
}

func (ds *disks) Remove(path string) error {
	ds.mu.Lock()
	defer ds.mu.Unlock()
	delete(ds.disks, path)
	return nil
}

func (ds *disks) Create(path string, size int64) (block.Device, error) {
	ds.mu.Lock()
	defer ds.mu.Unlock()
	if ds.disks[path] != nil {
		return nil, fmt.Errorf("%s: %w", path, fs.ErrExist)
	}
	ds.disks[path] = &disk{dev: block.NewCrashable(size, ds.rnd.Int64())}
	return ds.open(path)
}

func (ds *disks) Open(path string) (block.Device, error) {
	ds.mu.Lock()
	defer ds.mu.Unlock()
	return ds.open(path)
}

func (ds *disks) open(path string) (block.Device, error) {
	d := ds.disks[path]
	switch {
	case d == nil:
		return nil, fmt.Errorf("%s: %w", path, fs.ErrNotExist)
	case d.user != nil:
		return nil, fmt.Errorf("%s: %w", path, block.ErrInUse)
	case d.used:
		d.dev = d.dev.Kill() // the page cache lives on, flushed or not
	}
	d.used = true
	d.dev.SetHook(func(call block.Call, off, n int64) error {
		if h := ds.hook.Load(); h != nil {
			return (*h)(path, call, off, n)
		}
		return nil
	})
	d.user = &handle{Crashable: d.dev, all: ds, d: d}
	return d.user, nil
}

// Close gives the device back to be opened again.
func (h *handle) Close() error {
	h.all.mu.Lock()
	defer h.all.mu.Unlock()
	if h.d.user == h {
		h.d.user = nil
	}
	return h.Crashable.Close()
}

// crash takes the power. What was open before is dead for good; what survived waits to be opened.
func (ds *disks) crash() {
	ds.mu.Lock()
	defer ds.mu.Unlock()
	for _, path := range sorted(ds.disks) {
		d := ds.disks[path]
		d.dev = d.dev.Crash()
		d.user, d.used = nil, false
	}
}

// unsynced counts sectors that a crash now might forget.
func (ds *disks) unsynced() int {
	ds.mu.Lock()
	defer ds.mu.Unlock()
	n := 0
	for _, d := range ds.disks {
		n += d.dev.Unsynced()
	}
	return n
}

func isJournal(path string) bool { return strings.HasSuffix(path, ".jnl") }
func isVolume(path string) bool  { return strings.HasSuffix(path, ".raw") }
