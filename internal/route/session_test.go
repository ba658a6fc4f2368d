package route

import (
	"context"
	"errors"
	"fmt"
	"net"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"

	"gantline/internal/block"
	"gantline/internal/wire"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

type identity struct{ session, number uint64 }

// fakeNode is a node with one volume. What it does with requests can be changed at any time.
type fakeNode struct {
	t        *testing.T
	addr     string
	sessions *wire.Sessions
	stop     func()

	mu       sync.Mutex
	epoch    uint64
	taken    uint64                     // the epoch in which it was promoted
	answer   func(*block.Request) error // nil: nil
	held     []*block.Request           // if hold, requests wait here
	hold     bool
	seen     []identity       // in the order of arrival, replays included
	executed map[identity]int // as a volume would: once each
	conns    []*wire.Conn
	refuse   error // hellos
}

func newNode(t *testing.T, epoch uint64) *fakeNode {
	return startNode(t, &fakeNode{epoch: epoch, executed: map[identity]int{}}, "127.0.0.1:0")
}

func startNode(t *testing.T, n *fakeNode, addr string) *fakeNode {
	ln, err := net.Listen("tcp", addr)
	if err != nil {
		t.Fatal(err)
	}
	n.t, n.addr = t, ln.Addr().String()
	n.sessions = wire.NewSessions(wire.SessionLimits{Silence: time.Second}, nil)
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	srv := wire.NewServer(wire.Handlers{IO: n.serve}, wire.Limits{})
	go func() { defer close(done); _ = srv.Serve(ctx, ln) }()
	var once sync.Once
	n.stop = func() {
		once.Do(func() {
			cancel()
			n.release(nil)
			<-done
		})
	}
	t.Cleanup(n.stop)
	return n
}

func (n *fakeNode) serve(ctx context.Context, in *wire.Incoming) error {
	var p wire.IOParams
	if err := in.Peer.Decode(&p); err != nil {
		return err
	}
	n.mu.Lock()
	epoch, taken, refuse := n.epoch, n.taken, n.refuse
	n.conns = append(n.conns, in.Conn)
	n.mu.Unlock()
	if refuse != nil {
		return refuse
	}
	return n.sessions.Serve(ctx, in, p, wire.IOAnswer{Size: 1 << 20, Epoch: epoch, Taken: taken}, n, wire.IOHooks{Epoch: func() uint64 {
		n.mu.Lock()
		defer n.mu.Unlock()
		return n.epoch
	}})
}

func (n *fakeNode) Submit(reqs []*block.Request) {
	for _, r := range reqs {
		id := identity{r.Session, r.Number}
		n.mu.Lock()
		n.seen = append(n.seen, id)
		if n.hold {
			n.executed[id]++
			n.held = append(n.held, r)
			n.mu.Unlock()
			continue
		}
		var err error
		if n.answer != nil {
			err = n.answer(r)
		}
		if err == nil {
			n.executed[id]++
		}
		n.mu.Unlock()
		r.Finish(err)
	}
}

// release answers what is held and holds no more.
func (n *fakeNode) release(err error) {
	n.mu.Lock()
	held := n.held
	n.held, n.hold = nil, false
	n.mu.Unlock()
	for _, r := range held {
		r.Finish(err)
	}
}

func (n *fakeNode) set(f func()) { n.mu.Lock(); f(); n.mu.Unlock() }

// cut loses all connections without an answer.
func (n *fakeNode) cut() {
	n.mu.Lock()
	defer n.mu.Unlock()
	for _, c := range n.conns {
		c.Abort(errors.New("cut by the test"))
	}
	n.conns = nil
}

func (n *fakeNode) count() int { n.mu.Lock(); defer n.mu.Unlock(); return len(n.seen) }

func (n *fakeNode) route(epoch uint64) Route {
	return Route{Node: "n", Address: n.addr, Volume: "v", Epoch: epoch}
}

// host is a host connection: it collects answers.
type host struct {
	t    *testing.T
	s    *Session
	mu   sync.Mutex
	errs map[uint64]error // by tag
	sent uint64
}

func newHost(t *testing.T, cfg Config) *host {
	h := &host{t: t, errs: map[uint64]error{}}
	h.s = NewSession(cfg)
	t.Cleanup(h.s.Close)
	return h
}

func (h *host) Complete(r *block.Request) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if _, twice := h.errs[r.Tag]; twice {
		h.t.Errorf("request %d is answered twice", r.Tag)
	}
	h.errs[r.Tag] = r.Err
}

