package block

import (
	"bytes"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	"golang.org/x/sys/unix"
	"pgregory.net/rapid"
)

func newFile(t testing.TB, size int64) *File {
	t.Helper()
	d, err := CreateFile(filepath.Join(t.TempDir(), "volume.raw"), size)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { d.Close() })
	return d.(*File)
}

func TestFileIsRefusedASecondOpenUnderAnySpelling(t *testing.T) {
	f := newFile(t, 1<<20)
	dir := filepath.Dir(f.path)
	link, hard := filepath.Join(dir, "symlink"), filepath.Join(dir, "hardlink")
	if err := errors.Join(os.Symlink(f.path, link), os.Link(f.path, hard)); err != nil {
		t.Fatal(err)
	}
	spellings := []string{f.path, dir + "/../" + filepath.Base(dir) + "//./volume.raw", link, hard}
	for _, path := range spellings {
		if d, err := OpenFile(path); !errors.Is(err, ErrInUse) || d != nil {
			t.Errorf("%s: %v", path, err)
		}
	}
	if err := f.Close(); err != nil {
		t.Fatal(err)
	}
	for _, path := range spellings {
		d, err := OpenFile(path)
		if err != nil {
			t.Fatalf("%s after close: %v", path, err)
		}
		if err := d.Close(); err != nil {
			t.Fatal(err)
		}
	}
}

// TestFileHeldByAnotherProcess runs this test binary as the other process.
func TestFileHeldByAnotherProcess(t *testing.T) {
	if path := os.Getenv("BLOCK_TEST_OPEN"); path != "" {
		_, err := OpenFile(path)
		fmt.Println("in use:", errors.Is(err, ErrInUse))
		return
	}
	f := newFile(t, 1<<20)
	for _, want := range []string{"in use: true", "in use: false"} {
		other := exec.Command(os.Args[0], "-test.run=^TestFileHeldByAnotherProcess$")
		other.Env = append(os.Environ(), "BLOCK_TEST_OPEN="+f.path)
		if out, err := other.CombinedOutput(); err != nil || !strings.Contains(string(out), want) {
			t.Errorf("want %q: %v\n%s", want, err, out)
		}
		if err := f.Close(); err != nil {
			t.Fatal(err)
		}
	}
}

func TestOpenFileRefuses(t *testing.T) {
	dir := t.TempDir()
	empty, fifo := filepath.Join(dir, "empty"), filepath.Join(dir, "fifo")
	if err := errors.Join(os.WriteFile(empty, nil, 0o600), unix.Mkfifo(fifo, 0o600)); err != nil {
		t.Fatal(err)
	}
	for path, want := range map[string]error{
		filepath.Join(dir, "none"): os.ErrNotExist, dir: ErrInvalid, empty: ErrInvalid, fifo: ErrInvalid, "/dev/null": ErrInvalid,
	} {
		if _, err := OpenFile(path); !errors.Is(err, want) {
			t.Errorf("%s: %v, want %v", path, err, want)
		}
	}
}

func TestCreateFile(t *testing.T) {
	path := filepath.Join(t.TempDir(), "v")
	if _, err := CreateFile(path, 0); !errors.Is(err, ErrInvalid) {
		t.Errorf("size 0: %v", err)
	}
	if err := os.WriteFile(path, nil, 0o600); err != nil { // what a crash within CreateFile leaves
		t.Fatal(err)
	}
	d, err := CreateFile(path, 12345)
	if err != nil || d.Size() != 12345 {
		t.Fatalf("%v", err)
	}
	if _, err := CreateFile(path, 12345); !errors.Is(err, os.ErrExist) {
		t.Errorf("open one: %v", err)
	}
	if err := d.Close(); err != nil {
		t.Fatal(err)
	}
	if _, err := CreateFile(path, 12345); !errors.Is(err, os.ErrExist) {
		t.Errorf("existing one: %v", err)
	}
	if d, err = OpenFile(path); err != nil || d.Size() != 12345 {
		t.Fatalf("open: %v", err)
	}
	d.Close()
}

