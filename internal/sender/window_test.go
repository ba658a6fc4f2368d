package sender

import (
	"errors"
	"testing"

	"gantline/internal/record"
	"gantline/internal/wire"

	"pgregory.net/rapid"
)

// TestWindowKeepsItsInvariant: applied ≤ durable ≤ stored ≤ sent ≤ the log's durable mark, whatever the receiver says;
// what it says wrongly changes nothing; what is in flight is exactly what is sent and not stored.
func TestWindowKeepsItsInvariant(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		w := &Window{MaxRecords: 40, MaxBytes: 4000}
		var log record.Seq // durable
		sizes := map[record.Seq]int{}
		ack := wire.Ack{}
		t.Repeat(map[string]func(*rapid.T){
			"grow": func(t *rapid.T) { log += record.Seq(rapid.IntRange(1, 20).Draw(t, "by")) },
			"send": func(t *rapid.T) {
				n := rapid.IntRange(1, 10).Draw(t, "records")
				first, last := w.Next(), w.Next()+record.Seq(n)-1
				err := w.Sent(last, n, n*100, log)
				if (err != nil) != (last > log) {
					t.Fatalf("sent up to %d with the log at %d: %v", last, log, err)
				}
				for seq := first; err == nil && seq <= last; seq++ {
					sizes[seq] = 100
				}
			},
			"ack": func(t *rapid.T) {
				draw := func(what string) record.Seq {
					return record.Seq(rapid.IntRange(0, int(log)+3).Draw(t, what))
				}
				a := wire.Ack{Stored: draw("stored"), Durable: draw("durable"), Applied: draw("applied")}
				good := a.Applied <= a.Durable && a.Durable <= a.Stored && a.Stored <= max(log, w.LastSent()) &&
					a.Stored >= ack.Stored && a.Durable >= ack.Durable && a.Applied >= ack.Applied
				err := w.Acked(a, log)
				if good != (err == nil) || err != nil && !errors.Is(err, ErrAck) {
					t.Fatalf("ack %+v after %+v, sent %d, log %d: %v", a, ack, w.LastSent(), log, err)
				}
				if good {
					ack = a
				}
			},
			"reconnect": func(t *rapid.T) {
				ack.Stored = record.Seq(rapid.IntRange(int(ack.Durable), int(ack.Stored)).Draw(t, "stored"))
				w.Restart(ack, ack.Stored)
				clear(sizes)
			},
			"": func(t *rapid.T) {
				has := w.Has()
				if has != ack || has.Stored > w.LastSent() || w.LastSent() > log {
					t.Fatalf("has %+v, sent %d, log %d", has, w.LastSent(), log)
				}
				records, bytes := w.Flight()
				if records*100 != bytes || records < 0 || w.LastSent() == has.Stored && records != 0 {
					t.Fatalf("%d records, %d bytes in flight, stored %d, sent %d", records, bytes, has.Stored, w.LastSent())
				}
				if pending := len(sizes); records > pending {
					t.Fatalf("%d in flight of %d sent", records, pending)
				}
				if !w.Room() && records < 40 && bytes < 4000 || records == 0 && !w.Room() {
					t.Fatalf("no room with %d records in flight", records)
				}
			},
		})
	})
}

// A receiver that drops a step without an end for a new one has less that is durable than it had said. Nothing else may
// be taken back, and not without the begin.
func TestWindowAfterADroppedStep(t *testing.T) {
	w := &Window{MaxRecords: 100, MaxBytes: 1 << 20}
	ack := func(stored, durable, applied record.Seq) error {
		return w.Acked(wire.Ack{Stored: stored, Durable: durable, Applied: applied}, 100)
	}
	w.Restart(wire.Ack{Stored: 40, Durable: 40, Applied: 20}, 40)
	w.Begun(51)
	if err := w.Sent(60, 10, 1000, 100); err != nil {
		t.Fatal(err)
	}
	for what, err := range map[string]error{"before the begin": ack(50, 20, 20), "of what was applied": ack(60, 19, 19)} {
		if !errors.Is(err, ErrAck) {
			t.Errorf("durable records taken back %s: %v", what, err)
		}
	}
	if err := ack(55, 20, 20); err != nil {
		t.Fatal(err)
	}
	if err := ack(60, 60, 20); err != nil {
		t.Fatal(err)
	}
	if err := ack(60, 52, 20); !errors.Is(err, ErrAck) {
		t.Errorf("records of the step itself taken back: %v", err)
	}
}
