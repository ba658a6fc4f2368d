package apply

import (
	"slices"
	"testing"

	"gantline/internal/record"

	"pgregory.net/rapid"
)

// entry is a record as the model keeps it.
type entry struct {
	seq   record.Seq
	op    record.Op
	flags uint8
}

// image is the model: which records of the log make up the image when those up to limit may be applied. It reads the
// log as a whole, unlike the machine, which hears it bit by bit.
func image(log []entry, limit record.Seq) []record.Seq {
	var out []record.Seq
	for i := 0; i < len(log); i++ {
		e := log[i]
		if e.seq > limit {
			break
		}
		if e.op != record.OpBegin || e.flags != 0 {
			out = append(out, e.seq)
			continue
		}
		end, dropped := -1, -1
		for j := i + 1; j < len(log) && end < 0 && dropped < 0; j++ {
			switch log[j].op {
			case record.OpEnd:
				end = j
			case record.OpBegin:
				dropped = j
			}
		}
		switch {
		case dropped >= 0:
			i = dropped - 1
		case end < 0 || log[end].seq > limit:
			return out
		default:
			for ; i < end; i++ {
				out = append(out, log[i].seq)
			}
			out = append(out, log[end].seq)
		}
	}
	return out
}

// TestAnyOrderOfEvents: records, durability, marks, cuts and progress in any order. What is applied is always a prefix
// of the model's image, nothing is applied that is not durable here or lies above the mark, and when the machine waits
// the image is complete.
func TestAnyOrderOfEvents(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		m := New(State{Consistent: true})
		var log []entry
		var applied []record.Seq
		var durable, mark, issued record.Seq
		inStep := false // a begin without its end, for a log that makes sense
		store := func(t *rapid.T) {
			e := entry{seq: m.StoredSeq() + 1, op: record.OpWrite}
			switch rapid.IntRange(0, 9).Draw(t, "kind") {
			case 0, 1:
				e.op = record.OpBegin
				e.seq += record.Seq(rapid.SampledFrom([]int{0, 0, 3}).Draw(t, "gap"))
				e.flags = rapid.SampledFrom([]uint8{0, 0, record.FlagAtOnce}).Draw(t, "at once")
				inStep = true
			case 2, 3:
				if inStep {
					e.op, inStep = record.OpEnd, false
				}
			}
			if err := m.Stored(e.seq, e.op, e.flags); err != nil {
				t.Fatal(err)
			}
			log = append(log, e)
		}
		check := func(t *rapid.T) {
			want := image(log, min(durable, mark))
			if len(applied) > len(want) || !slices.Equal(applied, want[:len(applied)]) {
				t.Fatalf("applied %v, the image is %v", applied, want)
			}
			a := m.Next()
			if a.Wait != 0 && len(applied) != len(want) {
				t.Fatalf("waits (%v %d) with %v applied, the image is %v", a.Wait, a.Seq, applied, want)
			}
			issued = max(issued, a.To)
		}
		t.Repeat(map[string]func(*rapid.T){
			"store": store,
			"durable": func(t *rapid.T) {
				durable = max(durable, record.Seq(rapid.IntRange(0, int(m.StoredSeq())).Draw(t, "durable")))
				m.Durable(durable)
			},
			"mark": func(t *rapid.T) {
				mark = max(mark, record.Seq(rapid.IntRange(0, int(m.StoredSeq())).Draw(t, "mark")))
				m.Mark(mark)
			},
			"apply": func(t *rapid.T) {
				a := m.Next()
				if a.Wait != 0 {
					t.Skip()
				}
				issued = max(issued, a.To)
				if a.From > durable || a.To > min(durable, mark) {
					t.Fatalf("apply %d-%d with durable %d, mark %d", a.From, a.To, durable, mark)
				}
				to := record.Seq(rapid.IntRange(int(a.From), int(a.To)).Draw(t, "to"))
				if a.Breaks {
					m.Break()
				}
				if err := m.Applied(to); err != nil {
					t.Fatal(err)
				}
				for seq := a.From; seq <= to; seq++ {
					applied = append(applied, seq)
				}
			},
			"cut": func(t *rapid.T) {
				upTo := record.Seq(rapid.IntRange(0, int(m.StoredSeq())).Draw(t, "upTo"))
				err := m.Cut(upTo)
				if (err != nil) != (upTo < issued) {
					t.Fatalf("cut to %d with %d handed out: %v", upTo, issued, err)
				}
				if err != nil {
					return
				}
				for len(log) > 0 && log[len(log)-1].seq > upTo {
					log = log[:len(log)-1]
				}
				durable, mark = min(durable, m.StoredSeq()), min(mark, m.StoredSeq())
				inStep = false
				for _, e := range log {
					inStep = e.op == record.OpBegin || inStep && e.op != record.OpEnd
				}
			},
			"": check,
		})
	})
}

