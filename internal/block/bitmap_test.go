package block

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"pgregory.net/rapid"
)

func newStoredBitmap(t testing.TB, bits int64) (*Bitmap, *Crashable) {
	t.Helper()
	d := NewCrashable(BitmapSize(bits), 1)
	b, err := CreateBitmap(d, bits, 7)
	if err != nil {
		t.Fatal(err)
	}
	return b, d
}

func mustOpenBitmap(t testing.TB, d Device) *Bitmap {
	t.Helper()
	b, losses, err := OpenBitmap(d)
	if err != nil || len(losses) != 0 {
		t.Fatalf("open: %v, losses %v", err, losses)
	}
	return b
}

func TestBitmapAgainstModel(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		length := rapid.SampledFrom([]int64{1, 63, 64, 65, 1000, pageBits - 1, pageBits, pageBits + 1, 3*pageBits + 77}).Draw(t, "bits")
		b, model := NewBitmap(length), make([]bool, length)
		for range rapid.IntRange(1, 30).Draw(t, "steps") {
			first := rapid.Int64Range(0, length-1).Draw(t, "first")
			n := rapid.Int64Range(0, length-first).Draw(t, "n")
			var got, want int64
			switch op := rapid.IntRange(0, 5).Draw(t, "op"); op {
			case 0, 1:
				want = setModel(model[first:first+1], op == 0)
				changed := b.Set
				if op == 1 {
					changed = b.Clear
				}
				if changed(first) {
					got = 1
				}
			case 2:
				got, want = b.SetRange(first, n), setModel(model[first:first+n], true)
			case 3:
				got, want = b.ClearRange(first, n), setModel(model[first:first+n], false)
			case 4:
				b.SetAll()
				setModel(model, true)
			case 5:
				b.ClearAll()
				setModel(model, false)
			}
			if got != want {
				t.Fatalf("changed %d bits, want %d", got, want)
			}
			compareModel(t, b, model, first)
		}
	})
}

func setModel(bits []bool, to bool) (changed int64) {
	for i := range bits {
		if bits[i] != to {
			bits[i] = to
			changed++
		}
	}
	return changed
}

func compareModel(t *rapid.T, b *Bitmap, model []bool, from int64) {
	var count int64
	next := map[bool]int64{}
	for i, set := range model {
		if set {
			count++
		}
		if _, found := next[set]; int64(i) >= from && !found {
			next[set] = int64(i)
		}
	}
	if b.Count() != count || b.Test(from) != model[from] {
		t.Fatalf("count %d, want %d; bit %d is %v", b.Count(), count, from, b.Test(from))
	}
	for set, search := range map[bool]func(int64) (int64, bool){true: b.NextSet, false: b.NextClear} {
		got, ok := search(from)
		want, found := next[set]
		if ok != found || ok && got != want {
			t.Fatalf("next %v from %d: %d %v, want %d %v", set, from, got, ok, want, found)
		}
	}
}

func TestBitmapEnds(t *testing.T) {
	b := NewBitmap(70)
	b.SetAll()
	if _, ok := b.NextClear(0); ok {
		t.Error("a clear bit behind the end was found")
	}
	if _, ok := b.NextSet(70); ok {
		t.Error("a set bit behind the end was found")
	}
	if bit, ok := b.NextSet(-5); !ok || bit != 0 {
		t.Error("a search from below the beginning does not begin at 0")
	}
	for name, call := range map[string]func(){
		"set": func() { b.Set(70) }, "test": func() { b.Test(-1) }, "range": func() { b.SetRange(60, 11) },
		"new": func() { NewBitmap(MaxBits + 1) }} {
		func() {
			defer func() {
				if recover() == nil {
					t.Errorf("%s outside the bitmap went through", name)
				}
			}()
			call()
		}()
	}
}

func TestCreateBitmapRefusesASmallDevice(t *testing.T) {
	if _, err := CreateBitmap(NewCrashable(BitmapSize(1000)-1, 1), 1000, 1); !errors.Is(err, ErrInvalid) {
		t.Errorf("got %v", err)
	}
	if _, _, err := OpenBitmap(NewCrashable(1<<16, 1)); !errors.Is(err, ErrNoBitmap) {
		t.Errorf("open of zeros: %v", err)
	}
}

