package journal

import (
	"bytes"
	"errors"
	"fmt"
	"math/rand/v2"
	"strings"
	"testing"

	"gantline/internal/block"
	"gantline/internal/record"
)

var testID = ID{1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16}

// memory makes crashable devices and an empty journal with few entries on them.
func memory(t testing.TB, seed int64, entries uint64, sizes ...int64) []*block.Crashable {
	t.Helper()
	var mem []*block.Crashable
	for i, n := range sizes {
		mem = append(mem, block.NewCrashable(n, seed+int64(i)))
	}
	if err := create(devices(mem), testID, entries, pageSize); err != nil {
		t.Fatal(err)
	}
	return mem
}

func devices(mem []*block.Crashable) (devs []block.Device) {
	for _, d := range mem {
		devs = append(devs, d)
	}
	return devs
}

func each(mem []*block.Crashable, f func(*block.Crashable) *block.Crashable) (out []*block.Crashable) {
	for _, d := range mem {
		out = append(out, f(d))
	}
	return out
}

func crash(mem []*block.Crashable) []*block.Crashable { return each(mem, (*block.Crashable).Crash) }
func kill(mem []*block.Crashable) []*block.Crashable  { return each(mem, (*block.Crashable).Kill) }

func mustOpen(t testing.TB, mem []*block.Crashable) *Journal {
	t.Helper()
	j, err := Open(devices(mem))
	if err != nil {
		t.Fatal(err)
	}
	return j
}

func openRow(t testing.TB, j *Journal, epoch uint64, inc record.Incarnation) {
	t.Helper()
	if err := j.OpenRow(record.Row{Epoch: epoch, Incarnation: inc, Node: "a", First: j.Cursors().Appended + 1}); err != nil {
		t.Fatal(err)
	}
}

// write is a record with data that can be told from any other's.
func write(j *Journal, seq record.Seq, n int) record.Record {
	row, _ := j.Table().At(seq)
	r := record.Record{Seq: seq, Epoch: row.Epoch, Incarnation: row.Incarnation, Op: record.OpWrite, Volume: 3, Length: uint32(n),
		Offset: uint64(seq) * 512, Time: int64(seq), Session: 77, Request: uint64(seq) + 5, Mark: seq / 2, Data: make([]byte, n)}
	rng := rand.New(rand.NewPCG(uint64(seq), uint64(row.Epoch)<<32|uint64(row.Incarnation)))
	for i := range r.Data {
		r.Data[i] = byte(rng.Uint32())
	}
	r.CRC = record.Checksum(r.Data)
	return r
}

// appendWrites appends n records of size bytes and returns them.
func appendWrites(t testing.TB, j *Journal, n, size int) (recs []record.Record) {
	t.Helper()
	seq := j.Cursors().Appended
	for i := range n {
		recs = append(recs, write(j, seq+record.Seq(i)+1, size))
	}
	if err := j.Append(recs); err != nil {
		t.Fatal(err)
	}
	return recs
}

func mustSync(t testing.TB, j *Journal) record.Seq {
	t.Helper()
	seq, err := j.Sync()
	if err != nil {
		t.Fatal(err)
	}
	return seq
}

// readAll reads what is stored from seq on.
func readAll(t testing.TB, j *Journal, from record.Seq) (recs []record.Record) {
	t.Helper()
	for from <= j.Cursors().Appended {
		got, err := j.Read(from, 7, 50000)
		if err != nil {
			t.Fatalf("read %d: %v", from, err)
		}
		recs = append(recs, got...)
		from = got[len(got)-1].Seq + 1
	}
	return recs
}

func same(a, b record.Record) bool {
	if !bytes.Equal(a.Data, b.Data) {
		return false
	}
	a.Data, b.Data = nil, nil
	return fmt.Sprintf("%+v", a) == fmt.Sprintf("%+v", b)
}

func mustEqual(t testing.TB, got, want []record.Record) {
	t.Helper()
	if len(got) != len(want) {
		t.Fatalf("%d records, want %d", len(got), len(want))
	}
	for i := range got {
		if !same(got[i], want[i]) {
			g, w := got[i], want[i]
			g.Data, w.Data = nil, nil
			t.Fatalf("record %d differs:\n got %+v\nwant %+v", want[i].Seq, g, w)
		}
	}
}

const small = dataAt0 + 64*entrySize + 64*pageSize // 64 entries, 64 pages of data

