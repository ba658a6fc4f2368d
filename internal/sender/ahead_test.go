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
}

func (l *ahead) Wait(ctx context.Context, after record.Seq) error {
	if l.Durable() > after {
		return nil
	}
	select {
	case <-l.news:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
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
