package nbd

import (
	"bytes"
	"context"
	"errors"
	"io"
	"net"
	"sync/atomic"
	"testing"
	"time"

	"gantline/internal/block"
)

func TestHandshakeTimeLimit(t *testing.T) {
	r := newRig(t, "tcp", Options{HandshakeTimeout: 100 * time.Millisecond}, oneExport(512, newMemory(512)))
	silent := r.peer(t)
	silent.read(18)
	silent.gone()
	halfway := r.peer(t).hello(3)
	halfway.send(magicOption, optGo)
	halfway.gone()
	// One that has begun in time is not ended by the handshake's limit.
	p := r.peer(t).begin("a", false)
	time.Sleep(200 * time.Millisecond)
	p.request(0, cmdFlush, 1, 0, 0)
	if _, no, _ := p.answer(); no != 0 {
		t.Errorf("flush: %d", no)
	}
}

func TestConnectionCap(t *testing.T) {
	r := newRig(t, "unix", Options{MaxConns: 2}, oneExport(512, newMemory(512)))
	first := r.dial("a")
	r.dial("a")
	if _, err := Dial(context.Background(), r.network, r.addr, "a"); err == nil {
		t.Fatal("a third connection was accepted")
	}
	first.Close()
	for deadline := time.Now().Add(5 * time.Second); ; time.Sleep(time.Millisecond) {
		if c, err := Dial(context.Background(), r.network, r.addr, "a"); err == nil {
			c.Close()
			return
		}
		if time.Now().After(deadline) {
			t.Fatal("no connection is accepted after one has ended")
		}
	}
}

// A peer that sends and sends but reads nothing is no longer read from at the limits; another one is served meanwhile,
// also by the goroutine that completes the first one's requests.
func TestPeerThatReadsNothingStallsItself(t *testing.T) {
	m := newMemory(64 << 20)
	work := make(chan *block.Request, 1000)
	var submitted atomic.Int64
	m.scatter = func(reqs []*block.Request, _ func(*block.Request)) {
		for _, r := range reqs {
			submitted.Add(1)
			work <- r
		}
	}
	go func() { // the only completing goroutine there is
		for r := range work {
			m.do(r)
		}
	}()
	t.Cleanup(func() { close(work) })
	r := newRig(t, "unix", Options{MaxRequests: 16, DrainTimeout: 100 * time.Millisecond}, oneExport(64<<20, m))
	bad := r.peer(t).begin("a", true)
	flooded := make(chan struct{})
	go func() {
		defer close(flooded)
		var req []byte
		for range 1000 {
			req = append(req, "\x25\x60\x95\x13\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x01\x00\x00\x00\x00\x00\x00\x00\x00\x00\x10\x00\x00"...)
		}
		bad.sock.SetDeadline(time.Time{})
		for {
			if _, err := bad.sock.Write(req); err != nil {
				return
			}
		}
	}()
	for deadline := time.Now().Add(5 * time.Second); submitted.Load() == 0 && time.Now().Before(deadline); {
		time.Sleep(time.Millisecond)
	}
	good := r.dial("a")
	for range 200 {
		if _, err := do(good, block.Request{Op: block.OpWrite, Data: make([]byte, 4096)}); err != nil {
			t.Fatal(err)
		}
	}
	if n := submitted.Load() - 200; n < 1 || n > 64 {
		t.Errorf("%d requests of the stalled peer were taken", n)
	}
	bad.sock.Close()
	<-flooded
}

// While Submit is blocked, replies to requests that complete elsewhere still reach the peer.
func TestRepliesFlowWhileSubmitBlocks(t *testing.T) {
	m := newMemory(1 << 20)
	release := make(chan struct{})
	var first *block.Request
	m.scatter = func(reqs []*block.Request, do func(*block.Request)) {
		for _, r := range reqs {
			if first == nil {
				first = r
				continue
			}
			go do(first)
			<-release
			do(r)
		}
	}
	p := newRig(t, "unix", Options{}, oneExport(1<<20, m)).peer(t).begin("a", true)
	p.request(0, cmdFlush, 1, 0, 0)
	p.request(0, cmdFlush, 2, 0, 0)
	if cookie, _, _ := p.answer(); cookie != 1 {
		t.Errorf("cookie %d", cookie)
	}
	close(release)
	if cookie, _, _ := p.answer(); cookie != 2 {
		t.Errorf("cookie %d", cookie)
	}
}

