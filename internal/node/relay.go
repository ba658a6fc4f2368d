package node

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"sync"
	"time"

	"gantline/internal/block"
	"gantline/internal/wire"
)

// peerVolume is a volume of another node, reached over one io connection that is made again after a loss. Requests
// keep their session and number, so one that is sent again after a loss is done once. What is unanswered when the
// connection is lost is sent again first, in its order.
type peerVolume struct {
	addr   func() string
	self   wire.Hello
	volume string
	size   int64
	log    *slog.Logger

	mu     sync.Mutex
	client *wire.IOClient
	queue  []*block.Request // waiting for a connection, in order
	closed bool
	cause  error // why there is no connection

	// Hosts of this node's own exports have no session. Their requests get one here, so that what is sent again after
	// a loss is done once.
	session uint64
	number  uint64              // last one given
	open    map[uint64]struct{} // given and not answered
	floor   uint64              // all up to it are answered

	life     string              // of the peer, when it was last connected
	unsafe   map[uint64]struct{} // sessions with writes answered by it since their last flush
	deceived map[uint64]struct{} // sessions whose writes it may have lost: they end

	zeros zeroMap // of a sealed source

	ctx    context.Context
	cancel context.CancelFunc
	wake   chan struct{}
	work   sync.WaitGroup
}

func newPeerVolume(ctx context.Context, self wire.Hello, volume string, size int64, addr func() string, log *slog.Logger) *peerVolume {
	p := &peerVolume{addr: addr, self: self, volume: volume, size: size, log: log, wake: make(chan struct{}, 1),
		session: rand.Uint64() | 1, open: map[uint64]struct{}{}, unsafe: map[uint64]struct{}{}, deceived: map[uint64]struct{}{}}
	p.ctx, p.cancel = context.WithCancel(ctx)
	p.work.Go(p.run)
	return p
}

// Submit implements block.Target. Requests wait while the connection is away; whoever submits bounds their number.
func (p *peerVolume) Submit(reqs []*block.Request) {
	p.mu.Lock()
	c := p.client
	if p.closed {
		p.mu.Unlock()
		finishAll(reqs, block.ErrShutdown)
		return
	}
	p.identify(reqs)
	if len(p.deceived) > 0 {
		if _, bad := p.deceived[reqs[0].Session]; bad { // the requests of one call are one connection's
			p.mu.Unlock()
			finishAll(reqs, fmt.Errorf("%w: the source has come back without writes that were not flushed", block.ErrSession))
			return
		}
	}
	if c == nil || len(p.queue) > 0 {
		p.queue = append(p.queue, reqs...)
		p.mu.Unlock()
		p.poke()
		return
	}
	// Sent under the lock: a loss that comes meanwhile returns them behind it, in order.
	err := c.Send(reqs)
	if err != nil {
		p.queue = append(p.queue, reqs...)
	}
	p.mu.Unlock()
	if err != nil {
		p.poke()
		return
	}
	c.WaitRoom()
}

// identify is called under mu. Requests are the caller's copies, which are ours until they are answered.
func (p *peerVolume) identify(reqs []*block.Request) {
	for _, r := range reqs {
		if r.Session != 0 || r.Flags&block.FlagFetch != 0 {
			continue
		}
		p.number++
		r.Session, r.Number, r.Floor = p.session, p.number, p.floor
		p.open[p.number] = struct{}{}
	}
}

// answered is called by a client for every answer.
func (p *peerVolume) answered(r *block.Request, _ uint64, err error) {
	if err == nil && r.Flags&block.FlagFetch == 0 {
		p.mu.Lock()
		switch r.Op {
		case block.OpWrite, block.OpZero, block.OpTrim:
			p.unsafe[r.Session] = struct{}{}
		case block.OpFlush:
			delete(p.unsafe, r.Session)
		}
		p.mu.Unlock()
	}
	if r.Session == p.session {
		p.mu.Lock()
		delete(p.open, r.Number)
		for p.floor < p.number {
			if _, waits := p.open[p.floor+1]; waits {
				break
			}
			p.floor++
		}
		p.mu.Unlock()
	}
	r.Finish(err)
}

func finishAll(reqs []*block.Request, err error) {
	for _, r := range reqs {
		r.Finish(err)
	}
}

func (p *peerVolume) poke() {
	select {
	case p.wake <- struct{}{}:
	default:
	}
}

// lost is called by a client, last, with what it had not had answered.
func (p *peerVolume) lost(reqs []*block.Request, err error) {
	p.mu.Lock()
	p.client, p.cause = nil, err
	if p.closed {
		p.mu.Unlock()
		finishAll(reqs, block.ErrShutdown)
		return
	}
	p.queue = append(append([]*block.Request(nil), reqs...), p.queue...)
	p.mu.Unlock()
	p.poke()
}

// reconnectEvery bounds attempts while the peer is away.
const reconnectEvery = 100 * time.Millisecond

