package receiver

import (
	"errors"
	"strings"
	"testing"

	"gantline/internal/record"
)

func id(n uint64, node string) record.EpochID { return record.EpochID{Number: n, Node: node} }

func open(e uint64, node string, first record.Seq) record.Row {
	return record.Row{Epoch: e, Incarnation: 1, Node: node, First: first}
}

func closed(e uint64, node string, first, last record.Seq) record.Row {
	return record.Row{Epoch: e, Incarnation: 1, Node: node, First: first, Last: last, Closed: true}
}

func again(row record.Row, inc record.Incarnation) record.Row { row.Incarnation = inc; return row }

// TestJudge is the table of hellos: whom a receiver believes, what it cuts, whom it refuses and why.
func TestJudge(t *testing.T) {
	single := State{Sources: []Source{{Epoch: id(1, "a"), First: 1}}}
	transitional := State{Sources: []Source{{Epoch: id(1, "a"), First: 1, Last: 100}, {Epoch: id(2, "b"), First: 101}}}
	fenced := State{Sources: transitional.Sources, Fence: &Fence{Cut: 100, Next: id(2, "b")}}
	moved := State{Sources: []Source{{Epoch: id(2, "b"), First: 101}}}
	permitted := State{Sources: single.Sources, Permitted: []Permit{{Epoch: id(2, "b")}, {Epoch: id(3, "a")}}}
	permittedAt := State{Sources: single.Sources, Permitted: []Permit{{Epoch: id(2, "b"), First: 101}}}
	tableA := record.Table{open(1, "a", 1)}
	tableAB := record.Table{closed(1, "a", 1, 100), open(2, "b", 101)}
	at := func(table record.Table, stored, applied record.Seq) Having {
		return Having{Table: table, Stored: stored, Durable: stored, Applied: applied}
	}
	cases := []struct {
		name   string
		state  State
		hello  record.EpochID
		table  record.Table
		have   Having
		reason Reason     // of a refusal
		keep   record.Seq // what stays stored
		last   record.Seq // the stream's bound
		owed   record.Seq
		source string // copy source afterwards
	}{
		{name: "the present source", state: single, hello: id(1, "a"), table: tableA, have: at(tableA, 50, 50), keep: 50, source: "a"},
		{name: "the present source, restarted", state: single, hello: id(1, "a"), source: "a", keep: 50,
			table: record.Table{closed(1, "a", 1, 70), again(open(1, "a", 71), 2)}, have: at(tableA, 50, 50)},
		{name: "restarted, and its unsynced tail is lost", state: single, hello: id(1, "a"), source: "a", keep: 40,
			table: record.Table{closed(1, "a", 1, 40), again(open(1, "a", 41), 2)}, have: at(tableA, 50, 40)},
		{name: "the lost tail has been applied", state: single, hello: id(1, "a"), reason: ReasonFailed,
			table: record.Table{closed(1, "a", 1, 40), again(open(1, "a", 41), 2)}, have: at(tableA, 50, 41)},
		{name: "an earlier state of the source's log", state: single, hello: id(1, "a"), reason: ReasonSuperseded,
			table: tableA, have: at(record.Table{closed(1, "a", 1, 40), again(open(1, "a", 41), 2)}, 50, 41)},

		{name: "a first hello without permission raises nothing", state: State{}, hello: id(1, "a"), table: tableA,
			have: at(nil, 0, 0), reason: ReasonNotPermitted},
		{name: "a first hello with permission", state: State{Permitted: []Permit{{Epoch: id(1, "a")}}}, hello: id(1, "a"),
			table: tableA, have: at(nil, 0, 0), source: "a"},
		{name: "a higher epoch without permission raises nothing", state: single, hello: id(2, "b"), table: tableAB,
			have: at(tableA, 100, 90), reason: ReasonNotPermitted},
		{name: "the target, permitted", state: permitted, hello: id(2, "b"), table: tableAB, have: at(tableA, 60, 50), keep: 60,
			owed: 100, source: "transitional a->b"},
		{name: "the source again after an abort, permitted", state: permitted, hello: id(3, "a"), have: at(tableA, 60, 50),
			table: record.Table{closed(1, "a", 1, 100), open(3, "a", 101)}, keep: 60, source: "a"},
		{name: "permitted with its first sequence", state: permittedAt, hello: id(2, "b"), table: tableAB,
			have: at(tableA, 100, 100), keep: 100, owed: 100, source: "transitional a->b"},
		{name: "permitted from elsewhere on", state: permittedAt, hello: id(2, "b"), have: at(tableA, 80, 80),
			table: record.Table{closed(1, "a", 1, 90), open(2, "b", 91)}, reason: ReasonSplitBrain},
		{name: "another node with the permitted number", state: permitted, hello: id(2, "c"), have: at(tableA, 100, 90),
			table: record.Table{closed(1, "a", 1, 100), open(2, "c", 101)}, reason: ReasonNotPermitted},

		{name: "named by the fence", state: fenced, hello: id(2, "b"), table: tableAB, have: at(tableA, 100, 100), keep: 100,
			owed: 100, source: "transitional a->b"},
		{name: "the number named by the fence, another node", state: fenced, hello: id(2, "c"), have: at(tableA, 100, 100),
			table: record.Table{closed(1, "a", 1, 100), open(2, "c", 101)}, reason: ReasonSplitBrain},
		{name: "same epoch, other node", state: single, hello: id(1, "b"), table: record.Table{open(1, "b", 1)},
			have: at(tableA, 10, 10), reason: ReasonSplitBrain},
		{name: "a higher epoch that begins inside what is stored", state: permitted, hello: id(2, "b"), have: at(tableA, 100, 70),
			table: record.Table{closed(1, "a", 1, 80), open(2, "b", 81)}, reason: ReasonSplitBrain},
		{name: "a higher epoch not behind the known cut", state: fenced, hello: id(5, "x"), have: at(tableA, 100, 100),
			table: record.Table{closed(1, "a", 1, 120), open(5, "x", 121)}, reason: ReasonSplitBrain},
		{name: "a higher epoch that begins below what is applied", state: single, hello: id(4, "x"), have: at(tableA, 100, 100),
			table: record.Table{open(4, "x", 1)}, reason: ReasonSplitBrain},

		{name: "the old source in transition", state: transitional, hello: id(1, "a"), table: record.Table{closed(1, "a", 1, 100)},
			have: at(tableA, 60, 60), keep: 60, last: 100, source: "transitional a->b"},
		{name: "the old source after its last record has come", state: moved, hello: id(1, "a"), table: record.Table{closed(1, "a", 1, 100)},
			have: at(tableAB, 130, 120), keep: 130, last: 100, source: "b"},
		{name: "the old source before the new one's first record has come", state: moved, hello: id(1, "a"),
			table: record.Table{closed(1, "a", 1, 100)}, have: at(tableA, 100, 100), keep: 100, last: 100, source: "b"},
		{name: "an old primary that went on, before the new one's first record has come", state: moved, hello: id(1, "a"),
			table: record.Table{closed(1, "a", 1, 101)}, have: at(tableA, 100, 100), reason: ReasonSuperseded},
		{name: "an old primary that knows no cut", state: moved, hello: id(1, "a"), table: tableA,
			have: at(tableAB, 130, 120), reason: ReasonSuperseded},
		{name: "an old primary that went on beyond the cut", state: moved, hello: id(1, "a"), table: record.Table{closed(1, "a", 1, 140)},
			have: at(tableAB, 130, 120), reason: ReasonSuperseded},
		{name: "an old source with another cut, in transition", state: transitional, hello: id(1, "a"),
			table: record.Table{closed(1, "a", 1, 90)}, have: at(tableAB, 130, 120), reason: ReasonSplitBrain},

		{name: "no table", state: single, hello: id(1, "a"), have: at(tableA, 1, 1), reason: ReasonProtocol},
		{name: "a table of another epoch", state: single, hello: id(1, "a"), table: tableAB, have: at(tableA, 1, 1), reason: ReasonProtocol},
		{name: "a table that contradicts itself", state: single, hello: id(2, "b"), have: at(tableA, 1, 1), reason: ReasonProtocol,
			table: record.Table{closed(1, "a", 1, 100), open(2, "b", 99)}},
	}
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			before, _ := c.state.encode()
			v, err := c.state.judge(c.hello, c.table, c.have)
			if after, _ := c.state.encode(); string(after) != string(before) {
				t.Fatalf("judging has changed the state from %s to %s", before, after)
			}
			var ref *Refusal
			if errors.As(err, &ref); c.reason != "" {
				if ref == nil || ref.Reason != c.reason {
					t.Fatalf("got %v, want %s", err, c.reason)
				}
				return
			}
			if err != nil {
				t.Fatalf("refused: %v", err)
			}
			if v.keep != c.keep || v.last != c.last || v.owed != c.owed || v.next.CopySource() != c.source {
				t.Fatalf("keep %d last %d owed %d source %q, want %d %d %d %q", v.keep, v.last, v.owed, v.next.CopySource(),
					c.keep, c.last, c.owed, c.source)
			}
		})
	}
}

