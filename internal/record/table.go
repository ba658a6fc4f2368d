package record

import (
	"errors"
	"fmt"
)

// Limits of an epoch table. A log that reaches MaxRows forgets its oldest rows (Forget): they lie below what it keeps.
const (
	MaxRows     = 1024
	MaxNodeName = 127            // "node.cluster", each a name of at most 63 bytes
	MaxSeq      = Seq(1<<62 - 1) // numbers end here, so that no sum of them wraps around
)

var (
	// ErrTable: the rows contradict each other or exceed a limit; nothing may be decided from them.
	ErrTable = errors.New("epoch table is not valid")
	// ErrSplitBrain: two histories that no cut can join. Neither side may take records of the other; an operator chooses.
	ErrSplitBrain = errors.New("split-brain")
	// ErrStale: the other side's table is an earlier state of this one (a late hello, a restored backup): it is not
	// followed, and nothing here is cut because of it.
	ErrStale = errors.New("the other side's epoch table is older than this one")
)

// ID is the row's epoch as an EpochID.
func (r Row) ID() EpochID { return EpochID{Number: r.Epoch, Node: r.Node} }

// Before orders rows by (epoch, incarnation).
func (r Row) Before(o Row) bool {
	if r.Epoch != o.Epoch {
		return r.Epoch < o.Epoch
	}
	return r.Incarnation < o.Incarnation
}

// Same says that both rows are the same run of the same epoch, closed or not.
func (r Row) Same(o Row) bool {
	return r.Epoch == o.Epoch && r.Incarnation == o.Incarnation && r.Node == o.Node && r.First == o.First
}

// Contains says that seq is one of the row's numbers, as far as it is known to reach.
func (r Row) Contains(seq Seq) bool { return seq >= r.First && seq <= r.end() }

// end is the last number the row may hold.
func (r Row) end() Seq {
	if r.Closed {
		return r.Last
	}
	return MaxSeq
}

// check validates the row by itself.
func (r Row) check() error {
	switch {
	case r.Epoch == 0:
		return errors.New("epoch is 0")
	case r.Incarnation == 0:
		return errors.New("incarnation is 0")
	case r.Node == "" || len(r.Node) > MaxNodeName:
		return fmt.Errorf("node name has %d bytes, allowed are 1 to %d", len(r.Node), MaxNodeName)
	case r.First == 0 || r.First > MaxSeq:
		return fmt.Errorf("first sequence %d is out of range", r.First)
	case r.Closed && (r.Last > MaxSeq || r.Last+1 < r.First):
		return fmt.Errorf("last sequence %d does not fit first sequence %d", r.Last, r.First)
	}
	return nil
}

// Validate checks limits and the rules of a table: rows ascend by (epoch, incarnation), each begins right behind the
// one before, only the last may be open, and an epoch has one node.
func (t Table) Validate() error {
	if len(t) > MaxRows {
		return fmt.Errorf("%w: %d rows, at most %d are allowed", ErrTable, len(t), MaxRows)
	}
	for i, r := range t {
		if err := r.check(); err != nil {
			return fmt.Errorf("%w: row %d: %w", ErrTable, i, err)
		}
		if i == 0 {
			continue
		}
		p := t[i-1]
		switch {
		case !p.Before(r):
			return fmt.Errorf("%w: row %d (epoch %d incarnation %d) does not ascend", ErrTable, i, r.Epoch, r.Incarnation)
		case !p.Closed:
			return fmt.Errorf("%w: row %d is open but row %d follows it", ErrTable, i-1, i)
		case p.Last+1 != r.First:
			return fmt.Errorf("%w: row %d begins at %d, the row before ends at %d", ErrTable, i, r.First, p.Last)
		case p.Epoch == r.Epoch && p.Node != r.Node:
			return fmt.Errorf("%w: epoch %d has two nodes, %q and %q", ErrTable, r.Epoch, p.Node, r.Node)
		}
	}
	return nil
}

// Current is the newest row; false for an empty table.
func (t Table) Current() (Row, bool) {
	if len(t) == 0 {
		return Row{}, false
	}
	return t[len(t)-1], true
}

// At is the row that seq belongs to. It looks from the end, where the callers' numbers are.
func (t Table) At(seq Seq) (Row, bool) {
	for i := len(t) - 1; i >= 0 && seq <= t[i].end(); i-- {
		if seq >= t[i].First {
			return t[i], true
		}
	}
	return Row{}, false
}

// Clone copies the rows.
func (t Table) Clone() Table { return append(Table(nil), t...) }

// Close returns a copy whose newest row is closed at last; rows that begin beyond last+1 are dropped, because with the
// log ending at last none of their records is here.
func (t Table) Close(last Seq) Table {
	n := len(t)
	for n > 0 && t[n-1].First > last+1 {
		n--
	}
	out := t[:n:n].Clone()
	if n > 0 && (!out[n-1].Closed || out[n-1].Last > last) {
		out[n-1].Last, out[n-1].Closed = last, true
	}
	return out
}

// Truncate returns a copy without the rows that begin above keep. The last row left stays as it is: where it ends is a
// fact about the log's owner, not about how much of it is here.
func (t Table) Truncate(keep Seq) Table {
	n := len(t)
	for n > 0 && t[n-1].First > keep {
		n--
	}
	return t[:n:n].Clone()
}

// Extend returns a copy with row as its newest, the one before closed right in front of it. An empty run of the same
// epoch is left out: it numbered nothing, and a process that restarts again and again must not fill the table.
func (t Table) Extend(row Row) (Table, error) {
	if err := row.check(); err != nil {
		return nil, fmt.Errorf("%w: %w", ErrTable, err)
	}
	if row.Closed {
		return nil, fmt.Errorf("%w: a row cannot be opened closed", ErrTable)
	}
	if cur, ok := t.Current(); ok {
		if !cur.Before(row) {
			return nil, fmt.Errorf("%w: epoch %d incarnation %d does not follow epoch %d incarnation %d",
				ErrTable, row.Epoch, row.Incarnation, cur.Epoch, cur.Incarnation)
		}
		if cur.Epoch == row.Epoch && cur.Node != row.Node {
			return nil, fmt.Errorf("%w: epoch %d belongs to node %q, not %q", ErrSplitBrain, row.Epoch, cur.Node, row.Node)
		}
	}
	out := t.Close(row.First - 1)
	for n := len(out); n > 0 && out[n-1].Last < out[n-1].First && out[n-1].Epoch == row.Epoch; n = len(out) {
		out = out[:n-1]
	}
	out = append(out, row)
	return out, out.Validate()
}

// Forget returns a copy without its oldest rows that lie wholly at or below upTo, as long as more than max are left.
func (t Table) Forget(upTo Seq, max int) Table {
	i := 0
	for len(t)-i > max && t[i].Closed && t[i].Last <= upTo {
		i++
	}
	return t[i:].Clone()
}
