package block

import (
	"fmt"
	"maps"
	"math/rand/v2"
	"testing"

	"pgregory.net/rapid"
)

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
	model    map[int64]bool    // bits that are set
	may      [2]map[int64]bool // bits that a crash may leave clear, set
	rng      *rand.Rand
	failing  bool
	crashes  int
	failures int
}

func newBitmapHistory(t *rapid.T) *bitmapHistory {
	seed := rapid.Int64().Draw(t, "seed")
	h := &bitmapHistory{device: NewCrashable(BitmapSize(historyBits), seed), rng: newRand(seed), model: map[int64]bool{}}
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
	if err != nil || len(losses) != 0 || !maps.Equal(h.read(t, again), believed) {
		t.Fatalf("what was read after a crash was lost by a second one: %v, losses %v", err, losses)
	}
}

// read returns the bits that are set; all others were found clear.
func (h *bitmapHistory) read(t *rapid.T, b *Bitmap) map[int64]bool {
	set := map[int64]bool{}
	for bit, ok := b.NextSet(0); ok; bit, ok = b.NextSet(bit + 1) {
		set[bit] = true
	}
	if b.Count() != int64(len(set)) {
		t.Fatalf("after a crash %d bits are counted, %d found", b.Count(), len(set))
	}
	for _, bits := range []map[int64]bool{set, h.model, h.may[0], h.may[1]} { // the rest is clear, and was
		for bit := range bits {
			value, allowed := b.Test(bit), h.may[0]
			if value {
				allowed = h.may[1]
			}
			if value != set[bit] || value != h.model[bit] && !allowed[bit] {
				t.Fatalf("after a crash bit %d is %v, which it was not since the last flush", bit, value)
			}
		}
	}
	return set
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
	if h.model[bit] {
		h.may[1][bit] = true
	} else {
		h.may[0][bit] = true
	}
	if to {
		h.model[bit] = true
	} else {
		delete(h.model, bit)
	}
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
