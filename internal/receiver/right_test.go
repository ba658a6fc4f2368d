package receiver

import (
	"errors"
	"slices"
	"testing"

	"gantline/internal/record"

	"pgregory.net/rapid"
)

// unionLog is a log of two epochs: a's up to cut with a fence, then b's.
func unionLog(t *rapid.T) (log []record.Record, cut record.Seq, table record.Table) {
	cut = record.Seq(rapid.IntRange(1, 30).Draw(t, "cut"))
	end := cut + record.Seq(rapid.IntRange(0, 30).Draw(t, "behind"))
	for seq := record.Seq(1); seq <= end; seq++ {
		r := record.Record{Seq: seq, Epoch: 1, Incarnation: 1, Op: record.OpTrim, Offset: uint64(seq) * 4096, Length: 4096}
		if seq > cut {
			r.Epoch = 2
		}
		if seq == cut {
			r.Op, r.Data = record.OpFence, []byte(`{"number":2,"node":"b"}`)
		}
		log = append(log, r)
	}
	return log, cut, record.Table{closed(1, "a", 1, cut), open(2, "b", cut+1)}
}

// TestTwoSourcesStoreThePrefix: whatever order batches of both sources arrive in, repeated, overlapping and early ones
// too, what is stored is at every moment a prefix of the union of their logs, and in the end all of it.
func TestTwoSourcesStoreThePrefix(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		log, cut, table := unionLog(t)
		a := &right{id: id(1, "a"), table: table[:1], last: cut}
		b := &right{id: id(2, "b"), table: table, owed: cut}
		var stored []record.Record
		offer := func(src *right, recs []record.Record) {
			if len(recs) == 0 {
				return
			}
			recs = slices.Clone(recs)
			if err := src.check(recs); err != nil {
				t.Fatalf("%s: %v", src.id.Node, err)
			}
			fresh, early, err := src.sift(recs, record.Seq(len(stored)))
			if err != nil || early {
				return // waits, or its stream begins anew
			}
			stored = append(stored, fresh...)
			for i := range stored {
				if stored[i].Seq != record.Seq(i+1) || stored[i].Epoch != log[i].Epoch {
					t.Fatalf("record %d of epoch %d stored at place %d", stored[i].Seq, stored[i].Epoch, i+1)
				}
			}
		}
		for range rapid.IntRange(0, 60).Draw(t, "arrivals") {
			src, own := a, log[:cut]
			if rapid.Bool().Draw(t, "b") {
				src, own = b, log[cut:]
			}
			from := rapid.IntRange(0, len(own)).Draw(t, "from")
			offer(src, own[from:rapid.IntRange(from, len(own)).Draw(t, "to")])
		}
		offer(a, log[:cut])
		offer(b, log[cut:])
		if len(stored) != len(log) {
			t.Fatalf("stored %d of %d", len(stored), len(log))
		}
	})
}

// TestCheckRefuses is the table of what no source may send.
func TestCheckRefuses(t *testing.T) {
	rec := func(epoch uint64, seq record.Seq) record.Record {
		return record.Record{Seq: seq, Epoch: epoch, Incarnation: 1, Op: record.OpTrim, Length: 512}
	}
	begin := func(r record.Record) record.Record { r.Op = record.OpBegin; return r }
	table := record.Table{closed(1, "a", 1, 100), open(2, "b", 101)}
	cases := []struct {
		name   string
		right  right
		recs   []record.Record
		reason Reason
	}{
		{"in its row", right{table: table[:1], last: 100}, []record.Record{rec(1, 99), rec(1, 100)}, ""},
		{"older epoch beyond its cut", right{table: record.Table{open(1, "a", 1)}, last: 100}, []record.Record{rec(1, 100), rec(1, 101)}, ReasonSuperseded},
		{"older epoch below its cut, again", right{table: table[:1], last: 100}, []record.Record{rec(1, 3)}, ""},
		{"beyond a row that is closed", right{table: table}, []record.Record{rec(1, 101)}, ReasonProtocol},
		{"an epoch below its first sequence", right{table: table}, []record.Record{rec(2, 100)}, ReasonProtocol},
		{"both sides of a cut", right{table: table}, []record.Record{rec(1, 100), rec(2, 101)}, ""},
		{"an epoch that the hello has not shown", right{table: table}, []record.Record{rec(3, 101)}, ReasonProtocol},
		{"a hole", right{table: table}, []record.Record{rec(2, 101), rec(2, 103)}, ReasonProtocol},
		{"a hole in front of a begin", right{table: table}, []record.Record{rec(2, 101), begin(rec(2, 110))}, ""},
		{"backwards", right{table: table}, []record.Record{rec(2, 102), begin(rec(2, 101))}, ReasonProtocol},
		{"unknown op", right{table: table}, []record.Record{{Seq: 101, Epoch: 2, Incarnation: 1, Op: 77}}, ReasonProtocol},
		{"a write without its data", right{table: table}, []record.Record{{Seq: 101, Epoch: 2, Incarnation: 1, Op: record.OpWrite, Length: 512}}, ReasonProtocol},
		{"number 0", right{table: table}, []record.Record{rec(1, 0)}, ReasonProtocol},
	}
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			err := c.right.check(c.recs)
			var ref *Refusal
			if errors.As(err, &ref); c.reason == "" && err != nil || c.reason != "" && (ref == nil || ref.Reason != c.reason) {
				t.Fatalf("got %v, want %q", err, c.reason)
			}
		})
	}
}
