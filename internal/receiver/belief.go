package receiver

import (
	"encoding/json"
	"errors"
	"fmt"
	"slices"

	"gantline/internal/record"
)

const (
	maxSources   = 3 // valid at once: two, and one whose records are still owed from the move before
	maxPermitted = 16
)

// Source is a node that may send, in one epoch, the records First..Last.
type Source struct {
	Epoch record.EpochID `json:"epoch"`
	First record.Seq     `json:"first"` // 0: from wherever this side stands
	Last  record.Seq     `json:"last"`  // 0: its epoch is open
}

// Permit allows an epoch that is not valid yet. First is its first sequence, 0 if it is not known yet.
type Permit struct {
	Epoch record.EpochID `json:"epoch"`
	First record.Seq     `json:"first"`
}

// Fence is the end of an epoch as its own log states it.
type Fence struct {
	Cut  record.Seq     `json:"cut"`
	Next record.EpochID `json:"next"`
}

// State is what a receiver keeps durable: whom it believes. Sources ascend by epoch; each but the last is closed.
type State struct {
	Sources   []Source `json:"sources"`
	Permitted []Permit `json:"permitted"`
	Fence     *Fence   `json:"fence"`
}

func (s State) clone() State {
	s.Sources = slices.Clone(s.Sources)
	s.Permitted = slices.Clone(s.Permitted)
	return s
}

func (s State) encode() ([]byte, error) { return json.Marshal(s) }

func decodeState(b []byte) (State, error) {
	var s State
	if len(b) == 0 {
		return s, nil
	}
	if err := json.Unmarshal(b, &s); err != nil {
		return s, fmt.Errorf("receiver: saved state: %w", err)
	}
	if len(s.Sources) > maxSources || len(s.Permitted) > maxPermitted {
		return s, fmt.Errorf("receiver: saved state has %d sources and %d permissions", len(s.Sources), len(s.Permitted))
	}
	return s, nil
}

// Having is what this side has when it judges a hello.
type Having struct {
	Table                    record.Table
	Stored, Durable, Applied record.Seq
}

// verdict on a hello that is accepted.
type verdict struct {
	next State      // to be saved before anything else if changed
	save bool       // next differs from what was saved
	keep record.Seq // what is stored above it must be cut
	last record.Seq // the stream may send up to here; 0: its epoch is open
	owed record.Seq // records up to here are another source's to send
}

// current is the newest valid source.
func (s State) current() (Source, bool) {
	if len(s.Sources) == 0 {
		return Source{}, false
	}
	return s.Sources[len(s.Sources)-1], true
}

func (s State) source(id record.EpochID) (Source, bool) {
	for _, src := range s.Sources {
		if src.Epoch == id {
			return src, true
		}
	}
	return Source{}, false
}

// owed is the last record that a source older than id's has still to send, 0 if there is none. What a node that goes on in
// a later epoch owes of its own earlier one comes with its present stream: that is of the same log.
func (s State) owed(id record.EpochID) record.Seq {
	var upTo record.Seq
	own := true
	for _, src := range slices.Backward(s.Sources) {
		if src.Epoch.Number >= id.Number {
			continue
		}
		if own = own && src.Epoch.Node == id.Node; !own {
			upTo = max(upTo, src.Last)
		}
	}
	return upTo
}

// judge decides on a hello of epoch id with the sender's table. Nothing is changed by it.
func (s State) judge(id record.EpochID, table record.Table, have Having) (verdict, error) {
	if err := checkHello(id, table); err != nil {
		return verdict{}, err
	}
	for _, src := range s.Sources {
		if src.Epoch.Number == id.Number && src.Epoch.Node != id.Node {
			return verdict{}, refuse(ReasonSplitBrain, "epoch %d is %s's here, %s claims it", id.Number, src.Epoch.Node, id.Node)
		}
	}
	keep, err := have.Table.Cut(table, have.Stored)
	switch {
	case errors.Is(err, record.ErrSplitBrain):
		return verdict{}, refuse(ReasonSplitBrain, "%v", err)
	case errors.Is(err, record.ErrStale):
		return verdict{}, refuse(ReasonSuperseded, "%v", err)
	case err != nil:
		return verdict{}, refuse(ReasonProtocol, "%v", err)
	}
	v := verdict{next: s, keep: keep}
	cur, some := s.current()
	row, _ := table.Current()
	switch src, valid := s.source(id); {
	case valid && src.Last != 0 && row.Closed && row.Last != src.Last:
		return verdict{}, refuse(ReasonSplitBrain, "epoch %d of %s ends at %d there, the cut here is %d", id.Number, id.Node, row.Last, src.Last)
	case valid:
	case some && id.Number < cur.Epoch.Number:
		if v.last, err = s.past(id, table, have.Table); err != nil {
			return verdict{}, err
		}
		v.keep = have.Stored
		return v, nil
	default:
		if v.next, err = s.higher(id, table, have); err != nil {
			return verdict{}, err
		}
		v.save = true
	}
	if v.keep < have.Applied {
		return verdict{}, refuse(ReasonFailed, "records above %d are not the source's, and those up to %d have been applied",
			v.keep, have.Applied)
	}
	src, _ := v.next.source(id)
	v.last, v.owed = src.Last, v.next.owed(id)
	return v, nil
}