func TestFileClosedRefusesCalls(t *testing.T) {
	f := newFile(t, 1<<20)
	if err := errors.Join(f.Close(), f.Close()); err != nil {
		t.Fatal(err)
	}
	p := make([]byte, 512)
	_, readErr := f.ReadAt(p, 0)
	_, extentsErr := f.Extents(0, 1)
	for call, err := range map[string]error{"read": readErr, "extents": extentsErr, "writev": f.WritevAt([][]byte{p}, 0),
		"flush": f.Flush(), "zero": f.Zero(0, 1, false), "trim": f.Trim(0, 1)} {
		if !errors.Is(err, ErrClosed) {
			t.Errorf("%s: %v", call, err)
		}
	}
	if f.ReadNowait(p, 0) {
		t.Error("ReadNowait succeeded")
	}
}

func TestRangesOutsideTheDevice(t *testing.T) {
	const size = 1 << 20
	for name, d := range map[string]Device{"file": newFile(t, size), "memory": NewCrashable(size, 1)} {
		for _, r := range [][2]int64{{-1, 1}, {size, 1}, {size - 1, 2}, {0, size + 1}, {1<<63 - 1, 1}, {1<<63 - 1, 0}} {
			_, extentsErr := d.Extents(r[0], r[1])
			for call, err := range map[string]error{"zero": d.Zero(r[0], r[1], false), "trim": d.Trim(r[0], r[1]), "extents": extentsErr} {
				if !errors.Is(err, ErrRange) {
					t.Errorf("%s %s %v: %v", name, call, r, err)
				}
			}
			if r[1] > 2 {
				continue
			}
			p := make([]byte, r[1])
			_, readErr := d.ReadAt(p, r[0])
			_, writeErr := d.WriteAt(p, r[0])
			if !errors.Is(readErr, ErrRange) || !errors.Is(writeErr, ErrRange) || !errors.Is(d.WritevAt([][]byte{p}, r[0]), ErrRange) {
				t.Errorf("%s %v: read %v, write %v", name, r, readErr, writeErr)
			}
			if d.ReadNowait(p, r[0]) {
				t.Errorf("%s %v: ReadNowait succeeded", name, r)
			}
		}
	}
}

// checkDevice runs random calls on a device of zeros against a byte array.
func checkDevice(t *testing.T, d Device) {
	size := min(d.Size(), 1<<20)
	if err := d.Zero(0, d.Size(), false); err != nil {
		t.Fatal(err)
	}
	model := make([]byte, size)
	rapid.Check(t, func(t *rapid.T) {
		for range rapid.IntRange(1, 12).Draw(t, "steps") {
			off := rapid.Int64Range(0, size).Draw(t, "off")
			n := rapid.Int64Range(0, min(size-off, 50_000)).Draw(t, "n")
			if rapid.Bool().Draw(t, "aligned") {
				off, n = off&^4095, n&^4095
			}
			var err error
			switch rapid.IntRange(0, 3).Draw(t, "op") {
			case 0:
				p := bytes.Repeat([]byte{rapid.Byte().Draw(t, "byte")}, int(n))
				_, err = d.WriteAt(p, off)
				copy(model[off:], p)
			case 1:
				var bufs [][]byte
				left := model[off : off+n]
				for len(left) > 0 {
					k := rapid.IntRange(0, min(len(left), 10_000)).Draw(t, "k")
					for i := range left[:k] {
						left[i] = byte(i)
					}
					bufs, left = append(bufs, left[:k]), left[k:]
				}
				err = d.WritevAt(bufs, off)
			case 2:
				err = d.Zero(off, n, rapid.Bool().Draw(t, "keep"))
				clear(model[off : off+n])
			case 3:
				err = d.Trim(off, n)
				clear(model[off : off+n])
			}
			if err != nil {
				t.Fatal(err)
			}
		}
		got := make([]byte, size)
		if _, err := d.ReadAt(got, 0); err != nil || !bytes.Equal(got, model) {
			t.Fatalf("the device differs from the model (%v)", err)
		}
		if d.ReadNowait(got, 0) && !bytes.Equal(got, model) {
			t.Fatal("ReadNowait differs from the model")
		}
		checkExtents(t, d, model)
	})
}

