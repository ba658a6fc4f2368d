//go:build race

package sock

import (
	"runtime"
	"unsafe"

	"golang.org/x/sys/unix"
)

// sent stands for all sockets of the process, as in package syscall.
var sent int64

func received(p []byte) {
	runtime.RaceAcquire(unsafe.Pointer(&sent))
	if len(p) > 0 {
		runtime.RaceWriteRange(unsafe.Pointer(&p[0]), len(p))
	}
}

func sends(iov []unix.Iovec) {
	for _, v := range iov {
		runtime.RaceReadRange(unsafe.Pointer(v.Base), int(v.Len))
	}
	runtime.RaceReleaseMerge(unsafe.Pointer(&sent))
}