func checkHello(id record.EpochID, table record.Table) error {
	if err := table.Validate(); err != nil {
		return refuse(ReasonProtocol, "hello: %v", err)
	}
	row, ok := table.Current()
	if !ok || row.ID() != id {
		return refuse(ReasonProtocol, "hello of epoch %d of %q does not match its own table", id.Number, id.Node)
	}
	return nil
}

// past judges a source whose epoch is over here. Below its cut it is not refused: it may not know yet that all of it
// has arrived. A sender that has more, or may still write more, is.
func (s State) past(id record.EpochID, theirs, ours record.Table) (last record.Seq, err error) {
	row, _ := theirs.Current()
	if n := len(ours); n > 0 && !ours[n-1].Closed && ours[n-1].Epoch < s.Sources[0].Epoch.Number {
		ours = ours.Close(s.Sources[0].First - 1) // the next epoch is valid, but none of its records has come
	}
	for _, mine := range slices.Backward(ours) {
		if mine.Epoch != id.Number {
			continue
		}
		if mine.Node == id.Node && mine.Closed && row.Closed && row.Last <= mine.Last {
			return mine.Last, nil
		}
		return 0, refuse(ReasonSuperseded, "epoch %d of %s has ended here at %d", id.Number, id.Node, mine.Last)
	}
	return 0, refuse(ReasonSuperseded, "epoch %d of %s is over here", id.Number, id.Node)
}

// higher judges an epoch above all that are valid here.
func (s State) higher(id record.EpochID, table record.Table, have Having) (State, error) {
	first := firstOf(id.Number, table)
	if f := s.Fence; f != nil && f.Next.Number == id.Number {
		if f.Next.Node != id.Node {
			return s, refuse(ReasonSplitBrain, "the fence at %d names %s for epoch %d, not %s", f.Cut, f.Next.Node, id.Number, id.Node)
		}
		if first != f.Cut+1 {
			return s, refuse(ReasonSplitBrain, "epoch %d begins at %d, the fence is at %d", id.Number, first, f.Cut)
		}
		return s.raise(id, first, have.Durable), nil
	}
	for _, p := range s.Permitted {
		if p.Epoch != id {
			continue
		}
		if p.First != 0 && p.First != first {
			return s, refuse(ReasonSplitBrain, "epoch %d begins at %d, permitted from %d on", id.Number, first, p.First)
		}
		return s.raise(id, first, have.Durable), nil
	}
	if s.Fence != nil && first != s.Fence.Cut+1 {
		return s, refuse(ReasonSplitBrain, "epoch %d of %s begins at %d, the cut here is %d", id.Number, id.Node, first, s.Fence.Cut)
	}
	if len(s.Sources) > 0 && first <= have.Applied {
		return s, refuse(ReasonSplitBrain, "epoch %d of %s begins at %d, this side has applied %d", id.Number, id.Node, first, have.Applied)
	}
	return s, refuse(ReasonNotPermitted, "epoch %d of %s is not permitted here", id.Number, id.Node)
}

func firstOf(epoch uint64, t record.Table) record.Seq {
	for _, row := range t {
		if row.Epoch == epoch {
			return row.First
		}
	}
	return 0
}