// Bytes in flight are bounded: of three 16 MiB writes the third is not even read before one is answered.
func TestBytesInFlight(t *testing.T) {
	m := newMemory(64 << 20)
	held := make(chan *block.Request, 10)
	m.scatter = func(reqs []*block.Request, _ func(*block.Request)) {
		for _, r := range reqs {
			held <- r
		}
	}
	r := newRig(t, "unix", Options{MaxBytes: 32 << 20}, oneExport(64<<20, m))
	c := r.dial("a")
	done := make(one, 3)
	for range 3 {
		c.Submit([]*block.Request{{Op: block.OpWrite, Length: 16 << 20, Data: make([]byte, 16<<20), Completer: done}})
	}
	a, b := <-held, <-held
	select {
	case <-held:
		t.Error("48 MiB are in flight")
	case <-time.After(100 * time.Millisecond):
	}
	a.Finish(nil)
	(<-held).Finish(nil)
	b.Finish(nil)
	for range 3 {
		if q := <-done; q.Err != nil {
			t.Error(q.Err)
		}
	}
}

// Shutdown lets what is in flight finish, answers what comes after with ESHUTDOWN, and closes then.
func TestShutdown(t *testing.T) {
	m := newMemory(1 << 20)
	held := make(chan *block.Request, 10)
	m.scatter = func(reqs []*block.Request, _ func(*block.Request)) {
		for _, r := range reqs {
			held <- r
		}
	}
	r := newRig(t, "tcp", Options{}, oneExport(1<<20, m))
	busy, idle, young := r.peer(t).begin("a", true), r.peer(t).begin("a", true), r.peer(t).hello(3)
	busy.request(0, cmdFlush, 1, 0, 0)
	q := <-held
	over := make(chan error, 1)
	go func() { over <- r.server.Shutdown(context.Background()) }()
	idle.gone()
	idle.sock.Close()
	young.gone()
	busy.request(0, cmdRead, 2, 0, 4096)
	if cookie, no, _ := busy.answer(); cookie != 2 || no != errnoShutdown {
		t.Errorf("new request: cookie %d, error %d", cookie, no)
	}
	if _, err := net.Dial("tcp", r.addr); err == nil {
		t.Error("a new connection was accepted")
	}
	select {
	case <-over:
		t.Fatal("Shutdown did not wait for the request in flight")
	default:
	}
	q.Finish(nil)
	if cookie, no, _ := busy.answer(); cookie != 1 || no != 0 {
		t.Errorf("request in flight: cookie %d, error %d", cookie, no)
	}
	busy.gone()
	if err := <-over; err != nil {
		t.Error(err)
	}
	if open, closed := r.catalog.counts(); open != 2 || closed != 2 {
		t.Errorf("%d exports opened, %d closed", open, closed)
	}
}

func TestShutdownHasALimit(t *testing.T) {
	m := newMemory(1 << 20)
	held := make(chan *block.Request, 10)
	m.scatter = func(reqs []*block.Request, _ func(*block.Request)) {
		for _, r := range reqs {
			held <- r
		}
	}
	r := newRig(t, "unix", Options{}, oneExport(1<<20, m))
	p := r.peer(t).begin("a", true)
	p.request(0, cmdFlush, 1, 0, 0)
	q := <-held
	ctx, cancel := context.WithTimeout(context.Background(), 50*time.Millisecond)
	defer cancel()
	if err := r.server.Shutdown(ctx); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("Shutdown: %v", err)
	}
	p.gone()
	q.Finish(nil) // too late, and harmless
}

