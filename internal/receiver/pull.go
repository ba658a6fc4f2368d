package receiver

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"net"
	"sync"
	"time"

	"gantline/internal/record"
	"gantline/internal/wire"
)

// What a receiver that pulls asks for: so many ranges are under way at a time, each answered by one batch. Together they
// are what a sender that pushes keeps in flight.
const (
	askRecords = 512
	askBytes   = 1 << 20
	askAhead   = 32

	// missPause is the rest before the next ask where the source has said that it gives nothing until a resync.
	missPause = 250 * time.Millisecond
)

// asking is what a stream that pulls has asked for and not been answered. It is the reading goroutine's. A nil *asking
// is that of a stream that is pushed.
type asking struct{ open int }

// answered refuses an answer to what nobody has asked for.
func (a *asking) answered(n int) error {
	if a == nil {
		return nil
	}
	if n > a.open {
		return refuse(ReasonProtocol, "%d ranges were answered, %d had been asked for", n, a.open)
	}
	a.open -= n
	return nil
}

// ask keeps askAhead ranges under way. The cursor in them is where the stream goes on: what this side has durably and has
// applied is told by acknowledgements, and only that frees records at the source.
func (r *Receiver) ask(s *stream) error {
	switch a := s.asking; {
	case a == nil:
		return nil
	case a.open > askAhead/2:
		return nil
	}
	r.mu.Lock()
	from := max(r.stored, s.right.owed) + 1
	r.mu.Unlock()
	if from > record.MaxSeq {
		return nil
	}
	body := wire.EncodeRange(wire.Range{From: from, MaxRecords: askRecords, MaxBytes: askBytes})
	for ; s.asking.open < askAhead; s.asking.open++ {
		if err := s.conn.Queue(wire.TypeRange, body); err != nil {
			return err
		}
	}
	return s.conn.Flush()
}

// missed: the source has nothing to send (it is asked again at once, and keeps that for a while), or gives nothing until
// a resync begins.
func (r *Receiver) missed(ctx context.Context, s *stream, body []byte) error {
	m, err := wire.DecodeMiss(body)
	if err != nil {
		return refuse(ReasonProtocol, "%v", err)
	}
	if err := s.asking.answered(int(m.Ranges)); err != nil {
		return err
	}
	r.mu.Lock()
	switch r.lastHeard = time.Now(); m.Reason {
	case wire.MissTrimmed:
		s.missing = fmt.Sprintf("%s has freed the records from %d on: a resync must begin", s.peer, r.stored+1)
	case wire.MissSuspended:
		s.missing = fmt.Sprintf("%s has suspended the copying", s.peer)
	default:
		s.missing = ""
	}
	wait := s.missing != ""
	r.mu.Unlock()
	if wait {
		return r.pause(ctx, s, missPause)
	}
	return nil
}

// PullConfig wires a Puller; zero durations mean defaults.
type PullConfig struct {
	Receiver *Receiver
	Node     string     // the source, for people
	Hello    wire.Hello // role, name, instance, group; the puller adds purpose and parameters
	Dial     func(ctx context.Context) (net.Conn, error)
	Logger   *slog.Logger

	Retry        time.Duration // between attempts while the link is down, default 1 s; up to a fifth is added at random
	DialTimeout  time.Duration // default 1 s
	HelloTimeout time.Duration // default 1.5 s
}

// Puller asks one source for the records of a group's log (document Figs. 31, 32).
type Puller struct {
	cfg PullConfig

	mu      sync.Mutex
	blocked string
}

// NewPuller makes a puller. Run it once.
func NewPuller(cfg PullConfig) *Puller {
	for _, d := range []struct {
		d     *time.Duration
		value time.Duration
	}{{&cfg.Retry, time.Second}, {&cfg.DialTimeout, time.Second}, {&cfg.HelloTimeout, 1500 * time.Millisecond}} {
		if *d.d == 0 {
			*d.d = d.value
		}
	}
	if cfg.Logger == nil {
		cfg.Logger = slog.New(slog.DiscardHandler)
	}
	return &Puller{cfg: cfg}
}

// Run dials, asks and takes in until ctx ends. An attempt begins at the earliest Retry after the one before.
func (p *Puller) Run(ctx context.Context) {
	for ctx.Err() == nil {
		attempt := time.Now()
		err := p.once(ctx)
		if ctx.Err() != nil {
			return
		}
		p.note(err)
		// Not all secondaries of a site come at one moment when its link is back.
		rest := p.cfg.Retry + time.Duration(rand.Int64N(int64(p.cfg.Retry)/5+1)) - time.Since(attempt)
		if rest > 0 {
			select {
			case <-time.After(rest):
			case <-ctx.Done():
			}
		}
	}
}

// Blocked says why nothing is pulled; empty: the stream is open.
func (p *Puller) Blocked() string {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.blocked
}

func (p *Puller) note(err error) {
	why := ""
	if err != nil {
		why = fmt.Sprintf("pull from %s: %v", p.cfg.Node, err)
	}
	p.mu.Lock()
	was := p.blocked
	p.blocked = why
	p.mu.Unlock()
	if why != was {
		p.cfg.Logger.Info("pull", "group", p.cfg.Hello.Group, "source", p.cfg.Node, "cause", err)
	}
}

// once makes one connection and uses it until it ends.
func (p *Puller) once(ctx context.Context) error {
	h := p.cfg.Hello
	h.Purpose = wire.PurposeStream
	h, err := h.WithParams(wire.PullHello{Pull: true})
	if err != nil {
		return err
	}
	dialCtx, cancel := context.WithTimeout(ctx, p.cfg.DialTimeout)
	nc, err := p.cfg.Dial(dialCtx)
	cancel()
	if err != nil {
		return err
	}
	helloCtx, cancel := context.WithTimeout(ctx, p.cfg.HelloTimeout)
	defer cancel()
	conn, in, err := wire.Handshake(helloCtx, nc, h)
	if err != nil {
		return err
	}
	defer conn.Close()
	var shown wire.StreamHello
	if err := in.Decode(&shown); err != nil {
		return err
	}
	joinCtx, cancel := context.WithTimeout(ctx, p.cfg.DialTimeout+p.cfg.HelloTimeout)
	defer cancel()
	all, err := wire.DialBundle(joinCtx, conn, wire.Receiver, shown.BundleSpec, p.cfg.Hello, p.cfg.Dial)
	if err != nil {
		return err
	}
	defer all.Close()
	return p.cfg.Receiver.pull(ctx, all, p.cfg.Node, shown, func() { p.note(nil) })
}

// pull is Handle where this side has dialled: the source's hello came as the answer to this side's, and this side's
// answer to that goes in a frame of its own.
func (r *Receiver) pull(ctx context.Context, conn *wire.Bundle, peer string, h wire.StreamHello, open func()) error {
	s, ans, err := r.enter(conn, peer, h)
	if err != nil {
		conn.Refuse(err)
		return err
	}
	defer r.leave(s)
	body, err := json.Marshal(ans)
	if err != nil {
		return err
	}
	s.asking = &asking{}
	if err := conn.WriteFrame(wire.TypeControl, body); err != nil {
		return err
	}
	open()
	err = r.serve(ctx, s)
	var e *wire.Error
	if errors.As(err, &e) {
		return e
	}
	return err
}