// TestBitmapCrashAtEveryCall crashes the device, in several ways, before each call that ever reaches it, goes on from
// one of the survivors now and then, and lets calls fail. No page may be lost, and each bit must have a value that it
// had at the last good Flush or was given since.
func TestBitmapCrashAtEveryCall(t *testing.T) {
	crashes, failures := 0, 0
	rapid.Check(t, func(t *rapid.T) {
		h := newBitmapHistory(t)
		for range rapid.IntRange(1, 25).Draw(t, "steps") {
			h.step(t)
		}
		crashes += h.crashes
		failures += h.failures
	})
	t.Logf("%d crashes looked at, %d calls failed", crashes, failures)
	if crashes == 0 || failures == 0 {
		t.Error("the faults took no hold")
	}
}

const historyBits = 2*pageBits + 100

type bitmapHistory struct {
	device   *Crashable
	bitmap   *Bitmap
	model    [historyBits]bool
	may      [2]map[int64]bool // bits that a crash may leave clear, set
	rng      *rand.Rand
	failing  bool
	crashes  int
	failures int
}

func newBitmapHistory(t *rapid.T) *bitmapHistory {
	seed := rapid.Int64().Draw(t, "seed")
	h := &bitmapHistory{device: NewCrashable(BitmapSize(historyBits), seed), rng: newRand(seed)}
	b, err := CreateBitmap(h.device, historyBits, 1)
	if err != nil {
		t.Fatal(err)
	}
	h.bitmap = b
	h.settled()
	h.watch(t)
	return h
}

// settled: from now on only what the model says is possible.
func (h *bitmapHistory) settled() { h.may = [2]map[int64]bool{{}, {}} }

// watch looks at crashes before every call that changes the device.
func (h *bitmapHistory) watch(t *rapid.T) {
	h.device.SetHook(func(call Call, _, _ int64) error {
		if call != CallWrite && call != CallFlush {
			return nil
		}
		for range 2 {
			h.crashes++
			h.check(t, h.device.Peek(h.rng.Int64()))
		}
		if h.failing && h.rng.IntN(4) == 0 {
			h.failures++
			return errInjected
		}
		return nil
	})
}

// check opens a survivor, and the survivor of a crash after that, for what was believed once must stay.
func (h *bitmapHistory) check(t *rapid.T, after *Crashable) {
	b, losses, err := OpenBitmap(after)
	if err != nil || len(losses) != 0 {
		t.Fatalf("after a crash: %v, losses %v", err, losses)
	}
	believed := h.read(t, b)
	again, losses, err := OpenBitmap(after.Crash())
	if err != nil || len(losses) != 0 || h.read(t, again) != believed {
		t.Fatalf("what was read after a crash was lost by a second one: %v, losses %v", err, losses)
	}
}

func (h *bitmapHistory) read(t *rapid.T, b *Bitmap) (values [historyBits]bool) {
	for bit := range int64(historyBits) {
		values[bit] = b.Test(bit)
		allowed := h.may[0]
		if values[bit] {
			allowed = h.may[1]
		}
		if values[bit] != h.model[bit] && !allowed[bit] {
			t.Fatalf("after a crash bit %d is %v, which it was not since the last flush", bit, values[bit])
		}
	}
	return values
}

func (h *bitmapHistory) step(t *rapid.T) {
	bit := rapid.Int64Range(0, historyBits-1).Draw(t, "bit")
	switch op := rapid.IntRange(0, 9).Draw(t, "op"); op {
	case 0, 1, 2:
		h.give(bit, true)
		h.bitmap.Set(bit)
	case 3, 4:
		h.give(bit, false)
		h.bitmap.Clear(bit)
	case 5, 6:
		h.failing = op == 6
		if err := h.bitmap.Flush(); err == nil {
			h.settled()
		} else if !h.failing {
			t.Fatalf("flush: %v", err)
		}
		h.failing = false
	case 7, 8:
		h.reopen(t, op == 7)
	case 9: // a change while a flush runs stays for the next one
		changed := false
		hook := h.device.hook.Load()
		h.device.SetHook(func(call Call, off, n int64) error {
			if !changed {
				changed = true
				h.give(bit, true)
				h.bitmap.Set(bit)
			}
			return (*hook)(call, off, n)
		})
		before := h.model[bit]
		if err := h.bitmap.Flush(); err != nil {
			t.Fatal(err)
		}
		h.device.hook.Store(hook)
		h.settled()
		if changed && !before {
			h.may[0][bit] = true
		}
	}
}

