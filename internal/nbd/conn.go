package nbd

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"sync"
	"sync/atomic"
	"time"

	"gantline/internal/block"
)

// lingerTime is how long a connection that we end waits for the peer to end it too: closing a socket that still has
// bytes to be read may destroy replies on their way.
const lingerTime = 500 * time.Millisecond

// conn is the transmission phase of one connection. One goroutine runs run and finish; completions come from any.
type conn struct {
	sock   net.Conn
	tr     *transport
	export *Export
	alloc  bool
	opts   Options
	out    *outbox[*request]

	// Owned by the reading goroutine.
	in     input
	batch  []*block.Request
	free   []uint32 // slots
	budget int64    // bytes that may still be taken in flight

	slots    []request
	inflight atomic.Int64 // requests read whose replies are not written
	closing  atomic.Bool  // new requests get ESHUTDOWN

	mu       sync.Mutex
	changed  *sync.Cond
	freed    []uint32 // slots given back
	returned int64    // bytes given back
	waiting  bool     // the reading goroutine waits for slots or bytes
	gaveUp   bool     // requests in flight are no longer waited for
}

func newConn(sock net.Conn, neg *negotiated, opts Options) *conn {
	c := &conn{
		sock:   sock,
		tr:     newTransport(sock),
		export: neg.export,
		alloc:  neg.alloc,
		opts:   opts,
		in:     newInput(neg.early),
		slots:  make([]request, opts.MaxRequests),
		budget: opts.MaxBytes,
	}
	c.changed = sync.NewCond(&c.mu)
	e := encoder{structured: neg.structured}
	c.out = newOutbox(c.tr, e.encode, c.written, func(error) { c.wake() })
	// The stack of free slots has 0 on top: few in flight use few slots, whose memory stays in the processor's cache.
	for i := opts.MaxRequests - 1; i >= 0; i-- {
		c.free = append(c.free, uint32(i))
	}
	return c
}

// run reads and submits until the peer says goodbye, the connection is lost, or we shut down.
func (c *conn) run() error {
	for {
		c.out.cork()
		end, err := c.parse()
		c.submit()
		c.out.uncork()
		if err != nil || end {
			return err
		}
		if err := c.fill(); err != nil {
			if err == io.EOF || c.closing.Load() && errors.Is(err, os.ErrDeadlineExceeded) {
				return nil
			}
			if lost := c.out.failure(); lost != nil {
				return fmt.Errorf("writing replies: %w", lost)
			}
			return fmt.Errorf("reading requests: %w", err)
		}
	}
}

// fill reads more.
func (c *conn) fill() error {
	n, err := c.tr.read(c.in.room())
	c.in.w += n
	if err == io.EOF && c.in.r < c.in.w {
		err = io.ErrUnexpectedEOF
	}
	return err
}

// parse turns all whole messages of the buffer into requests of the batch; end: the peer said goodbye.
func (c *conn) parse() (end bool, err error) {
	for {
		buf := c.in.buffered()
		if len(buf) < requestSize {
			c.in.need = requestSize
			return false, nil
		}
		h := decodeRequest(buf)
		if h.magic != magicRequest {
			return false, fmt.Errorf("%w: request magic %#x", ErrProtocol, h.magic)
		}
		switch h.kind {
		case cmdDisc:
			return true, nil
		case cmdWrite:
			more, err := c.parseWrite(h, len(buf))
			if err != nil || !more {
				return false, err
			}
		default:
			c.in.r += requestSize
			if err := c.take(h, c.check(h)); err != nil {
				return false, err
			}
		}
	}
}

// parseWrite takes a write with its payload; more: the buffer may have another request behind it.
func (c *conn) parseWrite(h requestHeader, avail int) (more bool, err error) {
	if refused := c.check(h); refused != nil || h.length == 0 {
		if h.length > maxWriteSkip {
			return false, fmt.Errorf("%w: write of %d bytes", ErrProtocol, h.length)
		}
		c.in.r += requestSize
		if err := c.skip(int(h.length)); err != nil {
			return false, err
		}
		return true, c.take(h, refused)
	}
	total := requestSize + int(h.length)
	if avail < total && (c.in.fits(total) || h.length < ownPayload) {
		c.in.need = total
		return false, nil
	}
	if err := c.reserve(int64(h.length)); err != nil {
		return false, err
	}
	c.in.r += requestSize
	q := c.slot(h)
	q.charge = int64(h.length)
	if avail >= total {
		q.Data = c.in.lend(int(h.length))
	} else if err := c.readOwn(q); err != nil {
		return false, err
	}
	c.batch = append(c.batch, &q.Request)
	return true, nil
}

