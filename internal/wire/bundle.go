package wire

import (
	"encoding/binary"
	"errors"
	"fmt"
	"sync"
	"time"
)

// MaxBundle is how many connections one stream may have.
const MaxBundle = 16

const (
	maxSession = 64 // bytes of a bundle's session
	placeSize  = 8
)

// Side says which end of a stream a bundle is: what the source writes is spread over all connections; what the receiver
// writes goes by the first.
type Side uint8

const (
	Source   Side = 1
	Receiver Side = 2
)

// BundleSpec names the connections of a stream, in the source's hello. Session is random, 1 to 64 bytes, and of this stream
// alone: by it, and by nothing else, a further connection finds its stream. So whatever a connection of an earlier stream
// still has to say, nobody hears it in this one. One connection has no session.
type BundleSpec struct {
	Connections int    `json:"connections,omitempty"` // 0 is 1
	Session     string `json:"session,omitempty"`
}

// Check refuses what no source may state.
func (s BundleSpec) Check() error {
	if s.Connections < 0 || s.Connections > MaxBundle || (s.Connections > 1) != (s.Session != "") || len(s.Session) > maxSession {
		return &Error{Kind: KindInvalid, Message: fmt.Sprintf("stream of %d connections with a session of %d bytes, at most %d and %d",
			s.Connections, len(s.Session), MaxBundle, maxSession)}
	}
	return nil
}

// Bundle is the connections of one stream, as one: one connection as it is, or several of which the source uses that one
// for each frame that has the least to send. Then a place frame stands before each frame, with its position in the stream,
// and the receiver's end puts them in order again (order). Pings keep each connection by itself; one that ends, ends all.
//
// One goroutine reads; any number may write.
type Bundle struct {
	side   Side
	main   *Conn
	spec   BundleSpec
	peer   Hello   // who may join, at the side that has been dialled
	server *Server // where it is found

	done    chan struct{}
	readers sync.WaitGroup
	taken   piece // ReadFrame's last

	mu     sync.Mutex
	turn   sync.Cond // something has come, has been taken, or it has ended
	conns  []*Conn   // by index, [0] is main; nil: not here yet
	claims []bool    // of those indexes somebody has come
	order  order
	last   *piece // the peer's refusal
	byes   int    // connections that the peer has ended in order
	place  uint64 // of the next frame written
	spin   int    // where the search for the lightest connection begins
	parts  bool   // this side is saying bye, or why it refuses
	err    error
}

func newBundle(main *Conn, side Side, spec BundleSpec) *Bundle {
	b := &Bundle{side: side, main: main, spec: spec, done: make(chan struct{})}
	b.turn.L = &b.mu
	b.conns, b.claims = make([]*Conn, max(spec.Connections, 1)), make([]bool, max(spec.Connections, 1))
	b.conns[0] = main
	return b
}

// begin reads main where nobody else does.
func (b *Bundle) begin() {
	if b.side == Receiver {
		b.readers.Go(func() { b.read(0, b.main) })
	}
}

func (b *Bundle) single() bool { return len(b.conns) == 1 }

// of says which connection an error is of.
func (b *Bundle) of(index int, err error) error {
	return fmt.Errorf("connection %d of %d: %w", index+1, len(b.conns), err)
}

// Abort ends the stream without waiting for anything; err becomes its cause.
func (b *Bundle) Abort(err error) {
	b.main.Abort(err)
	if !b.single() {
		b.fail(err)
	}
}

// read takes in what comes by one connection until it, or all, have ended. Of what a receiver sends, all comes by main,
// which is the caller's of ReadFrame to read.
func (b *Bundle) read(index int, c *Conn) {
	at, placed, floor := uint64(0), false, uint64(0)
	for {
		t, body, err := c.ReadFrame()
		switch {
		case err != nil:
			b.ended(index, err)
			return
		case t == TypeError:
			if b.side == Receiver {
				b.refused(piece{kind: t, body: body})
			}
			return // main has it too
		case b.side == Source:
			err = fmt.Errorf("%w: %v frame from a receiver", ErrFrame, t)
		case t == TypePlace && !placed && len(body) == placeSize:
			if at, placed = binary.LittleEndian.Uint64(body), true; at < floor {
				err = fmt.Errorf("%w: place %d of a stream behind a later one", ErrFrame, at)
			}
		case t == TypePlace || !placed:
			err = fmt.Errorf("%w: %v frame without a place, or place without a frame", ErrFrame, t)
		default:
			p := piece{kind: t, body: body}
			if t == TypeBatch || t == TypePacked {
				p.batch, p.malformed = c.Batch()
			}
			placed, floor = false, at+1
			err = b.put(at, p)
		}
		if err != nil {
			b.fail(b.of(index, err))
			return
		}
	}
}

// put waits for room.
func (b *Bundle) put(at uint64, p piece) error {
	weight := p.weight()
	b.mu.Lock()
	defer b.mu.Unlock()
	for !b.order.room(at, weight) && b.err == nil {
		b.turn.Wait()
	}
	if b.err != nil {
		return b.err
	}
	b.turn.Broadcast()
	return b.order.put(at, p)
}

// refused keeps the peer's last word for ReadFrame.
func (b *Bundle) refused(p piece) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.last == nil {
		b.last = &p
	}
	b.turn.Broadcast()
}

// ended: a connection that was ended in order has said all; any other end is that of the whole.
func (b *Bundle) ended(index int, err error) {
	if b.side == Receiver && errors.Is(err, ErrBye) {
		b.mu.Lock()
		b.byes++
		all := b.byes == len(b.conns)
		b.mu.Unlock()
		if !all {
			return
		}
	} else {
		err = b.of(index, err)
	}
	b.fail(err)
}

