package volume

import (
	"bytes"
	"testing"

	"gantline/internal/record"
)

// TestCacheAgainstBytes compares the interval tree with a plain array under random inserts, reads and write-backs.
func TestCacheAgainstBytes(t *testing.T) {
	rng, _ := seeded(t)
	const size = 4096
	for _, split := range []int64{0, 512} {
		c := newCache()
		c.split = split
		want, device := make([]byte, size), make([]byte, size)
		for seq := record.Seq(1); seq < 4000; seq++ {
			off := rng.Int64N(size)
			n := 1 + rng.Int64N(min(size-off, 600))
			s := segment{off: off, end: off + n, seq: seq, kind: kindZero}
			if rng.IntN(4) > 0 {
				s.kind, s.data = kindData, bytes.Repeat([]byte{byte(seq)}, int(n))
				copy(want[off:], s.data)
			} else {
				clear(want[off : off+n])
			}
			before := c.bytes
			if grown := c.insert(s); grown != c.bytes-before {
				t.Fatalf("insert says %d, the cache grew by %d", grown, c.bytes-before)
			}
			if rng.IntN(20) == 0 {
				writeBackSome(c, device, rng.IntN(2) == 0)
			}
			checkCache(t, c, want, device)
		}
	}
}

// writeBackSome does a round; with a record in the middle of it that must not be lost.
func writeBackSome(c *cache, device []byte, all bool) {
	segs := c.snapshot(nil)
	if !all {
		segs = segs[:len(segs)/2]
	}
	for _, s := range segs {
		overlay(device[s.off:s.end], s.off, []segment{s})
	}
	c.removeWritten(segs)
}

func checkCache(t *testing.T, c *cache, want, device []byte) {
	t.Helper()
	pins := c.pin(nil, 0, int64(len(want)))
	got := bytes.Clone(device)
	overlay(got, 0, pins)
	if !bytes.Equal(got, want) {
		t.Fatal("cache over device differs from what was written")
	}
	weight, at := int64(0), int64(0)
	for _, s := range c.snapshot(nil) {
		if s.off < at || s.end <= s.off || s.data != nil && int64(len(s.data)) != s.end-s.off {
			t.Fatalf("segment %d..%d overlaps or is empty", s.off, s.end)
		}
		if c.split > 0 && s.off/c.split != (s.end-1)/c.split {
			t.Fatalf("segment %d..%d crosses a region", s.off, s.end)
		}
		at, weight = s.end, weight+s.weight()
	}
	if weight != c.bytes {
		t.Fatalf("the cache counts %d, its segments weigh %d", c.bytes, weight)
	}
}

// TestRemoveWrittenKeepsWhatIsNewer: a segment that was replaced in part while it was being written stays where it is
// newer and goes where it is not.
func TestRemoveWrittenKeepsWhatIsNewer(t *testing.T) {
	c := newCache()
	c.insert(segment{off: 0, end: 100, seq: 1, kind: kindData, data: make([]byte, 100)})
	taken := c.snapshot(nil)
	c.insert(segment{off: 40, end: 60, seq: 2, kind: kindZero})
	c.removeWritten(taken)
	left := c.snapshot(nil)
	if len(left) != 1 || left[0].seq != 2 || left[0].off != 40 || left[0].end != 60 {
		t.Fatalf("left: %+v", left)
	}
	if c.bytes != left[0].weight() {
		t.Fatalf("the cache counts %d", c.bytes)
	}
}
