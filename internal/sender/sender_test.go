package sender

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"net"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"gantline/internal/record"
	"gantline/internal/wire"

	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// steady is a log of empty records 1..durable in one row.
type steady struct {
	mu      sync.Mutex
	table   record.Table
	durable record.Seq
	acked   wire.Ack
	inc     record.Incarnation
}

func newSteady(durable record.Seq) *steady {
	return &steady{durable: durable, inc: 1, table: record.Table{{Epoch: 1, Incarnation: 1, Node: "a", First: 1}}}
}

func (l *steady) Table() record.Table {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.table.Clone()
}

func (l *steady) Durable() record.Seq {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.durable
}

func (l *steady) Wait(ctx context.Context, after record.Seq, _ func() (record.Seq, bool)) error {
	if l.Durable() > after {
		return nil
	}
	<-ctx.Done()
	return ctx.Err()
}

func (l *steady) Read(from record.Seq, maxRecords, _ int) ([]record.Record, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	var recs []record.Record
	for seq := from; seq <= l.durable+5 && len(recs) < maxRecords; seq++ { // more than may be sent: it lies in memory
		row, _ := l.table.At(seq)
		recs = append(recs, record.Record{Seq: seq, Epoch: 1, Incarnation: row.Incarnation, Op: record.OpTrim, Length: 512})
	}
	return recs, nil
}

func (l *steady) Acked(stored, durable, applied record.Seq) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.acked = wire.Ack{Stored: stored, Durable: durable, Applied: applied}
	return nil
}

// peer is a receiver played by hand: serve is given each connection after its hello.
func peer(t *testing.T, answer func(h wire.StreamHello) (any, error), serve func(c *wire.Conn)) (dial func(context.Context) (net.Conn, error)) {
	ctx, cancel := context.WithCancel(context.Background())
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	srv := wire.NewServer(wire.Handlers{Stream: func(_ context.Context, in *wire.Incoming) error {
		var h wire.StreamHello
		if err := in.Peer.Decode(&h); err != nil {
			return err
		}
		a, err := answer(h)
		if err != nil {
			return err
		}
		if err := in.Answer(a); err != nil {
			return err
		}
		serve(in.Conn)
		return nil
	}}, wire.Limits{})
	var wg sync.WaitGroup
	wg.Go(func() { _ = srv.Serve(ctx, l) })
	t.Cleanup(func() { cancel(); wg.Wait() })
	return func(ctx context.Context) (net.Conn, error) {
		var d net.Dialer
		return d.DialContext(ctx, "tcp", l.Addr().String())
	}
}

func run(t *testing.T, cfg Config) *Sender {
	s := New(cfg)
	ctx, cancel := context.WithCancel(context.Background())
	var wg sync.WaitGroup
	wg.Go(func() { s.Run(ctx) })
	t.Cleanup(func() { cancel(); wg.Wait() })
	return s
}

func eventually(t *testing.T, what string, ok func() bool) {
	t.Helper()
	for deadline := time.Now().Add(10 * time.Second); !ok(); time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("never: %s", what)
		}
	}
}

func fresh(wire.StreamHello) (any, error) { return wire.StreamAnswer{}, nil }

// drain reads until the connection ends and returns the highest sequence and mark.
func drain(c *wire.Conn, each func(kind wire.Type, last, mark record.Seq)) {
	for {
		kind, body, err := c.ReadFrame()
		if err != nil {
			return
		}
		switch kind {
		case wire.TypeBatch:
			b, err := wire.DecodeBatch(body)
			if err != nil {
				return
			}
			each(kind, b.Records[len(b.Records)-1].Seq, b.Mark)
		case wire.TypeHeartbeat:
			h, _ := wire.DecodeHeartbeat(body)
			each(kind, 0, h.Mark)
		}
	}
}

