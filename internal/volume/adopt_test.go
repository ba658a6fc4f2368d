package volume

import (
	"errors"
	"testing"
	"time"

	"gantline/internal/block"
	"gantline/internal/record"
)

const handedOver = record.Seq(100)

// adoption is what a synchronous group's source hands over at 100, in epoch 1; write 9 of session 5 is done there.
func adoption() Adoption {
	done := newDoneTable()
	done.set(5, 9, 0)
	return Adoption{
		Base: handedOver, Done: done.encode(maxDoneExport),
		Table: record.Table{{Epoch: 1, Incarnation: 3, Node: "n", First: 1, Last: handedOver, Closed: true}},
		Next:  record.Row{Epoch: 2, Incarnation: 1, Node: "t", First: handedOver + 1},
		Heirs: map[string]Heritage{"far": {Sync: true, Relied: handedOver - 3, Applied: handedOver - 5}, "cut": {Suspended: true}},
	}
}

// adopted opens the site's group without a role and hands over to it.
func adopted(s *site) error {
	s.idle = true
	s.open()
	return s.g.Adopt(adoption())
}

// takeOver serves as a move's target does, and writes.
func takeOver(s *site) error {
	row, ok := s.g.Ahead()
	if !ok {
		cur, _ := s.g.Table().Current()
		row = record.Row{Epoch: 2, Incarnation: 1, Node: "t", First: s.g.Appended() + 1}
		if cur.Epoch == 2 {
			row.Incarnation = cur.Incarnation + 1
		}
	}
	if err := s.g.Serve(row); err != nil {
		return err
	}
	if !s.g.Remembers("cut") {
		return errors.New("what was cut off at the hand-over is not remembered")
	}
	since := map[record.VolumeNumber]Bitmap{1: block.NewBitmap(testSize / markSize)}
	if _, err := s.g.Subscribe("cut", SubscriberConfig{Changed: since, BlockSize: markSize, Images: true}); err != nil {
		return err
	}
	patient := SyncConfig{On: true, Patience: time.Hour, Stall: time.Hour, Hold: time.Hour}
	_, err := s.g.Subscribe("far", SubscriberConfig{Sync: patient})
	return err
}

// TestTakingOverIsPaidForAhead: between the hand-over, which is durable, and the first write nothing is written to the log.
func TestTakingOverIsPaidForAhead(t *testing.T) {
	_, seed := seeded(t)
	s := newSite(t, seed, 1, testSize, 4<<20)
	if err := adopted(s); err != nil {
		t.Fatal(err)
	}
	s.jdev.SetHook(func(call block.Call, off, n int64) error {
		if call != block.CallRead && call != block.CallReadNowait {
			t.Errorf("%s of %d bytes at %d", call, n, off)
		}
		return nil
	})
	if err := takeOver(s); err != nil {
		t.Fatal(err)
	}
	s.jdev.SetHook(nil)
	sub := s.g.Subscriber("far")
	if !sub.Sync().Waits {
		t.Error("the promise was not taken over")
	}
	if sub.Sync().Holds {
		t.Error("it is said to have what it has not been asked for")
	}
	if _, ok := s.g.Ahead(); ok {
		t.Error("the row is still offered")
	}
	s.stop()
	<-s.ended
	if err := s.g.Close(); err != nil {
		t.Fatal(err)
	}
}

// TestRowAheadIsNotServedTwice: the row is this process's alone. After a restart it stays empty, and is not in the way of
// the same hand-over, nor of the next incarnation.
func TestRowAheadIsNotServedTwice(t *testing.T) {
	_, seed := seeded(t)
	s := newSite(t, seed, 1, testSize, 4<<20)
	if err := adopted(s); err != nil {
		t.Fatal(err)
	}
	s.kill()
	if err := adopted(s); err != nil { // before "opened" was on disk
		t.Fatal(err)
	}
	s.crash()
	s.open()
	if _, ok := s.g.Ahead(); ok {
		t.Fatal("a row that another process has opened is offered")
	}
	if err := takeOver(s); err != nil { // behind it
		t.Fatal(err)
	}
	if row, _ := s.g.Table().Current(); row.Incarnation != 2 || row.First != handedOver+1 {
		t.Fatalf("serves in %+v", row)
	}
	if !s.g.Subscriber("far").Sync().Waits {
		t.Error("the promise was lost")
	}
	s.crash()
	a := adoption()
	a.Next.First++
	s.open()
	if err := s.g.Adopt(a); !errors.Is(err, ErrEpoch) {
		t.Fatalf("a row that does not begin behind the hand-over: %v", err)
	}
	s.crash()
}

// TestTakeOverDiesAtEveryDeviceCall: the power goes at each call of the hand-over, of the taking over and of the first
// flushed write. What returned is there; what did not may be done again.
func TestTakeOverDiesAtEveryDeviceCall(t *testing.T) {
	_, seed := seeded(t)
	for at := 1; ; at++ {
		s := newSite(t, seed+uint64(at), 1, testSize, 4<<20)
		s.idle = true
		s.open()
		calls, struck := 0, errors.New("power is about to go")
		s.jdev.SetHook(func(call block.Call, _, _ int64) error {
			if call == block.CallRead || call == block.CallReadNowait {
				return nil
			}
			if calls++; calls >= at {
				return struck
			}
			return nil
		})
		took := s.g.Adopt(adoption())
		served, flushed := errStart, errStart
		if took == nil {
			if served = takeOver(s); served == nil {
				flushed = s.flushOne()
			}
		}
		s.crash()
		s.open()
		row, there := s.g.Table().Current()
		switch {
		case took == nil && (!there || row.Epoch != 2 || s.g.Appended() < handedOver):
			t.Fatalf("call %d: adopted, and the log has %+v up to %d", at, row, s.g.Appended())
		case there && (row.Epoch != 2 || !known(s.g, 5, 9)):
			t.Fatalf("call %d: half of the hand-over: %+v", at, row)
		case flushed == nil && s.g.Appended() != handedOver+1:
			t.Fatalf("call %d: a flushed write is lost", at)
		}
		if flushed != nil && s.g.Appended() <= handedOver { // nobody was answered: it is begun anew
			if err := s.g.Adopt(adoption()); err != nil {
				t.Fatalf("call %d: again: %v", at, err)
			}
		}
		if err := takeOver(s); err != nil {
			t.Fatalf("call %d: %v", at, err)
		}
		if !s.g.Subscriber("far").Sync().Waits || !known(s.g, 5, 9) {
			t.Fatalf("call %d: the promise or the done requests were not taken over", at)
		}
		if written := s.g.Subscriber("cut").ChangedBytes() > 0; written != (s.g.Appended() > handedOver) {
			t.Fatalf("call %d: marked as written since: %v, the log ends at %d", at, written, s.g.Appended())
		}
		s.crash()
		if flushed == nil {
			return
		}
	}
}

var errStart = errors.New("not begun")

// known: the request is in the log and must not be executed again.
func known(g *Group, session, number uint64) bool { return g.done.look(session, number, 0) == doneYes }

// flushOne numbers a write and makes it durable. Its host waits for the subscriber, for ever.
func (s *site) flushOne() error {
	asks(s.vols[0], block.OpWrite, 0)
	for s.g.Appended() == handedOver && s.g.Err() == nil {
		time.Sleep(time.Millisecond)
	}
	_, err := s.jnl.Sync()
	return err
}
