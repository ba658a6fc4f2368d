package block

import (
	"runtime"
	"unsafe"

	"golang.org/x/sys/unix"
)

// rawSize asks a raw block device for its size in bytes.
func rawSize(fd int) (int64, error) {
	var size uint64
	if err := rawIoctl(fd, unix.BLKGETSIZE64, unsafe.Pointer(&size)); err != nil {
		return 0, err
	}
	return int64(size), nil
}

// rawZeroOut has the kernel write zeros without unmapping (BLKZEROOUT); it also drops the page cache of the range.
func rawZeroOut(fd int, off, n int64) error {
	span := [2]uint64{uint64(off), uint64(n)}
	return rawIoctl(fd, unix.BLKZEROOUT, unsafe.Pointer(&span))
}

func rawIoctl(fd int, request uintptr, arg unsafe.Pointer) error {
	_, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(fd), request, uintptr(arg))
	runtime.KeepAlive(arg)
	if errno != 0 {
		return errno
	}
	return nil
}
