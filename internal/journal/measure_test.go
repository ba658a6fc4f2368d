package journal

import (
	"testing"

	"gantline/internal/block"
	"gantline/internal/record"
)

// A journal of the size that another's records are said to need takes them all, whatever they are.
func TestSizeFor(t *testing.T) {
	zero := func(j *Journal, seq record.Seq) record.Record {
		r := write(j, seq, 1)
		r.Op, r.Data, r.CRC = record.OpZero, nil, 0
		return r
	}
	for name, c := range map[string]struct {
		n    int
		make func(j *Journal, seq record.Seq) record.Record
	}{
		"none":  {0, nil},
		"zeros": {3000, zero},
		"small": {2500, func(j *Journal, seq record.Seq) record.Record { return write(j, seq, 512) }},
		"large": {9, func(j *Journal, seq record.Seq) record.Record { return write(j, seq, 300<<10+1) }},
		"mixed": {1500, func(j *Journal, seq record.Seq) record.Record {
			if seq%3 == 0 {
				return zero(j, seq)
			}
			return write(j, seq, 1+int(seq%5)*pageSize)
		}},
	} {
		t.Run(name, func(t *testing.T) {
			j := mustOpen(t, memory(t, 1, 0, 64<<20))
			openRow(t, j, 1, 1)
			appendWrites(t, j, 7, 100) // not counted
			var recs []record.Record
			for i := range c.n {
				recs = append(recs, c.make(j, record.Seq(8+i)))
			}
			if err := j.Append(recs); err != nil {
				t.Fatal(err)
			}
			records, bytes, err := j.Above(7)
			if err != nil || records != uint64(c.n) {
				t.Fatal(records, err)
			}
			dev := block.NewCrashable(SizeFor(records, bytes), 2)
			if err := Create([]block.Device{dev}, testID); err != nil {
				t.Fatal(err)
			}
			other := mustOpen(t, []*block.Crashable{dev})
			if err := other.Reset(7, j.Table(), nil); err != nil {
				t.Fatal(err)
			}
			if err := other.Append(recs); err != nil {
				t.Fatalf("%d records with %d bytes do not fit: %v", records, bytes, err)
			}
			if n, b, err := other.Above(7); n != records || b != bytes || err != nil {
				t.Errorf("%d records, %d bytes there, %d and %d here: %v", n, b, records, bytes, err)
			}
			var entries []record.Record
			for len(entries) < c.n {
				some, err := other.Entries(record.Seq(8+len(entries)), c.n)
				if err != nil {
					t.Fatal(err)
				}
				entries = append(entries, some...)
			}
			for i, e := range entries {
				if r := recs[i]; e.Seq != r.Seq || e.Offset != r.Offset || e.Length != r.Length || e.Op != r.Op || e.Data != nil {
					t.Fatalf("entry %d: %+v, of %+v", i, e, r)
				}
			}
			if dev.Size() > 2*bytes+int64(4*records*pageSize)+2<<20 {
				t.Errorf("%d bytes for %d", dev.Size(), bytes)
			}
		})
	}
}
