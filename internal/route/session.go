package route

import (
	"context"
	"crypto/rand"
	"encoding/binary"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"time"

	"gantline/internal/block"
	"gantline/internal/wire"
)

// Config of a Session.
type Config struct {
	Route    Route
	Size     int64 // bytes the host was told; a volume that is smaller is not used
	ReadOnly bool
	Hold     time.Duration // a request waits so long for a node before ErrHoldExpired; 0: for ever
	Self     wire.Hello    // who this process is

	// Ended, if not nil, is called once, without locks, when the session has ended by itself, before its requests are
	// answered: the host's connection is to be closed, nothing is replayed.
	Ended func(err error)

	// Moved, if not nil, is called without locks when nodes have taught the session another route or a higher epoch.
	// Calls may overlap and arrive out of order; the epoch tells.
	Moved func(r Route)
}

// window bounds the requests of a session without answer, and how far the oldest of them may lie behind the newest.
const window = 4096

// Session takes the requests of one host connection to the node that serves the volume. Submit is for one goroutine
// at a time; the other methods may be called concurrently.
type Session struct {
	cfg  Config
	id   uint64
	base time.Time
	work sync.WaitGroup
	wake chan struct{} // the loop looks again
	stop context.CancelFunc
	ctx  context.Context

	waiting atomic.Int32 // Submit waits for the window

	mu    sync.Mutex
	room  sync.Cond
	core  core
	links map[linkID]*link
	cur   *link // open for requests; nil: the gate is shut
	next  uint64
	floor uint64 // all numbers up to it are answered
	slots [window]slotted
	over  error

	// Numbers are sent in their order, so what has one up to sent was sent at some time.
	sent   uint64
	failed uint64 // all numbers up to it were sent when a switch failed them: none is sent again

	// What a host has been answered and not yet flushed: a node that comes back from a loss of power may lack it.
	written atomic.Uint64     // writes answered
	flushed uint64            // of them, those that an answered flush covers
	lives   map[string]string // of the nodes' volumes that this session has used

	used     bool          // a node has served this session, be it a lone volume, which has no epoch
	served   uint64        // highest epoch in which one has, 0: a lone volume
	told     Route         // what Moved's owner knows
	lastBoot time.Duration // of the loop's last tick
	todo     []func()      // done when the lock is free
}

// slotted is a request without answer, at its number modulo window. req becomes nil when it is answered, by whichever
// goroutine does that; the rest is under the lock.
type slotted struct {
	req  atomic.Pointer[block.Request]
	link linkID // 0: it waits for the gate
	at   time.Duration
	past uint64 // a flush: the writes answered before it came
}

// link is a connection to a node.
type link struct {
	s        *Session
	id       linkID
	route    Route
	cancel   context.CancelFunc
	client   *wire.IOClient // nil: being dialed
	dead     bool
	draining atomic.Bool
	epoch    atomic.Uint64 // highest its node has told
}

// NewSession begins a session; it connects when the first request comes. Close ends it.
func NewSession(cfg Config) *Session {
	var id [8]byte
	_, _ = rand.Read(id[:]) // never fails
	s := &Session{cfg: cfg, id: binary.LittleEndian.Uint64(id[:]) | 1, base: time.Now(), wake: make(chan struct{}, 1),
		links: map[linkID]*link{}, lives: map[string]string{}, lastBoot: bootTime()}
	s.core.route, s.told = cfg.Route, cfg.Route
	s.room.L = &s.mu
	s.ctx, s.stop = context.WithCancel(context.Background())
	s.work.Go(s.loop)
	return s
}

// Submit numbers the requests and sends them, or keeps them until a node can take them. It waits only while too many
// are without answer or too much is queued for the node.
func (s *Session) Submit(reqs []*block.Request) {
	for len(reqs) > 0 {
		n, client := s.submit(reqs)
		reqs = reqs[n:]
		if client != nil {
			client.WaitRoom()
		}
	}
}

func (s *Session) submit(reqs []*block.Request) (int, *wire.IOClient) {
	s.mu.Lock()
	defer s.unlock()
	n := s.waitWindow(len(reqs))
	if s.over != nil {
		for _, r := range reqs {
			s.later(r, s.over)
		}
		return len(reqs), nil
	}
	reqs = reqs[:n]
	now := s.now()
	var to linkID
	if s.cur != nil {
		to = s.cur.id
	}
	for _, r := range reqs {
		s.next++
		r.Session, r.Number, r.Floor = s.id, s.next, s.floor
		slot := s.slot(s.next)
		slot.link, slot.at = to, now
		if r.Op == block.OpFlush {
			slot.past = s.written.Load()
		}
		slot.req.Store(r)
	}
	if s.cur != nil {
		if s.cur.client.Send(reqs) == nil {
			s.sent = s.next
			return n, s.cur.client
		}
		for _, r := range reqs { // the link is lost, and lost will be told
			s.slot(r.Number).link = 0
		}
	}
	s.do(s.core.want(now))
	s.poke()
	return n, nil
}

// waitWindow waits until at least one of n requests fits and returns how many do.
func (s *Session) waitWindow(n int) int {
	for {
		s.waiting.Add(1)
		s.raiseFloor()
		free := window - int(s.next-s.floor)
		if free > 0 || s.over != nil {
			s.waiting.Add(-1)
			return min(n, free)
		}
		s.room.Wait()
		s.waiting.Add(-1)
	}
}

// raiseFloor counts the answered requests in front of the first that is not.
func (s *Session) raiseFloor() {
	for s.floor < s.next && s.slot(s.floor+1).req.Load() == nil {
		s.floor++
	}
}