// TestNeverAboveDurable: records that the log returns beyond its durable mark stay here; heartbeats carry the mark.
func TestNeverAboveDurable(t *testing.T) {
	log := newSteady(100)
	var mu sync.Mutex
	var last, mark record.Seq
	beats := 0
	dial := peer(t, fresh, func(c *wire.Conn) {
		drain(c, func(kind wire.Type, l, m record.Seq) {
			mu.Lock()
			defer mu.Unlock()
			last, mark = max(last, l), max(mark, m)
			if kind == wire.TypeHeartbeat {
				beats++
			}
		})
	})
	run(t, Config{Source: log, Dial: dial, Heartbeat: 5 * time.Millisecond, BatchRecords: 7})
	eventually(t, "heartbeats follow", func() bool { mu.Lock(); defer mu.Unlock(); return beats > 3 })
	mu.Lock()
	defer mu.Unlock()
	if last != 100 || mark != 100 {
		t.Fatalf("sent up to %d with mark %d, the log is durable up to 100", last, mark)
	}
}

// TestWindowHoldsBack: a receiver that does not acknowledge gets no more than the window.
func TestWindowHoldsBack(t *testing.T) {
	log := newSteady(1000)
	var mu sync.Mutex
	var last record.Seq
	more := make(chan record.Seq)
	dial := peer(t, fresh, func(c *wire.Conn) {
		var wg sync.WaitGroup
		wg.Go(func() {
			for {
				select {
				case seq := <-more:
					_ = c.WriteFrame(wire.TypeAck, wire.EncodeAck(wire.Ack{Stored: seq}))
				case <-c.Done():
					return
				}
			}
		})
		drain(c, func(_ wire.Type, l, _ record.Seq) { mu.Lock(); last = max(last, l); mu.Unlock() })
		wg.Wait()
	})
	s := run(t, Config{Source: log, Dial: dial, Heartbeat: 10 * time.Millisecond, BatchRecords: 10, WindowRecords: 50})
	at := func(seq record.Seq) func() bool {
		return func() bool { mu.Lock(); defer mu.Unlock(); return last == seq }
	}
	eventually(t, "the window is full", at(50))
	eventually(t, "and it says so", func() bool { return s.Status().BlockedOn != "" })
	time.Sleep(30 * time.Millisecond)
	if !at(50)() || s.Status().FlightRecords != 50 {
		t.Fatalf("in flight %d", s.Status().FlightRecords)
	}
	more <- 20
	eventually(t, "what was acknowledged makes room", at(70))
	more <- 71 // never sent, but in the log: another source has sent it
	eventually(t, "the stream goes on behind it", func() bool { return s.Status().Sent > 71 })
	more <- 5000 // not even in the log
	eventually(t, "an impossible ack ends the connection", func() bool { return s.Status().Attempts > 1 })
}

// TestStopAt: a sealed log is sent to its end, shown as closed there, and drained when that is durable.
func TestStopAt(t *testing.T) {
	log := newSteady(100)
	shown := make(chan record.Table, 10)
	dial := peer(t, func(h wire.StreamHello) (any, error) {
		shown <- h.Table
		return wire.StreamAnswer{Stored: 10, Durable: 10}, nil
	}, func(c *wire.Conn) {
		drain(c, func(_ wire.Type, l, _ record.Seq) {
			if l > 60 {
				t.Errorf("sent %d behind the end", l)
			}
			if l == 60 {
				_ = c.WriteFrame(wire.TypeAck, wire.EncodeAck(wire.Ack{Stored: 60, Durable: 60}))
			}
		})
	})
	s := New(Config{Source: log, Dial: dial, Heartbeat: 5 * time.Millisecond})
	s.StopAt(60)
	ctx, cancel := context.WithCancel(context.Background())
	var wg sync.WaitGroup
	wg.Go(func() { s.Run(ctx) })
	defer wg.Wait()
	defer cancel()
	select {
	case <-s.Drained():
	case <-time.After(10 * time.Second):
		t.Fatalf("not drained: %+v", s.Status())
	}
	if row, _ := (<-shown).Current(); !row.Closed || row.Last != 60 {
		t.Fatalf("shown %+v", row)
	}
}

