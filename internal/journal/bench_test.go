package journal

import (
	"errors"
	"path/filepath"
	"sync"
	"sync/atomic"
	"testing"

	"gantline/internal/block"
	"gantline/internal/record"
)

// onFile makes a journal of size bytes in a file.
func onFile(tb testing.TB, size int64) *Journal {
	tb.Helper()
	d, err := block.CreateFile(filepath.Join(tb.TempDir(), "journal"), size)
	if err != nil {
		tb.Fatal(err)
	}
	if err := Create([]block.Device{d}, testID); err != nil {
		tb.Fatal(err)
	}
	j, err := Open([]block.Device{d})
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() { _ = j.Close() })
	openRow(tb, j, 1, 1)
	return j
}

// appender appends batches of n records of size bytes, and makes room when there is none.
func appender(tb testing.TB, j *Journal, n, size int) func() {
	recs := make([]record.Record, n)
	data := write(j, 1, size)
	seq := j.Cursors().Appended
	return func() {
		for i := range recs {
			recs[i] = data
			recs[i].Seq = seq + record.Seq(i) + 1
		}
		err := j.Append(recs)
		if errors.Is(err, ErrFull) {
			upTo, err := j.Sync()
			if err == nil {
				err = j.Trim(upTo)
			}
			if err == nil {
				err = j.Append(recs)
			}
			if err != nil {
				tb.Fatal(err)
			}
		} else if err != nil {
			tb.Fatal(err)
		}
		seq += record.Seq(n)
	}
}

func BenchmarkAppend32x4K(b *testing.B) {
	step := appender(b, onFile(b, 256<<20), 32, 4096)
	b.SetBytes(32 * 4096)
	b.ReportAllocs()
	for b.Loop() {
		step()
	}
}

func BenchmarkAppend1x4K(b *testing.B) {
	step := appender(b, onFile(b, 256<<20), 1, 4096)
	b.SetBytes(4096)
	b.ReportAllocs()
	for b.Loop() {
		step()
	}
}

func BenchmarkAppendSync(b *testing.B) {
	j := onFile(b, 256<<20)
	step := appender(b, j, 1, 4096)
	b.SetBytes(4096)
	for b.Loop() {
		step()
		if _, err := j.Sync(); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkAppend32Sync(b *testing.B) {
	j := onFile(b, 256<<20)
	step := appender(b, j, 32, 4096)
	b.SetBytes(32 * 4096)
	for b.Loop() {
		step()
		if _, err := j.Sync(); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkRead1MiB(b *testing.B) {
	j := onFile(b, 64<<20)
	step := appender(b, j, 256, 4096)
	step()
	b.SetBytes(1 << 20)
	b.ReportAllocs()
	for b.Loop() {
		if recs, err := j.Read(1, 256, 1<<20); err != nil || len(recs) != 256 {
			b.Fatal(len(recs), err)
		}
	}
}

func BenchmarkOpenFull256MiB(b *testing.B) {
	d, err := block.CreateFile(filepath.Join(b.TempDir(), "journal"), 256<<20)
	if err != nil {
		b.Fatal(err)
	}
	if err := Create([]block.Device{d}, testID); err != nil {
		b.Fatal(err)
	}
	j, err := Open([]block.Device{d})
	if err != nil {
		b.Fatal(err)
	}
	openRow(b, j, 1, 1)
	step := appender(b, j, 32, 4096)
	for range 1800 {
		step()
	}
	if _, err := j.Sync(); err != nil {
		b.Fatal(err)
	}
	for b.Loop() {
		if _, err := Open([]block.Device{d}); err != nil {
			b.Fatal(err)
		}
	}
}

// TestHotPathAllocates nothing per record, and makes two system calls per batch.
func TestHotPath(t *testing.T) {
	mem := memory(t, 50, 4096, 64<<20)
	j := mustOpen(t, mem)
	openRow(t, j, 1, 1)
	step := appender(t, j, 32, 4096)
	step()
	writes := 0
	mem[0].SetHook(func(call block.Call, _, _ int64) error {
		if call == block.CallWrite {
			writes++
		}
		return nil
	})
	step()
	if writes != 2 {
		t.Errorf("a batch took %d writes", writes)
	}
	f := onFile(t, 64<<20)
	step = appender(t, f, 32, 4096)
	step()
	if n := testing.AllocsPerRun(50, step); n > 2 {
		t.Errorf("a batch of 32 records allocates %v times", n)
	}
}

// TestAllAtOnce has appender, syncers, readers and a trimmer at work together: what a sync confirmed is what was
// appended before it, readers see only whole records, and no sync per caller is made.
func TestAllAtOnce(t *testing.T) {
	mem := memory(t, 51, 64, small, small)
	j := mustOpen(t, mem)
	openRow(t, j, 1, 1)
	var flushes, syncs atomic.Int64
	mem[0].SetHook(func(call block.Call, _, _ int64) error {
		if call == block.CallFlush {
			flushes.Add(1)
		}
		return nil
	})
	var all sync.WaitGroup
	done := make(chan struct{})
	for range 4 {
		all.Go(func() {
			for {
				select {
				case <-done:
					return
				default:
				}
				before := j.Cursors().Appended
				got, err := j.Sync()
				syncs.Add(1)
				if err != nil || got < before {
					t.Errorf("synced to %d of %d: %v", got, before, err)
					return
				}
				c := j.Cursors()
				recs, err := j.Read(c.Trimmed+1, 5, 30000)
				if err != nil && !errors.Is(err, ErrTrimmed) && !errors.Is(err, ErrNotStored) {
					t.Error(err)
					return
				}
				for _, r := range recs {
					if !same(r, write(j, r.Seq, len(r.Data))) {
						t.Errorf("record %d differs", r.Seq)
						return
					}
				}
			}
		})
	}
	for seq := record.Seq(1); seq < 3000 && !t.Failed(); {
		err := j.Append([]record.Record{write(j, seq, int(seq%9000)+1), write(j, seq+1, 4096)})
		if err == nil {
			seq += 2
			continue
		}
		if !errors.Is(err, ErrFull) {
			t.Fatal(err)
		}
		c := j.Cursors()
		if c.Durable == c.Trimmed {
			mustSync(t, j)
		} else if err := j.Trim(c.Trimmed + 1 + (c.Durable-c.Trimmed)/2); err != nil && !errors.Is(err, ErrSequence) {
			t.Fatal(err)
		}
	}
	close(done)
	all.Wait()
	t.Logf("%d syncs asked for, %d made on the first device", syncs.Load(), flushes.Load())
}
