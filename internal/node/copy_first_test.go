package node

import (
	"bytes"
	"errors"
	"io"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
	"time"

	"gantline/internal/control"
	"gantline/internal/migrate"
	"gantline/internal/proof"
	"gantline/internal/volume"
)

// A group is copied to the target under load, and moves when the target follows: nothing is absent then, the secondary
// gets all writes in their order, and the images of all three nodes are equal.
func TestCopyFirst(t *testing.T) {
	for name, form := range map[string]struct {
		with    func(*control.Settings)
		volumes int
	}{
		"async":          {nil, 1},
		"sync":           {func(s *control.Settings) { s.Mode = control.ModeSync }, 3},
		"queue":          {onQueue(async), 3},
		"periodic queue": {onQueue(every(100 * time.Millisecond)), 1},
	} {
		t.Run(name, func(t *testing.T) {
			r := newRig(t, "a", "b", "c")
			r.with, r.strategy = form.with, control.StrategyCopyFirst
			copyFirstUnderLoad(r, form.volumes)
		})
	}
}

func copyFirstUnderLoad(r *rig, volumes int) {
	t := r.t
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	g := r.group(volumes, 16<<20)
	l := proof.New(r.disks("a", volumes), proof.Options{Seed: seed, Depth: 8, ReadPercent: 20, FlushEvery: 30, Rate: 3000, Span: 2 << 20})
	stop := keepRunning(t, l)
	r.through(g) // waits until it is copied
	if st := r.moveStatus("b"); st.Present != st.Total || st.Total != int64(volumes)*256 {
		t.Errorf("copied, and %d of %d regions are here", st.Present, st.Total)
	}
	stop()
	l.SetDisks(r.disks("b", volumes))
	stop = keepRunning(t, l)
	time.Sleep(100 * time.Millisecond)
	r.call("b", control.CallMigrateRun, control.MigrationID{ID: "g-1"}, nil)
	r.waitFor("filled", func() bool { return r.moveStatus("b").Phase == control.PhaseFilled })
	time.Sleep(100 * time.Millisecond)
	stop()
	st := r.moveStatus("b")
	t.Logf("pause %.1f ms, %d bytes fetched", *st.PauseMS, st.Background)
	if st.OnDemand != 0 || st.Present != st.Total {
		t.Errorf("%d bytes were fetched on demand, %d of %d regions present", st.OnDemand, st.Present, st.Total)
	}
	r.waitFor("in step", func() bool { st := r.status("b"); return st.Applied == st.Appended && st.ChangedBytes == 0 })
	r.check(l, "c", volumes, true)
	r.check(l, "b", volumes, true)
	for _, n := range []string{"c", "b", "a"} {
		r.call(n, control.CallMigrateDeregister, control.MigrationID{ID: "g-1"}, nil)
	}
}

// sameImages says whether two nodes' devices hold the same.
func (r *rig) sameImages(one, other string, n int) {
	r.t.Helper()
	for i := range n {
		var got [2][]byte
		for k, node := range []string{one, other} {
			dev := r.nodes[node].node.volume([]string{"v1", "v2", "v3"}[i]).dev
			got[k] = make([]byte, dev.Size())
			if _, err := dev.ReadAt(got[k], 0); err != nil && err != io.EOF {
				r.t.Fatal(err)
			}
		}
		if !bytes.Equal(got[0], got[1]) {
			r.t.Fatalf("volume %d at %s and %s is not the same at the cut", i+1, one, other)
		}
	}
}

// Copying adds nothing to what goes over the WAN, skips what is zero, and at the cut source and target hold the same.
func TestCopyFirstSameAtTheCut(t *testing.T) {
	r := newRig(t, "a", "b", "c")
	r.strategy = control.StrategyCopyFirst
	g := r.group(2, 32<<20)
	l := proof.New(r.disks("a", 2), proof.Options{Seed: 7, Depth: 8, Span: 4 << 20, Rate: 4000})
	runFor(t, l, 500*time.Millisecond)
	r.waitFor("in step", inStep(r))
	before := r.status("a").WANBytesSent
	r.through(g)
	if sent := r.status("a").WANBytesSent - before; sent > 4096 {
		t.Errorf("copying has sent %d bytes to the secondary", sent)
	}
	st := r.moveStatus("b")
	if st.Background == 0 || st.Background > 12<<20 {
		t.Errorf("%d bytes were fetched, of 8 MiB of data", st.Background)
	}
	r.call("b", control.CallMigrateRun, control.MigrationID{ID: "g-1"}, nil)
	r.waitFor("filled", func() bool { return r.moveStatus("b").Phase == control.PhaseFilled })
	if err := r.nodes["a"].node.group("g").vg.Checkpoint(t.Context()); err != nil {
		t.Fatal(err)
	}
	r.sameImages("a", "b", 2)
}

