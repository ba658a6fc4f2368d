package record

import "fmt"

// Cut compares this side's table with that of a sender, where this side has stored all records up to stored, and says
// up to which sequence this side may keep them: the last one at which both tables agree, from the first row that differs.
//
//   - A run of an epoch that ended earlier at its owner than here: the owner lost an unsynced tail, which was never
//     applied. keep is below stored; the caller cuts its log there.
//   - The same epoch number with another node, an epoch's end known to both and not equal, or a higher epoch that
//     begins where this side has records of a lower one: ErrSplitBrain.
//   - A sender of an older epoch (the old source of a move): keep is stored. What it may still send lies below its
//     epoch's cut; its records beyond do not match this side's rows and are refused when they come.
//   - A sender that knows only an earlier run of an epoch than this side does: ErrStale.
func (t Table) Cut(remote Table, stored Seq) (keep Seq, err error) {
	if err := t.sameOwners(remote); err != nil {
		return 0, err
	}
	d, differ, err := t.diverge(remote)
	if err != nil {
		return 0, err
	}
	if !differ {
		return stored, nil
	}
	newest, theirs := t[len(t)-1].Epoch, remote[len(remote)-1].Epoch
	if theirs < newest {
		return stored, nil
	}
	if d.here == nil || d.there == nil {
		// One table ends where the other goes on. Only a row shortened at its owner costs records.
		if d.there == nil && d.shortened {
			return min(stored, d.agree), nil
		}
		return stored, nil
	}
	switch {
	case d.there.Epoch == d.here.Epoch && d.there.Incarnation < d.here.Incarnation && theirs > newest:
		return 0, fmt.Errorf("%w: epoch %d goes on in incarnation %d at sequence %d here, which epoch %d there does not know",
			ErrSplitBrain, d.here.Epoch, d.here.Incarnation, d.agree+1, theirs)
	case d.there.Epoch == d.here.Epoch && d.there.Incarnation < d.here.Incarnation:
		return 0, fmt.Errorf("%w: epoch %d is at incarnation %d there and at %d here from sequence %d on",
			ErrStale, d.here.Epoch, d.there.Incarnation, d.here.Incarnation, d.agree+1)
	case d.there.Epoch < d.here.Epoch:
		return stored, nil
	case d.there.Epoch > d.here.Epoch && stored > d.agree:
		return 0, fmt.Errorf("%w: epoch %d of %s begins at sequence %d, but this side has records of epoch %d up to %d",
			ErrSplitBrain, d.there.Epoch, d.there.Node, d.agree+1, d.here.Epoch, stored)
	}
	return min(stored, d.agree), nil
}

// Agree is the last sequence up to which both tables name the same rows; MaxSeq if they never differ.
func (t Table) Agree(remote Table) Seq {
	if len(t) == 0 || len(remote) == 0 {
		return 0
	}
	d, differ, err := t.diverge(remote)
	switch {
	case err != nil:
		return 0
	case !differ:
		return MaxSeq
	}
	return d.agree
}

// sameOwners checks what holds wherever both tables speak of an epoch: one node, and one end.
func (t Table) sameOwners(remote Table) error {
	j := 0
	for i := range t {
		e := t[i].Epoch
		if i+1 < len(t) && t[i+1].Epoch == e {
			continue // compare at each epoch's last row
		}
		for j < len(remote) && (remote[j].Epoch < e || remote[j].Epoch == e && j+1 < len(remote) && remote[j+1].Epoch == e) {
			j++
		}
		if j == len(remote) || remote[j].Epoch != e {
			continue
		}
		r := remote[j]
		if r.Node != t[i].Node {
			return fmt.Errorf("%w: epoch %d belongs to node %s here and to %s there", ErrSplitBrain, e, t[i].Node, r.Node)
		}
		if i+1 < len(t) && j+1 < len(remote) && t[i].Last != r.Last {
			return fmt.Errorf("%w: epoch %d ends at sequence %d here and at %d there", ErrSplitBrain, e, t[i].Last, r.Last)
		}
	}
	return nil
}

// divergence is where two tables part: agree is the last common sequence, here and there the rows that follow it on
// each side (nil: the table ends). shortened: the last common row ends earlier there than here.
type divergence struct {
	agree       Seq
	here, there *Row
	shortened   bool
}

// diverge finds the first row that differs. Tables may have forgotten their oldest rows, so it begins where both speak.
func (t Table) diverge(remote Table) (d divergence, differ bool, err error) {
	if len(t) == 0 || len(remote) == 0 {
		return d, false, nil
	}
	from := max(t[0].First, remote[0].First)
	i, j := t.index(from), remote.index(from)
	if i == len(t) || j == len(remote) {
		return d, false, nil // one ends before the other begins: nothing to compare
	}
	d.agree = from - 1
	for ; i < len(t) && j < len(remote); i, j = i+1, j+1 {
		a, b := t[i], remote[j]
		if a.Epoch != b.Epoch || a.Incarnation != b.Incarnation {
			d.here, d.there = &t[i], &remote[j]
			return d, true, nil
		}
		if !a.Same(b) {
			return d, true, fmt.Errorf("%w: epoch %d incarnation %d begins at %d on %s here and at %d on %s there",
				ErrSplitBrain, a.Epoch, a.Incarnation, a.First, a.Node, b.First, b.Node)
		}
		d.agree = min(a.end(), b.end())
		switch {
		case a.end() > b.end():
			d.here, d.there, d.shortened = &t[i], remote.row(j+1), true
			return d, true, nil
		case a.end() < b.end():
			d.here, d.there = t.row(i+1), &remote[j]
			return d, true, nil
		}
	}
	if i == len(t) && j == len(remote) {
		return d, false, nil
	}
	d.here, d.there = t.row(i), remote.row(j)
	return d, true, nil
}

// index is the first row that reaches seq or begins there; len(t) if there is none.
func (t Table) index(seq Seq) int {
	for i := range t {
		if t[i].First == seq || t[i].Contains(seq) {
			return i
		}
	}
	return len(t)
}

// row is a pointer to row i, nil beyond the end.
func (t Table) row(i int) *Row {
	if i >= len(t) {
		return nil
	}
	return &t[i]
}
