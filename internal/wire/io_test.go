package wire

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"sync"
	"testing"
	"time"

	"gantline/internal/block"
)

// memory is a target that keeps bytes; a request at its poison offset is answered as told.
type memory struct {
	mu     sync.Mutex
	data   []byte
	answer func(*block.Request) (error, bool)
	late   func(*block.Request) bool // completes it from another goroutine
	seen   int
	calls  int
}

func (m *memory) Submit(reqs []*block.Request) {
	m.mu.Lock()
	m.calls++
	m.seen += len(reqs)
	m.mu.Unlock()
	for _, r := range reqs {
		if m.late != nil && m.late(r) {
			go func() { m.do(r) }()
			continue
		}
		m.do(r)
	}
}

func (m *memory) do(r *block.Request) {
	if m.answer != nil {
		if err, ok := m.answer(r); ok {
			r.Finish(err)
			return
		}
	}
	m.mu.Lock()
	switch r.Op {
	case block.OpRead:
		copy(r.Data, m.data[r.Offset:r.Offset+r.Length])
	case block.OpWrite:
		copy(m.data[r.Offset:], r.Data)
	case block.OpExtents:
		r.Extents = []block.Extent{{Offset: r.Offset, Length: r.Length, Type: block.ExtentHole}}
	}
	m.mu.Unlock()
	r.Finish(nil)
}

// waiter is a Completer for tests.
type waiter struct{ ch chan *block.Request }

func (w *waiter) Complete(r *block.Request) { w.ch <- r }

func do(t testing.TB, target block.Target, r *block.Request) *block.Request {
	t.Helper()
	w := &waiter{make(chan *block.Request, 1)}
	r.Completer = w
	target.Submit([]*block.Request{r})
	select {
	case r := <-w.ch:
		return r
	case <-time.After(10 * time.Second):
		t.Fatal("no answer")
		return nil
	}
}

func serveIOAt(t testing.TB, target block.Target, hooks IOHooks) (string, *Sessions) {
	ss := NewSessions(SessionLimits{Silence: 200 * time.Millisecond}, nil)
	return serve(t, Handlers{IO: func(ctx context.Context, in *Incoming) error {
		var p IOParams
		if err := in.Peer.Decode(&p); err != nil {
			return err
		}
		return ss.Serve(ctx, in, p, IOAnswer{Size: 1 << 20, Epoch: 3}, target, hooks)
	}}, Limits{}), ss
}

func TestIOAnswersOutOfOrderAndKeepsBytes(t *testing.T) {
	seed := uint64(time.Now().UnixNano())
	t.Logf("seed %d", seed)
	rnd := rand.New(rand.NewPCG(seed, 0))
	m := &memory{data: make([]byte, 1<<20), late: func(r *block.Request) bool { return r.Number%3 == 0 }}
	addr, _ := serveIOAt(t, m, IOHooks{Epoch: func() uint64 { return 7 }})
	c, err := DialIO(t.Context(), addr, Hello{Name: "g"}, IOParams{Volume: "v", Session: 5}, IOClientHooks{})
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	// Each slot of 8 KiB has one request at a time; depth 64.
	const slots = 64
	want := make([]byte, slots*8192)
	done := make(chan *block.Request, slots)
	w := &waiter{done}
	number := uint64(0)
	next := func(slot int) *block.Request {
		number++
		off := int64(slot * 8192)
		n := 1 + rnd.Int64N(8192)
		r := &block.Request{Op: block.OpRead, Offset: off, Length: n, Data: make([]byte, n), Tag: uint64(slot), Number: number, Completer: w}
		if rnd.IntN(2) == 0 {
			r.Op, r.Data = block.OpWrite, make([]byte, n)
			for i := range r.Data {
				r.Data[i] = byte(rnd.Uint32())
			}
			copy(want[off:], r.Data)
		}
		return r
	}
	var batch []*block.Request
	for s := range slots {
		batch = append(batch, next(s))
	}
	c.Submit(batch)
	for range 5000 {
		r := <-done
		if r.Err != nil {
			t.Fatal(r.Err)
		}
		if r.Op == block.OpRead && !bytes.Equal(r.Data, want[r.Offset:r.Offset+r.Length]) {
			t.Fatalf("read %d at %d differs", r.Number, r.Offset)
		}
		c.Submit([]*block.Request{next(int(r.Tag))})
	}
	for range slots {
		<-done
	}
}

