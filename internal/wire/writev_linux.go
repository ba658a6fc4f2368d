package wire

import (
	"unsafe"

	"golang.org/x/sys/unix"
)

// writevCall is writev(2). x/sys's Writev allocates its vector anew for each call.
func writevCall(fd int, iov []unix.Iovec) (int, error) {
	n, _, errno := unix.Syscall(unix.SYS_WRITEV, uintptr(fd), uintptr(unsafe.Pointer(&iov[0])), uintptr(len(iov)))
	if errno != 0 {
		return 0, errno
	}
	return int(n), nil
}
