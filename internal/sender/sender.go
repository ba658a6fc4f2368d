package sender

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"log/slog"
	"math"
	"net"
	"sync"
	"time"

	"gantline/internal/record"
	"gantline/internal/wire"
)

var (
	// ErrTrimmed is wrapped by a Source whose log has freed what the subscriber needs next.
	ErrTrimmed = errors.New("records have been trimmed")
	// ErrSuspended is wrapped by a Source that is cut off from its log.
	ErrSuspended = errors.New("subscriber is suspended")
)

// Source is the log as one subscriber sees it.
type Source interface {
	// Table is the log's epoch table; its newest row is the epoch that the sender speaks for.
	Table() record.Table
	// Durable is how far records may be sent: those of an asynchronous group when they are durable, those of a
	// synchronous one (Config.Mark is then the durable mark) when they are in the log.
	Durable() record.Seq
	// Wait returns nil when Durable is above after, or when the mark or what is urgent may have risen; else an error, at
	// the latest when ctx ends. Until it returns it may call send instead of returning, from any goroutine, one call at a
	// time: send sends what there is, without waiting, and tells what Wait is to go on with as after. Without more it is to
	// return. None is under way when Wait returns. send may be nil.
	Wait(ctx context.Context, after record.Seq, send func() (after record.Seq, more bool)) error
	// Read returns consecutive records from sequence from on. The first may lie above from only if it is a begin; none
	// if that is not durable yet. ErrTrimmed and ErrSuspended (see Config.CutOff): a resync is needed.
	Read(from record.Seq, maxRecords, maxBytes int) ([]record.Record, error)
	// Acked is told what the receiver has, after each ack and each hello. A hello's cursors may be lower than before.
	Acked(stored, durable, applied record.Seq) error
}

// Config wires a Sender; zero limits and durations mean defaults.
type Config struct {
	Source Source
	Hello  wire.Hello // role, name, instance, group; the sender adds purpose and parameters
	Dial   func(ctx context.Context) (net.Conn, error)
	// Mark is how far the receiver may apply; nil: Source.Durable.
	Mark func() record.Seq
	// Urgent is how far hosts wait for the receiver to be durable; nil: nobody ever does.
	Urgent func() record.Seq
	// CutOff says of an error of Source that a resync is needed; nil: it is ErrTrimmed or ErrSuspended.
	CutOff func(err error) bool
	// Trimmed says of such an error that the log has freed what the receiver needs; nil: it is ErrTrimmed.
	Trimmed func(err error) bool
	// OnTrimmed is told when the receiver lacks the records from a sequence on and they have been freed; nil: nobody is.
	OnTrimmed func(from record.Seq)
	// Pull: the receiver dials and asks, Handle answers it. Not: the sender dials and pushes. SetPull changes it.
	Pull bool
	// Gather says when what waits is transferred; SetGather changes it.
	Gather Gather
	// Waiting is how many bytes of records lie above a sequence; nil: not counted, Gather.Bytes is reached at once.
	Waiting func(after record.Seq) int64
	// Hurry says that nothing may wait for Gather just now; nil: never. It is asked often, and must not wait.
	Hurry func() bool
	// Sent is told of bytes of frames put on the link. It is called from several goroutines.
	Sent func(bytes int64)
	// Pace holds back what is put on the link; nil: nothing does.
	Pace wire.Pacer
	// Compress is how batches are compressed from now on, if the receiver can read that; nil: not at all.
	Compress func() wire.Method
	// Connections is how many connections the next stream has, 1 to wire.MaxBundle; nil: one. See Renew.
	Connections func() int
	Logger      *slog.Logger

	BatchRecords  int           // default 512
	BatchBytes    int           // default 1 MiB
	WindowRecords int           // default 65536
	WindowBytes   int           // default 32 MiB
	Heartbeat     time.Duration // default 1 s
	Hold          time.Duration // how long a range that cannot be answered by records is kept, default 3 s
	Retry         time.Duration // between attempts while the link is down, default 1 s
	DialTimeout   time.Duration // default 1 s
	// HelloTimeout bounds the wait for the receiver's answer. It bounds also how long after a link's return a hello that
	// the link has swallowed keeps the next attempt waiting. Default 1.5 s.
	HelloTimeout time.Duration
}

