package node

import (
	"os"
	"testing"
	"time"
)

// The secondary of a periodic group is put back from a backup between two intervals: the next one carries all that it lacks.
func TestSecondaryPutBackAtRest(t *testing.T) {
	r := newRig(t, "a", "c")
	r.pair(every(50*time.Millisecond), 1, 4<<20, 16<<20, 64<<20)
	disk := r.disks("a", 1)[0].Target
	is := func(want byte) {
		t.Helper()
		r.waitFor("in step", inStep(r))
		got := make([]byte, 64<<10)
		if _, err := r.images("c", 1)[0].ReadAt(got, 1<<20); err != nil || got[0] != want || got[len(got)-1] != want {
			t.Fatalf("%d, want %d: %v", got[0], want, err)
		}
	}
	writeTo(t, disk, 1<<20, 64<<10, 1)
	is(1)
	r.stop("c")
	dir, backup := r.nodes["c"].cfg.DataDir, t.TempDir()
	if err := os.CopyFS(backup, os.DirFS(dir)); err != nil {
		t.Fatal(err)
	}
	r.start("c")
	writeTo(t, disk, 1<<20, 64<<10, 2)
	is(2)
	if err := r.nodes["a"].node.group("g").vg.Checkpoint(t.Context()); err != nil { // nothing of it is in the journal any more
		t.Fatal(err)
	}
	r.stop("c")
	if err := os.RemoveAll(dir); err != nil {
		t.Fatal(err)
	}
	if err := os.CopyFS(dir, os.DirFS(backup)); err != nil {
		t.Fatal(err)
	}
	r.start("c")
	r.waitFor("linked", func() bool { st := r.status("a"); return st.LinkUp && st.Applied == r.status("c").Applied })
	is(2)
}
