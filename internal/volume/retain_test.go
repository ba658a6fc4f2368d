package volume

import (
	"context"
	"testing"

	"gantline/internal/record"
)

// A record is freed when the subscriber has it durably, or applied, as its retention says, which changes live; the lag is
// counted by what is applied in either case.
func TestRetain(t *testing.T) {
	p, m := newPair(t, 7, 2<<20)
	ctx := context.Background()
	for i := range 10 {
		if err := write(p.vols[0], int64(i)*4096, stamp(i+1, 4096), 0); err != nil {
			t.Fatal(err)
		}
	}
	if err := flush(p.vols[0]); err != nil {
		t.Fatal(err)
	}
	freed := func(want uint64) {
		t.Helper()
		if err := p.g.Checkpoint(ctx); err != nil {
			t.Fatal(err)
		}
		if got := p.jnl.Cursors().Trimmed; uint64(got) != want {
			t.Fatalf("freed up to %d, want %d", got, want)
		}
	}
	ack := func(stored, durable, applied int) {
		t.Helper()
		if err := m.sub.Acked(record.Seq(stored), record.Seq(durable), record.Seq(applied)); err != nil {
			t.Fatal(err)
		}
	}
	if got := p.g.Waiting(7); got != 3*4096 {
		t.Fatalf("%d bytes lie above 7", got)
	}
	ack(9, 6, 2)
	freed(2)
	m.sub.SetRetain(RetainDurable)
	freed(6) // at once, not with the next acknowledgement only
	if lag := m.sub.Lag(); lag.Writes != 8 || lag.Bytes != 8*4096 || lag.Age == 0 {
		t.Fatalf("lag %+v with 2 of 10 applied", lag)
	}
	ack(10, 8, 2)
	freed(8)
	m.sub.SetRetain(RetainApplied)
	ack(10, 10, 4)
	freed(8) // what was freed stays freed
	ack(10, 10, 9)
	freed(9)
}