func TestIOErrorsKeepTheirKindAndText(t *testing.T) {
	moved := &block.MovedError{Node: "b", Address: "1.2.3.4:5", Volume: "w", Epoch: 9}
	errs := []error{block.ErrRange, block.ErrReadOnly, block.ErrNoSpace, block.ErrIO, block.ErrShutdown, block.ErrUnsupported,
		block.ErrInvalid, block.ErrHoldExpired, block.ErrSession, ErrStale, moved}
	m := &memory{data: make([]byte, 1<<20), answer: func(r *block.Request) (error, bool) {
		if r.Op != block.OpWrite {
			return nil, false
		}
		return fmt.Errorf("device x: %w", errs[r.Offset]), true
	}}
	addr, _ := serveIOAt(t, m, IOHooks{})
	c, err := DialIO(t.Context(), addr, Hello{Name: "g"}, IOParams{Session: 5}, IOClientHooks{})
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	for i, want := range errs {
		r := do(t, c, &block.Request{Op: block.OpWrite, Offset: int64(i), Length: 1, Data: []byte{1}})
		var mv *block.MovedError
		if errors.As(want, &mv) {
			if !errors.As(r.Err, &mv) || *mv != *moved {
				t.Errorf("moved came as %v", r.Err)
			}
			continue
		}
		if !errors.Is(r.Err, want) || r.Err.Error() != "device x: "+want.Error() {
			t.Errorf("%v came as %v", want, r.Err)
		}
	}
	r := do(t, c, &block.Request{Op: block.OpExtents, Offset: 4096, Length: 8192})
	if r.Err != nil || len(r.Extents) != 1 || r.Extents[0] != (block.Extent{Offset: 4096, Length: 8192, Type: block.ExtentHole}) {
		t.Errorf("extents %v err %v", r.Extents, r.Err)
	}
}