// readOwn reads a payload into a buffer of its own, straight from the socket but for what has been read already.
func (c *conn) readOwn(q *request) error {
	q.Data = block.Buffer(int(q.Length))
	n := copy(q.Data, c.in.buffered())
	c.in.r += n
	c.pause()
	defer c.out.cork()
	if err := c.tr.readFull(q.Data[n:]); err != nil {
		q.answer(fmt.Errorf("%w: payload is not complete", block.ErrInvalid))
		return err
	}
	return nil
}

// skip reads past n bytes of payload.
func (c *conn) skip(n int) error {
	k := min(n, len(c.in.buffered()))
	c.in.r += k
	if n -= k; n == 0 {
		return nil
	}
	c.pause()
	defer c.out.cork()
	waste := make([]byte, min(n, firstChunk))
	for n > 0 {
		k, err := c.tr.read(waste[:min(n, len(waste))])
		if err != nil {
			return err
		}
		n -= k
	}
	return nil
}

// take makes a request without payload, or answers it at once if it is refused.
func (c *conn) take(h requestHeader, refused error) error {
	var charge int64
	if h.kind == cmdRead && refused == nil {
		charge = int64(h.length)
	}
	if err := c.reserve(charge); err != nil {
		return err
	}
	q := c.slot(h)
	if refused != nil || h.length == 0 && h.kind != cmdFlush {
		q.answer(refused)
		return nil
	}
	if charge > 0 {
		q.charge = charge
		q.mem = getBuffer(q.mem, int(h.length))
		q.Data = q.mem.mem[:h.length]
	}
	c.batch = append(c.batch, &q.Request)
	return nil
}

// check refuses what need not reach the target.
func (c *conn) check(h requestHeader) error {
	rule := ruleOf(h.kind)
	if rule.op == 0 {
		return fmt.Errorf("%w: command %d is not known", block.ErrInvalid, h.kind)
	}
	if c.closing.Load() {
		return block.ErrShutdown
	}
	allowed := rule.flags
	if h.kind == cmdWriteZeroes && !c.export.CanFastZero {
		allowed &^= cmdFlagFastZero
	}
	if bad := h.flags &^ allowed; bad != 0 {
		return fmt.Errorf("%w: flags %#x do not go with command %d", block.ErrInvalid, bad, h.kind)
	}
	if rule.writes && c.export.ReadOnly {
		return block.ErrReadOnly
	}
	if h.kind == cmdFlush {
		if h.offset != 0 || h.length != 0 {
			return fmt.Errorf("%w: flush has neither offset nor length", block.ErrInvalid)
		}
		return nil
	}
	if h.kind == cmdBlockStatus && (!c.alloc || h.length == 0) {
		return fmt.Errorf("%w: no meta context was chosen, or no length", block.ErrInvalid)
	}
	if rule.data && h.length > maxPayload {
		return fmt.Errorf("%w: %d bytes are more than %d", block.ErrInvalid, h.length, maxPayload)
	}
	if h.offset > uint64(c.export.Size) || uint64(h.length) > uint64(c.export.Size)-h.offset {
		return fmt.Errorf("%w: offset %d, length %d, size %d", block.ErrRange, h.offset, h.length, c.export.Size)
	}
	return nil
}

// reserve waits until a slot and n bytes are free; while it waits, what was parsed is under way and replies flow.
func (c *conn) reserve(n int64) error {
	if len(c.free) > 0 && c.budget >= n {
		c.budget -= n
		return nil
	}
	c.mu.Lock()
	c.collect()
	enough := len(c.free) > 0 && c.budget >= n
	c.mu.Unlock()
	if !enough {
		c.pause()
		c.mu.Lock()
		c.waiting = true
		for c.collect(); (len(c.free) == 0 || c.budget < n) && !c.gaveUp; c.collect() {
			c.changed.Wait()
		}
		c.waiting = false
		gaveUp := c.gaveUp
		c.mu.Unlock()
		c.out.cork()
		if gaveUp {
			return block.ErrShutdown
		}
	}
	c.budget -= n
	return nil
}

// collect takes what replies have given back. Needs the lock.
func (c *conn) collect() {
	c.free = append(c.free, c.freed...)
	c.freed = c.freed[:0]
	c.budget += c.returned
	c.returned = 0
}