func (p *peerVolume) run() {
	for p.ctx.Err() == nil {
		if err := p.connect(); err != nil {
			p.mu.Lock()
			p.cause = err
			p.mu.Unlock()
		}
		wait := time.NewTimer(reconnectEvery)
		p.mu.Lock()
		up := p.client != nil
		p.mu.Unlock()
		if up {
			wait.Stop()
			select {
			case <-p.ctx.Done():
			case <-p.wake:
			}
			continue
		}
		select {
		case <-p.ctx.Done():
		case <-wait.C:
		}
	}
}

// connect makes a connection if there is none and sends what waits.
func (p *peerVolume) connect() error {
	p.mu.Lock()
	c := p.client
	p.mu.Unlock()
	if c == nil {
		addr := p.addr()
		if addr == "" {
			return errors.New("address not known")
		}
		fresh, err := wire.DialIO(p.ctx, addr, p.self, wire.IOParams{Volume: p.volume}, wire.IOClientHooks{Done: p.answered, Lost: p.lost})
		if err != nil {
			return err
		}
		if fresh.Size() != p.size {
			fresh.Close()
			return fmt.Errorf("volume %s has %d bytes there, not %d", p.volume, fresh.Size(), p.size)
		}
		c = fresh
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if life := c.Answer().Life; life != p.life {
		if p.life != "" {
			for id := range p.unsafe {
				p.deceived[id] = struct{}{}
			}
			clear(p.unsafe)
			if _, bad := p.deceived[p.session]; bad {
				p.session++ // hosts without a session of their own are told once, by the requests under way
			}
		}
		p.life = life
	}
	queue := p.queue
	if len(queue) > 0 {
		if err := c.Send(queue); err != nil {
			return err
		}
	}
	p.queue, p.cause = nil, nil
	if c.Conn().Err() == nil {
		p.client = c
	}
	return nil
}

// Err is why the peer cannot be reached, nil if it can.
func (p *peerVolume) Err() error {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.client == nil && p.cause == nil {
		return errors.New("not connected yet")
	}
	return p.cause
}

// Close answers what waits with an error and ends the connection.
func (p *peerVolume) Close() {
	p.mu.Lock()
	if p.closed {
		p.mu.Unlock()
		return
	}
	p.closed = true
	c, queue := p.client, p.queue
	p.queue = nil
	p.mu.Unlock()
	p.cancel()
	p.work.Wait()
	finishAll(queue, block.ErrShutdown)
	if c != nil {
		c.Bye()
	}
}

// Fetch implements volume.Fetcher: it reads what a sealed source holds at its cut. What is zero there is not sent.
func (p *peerVolume) Fetch(ctx context.Context, off int64, data []byte) error {
	if err := p.Err(); err != nil {
		return err // a fetch has its own retries; it does not wait here
	}
	if err := p.learnZeros(ctx, off, int64(len(data))); err != nil {
		return err
	}
	if p.Hole(off, int64(len(data))) {
		clear(data)
		return nil
	}
	// The answer may come after the caller has given up and used data for something else: it stays in the buffer it came
	// in until then.
	r := &block.Request{Op: block.OpRead, Flags: block.FlagFetch, Offset: off, Length: int64(len(data))}
	if err := p.ask(ctx, r); err != nil {
		return err
	}
	if len(r.Data) != len(data) {
		return fmt.Errorf("%w: a fetch of %d bytes was answered with %d", block.ErrIO, len(data), len(r.Data))
	}
	copy(data, r.Data)
	return nil
}

// ask sends one request and waits for its answer. Given up, the request must not be looked at any more.
func (p *peerVolume) ask(ctx context.Context, r *block.Request) error {
	done := make(waiter, 1)
	r.Completer = done
	p.Submit([]*block.Request{r})
	select {
	case <-done:
		return r.Err
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

// waiter is a Completer for one request that somebody waits for.
type waiter chan struct{}

func (w waiter) Complete(*block.Request) { w <- struct{}{} }

// fetchNow reads what a source that serves holds now: what hosts write meanwhile may be in it, in part, or not.
func (p *peerVolume) fetchNow(ctx context.Context, off, n int64) ([]byte, error) {
	if err := p.Err(); err != nil {
		return nil, err
	}
	r := &block.Request{Op: block.OpRead, Flags: block.FlagFetch, Offset: off, Length: n}
	if err := p.ask(ctx, r); err != nil {
		return nil, err
	}
	if int64(len(r.Data)) != n {
		return nil, fmt.Errorf("%w: a fetch of %d bytes was answered with %d", block.ErrIO, n, len(r.Data))
	}
	return r.Data, nil
}

// extentsNow is the same for what is not zero.
func (p *peerVolume) extentsNow(ctx context.Context, off, n int64) ([]block.Extent, error) {
	if err := p.Err(); err != nil {
		return nil, err
	}
	r := &block.Request{Op: block.OpExtents, Flags: block.FlagFetch, Offset: off, Length: n}
	if err := p.ask(ctx, r); err != nil {
		return nil, err
	}
	return r.Extents, nil
}
