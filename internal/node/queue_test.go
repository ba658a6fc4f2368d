package node

import (
	"math/rand/v2"
	"os"
	"path/filepath"
	"testing"
	"time"

	"gantline/internal/control"
	"gantline/internal/proof"
)

// queueGroup makes a group of n volumes whose primary keeps its log in memory.
func (r *rig) queueGroup(n int, size int64) control.Group {
	r.t.Helper()
	r.call("c", control.CallJournalCreate, control.JournalCreate{Name: "jg", Size: 64 << 20}, nil)
	g := control.Group{Name: "g", Settings: control.DefaultSettings(), Epoch: 1, Primary: "a", Secondary: "c",
		SecondaryJournal: "c/jg", SecondaryJournalSize: 64 << 20, Revision: 1}
	g.Log = control.LogQueue
	for i := range n {
		v := string(rune('1' + i))
		for _, node := range []string{"a", "c"} {
			r.call(node, control.CallVolumeCreate, control.VolumeCreate{Name: "v" + v, Size: size}, nil)
		}
		g.Pairs = append(g.Pairs, control.Pair{Number: uint16(i + 1), Primary: "a/v" + v, Secondary: "c/v" + v, Size: size})
	}
	r.call("c", control.CallGroupConfigure, control.GroupSpec{Group: g, Role: control.RoleSecondary, Address: r.addresses()}, nil)
	r.call("a", control.CallGroupConfigure, control.GroupSpec{Group: g, Role: control.RolePrimary, Address: r.addresses()}, nil)
	r.waitFor("paired", func() bool { return r.status("a").State == "paired" && r.status("a").LinkUp })
	return g
}

func (r *rig) queueInStep() bool {
	st, there := r.status("a"), r.status("c")
	return st.State == "paired" && st.LinkUp && st.ChangedBytes == 0 && there.Applied == st.Appended
}

// Two nodes and a queue between them: load, restarts of either, equal images; a clean stop at rest sends nothing but an
// empty step.
func TestQueueCopiesAndRestarts(t *testing.T) {
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	r := newRig(t, "a", "c")
	r.queueGroup(3, 4<<20)
	l := proof.New(r.disks("a", 3), proof.Options{Seed: seed, Depth: 8, ReadPercent: 20, FlushEvery: 30})
	runFor(t, l, time.Second)
	r.waitFor("in step", r.queueInStep)
	r.check(l, "c", 3, true)
	r.waitFor("empty again", func() bool {
		st := r.status("a")
		return st.JournalCapacity == 128<<20 && st.JournalUsed == 0
	})
	before := r.status("a")
	r.stop("a")
	r.start("a")
	r.waitFor("in step", r.queueInStep)
	r.check(l, "a", 3, true)
	r.check(l, "c", 3, true)
	if st := r.status("a"); st.Appended != before.Appended+2 || st.WANBytesSent-before.WANBytesSent > 4096 {
		t.Errorf("a restart at rest took %d numbers and %d bytes", st.Appended-before.Appended, st.WANBytesSent-before.WANBytesSent)
	}
	l.SetDisks(r.disks("a", 3))
	r.stop("c")
	runFor(t, l, 300*time.Millisecond)
	r.check(l, "a", 3, true)
	r.stop("a") // with records that only its memory has
	r.start("a")
	r.start("c")
	r.waitFor("in step", r.queueInStep)
	r.check(l, "a", 3, true)
	r.check(l, "c", 3, true)
	l.SetDisks(r.disks("a", 3))
	runFor(t, l, 300*time.Millisecond)
	r.waitFor("in step", r.queueInStep)
	r.check(l, "c", 3, true)
	// Suspended by command it stays so, whatever is restarted.
	r.call("a", control.CallGroupSuspend, control.GroupSuspend{Name: "g"}, nil)
	runFor(t, l, 200*time.Millisecond)
	r.stop("a")
	r.start("a")
	time.Sleep(300 * time.Millisecond)
	if st := r.status("a"); st.State != "suspended" || st.ChangedBytes == 0 {
		t.Fatalf("after a restart: %+v", st)
	}
	r.call("a", control.CallGroupResume, control.GroupResume{Name: "g"}, nil)
	r.waitFor("in step", r.queueInStep)
	r.check(l, "c", 3, true)
	t.Logf("%+v", l.Stats())

	r.call("a", control.CallGroupDelete, control.NameOnly{Name: "g"}, nil)
	left, err := filepath.Glob(filepath.Join(r.nodes["a"].cfg.DataDir, "maps", "*"))
	if err != nil {
		t.Fatal(err)
	}
	for _, path := range left {
		if filepath.Ext(path) != ".wan" {
			t.Errorf("%s was left behind the group", path)
		}
	}
	if _, err := os.Stat(filepath.Join(r.nodes["a"].cfg.DataDir, "volumes", "v1.raw")); err != nil {
		t.Error(err)
	}
}

// More in doubt than a step may take: the node does not begin one that cannot end, and says what to do.
func TestQueueStepThatDoesNotFit(t *testing.T) {
	r := newRig(t, "a", "c")
	g := r.queueGroup(1, 64<<20)
	l := proof.New(r.disks("a", 1), proof.Options{Seed: 9, Depth: 8, FlushEvery: 30})
	r.stop("c")
	runFor(t, l, time.Second)
	d := r.disks("a", 1)[0].Target
	for off := int64(0); off < 64<<20; off += 1 << 20 {
		writeTo(t, d, off, 4096, 7)
	}
	r.stop("a")
	r.start("a")
	r.start("c")
	time.Sleep(300 * time.Millisecond)
	st := r.status("a")
	if st.State != "suspended" || st.BlockedOn == "" || st.ChangedBytes != 64<<20 {
		t.Fatalf("%+v", st)
	}
	t.Log(st.BlockedOn)
	r.call("a", control.CallGroupResume, control.GroupResume{Name: g.Name, AllowInconsistent: true}, nil)
	r.waitFor("in step", r.queueInStep)
}