func (h *bitmapHistory) give(bit int64, to bool) {
	if old := h.model[bit]; old {
		h.may[1][bit] = true
	} else {
		h.may[0][bit] = true
	}
	h.model[bit] = to
}

func (h *bitmapHistory) reopen(t *rapid.T, crash bool) {
	h.device.SetHook(nil)
	if crash {
		h.device = h.device.Crash()
	} else {
		h.device = h.device.Kill()
	}
	b, losses, err := OpenBitmap(h.device)
	if err != nil || len(losses) != 0 {
		t.Fatalf("reopen (crash %v): %v, losses %v", crash, err, losses)
	}
	h.model = h.read(t, b)
	h.bitmap = b
	h.settled()
	h.watch(t)
}

// TestBitmapFlushAfterAnInterruptedOne: a flush is interrupted at one of its calls, by a failure, a killed process or
// a power loss; the device may crash anywhere in the next flush, and what was believed in between must stay.
func TestBitmapFlushAfterAnInterruptedOne(t *testing.T) {
	interruptions := map[string]func(d *Crashable) (next *Crashable){
		"failure": func(d *Crashable) *Crashable { return d },
		"kill":    (*Crashable).Kill,
		"crash":   (*Crashable).Crash,
	}
	for name, interrupt := range interruptions {
		for call := 1; call <= 4; call++ { // write, flush, write, flush
			for seed := range int64(25) {
				t.Run(fmt.Sprint(name, "/", call, "/", seed), func(t *testing.T) { interruptFlush(t, interrupt, call, seed) })
			}
		}
	}
}

func interruptFlush(t *testing.T, interrupt func(*Crashable) *Crashable, at int, seed int64) {
	// In sectors of their own: a page whose changes are all in the header's sector cannot be torn.
	const one, two, three = 10_000, 20_000, 30_000
	d := NewCrashable(BitmapSize(pageBits), seed)
	b, err := CreateBitmap(d, pageBits, 1)
	if err != nil {
		t.Fatal(err)
	}
	b.Set(one)
	mustFlush(t, b)
	b.Set(two)
	calls, next := 0, d
	d.SetHook(func(Call, int64, int64) error {
		if calls++; calls == at {
			next = interrupt(d)
			return errInjected
		}
		return nil
	})
	if b.Flush() == nil {
		t.Fatal("the interruption took no hold")
	}
	d.SetHook(nil)
	believed := []int64{one}
	if next != d {
		d, b = next, mustOpenBitmap(t, next)
		if b.Test(two) {
			believed = append(believed, two)
		}
	}
	b.Set(three)
	look := func(Call, int64, int64) error {
		for peek := range int64(10) {
			after := mustOpenBitmap(t, d.Peek(seed*10+peek))
			for _, bit := range believed {
				if !after.Test(bit) {
					t.Errorf("bit %d was lost", bit)
				}
			}
		}
		return nil
	}
	d.SetHook(look)
	mustFlush(t, b)
	believed = append(believed, three)
	_ = look(CallFlush, 0, 0)
}

func TestNewerCopyWinsOverOneTheMediumForgot(t *testing.T) {
	for copy := range int64(2) {
		b, d := newStoredBitmap(t, 100)
		old := mustRead(t, d, copy*bitmapPage, bitmapPage)
		b.Set(42)
		mustFlush(t, b)
		mustWrite(t, d, old, copy*bitmapPage)
		b = mustOpenBitmap(t, d)
		if want := fmt.Sprint([]PageRepair{{Copy: int(copy), Stale: true}}); !b.Test(42) || fmt.Sprint(b.Repairs()) != want {
			t.Errorf("copy %d: bit %v, repairs %v", copy, b.Test(42), b.Repairs())
		}
	}
}

