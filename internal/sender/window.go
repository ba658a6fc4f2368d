package sender

import (
	"errors"
	"fmt"

	"gantline/internal/record"
	"gantline/internal/wire"
)

// ErrAck: the receiver claims what it cannot have, or takes back what it has acknowledged on this connection.
var ErrAck = errors.New("acknowledgement does not fit what was sent")

// Window knows what is in flight: applied ≤ durable ≤ stored ≤ sent ≤ the log's durable mark. Pure; the zero value
// with limits set is ready for Restart.
type Window struct {
	MaxRecords, MaxBytes int

	ack     wire.Ack
	begun   record.Seq // newest begin of a step that was sent; 0: none on this connection
	sent    record.Seq
	flight  []flight // batches that are not wholly stored, oldest first
	records int
	bytes   int
}

type flight struct {
	last           record.Seq
	records, bytes int
}

// Restart begins a connection: the receiver has what it says, and sent is where the stream goes on behind.
func (w *Window) Restart(has wire.Ack, sent record.Seq) {
	w.ack, w.sent, w.begun = has, sent, 0
	w.flight, w.records, w.bytes = w.flight[:0], 0, 0
}

// Room says whether another batch may be sent. One batch may always be in flight, whatever its size.
func (w *Window) Room() bool {
	return len(w.flight) == 0 || w.records < w.MaxRecords && w.bytes < w.MaxBytes
}

// Next is the first sequence not sent.
func (w *Window) Next() record.Seq { return w.sent + 1 }

// Sent notes a batch up to last. The log is durable up to durable.
func (w *Window) Sent(last record.Seq, records, bytes int, durable record.Seq) error {
	if last <= w.sent || last > durable {
		return fmt.Errorf("sender: batch up to %d behind %d with the log durable up to %d", last, w.sent, durable)
	}
	w.sent = last
	w.flight = append(w.flight, flight{last, records, bytes})
	w.records += records
	w.bytes += bytes
	return nil
}

// Begun notes that a step's begin is about to be sent.
func (w *Window) Begun(seq record.Seq) { w.begun = max(w.begun, seq) }

// falls says whether an ack takes durable records back that it may: a receiver that has stored the begin of a step has
// dropped what it had of one before that has no end.
func (w *Window) falls(a wire.Ack) bool {
	return a.Durable < w.ack.Durable && w.ack.Durable < w.begun && w.begun <= a.Stored
}

// Acked notes what the receiver has. Another source may have sent it records that are in this log too: then the stream
// goes on behind them.
func (w *Window) Acked(a wire.Ack, durable record.Seq) error {
	if a.Stored < w.ack.Stored || a.Durable < w.ack.Durable && !w.falls(a) || a.Applied < w.ack.Applied {
		return fmt.Errorf("%w: stored %d, durable %d, applied %d after %d, %d, %d", ErrAck,
			a.Stored, a.Durable, a.Applied, w.ack.Stored, w.ack.Durable, w.ack.Applied)
	}
	if a.Applied > a.Durable || a.Durable > a.Stored || a.Stored > max(w.sent, durable) {
		return fmt.Errorf("%w: stored %d, durable %d, applied %d, while %d was sent and the log is durable up to %d", ErrAck,
			a.Stored, a.Durable, a.Applied, w.sent, durable)
	}
	w.ack = a
	w.sent = max(w.sent, a.Stored)
	done := 0
	for done < len(w.flight) && w.flight[done].last <= a.Stored {
		w.records -= w.flight[done].records
		w.bytes -= w.flight[done].bytes
		done++
	}
	w.flight = append(w.flight[:0], w.flight[done:]...)
	return nil
}

// Has is the last ack; Flight what is not acknowledged as stored.
func (w *Window) Has() wire.Ack                { return w.ack }
func (w *Window) LastSent() record.Seq         { return w.sent }
func (w *Window) Flight() (records, bytes int) { return w.records, w.bytes }