func TestRoundTrip(t *testing.T) {
	mem := memory(t, 1, 64, small)
	j := mustOpen(t, mem)
	if err := j.Append([]record.Record{{Seq: 1, Epoch: 1, Incarnation: 1, Op: record.OpEnd}}); !errors.Is(err, ErrNotOpened) {
		t.Fatal("append without a row:", err)
	}
	openRow(t, j, 1, 1)
	want := appendWrites(t, j, 3, 5000)
	for _, r := range []record.Record{
		{Op: record.OpTrim, Length: 1 << 20}, {Op: record.OpZero, Length: 9, Volume: 9}, {Op: record.OpBegin, Flags: record.FlagAtOnce},
		{Op: record.OpCopy, Flags: record.FlagEmpty, Length: 65536}, {Op: record.OpEnd}, {Op: record.OpMember, Data: []byte("{}")},
		{Op: record.OpDigest, Data: []byte("0123")}, {Op: record.OpFence, Data: []byte(`{"number":2}`)},
	} {
		r.Seq, r.Epoch, r.Incarnation = want[len(want)-1].Seq+1, 1, 1
		if err := j.Append([]record.Record{r}); err != nil {
			t.Fatal(err)
		}
		r.CRC = record.Checksum(r.Data) // computed where it was not given
		want = append(want, r)
	}
	mustEqual(t, readAll(t, j, 1), want)
	if c := j.Cursors(); c != (Cursors{0, 0, 11}) {
		t.Fatal(c)
	}
	if got := mustSync(t, j); got != 11 {
		t.Fatal(got)
	}
	if _, err := j.Read(12, 1, 1); !errors.Is(err, ErrNotStored) {
		t.Error(err)
	}
	if err := j.Close(); err != nil {
		t.Fatal(err)
	}
	if err := j.Append(want); !errors.Is(err, ErrClosed) {
		t.Error(err)
	}
}

func TestReopenAfterClose(t *testing.T) {
	mem := memory(t, 2, 64, small)
	j := mustOpen(t, mem)
	openRow(t, j, 1, 1)
	want := appendWrites(t, j, 9, 4096)
	if err := j.SetMeta([]byte("checkpoint")); err != nil {
		t.Fatal(err)
	}
	if err := j.Trim(0); err != nil {
		t.Fatal(err)
	}
	mustSync(t, j)
	mem = crash(mem)
	j = mustOpen(t, mem)
	mustEqual(t, readAll(t, j, 1), want)
	if string(j.Meta()) != "checkpoint" || j.Recovery().Last != 9 {
		t.Fatalf("%q %+v", j.Meta(), j.Recovery())
	}
}

func TestAppendRefusesAndChangesNothing(t *testing.T) {
	mem := memory(t, 3, 64, small)
	j := mustOpen(t, mem)
	openRow(t, j, 4, 2)
	appendWrites(t, j, 2, 4096)
	good := write(j, 3, 100)
	change := func(f func(*record.Record)) []record.Record {
		r := good
		f(&r)
		return []record.Record{r}
	}
	for name, c := range map[string]struct {
		recs []record.Record
		err  error
	}{
		"again":           {change(func(r *record.Record) { r.Seq = 2 }), ErrSequence},
		"hole":            {change(func(r *record.Record) { r.Seq = 4 }), ErrSequence},
		"hole in batch":   {[]record.Record{good, write(j, 5, 10)}, ErrSequence},
		"epoch":           {change(func(r *record.Record) { r.Epoch = 5 }), ErrRow},
		"incarnation":     {change(func(r *record.Record) { r.Incarnation = 1 }), ErrRow},
		"op":              {change(func(r *record.Record) { r.Op = 77 }), ErrRecord},
		"length":          {change(func(r *record.Record) { r.Length = 99 }), ErrRecord},
		"zero with data":  {change(func(r *record.Record) { r.Op = record.OpZero }), ErrRecord},
		"empty with data": {change(func(r *record.Record) { r.Op, r.Flags = record.OpCopy, record.FlagEmpty }), ErrRecord},
		"crc, no data":    {change(func(r *record.Record) { r.Op, r.Data = record.OpZero, nil }), ErrRecord},
		"too large":       {[]record.Record{write(j, 3, 65*pageSize)}, ErrTooLarge},
		"does not fit":    {[]record.Record{write(j, 3, 63*pageSize)}, ErrFull},
	} {
		if err := j.Append(c.recs); !errors.Is(err, c.err) {
			t.Errorf("%s: %v, want %v", name, err, c.err)
		}
	}
	if c := j.Cursors(); c.Appended != 2 {
		t.Fatal(c)
	}
	if err := j.Append([]record.Record{good}); err != nil {
		t.Fatal(err)
	}
}