// targetState is what the source says of the target in its log.
func (r *rig) targetState() volume.SubscriberState {
	if s := r.nodes["a"].node.group("g").second.now.Load(); s != nil {
		return s.sub.State()
	}
	return 0
}

// fetchedNow is what this run of the target has fetched.
func (r *rig) fetchedNow() int64 { return r.moveStatus("b").Background }

// Target and source are restarted while the copying goes on, which goes on where it was.
func TestCopyFirstRestarts(t *testing.T) {
	r := newRig(t, "a", "b", "c")
	r.strategy, r.limit = control.StrategyCopyFirst, 6<<20
	g := r.group(1, 16<<20)
	l := proof.New(r.disks("a", 1), proof.Options{Seed: 11, Depth: 8, FlushEvery: 30, Rate: 2000})
	runFor(t, l, 300*time.Millisecond)
	r.register(g)
	third := func(n int64) func() bool {
		return func() bool { st := r.moveStatus("b"); return st.Present > n*st.Total/4 }
	}
	r.waitFor("a part copied", third(1))
	r.stop("b")
	runFor(t, l, 200*time.Millisecond)
	r.start("b")
	before := r.moveStatus("b")
	if before.Present < before.Total/4 {
		t.Fatalf("after the restart %d of %d regions are here", before.Present, before.Total)
	}
	r.waitFor("half copied", third(2))
	r.stop("a")
	r.start("a")
	l.SetDisks(r.disks("a", 1))
	stop := keepRunning(t, l)
	r.waitFor("copied", func() bool { return r.moveStatus("b").Copied })
	stop()
	// What was under way at the death of the source is fetched again, no more.
	if got, most := r.fetchedNow(), (before.Total-before.Present)*regionSize+4<<20; got > most {
		t.Errorf("%d bytes were fetched after the restart, %d at most were to be", got, most)
	}
	r.finish(g, l, 1)
}

func (r *rig) register(g control.Group) {
	sp := r.spec(g, "b")
	for _, n := range []string{"c", "a", "b"} {
		r.call(n, control.CallMigrateRegister, sp, nil)
	}
	r.call("b", control.CallMigrateCopy, control.MigrationID{ID: "g-1"}, nil)
}

// finish moves what is copied, under load, and checks all images.
func (r *rig) finish(_ control.Group, l *proof.Load, volumes int) {
	r.t.Helper()
	r.call("b", control.CallMigrateThrough, control.MigrationID{ID: "g-1"}, nil)
	l.SetDisks(r.disks("b", volumes))
	stop := keepRunning(r.t, l)
	r.call("b", control.CallMigrateRun, control.MigrationID{ID: "g-1"}, nil)
	r.waitFor("filled", func() bool { return r.moveStatus("b").Phase == control.PhaseFilled })
	stop()
	r.waitFor("in step", func() bool { st := r.status("b"); return st.Applied == st.Appended && st.ChangedBytes == 0 })
	r.check(l, "c", volumes, true)
	r.check(l, "b", volumes, true)
}

// A target that is away until the source's log is full is dropped: hosts go on, the secondary is not touched. Back
// again, it fetches what has changed, and nothing else.
func TestCopyFirstFullLog(t *testing.T) {
	r := newRig(t, "a", "b", "c")
	r.strategy = control.StrategyCopyFirst
	g, _ := r.pair(async, 1, 16<<20, 8<<20, 32<<20)
	l := proof.New(r.disks("a", 1), proof.Options{Seed: 3, Depth: 8, Span: 4 << 20, Rate: 1000})
	runFor(t, l, 200*time.Millisecond)
	r.register(g)
	r.waitFor("copied", func() bool { return r.moveStatus("b").Copied })
	r.stop("b")
	for r.targetState() == volume.SubStreaming {
		runFor(t, l, 200*time.Millisecond)
		r.waitFor("the secondary in step", inStep(r)) // or it would be dropped first
	}
	r.start("b")
	r.waitFor("copied again", func() bool { return r.targetState() == volume.SubStreaming && r.moveStatus("b").Copied })
	if got := r.fetchedNow(); got == 0 || got > 5<<20 {
		t.Errorf("%d bytes were fetched, the host wrote within 4 MiB", got)
	}
	if st := r.status("a"); st.State != "paired" {
		t.Errorf("the secondary: %+v", st)
	}
	r.finish(g, l, 1)
}

