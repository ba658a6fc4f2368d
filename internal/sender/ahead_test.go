package sender

import (
	"context"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"gantline/internal/record"
	"gantline/internal/wire"
)

// ahead is the log of a synchronous group: its records go before they are durable.
type ahead struct {
	*steady
	mark   atomic.Uint64
	urgent atomic.Uint64
	news   chan struct{}
	lend   chan record.Seq // has Wait call send, with so much in the log
	sent   chan bool       // what it returned
}

func (l *ahead) Wait(ctx context.Context, after record.Seq, send func() (record.Seq, bool)) error {
	for l.Durable() <= after {
		select {
		case <-l.news:
			return nil
		case durable := <-l.lend:
			l.steady.mu.Lock()
			l.durable = durable
			l.steady.mu.Unlock()
			upTo, more := send()
			after = upTo
			l.sent <- more
			if !more {
				return nil
			}
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	return nil
}

// While it waits for records, whoever brings some has them sent at once; where the window is full, or records gather, or there
// are none, the sending goroutine has to look itself.
func TestSendsAlong(t *testing.T) {
	log := &ahead{steady: newSteady(10), news: make(chan struct{}, 1), lend: make(chan record.Seq), sent: make(chan bool)}
	var last atomic.Uint64
	dial := peer(t, fresh, func(c *wire.Conn) {
		for {
			kind, body, err := c.ReadFrame()
			if err != nil {
				return
			}
			if kind != wire.TypeBatch {
				continue
			}
			b, err := wire.DecodeBatch(body)
			if err != nil {
				t.Error(err)
				return
			}
			if first := uint64(b.Records[0].Seq); first != last.Load()+1 {
				t.Errorf("%d behind %d", first, last.Load())
			}
			last.Store(uint64(b.Records[len(b.Records)-1].Seq))
		}
	})
	s := run(t, Config{Source: log, Dial: dial, Heartbeat: time.Hour, WindowRecords: 25,
		Mark: func() record.Seq { return 0 }})
	along := func(durable record.Seq) (more bool) {
		log.lend <- durable
		return <-log.sent
	}
	at := func(want uint64) func() bool { return func() bool { return last.Load() == want } }
	eventually(t, "what was there is sent", at(10))
	if !along(20) {
		t.Error("20 was not sent along")
	}
	eventually(t, "what has come is sent", at(20))
	if along(20) {
		t.Error("there was nothing to be sent along")
	}
	s.SetGather(Gather{Bytes: 1})
	if along(21) {
		t.Error("sent along though records gather")
	}
	eventually(t, "the sending goroutine sends what gathers", at(21))
	s.SetGather(Gather{})
	if !along(26) {
		t.Error("26 was not sent along")
	}
	if along(30) {
		t.Error("30 was sent along though the window is full")
	}
	eventually(t, "up to the window", at(26))
}

// Records go ahead of the durable mark. That it has risen, and that a host waits for a flush, is told at once, without
// records and long before a heartbeat is due.
func TestSendsAheadOfTheMark(t *testing.T) {
	log := &ahead{steady: newSteady(100), news: make(chan struct{}, 1)}
	log.mark.Store(40)
	var mu sync.Mutex
	var last, mark record.Seq
	urgent := 0
	dial := peer(t, fresh, func(c *wire.Conn) {
		for {
			kind, body, err := c.ReadFrame()
			if err != nil {
				return
			}
			mu.Lock()
			switch kind {
			case wire.TypeBatch:
				b, err := wire.DecodeBatch(body)
				if err != nil {
					t.Error(err)
				}
				last, mark = max(last, b.Records[len(b.Records)-1].Seq), max(mark, b.Mark)
				if b.Urgent {
					urgent++
				}
			case wire.TypeHeartbeat:
				h, err := wire.DecodeHeartbeat(body)
				if err != nil {
					t.Error(err)
				}
				mark = max(mark, h.Mark)
				if h.Urgent {
					urgent++
				}
			}
			mu.Unlock()
		}
	})
	run(t, Config{Source: log, Dial: dial, Heartbeat: time.Hour, BatchRecords: 7,
		Mark:   func() record.Seq { return record.Seq(log.mark.Load()) },
		Urgent: func() record.Seq { return record.Seq(log.urgent.Load()) }})
	at := func(wantLast, wantMark record.Seq, wantUrgent int) func() bool {
		return func() bool {
			mu.Lock()
			defer mu.Unlock()
			return last == wantLast && mark == wantMark && urgent == wantUrgent
		}
	}
	eventually(t, "all is sent, with the mark", at(100, 40, 0))
	log.mark.Store(100)
	log.news <- struct{}{}
	eventually(t, "the mark follows", at(100, 100, 0))
	log.urgent.Store(90)
	log.news <- struct{}{}
	eventually(t, "a flush is told once", at(100, 100, 1))
	log.urgent.Store(105)
	log.steady.mu.Lock()
	log.durable = 110
	log.steady.mu.Unlock()
	log.news <- struct{}{}
	eventually(t, "a flush of what is on its way goes with it", at(110, 100, 2))
	time.Sleep(20 * time.Millisecond)
	if !at(110, 100, 2)() {
		t.Fatalf("told %d times", urgent)
	}
}