// checkExtents: they cover the range in order, and nothing but zeros is called a hole.
func checkExtents(t *rapid.T, d Device, model []byte) {
	off := rapid.Int64Range(0, int64(len(model))).Draw(t, "extents from")
	list, err := d.Extents(off, int64(len(model))-off)
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range list {
		if e.Offset != off || e.Length <= 0 {
			t.Fatalf("extent %v where %d was next", e, off)
		}
		off += e.Length
		if e.Type != ExtentData && bytes.Count(model[e.Offset:off], []byte{0}) != int(e.Length) {
			t.Fatalf("%v holds data", e)
		}
	}
	if off != int64(len(model)) {
		t.Fatalf("extents end at %d", off)
	}
}

func TestFileAgainstModel(t *testing.T) { checkDevice(t, newFile(t, 1<<20+300)) }

func TestFileWithoutFallocateAgainstModel(t *testing.T) {
	f := newFile(t, 1<<20+300)
	f.noPunch.Store(true)
	f.noZeroRange.Store(true)
	f.noSeek.Store(true)
	f.noNowait.Store(true)
	checkDevice(t, f)
}

func TestWritevOfMoreBuffersThanOneCallTakes(t *testing.T) {
	f := newFile(t, 4<<20)
	bufs := make([][]byte, 2*maxVectors+7)
	for i := range bufs {
		bufs[i] = bytes.Repeat([]byte{byte(i)}, i%1500)
	}
	before := slices.Clone(bufs)
	if err := f.WritevAt(bufs, 777); err != nil {
		t.Fatal(err)
	}
	want := slices.Concat(before...)
	if !bytes.Equal(mustRead(t, f, 777, int64(len(want))), want) {
		t.Error("what was written reads differently")
	}
	if len(bufs[1]) != 1 {
		t.Error("the caller's slice was changed")
	}
}

func TestFileExtentsAndPunch(t *testing.T) {
	f := newFile(t, 16<<20)
	mustWrite(t, f, bytes.Repeat([]byte{1}, 1<<20), 4<<20)
	mustFlush(t, f)
	extents := func() string {
		list, err := f.Extents(1<<20, 14<<20)
		if err != nil {
			t.Fatal(err)
		}
		return fmt.Sprint(list)
	}
	want := fmt.Sprint([]Extent{{1 << 20, 3 << 20, ExtentHole}, {4 << 20, 1 << 20, ExtentData}, {5 << 20, 10 << 20, ExtentHole}})
	if got := extents(); got != want {
		t.Skipf("this file system tells no holes: %s", got)
	}
	used := blocks(t, f.path)
	if err := f.Zero(4<<20, 1<<20, true); err != nil {
		t.Fatal(err)
	}
	if kept := blocks(t, f.path); kept < used {
		t.Errorf("zero with keep gave space back: %d → %d", used, kept)
	}
	if err := f.Trim(4<<20, 1<<20); err != nil {
		t.Fatal(err)
	}
	if left := blocks(t, f.path); left >= used {
		t.Errorf("trim gave no space back: %d → %d", used, left)
	}
	if got := extents(); got != fmt.Sprint([]Extent{{1 << 20, 14 << 20, ExtentHole}}) {
		t.Errorf("after trim: %s", got)
	}
}

func blocks(t *testing.T, path string) int64 {
	t.Helper()
	var st unix.Stat_t
	if err := unix.Stat(path, &st); err != nil {
		t.Fatal(err)
	}
	return st.Blocks
}

func TestFileMadeShorterIsAnError(t *testing.T) {
	f := newFile(t, 1<<20)
	if err := os.Truncate(f.path, 4096); err != nil {
		t.Fatal(err)
	}
	if _, err := f.ReadAt(make([]byte, 4096), 2048); !errors.Is(err, ErrIO) {
		t.Errorf("read across the new end: %v", err)
	}
}

