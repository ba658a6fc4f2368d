package node

import (
	"testing"
	"time"
)

// Intervals that are short beside the checkpoints: each step leaves a gap in the secondary's log, which keeps few of them.
// The secondary goes on all the same.
func TestShortIntervals(t *testing.T) {
	r := newRig(t, "a", "c")
	r.pair(every(10*time.Millisecond), 1, 8<<20, 32<<20, 32<<20) // shorter than a command may set: sooner over
	disk := r.disks("a", 1)[0].Target
	applied, moved, steps := r.status("c").Applied, time.Now(), 0
	for i := 0; steps < 140; i++ {
		writeTo(t, disk, int64(i%1024)*4096, 4096, byte(i))
		time.Sleep(5 * time.Millisecond)
		if now := r.status("c").Applied; now > applied {
			applied, moved, steps = now, time.Now(), steps+1
		}
		if still := time.Since(moved); still > 4*time.Second {
			t.Fatalf("after %d steps the secondary stands still at %d for %v: %+v", steps, applied, still, r.status("a"))
		}
	}
	r.waitFor("in step", inStep(r))
}
