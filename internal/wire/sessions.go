package wire

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
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
// when it has been silent for too long. From then on its id is refused to whoever might replay a request that this
// node has seen: it may have been executed, and newer writes of others may stand where it would write again. A session
// that has nothing of the kind left may come back, as it does when its volume moves here again; one that says bye is
// forgotten, because everything it asked for has been answered.
type Sessions struct {
	limits SessionLimits
	ended  func(id uint64)

	mu    sync.Mutex
	live  map[uint64]*liveSession
	dead  map[uint64]uint64 // ended id → highest request number seen of it
	order []uint64          // of dead, oldest first from next on, a ring
	next  int
}

type liveSession struct {
	conn    *Conn     // nil: lost
	until   time.Time // conn is nil: when it ends
	highest *atomic.Uint64
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
	return &Sessions{limits: l, ended: ended, live: map[uint64]*liveSession{}, dead: map[uint64]uint64{}}
}

// Serve attaches the connection to its session, answers the hello and serves requests until the connection ends and
// they are completed.
func (s *Sessions) Serve(ctx context.Context, in *Incoming, p IOParams, answer IOAnswer, target block.Target, hooks IOHooks) error {
	highest := new(atomic.Uint64)
	if p.Session != 0 {
		var err error
		if highest, err = s.attach(p.Session, p.From, in.Conn); err != nil {
			return err
		}
	}
	err := in.Answer(answer)
	if err == nil {
		// A session that is lost lives on while its requests drain, so that it can come back meanwhile.
		stop := context.AfterFunc(connContext{in.Conn}, func() { s.detach(p.Session, in.Conn) })
		defer stop()
		err = serveIO(ctx, in.Conn, target, hooks, highest)
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

func (s *Sessions) attach(id, from uint64, c *Conn) (*atomic.Uint64, error) {
	s.expire(time.Now())
	s.mu.Lock()
	defer s.mu.Unlock()
	highest := new(atomic.Uint64)
	if seen, dead := s.dead[id]; dead {
		if from <= seen {
			return nil, fmt.Errorf("session %x: %w", id, block.ErrSession)
		}
		highest.Store(seen) // the id stays buried: if it ends again, bury only raises this
	}
	old := s.live[id]
	switch {
	case old == nil && len(s.live) >= s.limits.Live:
		return nil, &Error{Kind: KindUnavailable, Message: fmt.Sprintf("%d sessions are open, the most allowed", len(s.live))}
	case old != nil && old.conn != nil:
		// The peer knows that its old connection is gone before we do.
		old.conn.fail(errors.New("session continues on another connection"))
	}
	if old != nil {
		highest = old.highest
	}
	s.live[id] = &liveSession{conn: c, highest: highest}
	return highest, nil
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
			s.bury(id, l.highest.Load())
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
func (s *Sessions) bury(id, highest uint64) {
	if _, known := s.dead[id]; known {
		s.dead[id] = highest
		return
	}
	if len(s.order) < s.limits.Ended {
		s.order = append(s.order, id)
	} else {
		delete(s.dead, s.order[s.next])
		s.order[s.next] = id
		s.next = (s.next + 1) % len(s.order)
	}
	s.dead[id] = highest
}

// Live is the number of sessions that have not ended.
func (s *Sessions) Live() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return len(s.live)
}
