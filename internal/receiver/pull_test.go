package receiver_test

import (
	"context"
	"encoding/json"
	"errors"
	"net"
	"sync"
	"testing"
	"time"

	"gantline/internal/receiver"
	"gantline/internal/record"
	"gantline/internal/sender"
	"gantline/internal/wire"
)

// TestPull plays the streams' stories with the receiver asking: see newSite.
func TestPull(t *testing.T) {
	t.Run("stream", TestStream)
	t.Run("link cut anywhere", TestLinkCutAnywhere)
	t.Run("two sources", TestTwoSources)
	t.Run("full log", TestFullLog)
	t.Run("resync behind gap", TestResyncBehindGap)
	t.Run("sources gone", TestRestartWithSourcesGone)
}

// asker is a receiver played by hand that has dialled a sender.
func asker(t *testing.T, addr string) *wire.Conn {
	t.Helper()
	h, err := wire.Hello{Purpose: wire.PurposeStream, Role: "node", Name: "c", Group: "g"}.WithParams(wire.PullHello{Pull: true})
	if err != nil {
		t.Fatal(err)
	}
	c, _, err := wire.Dial(context.Background(), addr, h)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(c.Close)
	return c
}

func source(t *testing.T, log sender.Source, with ...func(*sender.Config)) (*sender.Sender, string) {
	t.Helper()
	cfg := sender.Config{Source: log, Pull: true, Hold: 100 * time.Millisecond, Heartbeat: 20 * time.Millisecond,
		Hello: wire.Hello{Role: "node", Name: "a", Group: "g"}}
	for _, set := range with {
		set(&cfg)
	}
	snd := sender.New(cfg)
	ctx, cancel := context.WithCancel(context.Background())
	var wg sync.WaitGroup
	wg.Go(func() { snd.Run(ctx) })
	t.Cleanup(func() { cancel(); wg.Wait() })
	eventually(t, "the sender runs", func() bool { return snd.Status().State == sender.StateDown })
	time.Sleep(10 * time.Millisecond)
	return snd, serveSource(t, ctx, &wg, "a", snd)
}

func next(t *testing.T, c *wire.Conn) (wire.Type, []byte) {
	t.Helper()
	for {
		kind, body, err := c.ReadFrame()
		if err != nil {
			t.Fatal(err)
		}
		if kind != wire.TypeHeartbeat {
			return kind, body
		}
	}
}

func rangeOf(from record.Seq, records, bytes uint32) []byte {
	return wire.EncodeRange(wire.Range{From: from, MaxRecords: records, MaxBytes: bytes})
}

// A range is answered by as many records as were asked for, by number and by size, once each; beyond what is durable it
// is "not stored", after a while; what is freed is "trimmed". An ask frees nothing, what is durable here does.
func TestRanges(t *testing.T) {
	log := newLog(record.Table{openRow(1, "a", 1)}, 0)
	log.add(writes(1, 1, 100, 512)...)
	_, addr := source(t, log)
	c := asker(t, addr)
	if err := c.WriteFrame(wire.TypeControl, []byte(`{}`)); err != nil {
		t.Fatal(err)
	}
	ask := func(body []byte) {
		t.Helper()
		if err := c.WriteFrame(wire.TypeRange, body); err != nil {
			t.Fatal(err)
		}
	}
	batch := func(first, last record.Seq) {
		t.Helper()
		kind, body := next(t, c)
		b, err := wire.DecodeBatch(body)
		if kind != wire.TypeBatch || err != nil {
			t.Fatalf("%v frame, %v", kind, err)
		}
		if n := len(b.Records); n == 0 || b.Records[0].Seq != first || b.Records[n-1].Seq != last {
			t.Fatalf("%d records from %d on, want %d to %d", n, b.Records[0].Seq, first, last)
		}
	}
	miss := func(reason wire.MissReason, ranges uint32) {
		t.Helper()
		kind, body := next(t, c)
		m, err := wire.DecodeMiss(body)
		if kind != wire.TypeMiss || err != nil || m.Reason != reason || m.Ranges != ranges {
			t.Fatalf("%v frame, %+v, %v; want reason %d for %d", kind, m, err, reason, ranges)
		}
	}
	ask(rangeOf(1, 10, 1<<20))
	batch(1, 10)
	ask(rangeOf(1, 1000, 3*512)) // by size; what has been given does not come again
	batch(11, 13)
	ask(rangeOf(20, 1, 0)) // one record at least
	batch(20, 20)
	ask(rangeOf(21, 4096, 1<<20))
	batch(21, 100)
	if stored, durable, _ := log.has(); stored != 0 || durable != 0 {
		t.Fatalf("asking has acknowledged %d stored, %d durable", stored, durable)
	}
	ask(rangeOf(101, 10, 1))
	ask(rangeOf(101, 10, 1))
	miss(wire.MissNotStored, 2)
	ask(rangeOf(101, 10, 1<<20))
	log.add(writes(1, 101, 102, 512)...)
	batch(101, 102)
	if err := c.WriteFrame(wire.TypeAck, wire.EncodeAck(wire.Ack{Stored: 102, Durable: 80, Applied: 7})); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the acknowledgement is known", func() bool { _, d, a := log.has(); return d == 80 && a == 7 })
	log.mu.Lock()
	log.trimmed, log.recs, log.durable = 120, nil, 120
	log.mu.Unlock()
	ask(rangeOf(103, 10, 1<<20))
	miss(wire.MissTrimmed, 1)
}

