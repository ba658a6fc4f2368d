package nbd

import (
	"errors"
	"io"
	"net"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"

	"gantline/internal/sock"
)

// errAgain says that the socket takes nothing now.
var errAgain = errors.New("socket is full")

// transport is a connection that can also be written without waiting for the peer.
type transport struct {
	conn net.Conn
	raw  syscall.RawConn // nil: not a socket (a pipe, TLS); writing without waiting is then not possible

	// Reading and writing each have at most one user at a time, so that one set of state for each is enough; the
	// callbacks are made once because a closure per call would be an allocation per call.
	rbuf   []byte
	rn     int
	rerr   error
	onRead func(fd uintptr) bool

	wvec        []unix.Iovec
	wn          int
	werr        error
	onTryWrite  func(fd uintptr) bool
	onWaitWrite func(fd uintptr) bool
}

func newTransport(conn net.Conn) *transport {
	t := &transport{conn: conn}
	if sc, ok := conn.(syscall.Conn); ok {
		if raw, err := sc.SyscallConn(); err == nil {
			t.raw = raw
		}
	}
	t.onRead = t.readOnce
	t.onTryWrite = func(fd uintptr) bool { t.writeOnce(fd); return true }
	t.onWaitWrite = func(fd uintptr) bool { t.writeOnce(fd); return t.werr != errAgain }
	return t
}

// read reads what is there, waiting until something is.
func (t *transport) read(p []byte) (int, error) {
	if t.raw == nil || len(p) == 0 {
		return t.conn.Read(p)
	}
	t.rbuf = p
	err := t.raw.Read(t.onRead)
	t.rbuf = nil
	if err == nil {
		err = t.rerr
	}
	if err != nil {
		return 0, err
	}
	if t.rn == 0 {
		return 0, io.EOF
	}
	return t.rn, nil
}

// readFull fills p.
func (t *transport) readFull(p []byte) error {
	for len(p) > 0 {
		n, err := t.read(p)
		if err != nil {
			if err == io.EOF {
				err = io.ErrUnexpectedEOF
			}
			return err
		}
		p = p[n:]
	}
	return nil
}

func (t *transport) readOnce(fd uintptr) bool {
	t.rn, t.rerr = sock.Read(fd, t.rbuf)
	return t.rerr != unix.EAGAIN
}

// tryWrite writes what the socket takes now; errAgain when that was not all.
func (t *transport) tryWrite(v *vector) error {
	if t.raw == nil {
		return errAgain
	}
	return t.write(v, t.onTryWrite)
}

// waitWrite writes all, waiting for the peer.
func (t *transport) waitWrite(v *vector) error {
	if t.raw == nil {
		bufs := v.buffers()
		_, err := bufs.WriteTo(t.conn)
		return err
	}
	return t.write(v, t.onWaitWrite)
}

func (t *transport) write(v *vector, once func(uintptr) bool) error {
	for len(v.rest) > 0 {
		t.wvec = v.rest[:min(len(v.rest), maxIovecs)]
		err := t.raw.Write(once)
		t.wvec = nil
		if err == nil {
			err = t.werr
		}
		if err != nil {
			return err
		}
		v.advance(t.wn)
	}
	return nil
}

func (t *transport) writeOnce(fd uintptr) {
	if t.wn, t.werr = sock.Write(fd, t.wvec); t.werr == unix.EAGAIN {
		t.werr = errAgain
	}
}

// maxIovecs is the most buffers that one system call takes (IOV_MAX).
const maxIovecs = 1024

// vector is a run of buffers to be written. Headers live in one slab; data is referred to, not copied.
type vector struct {
	slab  []byte
	spans []span
	iov   []unix.Iovec
	rest  []unix.Iovec // of iov, what is not written yet
	bytes int
}

// span is a part of the slab (data nil) or data elsewhere.
type span struct {
	data   []byte
	lo, hi int
}

func (v *vector) reset() {
	clear(v.spans) // let go of the data
	clear(v.iov)
	v.slab, v.spans, v.iov, v.rest, v.bytes = v.slab[:0], v.spans[:0], v.iov[:0], nil, 0
}

// head returns n fresh bytes of the slab for the caller to fill before the next call.
func (v *vector) head(n int) []byte {
	lo := len(v.slab)
	if cap(v.slab)-lo < n {
		v.slab = append(make([]byte, 0, max(2*cap(v.slab), lo+n, 1024)), v.slab...)
	}
	v.slab = v.slab[:lo+n]
	if k := len(v.spans); k > 0 && v.spans[k-1].data == nil {
		v.spans[k-1].hi = lo + n
	} else {
		v.spans = append(v.spans, span{lo: lo, hi: lo + n})
	}
	v.bytes += n
	return v.slab[lo : lo+n : lo+n]
}

// data adds p itself; it must not change until it is written.
func (v *vector) data(p []byte) {
	if len(p) > 0 {
		v.spans = append(v.spans, span{data: p})
		v.bytes += len(p)
	}
}

// seal makes the buffers ready to be written; the slab does not move any more.
func (v *vector) seal() {
	for _, s := range v.spans {
		p := s.data
		if p == nil {
			p = v.slab[s.lo:s.hi]
		}
		iov := unix.Iovec{Base: &p[0]}
		iov.SetLen(len(p))
		v.iov = append(v.iov, iov)
	}
	v.rest = v.iov
}

// advance drops n written bytes.
func (v *vector) advance(n int) {
	for n > 0 {
		first := &v.rest[0]
		if uint64(n) < uint64(first.Len) {
			first.Base = (*byte)(unsafe.Add(unsafe.Pointer(first.Base), n))
			first.SetLen(int(first.Len) - n)
			return
		}
		n -= int(first.Len)
		v.rest = v.rest[1:]
	}
}

// buffers gives what is not written yet as net.Buffers.
func (v *vector) buffers() net.Buffers {
	bufs := make(net.Buffers, 0, len(v.rest))
	for _, iov := range v.rest {
		bufs = append(bufs, unsafe.Slice(iov.Base, int(iov.Len)))
	}
	return bufs
}