// TestDiskFull also covers a file system without zero-range, and holes on one that is not ext4.
func TestDiskFull(t *testing.T) {
	dir := t.TempDir()
	if err := unix.Mount("tmpfs", dir, "tmpfs", 0, "size=1m"); err != nil {
		t.Skipf("cannot mount: %v", err)
	}
	defer unix.Unmount(dir, 0)
	d, err := CreateFile(filepath.Join(dir, "v"), 8<<20)
	if err != nil {
		t.Fatal(err)
	}
	defer d.Close()
	_, err = d.WriteAt(make([]byte, 2<<20), 0)
	if !errors.Is(err, ErrNoSpace) || !errors.Is(err, unix.ENOSPC) {
		t.Errorf("write: %v", err)
	}
	if err := d.WritevAt([][]byte{make([]byte, 1<<20), make([]byte, 1<<20)}, 3<<20); !errors.Is(err, ErrNoSpace) {
		t.Errorf("writev: %v", err)
	}
	if err := d.Zero(3<<20, 4<<20, true); !errors.Is(err, ErrNoSpace) {
		t.Errorf("zero: %v", err)
	}
	if err := d.Trim(0, 8<<20); err != nil {
		t.Fatalf("trim: %v", err)
	}
	mustWrite(t, d, wholePage(1), 5<<20)
}

func TestFlushesShareAndNeverHideAFailure(t *testing.T) {
	var runs atomic.Int64
	gate := make(chan error)
	f := newFlusher(func() error { runs.Add(1); return <-gate })
	results := make(chan error, 10)
	flush := func() { results <- f.Flush() }
	go flush()
	for runs.Load() == 0 { // the first is inside
	}
	var begun sync.WaitGroup
	for range 5 {
		begun.Add(1)
		go func() { begun.Done(); flush() }()
	}
	begun.Wait()
	gate <- nil
	if err := <-results; err != nil {
		t.Fatal(err)
	}
	gate <- errInjected // all who were waiting; one that came late may need a run of its own
	close(gate)
	failed := 0
	for range 5 {
		if err := <-results; errors.Is(err, errInjected) {
			failed++
		}
	}
	if failed == 0 || !errors.Is(f.Failed(), errInjected) {
		t.Errorf("%d of 5 failed, recorded %v", failed, f.Failed())
	}
	if err := f.Flush(); err != nil {
		t.Errorf("a later flush: %v", err)
	}
	if n := runs.Load(); n > 8 {
		t.Errorf("%d runs", n)
	}
}

// TestFlushBesideAFailureFails: the kernel told the first caller; the second must hear it as well.
func TestFlushBesideAFailureFails(t *testing.T) {
	inside, gate := make(chan bool), make(chan error)
	f := newFlusher(func() error { inside <- true; return <-gate })
	first, second := make(chan error, 1), make(chan error, 1)
	go func() { first <- f.Flush() }()
	<-inside
	go func() { second <- f.Flush() }()
	for waits := false; !waits; { // until the second has taken its place behind the first
		f.mu.Lock()
		waits = f.waiting > 0
		f.mu.Unlock()
	}
	gate <- errInjected
	if err := <-first; !errors.Is(err, errInjected) {
		t.Errorf("first: %v", err)
	}
	if err := <-second; !errors.Is(err, errInjected) {
		t.Errorf("second: %v", err)
	}
}

func BenchmarkFileWritev32x4K(b *testing.B) {
	f := newFile(b, 256<<20)
	bufs := make([][]byte, 32)
	for i := range bufs {
		bufs[i] = wholePage(byte(i))
	}
	b.SetBytes(32 * 4096)
	b.ReportAllocs()
	for i := 0; b.Loop(); i++ {
		if err := f.WritevAt(bufs, int64(i%2048)*32*4096); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkFileSortedRandomWrite4K(b *testing.B) {
	f := newFile(b, 256<<20)
	rng := rand.New(rand.NewPCG(1, 1))
	offsets := make([]int64, 4096)
	p := wholePage(1)
	b.SetBytes(4096)
	b.ReportAllocs()
	for i := 0; b.Loop(); i++ {
		if i%len(offsets) == 0 {
			for k := range offsets {
				offsets[k] = rng.Int64N(65536) * 4096
			}
			slices.Sort(offsets)
		}
		mustWrite(b, f, p, offsets[i%len(offsets)])
	}
}

func BenchmarkFileReadNowait4K(b *testing.B) {
	f := newFile(b, 16<<20)
	mustWrite(b, f, make([]byte, 16<<20), 0)
	p := make([]byte, 4096)
	misses := 0
	b.ReportAllocs()
	for i := 0; b.Loop(); i++ {
		if !f.ReadNowait(p, int64(i*7919%4096)*4096) {
			misses++
		}
	}
	b.ReportMetric(float64(misses)/float64(b.N), "misses/op")
}
