package apply

import (
	"context"
	"errors"
	"slices"
	"sync"
	"testing"
	"time"

	"gantline/internal/record"

	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// disk is a log that remembers how often it was read.
type disk struct {
	mu    sync.Mutex
	recs  []record.Record
	reads int
}

func (d *disk) Read(from record.Seq, maxRecords, _ int) ([]record.Record, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.reads++
	for i := range d.recs {
		if d.recs[i].Seq >= from {
			n := 1
			for i+n < len(d.recs) && n < maxRecords && d.recs[i+n].Seq == d.recs[i].Seq+record.Seq(n) {
				n++
			}
			return slices.Clone(d.recs[i : i+n]), nil
		}
	}
	return nil, errors.New("not stored")
}

func (d *disk) append(recs []record.Record) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.recs = append(d.recs, recs...)
}

// sink remembers what it was given; steps must have been announced.
type sink struct {
	mu      sync.Mutex
	seqs    []record.Seq
	intents []record.Seq
	err     error
	gate    chan struct{} // if not nil, each Apply takes one from it
}

func (s *sink) Intend(upTo record.Seq) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.intents = append(s.intents, upTo)
	return nil
}

func (s *sink) Apply(recs []record.Record) error {
	if s.gate != nil {
		<-s.gate
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	for i := range recs {
		s.seqs = append(s.seqs, recs[i].Seq)
	}
	return s.err
}

func (s *sink) last() record.Seq {
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.seqs) == 0 {
		return 0
	}
	return s.seqs[len(s.seqs)-1]
}

func plain(first, last record.Seq) []record.Record {
	var recs []record.Record
	for seq := first; seq <= last; seq++ {
		recs = append(recs, record.Record{Seq: seq, Op: record.OpWrite, Mark: last, Data: make([]byte, 100)})
	}
	return recs
}

func mark(seq record.Seq, op record.Op, flags uint8) record.Record {
	return record.Record{Seq: seq, Op: op, Flags: flags}
}

func start(t *testing.T, cfg Config) *Loop {
	t.Helper()
	l, err := Open(cfg)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	var wg sync.WaitGroup
	wg.Go(func() { _ = l.Run(ctx) })
	t.Cleanup(func() { cancel(); wg.Wait() })
	return l
}

func eventually(t *testing.T, what string, ok func() bool) {
	t.Helper()
	for deadline := time.Now().Add(10 * time.Second); !ok(); time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("never: %s", what)
		}
	}
}

// TestWindowAndLog: what fits stays in memory, the rest is read back, and the order is the log's.
func TestWindowAndLog(t *testing.T) {
	for _, c := range []struct {
		name   string
		window int
		reads  bool
	}{{"all in memory", 1 << 20, false}, {"nearly nothing in memory", 2000, true}} {
		t.Run(c.name, func(t *testing.T) {
			d, s := &disk{}, &sink{}
			l := start(t, Config{Log: d, Sink: s, State: State{Consistent: true}, WindowBytes: c.window, BatchRecords: 7})
			for i := record.Seq(0); i < 100; i++ {
				recs := plain(i*5+1, i*5+5)
				d.append(recs)
				l.Stored(recs)
				if i%9 == 0 {
					l.Mark(i*5 + 5)
					l.Durable(i*5 + 3)
				}
			}
			l.Mark(500)
			l.Durable(500)
			eventually(t, "all applied", func() bool { return s.last() == 500 && l.Status().State.Applied == 500 })
			for i, seq := range s.seqs {
				if seq != record.Seq(i+1) {
					t.Fatalf("place %d: %d", i, seq)
				}
			}
			if (d.reads > 0) != c.reads {
				t.Fatalf("%d reads of the log", d.reads)
			}
			if l.window.bytes != 0 || len(l.window.batches) != 0 {
				t.Fatalf("window keeps %d bytes of what is applied", l.window.bytes)
			}
		})
	}
}

