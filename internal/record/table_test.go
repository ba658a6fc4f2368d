package record

import (
	"errors"
	"reflect"
	"strings"
	"testing"

	"pgregory.net/rapid"
)

// row builds a row; last < 0 leaves it open.
func row(epoch uint64, inc Incarnation, node string, first Seq, last int64) Row {
	r := Row{Epoch: epoch, Incarnation: inc, Node: node, First: first}
	if last >= 0 {
		r.Last, r.Closed = Seq(last), true
	}
	return r
}

func TestTableRules(t *testing.T) {
	long := strings.Repeat("n", MaxNodeName+1)
	big := make(Table, MaxRows+1)
	for i := range big {
		big[i] = row(1, Incarnation(i+1), "a", 1, 0)
	}
	for name, c := range map[string]struct {
		t  Table
		ok bool
	}{
		"empty":              {nil, true},
		"one open":           {Table{row(1, 1, "a", 1, -1)}, true},
		"one closed":         {Table{row(1, 1, "a", 1, 9)}, true},
		"empty closed row":   {Table{row(1, 1, "a", 1, 0), row(1, 2, "a", 1, -1)}, true},
		"three":              {Table{row(1, 1, "a", 1, 9), row(1, 2, "a", 10, 12), row(2, 1, "b", 13, -1)}, true},
		"at the row limit":   {big[:MaxRows], true},
		"above the limit":    {big, false},
		"hole":               {Table{row(1, 1, "a", 1, 9), row(1, 2, "a", 11, -1)}, false},
		"overlap":            {Table{row(1, 1, "a", 1, 9), row(1, 2, "a", 9, -1)}, false},
		"open in the middle": {Table{row(1, 1, "a", 1, -1), row(1, 2, "a", 10, -1)}, false},
		"descending":         {Table{row(2, 1, "a", 1, 9), row(1, 1, "a", 10, -1)}, false},
		"twice":              {Table{row(1, 1, "a", 1, 9), row(1, 1, "a", 10, -1)}, false},
		"two nodes":          {Table{row(1, 1, "a", 1, 9), row(1, 2, "b", 10, -1)}, false},
		"epoch 0":            {Table{row(0, 1, "a", 1, -1)}, false},
		"incarnation 0":      {Table{row(1, 0, "a", 1, -1)}, false},
		"sequence 0":         {Table{row(1, 1, "a", 0, -1)}, false},
		"no node":            {Table{row(1, 1, "", 1, -1)}, false},
		"long node":          {Table{row(1, 1, long, 1, -1)}, false},
		"wraps":              {Table{row(1, 1, "a", MaxSeq+1, -1)}, false},
		"last wraps":         {Table{{Epoch: 1, Incarnation: 1, Node: "a", First: 5, Last: ^Seq(0), Closed: true}}, false},
		"last below first":   {Table{row(1, 1, "a", 5, 3)}, false},
	} {
		if err := c.t.Validate(); (err == nil) != c.ok || err != nil && !errors.Is(err, ErrTable) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestTableAtAndCurrent(t *testing.T) {
	tab := Table{row(1, 1, "a", 5, 9), row(1, 2, "a", 10, 9), row(2, 1, "b", 10, -1)}
	for seq, want := range map[Seq]uint64{4: 0, 5: 1, 9: 1, 10: 2, MaxSeq: 2, MaxSeq + 1: 0} {
		if r, ok := tab.At(seq); ok != (want != 0) || r.Epoch != want {
			t.Errorf("At(%d) = %+v, %v", seq, r, ok)
		}
	}
	if r, ok := tab.Current(); !ok || r.Epoch != 2 {
		t.Error("current", r, ok)
	}
	if _, ok := Table(nil).Current(); ok {
		t.Error("an empty table has no current row")
	}
	if _, ok := (Table{row(1, 1, "a", 1, 9)}).At(10); ok {
		t.Error("nothing lies behind a closed row")
	}
}

func TestTableExtend(t *testing.T) {
	tab := Table{row(1, 1, "a", 1, -1)}
	next, err := tab.Extend(row(1, 2, "a", 8, -1))
	if err != nil || !reflect.DeepEqual(next, Table{row(1, 1, "a", 1, 7), row(1, 2, "a", 8, -1)}) {
		t.Fatal(next, err)
	}
	if tab[0].Closed {
		t.Fatal("Extend changed its receiver")
	}
	// An empty run of the same epoch leaves no row; one of another epoch does: it is an epoch's only trace.
	next, err = next.Extend(row(1, 3, "a", 8, -1))
	if err != nil || len(next) != 2 || next[1].Incarnation != 3 {
		t.Fatal(next, err)
	}
	next, err = next.Extend(row(2, 1, "b", 8, -1))
	if err != nil || len(next) != 3 || next[1].Last != 7 {
		t.Fatal(next, err)
	}
	// A promotion at 5 drops the rows that would have begun beyond it.
	next, err = next.Extend(row(3, 1, "c", 6, -1))
	if err != nil || !reflect.DeepEqual(next, Table{row(1, 1, "a", 1, 5), row(3, 1, "c", 6, -1)}) {
		t.Fatal(next, err)
	}
	for name, bad := range map[string]Row{
		"older": row(2, 9, "b", 9, -1), "same": row(3, 1, "c", 9, -1), "closed": row(4, 1, "c", 9, 10), "node": row(3, 2, "d", 9, -1),
		"gap in front of everything": row(4, 1, "d", 0, -1),
	} {
		if _, err := next.Extend(bad); err == nil {
			t.Errorf("%s: accepted", name)
		}
	}
	if _, err := next.Extend(row(3, 2, "d", 9, -1)); !errors.Is(err, ErrSplitBrain) {
		t.Error("another node for a known epoch must be split-brain")
	}
}

func TestTableForgetAndTruncate(t *testing.T) {
	tab := Table{row(1, 1, "a", 1, 9), row(1, 2, "a", 10, 19), row(2, 1, "b", 20, -1)}
	if got := tab.Forget(19, 2); len(got) != 2 || got[0].First != 10 {
		t.Error(got)
	}
	if got := tab.Forget(18, 0); len(got) != 2 {
		t.Error(got)
	}
	if got := tab.Forget(MaxSeq, 0); len(got) != 1 {
		t.Error("the open row is never forgotten", got)
	}
	if got := tab.Truncate(12); len(got) != 2 || got[1].Last != 19 {
		t.Error(got)
	}
	if got := tab.Truncate(19); len(got) != 2 {
		t.Error(got)
	}
}

func TestCut(t *testing.T) {
	a1 := row(1, 1, "a", 1, -1)
	for name, c := range map[string]struct {
		here, there Table
		stored      Seq
		keep        Seq
		err         error
	}{
		"equal":                            {Table{a1}, Table{a1}, 100, 100, nil},
		"new secondary":                    {nil, Table{a1}, 0, 0, nil},
		"sender restarted, nothing lost":   {Table{a1}, Table{row(1, 1, "a", 1, 100), row(1, 2, "a", 101, -1)}, 100, 100, nil},
		"sender lost its unsynced tail":    {Table{a1}, Table{row(1, 1, "a", 1, 94), row(1, 2, "a", 95, -1)}, 100, 94, nil},
		"lost it, then was moved":          {Table{a1}, Table{row(1, 1, "a", 1, 94), row(1, 2, "a", 95, 97), row(2, 1, "b", 98, -1)}, 100, 94, nil},
		"lost it, moved with an empty run": {Table{a1}, Table{row(1, 1, "a", 1, 94), row(1, 2, "a", 95, 94), row(2, 1, "b", 95, -1)}, 100, 94, nil},
		"receiver far behind":              {Table{a1}, Table{row(1, 1, "a", 1, 94), row(1, 2, "a", 95, 97), row(2, 1, "b", 98, -1)}, 50, 50, nil},
		"first run lost whole":             {Table{row(1, 1, "a", 1, -1)}, Table{row(1, 2, "a", 1, -1)}, 3, 0, nil},
		"two runs behind": {Table{row(1, 1, "a", 1, 10), row(1, 2, "a", 11, -1)},
			Table{row(1, 1, "a", 1, 10), row(1, 2, "a", 11, 15), row(1, 3, "a", 16, -1)}, 20, 15, nil},
		"move, in step":            {Table{a1}, Table{row(1, 1, "a", 1, 100), row(2, 1, "b", 101, -1)}, 100, 100, nil},
		"move, behind":             {Table{a1}, Table{row(1, 1, "a", 1, 100), row(2, 1, "b", 101, -1)}, 80, 80, nil},
		"sealed sender":            {Table{a1}, Table{row(1, 1, "a", 1, 100)}, 100, 100, nil},
		"transitional: old source": {Table{row(1, 1, "a", 1, 100), row(2, 1, "b", 101, -1)}, Table{a1}, 120, 120, nil},
		"old source never cuts newer": {Table{row(1, 1, "a", 1, 94), row(1, 2, "a", 95, 100), row(2, 1, "b", 101, -1)},
			Table{row(1, 1, "a", 1, 94), row(1, 3, "a", 95, -1)}, 120, 120, nil},
		"aborted move": {Table{row(1, 1, "a", 1, 100), row(2, 1, "b", 101, -1)},
			Table{row(1, 1, "a", 1, 100), row(3, 1, "a", 101, -1)}, 100, 100, nil},
		"returning primary without surplus": {Table{a1}, Table{row(1, 1, "a", 1, 94), row(2, 1, "b", 95, -1)}, 94, 94, nil},

		"returning primary with surplus": {Table{a1}, Table{row(1, 1, "a", 1, 94), row(2, 1, "b", 95, -1)}, 100, 0, ErrSplitBrain},
		"returning, restarted":           {Table{row(1, 1, "a", 1, 100), row(1, 2, "a", 101, -1)}, Table{row(1, 1, "a", 1, 94), row(2, 1, "b", 95, -1)}, 110, 0, ErrSplitBrain},
		"same epoch, other node":         {Table{a1}, Table{row(1, 1, "z", 1, -1)}, 0, 0, ErrSplitBrain},
		"same later epoch, other node":   {Table{row(1, 1, "a", 1, 9), row(2, 1, "b", 10, -1)}, Table{row(1, 1, "a", 1, 9), row(2, 1, "c", 10, -1)}, 9, 0, ErrSplitBrain},
		"not right after the known cut": {Table{row(1, 1, "a", 1, 100), row(2, 1, "b", 101, -1)},
			Table{row(1, 1, "a", 1, 94), row(2, 1, "b", 95, -1)}, 80, 0, ErrSplitBrain},
		"cut of a third epoch differs": {Table{row(1, 1, "a", 1, 100), row(2, 1, "b", 101, -1)},
			Table{row(1, 1, "a", 1, 90), row(3, 1, "c", 91, -1)}, 100, 0, ErrSplitBrain},
		"newer epoch unaware of a run": {Table{row(1, 1, "a", 1, 94), row(1, 2, "a", 95, -1)},
			Table{row(1, 1, "a", 1, 100), row(2, 1, "b", 101, -1)}, 120, 0, ErrSplitBrain},
		"same run begins elsewhere": {Table{row(1, 1, "a", 1, 9), row(1, 2, "a", 10, -1)}, Table{row(1, 1, "a", 1, 11), row(1, 2, "a", 12, -1)}, 11, 0, ErrStale},
		"late hello":                {Table{row(1, 1, "a", 1, 94), row(1, 2, "a", 95, -1)}, Table{a1}, 100, 0, ErrStale},
		"late hello, same begin":    {Table{row(1, 3, "a", 1, -1)}, Table{row(1, 2, "a", 1, -1)}, 3, 0, ErrStale},

		"sender forgot old rows":       {Table{a1}, Table{row(1, 4, "a", 90, 94), row(1, 5, "a", 95, -1)}, 100, 89, nil},
		"receiver forgot old rows":     {Table{row(1, 2, "a", 90, -1)}, Table{row(1, 1, "a", 1, 89), row(1, 2, "a", 90, 94), row(1, 3, "a", 95, -1)}, 100, 94, nil},
		"nothing in common, sender on": {Table{row(1, 1, "a", 1, 50)}, Table{row(1, 9, "a", 90, -1)}, 50, 50, nil},
	} {
		keep, err := c.here.Cut(c.there, c.stored)
		if !errors.Is(err, c.err) || err == nil && keep != c.keep {
			t.Errorf("%s: keep %d, %v; want %d, %v", name, keep, err, c.keep, c.err)
		}
	}
}

// TestCutFollowsPrimary plays one epoch of a primary that loses unsynced tails, and a receiver that stores what was
// shipped: after each hello what the receiver keeps is what the primary's log says, and no record more is dropped.
func TestCutFollowsPrimary(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		var primary, stored []Incarnation // the run that wrote each sequence
		inc := Incarnation(1)
		table := Table{row(1, 1, "a", 1, -1)}
		var seen Table
		for range rapid.IntRange(1, 30).Draw(t, "steps") {
			switch rapid.IntRange(0, 3).Draw(t, "step") {
			case 0:
				for range rapid.IntRange(1, 9).Draw(t, "append") {
					primary = append(primary, inc)
				}
			case 1: // ship, ahead of durability as a sync sender may
				n := rapid.IntRange(0, len(primary)).Draw(t, "shipped")
				if len(seen) > 0 && seen[len(seen)-1].Incarnation == inc && n > len(stored) {
					stored = append(stored, primary[len(stored):n]...)
				}
			case 2: // power loss
				primary = primary[:rapid.IntRange(0, len(primary)).Draw(t, "kept")]
				inc++
				next, err := table.Extend(row(1, inc, "a", Seq(len(primary)+1), -1))
				if err != nil {
					t.Fatal(err)
				}
				table = next
			case 3: // hello
				keep, err := seen.Cut(table, Seq(len(stored)))
				if err != nil {
					t.Fatalf("%v: here %v there %v", err, seen, table)
				}
				want := 0
				for want < len(stored) && want < len(primary) && stored[want] == primary[want] {
					want++
				}
				if int(keep) != want {
					t.Fatalf("keep %d, want %d: stored %v primary %v here %v there %v", keep, want, stored, primary, seen, table)
				}
				stored, seen = stored[:keep], table
			}
		}
	})
}

