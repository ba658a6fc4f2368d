package wire

import (
	"unsafe"

	"golang.org/x/sys/unix"
)

// The calls below are made on sockets that never block, so Go's scheduler is not told of them: it would wake its monitor
// thread for each that follows a rest, which then sleeps and looks several times before it rests again. On small machines
// that costs more than the calls.

// writevCall is writev(2). x/sys's Writev allocates its vector anew for each call.
func writevCall(fd int, iov []unix.Iovec) (int, error) {
	n, _, errno := unix.RawSyscall(unix.SYS_WRITEV, uintptr(fd), uintptr(unsafe.Pointer(&iov[0])), uintptr(len(iov)))
	if errno != 0 {
		return 0, errno
	}
	return int(n), nil
}

// readCall is read(2) of at least one byte of room.
func readCall(fd int, p []byte) (int, error) {
	n, _, errno := unix.RawSyscall(unix.SYS_READ, uintptr(fd), uintptr(unsafe.Pointer(&p[0])), uintptr(len(p)))
	if errno != 0 {
		return 0, errno
	}
	return int(n), nil
}