// TestRingsWrap goes round both rings many times with records of all sizes, full to the brim and freed bit by bit.
func TestRingsWrap(t *testing.T) {
	for _, sizes := range [][]int64{{small}, {dataAt0 + pageSize, dataAtN + 2*pageSize, dataAtN + 70*pageSize, dataAtN + 5*pageSize}} {
		mem := memory(t, 4, 64, sizes...)
		j := mustOpen(t, mem)
		openRow(t, j, 1, 1)
		rng := rand.New(rand.NewPCG(5, 6))
		kept := map[record.Seq]record.Record{}
		full := 0
		for seq := record.Seq(1); seq < 1500; {
			var batch []record.Record
			for range 1 + rng.IntN(5) {
				r := write(j, seq+record.Seq(len(batch)), 1+rng.IntN(3*pageSize))
				if rng.IntN(3) == 0 {
					r.Op, r.Data, r.CRC = record.OpZero, nil, 0
				}
				batch = append(batch, r)
			}
			err := j.Append(batch)
			if errors.Is(err, ErrFull) {
				full++
				durable := mustSync(t, j)
				c := j.Cursors()
				upTo := c.Trimmed + 1 + record.Seq(rng.Uint64N(uint64(durable-c.Trimmed)))
				for _, r := range readAll(t, j, c.Trimmed+1) {
					if !same(r, kept[r.Seq]) {
						t.Fatalf("record %d differs", r.Seq)
					}
				}
				if err := j.Trim(upTo); err != nil {
					t.Fatal(err)
				}
				continue
			}
			if err != nil {
				t.Fatal(err)
			}
			for _, r := range batch {
				kept[r.Seq] = r
			}
			seq += record.Seq(len(batch))
		}
		if full < 10 {
			t.Fatalf("the journal was full %d times only", full)
		}
		mustSync(t, j)
		mem = crash(mem)
		j = mustOpen(t, mem)
		for _, r := range readAll(t, j, j.Cursors().Trimmed+1) {
			if !same(r, kept[r.Seq]) {
				t.Fatalf("record %d differs after a crash", r.Seq)
			}
		}
		if _, err := j.Read(j.Cursors().Trimmed, 1, 1); !errors.Is(err, ErrTrimmed) {
			t.Error(err)
		}
	}
}

func TestSpaceCountsScarcerRing(t *testing.T) {
	mem := memory(t, 5, 64, small)
	j := mustOpen(t, mem)
	openRow(t, j, 1, 1)
	appendWrites(t, j, 1, 32*pageSize)
	if used, capacity := j.Space(); used != 32*pageSize || capacity < 62*pageSize {
		t.Fatal(used, capacity)
	}
	for seq := record.Seq(2); seq <= 64; seq++ {
		if err := j.Append([]record.Record{{Seq: seq, Epoch: 1, Incarnation: 1, Op: record.OpTrim}}); err != nil {
			t.Fatal(err)
		}
	}
	if used, capacity := j.Space(); used != capacity {
		t.Fatal(used, capacity)
	}
	err := j.Append([]record.Record{{Seq: 65, Epoch: 1, Incarnation: 1, Op: record.OpTrim}})
	if !errors.Is(err, ErrFull) || !strings.Contains(err.Error(), "64 entries") {
		t.Fatal(err)
	}
	if err := j.Trim(1); !errors.Is(err, ErrSequence) {
		t.Fatal("trimmed what is not durable:", err)
	}
}

// TestLeftoversStayDead is a torn tail whose later records did reach the disk, in a log that goes on with the very
// same numbers, twice. Whatever is recovered is what was appended last.
func TestLeftoversStayDead(t *testing.T) {
	for _, primary := range []bool{true, false} {
		mem := memory(t, 6, 64, small)
		j := mustOpen(t, mem)
		openRow(t, j, 1, 1)
		old := appendWrites(t, j, 10, 4096)
		mustSync(t, j)
		// Sequence 6 is lost, 7 to 10 are there and whole. Marks on disk say nothing of them yet.
		damage(t, mem[0], j, 6)
		mem = crash(mem)
		j = mustOpen(t, mem)
		if got := j.Cursors().Appended; got != 5 {
			t.Fatal("recovered to", got)
		}
		inc := record.Incarnation(1)
		if primary {
			inc = 2
			openRow(t, j, 1, inc)
		} else if err := j.Resume(); err != nil {
			t.Fatal(err)
		}
		// Only number 6 is written again; 7 to 10 of before follow it in the ring, data included.
		six := appendWrites(t, j, 1, 4096)
		mustSync(t, j)
		mem = crash(mem)
		j = mustOpen(t, mem)
		if got := j.Cursors().Appended; got != 6 {
			t.Fatalf("primary %v: the second crash brought back up to %d", primary, got)
		}
		mustEqual(t, readAll(t, j, 1), append(old[:5:5], six...))
	}
}