func TestAgree(t *testing.T) {
	a := Table{row(1, 1, "a", 1, 9), row(1, 2, "a", 10, -1)}
	if got := a.Agree(a); got != MaxSeq {
		t.Error(got)
	}
	if got := a.Agree(Table{row(1, 1, "a", 1, -1)}); got != 9 {
		t.Error(got)
	}
	if got := a.Agree(nil); got != 0 {
		t.Error(got)
	}
	if got := a.Agree(Table{row(1, 1, "z", 1, -1)}); got != 0 {
		t.Error(got)
	}
}

func TestTableCodec(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		tab := Table{}
		seq := Seq(rapid.Uint64Range(1, 1<<40).Draw(t, "first"))
		for i := range rapid.IntRange(0, 40).Draw(t, "rows") {
			next, err := tab.Extend(row(uint64(i/3+1), Incarnation(i+1), rapid.StringMatching(`[a-z0-9.]{3}`).Draw(t, "node"), seq, -1))
			if err == nil {
				tab = next
			}
			seq += Seq(rapid.IntRange(0, 5).Draw(t, "n"))
		}
		b := AppendTable(nil, tab)
		got, rest, err := DecodeTable(append(b, 1, 2, 3))
		if err != nil || len(rest) != 3 || !reflect.DeepEqual(got, tab) || len(b) > MaxTableBytes {
			t.Fatal(got, rest, err)
		}
		if n := rapid.IntRange(0, len(b)-1).Draw(t, "cut"); true {
			if _, _, err := DecodeTable(b[:n]); !errors.Is(err, ErrTable) {
				t.Fatal("a shortened table was read", err)
			}
		}
	})
	if _, _, err := DecodeTable([]byte{255, 255, 255, 255}); !errors.Is(err, ErrTable) {
		t.Error(err)
	}
}

func FuzzDecodeTable(f *testing.F) {
	f.Add(AppendTable(nil, Table{row(1, 1, "a", 1, 9), row(2, 1, "b", 10, -1)}))
	f.Fuzz(func(t *testing.T, b []byte) {
		if tab, _, err := DecodeTable(b); err == nil && tab.Validate() != nil {
			t.Fatal("an invalid table was read")
		}
	})
}

func TestChecksum(t *testing.T) {
	if got := Checksum([]byte("123456789")); got != 0xe3069283 {
		t.Errorf("CRC32C check value is %#x", got)
	}
	if Checksum(nil) != 0 {
		t.Error("no data has checksum 0")
	}
}
