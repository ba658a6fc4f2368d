package wire

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"sync/atomic"

	"gantline/internal/block"
)

// IOClientHooks let a router see answers before the requests are completed. Both run on the client's reading
// goroutine, must not block on another answer of this client and must not call Close.
type IOClientHooks struct {
	// Done replaces r.Finish(err).
	Done func(r *block.Request, epoch uint64, err error)
	// Lost is called once, last, with all requests without answer in the order they were sent; abandoned ones are not among
	// them.
	Lost func(reqs []*block.Request, err error)
	// Settled, if not nil, is called when the node has answered the last of the abandoned requests and nothing else is in
	// flight.
	Settled func()
}

// IOClient sends requests to one volume of a node over one connection. It is a block.Target; Submit and Send may be
// called concurrently. A read without Data gets its answer as it was received, which saves a copy.
type IOClient struct {
	conn   *Conn
	answer IOAnswer
	hooks  IOClientHooks
	epoch  atomic.Uint64 // what requests carry
	reader sync.WaitGroup

	mu        sync.Mutex
	slots     []slot
	free      []uint32
	inFlight  int
	order     uint64
	abandoned int               // given back, not answered by the node: replies without a slot are expected
	lost      error             // no more requests are taken
	head      [requestSize]byte // scratch of Send
}

type slot struct {
	r     *block.Request // nil: free
	order uint64
	gen   uint32 // of the tag, so that a late reply does not answer the slot's next user
}

// DialIO opens a volume at a node. Refusals are *Error; see AsMoved.
func DialIO(ctx context.Context, addr string, self Hello, p IOParams, hooks IOClientHooks) (*IOClient, error) {
	self.Purpose = PurposeIO
	hello, err := self.WithParams(p)
	if err != nil {
		return nil, err
	}
	conn, back, err := Dial(ctx, addr, hello)
	if err != nil {
		return nil, err
	}
	c := &IOClient{conn: conn, hooks: hooks}
	if err := back.Decode(&c.answer); err != nil {
		conn.Close()
		return nil, err
	}
	if c.answer.Size < 0 {
		conn.Close()
		return nil, fmt.Errorf("%w: volume %s of %d bytes", ErrFrame, p.Volume, c.answer.Size)
	}
	c.epoch.Store(max(p.Epoch, c.answer.Epoch))
	if c.hooks.Done == nil {
		c.hooks.Done = func(r *block.Request, _ uint64, err error) { r.Finish(err) }
	}
	if c.hooks.Lost == nil {
		c.hooks.Lost = func(reqs []*block.Request, err error) {
			for _, r := range reqs {
				r.Finish(fmt.Errorf("%w: %w", block.ErrIO, err))
			}
		}
	}
	c.reader.Go(c.read)
	return c, nil
}

// Answer is what the node said of the volume when it was opened.
func (c *IOClient) Answer() IOAnswer { return c.answer }

// Size is the volume's, bytes.
func (c *IOClient) Size() int64 { return c.answer.Size }

// Conn is the connection below, for its counters and its end.
func (c *IOClient) Conn() *Conn { return c.conn }

// SetEpoch raises the epoch that requests carry from now on.
func (c *IOClient) SetEpoch(epoch uint64) {
	for old := c.epoch.Load(); epoch > old && !c.epoch.CompareAndSwap(old, epoch); old = c.epoch.Load() {
	}
}

// Submit sends the requests with one flush and waits while too much is queued for the node.
func (c *IOClient) Submit(reqs []*block.Request) {
	if err := c.Send(reqs); err != nil {
		for _, r := range reqs {
			r.Finish(fmt.Errorf("%w: %w", block.ErrIO, err))
		}
		return
	}
	_ = c.conn.WaitRoom()
}

// Send is Submit without waiting. An error means that none of the requests is taken; afterwards each is answered by
// Done or Lost.
func (c *IOClient) Send(reqs []*block.Request) error {
	c.mu.Lock()
	if c.lost != nil {
		c.mu.Unlock()
		return c.lost
	}
	epoch := c.epoch.Load()
	for _, r := range reqs {
		putRequest(c.head[:], r, c.take(r), epoch)
		var payload []byte
		if r.Op == block.OpWrite {
			payload = r.Data
		}
		// An error is the connection's end; Lost then returns the request, so it counts as sent.
		_ = c.conn.Queue(TypeRequest, c.head[:], payload)
	}
	c.mu.Unlock()
	_ = c.conn.Flush()
	return nil
}

// WaitRoom waits while too much is queued for the node.
func (c *IOClient) WaitRoom() { _ = c.conn.WaitRoom() }

// InFlight is the number of requests that the node has not answered, abandoned ones included.
func (c *IOClient) InFlight() int {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.inFlight + c.abandoned
}

// take gives r a slot and returns its tag. Needs the lock.
func (c *IOClient) take(r *block.Request) uint64 {
	if len(c.free) == 0 {
		c.slots = append(c.slots, slot{})
		c.free = append(c.free, uint32(len(c.slots)-1))
	}
	i := c.free[len(c.free)-1]
	c.free = c.free[:len(c.free)-1]
	c.order++
	s := &c.slots[i]
	s.r, s.order = r, c.order
	s.gen++
	c.inFlight++
	return uint64(s.gen)<<32 | uint64(i)
}

