// Package latency counts how long things take, for people who watch: histograms with fixed bounds that cost a data path
// two additions, take no lock and allocate nothing.
package latency

import (
	"sync/atomic"
	"time"
)

// Bounds are the upper ends of the buckets, ascending; what takes longer than the last falls into one more bucket.
var Bounds = [...]time.Duration{
	10 * time.Microsecond, 25 * time.Microsecond, 50 * time.Microsecond,
	100 * time.Microsecond, 250 * time.Microsecond, 500 * time.Microsecond,
	time.Millisecond, 2500 * time.Microsecond, 5 * time.Millisecond,
	10 * time.Millisecond, 25 * time.Millisecond, 50 * time.Millisecond,
	100 * time.Millisecond, 250 * time.Millisecond, 500 * time.Millisecond,
	time.Second, 2500 * time.Millisecond, 5 * time.Second, 10 * time.Second, 30 * time.Second,
}

// Histogram counts durations. The zero value is ready; all methods may be called concurrently.
type Histogram struct {
	counts [len(Bounds) + 1]atomic.Uint64
	sum    atomic.Int64 // nanoseconds
}

// Observe counts n events that have taken d each; a negative d, which no monotonic clock gives, counts as 0.
func (h *Histogram) Observe(d time.Duration, n uint64) {
	d = max(d, 0)
	i := 0
	for i < len(Bounds) && d > Bounds[i] {
		i++
	}
	h.sum.Add(int64(d) * int64(n))
	h.counts[i].Add(n)
}

// Snapshot is a histogram as it was read: what is counted meanwhile may be in Sum and not yet in Count.
type Snapshot struct {
	Count  uint64
	Sum    time.Duration
	Counts [len(Bounds) + 1]uint64 // by bucket, not cumulative
}

// Snapshot reads the histogram.
func (h *Histogram) Snapshot() Snapshot {
	var s Snapshot
	for i := range h.counts {
		s.Counts[i] = h.counts[i].Load()
		s.Count += s.Counts[i]
	}
	s.Sum = time.Duration(h.sum.Load())
	return s
}
