package volume

import "gantline/internal/record"

// LagBytes is the data of the records above what the subscriber has applied. Records that memory does not reach back
// to count with the mean of those that it does.
func (s *Subscriber) LagBytes() int64 {
	_, _, applied := s.Cursor()
	g := s.g
	g.recentMu.Lock()
	defer g.recentMu.Unlock()
	tip := g.Tip()
	if tip <= applied {
		return 0
	}
	first := applied + 1
	if g.extents.len() > 0 {
		first = max(first, g.extents.first)
	}
	var sum, n int64
	for seq := first; seq <= tip && g.extents.has(seq); seq++ {
		e := g.extents.at(seq)
		if e.op == record.OpWrite {
			sum += int64(e.length)
		}
		n++
	}
	if missing := int64(tip-applied) - n; missing > 0 {
		mean := int64(4096)
		if n > 0 {
			mean = sum / n
		}
		sum += missing * mean
	}
	return sum
}

// DropPresence ends a move whose target will never serve: what is absent stays absent, and the volume holds nothing
// that anybody may rely on.
func (v *Volume) DropPresence() {
	if p := v.presence.Load(); p != nil {
		v.presence.CompareAndSwap(p, nil)
	}
}
