package journal

import (
	"errors"
	"reflect"
	"testing"

	"gantline/internal/block"
	"gantline/internal/record"
)

func TestOpenRow(t *testing.T) {
	mem := memory(t, 20, 64, small)
	j := mustOpen(t, mem)
	if err := j.OpenRow(record.Row{Epoch: 1, Incarnation: 1, Node: "a", First: 0}); !errors.Is(err, ErrRow) {
		t.Fatal(err)
	}
	openRow(t, j, 1, 1)
	openRow(t, j, 1, 1) // again: nothing to do
	appendWrites(t, j, 3, 100)
	for name, row := range map[string]record.Row{
		"older":    {Epoch: 1, Incarnation: 1, Node: "a", First: 4},
		"no node":  {Epoch: 2, Incarnation: 1, First: 4},
		"too low":  {Epoch: 2, Incarnation: 1, Node: "b", First: 3},
		"epoch 0":  {Epoch: 0, Incarnation: 9, Node: "b", First: 4},
		"new node": {Epoch: 1, Incarnation: 2, Node: "b", First: 4},
	} {
		if err := j.OpenRow(row); !errors.Is(err, ErrRow) {
			t.Errorf("%s: %v", name, err)
		}
	}
	if err := j.OpenRow(record.Row{Epoch: 1, Incarnation: 2, Node: "b", First: 4}); !errors.Is(err, record.ErrSplitBrain) {
		t.Error(err)
	}
	// The new row implies that what lies before it is durable.
	openRow(t, j, 2, 1)
	if c := j.Cursors(); c.Durable != 3 {
		t.Fatal(c)
	}
	appendWrites(t, j, 2, 100)
	mustSync(t, j)
	mem = crash(mem)
	j = mustOpen(t, mem)
	want := record.Table{{Epoch: 1, Incarnation: 1, Node: "a", First: 1, Last: 3, Closed: true}, {Epoch: 2, Incarnation: 1, Node: "a", First: 4}}
	if !reflect.DeepEqual(j.Table(), want) {
		t.Fatal(j.Table())
	}
	// A recovered primary must not number on in the row that it died in.
	if err := j.OpenRow(record.Row{Epoch: 2, Incarnation: 1, Node: "a", First: 4}); !errors.Is(err, ErrRow) {
		t.Fatal(err)
	}
	if err := j.Append([]record.Record{write(j, 6, 1)}); !errors.Is(err, ErrNotOpened) {
		t.Fatal(err)
	}
	openRow(t, j, 2, 2)
	mustEqual(t, readAll(t, j, 1), []record.Record{write(j, 1, 100), write(j, 2, 100), write(j, 3, 100), write(j, 4, 100), write(j, 5, 100)})
}

// TestToldRow is a receiver that learns of the next epoch before it has all of the present one.
func TestToldRow(t *testing.T) {
	mem := memory(t, 21, 64, small)
	j := mustOpen(t, mem)
	openRow(t, j, 1, 1)
	appendWrites(t, j, 2, 100)
	if err := j.OpenRow(record.Row{Epoch: 2, Incarnation: 1, Node: "b", First: 6}); err != nil {
		t.Fatal(err)
	}
	wrong := write(j, 3, 10)
	wrong.Epoch = 2
	if err := j.Append([]record.Record{wrong}); !errors.Is(err, ErrRow) {
		t.Fatal(err)
	}
	appendWrites(t, j, 6, 100) // 3 to 5 of epoch 1, 6 to 8 of epoch 2, in one batch
	late := write(j, 9, 10)
	late.Epoch = 1
	if err := j.Append([]record.Record{late}); !errors.Is(err, ErrRow) {
		t.Fatal("a record of the old epoch beyond its cut:", err)
	}
	mustSync(t, j)
	mem = crash(mem)
	j = mustOpen(t, mem)
	if got := readAll(t, j, 1); len(got) != 8 || got[4].Epoch != 1 || got[5].Epoch != 2 {
		t.Fatal(len(got))
	}
	// Told, but promoted before it got there: the row that never began here goes.
	if err := j.OpenRow(record.Row{Epoch: 3, Incarnation: 1, Node: "c", First: 20}); err != nil {
		t.Fatal(err)
	}
	openRow(t, j, 4, 1)
	if rows := j.Table(); len(rows) != 3 || rows[1].Last != 8 || rows[2].Epoch != 4 {
		t.Fatal(rows)
	}
}