func (c *Config) defaults() {
	set := func(p *int, v int) {
		if *p == 0 {
			*p = v
		}
	}
	wait := func(p *time.Duration, v time.Duration) {
		if *p == 0 {
			*p = v
		}
	}
	set(&c.BatchRecords, 512)
	set(&c.BatchBytes, 1<<20)
	set(&c.WindowRecords, 65536)
	set(&c.WindowBytes, 32<<20)
	wait(&c.Heartbeat, time.Second)
	wait(&c.Hold, 3*time.Second)
	wait(&c.Retry, time.Second)
	wait(&c.DialTimeout, time.Second)
	wait(&c.HelloTimeout, 1500*time.Millisecond)
	if c.Mark == nil {
		c.Mark = c.Source.Durable
	}
	if c.Urgent == nil {
		c.Urgent = func() record.Seq { return 0 }
	}
	if c.CutOff == nil {
		c.CutOff = func(err error) bool { return errors.Is(err, ErrTrimmed) || errors.Is(err, ErrSuspended) }
	}
	if c.Trimmed == nil {
		c.Trimmed = func(err error) bool { return errors.Is(err, ErrTrimmed) }
	}
	if c.OnTrimmed == nil {
		c.OnTrimmed = func(record.Seq) {}
	}
	if c.Waiting == nil {
		c.Waiting = func(record.Seq) int64 { return math.MaxInt64 }
	}
	if c.Hurry == nil {
		c.Hurry = func() bool { return false }
	}
	if c.Sent == nil {
		c.Sent = func(int64) {}
	}
	if c.Compress == nil {
		c.Compress = func() wire.Method { return wire.MethodNone }
	}
	if c.Connections == nil {
		c.Connections = func() int { return 1 }
	}
	if c.Logger == nil {
		c.Logger = slog.New(slog.DiscardHandler)
	}
}

// Sender sends one log to one subscriber. Run it once; the other methods may be called from any goroutine.
type Sender struct {
	cfg     Config
	wake    chan struct{} // an ack, a stop, or something that its owner has changed
	drained chan struct{}
	one     chan struct{} // held by the session that runs

	mu     sync.Mutex
	window Window
	status Status
	stopAt record.Seq   // 0: none
	ended  bool         // drained is closed
	conn   *wire.Bundle // of the open stream, nil: none
	gate   gate
	hurry  record.Seq // up to here nothing waits
	held   string     // what records wait for; empty: none wait

	pull     bool
	turned   chan struct{}   // closed and replaced when pull changes, or the number of connections
	turnedBy error           // the last time
	answered *answering      // who is being answered
	runs     context.Context // of Run; nil: it has not begun, or has ended
	handles  sync.WaitGroup  // calls of Handle while it runs
}

// New makes a sender.
func New(cfg Config) *Sender {
	cfg.defaults()
	s := &Sender{cfg: cfg, wake: make(chan struct{}, 1), drained: make(chan struct{}),
		one: make(chan struct{}, 1)}
	s.window.MaxRecords, s.window.MaxBytes = cfg.WindowRecords, cfg.WindowBytes
	s.status.State = StateDown
	s.gate.gather = cfg.Gather
	s.pull, s.turned = cfg.Pull, make(chan struct{})
	return s
}

// SetGather changes when what waits is transferred. What waits already is looked at anew.
func (s *Sender) SetGather(g Gather) {
	s.mu.Lock()
	s.gate.gather = g
	s.mu.Unlock()
	s.Wake()
}

// Hurry has all records up to upTo sent without waiting for more.
func (s *Sender) Hurry(upTo record.Seq) {
	s.mu.Lock()
	s.hurry = max(s.hurry, upTo)
	s.mu.Unlock()
	s.Wake()
}

// Run keeps the stream going until ctx ends: it dials and pushes, or lets Handle answer. It joins what Handle does.
func (s *Sender) Run(ctx context.Context) {
	s.mu.Lock()
	s.runs = ctx
	s.mu.Unlock()
	for ctx.Err() == nil {
		s.mu.Lock()
		pull, turned := s.pull, s.turned
		s.mu.Unlock()
		if pull {
			select {
			case <-turned:
			case <-ctx.Done():
			}
			continue
		}
		s.push(ctx, turned)
	}
	s.mu.Lock()
	s.runs = nil
	s.mu.Unlock()
	s.handles.Wait()
	s.down(nil, context.Cause(ctx))
}

var (
	// errTurned: the other end dials from now on, or this one.
	errTurned = errors.New("push and pull have been changed for each other")
	// errRenewed: the next stream has another number of connections.
	errRenewed = errors.New("the number of the link's connections has been changed")
)

func (s *Sender) whyTurned() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.turnedBy
}

// push dials again and again until ctx ends or turned is closed.
func (s *Sender) push(parent context.Context, turned <-chan struct{}) {
	ctx, cancel := context.WithCancelCause(parent)
	defer cancel(nil)
	var watch sync.WaitGroup
	defer watch.Wait()
	watch.Go(func() {
		select {
		case <-turned:
			cancel(s.whyTurned())
		case <-ctx.Done():
		}
	})
	defer cancel(nil)
	for ctx.Err() == nil {
		attempt := time.Now()
		s.once(ctx)
		if parent.Err() != nil {
			return
		}
		if rest := s.cfg.Retry - time.Since(attempt); rest > 0 {
			select {
			case <-time.After(rest):
			case <-ctx.Done():
			}
		}
	}
}

// once makes one connection and uses it until it ends.
func (s *Sender) once(ctx context.Context) {
	table := s.table()
	conn, ans, err := s.connect(ctx, table)
	if err != nil {
		s.down(nil, err)
		return
	}
	_ = s.stream(ctx, &session{s: s, conn: conn, table: table, lastRow: len(table) - 1}, ans)
}