// What no receiver may send ends the connection and changes nothing.
func TestBadAsks(t *testing.T) {
	for name, bad := range map[string]func(c *wire.Conn) error{
		"no cursors":     func(c *wire.Conn) error { return c.WriteFrame(wire.TypeControl, []byte(`[`)) },
		"mad cursors":    func(c *wire.Conn) error { return c.WriteFrame(wire.TypeControl, []byte(`{"durable":9}`)) },
		"ahead":          func(c *wire.Conn) error { return c.WriteFrame(wire.TypeControl, []byte(`{"stored":900}`)) },
		"a batch":        func(c *wire.Conn) error { return c.WriteBatch(wire.Batch{}) },
		"no range":       after(func(c *wire.Conn) error { return c.WriteFrame(wire.TypeRange, rangeOf(0, 1, 1)) }),
		"an empty range": after(func(c *wire.Conn) error { return c.WriteFrame(wire.TypeRange, rangeOf(1, 0, 1)) }),
		"half a range":   after(func(c *wire.Conn) error { return c.WriteFrame(wire.TypeRange, make([]byte, 7)) }),
		"an ack ahead": after(func(c *wire.Conn) error {
			return c.WriteFrame(wire.TypeAck, wire.EncodeAck(wire.Ack{Stored: 11, Durable: 11}))
		}),
		"too many": after(func(c *wire.Conn) error {
			for range 300 {
				if err := c.Queue(wire.TypeRange, rangeOf(11, 1, 1)); err != nil {
					return err
				}
			}
			return c.Flush()
		}),
	} {
		t.Run(name, func(t *testing.T) {
			log := newLog(record.Table{openRow(1, "a", 1)}, 0)
			log.add(writes(1, 1, 10, 64)...)
			_, addr := source(t, log)
			c := asker(t, addr)
			if err := bad(c); err != nil {
				t.Fatal(err)
			}
			for {
				if _, _, err := c.ReadFrame(); err != nil {
					break
				}
			}
			if stored, durable, applied := log.has(); stored != 0 || durable != 0 || applied != 0 {
				t.Fatalf("acknowledged %d, %d, %d", stored, durable, applied)
			}
		})
	}
}

func after(bad func(c *wire.Conn) error) func(c *wire.Conn) error {
	return func(c *wire.Conn) error {
		if err := c.WriteFrame(wire.TypeControl, []byte(`{}`)); err != nil {
			return err
		}
		return bad(c)
	}
}

