package route

import (
	"context"
	"fmt"
	"time"

	"golang.org/x/sys/unix"

	"gantline/internal/block"
	"gantline/internal/wire"
)

const (
	dialTimeout = 2 * time.Second
	holdCheck   = 20 * time.Millisecond // how exactly hold times are kept
)

// bootTime runs on while the machine sleeps, unlike Go's clock.
func bootTime() time.Duration {
	var ts unix.Timespec
	if unix.ClockGettime(unix.CLOCK_BOOTTIME, &ts) != nil {
		return 0
	}
	return time.Duration(ts.Nano())
}

func (s *Session) now() time.Duration { return time.Since(s.base) }

// loop ticks the core and expires requests that have waited for too long.
func (s *Session) loop() {
	timer := time.NewTimer(time.Second)
	defer timer.Stop()
	for {
		select {
		case <-s.ctx.Done():
			return
		case <-s.wake:
		case <-timer.C:
		}
		boot := bootTime()
		s.mu.Lock()
		s.do(s.core.tick(s.now(), boot-s.lastBoot))
		s.lastBoot = boot
		waits := s.expire()
		s.settle()
		select {
		case <-s.wake: // settle's own: what it asks to be looked at is looked at below
		default:
		}
		next := s.core.nextTick(s.now())
		s.unlock()
		if waits {
			next = min(next, holdCheck)
		}
		timer.Reset(next)
	}
}

// poke makes the loop look at once: there is something new to wait for.
func (s *Session) poke() {
	select {
	case s.wake <- struct{}{}:
	default:
	}
}

// expire answers what has waited for a node for longer than the hold time; it reports whether anything still waits.
func (s *Session) expire() bool {
	if s.cfg.Hold == 0 {
		return false
	}
	waits, now := false, s.now()
	for n := s.floor + 1; n <= s.next; n++ {
		slot := s.slot(n)
		r := slot.req.Load()
		if r == nil || slot.link != 0 {
			continue
		}
		if now-slot.at < s.cfg.Hold {
			waits = true
			continue
		}
		s.later(r, fmt.Errorf("%w (%v): node %s at %s", block.ErrHoldExpired, s.cfg.Hold, s.core.route.Node, s.core.route.Address))
	}
	return waits
}

// settle brings the gate into agreement with the core and, if it is open, sends what waits, in order.
func (s *Session) settle() {
	if r := s.core.route; r != s.told && s.cfg.Moved != nil {
		s.told = r
		s.todo = append(s.todo, func() { s.cfg.Moved(r) })
	}
	s.cur = nil
	if s.core.open() {
		s.cur = s.links[s.core.cur]
	}
	if s.cur == nil {
		s.poke()
		return
	}
	var batch []*block.Request
	s.raiseFloor()
	for n := s.floor + 1; n <= s.next; n++ {
		slot := s.slot(n)
		if r := slot.req.Load(); r != nil && slot.link == 0 {
			slot.link = s.cur.id
			r.Floor = s.floor // what has failed while it waited is executed behind it no more
			batch = append(batch, r)
		}
	}
	if len(batch) == 0 {
		return
	}
	if s.cur.client.Send(batch) != nil {
		for _, r := range batch {
			s.slot(r.Number).link = 0
		}
		s.cur = nil // lost will be told
		return
	}
	s.sent = max(s.sent, batch[len(batch)-1].Number)
}

// do carries out what the core has decided. Under the lock; what could block goes elsewhere.
func (s *Session) do(acts []action) {
	for _, a := range acts {
		l := s.links[a.link]
		switch a.kind {
		case doDial:
			s.dial(a.link)
		case doDrop:
			s.drop(l)
		case doFail:
			s.failSent()
		case doDrain:
			l.draining.Store(true)
			if l.client.InFlight() == 0 {
				s.do(s.core.drained(l.id, s.now()))
			}
		case doEnd:
			s.end(a.err)
		}
	}
}

var errSwitched = fmt.Errorf("%w: the path was switched while the request was in flight", block.ErrIO)

// failSent answers everything that was ever sent with an error. What was not sent yet has higher numbers, and stays.
func (s *Session) failSent() {
	s.failed = s.sent
	for _, l := range s.links {
		if l.client == nil {
			continue
		}
		for _, r := range l.client.Abandon() {
			s.later(r, errSwitched)
		}
	}
	for n := s.floor + 1; n <= s.sent; n++ {
		if slot := s.slot(n); slot.link == 0 {
			if r := slot.req.Load(); r != nil {
				s.later(r, errSwitched)
			}
		}
	}
}