// gone is the answer to a request that is not to be sent again; nil if it is.
func (s *Session) gone(r *block.Request) error {
	switch {
	case s.over != nil:
		return s.over
	case r.Number <= s.failed:
		return errSwitched
	}
	return nil
}

func (s *Session) slot(number uint64) *slotted { return &s.slots[number%window] }

// answer completes a request towards its host.
func (s *Session) answer(r *block.Request, err error) {
	s.slot(r.Number).req.Store(nil)
	// The order matters: waitWindow announces itself before it looks at the slots.
	if s.waiting.Load() > 0 {
		s.mu.Lock()
		s.room.Broadcast()
		s.mu.Unlock()
	}
	r.Finish(err)
}

// later completes a request when the lock is free; its slot is free at once.
func (s *Session) later(r *block.Request, err error) {
	if slot := s.slot(r.Number); slot.req.Load() == r {
		slot.req.Store(nil)
	}
	s.room.Broadcast()
	s.todo = append(s.todo, func() { r.Finish(err) })
}

// unlock frees the lock and does what had to wait for that.
func (s *Session) unlock() {
	todo := s.todo
	s.todo = nil
	s.mu.Unlock()
	for _, f := range todo {
		f()
	}
}

// done is told of every answer, on the reading goroutine of its link.
func (l *link) done(r *block.Request, epoch uint64, err error) {
	if epoch > l.epoch.Load() {
		l.s.learn(l, epoch)
	}
	if err == nil {
		l.s.note(r)
	}
	if err == nil || !l.s.divert(l, r, err) {
		l.s.answer(r, err)
	}
	if l.draining.Load() && l.client.InFlight() == 0 {
		l.settled()
	}
}

// settled: the node has answered all that this link was given.
func (l *link) settled() {
	l.s.mu.Lock()
	defer l.s.unlock()
	l.s.do(l.s.core.drained(l.id, l.s.now())) // changes nothing unless it is an old link
	l.s.settle()
}

// note counts what the host is about to be told.
func (s *Session) note(r *block.Request) {
	switch r.Op {
	case block.OpWrite, block.OpZero, block.OpTrim:
		if r.Flags&block.FlagFUA == 0 {
			s.written.Add(1)
		}
	case block.OpFlush:
		s.mu.Lock()
		s.flushed = max(s.flushed, s.slot(r.Number).past)
		s.mu.Unlock()
	}
}

// lostLife says that a node may lack writes which the host was told are done: it has had another life than when it was
// last used. Called under the lock, with what the node says of itself.
func (s *Session) lostLife(l *link, life string) bool {
	place := l.route.Node + "/" + l.route.Volume
	before := s.lives[place]
	s.lives[place] = life
	return before != "" && life != before && s.written.Load() > s.flushed
}

// divert keeps a request that was not executed and must be sent elsewhere, or again.
func (s *Session) divert(l *link, r *block.Request, err error) bool {
	var moved *block.MovedError
	isMoved := errors.As(err, &moved)
	ended := errors.Is(err, block.ErrSession)
	if !isMoved && !ended && !errors.Is(err, wire.ErrStale) && !errors.Is(err, block.ErrShutdown) {
		return false
	}
	s.mu.Lock()
	defer s.unlock()
	if err := s.gone(r); err != nil {
		s.later(r, err)
		if s.over != nil {
			return true
		}
	} else {
		s.slot(r.Number).link = 0
	}
	switch now := s.now(); {
	case ended:
		s.do(s.core.end(err))
	case isMoved:
		s.do(s.core.moved(l.id, moved, now))
	default:
		s.do(s.core.unavailable(l.id, now))
	}
	s.settle()
	return true
}

func (s *Session) learn(l *link, epoch uint64) {
	s.mu.Lock()
	defer s.unlock()
	l.epoch.Store(max(l.epoch.Load(), epoch))
	if s.core.learn(l.id, epoch) {
		l.client.SetEpoch(epoch)
	}
	s.settle()
}

// Switch gives the volume another route; requests in flight are treated by policy. It returns when new requests go to
// the new node, or wait for it. A route of an older epoch than a node has confirmed changes nothing.
func (s *Session) Switch(r Route, p Policy) {
	s.mu.Lock()
	defer s.unlock()
	s.do(s.core.switchTo(r, p, s.now()))
	if s.core.route == r {
		s.told = r
	}
	if s.cur != nil {
		s.cur.client.SetEpoch(s.core.route.Epoch)
	}
	s.settle()
}

// Status is a session as it stands.
type Status struct {
	Route    Route
	Open     bool // requests are sent at once
	Waiting  int  // requests that wait for a node
	InFlight int  // requests sent and not answered
}

// Status tells how the session stands.
func (s *Session) Status() Status {
	s.mu.Lock()
	defer s.mu.Unlock()
	st := Status{Route: s.core.route, Open: s.cur != nil}
	for n := s.floor + 1; n <= s.next; n++ {
		slot := s.slot(n)
		switch {
		case slot.req.Load() == nil:
		case slot.link == 0:
			st.Waiting++
		default:
			st.InFlight++
		}
	}
	return st
}

// ID is the session's identity towards nodes.
func (s *Session) ID() uint64 { return s.id }

// End ends the session as a node would: Ended is called and requests without answer get err.
func (s *Session) End(err error) {
	s.mu.Lock()
	defer s.unlock()
	s.do(s.core.end(fmt.Errorf("%w: %w", block.ErrSession, err)))
	s.settle()
}

// Close ends the session because its host is gone; requests without answer get ErrShutdown. It waits for everything
// the session has started.
func (s *Session) Close() {
	s.mu.Lock()
	s.cfg.Ended = nil
	s.do(s.core.end(block.ErrShutdown))
	s.settle()
	s.unlock()
	s.stop()
	s.work.Wait()
}