func corrupt(t testing.TB, d Device, page, copy, bits int64) {
	t.Helper()
	at := (copy*bitmapPages(bits) + page) * bitmapPage
	p := mustRead(t, d, at, bitmapPage)
	p[1234] ^= 0x10
	mustWrite(t, d, p, at)
	mustFlush(t, d)
}

func TestOpenBitmapRepairsABadCopyAndReportsALostPage(t *testing.T) {
	const bits = 3 * pageBits
	cases := []struct {
		name    string
		bad     [][2]int64 // page, copy
		repairs string
		losses  string
	}{
		{"none", nil, "[]", "[]"},
		{"first copy of the first page", [][2]int64{{0, 0}}, "[copy 0 of page 0 was bad and was repaired from the other]", "[]"},
		{"second copy", [][2]int64{{2, 1}}, "[copy 1 of page 2 was bad and was repaired from the other]", "[]"},
		{"both of the first page", [][2]int64{{0, 0}, {0, 1}}, "[]", "[both copies of page 0 (bits 0…32255) are bad]"},
		{"one page each", [][2]int64{{1, 0}, {1, 1}, {2, 0}}, "[copy 0 of page 2 was bad and was repaired from the other]",
			"[both copies of page 1 (bits 32256…64511) are bad]"},
	}
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			b, d := newStoredBitmap(t, bits)
			b.SetAll()
			mustFlush(t, b)
			for _, bad := range c.bad {
				corrupt(t, d, bad[0], bad[1], bits)
			}
			b, losses, err := OpenBitmap(d.Crash())
			if err != nil || fmt.Sprint(losses) != c.losses || fmt.Sprint(b.Repairs()) != c.repairs {
				t.Fatalf("%v, losses %v, repairs %v", err, losses, b.Repairs())
			}
			want := int64(bits)
			for _, l := range losses {
				want -= l.Bits
				b.SetRange(l.First, l.Bits)
			}
			if b.Count() != want && len(losses) == 0 {
				t.Errorf("%d bits set, want %d", b.Count(), want)
			}
			mustFlush(t, b)
			again := mustOpenBitmap(t, b.dev.(*Crashable).Crash())
			if again.Count() != bits || len(again.Repairs()) != 0 || again.Generation() != 7 {
				t.Errorf("opened again: %d bits, repairs %v", again.Count(), again.Repairs())
			}
		})
	}
}

func TestLostPageIsReportedUntilFlushed(t *testing.T) {
	_, d := newStoredBitmap(t, 100)
	corrupt(t, d, 0, 0, 100)
	if _, losses, err := OpenBitmap(d); err != nil || len(losses) != 0 {
		t.Fatalf("one bad copy: %v %v", losses, err)
	}
	b, d := newStoredBitmap(t, 2*pageBits)
	b.SetAll()
	mustFlush(t, b)
	corrupt(t, d, 1, 0, 2*pageBits)
	corrupt(t, d, 1, 1, 2*pageBits)
	for range 2 {
		if _, losses, err := OpenBitmap(d); err != nil || len(losses) != 1 {
			t.Fatalf("%v %v", losses, err)
		}
	}
}

func TestUnreadableCopyIsABadCopy(t *testing.T) {
	b, d := newStoredBitmap(t, 100)
	b.Set(42)
	mustFlush(t, b)
	d.SetHook(func(call Call, off, _ int64) error {
		if call == CallRead && off == 0 {
			return ErrIO
		}
		return nil
	})
	b = mustOpenBitmap(t, d)
	if !b.Test(42) || len(b.Repairs()) != 1 {
		t.Errorf("bit %v, repairs %v", b.Test(42), b.Repairs())
	}
}

