package block

import (
	"bytes"
	"errors"
	"fmt"
	"math/rand/v2"
	"sync"
	"testing"
	"time"

	"pgregory.net/rapid"
)

var errInjected = errors.New("injected")

func mustWrite(t testing.TB, d Device, p []byte, off int64) {
	t.Helper()
	if n, err := d.WriteAt(p, off); err != nil || n != len(p) {
		t.Fatalf("write %d at %d: %d, %v", len(p), off, n, err)
	}
}

func mustRead(t testing.TB, d Device, off, n int64) []byte {
	t.Helper()
	p := bytes.Repeat([]byte{0xcc}, int(n))
	if k, err := d.ReadAt(p, off); err != nil || int64(k) != n {
		t.Fatalf("read %d at %d: %d, %v", n, off, k, err)
	}
	return p
}

func mustFlush(t testing.TB, d interface{ Flush() error }) {
	t.Helper()
	if err := d.Flush(); err != nil {
		t.Fatalf("flush: %v", err)
	}
}

// wholePage is a write of one page with all its bytes the same.
func wholePage(b byte) []byte { return bytes.Repeat([]byte{b}, memoryPage) }

func TestCrashKeepsWhatWasFlushedAndTearsTheRestAtSectors(t *testing.T) {
	seen := map[string]bool{}
	for seed := range int64(200) {
		d := NewCrashable(1<<20, seed)
		mustWrite(t, d, wholePage(1), 8192)
		mustFlush(t, d)
		mustWrite(t, d, wholePage(2), 8192)
		mustWrite(t, d, wholePage(3), 8192)
		got := mustRead(t, d.Crash(), 8192, memoryPage)
		kinds := map[byte]bool{}
		for s := 0; s < memoryPage; s += sectorSize {
			sector := got[s : s+sectorSize]
			if !bytes.Equal(sector, bytes.Repeat(sector[:1], sectorSize)) || sector[0] < 1 || sector[0] > 3 {
				t.Fatalf("seed %d: sector %d is torn or foreign: %x…", seed, s, sector[:4])
			}
			kinds[sector[0]] = true
			seen[fmt.Sprint("sector of ", sector[0])] = true
		}
		switch {
		case len(kinds) == 1 && kinds[1]:
			seen["nothing survived"] = true
		case len(kinds) == 1 && kinds[3]:
			seen["all survived"] = true
		case len(kinds) == 1 && kinds[2]:
			seen["older write whole"] = true
		case len(kinds) == 3:
			seen["all three versions"] = true
		}
	}
	for _, want := range []string{"nothing survived", "all survived", "all three versions", "sector of 2"} {
		if !seen[want] {
			t.Errorf("200 seeds never showed %q: %v", want, seen)
		}
	}
}

func TestFlushCoversOnlyWhatCameBeforeIt(t *testing.T) {
	lost := false
	for seed := range int64(50) {
		d := NewCrashable(1<<20, seed)
		mustWrite(t, d, wholePage(1), 0)
		d.SetHook(func(call Call, _, _ int64) error {
			if call == CallFlush {
				mustWrite(t, d, wholePage(2), 4096) // while the flush runs
			}
			return nil
		})
		mustFlush(t, d)
		after := d.Crash()
		if mustRead(t, after, 0, 1)[0] != 1 {
			t.Fatalf("seed %d: a flushed write was lost", seed)
		}
		lost = lost || mustRead(t, after, 4096, 1)[0] == 0
	}
	if !lost {
		t.Error("a write that came during the flush was durable every time")
	}
}

func TestFailedFlushForgetsDirtyDataForGood(t *testing.T) {
	lost, stillRead := false, false
	for seed := range int64(100) {
		d := NewCrashable(1<<20, seed)
		mustWrite(t, d, wholePage(1), 0)
		d.SetHook(func(call Call, _, _ int64) error {
			if call == CallFlush {
				return errInjected
			}
			return nil
		})
		if err := d.Flush(); !errors.Is(err, errInjected) {
			t.Fatalf("flush: %v", err)
		}
		d.SetHook(nil)
		mustFlush(t, d) // succeeds, and covers nothing
		read := bytes.Equal(mustRead(t, d, 0, memoryPage), wholePage(1))
		kept := bytes.Equal(mustRead(t, d.Crash(), 0, memoryPage), wholePage(1))
		lost = lost || !kept
		stillRead = stillRead || read && !kept
	}
	if !lost || !stillRead {
		t.Errorf("lost %v, read though lost %v; want both to happen", lost, stillRead)
	}
}