func (h *host) send(n int) {
	var reqs []*block.Request
	for range n {
		h.sent++
		reqs = append(reqs, &block.Request{Op: block.OpWrite, Offset: int64(h.sent % 100 * 512), Length: 512,
			Data: make([]byte, 512), Tag: h.sent, Completer: h})
	}
	h.s.Submit(reqs)
}

func (h *host) answered() int { h.mu.Lock(); defer h.mu.Unlock(); return len(h.errs) }

func (h *host) wantAll(want error) {
	h.t.Helper()
	eventually(h.t, func() bool { return h.answered() == int(h.sent) }, func() string {
		return fmt.Sprintf("%d of %d requests answered, %+v", h.answered(), h.sent, h.s.Status())
	})
	h.mu.Lock()
	defer h.mu.Unlock()
	for tag, err := range h.errs {
		if !errors.Is(err, want) {
			h.t.Fatalf("request %d: %v, want %v", tag, err, want)
		}
	}
}

func eventually(t *testing.T, ok func() bool, what func() string) {
	t.Helper()
	for end := time.Now().Add(10 * time.Second); !ok(); time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			t.Fatal(what())
		}
	}
}

func static(s string) func() string { return func() string { return s } }

func TestRequestsAreReplayedInOrderUnderTheirOldNumbers(t *testing.T) {
	n := newNode(t, 1)
	h := newHost(t, Config{Route: n.route(1)})
	h.send(1)
	h.wantAll(nil)
	n.set(func() { n.hold = true })
	h.send(20)
	eventually(t, func() bool { return n.count() == 21 }, static("requests do not arrive"))
	n.cut() // executed, not answered
	h.send(5)
	eventually(t, func() bool { return n.count() >= 21+25 }, static("no replay"))
	n.release(nil)
	h.wantAll(nil)
	n.mu.Lock()
	defer n.mu.Unlock()
	again := n.seen[21:]
	for i, id := range again {
		if want := (identity{h.s.ID(), uint64(i + 2)}); id != want {
			t.Fatalf("replay %d is %v, want %v", i, id, want)
		}
	}
	for i := range 20 {
		if got := n.executed[identity{h.s.ID(), uint64(i + 2)}]; got != 2 {
			t.Fatalf("request %d came %d times", i+2, got)
		}
	}
}

func TestANodeMayRestart(t *testing.T) {
	n := newNode(t, 1)
	h := newHost(t, Config{Route: n.route(1)})
	h.send(1)
	h.wantAll(nil)
	addr := n.addr
	n.stop()
	h.send(10)
	time.Sleep(120 * time.Millisecond)
	if h.answered() != 1 {
		t.Fatal("answered without a node")
	}
	startNode(t, &fakeNode{epoch: 1, executed: map[identity]int{}}, addr)
	h.wantAll(nil)
}

