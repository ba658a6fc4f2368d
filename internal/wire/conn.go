package wire

import (
	"context"
	"errors"
	"fmt"
	"net"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// Timing of a connection. Variables of a type, not constants, so that tests need not sleep.
type timing struct {
	tick   time.Duration // how often the keeper looks
	ping   time.Duration // sends a ping after so long without sending anything
	silent time.Duration // gives the peer up after so long without receiving anything
}

var defaultTiming = timing{tick: 250 * time.Millisecond, ping: time.Second, silent: 5 * time.Second}

// Conn is a connection that carries frames. One goroutine reads; any number may write. A keeper goroutine sends pings
// and ends the connection when the peer has been silent; Close joins it.
type Conn struct {
	nc     net.Conn
	rd     reader
	in     frameReader
	out    writer
	timing timing

	received atomic.Int64 // bytes
	rxCount  atomic.Int64 // reads that returned, for the keeper
	inRead   atomic.Bool  // the reading goroutine waits for the peer; silence counts only then
	lastRead atomic.Int64 // the keeper's note, wall-clock free: nanoseconds since started

	started time.Time
	cause   atomic.Pointer[error]
	closing sync.Once
	done    chan struct{}
	keeper  sync.WaitGroup
}

// NewConn takes over nc. The keeper does not run before StartKeeper.
func NewConn(nc net.Conn) *Conn {
	if tcp, ok := nc.(*net.TCPConn); ok {
		_ = tcp.SetNoDelay(true) // the default, but we depend on it
	}
	c := &Conn{nc: nc, timing: defaultTiming, started: time.Now(), done: make(chan struct{})}
	c.rd.init(nc)
	c.in.src = (*countingReader)(c)
	c.out.init(nc, c.fail, c.done)
	return c
}

// countingReader is the Conn as its frameReader sees it.
type countingReader Conn

func (r *countingReader) Read(p []byte) (int, error) {
	r.inRead.Store(true)
	n, err := r.rd.read(p)
	r.inRead.Store(false)
	r.rxCount.Add(1)
	r.received.Add(int64(n))
	return n, err
}

// ReadFrame returns the next frame that is not a ping. The body is a slice of a chunk that is never written again.
// Any error is final: the connection is closed and the same error comes again.
func (c *Conn) ReadFrame() (Type, []byte, error) {
	for {
		t, body, err := c.in.next()
		if err != nil {
			c.fail(err)
			return 0, nil, c.Err()
		}
		switch t {
		case TypePing:
			continue
		case TypeBye:
			c.fail(ErrBye)
			return 0, nil, c.Err()
		}
		return t, body, nil
	}
}

// Buffered reports whether ReadFrame would return at once: another whole frame that is not a ping is in the buffer,
// or the buffer holds proof that the stream is broken. For the reading goroutine only.
func (c *Conn) Buffered() bool {
	for c.in.have() {
		if c.in.err != nil {
			return true
		}
		t, _, err := parseHeader(c.in.buf[c.in.r:])
		if err != nil || t != TypePing {
			return true
		}
		if _, _, err := c.in.next(); err != nil {
			return true
		}
	}
	return false
}

// Queue adds a frame to what is to be written; Flush writes it. Parts up to smallPart bytes are copied, longer ones
// are kept and must not change any more. Neither waits for the peer: see WaitRoom.
func (c *Conn) Queue(t Type, parts ...[]byte) error { return c.out.queueFrame(t, parts, nil) }

// Flush writes what is queued as far as the socket takes it at once; the rest goes by itself. If another goroutine is
// writing already, that one takes it along.
func (c *Conn) Flush() error { return c.out.flush() }

// WriteFrame queues a frame, flushes, and waits while too much is queued.
func (c *Conn) WriteFrame(t Type, parts ...[]byte) error { return c.writeFrame(t, parts, nil) }

func (c *Conn) writeFrame(t Type, parts [][]byte, sums []uint32) error {
	if err := c.out.queueFrame(t, parts, sums); err != nil {
		return err
	}
	if err := c.out.flush(); err != nil {
		return err
	}
	return c.out.waitRoom()
}

// WaitRoom waits until little enough is queued for more to be sensible, or the connection has ended.
func (c *Conn) WaitRoom() error { return c.out.waitRoom() }

// Pace has p hold back all that is written from now on; nil: nothing does.
func (c *Conn) Pace(p Pacer) { c.out.pace(p) }

// SentBytes and ReceivedBytes count bytes of frames, headers included.
func (c *Conn) SentBytes() int64     { return c.out.sent.Load() }
func (c *Conn) ReceivedBytes() int64 { return c.received.Load() }

// RTT is the round-trip time of the connection as the kernel sees it; false if that is not known.
func (c *Conn) RTT() (time.Duration, bool) {
	sc, ok := c.nc.(syscall.Conn)
	if !ok {
		return 0, false
	}
	raw, err := sc.SyscallConn()
	if err != nil {
		return 0, false
	}
	var info *unix.TCPInfo
	if cerr := raw.Control(func(fd uintptr) {
		info, err = unix.GetsockoptTCPInfo(int(fd), unix.IPPROTO_TCP, unix.TCP_INFO)
	}); cerr != nil || err != nil {
		return 0, false
	}
	return time.Duration(info.Rtt) * time.Microsecond, true
}

// RemoteAddr is the peer's address.
func (c *Conn) RemoteAddr() net.Addr { return c.nc.RemoteAddr() }

// LocalAddr is this side's address.
func (c *Conn) LocalAddr() net.Addr { return c.nc.LocalAddr() }

// LastHeard is when the peer was last known to send, as exact as the keeper's tick.
func (c *Conn) LastHeard() time.Time { return c.started.Add(time.Duration(c.lastRead.Load())) }

// Done is closed when the connection has ended, Err says why.
func (c *Conn) Done() <-chan struct{} { return c.done }

// Abort ends the connection without waiting for anything; err becomes its cause.
func (c *Conn) Abort(err error) { c.fail(err) }

// Err is why the connection has ended, nil while it has not.
func (c *Conn) Err() error {
	if p := c.cause.Load(); p != nil {
		return *p
	}
	return nil
}

// Bye tells the peer that this side ends the connection in order, then closes it.
func (c *Conn) Bye() {
	_ = c.Queue(TypeBye)
	_ = c.Flush()
	c.out.drain(time.Second)
	c.Close()
}

// Close ends the connection and waits for its keeper and writer.
func (c *Conn) Close() {
	c.fail(ErrClosed)
	c.keeper.Wait()
	c.out.wait()
}

// Refuse tells the peer why it is not served and closes the connection.
func (c *Conn) Refuse(err error) {
	_ = c.Queue(TypeError, marshalError(err))
	_ = c.Flush()
	c.out.drain(time.Second)
	c.Close()
}

// fail ends the connection with the first cause given; it does not wait.
func (c *Conn) fail(err error) {
	c.closing.Do(func() {
		if !errors.Is(err, ErrClosed) && !errors.Is(err, ErrBye) {
			err = fmt.Errorf("connection with %v: %w", c.nc.RemoteAddr(), err)
		}
		c.cause.Store(&err)
		close(c.done)
		c.out.fail(err)
		_ = c.nc.Close()
	})
}

// closeOn ends the connection when ctx ends; the returned function undoes that.
func (c *Conn) closeOn(ctx context.Context) (stop func() bool) {
	return context.AfterFunc(ctx, func() { c.fail(context.Cause(ctx)) })
}

// StartKeeper begins pings and the watch for silence. It is called once, when the hello is over.
func (c *Conn) StartKeeper() {
	c.lastRead.Store(int64(time.Since(c.started)))
	c.keeper.Go(c.keep)
}

// keep looks at counters that reading and writing leave behind, so that neither has to ask for the time.
func (c *Conn) keep() {
	ticker := time.NewTicker(c.timing.tick)
	defer ticker.Stop()
	reads, heard := c.rxCount.Load(), time.Now()
	sends, spoke := c.out.sent.Load(), time.Now()
	last := time.Now()
	for {
		select {
		case <-c.done:
			return
		case <-ticker.C:
		}
		now := time.Now()
		if now.Sub(last) > c.timing.silent/2 {
			heard = now // this process itself was stopped: what the peer sent meanwhile is still unread
		}
		last = now
		if n := c.rxCount.Load(); n != reads || !c.inRead.Load() {
			reads, heard = n, now
			c.lastRead.Store(int64(now.Sub(c.started)))
		} else if now.Sub(heard) >= c.timing.silent {
			c.fail(fmt.Errorf("%w for %v", ErrSilent, c.timing.silent))
			return
		}
		if n := c.out.sent.Load(); n != sends {
			sends, spoke = n, now
		} else if now.Sub(spoke) >= c.timing.ping {
			_ = c.out.queueFrame(TypePing, nil, nil)
			spoke = now
		}
		_ = c.out.flush() // nothing stays queued longer than a tick, whoever forgot it
	}
}
