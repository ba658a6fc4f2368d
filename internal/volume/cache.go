package volume

import (
	"sync"

	"github.com/tidwall/btree"

	"gantline/internal/record"
)

// kind of a segment: bytes, or zeros with or without their space given back.
type kind uint8

const (
	kindData kind = 1
	kindZero kind = 2
	kindTrim kind = 3
)

// segmentOverhead is what a segment is counted with besides its data, so that a flood of zero segments is bounded too.
const segmentOverhead = 128

// segment is the newest content of [off, end) that may not be on the device yet. A segment and its data never change;
// holding a copy of one pins its content.
type segment struct {
	off, end int64
	seq      record.Seq
	data     []byte // kindData: end-off bytes
	kind     kind
}

func (s segment) weight() int64 { return int64(len(s.data)) + segmentOverhead }

// clip returns the part of s inside [off, end), which overlaps s.
func (s segment) clip(off, end int64) segment {
	off, end = max(off, s.off), min(end, s.end)
	if s.data != nil {
		s.data = s.data[off-s.off : end-s.off]
	}
	s.off, s.end = off, end
	return s
}

// cache is the interval tree of a volume's newest segments that have not left for the device. Segments never overlap.
//
// Records come in sequence order, so an insert always wins over what is there. A segment leaves only after the device
// write of its bytes has returned (removeWritten), and only if it is still that one: a reader that took its pins and
// then read the device therefore finds every byte in one of the two.
type cache struct {
	mu    sync.Mutex
	tree  *btree.BTreeG[segment]
	bytes int64
	hint  btree.PathHint // the place of the last operation: the look at its neighbours finds it without a search
	split int64          // segments end at multiples of it (the regions of a presence map); 0: anywhere
}

func newCache() *cache {
	less := func(a, b segment) bool { return a.off < b.off }
	return &cache{tree: btree.NewBTreeGOptions(less, btree.Options{NoLocks: true})}
}

// insert puts a segment over whatever is there and returns by how much the cache has grown.
func (c *cache) insert(s segment) int64 {
	before := c.bytes
	if c.split == 0 || s.off/c.split == (s.end-1)/c.split {
		c.put(s)
		return c.bytes - before
	}
	for off := s.off; off < s.end; {
		end := min(s.end, (off/c.split+1)*c.split)
		c.put(s.clip(off, end))
		off = end
	}
	return c.bytes - before
}

// put is insert inside one region. A block overwritten by one of the same place and size costs one tree operation.
func (c *cache) put(s segment) {
	old, replaced := c.tree.SetHint(s, &c.hint)
	c.bytes += s.weight()
	if replaced {
		c.bytes -= old.weight()
		if old.end > s.end {
			c.add(old.clip(s.end, old.end))
		}
		if old.end >= s.end {
			return
		}
	} else if before, ok := c.floor(s.off - 1); ok && before.end > s.off {
		c.bytes -= before.weight()
		c.add(before.clip(before.off, s.off)) // replaces it
		if before.end > s.end {
			c.add(before.clip(s.end, before.end))
			return
		}
	}
	c.clearBehind(s)
}

func (c *cache) add(s segment) {
	c.tree.SetHint(s, &c.hint)
	c.bytes += s.weight()
}

// clearBehind removes what s covers of the segments that begin inside it.
func (c *cache) clearBehind(s segment) {
	for {
		next, ok := c.ceiling(s.off + 1)
		if !ok || next.off >= s.end {
			return
		}
		c.tree.Delete(next)
		c.bytes -= next.weight()
		if next.end > s.end {
			c.add(next.clip(s.end, next.end))
			return
		}
	}
}

func (c *cache) floor(off int64) (found segment, ok bool) {
	c.tree.DescendHint(segment{off: off}, func(s segment) bool {
		found, ok = s, true
		return false
	}, &c.hint)
	return found, ok
}

func (c *cache) ceiling(off int64) (found segment, ok bool) {
	c.tree.AscendHint(segment{off: off}, func(s segment) bool {
		found, ok = s, true
		return false
	}, &c.hint)
	return found, ok
}

// pin appends what the cache holds of [off, end), clipped, in order.
func (c *cache) pin(dst []segment, off, end int64) []segment {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.tree.Len() == 0 {
		return dst
	}
	if s, ok := c.floor(off); ok && s.end > off {
		dst = append(dst, s.clip(off, end))
	}
	c.tree.Ascend(segment{off: off + 1}, func(s segment) bool {
		if s.off >= end {
			return false
		}
		dst = append(dst, s.clip(off, end))
		return true
	})
	return dst
}

// snapshot appends all segments in order of their offsets.
func (c *cache) snapshot(dst []segment) []segment {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.tree.Scan(func(s segment) bool {
		dst = append(dst, s)
		return true
	})
	return dst
}

// removeWritten takes out what is left of the segments whose bytes are on the device now, and returns by how much the
// cache has shrunk. What a newer record has replaced meanwhile is not theirs any more and stays.
func (c *cache) removeWritten(written []segment) int64 {
	c.mu.Lock()
	defer c.mu.Unlock()
	before := c.bytes
	var hint btree.PathHint // what is written lies side by side
	for _, w := range written {
		if s, ok := c.tree.GetHint(segment{off: w.off}, &hint); ok && s.seq == w.seq && s.end == w.end {
			c.tree.DeleteHint(s, &hint)
			c.bytes -= s.weight()
			continue
		}
		c.removePieces(w)
	}
	return before - c.bytes
}

// removePieces takes out what newer records have left of w: pieces inside it that carry its sequence.
func (c *cache) removePieces(w segment) {
	var pieces []segment
	c.tree.Ascend(segment{off: w.off}, func(s segment) bool {
		if s.off >= w.end {
			return false
		}
		if s.seq == w.seq {
			pieces = append(pieces, s)
		}
		return true
	})
	for _, s := range pieces {
		c.tree.Delete(s)
		c.bytes -= s.weight()
	}
}

// splitAt makes all segments, present and future, end at multiples of size.
func (c *cache) splitAt(size int64) int64 {
	c.mu.Lock()
	defer c.mu.Unlock()
	before := c.bytes
	c.split = size
	if size > 0 {
		for _, s := range c.tree.Items() {
			c.insert(s)
		}
	}
	return c.bytes - before
}
