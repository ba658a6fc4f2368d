package wire

import (
	"encoding/binary"
	"fmt"
	"io"
	"net"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"gantline/internal/record"
	"gantline/internal/sock"
)

const (
	smallPart  = 512       // parts up to this many bytes are copied, so that small frames become one run of bytes
	slabSize   = 16 << 10  // small parts and headers are cut from slabs that are never written again
	roomBytes  = 8 << 20   // WaitRoom waits above this many queued bytes
	maxVectors = 1024      // IOV_MAX
	pacedRoom  = 256 << 10 // roomBytes while a pacer holds the connection back: what is queued cannot be taken back
	maxQueued  = 512 << 20 // above this the peer is given up: everything we answer to is bounded well below
)

// Pacer holds back what a connection writes.
type Pacer interface {
	// Unlimited says that nothing is held back just now.
	Unlimited() bool
	// Take waits until some of n bytes may be written and returns how many, at least 1; 0 once done is closed.
	Take(done <-chan struct{}, n int) int
}

// writer queues frames and writes them combined: whoever finds it idle writes everything queued, with writev, as far
// as the socket takes it without waiting. What is left is the writing goroutine's, which exists only for so long.
type writer struct {
	nc    net.Conn
	raw   syscall.RawConn // nil: not a socket, everything goes through the writing goroutine
	onErr func(error)
	done  <-chan struct{} // closed when the connection has ended

	mu     sync.Mutex
	room   sync.Cond
	bufs   [][]byte // queued, in order
	spare  [][]byte // the slice the last write is done with
	slab   []byte   // small parts are copied to its end
	open   bool     // the last entry of bufs ends where slab's free part begins
	bytes  int      // queued or being written
	busy   bool     // somebody is writing
	err    error
	pacer  Pacer // nil: none
	writes sync.WaitGroup
	sent   atomic.Int64

	// Owned by whoever is busy.
	cur   [][]byte
	hold  Pacer // pacer, as of the last take
	iov   []unix.Iovec
	n     int
	errno error
	try   func(fd uintptr) bool
	wait1 func(fd uintptr) bool
}

func (w *writer) init(nc net.Conn, onErr func(error), done <-chan struct{}) {
	w.nc, w.onErr, w.done = nc, onErr, done
	w.room.L = &w.mu
	if sc, ok := nc.(syscall.Conn); ok {
		if raw, err := sc.SyscallConn(); err == nil {
			w.raw = raw
		}
	}
	w.try = func(fd uintptr) bool { w.writev(fd); return true }
	w.wait1 = func(fd uintptr) bool { w.writev(fd); return w.errno != unix.EAGAIN }
}

// queueFrame appends one frame; it never waits. sums, if there are any, are the checksums of the parts.
func (w *writer) queueFrame(t Type, parts [][]byte, sums []uint32) error {
	body := 0
	for _, p := range parts {
		body += len(p)
	}
	if most, ok := t.limit(); !ok || body > most {
		return fmt.Errorf("%w: %v of %d bytes to be sent, limit %d", ErrFrame, t, body, most)
	}
	w.mu.Lock()
	err := w.err
	if err == nil && w.bytes+body > maxQueued {
		err = fmt.Errorf("%d bytes queued for a peer that does not read", w.bytes)
	}
	if err == nil {
		// The header is made where it will be sent from; a local one would be an allocation per frame.
		h := w.reserve(headerSize)
		putHeader(h, t, body)
		crc := record.Checksum(h[:12])
		for i, p := range parts {
			if sums != nil {
				crc = record.Join(crc, sums[i], len(p))
			} else {
				crc = record.Extend(crc, p)
			}
			w.append(p)
		}
		binary.LittleEndian.PutUint32(h[12:], crc)
	}
	w.mu.Unlock()
	if err != nil {
		w.onErr(err)
	}
	return err
}

// append queues a part, by copying it or by keeping it.
func (w *writer) append(p []byte) {
	switch {
	case len(p) == 0:
	case len(p) <= smallPart:
		w.copyIn(p)
	default:
		w.bufs = append(w.bufs, p)
		w.bytes += len(p)
		w.open = false
	}
}

// copyIn appends a small part.
func (w *writer) copyIn(p []byte) { copy(w.reserve(len(p)), p) }

// reserve appends n bytes to be filled in under the same lock, to the last buffer if that is where the slab's free
// part begins.
func (w *writer) reserve(n int) []byte {
	if cap(w.slab)-len(w.slab) < n {
		w.slab = make([]byte, 0, slabSize)
		w.open = false
	}
	from := len(w.slab)
	w.slab = w.slab[:from+n]
	if w.open {
		last := &w.bufs[len(w.bufs)-1]
		*last = (*last)[:len(*last)+n]
	} else {
		w.bufs = append(w.bufs, w.slab[from:from+n:cap(w.slab)])
		w.open = true
	}
	w.bytes += n
	return w.slab[from : from+n]
}

// flush writes what is queued unless somebody is writing, who then takes it along.
func (w *writer) flush() error {
	w.mu.Lock()
	if w.busy || len(w.bufs) == 0 {
		err := w.err
		w.mu.Unlock()
		return err
	}
	for len(w.bufs) > 0 && w.err == nil {
		w.take()
		err := error(unix.EAGAIN)
		if w.raw != nil && !w.paced() {
			w.mu.Unlock()
			if err = w.raw.Write(w.try); err == nil {
				err = w.errno
			}
			w.mu.Lock()
		}
		if err == unix.EAGAIN && w.err == nil {
			// Under the lock and before any fail, so that wait, which follows fail, sees this goroutine.
			w.writes.Go(w.writeRest)
			w.mu.Unlock()
			return nil
		}
		w.wrote(err)
	}
	err := w.err
	w.mu.Unlock()
	if err != nil {
		w.onErr(err)
	}
	return err
}