func TestMovedIsFollowedInOrder(t *testing.T) {
	a, b := newNode(t, 1), newNode(t, 2)
	h := newHost(t, Config{Route: a.route(1)})
	h.send(3)
	h.wantAll(nil)
	a.set(func() {
		a.answer = func(*block.Request) error {
			return &block.MovedError{Node: "b", Address: b.addr, Volume: "v", Epoch: 2}
		}
	})
	for range 10 {
		h.send(5)
	}
	h.wantAll(nil)
	if st := h.s.Status(); st.Route.Node != "b" || st.Route.Epoch != 2 {
		t.Fatalf("route %+v", st.Route)
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	if len(b.seen) != 50 {
		t.Fatalf("%d requests at b", len(b.seen))
	}
	for i, id := range b.seen {
		if id.number != uint64(i+4) {
			t.Fatalf("place %d has number %d", i, id.number)
		}
	}
}

func TestMovedAtHelloAndBackAgain(t *testing.T) {
	a, b := newNode(t, 1), newNode(t, 2)
	a.set(func() { a.refuse = &block.MovedError{Node: "b", Address: b.addr, Volume: "v", Epoch: 2} })
	h := newHost(t, Config{Route: a.route(1)})
	h.send(3)
	h.wantAll(nil)
	// The volume comes back to a: the session, which said bye or was never open there, is welcome.
	a.set(func() { a.refuse, a.epoch = nil, 3 })
	b.set(func() {
		b.answer = func(*block.Request) error {
			return &block.MovedError{Node: "a", Address: a.addr, Volume: "v", Epoch: 3}
		}
	})
	h.send(3)
	h.wantAll(nil)
	time.Sleep(1200 * time.Millisecond)
	b.set(func() { b.answer, b.epoch = nil, 4 })
	h.s.Switch(b.route(4), Finish)
	h.send(3)
	h.wantAll(nil)
}

func TestNodesThatNameEachOtherAreAskedWithPauses(t *testing.T) {
	a, b := newNode(t, 1), newNode(t, 1)
	a.set(func() {
		a.answer = func(*block.Request) error {
			return &block.MovedError{Node: "b", Address: b.addr, Volume: "v", Epoch: 1}
		}
	})
	b.set(func() {
		b.answer = func(*block.Request) error {
			return &block.MovedError{Node: "a", Address: a.addr, Volume: "v", Epoch: 1}
		}
	})
	h := newHost(t, Config{Route: a.route(1)})
	h.send(1)
	time.Sleep(300 * time.Millisecond)
	if n := a.count() + b.count(); n < 3 || n > 20 {
		t.Fatalf("asked %d times in 300 ms", n)
	}
	b.set(func() { b.answer = nil })
	h.wantAll(nil)
}

func TestSwitchFinish(t *testing.T) {
	a, b := newNode(t, 1), newNode(t, 1)
	h := newHost(t, Config{Route: a.route(1)})
	a.set(func() { a.hold = true })
	h.send(10)
	eventually(t, func() bool { return a.count() == 10 }, static("nothing at a"))
	h.s.Switch(b.route(1), Finish)
	h.send(10)
	eventually(t, func() bool { return h.answered() == 10 }, static("new requests wait for old ones"))
	a.release(nil)
	h.wantAll(nil)
	if b.count() != 10 {
		t.Fatalf("%d at b", b.count())
	}
	eventually(t, func() bool { return a.sessions.Live() == 0 }, static("the old link stays"))
}

func TestSwitchFinishReplaysAtTheNewNodeWhatTheOldOneLost(t *testing.T) {
	a, b := newNode(t, 1), newNode(t, 1)
	h := newHost(t, Config{Route: a.route(1)})
	a.set(func() { a.hold = true })
	h.send(10)
	eventually(t, func() bool { return a.count() == 10 }, static("nothing at a"))
	h.s.Switch(b.route(1), Finish)
	h.send(1)
	a.cut()
	h.wantAll(nil)
	if b.count() != 11 {
		t.Fatalf("%d at b", b.count())
	}
}

func TestSwitchHold(t *testing.T) {
	a, b := newNode(t, 1), newNode(t, 1)
	h := newHost(t, Config{Route: a.route(1)})
	a.set(func() { a.hold = true })
	h.send(10)
	eventually(t, func() bool { return a.count() == 10 }, static("nothing at a"))
	h.s.Switch(b.route(1), Hold)
	h.send(10)
	time.Sleep(100 * time.Millisecond)
	if b.count() != 0 || h.answered() != 0 {
		t.Fatalf("%d at b, %d answered while the old ones run", b.count(), h.answered())
	}
	a.release(nil)
	h.wantAll(nil)
	if b.count() != 10 {
		t.Fatalf("%d at b", b.count())
	}
}

func TestSwitchError(t *testing.T) {
	a, b := newNode(t, 1), newNode(t, 1)
	h := newHost(t, Config{Route: a.route(1)})
	a.set(func() { a.hold = true })
	h.send(10)
	eventually(t, func() bool { return a.count() == 10 }, static("nothing at a"))
	h.s.Switch(b.route(1), Error)
	h.wantAll(block.ErrIO)
	h.send(10)
	eventually(t, func() bool { return h.answered() == 20 }, static("nothing goes on"))
	h.mu.Lock()
	defer h.mu.Unlock()
	for tag := uint64(11); tag <= 20; tag++ {
		if h.errs[tag] != nil {
			t.Fatalf("request %d: %v", tag, h.errs[tag])
		}
	}
}

// What was failed by a switch is not sent again, nor are new requests sent before the old node has done with it; each of them
// says that it is over, so that a node executes it no more behind them. What was not sent yet fails with nothing.
func TestSwitchErrorKeepsOrder(t *testing.T) {
	a, b := newNode(t, 1), newNode(t, 1)
	floors := make(chan uint64, 20)
	b.set(func() { b.answer = func(r *block.Request) error { floors <- r.Floor; return nil } })
	h := newHost(t, Config{Route: a.route(1)})
	a.set(func() { a.hold = true })
	h.send(10)
	eventually(t, func() bool { return a.count() == 10 }, static("nothing at a"))
	h.s.Switch(b.route(1), Error)
	h.send(5)
	eventually(t, func() bool { return h.answered() == 10 }, static("what was in flight has not failed"))
	time.Sleep(100 * time.Millisecond)
	if b.count() != 0 || h.answered() != 10 {
		t.Fatalf("%d at b, %d answered while a still executes", b.count(), h.answered())
	}
	a.release(nil)
	eventually(t, func() bool { return h.answered() == 15 }, static("nothing goes on"))
	for range 5 {
		if f := <-floors; f != 10 {
			t.Errorf("floor %d, wanted 10: the old node may execute behind it what has failed", f)
		}
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	if len(b.seen) != 5 || b.seen[0].number != 11 {
		t.Fatalf("at b: %v", b.seen)
	}
	eventually(t, func() bool { return a.sessions.Live() == 0 }, static("the old link stays"))
}

// A request that a lost connection had left for being sent again has been sent: it fails as well. One that never left does not.
func TestSwitchErrorFailsWhatWasSent(t *testing.T) {
	a, b := newNode(t, 1), newNode(t, 1)
	h := newHost(t, Config{Route: a.route(1)})
	a.set(func() { a.hold = true })
	h.send(4)
	eventually(t, func() bool { return a.count() == 4 }, static("nothing at a"))
	a.set(func() { a.refuse = errors.New("not now") })
	a.cut()
	eventually(t, func() bool { return h.s.Status().Waiting == 4 }, static("the loss is not noticed"))
	h.send(3)
	h.s.Switch(b.route(1), Error)
	eventually(t, func() bool { return h.answered() == 7 }, static("no answers"))
	h.mu.Lock()
	defer h.mu.Unlock()
	for tag := uint64(1); tag <= 7; tag++ {
		if failed := errors.Is(h.errs[tag], block.ErrIO); failed != (tag <= 4) || !failed && h.errs[tag] != nil {
			t.Errorf("request %d: %v", tag, h.errs[tag])
		}
	}
	if b.count() != 3 {
		t.Errorf("%d requests at b", b.count())
	}
}

func TestAnOlderEpochSwitchesNothing(t *testing.T) {
	a, b := newNode(t, 5), newNode(t, 1)
	h := newHost(t, Config{Route: a.route(1)})
	h.send(1)
	h.wantAll(nil)
	h.s.Switch(b.route(4), Finish)
	h.send(1)
	h.wantAll(nil)
	if b.count() != 0 || h.s.Status().Route.Epoch != 5 {
		t.Fatalf("route %+v", h.s.Status().Route)
	}
}

// A session that a node has led to another, in a move that the manager's word did not reach it of, takes the manager's word for it again
// when the volume is in no group: what is left of the move is an epoch that nobody counts on from.
func TestAnEpochOfAMoveDoesNotOutliveIt(t *testing.T) {
	a, b, x := newNode(t, 4), newNode(t, 5), newNode(t, 0)
	a.set(func() { a.refuse = &block.MovedError{Node: "b", Address: b.addr, Volume: "v", Epoch: 5} })
	h := newHost(t, Config{Route: a.route(0)})
	h.send(1)
	h.wantAll(nil)
	if r := h.s.Status().Route; b.count() != 1 || r.Epoch != 5 {
		t.Fatalf("%d requests at b, route %+v", b.count(), r)
	}
	h.s.Switch(x.route(0), Finish)
	h.send(1)
	h.wantAll(nil)
	if r := h.s.Status().Route; x.count() != 1 || r.Epoch != 0 {
		t.Fatalf("%d requests at x, route %+v", x.count(), r)
	}
}

func TestHoldTimeExpires(t *testing.T) {
	a := newNode(t, 1)
	r := a.route(1)
	a.stop()
	h := newHost(t, Config{Route: r, Hold: 150 * time.Millisecond})
	start := time.Now()
	h.send(3)
	h.wantAll(block.ErrHoldExpired)
	if d := time.Since(start); d < 150*time.Millisecond || d > 2*time.Second {
		t.Fatalf("after %v", d)
	}
}

func TestANodeThatIsNotReadyIsAskedAgain(t *testing.T) {
	for _, not := range []error{block.ErrShutdown, wire.ErrStale, &block.MovedError{Epoch: 1}} {
		a := newNode(t, 1)
		left := 3
		a.set(func() {
			a.answer = func(*block.Request) error {
				if left--; left >= 0 {
					return not
				}
				return nil
			}
		})
		h := newHost(t, Config{Route: a.route(1)})
		h.send(2)
		h.wantAll(nil)
	}
}

func TestAnEndedSessionClosesTheHostAndReplaysNothing(t *testing.T) {
	a := newNode(t, 1)
	ended := make(chan error, 1)
	h := newHost(t, Config{Route: a.route(1), Ended: func(err error) { ended <- err }})
	a.set(func() { a.hold = true })
	h.send(5)
	eventually(t, func() bool { return a.count() == 5 }, static("nothing at a"))
	a.set(func() { a.refuse = block.ErrSession })
	a.cut()
	if err := <-ended; !errors.Is(err, block.ErrSession) {
		t.Fatal(err)
	}
	h.wantAll(block.ErrSession)
	a.release(nil)
	h.send(2)
	h.wantAll(block.ErrSession)
	if a.count() != 5 {
		t.Fatalf("%d requests at the node: something was replayed", a.count())
	}
}

// A lone volume has no epoch. Its host must hear of a promotion all the same, and of nothing else.
func TestPromotionBehindALoneVolumeEndsTheSession(t *testing.T) {
	for _, first := range []uint64{0, 1} {
		a, b := newNode(t, first), newNode(t, 2)
		b.set(func() { b.taken = 2 })
		h := newHost(t, Config{Route: a.route(first)})
		h.send(1)
		h.wantAll(nil)
		a.set(func() { a.epoch = 1 }) // the volume joins a group, under its host
		h.send(1)
		h.wantAll(nil)
		a.stop()
		h.s.Switch(Route{Node: "m", Address: b.addr, Volume: "v", Epoch: 2}, Finish)
		h.send(1)
		eventually(t, func() bool { return h.answered() == 3 }, static("no answer"))
		h.mu.Lock()
		if err := h.errs[3]; !errors.Is(err, block.ErrSession) {
			t.Fatalf("first served in epoch %d: %v", first, err)
		}
		h.mu.Unlock()
		if b.count() != 0 {
			t.Fatal("the promoted node was asked")
		}
	}
}

func TestALoneVolumeJoinsAGroupUnderItsHost(t *testing.T) {
	a := newNode(t, 0)
	h := newHost(t, Config{Route: a.route(0)})
	h.send(1)
	h.wantAll(nil)
	a.set(func() { a.epoch = 1 })
	h.send(1)
	a.cut() // and the next hello answers with an epoch
	h.send(1)
	h.wantAll(nil)
	h.s.Switch(a.route(1), Finish)
	h.send(1)
	h.wantAll(nil)
}

// A session that began at a promoted node goes on there, whatever the epoch of its first answer was.
func TestASessionOfAPromotedNodeGoesOnThere(t *testing.T) {
	for _, first := range []uint64{0, 2} {
		b := newNode(t, first)
		b.set(func() { b.taken = 2 })
		h := newHost(t, Config{Route: b.route(first)})
		h.send(1)
		h.wantAll(nil)
		b.set(func() { b.epoch = 2 })
		b.cut()
		h.send(1)
		h.wantAll(nil)
	}
}

func TestASleptGatewayEndsTheSession(t *testing.T) {
	a := newNode(t, 1)
	ended := make(chan error, 1)
	h := newHost(t, Config{Route: a.route(1), Ended: func(err error) { ended <- err }})
	h.send(1)
	h.wantAll(nil)
	h.s.mu.Lock()
	h.s.lastBoot -= sleptAfter + time.Second
	h.s.mu.Unlock()
	if err := <-ended; !errors.Is(err, block.ErrSession) {
		t.Fatal(err)
	}
}

func TestTheWindowHoldsAHostBack(t *testing.T) {
	a := newNode(t, 1)
	h := newHost(t, Config{Route: a.route(1)})
	a.set(func() { a.hold = true })
	through := make(chan struct{})
	go func() {
		h.send(window + 10)
		close(through)
	}()
	eventually(t, func() bool { return a.count() == window }, func() string { return fmt.Sprint(a.count()) })
	select {
	case <-through:
		t.Fatal("more than the window was taken")
	case <-time.After(50 * time.Millisecond):
	}
	a.release(nil)
	<-through
	h.wantAll(nil)
}

// Everything at once: connections are cut and paths are switched under load; each request is answered once, nothing
// fails, and no node sees a number it has not seen before out of a replay.
func TestLoadThroughCutsAndSwitches(t *testing.T) {
	a, b := newNode(t, 1), newNode(t, 1)
	h := newHost(t, Config{Route: a.route(1)})
	stop := time.Now().Add(1500 * time.Millisecond)
	done := make(chan struct{})
	go func() {
		defer close(done)
		policies := []Policy{Finish, Hold}
		for i := 0; time.Now().Before(stop); i++ {
			time.Sleep(20 * time.Millisecond)
			to := b
			if i%2 == 1 {
				to = a
			}
			switch i % 3 {
			case 0:
				a.cut()
			case 1:
				b.cut()
			}
			h.s.Switch(to.route(1), policies[i%2])
		}
	}()
	for time.Now().Before(stop) {
		h.send(16)
	}
	<-done
	h.wantAll(nil)
	a.mu.Lock()
	defer a.mu.Unlock()
	b.mu.Lock()
	defer b.mu.Unlock()
	for n := uint64(1); n <= h.sent; n++ {
		id := identity{h.s.ID(), n}
		if a.executed[id]+b.executed[id] == 0 {
			t.Fatalf("request %d was executed nowhere", n)
		}
	}
	t.Logf("%d requests, %d at a, %d at b", h.sent, len(a.seen), len(b.seen))
}

// A connection is lost, the volume moves away, and later it comes back: by then the node has ended the session. There
// is nothing it could replay, so the host keeps its connection.
func TestAVolumeMayComeBackToANodeThatLostTheSession(t *testing.T) {
	a, b := newNode(t, 1), newNode(t, 1)
	h := newHost(t, Config{Route: a.route(1)})
	h.send(3)
	h.wantAll(nil)
	b.set(func() { b.hold = true })
	a.cut()
	h.s.Switch(b.route(1), Finish)
	h.send(3)
	eventually(t, func() bool { return b.count() == 3 }, static("nothing at b"))
	b.release(nil)
	h.wantAll(nil)
	time.Sleep(1300 * time.Millisecond) // a has ended the session
	h.s.Switch(a.route(1), Finish)
	h.send(3)
	h.wantAll(nil)
}
