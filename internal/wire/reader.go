package wire

import (
	"io"
	"net"
	"syscall"

	"golang.org/x/sys/unix"

	"gantline/internal/sock"
)

// reader reads from a socket by itself, or, where the connection is none, as that does.
type reader struct {
	nc  net.Conn
	raw syscall.RawConn // nil: not a socket

	// Of the read under way.
	p    []byte
	n    int
	err  error
	once func(fd uintptr) bool
}

func (r *reader) init(nc net.Conn) {
	r.nc = nc
	if sc, ok := nc.(syscall.Conn); ok {
		if raw, err := sc.SyscallConn(); err == nil {
			r.raw = raw
		}
	}
	r.once = r.readOnce
}

// read is io.Reader's. For one goroutine at a time.
func (r *reader) read(p []byte) (int, error) {
	if r.raw == nil || len(p) == 0 {
		return r.nc.Read(p)
	}
	r.p = p
	err := r.raw.Read(r.once)
	r.p = nil
	if err == nil {
		err = r.err
	}
	if err == nil && r.n == 0 {
		err = io.EOF
	}
	if err != nil {
		return 0, err
	}
	return r.n, nil
}

// readOnce says whether the read is over; else the socket has nothing yet.
func (r *reader) readOnce(fd uintptr) bool {
	r.n, r.err = sock.Read(fd, r.p)
	return r.err != unix.EAGAIN
}
