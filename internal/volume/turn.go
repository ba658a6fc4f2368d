package volume

import (
	"context"

	"gantline/internal/record"
)

// turn is a sender's wait for records. While it lasts, whoever appends sends what it has appended by itself: no other goroutine
// need be woken for a few records that a host waits for.
type turn struct {
	after record.Seq
	send  func() (after record.Seq, more bool)
	lent  bool // somebody is in send
	over  bool // send has said that the one who waits is to look itself
	asked bool // while it was lent, something has happened that Wait may have to return for
}

// Wait returns once there is a record above `after` that may be sent, or Mark or Urgent may have risen; ErrSuspended if
// the subscriber is cut off. Until it returns, send may be called in place of that, on a goroutine that has appended records:
// one call at a time, none once Wait has returned. It must not wait for anything. It tells from where on records are to be
// waited for now; without more Wait returns. send may be nil.
func (s *Subscriber) Wait(ctx context.Context, after record.Seq, send func() (after record.Seq, more bool)) error {
	stop := context.AfterFunc(ctx, s.wake)
	defer stop()
	t := &turn{after: after, send: send}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.waits++; s.waits == 1 && send != nil {
		s.turn = t
	}
	defer func() {
		if s.waits--; s.turn == t {
			s.turn = nil
		}
	}()
	for {
		switch {
		case t.lent:
			t.asked = true
		case s.g.Err() != nil:
			return s.g.Err()
		case s.State() == SubSuspended:
			return ErrSuspended
		case s.Durable() > t.after || s.news || t.over:
			s.news = false
			return nil
		case ctx.Err() != nil:
			return context.Cause(ctx)
		}
		s.ready.Wait()
	}
}

// feed has what has been appended sent on this goroutine, if somebody waits for it and nothing else is the matter; else it
// wakes who waits. It is called without locks.
func (s *Subscriber) feed() {
	s.mu.Lock()
	defer s.mu.Unlock()
	t := s.turn
	switch {
	case t != nil && t.lent: // who sends looks again when it has
		return
	case t == nil || t.over || s.news || s.State() == SubSuspended || s.g.Err() != nil:
		s.ready.Broadcast()
		return
	}
	for range feedRounds {
		if s.Durable() <= t.after {
			break
		}
		t.lent = true
		s.mu.Unlock()
		after, more := t.send()
		s.mu.Lock()
		t.lent, t.after, t.over = false, after, !more
		if t.over {
			break
		}
	}
	if t.over || t.asked || s.news || s.Durable() > t.after {
		t.asked = false
		s.ready.Broadcast()
	}
}

// feedRounds bounds how often a goroutine sends what others have appended meanwhile.
const feedRounds = 4

// feedAhead has the subscribers who are sent records before they are durable sent what has just been appended.
func (g *Group) feedAhead() {
	for _, s := range *g.subs.Load() {
		if s.ahead.Load() {
			s.feed()
		}
	}
}

// wakeAhead is feedAhead for who holds the commit mutex: another goroutine sends.
func (g *Group) wakeAhead() {
	for _, s := range *g.subs.Load() {
		if s.ahead.Load() {
			s.wake()
		}
	}
}

// wake has those look who wait for the subscriber, whatever for.
func (s *Subscriber) wake() {
	s.mu.Lock()
	s.wakeLocked()
	s.mu.Unlock()
}

func (s *Subscriber) wakeLocked() {
	s.changed.Broadcast()
	s.ready.Broadcast()
}