// TestStepIsAnnounced: a step in many batches is announced once, before its first record, and consistency lost by a
// step at once is on disk before its first record and regained after its last.
func TestStepIsAnnounced(t *testing.T) {
	d, s := &disk{}, &sink{}
	var saved []State
	var mu sync.Mutex
	l := start(t, Config{Log: d, Sink: s, State: State{Consistent: true}, BatchRecords: 4, Save: func(st State) error {
		mu.Lock()
		defer mu.Unlock()
		if !st.Consistent && s.last() >= 30 {
			t.Errorf("inconsistency saved when %d was at the volumes already", s.last())
		}
		saved = append(saved, st)
		return nil
	}})
	log := plain(1, 5)
	log = append(log, mark(10, record.OpBegin, 0))
	log = append(log, plain(11, 28)...)
	log = append(log, mark(29, record.OpEnd, 0), mark(30, record.OpBegin, record.FlagAtOnce))
	log = append(log, plain(31, 34)...)
	log = append(log, mark(35, record.OpEnd, 0))
	d.append(log)
	l.Stored(log[:5])
	l.Stored(log[5:])
	l.Mark(35)
	l.Durable(35)
	eventually(t, "all applied", func() bool { return l.Status().State == State{Applied: 35, Consistent: true} })
	if !slices.Equal(s.intents, []record.Seq{29}) {
		t.Fatalf("announced %v", s.intents)
	}
	mu.Lock()
	defer mu.Unlock()
	if !slices.Equal(saved, []State{{29, false}, {35, true}}) {
		t.Fatalf("saved %v", saved)
	}
}

// TestRestart: the steps, and how far the primary's mark reached, are found again in the log.
func TestRestart(t *testing.T) {
	log := append(plain(1, 20), mark(21, record.OpBegin, 0))
	log[19].Mark = 0
	d, s := &disk{recs: log}, &sink{}
	l := start(t, Config{Log: d, Sink: s, State: State{Applied: 4, Consistent: true}, Stored: 21, Durable: 21})
	// Records 1..19 came with a mark that speaks for themselves; it does not speak for record 20, nor for a step.
	l.Stand(t.Context())
	if s.last() != 19 {
		t.Fatalf("stands at %d", s.last())
	}
	l.Durable(21)
	eventually(t, "applied up to the mark", func() bool { return s.last() == 19 })
	state, err := l.Finish(t.Context())
	if err != nil || state.Applied != 20 {
		t.Fatalf("takeover at %v: %v", state, err)
	}
}

// TestSinkFails: after an error nothing more is applied, and who waits for a takeover hears of it.
func TestSinkFails(t *testing.T) {
	broken := errors.New("device is gone")
	d, s := &disk{}, &sink{err: broken}
	l := start(t, Config{Log: d, Sink: s, State: State{Consistent: true}})
	recs := plain(1, 3)
	d.append(recs)
	l.Stored(recs)
	l.Mark(3)
	l.Durable(3)
	if _, err := l.Finish(t.Context()); !errors.Is(err, broken) {
		t.Fatalf("takeover: %v", err)
	}
	if st := l.Status(); !errors.Is(st.Err, broken) || st.State.Applied != 0 {
		t.Fatalf("status %+v", st)
	}
}

// TestCutWhileApplying: what the sink is busy with cannot be taken back; what is behind it can.
func TestCutWhileApplying(t *testing.T) {
	d, s := &disk{}, &sink{gate: make(chan struct{})}
	l := start(t, Config{Log: d, Sink: s, State: State{Consistent: true}})
	recs := plain(1, 10)
	d.append(recs)
	l.Stored(recs)
	l.Mark(6)
	l.Durable(10)
	eventually(t, "the sink is busy", func() bool { return l.Status().Next.To == 6 })
	if err := l.Cut(5); !errors.Is(err, ErrApplied) {
		t.Fatalf("cut below what is handed out: %v", err)
	}
	if err := l.Cut(8); err != nil {
		t.Fatal(err)
	}
	close(s.gate)
	l.Mark(20)
	eventually(t, "what was kept is applied", func() bool { return s.last() == 8 })
	l.Stored(recs[8:])
	l.Durable(10)
	l.Mark(20)
	eventually(t, "what came instead is applied", func() bool { return s.last() == 10 })
}

// What a takeover shows within its bytes ends at a record, but never inside a step.
func TestTakeoverKeepsStepsWhole(t *testing.T) {
	d := &disk{}
	recs := append(plain(1, 3), mark(4, record.OpBegin, 0))
	recs = append(append(recs, plain(5, 9)...), mark(10, record.OpEnd, 0))
	recs = append(recs, plain(11, 13)...)
	for i := range recs {
		recs[i].Mark = 0
	}
	d.append(recs)
	l, err := Open(Config{Log: d, Sink: &sink{}, State: State{Consistent: true}, Stored: 13, Durable: 13, BatchRecords: 2})
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		bytes int
		last  record.Seq
		whole bool
	}{{250, 2, false}, {399, 3, false}, {799, 3, false}, {800, 10, false}, {950, 11, false}, {1100, 13, true}} {
		got, whole, err := l.Takeover(c.bytes)
		if err != nil || len(got) == 0 || got[len(got)-1].Seq != c.last || whole != c.whole {
			t.Errorf("%d bytes: %d records, whole %v, %v; want up to %d", c.bytes, len(got), whole, err, c.last)
		}
	}
}
