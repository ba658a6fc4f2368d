package wire

import (
	"context"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"sync"
	"time"
)

// Bodies. Call: id u64, deadline in milliseconds u32 (0: none), length of method u16, method, parameters as JSON.
// Return: id u64, failed u8, result or Error as JSON. Cancel: id u64.
const (
	callHeadSize   = 14
	returnHeadSize = 9
	maxCalls       = 256 // in flight on one connection
)

func (s *Server) serveCalls(ctx context.Context, in *Incoming) error {
	if err := in.Answer(struct{}{}); err != nil {
		return err
	}
	ctx, cancel := context.WithCancel(ctx)
	cs := &callServer{in: in, call: s.handlers.Call, kind: s.handlers.ErrorKind, cancels: map[uint64]context.CancelFunc{}}
	defer cs.work.Wait()
	defer cancel()
	for {
		t, body, err := in.ReadFrame()
		if err == nil {
			err = cs.frame(ctx, t, body)
		}
		if err != nil {
			in.fail(err)
			return err
		}
	}
}

// callServer is the serving end of one connection.
type callServer struct {
	in   *Incoming
	call func(context.Context, Hello, string, json.RawMessage) (any, error)
	kind func(error) Kind
	work sync.WaitGroup

	mu      sync.Mutex
	cancels map[uint64]context.CancelFunc
}

func (cs *callServer) frame(ctx context.Context, t Type, body []byte) error {
	switch t {
	case TypeCall:
		return cs.begin(ctx, body)
	case TypeCancel:
		if len(body) != 8 {
			return fmt.Errorf("%w: cancel of %d bytes", ErrFrame, len(body))
		}
		cs.mu.Lock()
		defer cs.mu.Unlock()
		if cancel := cs.cancels[binary.LittleEndian.Uint64(body)]; cancel != nil {
			cancel()
		}
		return nil
	}
	return fmt.Errorf("%w: %v on a call connection", ErrFrame, t)
}

func (cs *callServer) begin(ctx context.Context, body []byte) error {
	if len(body) < callHeadSize {
		return fmt.Errorf("%w: call of %d bytes", ErrFrame, len(body))
	}
	id := binary.LittleEndian.Uint64(body)
	wait := time.Duration(binary.LittleEndian.Uint32(body[8:])) * time.Millisecond
	n := int(binary.LittleEndian.Uint16(body[12:]))
	if len(body) < callHeadSize+n {
		return fmt.Errorf("%w: call whose method ends beyond it", ErrFrame)
	}
	method, params := string(body[callHeadSize:callHeadSize+n]), json.RawMessage(body[callHeadSize+n:])
	cs.mu.Lock()
	_, twice := cs.cancels[id]
	if twice || len(cs.cancels) >= maxCalls {
		cs.mu.Unlock()
		return cs.answer(id, nil, &Error{Kind: KindUnavailable, Message: fmt.Sprintf("%d calls are in flight, the most allowed", maxCalls)})
	}
	var cancel context.CancelFunc
	if wait > 0 {
		ctx, cancel = context.WithTimeout(ctx, wait)
	} else {
		ctx, cancel = context.WithCancel(ctx)
	}
	cs.cancels[id] = cancel
	cs.mu.Unlock()
	cs.work.Go(func() {
		defer cancel()
		out, err := cs.call(ctx, cs.in.Peer, method, params)
		if err != nil && cs.kind != nil {
			if e := toError(err); e.Kind == KindInternal {
				if k := cs.kind(err); k != "" {
					err = &Error{Kind: k, Message: e.Message, Detail: e.Detail}
				}
			}
		}
		cs.mu.Lock()
		delete(cs.cancels, id)
		cs.mu.Unlock()
		_ = cs.answer(id, out, err) // a lost connection ends the reading loop
	})
	return nil
}

func (cs *callServer) answer(id uint64, out any, err error) error {
	var head [returnHeadSize]byte
	binary.LittleEndian.PutUint64(head[:], id)
	var body []byte
	if err == nil {
		if body, err = json.Marshal(out); err == nil && len(body)+returnHeadSize > MaxCallBody {
			err = fmt.Errorf("result of %d bytes, limit %d", len(body), MaxCallBody)
		}
	}
	if err != nil {
		head[8], body = 1, marshalError(err)
	}
	return cs.in.WriteFrame(TypeReturn, head[:], body)
}

// Caller makes calls to one peer over one connection, which it makes when first needed and again after a loss. All
// methods may be called concurrently.
type Caller struct {
	addr  string
	hello Hello

	mu     sync.Mutex
	conn   *callConn
	closed bool
}

// NewCaller makes a caller; it does not connect yet.
func NewCaller(addr string, self Hello) *Caller {
	self.Purpose = PurposeCall
	return &Caller{addr: addr, hello: self}
}