func TestAdoptTable(t *testing.T) {
	mem := memory(t, 22, 64, small)
	j := mustOpen(t, mem)
	row := func(inc record.Incarnation, first, last record.Seq, closed bool) record.Row {
		return record.Row{Epoch: 1, Incarnation: inc, Node: "a", First: first, Last: last, Closed: closed}
	}
	sender := record.Table{row(1, 1, 0, false)}
	if err := j.Reset(0, sender, nil); err != nil {
		t.Fatal(err)
	}
	appendWrites(t, j, 10, 100)
	// The sender died and lost 8 to 10.
	sender = record.Table{row(1, 1, 7, true), row(2, 8, 0, false)}
	if err := j.AdoptTable(sender); !errors.Is(err, ErrRow) {
		t.Fatal(err)
	}
	keep, err := j.Table().Cut(sender, 10)
	if err != nil || keep != 7 {
		t.Fatal(keep, err)
	}
	if err := j.Cut(keep); err != nil {
		t.Fatal(err)
	}
	if err := j.AdoptTable(sender); err != nil {
		t.Fatal(err)
	}
	appendWrites(t, j, 3, 100)
	mustSync(t, j)
	mem = crash(mem)
	j = mustOpen(t, mem)
	if got := readAll(t, j, 1); len(got) != 10 || got[6].Incarnation != 1 || got[7].Incarnation != 2 {
		t.Fatal(len(got))
	}
	if err := j.AdoptTable(record.Table{row(1, 1, 0, false), row(2, 1, 0, false)}); !errors.Is(err, record.ErrTable) {
		t.Fatal(err)
	}
}

func TestCutBounds(t *testing.T) {
	mem := memory(t, 23, 64, small)
	j := mustOpen(t, mem)
	openRow(t, j, 1, 1)
	want := appendWrites(t, j, 10, 5000)
	mustSync(t, j)
	if err := j.Trim(4); err != nil {
		t.Fatal(err)
	}
	if err := j.Cut(3); !errors.Is(err, ErrTrimmed) {
		t.Fatal(err)
	}
	if err := j.Cut(10); err != nil {
		t.Fatal(err)
	}
	if err := j.Cut(6); err != nil {
		t.Fatal(err)
	}
	if c := j.Cursors(); c != (Cursors{4, 6, 6}) {
		t.Fatal(c)
	}
	if _, err := j.Read(7, 1, 1); !errors.Is(err, ErrNotStored) {
		t.Fatal(err)
	}
	mem = crash(mem) // at once: the cut itself is durable
	j = mustOpen(t, mem)
	mustEqual(t, readAll(t, j, 5), want[4:6])
	if err := j.Cut(4); err != nil {
		t.Fatal(err)
	}
	if c := j.Cursors(); c != (Cursors{4, 4, 4}) {
		t.Fatal(c)
	}
	if used, _ := j.Space(); used != 0 {
		t.Fatal(used)
	}
}

// TestSyncWaitersOfACut must not wait for numbers that are gone.
func TestSyncWaitersOfACut(t *testing.T) {
	mem := memory(t, 24, 64, small)
	j := mustOpen(t, mem)
	openRow(t, j, 1, 1)
	appendWrites(t, j, 10, 100)
	reached, release := make(chan struct{}), make(chan struct{})
	first := true
	mem[0].SetHook(func(call block.Call, _, _ int64) error {
		if call == block.CallFlush && first {
			first = false
			close(reached)
			<-release
		}
		return nil
	})
	done := make(chan error, 1)
	go func() {
		_, err := j.Sync()
		done <- err
	}()
	<-reached
	reset := make(chan error, 1)
	go func() { reset <- j.Reset(2, record.Table{{Epoch: 5, Incarnation: 1, Node: "z", First: 1}}, nil) }()
	close(release)
	if err := <-reset; err != nil {
		t.Fatal(err)
	}
	if err := <-done; err != nil && !errors.Is(err, ErrCut) {
		t.Fatal(err)
	}
	if c := j.Cursors(); c != (Cursors{2, 2, 2}) {
		t.Fatal(c)
	}
}

// TestSyncCoversOnlyWhatWasWritten: records appended while a sync runs are not durable by it.
func TestSyncCoversOnlyWhatWasWritten(t *testing.T) {
	mem := memory(t, 25, 64, small)
	j := mustOpen(t, mem)
	openRow(t, j, 1, 1)
	appendWrites(t, j, 2, 100)
	flushes := 0
	mem[0].SetHook(func(call block.Call, _, _ int64) error {
		if call == block.CallFlush {
			if flushes++; flushes == 1 {
				appendWrites(t, j, 3, 100)
			}
		}
		return nil
	})
	if got := mustSync(t, j); got != 2 {
		t.Fatalf("durable is %d", got)
	}
	if got := mustSync(t, j); got != 5 || flushes != 2 {
		t.Fatalf("durable is %d after %d syncs", got, flushes)
	}
	if mustSync(t, j); flushes != 2 {
		t.Fatal("synced what was durable")
	}
}

