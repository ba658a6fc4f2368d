package volume

import (
	"errors"
	"testing"
	"time"

	"gantline/internal/record"
)

// Step after step with a gap in front of each fills a follower's table of gaps, with hardly a byte in the log: what has
// been applied is freed when whoever appends asks for it.
func TestMakeRoomFreesGaps(t *testing.T) {
	_, seed := seeded(t)
	s := newSite(t, seed, 1, testSize, 4<<20)
	s.follow = true
	s.open()
	defer s.close()
	if err := s.jnl.OpenRow(record.Row{Epoch: 1, Incarnation: 1, Node: "n", First: 1}); err != nil {
		t.Fatal(err)
	}
	full := 0 // how often the log had no room
	for step := range 200 {
		begin := record.Seq(1 + step*10) // of ten numbers each step has three
		data := stamp(step+1, 4096)
		recs := []record.Record{
			{Seq: begin, Op: record.OpBegin}, {Seq: begin + 1, Op: record.OpCopy, Volume: 1, Length: 4096, Data: data},
			{Seq: begin + 2, Op: record.OpEnd},
		}
		for i := range recs {
			recs[i].Epoch, recs[i].Incarnation = 1, 1
		}
		err := s.jnl.AppendAfterGap(recs)
		for end := time.Now().Add(10 * time.Second); err != nil; err = s.jnl.AppendAfterGap(recs) {
			if logged := logError(err); !errors.Is(logged, ErrFull) || time.Now().After(end) {
				t.Fatalf("step %d: %v", step, logged)
			}
			full++
			s.g.MakeRoom()
			time.Sleep(time.Millisecond)
		}
		if _, err := s.jnl.Sync(); err != nil {
			t.Fatal(err)
		}
		if err := s.g.Apply(recs); err != nil {
			t.Fatal(err)
		}
	}
	if full == 0 {
		t.Fatal("the table of gaps was never full")
	}
}