// Call runs method at the peer and decodes its result into out, unless that is nil. ctx's deadline travels. Errors of
// the method are *Error with their kind; a peer that cannot be reached, or whose answer was lost, is an *Error of
// KindUnavailable: the method may then have run.
func (c *Caller) Call(ctx context.Context, method string, in, out any) error {
	params, err := json.Marshal(in)
	if err != nil {
		return fmt.Errorf("call %s: parameters: %w", method, err)
	}
	cc, err := c.connect(ctx)
	if err != nil {
		var e *Error
		if errors.As(err, &e) {
			return fmt.Errorf("call %s at %s: %w", method, c.addr, e)
		}
		return unavailable("call %s at %s: %v", method, c.addr, err)
	}
	body, err := cc.call(ctx, method, params)
	if err != nil {
		var e *Error
		if errors.As(err, &e) {
			return e
		}
		return unavailable("call %s at %s: %v", method, c.addr, err)
	}
	if out == nil {
		return nil
	}
	if err := json.Unmarshal(body, out); err != nil {
		return fmt.Errorf("call %s at %s: result: %w", method, c.addr, err)
	}
	return nil
}

func unavailable(format string, args ...any) error {
	return &Error{Kind: KindUnavailable, Message: fmt.Sprintf(format, args...)}
}

// Peer is the hello of the peer, once connected.
func (c *Caller) Peer(ctx context.Context) (Hello, error) {
	cc, err := c.connect(ctx)
	if err != nil {
		return Hello{}, err
	}
	return cc.peer, nil
}

// Close ends the connection; calls in flight fail.
func (c *Caller) Close() {
	c.mu.Lock()
	cc := c.conn
	c.conn, c.closed = nil, true
	c.mu.Unlock()
	if cc != nil {
		cc.conn.Close()
		<-cc.ended
	}
}

func (c *Caller) connect(ctx context.Context) (*callConn, error) {
	c.mu.Lock()
	cc, closed := c.conn, c.closed
	c.mu.Unlock()
	if closed {
		return nil, ErrClosed
	}
	if cc != nil && cc.conn.Err() == nil {
		return cc, nil
	}
	conn, peer, err := Dial(ctx, c.addr, c.hello)
	if err != nil {
		return nil, err
	}
	fresh := &callConn{conn: conn, peer: peer, waiting: map[uint64]chan callResult{}, ended: make(chan struct{})}
	c.mu.Lock()
	old := c.conn
	switch {
	case c.closed:
		c.mu.Unlock()
		conn.Close()
		return nil, ErrClosed
	case old != nil && old.conn.Err() == nil: // another call was faster
		c.mu.Unlock()
		conn.Close()
		return old, nil
	}
	c.conn = fresh
	go fresh.read()
	c.mu.Unlock()
	if old != nil {
		old.conn.Close()
		<-old.ended
	}
	return fresh, nil
}

type callResult struct {
	body []byte
	err  error
}

// callConn is the calling end of one connection.
type callConn struct {
	conn  *Conn
	peer  Hello
	ended chan struct{} // read has returned

	mu      sync.Mutex
	next    uint64
	waiting map[uint64]chan callResult // nil: the connection has ended
}

func (cc *callConn) call(ctx context.Context, method string, params []byte) ([]byte, error) {
	if len(method) > maxName || callHeadSize+len(method)+len(params) > MaxCallBody {
		return nil, &Error{Kind: KindInvalid, Message: fmt.Sprintf("parameters of %d bytes, limit %d", len(params), MaxCallBody)}
	}
	result := make(chan callResult, 1)
	cc.mu.Lock()
	if cc.waiting == nil {
		cc.mu.Unlock()
		return nil, cc.conn.Err()
	}
	cc.next++
	id := cc.next
	cc.waiting[id] = result
	cc.mu.Unlock()

	var head [callHeadSize]byte
	binary.LittleEndian.PutUint64(head[:], id)
	if deadline, ok := ctx.Deadline(); ok {
		binary.LittleEndian.PutUint32(head[8:], uint32(min(max(time.Until(deadline).Milliseconds(), 1), 1<<31)))
	}
	binary.LittleEndian.PutUint16(head[12:], uint16(len(method)))
	if err := cc.conn.WriteFrame(TypeCall, head[:], []byte(method), params); err != nil {
		return nil, err
	}
	select {
	case r := <-result:
		return r.body, r.err
	case <-ctx.Done():
		cc.mu.Lock()
		delete(cc.waiting, id)
		cc.mu.Unlock()
		_ = cc.conn.WriteFrame(TypeCancel, head[:8])
		return nil, context.Cause(ctx)
	}
}

// read hands results to whoever waits for them, until the connection ends.
func (cc *callConn) read() {
	defer close(cc.ended)
	for {
		t, body, err := cc.conn.ReadFrame()
		if err == nil && (t != TypeReturn || len(body) < returnHeadSize) {
			err = fmt.Errorf("%w: %v of %d bytes on a calling connection", ErrFrame, t, len(body))
			cc.conn.fail(err)
		}
		if err != nil {
			cc.end(err)
			return
		}
		id := binary.LittleEndian.Uint64(body)
		cc.mu.Lock()
		result := cc.waiting[id]
		delete(cc.waiting, id)
		cc.mu.Unlock()
		switch {
		case result == nil: // given up
		case body[8] != 0:
			result <- callResult{err: unmarshalError(body[returnHeadSize:])}
		default:
			result <- callResult{body: body[returnHeadSize:]}
		}
	}
}

func (cc *callConn) end(err error) {
	cc.mu.Lock()
	defer cc.mu.Unlock()
	for _, result := range cc.waiting {
		result <- callResult{err: err}
	}
	cc.waiting = nil
}