// raise makes id valid from first on; the sources before it speak up to there. Those that owe nothing any more are
// forgotten, but for the last one: that is the transitional state, ended by single.
func (s State) raise(id record.EpochID, first, durable record.Seq) State {
	s = s.clone()
	for i := range s.Sources {
		if src := &s.Sources[i]; src.Last == 0 || src.Last >= first {
			src.Last = first - 1
		}
	}
	s.Sources = slices.DeleteFunc(s.Sources, func(src Source) bool { return src.Last == 0 || src.Last < src.First })
	for len(s.Sources) > 1 && (s.Sources[0].Last <= durable || len(s.Sources) >= maxSources) {
		s.Sources = s.Sources[1:]
	}
	s.Sources = append(s.Sources, Source{Epoch: id, First: first})
	s.Permitted = slices.DeleteFunc(s.Permitted, func(p Permit) bool { return p.Epoch.Number <= id.Number })
	if s.Fence != nil && s.Fence.Next.Number < id.Number {
		s.Fence = nil // the epoch that it ended is not the last one any more
	}
	return s
}

// fence notes that epoch's own log ends at f.Cut and names who goes on.
func (s State) fence(epoch uint64, f Fence, durable record.Seq) State {
	cur, ok := s.current()
	if !ok || cur.Epoch.Number != epoch || f.Next.Number <= epoch {
		return s // of an epoch that is over: its end is known
	}
	s.Fence = &f
	return s.raise(f.Next, f.Cut+1, durable)
}

// permit adds a permission; repeated ones change nothing.
func (s State) permit(p Permit) (State, error) {
	if cur, ok := s.current(); ok && p.Epoch.Number <= cur.Epoch.Number {
		if _, valid := s.source(p.Epoch); valid {
			return s, nil
		}
		return s, refuse(ReasonSuperseded, "epoch %d of %s cannot follow epoch %d of %s", p.Epoch.Number, p.Epoch.Node,
			cur.Epoch.Number, cur.Epoch.Node)
	}
	s = s.clone()
	s.Permitted = slices.DeleteFunc(s.Permitted, func(o Permit) bool { return o.Epoch == p.Epoch })
	if len(s.Permitted) >= maxPermitted {
		return s, fmt.Errorf("receiver: %d epochs are permitted already", maxPermitted)
	}
	s.Permitted = append(s.Permitted, p)
	return s, nil
}

// believe is permit, and valid at once: its first sequence is known, or it is the first source of all.
func (s State) believe(p Permit, have Having) (State, error) {
	if _, valid := s.source(p.Epoch); valid {
		return s, nil
	}
	if cur, ok := s.current(); ok && p.Epoch.Number <= cur.Epoch.Number {
		return s, refuse(ReasonSuperseded, "epoch %d of %s cannot follow epoch %d of %s", p.Epoch.Number, p.Epoch.Node,
			cur.Epoch.Number, cur.Epoch.Node)
	}
	if len(s.Sources) == 0 {
		return s.raise(p.Epoch, p.First, have.Durable), nil
	}
	if p.First == 0 {
		return s, fmt.Errorf("receiver: epoch %d of %s cannot be valid before its first sequence is known", p.Epoch.Number, p.Epoch.Node)
	}
	if f := s.Fence; f != nil && f.Next.Number == p.Epoch.Number && (f.Next != p.Epoch || f.Cut+1 != p.First) {
		return s, refuse(ReasonSplitBrain, "the fence at %d names %s for epoch %d", f.Cut, f.Next.Node, f.Next.Number)
	}
	if p.First <= have.Applied {
		return s, refuse(ReasonFailed, "epoch %d of %s begins at %d, this side has applied %d", p.Epoch.Number, p.Epoch.Node,
			p.First, have.Applied)
	}
	return s.raise(p.Epoch, p.First, have.Durable), nil
}

// single leaves id as the only source. Records that older sources owe must be durable, or abandoned: id's own changed
// map covers them.
func (s State) single(id record.EpochID, durable record.Seq, abandon bool) (State, error) {
	cur, ok := s.current()
	if !ok || cur.Epoch != id {
		return s, refuse(ReasonNotPermitted, "epoch %d of %s is not the present source", id.Number, id.Node)
	}
	if owed := s.owed(id); owed > durable && !abandon {
		return s, refuse(ReasonProtocol, "records up to %d are still owed by the older source, durable is %d", owed, durable)
	}
	s = s.clone()
	s.Sources = []Source{cur}
	return s, nil
}

// CopySource words the set as the document's copy source valid flag.
func (s State) CopySource() string {
	cur, ok := s.current()
	if !ok {
		return ""
	}
	if from := s.Sources[0].Epoch.Node; from != cur.Epoch.Node {
		return "transitional " + from + "->" + cur.Epoch.Node
	}
	return cur.Epoch.Node
}
