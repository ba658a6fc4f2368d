package sender

import (
	"sync/atomic"
	"testing"
	"time"

	"gantline/internal/record"
	"gantline/internal/wire"
)

// bulky is a log whose records carry data.
type bulky struct{ *steady }

const bulk = 64 << 10

func (l bulky) Read(from record.Seq, maxRecords, maxBytes int) ([]record.Record, error) {
	recs, err := l.steady.Read(from, min(maxRecords, max(1, maxBytes/bulk)), maxBytes)
	for i := range recs {
		recs[i].Op, recs[i].Length, recs[i].Data = record.OpWrite, bulk, make([]byte, bulk)
		recs[i].CRC = record.Checksum(recs[i].Data)
	}
	return recs, err
}

// What is written to a full socket later than it was queued is counted by the time it is acknowledged, without waiting
// for a heartbeat.
func TestBytesCountedWithTheirAck(t *testing.T) {
	const records = 128
	log := bulky{newSteady(records)}
	var sent atomic.Int64
	dial := peer(t, fresh, func(c *wire.Conn) {
		time.Sleep(200 * time.Millisecond) // the socket is full now
		drain(c, func(_ wire.Type, last, _ record.Seq) {
			if last > 0 {
				_ = c.WriteFrame(wire.TypeAck, wire.EncodeAck(wire.Ack{Stored: last, Durable: last, Applied: last}))
			}
		})
	})
	run(t, Config{Dial: dial, Source: log, Heartbeat: time.Minute,
		Sent: func(n int64) { sent.Add(n) }})
	eventually(t, "all acknowledged", func() bool {
		log.mu.Lock()
		defer log.mu.Unlock()
		return log.acked.Applied == records
	})
	if got := sent.Load(); got < records*bulk {
		t.Errorf("%d bytes are acknowledged, %d counted", records*bulk, got)
	}
}