// take moves the queue to the writer; busy until wrote.
func (w *writer) take() {
	w.cur, w.bufs, w.spare = w.bufs, w.spare[:0], nil
	w.open = false
	w.busy = true
	w.hold = w.pacer
}

// paced says that the pacer holds the connection back, under mu.
func (w *writer) paced() bool { return w.pacer != nil && !w.pacer.Unlimited() }

func (w *writer) pace(p Pacer) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.pacer = p
}

// wrote ends a take: all of cur is written, or err.
func (w *writer) wrote(err error) {
	clear(w.cur) // the buffers belong to the garbage collector now
	w.spare, w.cur = w.cur[:0], nil
	if w.spare == nil || cap(w.spare) > maxVectors {
		w.spare = nil
	}
	w.busy = false
	w.bytes = 0
	for _, b := range w.bufs {
		w.bytes += len(b)
	}
	w.n = 0
	if err != nil && w.err == nil {
		w.err = err
	}
	w.room.Broadcast()
}

// writeRest is the writing goroutine: it waits for the socket as often as it must and ends when nothing is queued.
func (w *writer) writeRest() {
	for {
		err := w.writeCur()
		w.mu.Lock()
		w.wrote(err)
		if len(w.bufs) == 0 || w.err != nil {
			err = w.err
			w.mu.Unlock()
			if err != nil {
				w.onErr(err)
			}
			return
		}
		w.take()
		w.mu.Unlock()
	}
}

func (w *writer) writeCur() error {
	if err := w.writePaced(); err != nil {
		return err
	}
	if w.raw == nil {
		bufs := net.Buffers(w.cur[w.n:])
		n, err := bufs.WriteTo(w.nc)
		w.sent.Add(n)
		w.n = 0
		return err
	}
	if err := w.raw.Write(w.wait1); err != nil {
		return err
	}
	return w.errno
}

// writePaced writes cur in pieces, each as large as the pacer lets it be, until the end or until there is no limit.
func (w *writer) writePaced() error {
	for w.hold != nil && w.n < len(w.cur) && !w.hold.Unlimited() {
		left := 0
		for _, b := range w.cur[w.n:min(len(w.cur), w.n+maxVectors)] {
			left += len(b)
		}
		n := w.hold.Take(w.done, left)
		if n == 0 {
			return net.ErrClosed
		}
		var piece net.Buffers
		for n > 0 {
			b := w.cur[w.n]
			part := min(n, len(b))
			piece = append(piece, b[:part])
			if n -= part; part == len(b) {
				w.n++
			} else {
				w.cur[w.n] = b[part:]
			}
		}
		wrote, err := piece.WriteTo(w.nc)
		w.sent.Add(wrote)
		if err != nil {
			return err
		}
	}
	return nil
}

// writev writes cur from buffer n on until all is written, or an error, EAGAIN included, in errno. A buffer written in
// part is cut.
func (w *writer) writev(fd uintptr) {
	for w.n < len(w.cur) {
		w.iov = w.iov[:0]
		for _, b := range w.cur[w.n:min(len(w.cur), w.n+maxVectors)] {
			v := unix.Iovec{Base: &b[0]}
			v.SetLen(len(b))
			w.iov = append(w.iov, v)
		}
		n, err := sock.Write(fd, w.iov)
		clear(w.iov)
		if err != nil {
			w.errno = err
			return
		}
		w.sent.Add(int64(n))
		for n > 0 {
			if b := w.cur[w.n]; n < len(b) {
				w.cur[w.n] = b[n:]
				break
			}
			n -= len(w.cur[w.n])
			w.n++
		}
	}
	w.errno = nil
}

// fail wakes everybody with err; nothing more is queued.
func (w *writer) fail(err error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.err == nil {
		w.err = err
	}
	w.room.Broadcast()
}

// load is how many bytes are queued or being written.
func (w *writer) load() int {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.bytes
}

// idle says that what is written now need not wait: nothing is queued, and nothing holds the connection back.
func (w *writer) idle() bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.bytes == 0 && w.raw != nil && !w.paced() && w.err == nil
}

// waitRoom waits until little enough is queued.
func (w *writer) waitRoom() error {
	w.mu.Lock()
	defer w.mu.Unlock()
	for w.bytes > w.roomLimit() && w.err == nil {
		if w.busy {
			w.room.Wait()
			continue
		}
		w.mu.Unlock() // corked: nobody else would write it
		_ = w.flush()
		w.mu.Lock()
	}
	return w.err
}

func (w *writer) roomLimit() int {
	if w.paced() {
		return pacedRoom
	}
	return roomBytes
}

// drain waits until all is written, at most for d.
func (w *writer) drain(d time.Duration) {
	t := time.AfterFunc(d, func() { w.fail(io.ErrShortWrite) })
	defer t.Stop()
	w.mu.Lock()
	defer w.mu.Unlock()
	for (w.busy || len(w.bufs) > 0) && w.err == nil {
		w.room.Wait()
	}
}

// wait joins the writing goroutine; the connection has been closed.
func (w *writer) wait() { w.writes.Wait() }