func TestGaps(t *testing.T) {
	mem := memory(t, 26, 64, small)
	j := mustOpen(t, mem)
	openRow(t, j, 1, 1)
	appendWrites(t, j, 5, 100)
	begin := record.Record{Seq: 1000, Epoch: 1, Incarnation: 1, Op: record.OpBegin}
	if err := j.Append([]record.Record{begin}); !errors.Is(err, ErrSequence) {
		t.Fatal(err)
	}
	notBegin := begin
	notBegin.Op = record.OpEnd
	if err := j.AppendAfterGap([]record.Record{notBegin}); !errors.Is(err, ErrSequence) {
		t.Fatal(err)
	}
	if err := j.AppendAfterGap([]record.Record{begin}); err != nil {
		t.Fatal(err)
	}
	appendWrites(t, j, 3, 4096)
	for _, from := range []record.Seq{6, 500, 1000} {
		if got, err := j.Read(from, 10, 1<<20); err != nil || got[0].Seq != 1000 || len(got) != 4 {
			t.Fatal(from, got, err)
		}
	}
	if got, err := j.Read(4, 10, 1<<20); err != nil || len(got) != 2 {
		t.Fatal("a read must stop in front of a gap", len(got), err)
	}
	mustSync(t, j)
	if err := j.Trim(700); err != nil { // into the gap
		t.Fatal(err)
	}
	mem = crash(mem)
	j = mustOpen(t, mem)
	if got := readAll(t, j, 701); len(got) != 4 || got[3].Seq != 1003 {
		t.Fatal(len(got))
	}
	if err := j.Trim(1001); err != nil {
		t.Fatal(err)
	}
	if err := j.Resume(); err != nil {
		t.Fatal(err)
	}
	if len(j.s.gaps) != 0 {
		t.Fatal("a freed gap is still kept")
	}
	appendWrites(t, j, 62, 10)
	if err := j.Append([]record.Record{write(j, 1066, 10)}); !errors.Is(err, ErrFull) {
		t.Fatal(err)
	}
	mustSync(t, j)
	mem = crash(mem)
	j = mustOpen(t, mem)
	if got := readAll(t, j, 1002); len(got) != 64 {
		t.Fatal(len(got))
	}
}

// TestGapWithoutItsBegin: the gap was noted, the begin behind it never arrived.
func TestGapWithoutItsBegin(t *testing.T) {
	mem := memory(t, 27, 64, small)
	j := mustOpen(t, mem)
	openRow(t, j, 1, 1)
	appendWrites(t, j, 5, 100)
	mustSync(t, j)
	if err := j.AppendAfterGap([]record.Record{{Seq: 90, Epoch: 1, Incarnation: 1, Op: record.OpBegin}}); err != nil {
		t.Fatal(err)
	}
	damage(t, mem[0], j, 90)
	mem = crash(mem)
	j = mustOpen(t, mem)
	if got := j.Cursors().Appended; got != 5 || len(j.s.gaps) != 0 {
		t.Fatal(got, j.s.gaps)
	}
	if err := j.Resume(); err != nil {
		t.Fatal(err)
	}
	appendWrites(t, j, 2, 100)
	if got := readAll(t, j, 1); len(got) != 7 {
		t.Fatal(len(got))
	}
}

func TestGapsAreBounded(t *testing.T) {
	mem := memory(t, 28, 200, small+200*entrySize)
	j := mustOpen(t, mem)
	openRow(t, j, 1, 1)
	for i := range maxGaps {
		if err := j.AppendAfterGap([]record.Record{{Seq: record.Seq(10*i + 10), Epoch: 1, Incarnation: 1, Op: record.OpBegin}}); err != nil {
			t.Fatal(err)
		}
	}
	c := j.Cursors()
	if err := j.AppendAfterGap([]record.Record{{Seq: 5000, Epoch: 1, Incarnation: 1, Op: record.OpBegin}}); !errors.Is(err, ErrFull) {
		t.Fatal(err)
	}
	if j.Cursors() != c || j.Err() != nil {
		t.Fatal(j.Cursors())
	}
}

func TestMetaLimit(t *testing.T) {
	mem := memory(t, 29, 64, small)
	j := mustOpen(t, mem)
	openRow(t, j, 1, 1)
	appendWrites(t, j, 3, 100)
	mustSync(t, j)
	if err := j.SetMeta(make([]byte, MaxMeta+1)); !errors.Is(err, ErrMeta) {
		t.Fatal(err)
	}
	if err := j.TrimWithMeta(2, make([]byte, MaxMeta)); err != nil {
		t.Fatal(err)
	}
	mem = crash(mem)
	j = mustOpen(t, mem)
	if len(j.Meta()) != MaxMeta || j.Cursors().Trimmed != 2 {
		t.Fatal(len(j.Meta()), j.Cursors())
	}
}

// TestManyRestarts must not fill the epoch table, whether or not the runs number anything.
func TestManyRestarts(t *testing.T) {
	mem := memory(t, 30, 64, small)
	j := mustOpen(t, mem)
	for inc := record.Incarnation(1); inc < 3*record.MaxRows; inc++ {
		openRow(t, j, 1, inc)
		if inc%2 == 0 {
			appendWrites(t, j, 1, 1)
		}
		if inc%50 == 0 {
			mustSync(t, j)
			if err := j.Trim(j.Cursors().Appended); err != nil {
				t.Fatal(err)
			}
		}
	}
	if n := len(j.Table()); n > record.MaxRows {
		t.Fatal(n)
	}
	mustSync(t, j)
	mem = crash(mem)
	mustOpen(t, mem)
}