func TestIOAdmitRefusesAnUnknownEpoch(t *testing.T) {
	m := &memory{data: make([]byte, 1<<20)}
	addr, _ := serveIOAt(t, m, IOHooks{Admit: func(e uint64) error {
		if e > 3 {
			return ErrStale
		}
		return nil
	}})
	c, err := DialIO(t.Context(), addr, Hello{}, IOParams{Session: 5}, IOClientHooks{})
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if r := do(t, c, &block.Request{Op: block.OpFlush}); r.Err != nil {
		t.Fatal(r.Err)
	}
	c.SetEpoch(4)
	if r := do(t, c, &block.Request{Op: block.OpFlush}); !errors.Is(r.Err, ErrStale) {
		t.Fatalf("err %v", r.Err)
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.seen != 1 {
		t.Fatalf("%d requests reached the target", m.seen)
	}
}

func TestIOLostRequestsComeBackInOrder(t *testing.T) {
	m := &memory{data: make([]byte, 1<<20), answer: func(*block.Request) (error, bool) { return nil, false }}
	block1 := make(chan struct{})
	m.late = func(r *block.Request) bool { return true }
	m.answer = func(r *block.Request) (error, bool) { <-block1; return nil, true }
	addr, _ := serveIOAt(t, m, IOHooks{})
	lost := make(chan []*block.Request, 1)
	c, err := DialIO(t.Context(), addr, Hello{}, IOParams{Session: 5}, IOClientHooks{
		Lost: func(reqs []*block.Request, err error) { lost <- reqs }})
	if err != nil {
		t.Fatal(err)
	}
	var reqs []*block.Request
	for i := range 100 {
		reqs = append(reqs, &block.Request{Op: block.OpFlush, Number: uint64(i + 1)})
	}
	if err := c.Send(reqs); err != nil {
		t.Fatal(err)
	}
	c.Abort(net.ErrClosed)
	for i, r := range <-lost {
		if r.Number != uint64(i+1) {
			t.Fatalf("request %d at place %d", r.Number, i)
		}
	}
	close(block1)
	c.Close()
}

func TestSessionLivesThroughALossAndEndsInSilence(t *testing.T) {
	m := &memory{data: make([]byte, 1<<20)}
	addr, ss := serveIOAt(t, m, IOHooks{})
	from := uint64(1)
	dial := func() (*IOClient, error) {
		return DialIO(t.Context(), addr, Hello{}, IOParams{Session: 77, From: from}, IOClientHooks{})
	}
	c, err := dial()
	if err != nil {
		t.Fatal(err)
	}
	c.Close()
	if c, err = dial(); err != nil {
		t.Fatalf("at once after a loss: %v", err)
	}
	c.Bye()
	for ss.Live() != 0 {
		time.Sleep(time.Millisecond)
	}
	time.Sleep(250 * time.Millisecond)
	if c, err = dial(); err != nil {
		t.Fatalf("after a bye: %v", err)
	}
	do(t, c, &block.Request{Op: block.OpFlush, Session: 77, Number: 9})
	c.Close()
	for ss.Live() != 1 {
		time.Sleep(time.Millisecond)
	}
	time.Sleep(300 * time.Millisecond)
	from = 9
	if _, err = dial(); KindOf(err) != KindSession {
		t.Fatalf("after silence, with what may be a replay: %v", err)
	}
	from = 10
	if c, err = dial(); err != nil {
		t.Fatalf("after silence, with nothing to replay: %v", err)
	}
	c.Close()
}

func TestSilentPeerIsGivenUpButNotWhileWeAreBusy(t *testing.T) {
	quick := timing{tick: 5 * time.Millisecond, ping: 20 * time.Millisecond, silent: 100 * time.Millisecond}
	a, b := tcpPair(t)
	ca, cb := NewConn(a), NewConn(b)
	ca.timing, cb.timing = quick, quick
	defer ca.Close()
	defer cb.Close()
	ca.StartKeeper()
	cb.StartKeeper()
	// b sends nothing but pings, and a waits for much longer than silence: it stays.
	got := make(chan error, 1)
	go func() { _, _, err := ca.ReadFrame(); got <- err }()
	select {
	case err := <-got:
		t.Fatalf("given up while pings came: %v", err)
	case <-time.After(400 * time.Millisecond):
	}
	if cb.SentBytes() == 0 {
		t.Fatal("no pings were sent")
	}
	// b does not read for long (its target blocks): it must not call a silent, whose pings lie unread.
	if err := cb.Err(); err != nil {
		t.Fatalf("the busy side gave up: %v", err)
	}
	ca.Close()
	<-got
	// A peer without pings is silent.
	a, b = tcpPair(t)
	mute := NewConn(b)
	defer mute.Close()
	waits := NewConn(a)
	waits.timing = quick
	defer waits.Close()
	waits.StartKeeper()
	if _, _, err := waits.ReadFrame(); !errors.Is(err, ErrSilent) {
		t.Fatalf("err %v", err)
	}
}

func tcpPair(t testing.TB) (net.Conn, net.Conn) {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	a, err := net.Dial("tcp", ln.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	b, err := ln.Accept()
	if err != nil {
		t.Fatal(err)
	}
	return a, b
}

func TestAPeerThatDoesNotReadBlocksNobody(t *testing.T) {
	a, b := tcpPair(t)
	ca := NewConn(a)
	defer ca.Close()
	defer b.Close()
	data := make([]byte, 1<<20)
	start := time.Now()
	for range 64 {
		if err := ca.Queue(TypeReply, data[:replySize], data); err != nil {
			t.Fatal(err)
		}
		_ = ca.Flush()
	}
	if d := time.Since(start); d > 5*time.Second {
		t.Fatalf("Flush waited %v", d)
	}
	room := make(chan error, 1)
	go func() { room <- ca.WaitRoom() }()
	select {
	case <-room:
		t.Fatal("there is room with 64 MiB queued")
	case <-time.After(50 * time.Millisecond):
	}
	cb := NewConn(b)
	defer cb.Close()
	for range 64 {
		if _, body, err := cb.ReadFrame(); err != nil || len(body) != replySize+1<<20 {
			t.Fatalf("%d bytes, %v", len(body), err)
		}
	}
	if err := <-room; err != nil {
		t.Fatal(err)
	}
}

// stuck blocks in Submit until told, and completes the first request it was given from elsewhere meanwhile.
type stuck struct {
	first *block.Request
	go1   chan struct{}
}

func (s *stuck) Submit(reqs []*block.Request) {
	if s.first == nil {
		s.first = reqs[0]
		return
	}
	s.first.Finish(nil)
	<-s.go1
	for _, r := range reqs {
		r.Finish(nil)
	}
}

func TestAReplyLeavesAlthoughTheTargetBlocks(t *testing.T) {
	target := &stuck{go1: make(chan struct{})}
	addr, _ := serveIOAt(t, target, IOHooks{})
	c, err := DialIO(t.Context(), addr, Hello{}, IOParams{Session: 5, From: 1}, IOClientHooks{})
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	w := &waiter{make(chan *block.Request, 2)}
	c.Submit([]*block.Request{{Op: block.OpFlush, Tag: 1, Completer: w}})
	time.Sleep(20 * time.Millisecond)
	start := time.Now()
	c.Submit([]*block.Request{{Op: block.OpFlush, Tag: 2, Completer: w}})
	if r := <-w.ch; r.Tag != 1 || time.Since(start) > 150*time.Millisecond {
		t.Fatalf("request %d after %v", r.Tag, time.Since(start))
	}
	close(target.go1)
	<-w.ch
}

type null struct{}

func (null) Submit(reqs []*block.Request) {
	for _, r := range reqs {
		r.Finish(nil)
	}
}

func BenchmarkIO(b *testing.B) {
	for _, depth := range []int{1, 32} {
		for _, op := range []block.Op{block.OpWrite, block.OpRead} {
			b.Run(fmt.Sprintf("depth=%d/op=%d", depth, op), func(b *testing.B) { benchIO(b, depth, op, 4096) })
		}
	}
	b.Run("depth=16/write128k", func(b *testing.B) { benchIO(b, 16, block.OpWrite, 128<<10) })
	b.Run("depth=16/read128k", func(b *testing.B) { benchIO(b, 16, block.OpRead, 128<<10) })
}

func benchIO(b *testing.B, depth int, op block.Op, size int) {
	addr, _ := serveIOAt(b, null{}, IOHooks{})
	c, err := DialIO(b.Context(), addr, Hello{}, IOParams{Session: 5}, IOClientHooks{})
	if err != nil {
		b.Fatal(err)
	}
	defer c.Close()
	b.SetBytes(int64(size))
	b.ReportAllocs()
	w := &bencher{c: c, left: b.N, done: make(chan struct{})}
	var reqs []*block.Request
	for range min(depth, b.N) {
		reqs = append(reqs, &block.Request{Op: op, Length: int64(size), Data: make([]byte, size), Completer: w})
	}
	w.flying = len(reqs)
	b.ResetTimer()
	_ = c.Send(reqs)
	<-w.done
	b.StopTimer()
}

// bencher submits again what was answered, until left answers have come.
type bencher struct {
	c            *IOClient
	left, flying int
	corks        int
	ready        []*block.Request
	done         chan struct{}
}

func (w *bencher) Complete(r *block.Request) {
	w.left--
	w.flying--
	if w.left > w.flying {
		w.ready = append(w.ready, r)
		w.flying++
	}
	if w.corks == 0 {
		w.send()
	}
	if w.left == 0 {
		close(w.done)
	}
}
func (w *bencher) Cork()   { w.corks++ }
func (w *bencher) Uncork() { w.corks--; w.send() }
func (w *bencher) send() {
	if len(w.ready) > 0 {
		_ = w.c.Send(w.ready)
		w.ready = w.ready[:0]
	}
}
