package receiver_test

import (
	"testing"
	"time"

	"gantline/internal/block"
	"gantline/internal/journal"
	"gantline/internal/receiver"
	"gantline/internal/record"
	"gantline/internal/wire"
)

// A journal of the smallest kind: more records in one go than it has entries, each of which fits, are no failure.
func TestBatchLargerThanJournal(t *testing.T) {
	for _, c := range []struct {
		name  string
		recs  int
		bytes int
	}{{"more records than entries", 1500, 16}, {"more bytes than the data area", 40, 64 << 10}, {"one record too large", 1, 3 << 20}} {
		t.Run(c.name, func(t *testing.T) {
			dev := block.NewCrashable(2<<20, 1)
			if err := journal.Create([]block.Device{dev}, journal.ID{1}); err != nil {
				t.Fatal(err)
			}
			store := openJournal(t, dev, nil)
			s := newSite(t)
			life := s.start(store)
			if err := life.recv.Believe(receiver.Permit{Epoch: id(1, "a")}); err != nil {
				t.Fatal(err)
			}
			wc := s.push()
			if err := wc.WriteBatch(wire.Batch{Mark: record.Seq(c.recs), Records: writes(1, 1, record.Seq(c.recs), c.bytes)}); err != nil {
				t.Fatal(err)
			}
			time.Sleep(500 * time.Millisecond)
			if err := life.recv.Err(); err != nil {
				t.Errorf("the receiver has stopped for good: %v", err)
			}
		})
	}
}
