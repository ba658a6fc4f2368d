package sender

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"sync"
	"time"

	"gantline/internal/wire"
)

// maxAsks bounds the ranges that a receiver may have unanswered on a connection.
const maxAsks = 256

// asks are the ranges that a receiver has asked for and that are not answered, oldest first. A nil *asks is that of a
// push: everything is asked for.
type asks struct {
	mu   sync.Mutex
	list []ask
}

type ask struct {
	wire.Range
	at time.Time
}

// first is the oldest; false: nothing is asked for.
func (a *asks) first() (wire.Range, bool) {
	if a == nil {
		return wire.Range{}, true
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	if len(a.list) == 0 {
		return wire.Range{}, false
	}
	return a.list[0].Range, true
}

// answered takes the oldest off.
func (a *asks) answered() {
	if a == nil {
		return
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	a.list = a.list[1:]
}

// take removes all that came before then and says how many they were.
func (a *asks) take(then time.Time) int {
	if a == nil {
		return 0
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	n := 0
	for n < len(a.list) && !a.list[n].at.After(then) {
		n++
	}
	a.list = a.list[n:]
	return n
}

func (a *asks) add(r wire.Range) error {
	a.mu.Lock()
	defer a.mu.Unlock()
	if len(a.list) >= maxAsks {
		return fmt.Errorf("%w: more than %d ranges asked for and not answered", wire.ErrFrame, maxAsks)
	}
	a.list = append(a.list, ask{r, time.Now()})
	return nil
}

// asked notes a range, on the goroutine that reads.
func (t *session) asked(body []byte) error {
	if t.asks == nil {
		return fmt.Errorf("%w: range in a stream that is pushed", wire.ErrFrame)
	}
	r, err := wire.DecodeRange(body)
	if err == nil {
		err = t.asks.add(r)
	}
	if err == nil {
		t.s.Wake()
	}
	return err
}

// expire answers ranges that have waited for Hold: not stored (document Fig. 32, S3201 to S3203).
func (t *session) expire() error {
	return t.missed(wire.MissNotStored, t.asks.take(time.Now().Add(-t.s.cfg.Hold)))
}

// miss answers all ranges at once.
func (t *session) miss(reason wire.MissReason) error {
	return t.missed(reason, t.asks.take(time.Now()))
}

func (t *session) missed(reason wire.MissReason, n int) error {
	if n == 0 {
		return nil
	}
	m := wire.Miss{Reason: reason, Ranges: uint32(n), Durable: t.s.cfg.Source.Durable()}
	return t.conn.WriteFrame(wire.TypeMiss, wire.EncodeMiss(m))
}

// SetPull changes who dials and who says when records travel. A stream that is open ends.
func (s *Sender) SetPull(pull bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.pull == pull {
		return
	}
	s.pull = pull
	s.turn(errTurned)
}

// Renew ends the stream that is open and has the next one begin at once, or when the receiver dials again: the number of
// its connections has changed.
func (s *Sender) Renew() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.turn(errRenewed)
}

// turn is called under mu.
func (s *Sender) turn(why error) {
	s.turnedBy = why
	close(s.turned)
	s.turned = make(chan struct{})
	if s.answered != nil {
		s.answered.cancel(why)
	}
}

// answering is one call of Handle that has been let in.
type answering struct {
	cancel context.CancelCauseFunc
	done   chan struct{}
}

var (
	errReplaced = errors.New("the receiver has dialled again")
	errNotPull  = &wire.Error{Kind: wire.KindUnavailable, Message: "records are pushed here, nobody may ask for them: the other " +
		"side will hear of it, or this one has not heard of pull yet"}
	errNotRunning = &wire.Error{Kind: wire.KindUnavailable, Message: "the log is not being sent just now"}
)

// Handle answers a receiver that pulls (document Figs. 31, 32) until its connection, ctx or Run ends. One at a time is
// answered: a newer connection ends the one before. An error before the hello was answered is the refusal to be sent.
func (s *Sender) Handle(ctx context.Context, in *wire.Incoming) error {
	ctx, leave, err := s.enter(ctx)
	if err != nil {
		return err
	}
	defer leave()
	st, ans, err := s.answer(ctx, in)
	if err == nil {
		return s.stream(ctx, st, ans)
	}
	if cause := context.Cause(ctx); cause != nil {
		err = cause
	}
	s.down(nil, err)
	return err
}

// enter waits until nobody else is answered.
func (s *Sender) enter(parent context.Context) (context.Context, func(), error) {
	ctx, cancel := context.WithCancelCause(parent)
	me := &answering{cancel: cancel, done: make(chan struct{})}
	s.mu.Lock()
	defer s.mu.Unlock()
	switch {
	case s.runs == nil || s.runs.Err() != nil:
		cancel(nil)
		return nil, nil, errNotRunning
	case !s.pull:
		cancel(nil)
		return nil, nil, errNotPull
	}
	runs, before := s.runs, s.answered
	s.handles.Add(1)
	s.answered = me
	s.status.Attempts++
	stop := context.AfterFunc(runs, func() { cancel(context.Cause(runs)) })
	if before != nil {
		before.cancel(errReplaced)
		s.mu.Unlock()
		<-before.done
		s.mu.Lock()
	}
	return ctx, func() {
		stop()
		cancel(nil)
		s.mu.Lock()
		if s.answered == me {
			s.answered = nil
		}
		s.mu.Unlock()
		close(me.done)
		s.handles.Done()
	}, nil
}

// answer shows the log's table and hears what the receiver has. The hello of a push and its answer travel here the other
// way: this side's parameters answer the receiver's hello, the receiver's come in a frame of their own.
func (s *Sender) answer(ctx context.Context, in *wire.Incoming) (st *session, a wire.StreamAnswer, err error) {
	table := s.table()
	row, ok := table.Current()
	if !ok {
		return nil, a, &wire.Error{Kind: wire.KindUnavailable, Message: "the log has no epoch yet"}
	}
	spec := s.bundle()
	conn, err := in.Bundle(wire.Source, spec)
	if err != nil {
		return nil, a, err
	}
	if err := conn.Expect(); err != nil {
		return nil, a, err
	}
	defer func() {
		if err != nil {
			conn.Close()
		}
	}()
	if err := in.Answer(wire.StreamHello{Epoch: row.ID(), Table: table, Compress: wire.Methods(), BundleSpec: spec}); err != nil {
		return nil, a, err
	}
	stop := context.AfterFunc(ctx, func() { conn.Abort(context.Cause(ctx)) })
	patience := s.cfg.HelloTimeout
	if spec.Connections > 1 { // before it says what it has, it dials the others and shakes hands on each
		patience += s.cfg.DialTimeout + s.cfg.HelloTimeout
	}
	timer := time.AfterFunc(patience, func() { conn.Abort(fmt.Errorf("%w: the receiver does not say what it has", wire.ErrSilent)) })
	defer stop()
	defer timer.Stop()
	kind, body, err := conn.ReadFrame()
	switch {
	case err != nil:
		return nil, a, err
	case kind == wire.TypeError:
		e := &wire.Error{Kind: wire.KindInternal, Message: "the receiver has refused the stream"}
		_ = json.Unmarshal(body, e)
		return nil, a, refusalOf(e)
	case kind != wire.TypeControl:
		return nil, a, fmt.Errorf("%w: %v frame where the receiver says what it has", wire.ErrFrame, kind)
	}
	if err := json.Unmarshal(body, &a); err != nil {
		return nil, a, fmt.Errorf("%w: what the receiver has: %v", wire.ErrFrame, err)
	}
	if err := a.Check(); err != nil {
		return nil, a, err
	}
	if err := conn.Await(); err != nil {
		return nil, a, err
	}
	if s.cfg.Pace != nil {
		conn.Pace(s.cfg.Pace)
	}
	return &session{s: s, conn: conn, table: table, lastRow: len(table) - 1, asks: &asks{}}, a, nil
}