// fail ends all connections with the first cause given.
func (b *Bundle) fail(err error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.err != nil {
		return
	}
	b.err = err
	for _, c := range b.conns {
		if c != nil && !b.parts { // else each goes when its last word is out: part
			c.Abort(err)
		}
	}
	close(b.done)
	b.turn.Broadcast()
}

// ReadFrame returns the stream's next frame: see Conn.ReadFrame. What has come in order before an end is returned first.
func (b *Bundle) ReadFrame() (Type, []byte, error) {
	if b.single() {
		return b.main.ReadFrame()
	}
	if b.side == Source {
		t, body, err := b.main.ReadFrame()
		if err != nil {
			b.fail(err)
			err = b.Err()
		}
		return t, body, err
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	for {
		p, ok := b.order.take()
		switch {
		case ok:
		case b.last != nil:
			p = *b.last
		case b.err != nil:
			return 0, nil, b.err
		default:
			b.turn.Wait()
			continue
		}
		b.taken = p
		b.turn.Broadcast()
		return p.kind, p.body, nil
	}
}

// Batch is Conn.Batch.
func (b *Bundle) Batch() (Batch, error) {
	if b.single() {
		return b.main.Batch()
	}
	p := b.taken
	b.taken = piece{}
	return p.batch, p.malformed
}

// Buffered reports whether ReadFrame would return a frame at once. For the reading goroutine only.
func (b *Bundle) Buffered() bool {
	if b.single() {
		return b.main.Buffered()
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.order.ready()
}

// Queue adds a frame of a receiver to what is to be written on the first connection; Flush writes it. See Conn.Queue.
func (b *Bundle) Queue(t Type, parts ...[]byte) error { return b.main.Queue(t, parts...) }
func (b *Bundle) Flush() error                        { return b.main.Flush() }

// WriteFrame queues a frame, flushes, and waits while too much is queued.
func (b *Bundle) WriteFrame(t Type, parts ...[]byte) error { return b.writeFrame(t, parts, nil) }

func (b *Bundle) writeFrame(t Type, parts [][]byte, sums []uint32) error {
	if b.single() || b.side == Receiver {
		return b.main.writeFrame(t, parts, sums)
	}
	var place [placeSize]byte
	b.mu.Lock()
	c := b.lightest()
	binary.LittleEndian.PutUint64(place[:], b.place)
	b.place++
	err := c.out.queueFrame(TypePlace, [][]byte{place[:]}, nil)
	if err == nil {
		err = c.out.queueFrame(t, parts, sums)
	}
	b.mu.Unlock()
	if err == nil {
		err = c.out.flush()
	}
	if err == nil {
		err = c.out.waitRoom()
	}
	if err != nil {
		b.fail(err) // a place without its frame would hold the stream up for ever
	}
	return err
}

// Idle says that a frame would be written now without waiting for anything.
func (b *Bundle) Idle() bool { return b.single() && b.main.out.idle() }

// lightest is the connection that has the least to send; of equal ones each in its turn. Under mu.
func (b *Bundle) lightest() *Conn {
	n := len(b.conns)
	best, load := 0, -1
	for k := range n {
		i := (b.spin + k) % n
		if l := b.conns[i].out.load(); load < 0 || l < load {
			best, load = i, l
		}
	}
	b.spin = (best + 1) % n
	return b.conns[best]
}

// each lists the connections that are there.
func (b *Bundle) each() []*Conn {
	b.mu.Lock()
	defer b.mu.Unlock()
	list := make([]*Conn, 0, len(b.conns))
	for _, c := range b.conns {
		if c != nil {
			list = append(list, c)
		}
	}
	return list
}

// Connections is how many the stream has.
func (b *Bundle) Connections() int { return len(b.conns) }

// Pace has p hold back all that is written from now on, by all connections together; nil: nothing does.
func (b *Bundle) Pace(p Pacer) {
	for _, c := range b.each() {
		c.Pace(p)
	}
}

// SentBytes counts bytes of frames, headers included, of all connections.
func (b *Bundle) SentBytes() (n int64) {
	for _, c := range b.each() {
		n += c.SentBytes()
	}
	return n
}

// RTT is that of the first connection.
func (b *Bundle) RTT() (time.Duration, bool) { return b.main.RTT() }

// Done is closed when the stream's connections have ended, Err says why.
func (b *Bundle) Done() <-chan struct{} {
	if b.single() {
		return b.main.Done()
	}
	return b.done
}

// Err is why they have ended, nil while they have not.
func (b *Bundle) Err() error {
	if b.single() {
		return b.main.Err()
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.err
}

// Bye tells the peer on each connection that this side ends it in order, then closes all.
func (b *Bundle) Bye() { b.part(func(c *Conn) { c.Bye() }) }

// Refuse tells the peer why it is not served, on each connection: whichever end it sees first, it knows.
func (b *Bundle) Refuse(err error) { b.part(func(c *Conn) { c.Refuse(err) }) }

func (b *Bundle) part(say func(*Conn)) {
	b.mu.Lock()
	b.parts = true
	b.mu.Unlock()
	var all sync.WaitGroup
	for _, c := range b.each() {
		all.Go(func() { say(c) })
	}
	all.Wait()
	b.Close()
}

// Close ends the stream and waits for what reads and writes it, but for the joined connections' own handlers.
func (b *Bundle) Close() {
	if !b.single() {
		b.fail(ErrClosed)
		if b.server != nil {
			b.server.forgetBundle(b)
		}
	}
	for _, c := range b.each() {
		c.Close()
	}
	b.readers.Wait()
}