func TestFlushBesideAFailingOneFails(t *testing.T) {
	d := NewCrashable(1<<20, 1)
	mustWrite(t, d, wholePage(1), 0)
	entered, release := make(chan struct{}), make(chan struct{})
	var once sync.Once
	d.SetHook(func(call Call, _, _ int64) error {
		first := false
		once.Do(func() { first = true })
		if !first {
			return errInjected
		}
		close(entered)
		<-release
		return nil
	})
	result := make(chan error)
	go func() { result <- d.Flush() }()
	<-entered
	if err := d.Flush(); !errors.Is(err, errInjected) {
		t.Fatalf("second flush: %v", err)
	}
	close(release)
	if err := <-result; !errors.Is(err, ErrIO) {
		t.Fatalf("first flush: %v, though its data was dropped", err)
	}
}

func TestCrashedDeviceFailsEveryCall(t *testing.T) {
	d := NewCrashable(1<<20, 1)
	started, release, result := make(chan struct{}), make(chan struct{}), make(chan error)
	d.SetHook(func(call Call, _, _ int64) error {
		if call == CallWrite {
			close(started)
			<-release
		}
		return nil
	})
	go func() { _, err := d.WriteAt(wholePage(1), 0); result <- err }()
	<-started
	d.Crash()
	close(release)
	if err := <-result; !errors.Is(err, ErrCrashed) {
		t.Errorf("a write that was running: %v", err)
	}
	d.SetHook(nil)
	p := make([]byte, 512)
	_, readErr := d.ReadAt(p, 0)
	_, writeErr := d.WriteAt(p, 0)
	_, extentsErr := d.Extents(0, 512)
	for call, err := range map[string]error{"read": readErr, "write": writeErr, "extents": extentsErr,
		"writev": d.WritevAt([][]byte{p}, 0), "flush": d.Flush(), "zero": d.Zero(0, 512, true),
		"trim": d.Trim(0, 512), "close": d.Close()} {
		if !errors.Is(err, ErrCrashed) {
			t.Errorf("%s: %v", call, err)
		}
	}
	if d.ReadNowait(p, 0) {
		t.Error("ReadNowait succeeded")
	}
}

func TestKillKeepsWrittenDataUnsynced(t *testing.T) {
	d := NewCrashable(1<<20, 1)
	mustWrite(t, d, wholePage(7), 4096)
	if err := d.Close(); err != nil {
		t.Fatal(err)
	}
	next := d.Kill()
	if !bytes.Equal(mustRead(t, next, 4096, memoryPage), wholePage(7)) || next.Unsynced() != pageSectors {
		t.Fatalf("written data is gone or synced: %d sectors", next.Unsynced())
	}
}

func TestReadNowaitMissesSometimes(t *testing.T) {
	d, hits := NewCrashable(1<<20, 1), 0
	p := make([]byte, 512)
	for range 800 {
		if d.ReadNowait(p, 0) {
			hits++
		}
	}
	if hits < 400 || hits == 800 {
		t.Errorf("%d hits of 800", hits)
	}
}

func TestCrashableExtents(t *testing.T) {
	d := NewCrashable(1<<20, 1)
	mustWrite(t, d, wholePage(7), 4096)
	if err := d.Zero(8192, 4096, true); err != nil {
		t.Fatal(err)
	}
	got, err := d.Extents(100, 20000)
	want := []Extent{{100, 3996, ExtentHole}, {4096, 4096, ExtentData}, {8192, 4096, ExtentZero}, {12288, 7812, ExtentHole}}
	if err != nil || fmt.Sprint(got) != fmt.Sprint(want) {
		t.Errorf("%v, %v; want %v", got, err, want)
	}
}