// TestStateChanges follows one move and an aborted one through the manager's calls.
func TestStateChanges(t *testing.T) {
	have := Having{Stored: 60, Durable: 60, Applied: 60}
	must := func(s State, err error) State {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
		return s
	}
	wants := func(s State, source string, sources int) {
		t.Helper()
		if s.CopySource() != source || len(s.Sources) != sources {
			t.Fatalf("copy source %q of %d, want %q of %d", s.CopySource(), len(s.Sources), source, sources)
		}
	}
	s := must(State{}.believe(Permit{id(1, "a"), 1}, Having{}))
	wants(s, "a", 1)
	s = must(s.permit(Permit{Epoch: id(2, "b")}))
	s = must(s.permit(Permit{Epoch: id(3, "a")}))
	s = must(s.permit(Permit{Epoch: id(3, "a")}))
	if len(s.Permitted) != 2 {
		t.Fatalf("permissions %v", s.Permitted)
	}
	s = must(s.believe(Permit{id(2, "b"), 101}, have))
	wants(s, "transitional a->b", 2)
	if _, err := s.single(id(2, "b"), 99, false); err == nil || !strings.Contains(err.Error(), "owed") {
		t.Fatalf("single while record 100 is owed: %v", err)
	}
	wants(must(s.single(id(2, "b"), 99, true)), "b", 1)
	wants(must(s.single(id(2, "b"), 100, false)), "b", 1)
	if _, err := s.single(id(1, "a"), 100, false); err == nil {
		t.Fatal("an old source became the only one")
	}
	// The move is returned before the target has numbered anything: its epoch is empty and forgotten.
	back := must(s.believe(Permit{id(3, "a"), 101}, have))
	wants(back, "a", 2)
	// A second move behind the first, with records of the first source still owed.
	third := must(s.believe(Permit{id(4, "c"), 201}, have))
	wants(third, "transitional a->c", 3)
	if owed := third.owed(id(4, "c")); owed != 200 {
		t.Fatalf("owed %d", owed)
	}
	if _, err := s.believe(Permit{id(3, "a"), 50}, have); err == nil {
		t.Fatal("an epoch was believed that begins below what is applied")
	}
	if _, err := s.permit(Permit{Epoch: id(2, "x")}); err == nil {
		t.Fatal("a second node was permitted for the present epoch")
	}
	// A fence says the same as the manager, whichever comes first.
	f := State{Sources: []Source{{Epoch: id(1, "a"), First: 1}}}.fence(1, Fence{Cut: 100, Next: id(2, "b")}, 60)
	wants(f, "transitional a->b", 2)
	wants(must(f.believe(Permit{id(2, "b"), 101}, have)), "transitional a->b", 2)
	if again := f.fence(1, Fence{Cut: 90, Next: id(2, "x")}, 60); again.CopySource() != "transitional a->b" {
		t.Fatal("a fence of an epoch that is over has changed the sources")
	}
}

func TestOwed(t *testing.T) {
	a1, b2, a3 := record.EpochID{Number: 1, Node: "a"}, record.EpochID{Number: 2, Node: "b"}, record.EpochID{Number: 3, Node: "a"}
	for _, c := range []struct {
		sources []Source
		id      record.EpochID
		want    record.Seq
	}{
		{[]Source{{Epoch: a1, Last: 50}, {Epoch: b2, First: 51}}, b2, 50},
		{[]Source{{Epoch: a1, Last: 50}, {Epoch: a3, First: 51}}, a3, 0}, // a move that went back: all comes from a's log
		{[]Source{{Epoch: a1, Last: 50}, {Epoch: b2, First: 51, Last: 60}, {Epoch: a3, First: 61}}, a3, 60},
	} {
		if got := (State{Sources: c.sources}).owed(c.id); got != c.want {
			t.Errorf("%+v: %v is owed %d, wanted %d", c.sources, c.id, got, c.want)
		}
	}
}