func (s *Session) dial(id linkID) {
	ctx, cancel := context.WithTimeout(s.ctx, dialTimeout)
	l := &link{s: s, id: id, route: s.core.route, cancel: cancel}
	s.links[id] = l
	from := s.floor + 1
	for from <= s.next && s.slot(from).req.Load() == nil {
		from++
	}
	s.work.Go(func() {
		defer cancel()
		client, err := wire.DialIO(ctx, l.route.Address, s.cfg.Self,
			wire.IOParams{Volume: l.route.Volume, Group: l.route.Group, Session: s.id, From: from, Epoch: l.route.Epoch,
				ReadOnly: s.cfg.ReadOnly},
			wire.IOClientHooks{Done: l.done, Lost: l.lost, Settled: l.settled})
		s.dialed(l, client, err)
	})
}

func (s *Session) dialed(l *link, client *wire.IOClient, err error) {
	s.mu.Lock()
	defer s.unlock()
	if s.links[l.id] != l { // dropped meanwhile
		if client != nil {
			s.work.Go(client.Bye)
		}
		return
	}
	if pause := bootTime() - s.lastBoot; pause > sleptAfter { // we woke up and the loop has not noticed yet
		s.do(s.core.tick(s.now(), pause))
		if client != nil {
			s.work.Go(client.Bye)
		}
		return
	}
	if err == nil && client.Answer().Size < s.cfg.Size {
		err = fmt.Errorf("volume %s at node %s has %d bytes, the host was told %d", l.route.Volume, l.route.Node,
			client.Answer().Size, s.cfg.Size)
	}
	if err == nil && l.dead {
		err = client.Conn().Err()
	}
	if err != nil {
		delete(s.links, l.id)
		if client != nil {
			s.work.Go(client.Bye)
		}
		if wire.KindOf(err) == wire.KindSession {
			s.do(s.core.end(fmt.Errorf("%w: %w", block.ErrSession, err)))
		} else {
			s.do(s.core.failed(l.id, wire.AsMoved(err), s.now()))
		}
		s.settle()
		return
	}
	if s.lostLife(l, client.Answer().Life) {
		// A disk that has lost its cache goes away under its host: so does this one, and a later flush cannot say that
		// all is well.
		delete(s.links, l.id)
		s.work.Go(client.Bye)
		s.do(s.core.end(fmt.Errorf("%w: node %s has come back without writes that were not flushed", block.ErrSession, l.route.Node)))
		s.settle()
		return
	}
	if taken := client.Answer().Taken; s.used && s.served < taken {
		delete(s.links, l.id)
		s.work.Go(client.Bye)
		s.do(s.core.end(fmt.Errorf("%w: node %s was promoted in epoch %d, and what the host was told in epoch %d may not be there",
			block.ErrSession, l.route.Node, taken, s.served)))
		s.settle()
		return
	}
	s.used, s.served = true, max(s.served, client.Answer().Epoch, client.Answer().Taken)
	l.client = client
	l.epoch.Store(client.Answer().Epoch)
	s.do(s.core.connected(l.id, client.Answer().Epoch, s.now()))
	if s.core.cur == l.id {
		client.SetEpoch(s.core.route.Epoch)
	}
	s.settle()
}

// lost is told once when a link has ended, with its requests without answer.
func (l *link) lost(reqs []*block.Request, _ error) {
	s := l.s
	s.mu.Lock()
	defer s.unlock()
	l.dead = true
	for _, r := range reqs {
		if err := s.gone(r); err != nil {
			s.later(r, err)
			continue
		}
		s.slot(r.Number).link = 0
	}
	if l.client == nil || s.links[l.id] == nil {
		return // dialed will see it, or it was dropped
	}
	s.do(s.core.lost(l.id, s.now()))
	s.drop(s.links[l.id])
	s.settle()
}

// drop ends a link and what it has started. A link that is still being dialed is told off.
func (s *Session) drop(l *link) {
	if l == nil {
		return
	}
	delete(s.links, l.id)
	l.cancel()
	if l.client != nil {
		s.work.Go(l.client.Bye)
	}
}

// end answers everything, once the host's connection has been closed, and drops all links.
func (s *Session) end(err error) {
	s.over = err
	if s.cfg.Ended != nil {
		ended := s.cfg.Ended
		s.todo = append(s.todo, func() { ended(err) })
	}
	for _, l := range s.links {
		if l.client != nil {
			for _, r := range l.client.Abandon() {
				s.later(r, err)
			}
		}
		s.drop(l)
	}
	for n := s.floor + 1; n <= s.next; n++ {
		if slot := s.slot(n); slot.link == 0 {
			if r := slot.req.Load(); r != nil {
				s.later(r, err)
			}
		}
	}
	s.room.Broadcast()
}
