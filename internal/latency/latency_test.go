package latency

import (
	"slices"
	"testing"
	"time"
)

func TestBuckets(t *testing.T) {
	if !slices.IsSorted(Bounds[:]) {
		t.Fatal("bounds do not ascend")
	}
	for d, bucket := range map[time.Duration]int{
		-1: 0, 0: 0, 10 * time.Microsecond: 0, 10*time.Microsecond + 1: 1, time.Millisecond: 6, time.Minute: len(Bounds),
	} {
		var h Histogram
		h.Observe(d, 3)
		s := h.Snapshot()
		if s.Count != 3 || s.Counts[bucket] != 3 || s.Sum != 3*max(d, 0) {
			t.Errorf("%v: %+v, want all in bucket %d", d, s, bucket)
		}
	}
}

func BenchmarkObserve(b *testing.B) {
	var h Histogram
	b.ReportAllocs()
	for b.Loop() {
		h.Observe(80*time.Microsecond, 1)
	}
}
