package wire

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"gantline/internal/block"
)

// SessionLimits bound a registry; zero values mean the defaults named.
type SessionLimits struct {
	Silence time.Duration // a session ends when it has been silent for so long; 5 s
	Live    int           // sessions at a time; 4096
	Ended   int           // ended ids remembered, oldest forgotten first; 65536
}

// Sessions knows which io sessions live and which have ended. A session survives the loss of its connection; it ends
// when it has been silent for too long, and then its id is refused for good, because its requests in flight may have
// been executed after the gateway was told otherwise. A session that says bye is forgotten instead: everything it
// asked for has been answered, and it may come back, as it does when its volume moves here again.
type Sessions struct {
	limits SessionLimits
	ended  func(id uint64)

	mu    sync.Mutex
	live  map[uint64]*liveSession
	dead  map[uint64]struct{}
	order []uint64 // of dead, oldest first from next on, a ring
	next  int
}

type liveSession struct {
	conn  *Conn     // nil: lost
	until time.Time // conn is nil: when it ends
}

// NewSessions makes a registry. ended, if not nil, is called without locks when a session has ended.
func NewSessions(l SessionLimits, ended func(id uint64)) *Sessions {
	if l.Silence == 0 {
		l.Silence = defaultTiming.silent
	}
	if l.Live == 0 {
		l.Live = 4096
	}
	if l.Ended == 0 {
		l.Ended = 65536
	}
	return &Sessions{limits: l, ended: ended, live: map[uint64]*liveSession{}, dead: map[uint64]struct{}{}}
}

// Serve attaches the connection to its session, answers the hello and serves requests until the connection ends and
// they are completed.
func (s *Sessions) Serve(ctx context.Context, in *Incoming, p IOParams, answer IOAnswer, target block.Target, hooks IOHooks) error {
	if p.Session != 0 {
		if err := s.attach(p.Session, in.Conn); err != nil {
			return err
		}
	}
	err := in.Answer(answer)
	if err == nil {
		// A session that is lost lives on while its requests drain, so that it can come back meanwhile.
		stop := context.AfterFunc(connContext{in.Conn}, func() { s.detach(p.Session, in.Conn) })
		defer stop()
		err = ServeIO(ctx, in.Conn, target, hooks)
	}
	s.detach(p.Session, in.Conn)
	return err
}

// connContext is a connection's life as a context.
type connContext struct{ c *Conn }

func (c connContext) Deadline() (time.Time, bool) { return time.Time{}, false }
func (c connContext) Done() <-chan struct{}       { return c.c.Done() }
func (c connContext) Err() error {
	if c.c.Err() != nil {
		return context.Canceled
	}
	return nil
}
func (c connContext) Value(any) any { return nil }

func (s *Sessions) attach(id uint64, c *Conn) error {
	s.expire(time.Now())
	s.mu.Lock()
	defer s.mu.Unlock()
	if _, dead := s.dead[id]; dead {
		return fmt.Errorf("session %x: %w", id, block.ErrSession)
	}
	old := s.live[id]
	switch {
	case old == nil && len(s.live) >= s.limits.Live:
		return &Error{Kind: KindUnavailable, Message: fmt.Sprintf("%d sessions are open, the most allowed", len(s.live))}
	case old != nil && old.conn != nil:
		// The peer knows that its old connection is gone before we do.
		old.conn.fail(errors.New("session continues on another connection"))
	}
	s.live[id] = &liveSession{conn: c}
	return nil
}

func (s *Sessions) detach(id uint64, c *Conn) {
	s.mu.Lock()
	defer s.mu.Unlock()
	l := s.live[id]
	if l == nil || l.conn != c {
		return
	}
	if errors.Is(c.Err(), ErrBye) {
		delete(s.live, id)
		return
	}
	l.conn, l.until = nil, c.LastHeard().Add(s.limits.Silence)
}

// Run ends sessions when their time has come, until ctx does.
func (s *Sessions) Run(ctx context.Context) error {
	ticker := time.NewTicker(max(s.limits.Silence/20, time.Millisecond))
	defer ticker.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case now := <-ticker.C:
			s.expire(now)
		}
	}
}

func (s *Sessions) expire(now time.Time) {
	var gone []uint64
	s.mu.Lock()
	for id, l := range s.live {
		if l.conn == nil && now.After(l.until) {
			delete(s.live, id)
			s.bury(id)
			gone = append(gone, id)
		}
	}
	s.mu.Unlock()
	if s.ended != nil {
		for _, id := range gone {
			s.ended(id)
		}
	}
}

// bury remembers an ended id in place of the oldest. Needs the lock.
func (s *Sessions) bury(id uint64) {
	if len(s.order) < s.limits.Ended {
		s.order = append(s.order, id)
	} else {
		delete(s.dead, s.order[s.next])
		s.order[s.next] = id
		s.next = (s.next + 1) % len(s.order)
	}
	s.dead[id] = struct{}{}
}

// Live is the number of sessions that have not ended.
func (s *Sessions) Live() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return len(s.live)
}
