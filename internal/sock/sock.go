// Package sock has the two system calls that carry all data: one reads from a socket, one writes to it. Go's scheduler is not told
// of them: it would wake its monitor thread for each call that follows a rest, which then sleeps and looks several times before it
// rests again. On small machines that costs more than the calls. For the same reason a call here must never wait, or it would
// keep a processor from all goroutines: each says so itself, whatever mode the socket is in (one that is shared with another
// process, or that was taken as a file, may be a blocking one).
//
// The race detector is told what the calls read and write, and that what was sent was sent before it was received.
package sock

import (
	"unsafe"

	"golang.org/x/sys/unix"
)

// Read reads what is there, at most len(p) bytes, which is not 0. Zero bytes: the peer has ended its side. EAGAIN: nothing is there.
func Read(fd uintptr, p []byte) (int, error) {
	for {
		n, _, errno := unix.RawSyscall6(unix.SYS_RECVFROM, fd, uintptr(unsafe.Pointer(&p[0])), uintptr(len(p)), unix.MSG_DONTWAIT, 0, 0)
		switch errno {
		case 0:
			received(p[:n])
			return int(n), nil
		case unix.EINTR:
			continue
		}
		return 0, errno
	}
}

// Write writes what the socket takes of iov, of which there are at least one and at most 1024. EAGAIN: it takes nothing.
func Write(fd uintptr, iov []unix.Iovec) (int, error) {
	var msg unix.Msghdr
	msg.Iov = &iov[0]
	msg.SetIovlen(len(iov))
	sends(iov)
	for {
		n, _, errno := unix.RawSyscall(unix.SYS_SENDMSG, fd, uintptr(unsafe.Pointer(&msg)), unix.MSG_DONTWAIT|unix.MSG_NOSIGNAL)
		switch errno {
		case 0:
			return int(n), nil
		case unix.EINTR:
			continue
		}
		return 0, errno
	}
}
