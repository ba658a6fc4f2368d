package sender

import (
	"context"
	"strings"
	"testing"
	"time"

	"gantline/internal/record"
	"gantline/internal/wire"
)

// A history of what waits, told step by step.
func TestGate(t *testing.T) {
	start := time.Now()
	type step struct {
		at      time.Duration
		next    record.Seq
		durable record.Seq
		waiting int64
		hurry   bool
		limit   record.Seq
		again   time.Duration
	}
	for name, h := range map[string]struct {
		pace  Gather
		steps []step
	}{
		"at once": {Gather{}, []step{
			{0, 1, 1, 1, false, 1, 0},
			{1, 2, 9, 1, false, 9, 0},
		}},
		"interval": {Gather{Every: time.Second}, []step{
			{0, 1, 3, 1, false, 3, 0},                // the first transfer at once
			{time.Millisecond, 2, 5, 1, false, 3, 0}, // the rest of it
			{100 * time.Millisecond, 4, 5, 1, false, 3, 900 * time.Millisecond},
			{100 * time.Millisecond, 6, 5, 1, false, 5, 0}, // nothing waits
			{999 * time.Millisecond, 4, 9, 1 << 40, false, 3, time.Millisecond},
			{time.Second, 4, 9, 1, false, 9, 0},
			{5 * time.Second, 10, 10, 1, false, 10, 0}, // long ago
		}},
		"quantity": {Gather{Bytes: 100}, []step{
			{0, 1, 3, 99, false, 0, 0},
			{time.Hour, 1, 4, 99, false, 0, 0},
			{time.Hour, 1, 5, 100, false, 5, 0},
			{time.Hour, 3, 9, 1, false, 5, 0}, // what comes meanwhile is not part of it
			{time.Hour, 6, 9, 1, false, 5, 0},
			{time.Hour, 6, 9, 1, true, 9, 0}, // haste
			{time.Hour, 10, 12, 1, false, 9, 0},
		}},
		"both": {Gather{Every: time.Second, Bytes: 100}, []step{
			{0, 1, 1, 1, false, 1, 0},
			{10 * time.Millisecond, 2, 2, 99, false, 1, 990 * time.Millisecond},
			{20 * time.Millisecond, 2, 3, 100, false, 3, 0},
			{time.Second, 4, 4, 1, false, 3, 20 * time.Millisecond},
			{time.Second + 20*time.Millisecond, 4, 4, 1, false, 4, 0},
		}},
	} {
		g := gate{gather: h.pace}
		for i, s := range h.steps {
			limit, again := g.look(start.Add(s.at), s.next, s.durable, func() int64 { return s.waiting }, s.hurry)
			if limit != s.limit || again != s.again {
				t.Errorf("%s, step %d: may send up to %d, again in %v; want %d, %v", name, i, limit, again, s.limit, s.again)
			}
		}
	}
}

// What waits for a quantity is shown as waiting, and goes when its time comes, on haste, at the end of the log, and when
// it is set anew.
func TestGatherHoldsAndLetsGo(t *testing.T) {
	for name, letGo := range map[string]func(s *Sender, log *steady){
		"more":  func(_ *Sender, log *steady) { log.mu.Lock(); log.durable = 100; log.mu.Unlock() },
		"haste": func(s *Sender, _ *steady) { s.Hurry(10) },
		"end":   func(s *Sender, _ *steady) { s.StopAt(10) },
		"set":   func(s *Sender, _ *steady) { s.SetGather(Gather{}) },
	} {
		t.Run(name, func(t *testing.T) {
			log, got := newSteady(10), make(chan record.Seq, 100)
			dial := peer(t, fresh, func(c *wire.Conn) {
				drain(c, func(kind wire.Type, last, _ record.Seq) {
					if kind == wire.TypeBatch {
						got <- last
					}
				})
			})
			s := run(t, Config{Source: log, Dial: dial, Gather: Gather{Bytes: 50},
				Waiting: func(after record.Seq) int64 { return int64(log.Durable() - after) }})
			eventually(t, "shown as waiting", func() bool { return strings.Contains(s.Status().BlockedOn, "50 bytes") })
			select {
			case seq := <-got:
				t.Fatalf("record %d was sent before its time", seq)
			case <-time.After(100 * time.Millisecond):
			}
			letGo(s, log)
			for seq := record.Seq(0); seq < 10; {
				select {
				case seq = <-got:
				case <-time.After(5 * time.Second):
					t.Fatalf("only %d was sent: %+v", seq, s.Status())
				}
			}
			eventually(t, "nothing waits", func() bool { return s.Status().BlockedOn == "" })
		})
	}
}

// An interval ends by itself.
func TestGatherEvery(t *testing.T) {
	log, got := newSteady(1), make(chan time.Time, 100)
	dial := peer(t, fresh, func(c *wire.Conn) {
		drain(c, func(kind wire.Type, _, _ record.Seq) {
			if kind == wire.TypeBatch {
				got <- time.Now()
			}
		})
	})
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	go func() {
		for ctx.Err() == nil {
			time.Sleep(5 * time.Millisecond)
			log.mu.Lock()
			log.durable++
			log.mu.Unlock()
		}
	}()
	run(t, Config{Source: log, Dial: dial, Gather: Gather{Every: 300 * time.Millisecond}})
	before := <-got
	for range 3 {
		at := <-got
		if d := at.Sub(before); d < 250*time.Millisecond {
			t.Fatalf("%v between two transfers", d)
		}
		before = at
	}
}
