package receiver

import (
	"encoding/json"

	"gantline/internal/record"
	"gantline/internal/wire"
)

// right is what one stream may send: records inside the rows that its hello has shown, up to last.
type right struct {
	id    record.EpochID
	table record.Table
	last  record.Seq // 0: its epoch is open
	owed  record.Seq // older sources have still to send up to here
	row   int        // where the record before was found
}

// check says whether each record lies in a row that is believed, and whether they follow one another.
func (t *right) check(recs []record.Record) error {
	for i := range recs {
		r := &recs[i]
		if i > 0 && r.Seq != recs[i-1].Seq+1 && !(r.Op == record.OpBegin && r.Seq > recs[i-1].Seq) {
			return refuse(ReasonProtocol, "record %d behind %d", r.Seq, recs[i-1].Seq)
		}
		if !sane(r) {
			return refuse(ReasonProtocol, "record %d: op %d, length %d, %d bytes of data", r.Seq, r.Op, r.Length, len(r.Data))
		}
		if t.last != 0 && r.Seq > t.last {
			return refuse(ReasonSuperseded, "record %d of epoch %d, whose cut is %d", r.Seq, r.Epoch, t.last)
		}
		if t.inRow(r) {
			continue
		}
		if !t.find(r) {
			return refuse(ReasonProtocol, "record %d of epoch %d incarnation %d is in no row that the hello has shown",
				r.Seq, r.Epoch, r.Incarnation)
		}
	}
	return nil
}

// sane says whether a record is one that a log may hold: a malformed one must not get as far as the store.
func sane(r *record.Record) bool {
	data := len(r.Data)
	if r.Seq == 0 || r.Seq > record.MaxSeq || data > wire.MaxPayload || data == 0 && r.CRC != 0 {
		return false
	}
	switch r.Op {
	case record.OpWrite:
		return data > 0 && data == int(r.Length)
	case record.OpCopy:
		return data == 0 && r.Flags&record.FlagEmpty != 0 || data > 0 && r.Flags&record.FlagEmpty == 0 && data == int(r.Length)
	case record.OpZero, record.OpTrim, record.OpBegin, record.OpEnd:
		return data == 0
	case record.OpMember, record.OpDigest, record.OpFence:
		return true
	}
	return false
}

func (t *right) inRow(r *record.Record) bool {
	row := &t.table[t.row]
	return r.Epoch == row.Epoch && r.Incarnation == row.Incarnation && row.Contains(r.Seq)
}

func (t *right) find(r *record.Record) bool {
	for t.row = len(t.table) - 1; t.row > 0; t.row-- {
		if t.inRow(r) {
			return true
		}
	}
	return t.inRow(r)
}

// sift returns what of recs is new behind stored. early: it may not be stored yet, because an older source still owes
// what precedes it. A gap is an error, except in front of a begin.
func (t *right) sift(recs []record.Record, stored record.Seq) (fresh []record.Record, early bool, err error) {
	for len(recs) > 0 && recs[0].Seq <= stored {
		recs = recs[1:]
	}
	switch {
	case len(recs) == 0 || recs[0].Seq == stored+1:
		return recs, false, nil
	case stored < t.owed:
		return recs, true, nil
	case recs[0].Op == record.OpBegin:
		return recs, false, nil
	}
	return nil, false, refuse(ReasonProtocol, "record %d behind %d", recs[0].Seq, stored)
}

// rows lists the rows that must be opened, in order, before r can be stored in a log whose newest row is current.
func (t *right) rows(current record.Row, some bool, r *record.Record) []record.Row {
	var open []record.Row
	for _, row := range t.table {
		if some && !current.Before(row) {
			continue
		}
		if row.Epoch > r.Epoch || row.Epoch == r.Epoch && row.Incarnation > r.Incarnation {
			break
		}
		row.Last, row.Closed = 0, false
		open = append(open, row)
	}
	return open
}

// run is the length of the leading records that one call of the store may take: one row, no gap inside.
func run(recs []record.Record) int {
	if len(recs) == 0 {
		return 0
	}
	for i := 1; i < len(recs); i++ {
		if recs[i].Epoch != recs[0].Epoch || recs[i].Incarnation != recs[0].Incarnation || recs[i].Seq != recs[i-1].Seq+1 {
			return i
		}
	}
	return len(recs)
}

// fenceOf finds a fence among the records and reads it.
func fenceOf(recs []record.Record) (*record.Record, Fence, error) {
	for i := range recs {
		r := &recs[i]
		if r.Op != record.OpFence {
			continue
		}
		f := Fence{Cut: r.Seq}
		if err := json.Unmarshal(r.Data, &f.Next); err != nil || f.Next.Node == "" || f.Next.Number <= r.Epoch {
			return nil, f, refuse(ReasonProtocol, "fence at %d in epoch %d names no later epoch", r.Seq, r.Epoch)
		}
		return r, f, nil
	}
	return nil, Fence{}, nil
}
