package sock

import (
	"errors"
	"os"
	"testing"

	"golang.org/x/sys/unix"
)

// A call never waits, on a socket that would block as well, be it empty or full; what was written before it was sent may be read
// behind it (the race detector would say if not).
func TestNeverWaits(t *testing.T) {
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0) // blocking
	if err != nil {
		t.Fatal(err)
	}
	a, b := os.NewFile(uintptr(fds[0]), "a"), os.NewFile(uintptr(fds[1]), "b")
	defer b.Close()
	in, out := uintptr(fds[0]), uintptr(fds[1])
	p := make([]byte, 64<<10)
	if _, err := Read(out, p); !errors.Is(err, unix.EAGAIN) {
		t.Fatalf("read of nothing: %v", err)
	}
	iov := func(b []byte) []unix.Iovec {
		v := []unix.Iovec{{Base: &b[0]}, {Base: &b[1]}}
		v[0].SetLen(1)
		v[1].SetLen(len(b) - 1)
		return v
	}
	shared := 0
	go func() {
		shared = 7
		if n, err := Write(in, iov([]byte("hello"))); n != 5 || err != nil {
			t.Errorf("wrote %d: %v", n, err)
		}
	}()
	if _, err := unix.Poll([]unix.PollFd{{Fd: int32(out), Events: unix.POLLIN}}, 5000); err != nil {
		t.Fatal(err)
	}
	if n, err := Read(out, p); err != nil || string(p[:n]) != "hello" || shared != 7 {
		t.Fatalf("read %q, %v", p[:n], err)
	}
	sent, err := 0, error(nil)
	for n := 0; err == nil; sent += n {
		n, err = Write(in, iov(make([]byte, 8<<10)))
	}
	if !errors.Is(err, unix.EAGAIN) || sent == 0 {
		t.Fatalf("full after %d bytes: %v", sent, err)
	}
	a.Close()
	for sent > 0 {
		n, err := Read(out, p)
		if err != nil || n == 0 {
			t.Fatalf("%d bytes before the end: %d, %v", sent, n, err)
		}
		sent -= n
	}
	if n, err := Read(out, p); n != 0 || err != nil {
		t.Errorf("end: %d, %v", n, err)
	}
	if _, err := Write(out, iov([]byte("xy"))); !errors.Is(err, unix.EPIPE) {
		t.Errorf("to a peer that has gone: %v", err)
	}
}