// A target that never returns from Submit cannot hold up a shutdown.
func TestShutdownLeavesAStuckTarget(t *testing.T) {
	m := newMemory(1 << 20)
	entered, release := make(chan struct{}), make(chan struct{})
	m.scatter = func(reqs []*block.Request, do func(*block.Request)) {
		close(entered)
		<-release
		do(reqs[0])
	}
	r := newRig(t, "unix", Options{}, oneExport(1<<20, m))
	r.peer(t).begin("a", true).request(0, cmdFlush, 1, 0, 0)
	<-entered
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Millisecond)
	defer cancel()
	if err := r.server.Shutdown(ctx); !errors.Is(err, context.DeadlineExceeded) || r.server.Conns() != 1 {
		t.Errorf("Shutdown: %v, %d connections", err, r.server.Conns())
	}
	close(release)
}

// A peer that leaves has its requests finished before the export is closed.
func TestPeerLeavesWithRequestsInFlight(t *testing.T) {
	m := newMemory(1 << 20)
	held := make(chan *block.Request, 10)
	m.scatter = func(reqs []*block.Request, _ func(*block.Request)) {
		for _, r := range reqs {
			held <- r
		}
	}
	r := newRig(t, "unix", Options{}, oneExport(1<<20, m))
	p := r.peer(t).begin("a", true)
	p.request(0, cmdFlush, 1, 0, 0)
	p.request(0, cmdDisc, 2, 0, 0)
	q := <-held
	time.Sleep(20 * time.Millisecond)
	if _, closed := r.catalog.counts(); closed != 0 {
		t.Error("export was closed with a request in flight")
	}
	q.Finish(nil)
	if cookie, no, _ := p.answer(); cookie != 1 || no != 0 {
		t.Errorf("cookie %d, error %d", cookie, no)
	}
	if _, err := io.ReadAll(p.sock); err != nil {
		t.Error(err)
	}
}

func TestDoubleCompletionPanics(t *testing.T) {
	m := newMemory(512)
	caught := make(chan any, 1)
	m.scatter = func(reqs []*block.Request, do func(*block.Request)) {
		defer func() { caught <- recover() }()
		do(reqs[0])
		do(reqs[0])
	}
	c := newRig(t, "unix", Options{}, oneExport(512, m)).dial("a")
	if _, err := do(c, block.Request{Op: block.OpFlush}); err != nil {
		t.Error(err)
	}
	if <-caught == nil {
		t.Error("nothing was noticed")
	}
}

// What a host sends while its connection is closed does not change a write that was answered before: its target still has the bytes.
func TestShutdownLeavesWritesAlone(t *testing.T) {
	m := newMemory(1 << 20)
	kept := make(chan []byte, 1)
	m.scatter = func(reqs []*block.Request, _ func(*block.Request)) {
		for _, r := range reqs {
			kept <- r.Data
			r.Finish(nil)
		}
	}
	r := newRig(t, "tcp", Options{}, oneExport(1<<20, m))
	p := r.peer(t).begin("a", true)
	p.request(0, cmdWrite, 1, 0, 4096)
	if _, err := p.sock.Write(bytes.Repeat([]byte{0xaa}, 4096)); err != nil {
		t.Fatal(err)
	}
	if cookie, no, _ := p.answer(); cookie != 1 || no != 0 {
		t.Fatalf("cookie %d, error %d", cookie, no)
	}
	over := make(chan error, 1)
	go func() { over <- r.server.Shutdown(context.Background()) }()
	p.gone()
	if _, err := p.sock.Write(bytes.Repeat([]byte{0x55}, 1<<16)); err != nil {
		t.Fatal(err)
	}
	p.sock.Close()
	if err := <-over; err != nil {
		t.Error(err)
	}
	if data := <-kept; !bytes.Equal(data, bytes.Repeat([]byte{0xaa}, 4096)) {
		t.Error("the answered write was overwritten")
	}
}