// damage flips a byte in seq's entry, durably.
func damage(t testing.TB, dev *block.Crashable, j *Journal, seq record.Seq) {
	t.Helper()
	flip(t, dev, j.s.entryRing.extents[0].off+int64(j.s.slot(seq))+40)
}

func flip(t testing.TB, dev *block.Crashable, off int64) {
	t.Helper()
	b := make([]byte, 1)
	if _, err := dev.ReadAt(b, off); err != nil {
		t.Fatal(err)
	}
	b[0] ^= 0x40
	if _, err := dev.WriteAt(b, off); err != nil {
		t.Fatal(err)
	}
	if err := dev.Flush(); err != nil {
		t.Fatal(err)
	}
}

// TestRotIsToldFromTornTail damages one record after the other: at or below the highest mark found it is rot and
// nothing opens; above it the log ends there.
func TestRotIsToldFromTornTail(t *testing.T) {
	for _, inData := range []bool{false, true} {
		for seq := record.Seq(1); seq <= 12; seq++ {
			mem := memory(t, 7, 64, small)
			j := mustOpen(t, mem)
			openRow(t, j, 1, 1)
			appendWrites(t, j, 8, 4096)
			mustSync(t, j)
			appendWrites(t, j, 4, 4096) // their entries tell that 8 was durable
			mustSync(t, j)
			mem = crash(mem)
			if inData {
				flip(t, mem[0], j.s.dataRing.extents[0].off+int64(seq-1)*pageSize+1000)
			} else {
				damage(t, mem[0], j, seq)
			}
			report, err := Check(devices(mem))
			if err != nil {
				t.Fatal(err)
			}
			got, err := Open(devices(mem))
			var rot *RotError
			if seq <= 8 {
				if !errors.Is(err, ErrRot) || !errors.As(err, &rot) || rot.Seq != seq || rot.Mark != 8 {
					t.Fatalf("damaged %d: %v", seq, err)
				}
				if len(report.Problems) != 1 || !strings.Contains(report.Problems[0], fmt.Sprintf("sequence %d", seq)) {
					t.Fatalf("damaged %d: %+v", seq, report)
				}
				continue
			}
			if err != nil || got.Cursors().Appended != seq-1 || len(report.Problems) != 0 || report.Last != seq-1 {
				t.Fatalf("damaged %d: %v %+v", seq, err, report)
			}
		}
	}
}

func TestRotAfterCleanClose(t *testing.T) {
	mem := memory(t, 8, 64, small)
	j := mustOpen(t, mem)
	openRow(t, j, 1, 1)
	appendWrites(t, j, 3, 4096)
	live := each(mem, func(d *block.Crashable) *block.Crashable { return d })
	image := each(live, func(d *block.Crashable) *block.Crashable { return d })
	mustSync(t, j)
	if err := j.update(func(*super) error { return nil }, nil); err != nil { // what Close does before it closes
		t.Fatal(err)
	}
	image = crash(image)
	damage(t, image[0], j, 3)
	if _, err := Open(devices(image)); !errors.Is(err, ErrRot) {
		t.Fatal(err)
	}
}

func TestReadFindsRot(t *testing.T) {
	mem := memory(t, 9, 64, small)
	j := mustOpen(t, mem)
	openRow(t, j, 1, 1)
	appendWrites(t, j, 5, 4096)
	mustSync(t, j)
	flip(t, mem[0], j.s.dataRing.extents[0].off+2*pageSize)
	var rot *RotError
	if _, err := j.Read(1, 10, 1<<20); !errors.As(err, &rot) || rot.Seq != 3 {
		t.Fatal(err)
	}
	if recs, err := j.Read(1, 2, 1<<20); err != nil || len(recs) != 2 {
		t.Fatal(err)
	}
}