// TestRestartAnywhere: the machine begins anew from what was applied and the log behind it, at any moment; in the end
// the image is the same.
func TestRestartAnywhere(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		var log []entry
		seq := record.Seq(0)
		for range rapid.IntRange(1, 6).Draw(t, "parts") {
			for range rapid.IntRange(0, 3).Draw(t, "plain") {
				seq++
				log = append(log, entry{seq: seq, op: record.OpWrite})
			}
			flags := rapid.SampledFrom([]uint8{0, record.FlagAtOnce}).Draw(t, "at once")
			seq++
			log = append(log, entry{seq: seq, op: record.OpBegin, flags: flags})
			for range rapid.IntRange(0, 3).Draw(t, "in step") {
				seq++
				log = append(log, entry{seq: seq, op: record.OpCopy})
			}
			seq++
			log = append(log, entry{seq: seq, op: record.OpEnd})
		}
		state := State{Consistent: true}
		var applied []record.Seq
		for state.Applied < seq {
			m := New(state)
			for _, e := range log {
				if e.seq > state.Applied {
					if err := m.Stored(e.seq, e.op, e.flags); err != nil {
						t.Fatal(err)
					}
				}
			}
			m.Durable(seq)
			m.Mark(seq)
			for range rapid.IntRange(1, 4).Draw(t, "turns") {
				a := m.Next()
				if a.Wait != 0 {
					break
				}
				if a.Breaks {
					m.Break()
				}
				to := record.Seq(rapid.IntRange(int(a.From), int(a.To)).Draw(t, "to"))
				if err := m.Applied(to); err != nil {
					t.Fatal(err)
				}
				for s := a.From; s <= to; s++ {
					applied = append(applied, s)
				}
			}
			state = m.State()
		}
		if want := image(log, seq); !slices.Equal(applied, want) || !state.Consistent {
			t.Fatalf("applied %v consistent %v, the image is %v", applied, state.Consistent, want)
		}
	})
}

// What a takeover would apply is told without anything changing: above the mark too, but no step that has not ended.
func TestTakeoverChangesNothing(t *testing.T) {
	m := New(State{Consistent: true})
	for seq, op := range []record.Op{record.OpWrite, record.OpWrite, record.OpBegin, record.OpWrite, record.OpEnd, record.OpWrite,
		record.OpBegin, record.OpWrite} {
		if err := m.Stored(record.Seq(seq+1), op, 0); err != nil {
			t.Fatal(err)
		}
	}
	m.Durable(8)
	m.Mark(1)
	for range 2 {
		var to record.Seq
		for _, a := range m.Takeover() {
			if a.From != to+1 {
				t.Fatalf("%+v behind %d", a, to)
			}
			to = a.To
		}
		if to != 6 {
			t.Fatalf("it would end at %d", to)
		}
		if a := m.Next(); a.From != 1 || a.To != 1 {
			t.Fatalf("next is %+v", a)
		}
	}
}