// The link between source and target swallows what is sent to the target: it is behind, so hosts are not held for it;
// held, they go back to the source within the budget. When it is back the move goes on.
func TestCopyFirstBehind(t *testing.T) {
	r := newRig(t, "a", "b", "c")
	w := newWAN(t, func() string { return r.listens("b") })
	r.via, r.strategy = map[string]string{"b": w.addr}, control.StrategyCopyFirst
	g := r.group(1, 8<<20)
	l := proof.New(r.disks("a", 1), proof.Options{Seed: 5, Depth: 4, Rate: 2000})
	runFor(t, l, 300*time.Millisecond)
	r.through(g)
	l.SetDisks(r.disks("b", 1))
	stop := keepRunning(t, l)
	w.set(true)
	time.Sleep(200 * time.Millisecond)
	r.nodes["b"].node.mu.Lock()
	ops := r.nodes["b"].node.moves["g-1"].ops
	r.nodes["b"].node.mu.Unlock()
	began := time.Now()
	if err := ops.Pend(t.Context()); err != nil {
		t.Fatal(err)
	}
	if err := ops.Meet(t.Context()); !errors.Is(err, migrate.ErrBehind) {
		t.Fatalf("hosts held, and the target out of step: %v", err)
	}
	if held, mode := time.Since(began), r.moveStatus("b").Modes["b/v1"]; held > 2*copyBudget || mode != "through" {
		t.Errorf("hosts were held for %v, and the mode is %s", held, mode)
	}
	r.call("b", control.CallMigrateRun, control.MigrationID{ID: "g-1"}, nil)
	time.Sleep(300 * time.Millisecond)
	if st := r.moveStatus("b"); st.Modes["b/v1"] != "through" || !strings.Contains(st.BlockedOn, "not in step") {
		t.Errorf("out of step: %+v", st)
	}
	w.set(false)
	r.waitFor("filled", func() bool { return r.moveStatus("b").Phase == control.PhaseFilled })
	stop()
	r.waitFor("in step", func() bool { st := r.status("b"); return st.Applied == st.Appended })
	r.check(l, "c", 1, true)
	r.check(l, "b", 1, true)
	if events := r.nodes["b"].node.events.after(0); !slices.ContainsFunc(events, func(e control.NodeEvent) bool { return e.Kind == "target-behind" }) {
		t.Errorf("not told: %+v", events)
	}
}

// The source dies when it has sealed and the secondary has all up to the cut: the move ends without it.
func TestCopyFirstSourceGone(t *testing.T) {
	r := newRig(t, "a", "b", "c")
	r.strategy = control.StrategyCopyFirst
	g := r.group(2, 8<<20)
	l := proof.New(r.disks("a", 2), proof.Options{Seed: 9, Depth: 4, Rate: 2000})
	runFor(t, l, 300*time.Millisecond)
	r.through(g)
	r.store.set(true, "")
	r.call("b", control.CallMigrateRun, control.MigrationID{ID: "g-1"}, nil)
	r.waitFor("sealed and drained", func() bool { st := r.moveStatus("a"); return st.Sealed && st.Drained })
	r.waitFor("adopted", func() bool { return r.moveStatus("b").Cut != nil })
	r.stop("a")
	r.store.set(false, "")
	r.waitFor("filled", func() bool { return r.moveStatus("b").Phase == control.PhaseFilled })
	l.SetDisks(r.disks("b", 2))
	runFor(t, l, 200*time.Millisecond)
	r.waitFor("in step", func() bool { st := r.status("b"); return st.Applied == st.Appended && st.LinkUp })
	r.check(l, "b", 2, true)
	r.check(l, "c", 2, true)
}