// Abandon gives back all requests without answer, in the order they were sent; they are the caller's, whatever the
// node still answers. An answer that is being delivered just now counts as delivered.
func (c *IOClient) Abandon() []*block.Request {
	c.mu.Lock()
	defer c.mu.Unlock()
	out := c.drop()
	c.abandoned += len(out)
	return out
}

// drop empties all slots. Needs the lock.
func (c *IOClient) drop() []*block.Request {
	var left []slot
	for i := range c.slots {
		if c.slots[i].r != nil {
			left = append(left, c.slots[i])
			c.slots[i].r = nil
			c.free = append(c.free, uint32(i))
		}
	}
	slices.SortFunc(left, func(a, b slot) int { return int(int64(a.order - b.order)) })
	out := make([]*block.Request, len(left))
	for i, s := range left {
		out[i] = s.r
	}
	c.inFlight = 0
	return out
}

// Abort ends the connection without waiting; Lost follows.
func (c *IOClient) Abort(err error) { c.conn.fail(err) }

// Bye ends the connection in order: the node forgets the session, rather than remember it as ended.
func (c *IOClient) Bye() {
	c.conn.Bye()
	c.reader.Wait()
}

// Close ends the connection and waits until Lost has returned.
func (c *IOClient) Close() {
	c.conn.Close()
	c.reader.Wait()
}

// read delivers answers until the connection ends. While more answers are in the buffer, the completer is corked, so
// that one read of ours becomes one write of the host's connection.
func (c *IOClient) read() {
	var corked Corker
	for {
		t, body, err := c.conn.ReadFrame()
		if err == nil {
			corked, err = c.deliver(t, body, corked)
		}
		if err != nil {
			c.conn.fail(err)
			break
		}
		if corked != nil && !c.conn.Buffered() {
			corked.Uncork()
			corked = nil
		}
	}
	if corked != nil {
		corked.Uncork()
	}
	c.mu.Lock()
	c.lost = c.conn.Err()
	reqs := c.drop()
	c.mu.Unlock()
	c.hooks.Lost(reqs, c.lost)
}

func (c *IOClient) deliver(t Type, body []byte, corked Corker) (Corker, error) {
	if t == TypeError {
		return corked, unmarshalError(body)
	}
	if t != TypeReply {
		return corked, fmt.Errorf("%w: %v on an io connection", ErrFrame, t)
	}
	rep, err := getReply(body)
	if err != nil {
		return corked, err
	}
	r, extents, failed, err := c.answered(rep)
	if r == nil && err == nil && c.hooks.Settled != nil && c.InFlight() == 0 {
		c.hooks.Settled()
	}
	if r == nil || err != nil {
		return corked, err
	}
	if failed == nil && r.Op == block.OpRead {
		if r.Data == nil {
			r.Data = rep.payload[:len(rep.payload):len(rep.payload)]
		} else {
			copy(r.Data, rep.payload)
		}
	}
	r.Extents = extents
	if k, ok := r.Completer.(Corker); ok && k != corked && (corked != nil || c.conn.Buffered()) {
		if corked != nil {
			corked.Uncork()
		}
		k.Cork()
		corked = k
	}
	c.hooks.Done(r, rep.epoch, failed)
	return corked, nil
}

// answered checks a reply against its request and takes the request out of its slot. A reply that does not fit leaves
// the request where it is: Lost returns it.
func (c *IOClient) answered(rep reply) (r *block.Request, ext []block.Extent, failed, err error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	i, gen := uint32(rep.tag), uint32(rep.tag>>32)
	if int64(i) >= int64(len(c.slots)) || c.slots[i].gen != gen || c.slots[i].r == nil {
		if c.abandoned > 0 {
			c.abandoned--
			return nil, nil, nil, nil
		}
		return nil, nil, nil, fmt.Errorf("%w: reply to a request that is not in flight", ErrFrame)
	}
	r = c.slots[i].r
	switch {
	case rep.code != codeOK:
		failed = errorOf(rep.code, rep.payload)
		if errors.Is(failed, ErrFrame) {
			return nil, nil, nil, failed
		}
	case r.Op == block.OpRead && int64(len(rep.payload)) != r.Length:
		return nil, nil, nil, fmt.Errorf("%w: %d bytes answer a read of %d", ErrFrame, len(rep.payload), r.Length)
	case r.Op == block.OpExtents:
		if ext, err = decodeExtents(rep.payload); err != nil {
			return nil, nil, nil, err
		}
	case r.Op != block.OpRead && len(rep.payload) != 0:
		return nil, nil, nil, fmt.Errorf("%w: %d bytes answer a request that reads nothing", ErrFrame, len(rep.payload))
	}
	c.slots[i].r = nil
	c.free = append(c.free, i)
	c.inFlight--
	return r, ext, failed, nil
}
