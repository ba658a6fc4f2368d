package block

import (
	"errors"
	"fmt"
	"os"
	"sync"

	"golang.org/x/sys/unix"
)

// identity is what a path leads to, whatever its spelling: the inode of a file, the number of a raw device.
type identity struct {
	raw bool
	dev uint64 // raw: the device's own number; file: the number of the device that holds it
	ino uint64 // file only
}

func identify(st *unix.Stat_t) identity {
	if st.Mode&unix.S_IFMT == unix.S_IFBLK {
		return identity{raw: true, dev: uint64(st.Rdev)}
	}
	return identity{dev: uint64(st.Dev), ino: st.Ino}
}

// claims has what this process holds open. flock alone would do on a local file system; over NFS it is emulated with
// locks that belong to the process and refuse it nothing.
var claims = struct {
	sync.Mutex
	paths map[identity]string
}{paths: make(map[identity]string)}

// claim takes the exclusive use of an open file for this process (claims) and against others (flock for files,
// O_EXCL at open for raw devices, which the kernel also checks against partitions, mounts and device mapper).
func claim(fd int, id identity, path string) error {
	claims.Lock()
	defer claims.Unlock()
	if by, held := claims.paths[id]; held {
		return fmt.Errorf("open %s: %w (as %s by this process)", path, ErrInUse, by)
	}
	if !id.raw {
		err := retryInterrupted(func() error { return unix.Flock(fd, unix.LOCK_EX|unix.LOCK_NB) })
		if errors.Is(err, unix.EWOULDBLOCK) {
			return fmt.Errorf("open %s: %w (by another process)", path, ErrInUse)
		}
		if err != nil {
			return &os.PathError{Op: "lock", Path: path, Err: err}
		}
	}
	claims.paths[id] = path
	return nil
}

// release gives the claim back. The unlock is explicit: a child between fork and exec still shares the open file, and
// would hold the lock a little longer than we do.
func release(fd int, id identity) {
	claims.Lock()
	defer claims.Unlock()
	if !id.raw {
		_ = unix.Flock(fd, unix.LOCK_UN) // closing it would do the same
	}
	delete(claims.paths, id)
}

// retryInterrupted repeats a system call that a signal interrupted.
func retryInterrupted(call func() error) error {
	for {
		if err := call(); !errors.Is(err, unix.EINTR) {
			return err
		}
	}
}