// TestRefusals: each is a state with its reason, tried again; the receiver's table comes with it.
func TestRefusals(t *testing.T) {
	for _, reason := range []string{"split-brain", "not-permitted", "superseded", "failed"} {
		t.Run(reason, func(t *testing.T) {
			dial := peer(t, func(wire.StreamHello) (any, error) {
				detail, _ := json.Marshal(wire.StreamRefusal{Reason: reason, Table: record.Table{{Epoch: 7, Incarnation: 1, Node: "z", First: 1}}})
				return nil, &wire.Error{Kind: wire.KindRefused, Message: reason + ": because", Detail: detail}
			}, nil)
			s := run(t, Config{Source: newSteady(1), Dial: dial, Retry: time.Millisecond})
			eventually(t, "refused, again and again", func() bool { return s.Status().Attempts > 3 })
			st := s.Status()
			if st.State != StateRefused || st.Reason != reason || !strings.Contains(st.BlockedOn, "because") || len(st.ReceiversTable) != 1 {
				t.Fatalf("status %+v", st)
			}
		})
	}
}

// TestNewRowBeginsAnew: the log goes on in a row that the hello has not shown.
func TestNewRowBeginsAnew(t *testing.T) {
	log := newSteady(10)
	var mu sync.Mutex
	var rows []int
	var last record.Seq
	dial := peer(t, func(h wire.StreamHello) (any, error) {
		mu.Lock()
		defer mu.Unlock()
		rows = append(rows, len(h.Table))
		return wire.StreamAnswer{Stored: last}, nil
	}, func(c *wire.Conn) {
		drain(c, func(_ wire.Type, l, _ record.Seq) { mu.Lock(); last = max(last, l); mu.Unlock() })
	})
	run(t, Config{Source: log, Dial: dial, Retry: time.Millisecond, Heartbeat: 5 * time.Millisecond})
	eventually(t, "the first row is sent", func() bool { mu.Lock(); defer mu.Unlock(); return last == 10 })
	log.mu.Lock()
	log.table = record.Table{{Epoch: 1, Incarnation: 1, Node: "a", First: 1, Last: 10, Closed: true}, {Epoch: 1, Incarnation: 2, Node: "a", First: 11}}
	log.durable = 20
	log.mu.Unlock()
	eventually(t, "the second row is sent", func() bool { mu.Lock(); defer mu.Unlock(); return last == 20 })
	mu.Lock()
	defer mu.Unlock()
	if len(rows) != 2 || rows[0] != 1 || rows[1] != 2 {
		t.Fatalf("rows shown: %v", rows)
	}
}

// cut is a source that its log has cut off, until it is mended.
type cut struct {
	*steady
	mu     sync.Mutex
	mended bool
	asked  int
}

func (c *cut) off() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.asked++
	if c.mended {
		return nil
	}
	return fmt.Errorf("journal is full: %w", ErrSuspended)
}

func (c *cut) Wait(ctx context.Context, after record.Seq, _ func() (record.Seq, bool)) error {
	if err := c.off(); err != nil {
		return err
	}
	return c.steady.Wait(ctx, after, nil)
}

func (c *cut) Acked(stored, durable, applied record.Seq) error {
	if err := c.off(); err != nil {
		return err
	}
	return c.steady.Acked(stored, durable, applied)
}

// TestCutOff: a source that is cut off is a state, not a reason to reconnect or to spin.
func TestCutOff(t *testing.T) {
	c := &cut{steady: newSteady(10)}
	dial := peer(t, func(wire.StreamHello) (any, error) { return wire.StreamAnswer{Stored: 10}, nil }, func(c *wire.Conn) {
		drain(c, func(wire.Type, record.Seq, record.Seq) {})
	})
	s := run(t, Config{Source: c, Dial: dial, Heartbeat: 10 * time.Millisecond})
	eventually(t, "a resync is asked for", func() bool { return s.Status().State == StateResync })
	start, before := time.Now(), func() int { c.mu.Lock(); defer c.mu.Unlock(); return c.asked }()
	time.Sleep(50 * time.Millisecond)
	c.mu.Lock()
	asked := c.asked - before
	c.mended = true
	c.mu.Unlock()
	if most := int(time.Since(start)/(10*time.Millisecond)) + 3; asked > most {
		t.Fatalf("asked %d times in %v", asked, time.Since(start))
	}
	c.steady.mu.Lock()
	c.steady.durable = 30
	c.steady.mu.Unlock()
	s.Wake()
	eventually(t, "it goes on", func() bool { st := s.Status(); return st.Sent == 30 && st.State == StateStreaming })
	if n := s.Status().Attempts; n != 1 {
		t.Fatalf("%d connections", n)
	}
}

