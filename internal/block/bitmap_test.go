package block

import (
	"errors"
	"fmt"
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
