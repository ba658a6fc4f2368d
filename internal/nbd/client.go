package nbd

import (
	"bufio"
	"context"
	"encoding/binary"
	"fmt"
	"net"
	"sync"
	"time"

	"gantline/internal/block"
)

const (
	clientRequests = 1024      // in flight
	clientBytes    = 128 << 20 // of data in flight
	clientBuffer   = 128 << 10
	dialTimeout    = 10 * time.Second // where the context names no sooner end
	closeTimeout   = time.Second      // for saying goodbye
)

// Client is a connection to an NBD server's export: a block.Target for any number of goroutines. Requests are
// pipelined; Submit waits when 1,024 requests or 128 MiB are in flight, and must therefore not be called from the
// Complete of one of the client's own requests. When the connection is lost, every request without an answer
// completes with ErrConnLost; there is no reconnecting.
type Client struct {
	sock       net.Conn
	tr         *transport
	r          *bufio.Reader
	out        *outbox[message]
	size       int64
	flags      uint16
	structured bool
	alloc      bool
	allocID    uint32
	name       string
	done       chan struct{} // the reading goroutine has ended, all requests are completed

	mu       sync.Mutex
	changed  *sync.Cond
	calls    []call
	free     []uint32
	bytes    int64
	queueing int  // Submits between taking a slot and having queued the request
	closed   bool // no request is sent any more
}

// call is a request in flight.
type call struct {
	id     uint32
	req    *block.Request
	gen    uint32 // of the cookie: an answer to an earlier request of the slot is not taken for this one's
	charge int64

	// Owned by the reading goroutine.
	err    error
	parts  []part // of a read that came in several chunks
	status bool   // the block status has come
}

// part is a piece of a read's answer, relative to its start.
type part struct{ off, n int64 }

// message is what is sent of a request; it does not refer to the request, which may be completed before it is gone.
type message struct {
	flags, kind uint16
	cookie      uint64
	offset      uint64
	length      uint32
	data        []byte
}

func encodeCommand(v *vector, m message) {
	p := v.head(requestSize)
	binary.BigEndian.PutUint32(p, magicRequest)
	binary.BigEndian.PutUint16(p[4:], m.flags)
	binary.BigEndian.PutUint16(p[6:], m.kind)
	binary.BigEndian.PutUint64(p[8:], m.cookie)
	binary.BigEndian.PutUint64(p[16:], m.offset)
	binary.BigEndian.PutUint32(p[24:], m.length)
	v.data(m.data)
}

// Dial connects to an export. The handshake ends with the context, after 10 s at the latest.
func Dial(ctx context.Context, network, addr, export string) (*Client, error) {
	ctx, cancel := context.WithTimeout(ctx, dialTimeout)
	defer cancel()
	var d net.Dialer
	sock, err := d.DialContext(ctx, network, addr)
	if err != nil {
		return nil, fmt.Errorf("nbd: %w", err)
	}
	c, err := newClient(ctx, sock, export)
	if err != nil {
		sock.Close()
		return nil, fmt.Errorf("nbd: export %q of %s: %w", export, addr, err)
	}
	return c, nil
}

// newClient negotiates on a connection and starts the client.
func newClient(ctx context.Context, sock net.Conn, export string) (*Client, error) {
	setSocketOptions(sock)
	stop := context.AfterFunc(ctx, func() { _ = sock.SetDeadline(time.Unix(1, 0)) })
	c := &Client{
		sock: sock,
		tr:   newTransport(sock),
		done: make(chan struct{}),
	}
	c.r = bufio.NewReaderSize(readerFunc(c.tr.read), clientBuffer)
	c.changed = sync.NewCond(&c.mu)
	if err := c.negotiate(export); err != nil {
		stop()
		if ctx.Err() != nil {
			err = fmt.Errorf("%w: %w", context.Cause(ctx), err)
		}
		return nil, err
	}
	if !stop() {
		return nil, context.Cause(ctx)
	}
	c.calls = make([]call, clientRequests)
	for i := clientRequests - 1; i >= 0; i-- {
		c.calls[i].id = uint32(i)
		c.free = append(c.free, uint32(i))
	}
	c.out = newOutbox(c.tr, encodeCommand, func([]message, error) {}, func(error) { sock.Close() })
	go c.receive()
	return c, nil
}

type readerFunc func([]byte) (int, error)

func (f readerFunc) Read(p []byte) (int, error) { return f(p) }

// Size is the export's size in bytes.
func (c *Client) Size() int64 { return c.size }

// ReadOnly says whether the server refuses writes.
func (c *Client) ReadOnly() bool { return c.flags&flagReadOnly != 0 }

// Name is the export's name.
func (c *Client) Name() string { return c.name }

// Done is closed when the connection has ended and all requests are completed.
func (c *Client) Done() <-chan struct{} { return c.done }

// Close ends the connection; requests without an answer complete with ErrConnLost before it returns.
func (c *Client) Close() error {
	c.mu.Lock()
	first := !c.closed
	c.stopSubmits()
	c.mu.Unlock()
	if first {
		_ = c.sock.SetWriteDeadline(time.Now().Add(closeTimeout))
		c.out.put(message{kind: cmdDisc})
		c.out.drain()
		c.sock.Close()
	}
	<-c.done
	return nil
}

