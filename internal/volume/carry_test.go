package volume

import (
	"testing"

	"gantline/internal/record"
)

// shortLog is a log of which only numbers are looked at.
type shortLog struct {
	Log
	at      Cursors
	trimmed record.Seq
	closed  bool
}

func (l *shortLog) Cursors() Cursors { return l.at }
func (l *shortLog) Close() error     { l.closed = true; return nil }

func (l *shortLog) Trim(upTo record.Seq) error {
	l.at.Trimmed, l.trimmed = upTo, upTo
	return nil
}

func (l *shortLog) Read(from record.Seq, _, _ int) ([]record.Record, error) {
	if from <= l.at.Trimmed {
		return nil, ErrTrimmed
	}
	return []record.Record{{Seq: from, Volume: record.VolumeNumber(l.at.Appended)}}, nil
}

func (l *shortLog) Entries(from record.Seq, _ int) ([]record.Record, error) {
	return l.Read(from, 1, 1)
}

// Two logs are read, and freed, as one, and nothing of the second is freed before all of the first.
func TestChain(t *testing.T) {
	front, own := &shortLog{at: Cursors{10, 20, 20}}, &shortLog{at: Cursors{20, 25, 30}}
	c := NewChain(own, nil, 0, 0)
	if c.Cursors() != own.at {
		t.Fatalf("without a front: %+v", c.Cursors())
	}
	c.attach(front, 20, 1000, 0)
	if got := c.Cursors(); got != (Cursors{10, 25, 30}) {
		t.Fatalf("%+v", got)
	}
	for seq, log := range map[record.Seq]*shortLog{11: front, 20: front, 21: own, 30: own} {
		if recs, err := c.Read(seq, 1, 1); err != nil || recs[0].Seq != seq || recs[0].Volume != record.VolumeNumber(log.at.Appended) {
			t.Errorf("record %d: %+v %v", seq, recs, err)
		}
		if seq > 20 {
			continue
		}
		if recs, err := c.entries(seq); err != nil || recs[0].Seq != seq {
			t.Errorf("entry %d: %+v %v", seq, recs, err)
		}
	}
	if left, _, ok := c.left(15); !ok || left != 500 {
		t.Errorf("%d bytes are left", left)
	}
	if err := c.Trim(15); err != nil || front.trimmed != 15 || own.trimmed != 0 {
		t.Fatalf("%v: %d, %d", err, front.trimmed, own.trimmed)
	}
	if _, err := c.Read(15, 1, 1); err == nil {
		t.Error("a record that was freed is read")
	}
	if err := c.Reset(40, nil, nil); err == nil {
		t.Error("the log was begun anew while its front is needed")
	}
	if err := c.Trim(23); err != nil || front.trimmed != 20 || own.trimmed != 23 || c.Cursors() != own.at {
		t.Fatalf("%v: %d, %d", err, front.trimmed, own.trimmed)
	}
	if err := c.Close(); err != nil || !front.closed || !own.closed {
		t.Errorf("%v: not both are closed", err)
	}
}