// stream runs a session whose hello is over, once the one before has ended: they share window and gate.
func (s *Sender) stream(ctx context.Context, st *session, ans wire.StreamAnswer) (err error) {
	st.methods = map[wire.Method]bool{}
	for _, name := range ans.Compress {
		st.methods[wire.MethodOf(name)] = true
	}
	defer st.count()
	defer st.conn.Close()
	select {
	case s.one <- struct{}{}:
		defer func() { <-s.one }()
	case <-ctx.Done():
		return context.Cause(ctx)
	}
	s.open(st.conn)
	defer func() {
		s.down(st.conn, err) // before the next may open: what it says of itself stays
		s.open(nil)
	}()
	if err := st.start(ans); err != nil {
		return err
	}
	return st.run(ctx)
}

func (s *Sender) open(conn *wire.Bundle) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.conn = conn
}

// table is the one to be shown: a log that ends is shown with its end, so that a receiver that has gone on to the next
// epoch still hears that nothing more can come.
func (s *Sender) table() record.Table {
	table := s.cfg.Source.Table()
	s.mu.Lock()
	defer s.mu.Unlock()
	if row, ok := table.Current(); ok && s.stopAt != 0 && !row.Closed && row.First <= s.stopAt+1 {
		return table.Close(s.stopAt)
	}
	return table
}

func (s *Sender) connect(ctx context.Context, table record.Table) (*wire.Bundle, wire.StreamAnswer, error) {
	row, ok := table.Current()
	if !ok {
		return nil, wire.StreamAnswer{}, errors.New("the log has no epoch yet")
	}
	h := s.cfg.Hello
	h.Purpose = wire.PurposeStream
	spec := s.bundle()
	h, err := h.WithParams(wire.StreamHello{Epoch: row.ID(), Table: table, Compress: wire.Methods(), BundleSpec: spec})
	if err != nil {
		return nil, wire.StreamAnswer{}, err
	}
	s.mu.Lock()
	s.status.Attempts++
	s.mu.Unlock()
	dialCtx, cancel := context.WithTimeout(ctx, s.cfg.DialTimeout)
	nc, err := s.cfg.Dial(dialCtx)
	cancel()
	if err != nil {
		return nil, wire.StreamAnswer{}, fmt.Errorf("link down: %w", err)
	}
	helloCtx, cancel := context.WithTimeout(ctx, s.cfg.HelloTimeout)
	defer cancel()
	conn, in, err := wire.Handshake(helloCtx, nc, h)
	if err != nil {
		return nil, wire.StreamAnswer{}, refusalOf(err)
	}
	var a wire.StreamAnswer
	if err = in.Decode(&a); err == nil {
		err = a.Check()
	}
	var all *wire.Bundle
	if err == nil {
		joinCtx, cancel := context.WithTimeout(ctx, s.cfg.DialTimeout+s.cfg.HelloTimeout)
		defer cancel()
		if all, err = wire.DialBundle(joinCtx, conn, wire.Source, spec, s.cfg.Hello, s.cfg.Dial); err != nil {
			err = fmt.Errorf("link down: %w", err)
		}
	}
	if err != nil {
		conn.Close()
		return nil, wire.StreamAnswer{}, err
	}
	if s.cfg.Pace != nil {
		all.Pace(s.cfg.Pace)
	}
	return all, a, nil
}

// bundle names the connections of a stream that is about to begin.
func (s *Sender) bundle() wire.BundleSpec {
	if n := s.cfg.Connections(); n > 1 {
		return wire.BundleSpec{Connections: n, Session: rand.Text()}
	}
	return wire.BundleSpec{}
}

// StopAt says that the log ends at last: nothing above it is sent, and Drained is closed when the receiver has
// everything up to it durable.
func (s *Sender) StopAt(last record.Seq) {
	s.mu.Lock()
	s.stopAt = last
	s.drain()
	s.mu.Unlock()
	s.Wake()
}

// Drained is closed when a receiver has everything up to StopAt durable.
func (s *Sender) Drained() <-chan struct{} { return s.drained }

// Wake has the sender look at its source again: a resync has begun.
func (s *Sender) Wake() {
	select {
	case s.wake <- struct{}{}:
	default:
	}
}

// drain is called under mu.
func (s *Sender) drain() {
	if s.stopAt != 0 && !s.ended && s.window.Has().Durable >= s.stopAt {
		s.ended = true
		close(s.drained)
	}
}

// acked notes an ack and tells the source.
func (s *Sender) acked(a wire.Ack) error {
	s.mu.Lock()
	err := s.window.Acked(a, s.cfg.Source.Durable())
	s.status.LastHeard = time.Now()
	s.drain()
	s.mu.Unlock()
	if err != nil {
		return err
	}
	s.Wake()
	return s.tell(a)
}

// tell tells the source. One that is cut off has no use for it, but the connection stays.
func (s *Sender) tell(a wire.Ack) error {
	if err := s.cfg.Source.Acked(a.Stored, a.Durable, a.Applied); err != nil && !s.cfg.CutOff(err) {
		return fmt.Errorf("note what the receiver has: %w", err)
	}
	return nil
}