// stopSubmits has further requests fail and waits for those being queued. Needs the lock.
func (c *Client) stopSubmits() {
	c.closed = true
	c.changed.Broadcast()
	for c.queueing > 0 {
		c.changed.Wait()
	}
}

// Submit sends the requests; those that the server cannot serve are answered here.
func (c *Client) Submit(reqs []*block.Request) {
	corked := false
	for _, r := range reqs {
		m, answered, err := c.command(r)
		if answered || err != nil {
			r.Finish(err)
			continue
		}
		// Before a wait for others' answers, what is queued must have left.
		if !c.take(r, &m) {
			if corked {
				c.out.uncork()
				corked = false
			}
			if !c.wait(r, &m) {
				r.Finish(ErrConnLost)
				continue
			}
		}
		if !corked {
			c.out.cork()
			corked = true
		}
		c.out.put(m)
		c.queued()
	}
	if corked {
		c.out.uncork()
	}
}

// take gives the request a slot if one is free.
func (c *Client) take(r *block.Request, m *message) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.takeLocked(r, m)
}

// wait gives the request a slot as soon as one is free; false: the connection has ended.
func (c *Client) wait(r *block.Request, m *message) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	for !c.closed {
		if c.takeLocked(r, m) {
			return true
		}
		c.changed.Wait()
	}
	return false
}

func (c *Client) takeLocked(r *block.Request, m *message) bool {
	charge := int64(0)
	if r.Op == block.OpRead || r.Op == block.OpWrite {
		charge = r.Length
	}
	if c.closed || len(c.free) == 0 || c.bytes > 0 && c.bytes+charge > clientBytes {
		return false
	}
	last := len(c.free) - 1
	id := c.free[last]
	c.free = c.free[:last]
	k := &c.calls[id]
	k.gen++
	k.req, k.charge, k.err, k.parts, k.status = r, charge, nil, k.parts[:0], false
	c.bytes += charge
	c.queueing++
	m.cookie = uint64(k.gen)<<32 | uint64(id)
	return true
}

// queued ends what take began: the request is in the outbox.
func (c *Client) queued() {
	c.mu.Lock()
	c.queueing--
	if c.closed && c.queueing == 0 {
		c.changed.Broadcast()
	}
	c.mu.Unlock()
}

// command says what to send for a request, or that it can be answered without the server.
func (c *Client) command(r *block.Request) (m message, answered bool, err error) {
	if r.Op != block.OpFlush && (r.Offset < 0 || r.Length < 0 || r.Length > c.size-r.Offset) {
		return m, false, fmt.Errorf("%w: offset %d, length %d, size %d", block.ErrRange, r.Offset, r.Length, c.size)
	}
	writes := r.Op == block.OpWrite || r.Op == block.OpTrim || r.Op == block.OpZero
	if writes && c.ReadOnly() {
		return m, false, block.ErrReadOnly
	}
	if r.Length > 1<<32-1 || r.Length > maxPayload && (r.Op == block.OpRead || r.Op == block.OpWrite) {
		return m, false, fmt.Errorf("%w: %d bytes in one request", block.ErrInvalid, r.Length)
	}
	if r.Length == 0 && r.Op != block.OpFlush {
		return m, true, nil
	}
	m.offset, m.length = uint64(r.Offset), uint32(r.Length)
	needs := uint16(0)
	switch r.Op {
	case block.OpRead:
		m.kind = cmdRead
	case block.OpWrite:
		m.kind, m.data = cmdWrite, r.Data
	case block.OpFlush:
		m.kind, needs, m.offset, m.length = cmdFlush, flagFlush, 0, 0
	case block.OpTrim:
		m.kind, needs = cmdTrim, flagTrim
	case block.OpZero:
		m.kind, needs = cmdWriteZeroes, flagWriteZeroes
	case block.OpCache:
		if m.kind = cmdCache; c.flags&flagCache == 0 {
			return m, true, nil // a hint
		}
	case block.OpExtents:
		if m.kind = cmdBlockStatus; !c.alloc {
			r.Extents = []block.Extent{{Offset: r.Offset, Length: r.Length}}
			return m, true, nil
		}
	default:
		return m, false, fmt.Errorf("%w: operation %d", block.ErrInvalid, r.Op)
	}
	if (r.Op == block.OpRead || r.Op == block.OpWrite) && int64(len(r.Data)) != r.Length {
		return m, false, fmt.Errorf("%w: %d bytes of data for a length of %d", block.ErrInvalid, len(r.Data), r.Length)
	}
	if writes && r.Flags&block.FlagFUA != 0 {
		m.flags |= cmdFlagFUA
		needs |= flagFUA
	}
	if r.Op == block.OpZero && r.Flags&block.FlagNoHole != 0 {
		m.flags |= cmdFlagNoHole
	}
	if r.Op == block.OpZero && r.Flags&block.FlagFastZero != 0 {
		m.flags |= cmdFlagFastZero
		needs |= flagFastZero
	}
	if r.Op == block.OpExtents && r.Flags&block.FlagOne != 0 {
		m.flags |= cmdFlagReqOne
	}
	if c.flags&needs != needs {
		return m, false, fmt.Errorf("%w by the NBD server", block.ErrUnsupported)
	}
	return m, false, nil
}
