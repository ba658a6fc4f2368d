package wire

import (
	"context"
	"fmt"
	"sync"
	"sync/atomic"
	"time"

	"gantline/internal/block"
)

// IOParams are the parameters of an io hello.
type IOParams struct {
	Volume string `json:"volume"` // name at the node
	// Group is the one that the client takes the volume for a part of; empty: it does not say, or the volume is in none.
	Group string `json:"group,omitempty"`
	// Session identifies one host connection across reconnects and nodes; random, chosen by the gateway. 0: a
	// connection without session, such as a relay's, whose requests bring their own.
	Session uint64 `json:"session"`
	// From is the lowest number that may come over this connection: all below it are answered. A session that the
	// node has ended is taken again if that lies above all the node has seen of it, since then nothing is replayed.
	From     uint64 `json:"from"`
	Epoch    uint64 `json:"epoch"` // as the client believes
	ReadOnly bool   `json:"read_only"`
}

// IOAnswer is the node's answer.
type IOAnswer struct {
	Size  int64  `json:"size"`
	Epoch uint64 `json:"epoch"`
	// Life names the time in which the node has lost nothing that it had answered. With another one than before, writes
	// that were answered and not flushed may be gone. Empty: not known.
	Life string `json:"life"`
	// Taken is the epoch in which the node was promoted in the place of another, which may have answered what is not here: to
	// a host of an earlier epoch this is another disk. 0: it was not.
	Taken          uint64 `json:"taken,omitempty"`
	ReadOnly       bool   `json:"read_only"`
	MinBlock       int64  `json:"min_block"`
	PreferredBlock int64  `json:"preferred_block"`
	MaxBlock       int64  `json:"max_block"`
}

// IOHooks are what the node knows and the wire does not. Nil functions are left out.
type IOHooks struct {
	// Epoch is the volume's epoch now; every reply carries it.
	Epoch func() uint64
	// Admit is asked whether requests that carry this epoch may be submitted; its error answers them (ErrStale for an
	// epoch this node has not heard of). It is asked anew for each batch.
	Admit func(epoch uint64) error
}

// Corker is block.Corker, which a request of an io connection's Completer is.
type Corker = block.Corker

const (
	ioMaxRequests = 4096                 // in flight per connection; more are not read
	ioMaxBytes    = 128 << 20            // of data in flight per connection
	ioMaxBatch    = 256                  // requests per Submit
	ioSlab        = 64                   // requests allocated at once
	corkLimit     = 2 * time.Millisecond // a reply is held back for so long at most, whatever Submit does
	arenaSize     = 256 << 10
	arenaShare    = 64 << 10 // reads up to this size share an arena
)

// ServeIO serves requests on conn until it ends or ctx does, and returns when all requests it has submitted are
// completed. Requests are submitted in the order they came, all that are in the buffer at once.
func ServeIO(ctx context.Context, conn *Conn, target block.Target, hooks IOHooks) error {
	return serveIO(ctx, conn, target, hooks, new(atomic.Uint64))
}

// serveIO notes in highest the greatest request number it has read.
func serveIO(ctx context.Context, conn *Conn, target block.Target, hooks IOHooks, highest *atomic.Uint64) error {
	defer conn.closeOn(ctx)()
	s := &ioServer{conn: conn, target: target, hooks: hooks, highest: highest}
	s.room.L = &s.mu
	s.timer = time.AfterFunc(time.Hour, s.overdue)
	defer s.timer.Stop()
	err := s.read()
	conn.fail(err)
	s.mu.Lock()
	defer s.mu.Unlock()
	for s.requests > 0 {
		s.room.Wait()
	}
	return conn.Err()
}

type ioServer struct {
	conn   *Conn
	target block.Target
	hooks  IOHooks

	highest *atomic.Uint64

	corks atomic.Int32
	timer *time.Timer
	armed atomic.Bool // the timer will flush

	mu       sync.Mutex
	room     sync.Cond
	requests int
	bytes    int64
	waiting  bool

	// Of the reading goroutine.
	slab  []ioRequest
	arena []byte
	batch []*block.Request
	taken int64 // bytes of data in batch
}

// ioRequest is a request with what its reply needs; it is its own Completer, so that no table is needed.
type ioRequest struct {
	block.Request
	server *ioServer
	tag    uint64
	bytes  int64
	head   [replySize]byte // here, because a local one would be an allocation per reply
}

func (s *ioServer) read() error {
	for {
		if err := s.gather(); err != nil {
			return err
		}
		if len(s.batch) == 0 {
			continue // all refused
		}
		if err := s.wait(); err != nil {
			return err
		}
		s.corks.Add(1)
		s.target.Submit(s.batch)
		clear(s.batch)
		if s.corks.Add(-1) == 0 && !s.conn.Buffered() {
			if err := s.conn.Flush(); err != nil {
				return err
			}
		}
	}
}