// A move that has gone back is tried again with the same volumes, whatever they hold.
func TestCopyFirstSecondTry(t *testing.T) {
	r := newRig(t, "a", "b", "c")
	r.strategy = control.StrategyCopyFirst
	g := r.group(1, 8<<20)
	l := proof.New(r.disks("a", 1), proof.Options{Seed: 13, Depth: 4, Rate: 2000})
	runFor(t, l, 300*time.Millisecond)
	r.limit = 1 << 20
	r.register(g)
	r.waitFor("copying", func() bool { return r.targetState() == volume.SubStreaming })
	stop := keepRunning(t, l)
	for _, n := range []string{"b", "a", "c"} { // while it is copied
		r.call(n, control.CallMigrateCancel, control.MigrationID{ID: "g-1"}, nil)
	}
	stop()
	r.limit = 0
	r.goBack(g)
	for _, n := range []string{"b", "a", "c"} {
		r.call(n, control.CallMigrateCancel, control.MigrationID{ID: "g-1"}, nil)
	}
	if r.targetState() != 0 || r.nodes["a"].node.group("g").vg.Subscriber(targetName) != nil {
		t.Error("the source still has a second subscriber")
	}
	runFor(t, l, 300*time.Millisecond)
	r.store.set(false, "")
	g.Epoch = 3
	sp := r.spec(g, "b")
	for _, n := range []string{"c", "a", "b"} {
		r.call(n, control.CallMigrateRegister, sp, nil)
	}
	r.call("b", control.CallMigrateCopy, control.MigrationID{ID: "g-1"}, nil)
	r.waitFor("copied", func() bool { return r.moveStatus("b").Copied })
	r.finish(g, l, 1)
}

// The link between source and target breaks while the target is copied to. Hosts and the secondary do not notice; the
// copy goes on where it was.
func TestCopyFirstLinkCut(t *testing.T) {
	r := newRig(t, "a", "b", "c")
	toA, toB := newCutLink(t, func() string { return r.listens("a") }), newCutLink(t, func() string { return r.listens("b") })
	r.via = map[string]string{"a": toA.addr(), "b": toB.addr()}
	r.strategy, r.limit = control.StrategyCopyFirst, 6<<20
	g := r.group(1, 16<<20)
	l := proof.New(r.disks("a", 1), proof.Options{Seed: 21, Depth: 8, FlushEvery: 30, Rate: 2000})
	stop := keepRunning(t, l)
	r.register(g)
	r.waitFor("a part copied", func() bool { st := r.moveStatus("b"); return st.Present > st.Total/4 })
	toA.set(true)
	toB.set(true)
	time.Sleep(500 * time.Millisecond)
	r.waitFor("told", func() bool { return strings.HasPrefix(r.moveStatus("b").BlockedOn, "copy: ") })
	if st := r.status("a"); st.State != "paired" || !st.LinkUp {
		t.Errorf("the secondary: %+v", st)
	}
	toA.set(false)
	toB.set(false)
	r.waitFor("copied", func() bool { return r.moveStatus("b").Copied })
	stop()
	if got := r.fetchedNow(); got > 16<<20+4<<20 {
		t.Errorf("%d bytes were fetched of 16 MiB", got)
	}
	r.finish(g, l, 1)
}

// A target that the log's end has cut off is not left behind: the source does not seal, hosts go on there, no epoch is used up, and the
// move is made when the target has caught up. A group with a log in memory that is being copied for the first time is refused.
func TestCopyFirstCutOffAtTheSeal(t *testing.T) {
	r := newRig(t, "a", "b", "c")
	r.strategy = control.StrategyCopyFirst
	g := r.group(1, 8<<20)
	l := proof.New(r.disks("a", 1), proof.Options{Seed: 15, Depth: 4, Rate: 2000})
	runFor(t, l, 200*time.Millisecond)
	r.through(g)
	r.nodes["b"].node.mu.Lock()
	ops := r.nodes["b"].node.moves["g-1"].ops
	r.nodes["b"].node.mu.Unlock()
	if err := ops.Pend(t.Context()); err != nil {
		t.Fatal(err)
	}
	if err := r.nodes["a"].node.group("g").second.now.Load().sub.Suspend("the log is full"); err != nil {
		t.Fatal(err)
	}
	if h, err := ops.Seal(t.Context()); !errors.Is(err, migrate.ErrBehind) {
		t.Fatalf("the source was asked to seal without the target: %+v, %v", h, err)
	}
	if st := r.moveStatus("a"); st.Sealed || r.moveStatus("b").Modes["b/v1"] != "through" {
		t.Fatalf("behind the refused seal: %+v, %+v", st, r.moveStatus("b"))
	}
	l.SetDisks(r.disks("b", 1))
	runFor(t, l, 100*time.Millisecond) // the source answers
	r.finish(g, l, 1)
	if st := r.status("b"); st.Epoch != g.Epoch+1 {
		t.Errorf("moved in epoch %d", st.Epoch)
	}
}