// TestCrashableAgainstModel: reads are those of a byte array, whatever is written, zeroed, flushed, killed; after a
// crash every sector has one of the values it had since the last flush.
func TestCrashableAgainstModel(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		const size = 5*memoryPage + 700
		d := NewCrashable(size, rapid.Int64().Draw(t, "seed"))
		model := make([]byte, size)
		history := [][]byte{bytes.Clone(model)}
		for step := range rapid.IntRange(1, 40).Draw(t, "steps") {
			off := rapid.Int64Range(0, size).Draw(t, "off")
			n := rapid.Int64Range(0, min(size-off, 3*memoryPage)).Draw(t, "n")
			var err error
			switch rapid.IntRange(0, 6).Draw(t, "op") {
			case 0, 1:
				p := bytes.Repeat([]byte{byte(step + 1)}, int(n))
				cut := n / 3
				err = d.WritevAt([][]byte{p[:cut], nil, p[cut:]}, off)
				copy(model[off:], p)
			case 2:
				err = d.Zero(off, n, rapid.Bool().Draw(t, "keep"))
				clear(model[off : off+n])
			case 3:
				err = d.Trim(off, n)
				clear(model[off : off+n])
			case 4:
				err = d.Flush()
				history = nil
			case 5:
				d = d.Kill()
			case 6:
				d = d.Crash()
				got := make([]byte, size)
				_, err = d.ReadAt(got, 0)
				checkSurvivor(t, got, history)
				model, history = got, nil
			}
			if err != nil {
				t.Fatalf("step %d: %v", step, err)
			}
			history = append(history, bytes.Clone(model))
			got := make([]byte, n)
			if _, err := d.ReadAt(got, off); err != nil || !bytes.Equal(got, model[off:off+n]) {
				t.Fatalf("step %d: read %d at %d differs (%v)", step, n, off, err)
			}
		}
	})
}

func checkSurvivor(t *rapid.T, got []byte, history [][]byte) {
	for at := 0; at < len(got); at += sectorSize {
		end, known := min(at+sectorSize, len(got)), false
		for _, image := range history {
			known = known || bytes.Equal(got[at:end], image[at:end])
		}
		if !known {
			t.Fatalf("sector at %d has content it never had since the last flush", at)
		}
	}
}

func TestCrashableConcurrentUse(t *testing.T) {
	d := NewCrashable(64<<20, 1)
	d.SetHook(func(Call, int64, int64) error { return nil })
	var wg sync.WaitGroup
	for g := range int64(4) {
		wg.Go(func() {
			rng := rand.New(rand.NewPCG(uint64(g), 1))
			for i := range 2000 {
				off := g<<24 + rng.Int64N(1<<12)*4096
				if _, err := d.WriteAt(wholePage(byte(g+1)), off); err != nil {
					t.Error(err)
				}
				if i%100 == 0 {
					if err := d.Flush(); err != nil {
						t.Error(err)
					}
				}
				p := make([]byte, 512)
				if d.ReadNowait(p, off) && p[0] != byte(g+1) {
					t.Error("read another's data")
				}
			}
		})
	}
	wg.Wait()
}

func TestCrashableWritesBackBeyondItsLimit(t *testing.T) {
	d := NewCrashable(256<<20, 1)
	began := time.Now()
	if err := d.Zero(0, 256<<20, true); err != nil {
		t.Fatal(err)
	}
	buf := make([]byte, 1<<20)
	for i := range int64(256) {
		mustWrite(t, d, buf, i<<20)
	}
	if n := d.Unsynced(); n > maxUnsynced*pageSectors {
		t.Errorf("%d sectors unsynced", n)
	}
	t.Logf("zero and write 256 MiB: %v", time.Since(began))
}

func BenchmarkCrashableWrite4K(b *testing.B) {
	d, p := NewCrashable(256<<20, 1), wholePage(1)
	b.SetBytes(memoryPage)
	for i := 0; b.Loop(); i++ {
		mustWrite(b, d, p, int64(i*7919%65536)*memoryPage)
		if i%1000 == 999 {
			mustFlush(b, d)
		}
	}
}
