package volume

import (
	"context"
	"sync"
	"sync/atomic"

	"gantline/internal/block"
	"gantline/internal/record"
)

// period is the time between two mode changes of a volume. Every admitted request belongs to one and leaves it when it
// has been answered or held, so that a change can wait for exactly those that came in under the old mode.
type period struct {
	mode     Mode
	waits    *waits            // of the volume
	relay    block.Target      // ModeThrough
	moved    *block.MovedError // ModeMoved
	inflight atomic.Int64
	retired  atomic.Bool
	once     sync.Once
	idle     chan struct{} // closed when retired and nothing is in flight
}

func newPeriod(m Mode, w *waits) *period {
	return &period{mode: m, waits: w, idle: make(chan struct{})}
}

// finish answers a request that was executed in the period and has it leave. now: see clock.
func (p *period) finish(r *block.Request, err error, now int64) {
	p.count(r, now)
	r.Finish(err)
	p.leave(1)
}

// count counts a request that is about to be answered.
func (p *period) count(r *block.Request, now int64) {
	if p.mode != ModeMoved { // what it answers is another node's fetch, not a host's
		p.waits.observe(r, now)
	}
}

func (p *period) leave(n int) {
	if n != 0 && p.inflight.Add(-int64(n)) == 0 && p.retired.Load() {
		p.once.Do(func() { close(p.idle) })
	}
}

// retire is called once the volume has a newer period.
func (p *period) retire() {
	p.retired.Store(true)
	if p.inflight.Load() == 0 {
		p.once.Do(func() { close(p.idle) })
	}
}

// gate admits requests under the mode of the day, holds them, and drains.
type gate struct {
	current atomic.Pointer[period]

	changing sync.Mutex // one mode change at a time
	retired  []*period  // under changing: not yet seen idle

	mu        sync.Mutex
	moved     *sync.Cond // on mu: room in the hold list, or another mode
	held      []heldRequest
	heldBytes int64
	releasing bool
	ticket    uint64

	relay     block.Target
	successor *block.MovedError
	maxHeld   int
	maxBytes  int64
}

// heldRequest waits for the next mode. Tickets give the order of admission: a request that was relayed before others
// were held, and comes back unexecuted, goes in front of them.
type heldRequest struct {
	r      *block.Request
	epoch  uint64
	ticket uint64
}

// enter admits n requests into the current period. The check after the count closes the race with a change: either the
// change sees the count, or enter sees the change.
func (g *gate) enter(n int) *period {
	for {
		p := g.current.Load()
		p.inflight.Add(int64(n))
		if g.current.Load() == p {
			return p
		}
		p.leave(n)
	}
}

// hold queues requests that came in period p, blocking while the list is at its limit. It returns those that must enter
// again because the mode has changed.
func (g *gate) hold(p *period, epoch uint64, reqs []*block.Request) []*block.Request {
	g.mu.Lock()
	defer g.mu.Unlock()
	for len(reqs) > 0 {
		for g.current.Load() == p && (g.releasing || g.full(reqs[0])) {
			g.moved.Wait()
		}
		if g.current.Load() != p {
			break
		}
		g.ticket++
		g.push(heldRequest{r: reqs[0], epoch: epoch, ticket: g.ticket})
		reqs = reqs[1:]
	}
	return reqs
}

func (g *gate) full(r *block.Request) bool {
	return len(g.held) >= g.maxHeld || len(g.held) > 0 && g.heldBytes+r.Length > g.maxBytes
}

// push keeps the list in ticket order; nearly always that is at the end.
func (g *gate) push(h heldRequest) {
	i := len(g.held)
	for i > 0 && g.held[i-1].ticket > h.ticket {
		i--
	}
	g.held = append(g.held, heldRequest{})
	copy(g.held[i+1:], g.held[i:])
	g.held[i] = h
	g.heldBytes += h.r.Length
}

// takeBack holds a relayed request that the source has answered `moved`: it was not executed. False: the mode is one
// that executes or answers, the request must be submitted again.
func (g *gate) takeBack(h heldRequest) bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	if m := g.current.Load().mode; m != ModeThrough && m != ModePending {
		return false
	}
	g.push(h)
	return true
}

// change publishes the next period and, unless that is pending, runs what is held in it, in order and before anything
// that comes later. run is called without locks.
func (g *gate) change(m Mode, run func(p *period, epoch uint64, reqs []*block.Request)) {
	g.changing.Lock()
	defer g.changing.Unlock()
	old := g.current.Load()
	next := newPeriod(m, old.waits)
	g.mu.Lock()
	next.relay = g.relay
	next.moved = g.successor
	if m != ModePending {
		g.releasing = true
		// What comes back from the relay while it is released to it stays for the next mode, else this would not end.
		for pass := 0; len(g.held) > 0 && (m != ModeThrough || pass == 0); pass++ {
			batch := g.held
			g.held, g.heldBytes = nil, 0
			g.mu.Unlock()
			runHeld(next, batch, run)
			g.mu.Lock()
		}
	}
	g.current.Store(next)
	g.releasing = false
	g.moved.Broadcast()
	g.mu.Unlock()
	old.retire()
	g.retired = append(g.retired, old)
}

// runHeld hands held requests over in runs of one epoch.
func runHeld(p *period, held []heldRequest, run func(p *period, epoch uint64, reqs []*block.Request)) {
	p.inflight.Add(int64(len(held)))
	for len(held) > 0 {
		n := 1
		for n < len(held) && n < 256 && held[n].epoch == held[0].epoch {
			n++
		}
		reqs := make([]*block.Request, n)
		for i := range reqs {
			reqs[i] = held[i].r
		}
		run(p, held[0].epoch, reqs)
		held = held[n:]
	}
}

// drain waits until nothing of the past periods is in flight.
func (g *gate) drain(ctx context.Context) error {
	g.changing.Lock()
	wait := g.retired
	g.changing.Unlock()
	for _, p := range wait {
		select {
		case <-p.idle:
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
	g.changing.Lock()
	defer g.changing.Unlock()
	left := g.retired[:0:0]
	for _, p := range g.retired {
		select {
		case <-p.idle:
		default:
			left = append(left, p)
		}
	}
	g.retired = left
	return nil
}

// renew begins a new period of the same mode, so that drain also waits for those in the present one.
func (g *gate) renew() {
	g.changing.Lock()
	defer g.changing.Unlock()
	g.mu.Lock()
	old := g.current.Load()
	next := newPeriod(old.mode, old.waits)
	next.relay, next.moved = old.relay, old.moved
	g.current.Store(next)
	g.moved.Broadcast()
	g.mu.Unlock()
	old.retire()
	g.retired = append(g.retired, old)
}

// defaultSuccessor names who serves next, unless the node has already said it with an address.
func (v *Volume) defaultSuccessor(next record.EpochID) {
	v.gate.mu.Lock()
	defer v.gate.mu.Unlock()
	if s := v.gate.successor; s == nil || s.Epoch != next.Number || s.Node != next.Node {
		v.gate.successor = &block.MovedError{Node: next.Node, Volume: v.name, Epoch: next.Number}
	}
}