// A source that answers what nobody has asked for, or with what is no answer, is left; nothing is changed by it.
func TestBadAnswers(t *testing.T) {
	for name, bad := range map[string]func(c *wire.Conn) error{
		"more than asked": func(c *wire.Conn) error {
			return c.WriteFrame(wire.TypeMiss, wire.EncodeMiss(wire.Miss{Reason: wire.MissNotStored, Ranges: 1000}))
		},
		"no reason": func(c *wire.Conn) error {
			return c.WriteFrame(wire.TypeMiss, wire.EncodeMiss(wire.Miss{Reason: 9, Ranges: 1}))
		},
		"half a miss": func(c *wire.Conn) error { return c.WriteFrame(wire.TypeMiss, make([]byte, 3)) },
		"a range":     func(c *wire.Conn) error { return c.WriteFrame(wire.TypeRange, rangeOf(1, 1, 1)) },
		"a gap":       func(c *wire.Conn) error { return c.WriteBatch(wire.Batch{Records: writes(1, 5, 6, 64)}) },
	} {
		t.Run(name, func(t *testing.T) {
			s := newSite(t)
			life := s.start(&memStore{})
			permit(t, life, receiver.Permit{Epoch: id(1, "a")})
			served := make(chan error, 1)
			ctx, cancel := context.WithCancel(context.Background())
			l, err := net.Listen("tcp", "127.0.0.1:0")
			if err != nil {
				t.Fatal(err)
			}
			server := wire.NewServer(wire.Handlers{Self: wire.Hello{Role: "node", Name: "a"}, Stream: func(_ context.Context, in *wire.Incoming) error {
				params, _ := json.Marshal(map[string]any{"epoch": id(1, "a"), "table": record.Table{openRow(1, "a", 1)}})
				if err := in.Answer(json.RawMessage(params)); err != nil {
					return err
				}
				if err := bad(in.Conn); err != nil {
					return err
				}
				for {
					if _, _, err := in.ReadFrame(); err != nil {
						select {
						case served <- err:
						default:
						}
						return nil
					}
				}
			}}, wire.Limits{})
			var wg sync.WaitGroup
			wg.Go(func() { _ = server.Serve(ctx, l) })
			wg.Go(func() { s.pullFrom(ctx, "a", l.Addr().String()) })
			t.Cleanup(func() { cancel(); wg.Wait() })
			select {
			case <-served:
			case <-time.After(10 * time.Second):
				t.Fatal("the source is still believed")
			}
			if st := life.recv.Status(); st.Stored != 0 || st.Err != nil {
				t.Fatalf("changed: %+v", st)
			}
		})
	}
}

// A dial that was under way when push was changed for pull fails late: that says nothing of the stream that is open since.
func TestLateDialAfterTurn(t *testing.T) {
	log := newLog(record.Table{openRow(1, "a", 1)}, 0)
	dialling, fail := make(chan struct{}), make(chan struct{})
	snd := sender.New(sender.Config{Source: log, Heartbeat: 20 * time.Millisecond, Hello: wire.Hello{Role: "node", Name: "a", Group: "g"},
		Dial: func(context.Context) (net.Conn, error) {
			close(dialling)
			<-fail
			return nil, errors.New("too late")
		}})
	ctx, cancel := context.WithCancel(context.Background())
	var wg sync.WaitGroup
	wg.Go(func() { snd.Run(ctx) })
	t.Cleanup(func() { cancel(); wg.Wait() })
	addr := serveSource(t, ctx, &wg, "a", snd)
	<-dialling
	snd.SetPull(true)
	c := asker(t, addr)
	if err := c.WriteFrame(wire.TypeControl, []byte(`{}`)); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the stream is open", func() bool { return snd.Status().State == sender.StateStreaming })
	close(fail)
	for range 20 { // the sender notes it at once
		if st := snd.Status(); st.State != sender.StateStreaming || st.BlockedOn != "" {
			t.Fatalf("%+v", st)
		}
		time.Sleep(5 * time.Millisecond)
	}
}

// A receiver that is far away says what it has only when all connections are there: the source waits for that too.
func TestPullOverManyConnectionsFromAfar(t *testing.T) {
	log := newLog(record.Table{openRow(1, "a", 1)}, 0)
	const hello = 100 * time.Millisecond
	snd, addr := source(t, log, func(c *sender.Config) {
		c.HelloTimeout, c.DialTimeout, c.Connections = hello, 3*time.Second, func() int { return 3 }
	})
	h := wire.Hello{Role: "node", Name: "c", Group: "g"}
	first := h
	first.Purpose = wire.PurposeStream
	first, err := first.WithParams(wire.PullHello{Pull: true})
	if err != nil {
		t.Fatal(err)
	}
	c, in, err := wire.Dial(t.Context(), addr, first)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(c.Close)
	var shown wire.StreamHello
	if err := in.Decode(&shown); err != nil {
		t.Fatal(err)
	}
	time.Sleep(3 * hello) // on the way
	all, err := wire.DialBundle(t.Context(), c, wire.Receiver, shown.BundleSpec, h, func(ctx context.Context) (net.Conn, error) {
		var d net.Dialer
		return d.DialContext(ctx, "tcp", addr)
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(all.Close)
	if err := all.WriteFrame(wire.TypeControl, []byte(`{}`)); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the stream is open", func() bool { return snd.Status().Connections == 3 })
}