// gather reads one request, waiting for it, and all others that are there already.
func (s *ioServer) gather() error {
	s.batch, s.taken = s.batch[:0], 0
	var admitted uint64
	var refusal error
	for first := true; first || len(s.batch) < ioMaxBatch && s.taken < ioMaxBytes/4 && s.conn.Buffered(); first = false {
		t, body, err := s.conn.ReadFrame()
		if err != nil {
			return err
		}
		if t != TypeRequest {
			return fmt.Errorf("%w: %v on an io connection", ErrFrame, t)
		}
		q, epoch, err := s.parse(body)
		if err != nil {
			return err
		}
		if s.hooks.Admit != nil && (first || epoch != admitted) {
			admitted, refusal = epoch, s.hooks.Admit(epoch)
		}
		if refusal != nil {
			s.add(1, q.bytes)
			q.Finish(refusal)
			continue
		}
		s.batch = append(s.batch, &q.Request)
		s.taken += q.bytes
	}
	return nil
}

func (s *ioServer) parse(body []byte) (*ioRequest, uint64, error) {
	if len(s.slab) == 0 {
		s.slab = make([]ioRequest, ioSlab)
	}
	q := &s.slab[0]
	tag, epoch, err := getRequest(body, &q.Request)
	if err != nil {
		return nil, 0, err
	}
	s.slab = s.slab[1:]
	q.server, q.tag, q.Completer = s, tag, q
	for old := s.highest.Load(); q.Number > old && !s.highest.CompareAndSwap(old, q.Number); old = s.highest.Load() {
	}
	q.bytes = int64(len(q.Data))
	if q.bytes > 0 {
		q.CRC, q.HasCRC = s.conn.in.payload, true
	}
	if q.Op == block.OpRead {
		q.Data, q.bytes = s.buffer(int(q.Length)), q.Length
	}
	return q, epoch, nil
}

// buffer is room for a read: a piece of an arena, which is the garbage collector's when its reads are answered.
func (s *ioServer) buffer(n int) []byte {
	if n > arenaShare {
		return block.Buffer(n) // an answer carries it only if the read has filled it
	}
	if len(s.arena) < n {
		s.arena = make([]byte, arenaSize)
	}
	b := s.arena[:n:n]
	s.arena = s.arena[n:]
	return b
}

func (s *ioServer) add(n int, bytes int64) {
	s.mu.Lock()
	s.requests += n
	s.bytes += bytes
	s.mu.Unlock()
}

// wait counts the batch in, once there is room for it: a peer that does not read its replies, or sends more than the
// target can take, is not read from.
func (s *ioServer) wait() error {
	n := len(s.batch)
	s.mu.Lock()
	if s.requests+n > ioMaxRequests || s.requests > 0 && s.bytes+s.taken > ioMaxBytes {
		s.mu.Unlock()
		_ = s.conn.Flush() // replies that are corked may be what the peer waits for
		s.mu.Lock()
	}
	for s.requests+n > ioMaxRequests || s.requests > 0 && s.bytes+s.taken > ioMaxBytes {
		s.waiting = true
		s.room.Wait()
	}
	s.waiting = false
	s.requests += n
	s.bytes += s.taken
	s.mu.Unlock()
	err := s.conn.WaitRoom()
	if err != nil {
		for _, r := range s.batch {
			r.Finish(block.ErrShutdown)
		}
	}
	return err
}

// Complete queues the reply and sends it, unless a cork says that more follow at once.
func (q *ioRequest) Complete(r *block.Request) {
	s := q.server
	var epoch uint64
	if s.hooks.Epoch != nil {
		epoch = s.hooks.Epoch()
	}
	var code uint16
	var payload []byte
	switch {
	case r.Err != nil:
		code, payload = codeOf(r.Err)
	case r.Op == block.OpRead:
		payload = r.Data
	case r.Op == block.OpExtents:
		payload = encodeExtents(r.Extents)
	}
	putReply(q.head[:], q.tag, epoch, code)
	// Errors are the connection's end, which the reading goroutine sees; the request is done either way.
	_ = s.conn.Queue(TypeReply, q.head[:], payload)
	if s.corks.Load() == 0 {
		_ = s.conn.Flush()
	} else if s.armed.CompareAndSwap(false, true) {
		// Whoever corked may be blocked in the target, with nobody else to send this.
		s.timer.Reset(corkLimit)
	}
	s.mu.Lock()
	s.requests--
	s.bytes -= q.bytes
	if s.waiting || s.requests == 0 {
		s.room.Broadcast()
	}
	s.mu.Unlock()
}

func (s *ioServer) overdue() {
	s.armed.Store(false) // before the flush: what is queued behind it arms anew
	_ = s.conn.Flush()
}

// Cork and Uncork make the replies between them leave together.
func (q *ioRequest) Cork() { q.server.corks.Add(1) }

// Uncork sends what Cork has held back.
func (q *ioRequest) Uncork() {
	if q.server.corks.Add(-1) == 0 {
		_ = q.server.conn.Flush()
	}
}