func TestNewerBitmapWinsOverALeftover(t *testing.T) {
	d := NewCrashable(BitmapSize(10*pageBits), 1)
	if _, err := CreateBitmap(d, 10*pageBits, 1); err != nil {
		t.Fatal(err)
	}
	leftover := mustRead(t, d, 0, bitmapPage)
	b, err := CreateBitmap(d, 100, 2)
	if err != nil {
		t.Fatal(err)
	}
	b.Set(3)
	mustFlush(t, b)
	mustWrite(t, d, leftover, 0) // the medium forgot a write
	b = mustOpenBitmap(t, d)
	if b.Generation() != 2 || b.Bits() != 100 || !b.Test(3) {
		t.Errorf("generation %d, %d bits", b.Generation(), b.Bits())
	}
}

func TestBitmapFlushWritesOnlyDirtyPages(t *testing.T) {
	b, d := newStoredBitmap(t, 100*pageBits)
	var writes []string
	d.SetHook(func(call Call, off, n int64) error {
		writes = append(writes, fmt.Sprintf("%s %d+%d", call, off/bitmapPage, n/bitmapPage))
		return nil
	})
	b.SetRange(5*pageBits-1, 2)
	b.Set(50 * pageBits)
	b.Clear(70 * pageBits) // clear already
	mustFlush(t, b)
	mustFlush(t, b)
	want := "write 4+2,write 50+1,flush 0+0,write 104+2,write 150+1,flush 0+0"
	if got := strings.Join(writes, ","); got != want {
		t.Errorf("got  %s\nwant %s", got, want)
	}
}

func TestBitmapConcurrentSetsAreDurableAfterTheirOwnFlush(t *testing.T) {
	b, d := newStoredBitmap(t, 4*pageBits)
	var wg sync.WaitGroup
	for g := range int64(4) {
		wg.Go(func() {
			for i := range int64(100) {
				bit := i*997 + g
				b.Set(bit)
				if err := b.Flush(); err != nil {
					t.Error(err)
				}
				if i%10 == 0 {
					after, losses, err := OpenBitmap(d.Peek(i*4 + g))
					if err != nil || len(losses) != 0 || !after.Test(bit) {
						t.Errorf("bit %d flushed and lost: %v %v", bit, losses, err)
					}
				}
			}
		})
	}
	wg.Wait()
	if b.Count() != 400 {
		t.Errorf("%d bits", b.Count())
	}
}

func TestBitmapOnAFile(t *testing.T) {
	const bits = 1<<24 + 5
	path := filepath.Join(t.TempDir(), "map")
	d, err := CreateFile(path, BitmapSize(bits))
	if err != nil {
		t.Fatal(err)
	}
	b, err := CreateBitmap(d, bits, 3)
	if err != nil {
		t.Fatal(err)
	}
	b.SetRange(1000, 1<<20)
	b.Set(bits - 1)
	mustFlush(t, b)
	if err := d.Close(); err != nil {
		t.Fatal(err)
	}
	if d, err = OpenFile(path); err != nil {
		t.Fatal(err)
	}
	defer d.Close()
	b = mustOpenBitmap(t, d)
	if first, _ := b.NextSet(0); b.Count() != 1<<20+1 || first != 1000 || !b.Test(bits-1) {
		t.Errorf("%d bits from %d", b.Count(), first)
	}
}

// FuzzParsePage: no page but a whole one is taken, and none makes it panic.
func FuzzParsePage(f *testing.F) {
	p := make([]byte, bitmapPage)
	sealPage(p, pageHeader{generation: 1, page: 0, bits: 100, write: 1})
	f.Add(p, 0)
	f.Fuzz(func(t *testing.T, p []byte, flip int) {
		if len(p) != bitmapPage {
			return
		}
		if _, good := parsePage(p); !good || flip <= 0 {
			return
		}
		p[flip%bitmapPage] ^= 1
		if _, good := parsePage(p); good {
			t.Errorf("a flipped bit in byte %d went unseen", flip%bitmapPage)
		}
	})
}

func BenchmarkBitmapSet(b *testing.B) {
	m := NewBitmap(1 << 24)
	for i := 0; b.Loop(); i++ {
		m.Set(int64(i*7919) & (1<<24 - 1))
	}
}

func BenchmarkBitmapNextSetOver16MBits(b *testing.B) {
	m := NewBitmap(1 << 24)
	m.Set(1<<24 - 1)
	for b.Loop() {
		m.NextSet(0)
	}
}