// pause comes before the reading goroutine waits for anything: what it holds goes on its way. It ends the cork.
func (c *conn) pause() {
	c.submit()
	c.out.uncork()
}

// slot fills a free slot from a header.
func (c *conn) slot(h requestHeader) *request {
	last := len(c.free) - 1
	id := c.free[last]
	c.free = c.free[:last]
	q := &c.slots[id]
	q.Request = block.Request{
		Op:        ruleOf(h.kind).op,
		Flags:     blockFlags(h),
		Offset:    int64(h.offset),
		Length:    int64(h.length),
		Completer: c,
		Tag:       uint64(id),
	}
	q.cookie, q.charge, q.conn = h.cookie, 0, c
	q.open.Store(true)
	c.inflight.Add(1)
	return q
}

// submit hands the batch to the target.
func (c *conn) submit() {
	if len(c.batch) == 0 {
		return
	}
	c.export.Target.Submit(c.batch)
	clear(c.batch)
	c.batch = c.batch[:0]
}

// Complete takes a request's answer from the target.
func (c *conn) Complete(r *block.Request) {
	q := &c.slots[r.Tag]
	if &q.Request != r {
		panic("nbd: completion of a foreign request")
	}
	q.answer(r.Err)
}

// Cork and Uncork make conn a Corker.
func (c *conn) Cork() { c.out.cork() }

// Uncork sends what was completed since Cork.
func (c *conn) Uncork() { c.out.uncork() }

// written frees requests whose replies have left.
func (c *conn) written(qs []*request, _ error) {
	for _, q := range qs {
		q.release()
	}
	c.mu.Lock()
	for _, q := range qs {
		c.freed = append(c.freed, uint32(q.Tag))
		c.returned += q.charge
	}
	left := c.inflight.Add(-int64(len(qs)))
	if c.waiting || left == 0 {
		c.changed.Broadcast()
	}
	c.mu.Unlock()
	if left == 0 && c.closing.Load() {
		c.wake()
	}
}

// shut has new requests refused and ends the connection when none is left.
func (c *conn) shut() {
	c.closing.Store(true)
	if c.inflight.Load() == 0 {
		c.wake()
	}
}

// wake makes the reading goroutine's read return.
func (c *conn) wake() { _ = c.sock.SetReadDeadline(time.Unix(1, 0)) }

// abandon ends the connection without waiting for anything.
func (c *conn) abandon() {
	c.mu.Lock()
	c.gaveUp = true
	c.changed.Broadcast()
	c.mu.Unlock()
	c.sock.Close()
}

// finish waits for what is in flight, closes the connection, then the export.
func (c *conn) finish(err error) {
	limit := time.AfterFunc(c.opts.DrainTimeout, c.abandon)
	c.mu.Lock()
	for c.inflight.Load() > 0 && !c.gaveUp {
		c.changed.Wait()
	}
	complete := c.inflight.Load() == 0
	c.mu.Unlock()
	limit.Stop()
	if !complete {
		c.opts.Log.Warn("nbd: connection ends with requests in flight", "export", c.export.Name, "requests", c.inflight.Load())
	} else if err == nil {
		c.out.drain()
		closeWrite(c.sock)
		if c.closing.Load() {
			c.linger()
		}
	}
	c.sock.Close()
	c.out.drain()
	c.export.close()
}

// linger reads until the peer has ended the connection too, for a while. The chunk is not its own to read into: payloads of writes
// that were answered are slices of it, and are still in logs' and caches' memory.
func (c *conn) linger() {
	_ = c.sock.SetReadDeadline(time.Now().Add(lingerTime))
	var scrap [4096]byte
	for {
		if _, err := c.tr.read(scrap[:]); err != nil {
			return
		}
	}
}

// requestHeader is a decoded request.
type requestHeader struct {
	magic       uint32
	flags, kind uint16
	cookie      uint64
	offset      uint64
	length      uint32
}

func decodeRequest(p []byte) requestHeader {
	_ = p[requestSize-1]
	return requestHeader{
		magic:  binary.BigEndian.Uint32(p),
		flags:  binary.BigEndian.Uint16(p[4:]),
		kind:   binary.BigEndian.Uint16(p[6:]),
		cookie: binary.BigEndian.Uint64(p[8:]),
		offset: binary.BigEndian.Uint64(p[16:]),
		length: binary.BigEndian.Uint32(p[24:]),
	}
}