// TestOwed: what an older source owes is not this log's to send.
func TestOwed(t *testing.T) {
	log := newSteady(100)
	first := make(chan record.Seq, 1)
	dial := peer(t, func(wire.StreamHello) (any, error) { return wire.StreamAnswer{Stored: 30, Owed: 50}, nil }, func(c *wire.Conn) {
		if kind, body, err := c.ReadFrame(); err == nil && kind == wire.TypeBatch {
			b, _ := wire.DecodeBatch(body)
			first <- b.Records[0].Seq
		}
		drain(c, func(wire.Type, record.Seq, record.Seq) {})
	})
	run(t, Config{Source: log, Dial: dial})
	if got := <-first; got != 51 {
		t.Fatalf("began at %d", got)
	}
}

// TestRetries: while the link is down, about one attempt a second; when it is back, a connection within two.
func TestRetries(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		start, back := time.Now(), 30*time.Second
		var attempts []time.Duration
		connected := make(chan time.Duration, 1)
		s := New(Config{Source: newSteady(0), Dial: func(ctx context.Context) (net.Conn, error) {
			at := time.Since(start)
			attempts = append(attempts, at)
			switch {
			case at >= back:
				select {
				case connected <- at:
				default:
				}
				return nil, errors.New("here the test ends")
			case at > 15*time.Second:
				<-ctx.Done() // packets vanish
				return nil, ctx.Err()
			}
			return nil, fmt.Errorf("connection refused")
		}})
		ctx, cancel := context.WithCancel(t.Context())
		var wg sync.WaitGroup
		wg.Go(func() { s.Run(ctx) })
		at := <-connected
		if st := s.Status(); st.State != StateDown || !strings.Contains(st.BlockedOn, "link down") {
			t.Errorf("status %+v", st)
		}
		cancel()
		wg.Wait()
		if at > back+2*time.Second {
			t.Errorf("connected %v after the link was back", at-back)
		}
		for i := 1; i < len(attempts); i++ {
			if gap := attempts[i] - attempts[i-1]; gap < time.Second {
				t.Errorf("attempts %v apart", gap)
			}
		}
		if n := len(attempts); n < 28 || n > 32 {
			t.Errorf("%d attempts in %v", n, at)
		}
	})
}

// TestImpossibleAnswer: a receiver that says what it cannot have is not sent to.
func TestImpossibleAnswer(t *testing.T) {
	for name, bad := range map[string]wire.StreamAnswer{
		"owed beyond all numbers": {Owed: math.MaxUint64},
		"applied what it has not": {Stored: 1, Durable: 1, Applied: 2},
		"a log of less than none": {Capacity: -1},
	} {
		t.Run(name, func(t *testing.T) {
			var frames atomic.Int64
			dial := peer(t, func(wire.StreamHello) (any, error) { return bad, nil }, func(c *wire.Conn) {
				drain(c, func(wire.Type, record.Seq, record.Seq) { frames.Add(1) })
			})
			s := run(t, Config{Source: newSteady(10), Dial: dial, Retry: time.Millisecond, Heartbeat: time.Millisecond})
			eventually(t, "tried again and again", func() bool { return s.Status().Attempts > 3 })
			st := s.Status()
			if st.State != StateDown || !strings.Contains(st.BlockedOn, "the receiver says") || st.Heard || frames.Load() != 0 {
				t.Fatalf("%d frames were sent, status %+v", frames.Load(), st)
			}
		})
	}
}
