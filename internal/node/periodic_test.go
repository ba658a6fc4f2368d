package node

import (
	"context"
	"math/rand/v2"
	"os"
	"runtime"
	"slices"
	"strings"
	"testing"
	"time"

	"gantline/internal/control"
	"gantline/internal/proof"
	"gantline/internal/volume"
)

// pair makes group g with the given settings and sizes, over a link to c that can be cut.
func (r *rig) pair(change func(*control.Settings), volumes int, size, journalA, journalC int64) (control.Group, *cutLink) {
	r.t.Helper()
	link := newCutLink(r.t, func() string { return r.listens("c") })
	r.via = map[string]string{"c": link.addr()}
	g := control.Group{Name: "g", Settings: control.DefaultSettings(), Epoch: 1, Primary: "a", Secondary: "c",
		PrimaryJournal: "a/jg", SecondaryJournal: "c/jg", Revision: 1}
	change(&g.Settings)
	if g.Log == control.LogQueue {
		g.PrimaryJournal, g.SecondaryJournalSize = "", journalC
	} else {
		r.call("a", control.CallJournalCreate, control.JournalCreate{Name: "jg", Size: journalA}, nil)
	}
	r.call("c", control.CallJournalCreate, control.JournalCreate{Name: "jg", Size: journalC}, nil)
	for i := range volumes {
		v := "v" + string(rune('1'+i))
		for _, node := range []string{"a", "c"} {
			r.call(node, control.CallVolumeCreate, control.VolumeCreate{Name: v, Size: size}, nil)
		}
		g.Pairs = append(g.Pairs, control.Pair{Number: uint16(i + 1), Primary: "a/" + v, Secondary: "c/" + v, Size: size})
	}
	r.specify(g)
	r.waitFor("paired", func() bool {
		st := r.status("a")
		return st.LinkUp && st.Appended >= 2*uint64(volumes) && inStep(r)()
	})
	return g, link
}

func (r *rig) specify(g control.Group) {
	r.t.Helper()
	r.call("c", control.CallGroupConfigure, control.GroupSpec{Group: g, Role: control.RoleSecondary, Address: r.addresses()}, nil)
	r.call("a", control.CallGroupConfigure, control.GroupSpec{Group: g, Role: control.RolePrimary, Address: r.addresses()}, nil)
}

// setMode changes the settings of the live group.
func (r *rig) setMode(g *control.Group, change func(*control.Settings)) {
	r.t.Helper()
	change(&g.Settings)
	g.Revision++
	r.specify(*g)
}

func every(d time.Duration) func(*control.Settings) {
	return func(s *control.Settings) { s.Mode, s.IntervalMS = control.ModePeriodic, d.Milliseconds() }
}

func async(s *control.Settings) { s.Mode = control.ModeAsync }

// onQueue has the primary keep its log in memory.
func onQueue(change func(*control.Settings)) func(*control.Settings) {
	return func(s *control.Settings) {
		change(s)
		s.Log = control.LogQueue
	}
}

// onEachLog runs the test with either log at the primary.
func onEachLog(t *testing.T, run func(t *testing.T, with func(func(*control.Settings)) func(*control.Settings))) {
	t.Run("journal", func(t *testing.T) {
		run(t, func(change func(*control.Settings)) func(*control.Settings) { return change })
	})
	t.Run("queue", func(t *testing.T) { run(t, onQueue) })
}

func inStep(r *rig) func() bool {
	return func() bool {
		c := r.status("c")
		st := r.status("a")
		return st.State == "paired" && c.Applied == st.Appended && st.ChangedBytes == 0
	}
}

// keepRunning runs the load until the result is called.
func keepRunning(t *testing.T, l *proof.Load) (stop func()) {
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- l.Run(ctx) }()
	return func() {
		t.Helper()
		cancel()
		if err := <-ended; err != nil {
			t.Fatal(err)
		}
	}
}

// A periodic group under load: whenever it is looked at in peace, the secondary is a cut; both nodes restart in between;
// nothing is copied that has not changed; a switch to asynchronous and back copies only that either.
func TestPeriodic(t *testing.T) { onEachLog(t, periodic) }

func periodic(t *testing.T, with func(func(*control.Settings)) func(*control.Settings)) {
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	r := newRig(t, "a", "c")
	g, _ := r.pair(with(every(200*time.Millisecond)), 2, 16<<20, 64<<20, 64<<20)
	l := proof.New(r.disks("a", 2), proof.Options{Seed: seed, Depth: 8, FlushEvery: 20, Rate: 2000, Span: 4 << 20})
	ends := r.status("c").Applied
	stop := keepRunning(t, l)
	r.waitFor("three steps", func() bool {
		st, c := r.status("a"), r.status("c")
		if c.Applied > ends {
			ends = c.Applied
		}
		return st.State != "failed" && l.Stats().Writes > 1200 && ends > 100
	})
	look := func(when string) {
		t.Helper()
		r.call("a", control.CallGroupSuspend, control.GroupSuspend{Name: "g"}, nil)
		r.waitFor("at rest", func() bool { st := r.status("a"); return st.State == "suspended" && st.BlockedOn == byCommand })
		time.Sleep(100 * time.Millisecond)
		r.check(l, "c", 2, false)
		r.call("a", control.CallGroupResume, control.GroupResume{Name: "g"}, nil)
		r.waitFor("paired again "+when, func() bool { return r.status("a").State == "paired" })
	}
	look("under load")
	stop()
	r.stop("c")
	runFor(t, l, 500*time.Millisecond)
	if st := r.status("a"); st.LinkUp || st.LagBytes == 0 || st.LagSeconds == 0 || st.Applied >= st.Appended {
		t.Fatalf("with the secondary away: %+v", st)
	}
	r.start("c")
	look("right after a restart of the secondary") // at rest: who reads while a step is applied may see part of it
	stop = keepRunning(t, l)
	look("after a restart of the secondary")
	stop()
	r.stop("a")
	r.start("a")
	l.SetDisks(r.disks("a", 2))
	stop = keepRunning(t, l)
	look("after a restart of the primary")
	stop()
	r.waitFor("in step", inStep(r))
	r.check(l, "c", 2, true)
	if st := r.status("a"); st.LagBytes != 0 || st.LagSeconds != 0 {
		t.Fatalf("lag of equal images: %+v", st)
	}

	before := r.status("a")
	r.setMode(&g, async)
	r.waitFor("asynchronous", func() bool { return r.nodes["a"].node.group("g").sub.State() == volume.SubStreaming })
	l.SetDisks(r.disks("a", 2))
	runFor(t, l, 200*time.Millisecond)
	r.waitFor("in step", inStep(r))
	r.check(l, "c", 2, true)
	r.setMode(&g, every(100*time.Millisecond))
	r.waitFor("periodic again", func() bool { return r.nodes["a"].node.group("g").sub.State() == volume.SubSuspended })
	stop = keepRunning(t, l)
	r.setMode(&g, async) // under load, at any point of a step
	time.Sleep(150 * time.Millisecond)
	r.setMode(&g, every(time.Minute))
	time.Sleep(20 * time.Millisecond)
	r.setMode(&g, async)
	stop()
	r.waitFor("in step", inStep(r))
	r.check(l, "c", 2, true)
	if sent := r.status("a").WANBytesSent - before.WANBytesSent; sent > 2*(8<<20)+l.Stats().Bytes/2 {
		t.Errorf("the switches have sent %d bytes; the load uses 8 MiB", sent)
	}
	t.Logf("%+v", l.Stats())
}

// A pair joins a periodic group whose next step is far away: its initial copy does not wait for that, and afterwards the
// group is at rest again.
func TestPairJoinsPeriodicGroup(t *testing.T) {
	r := newRig(t, "a", "c")
	g, _ := r.pair(every(time.Hour), 1, 8<<20, 16<<20, 16<<20)
	atRest := func() bool { return r.nodes["a"].node.group("g").sub.State() == volume.SubSuspended }
	r.waitFor("at rest", atRest)
	writeTo(t, r.disks("a", 1)[0].Target, 0, 64<<10, 1)
	if st := r.status("a"); st.State != "paired" || st.LagBytes != 64<<10 || st.ChangedBytes != 64<<10 {
		t.Fatalf("at rest: %+v", st)
	}
	for _, node := range []string{"a", "c"} {
		r.call(node, control.CallVolumeCreate, control.VolumeCreate{Name: "v2", Size: 8 << 20}, nil)
	}
	writeTo(t, r.disks("a", 2)[1].Target, 1<<20, 64<<10, 2)
	g.Pairs = append(g.Pairs, control.Pair{Number: 2, Primary: "a/v2", Secondary: "c/v2", Size: 8 << 20})
	r.setMode(&g, every(time.Hour))
	r.waitFor("in step and at rest", func() bool { return inStep(r)() && atRest() })
	for i, want := range []byte{1, 2} {
		got := make([]byte, 64<<10)
		if _, err := r.images("c", 2)[i].ReadAt(got, int64(i)<<20); err != nil || got[0] != want || got[len(got)-1] != want {
			t.Fatalf("volume %d: %d, %v", i+1, got[0], err)
		}
	}
}

// A dead link: intervals that cannot be finished are told and counted, not stacked; what the host writes needs no journal and
// no memory, however long it lasts; then each changed block goes once. The same for an asynchronous group, whose journal
// fills up.
func TestDeadLink(t *testing.T) {
	for _, mode := range []string{control.ModePeriodic, control.ModeAsync} {
		t.Run(mode, func(t *testing.T) {
			r := newRig(t, "a", "c")
			settings := async
			if mode == control.ModePeriodic {
				settings = every(300 * time.Millisecond)
			}
			const size, region, jnl = 32 << 20, 1 << 20, 8 << 20
			_, link := r.pair(settings, 1, size, jnl, jnl)
			disk := r.disks("a", 1)[0].Target
			writeTo(t, disk, 0, region, 1)
			r.waitFor("in step", inStep(r))
			link.set(true)
			r.waitFor("down", func() bool { return !r.status("a").LinkUp })
			late := r.status("a").Overruns
			var before, after runtime.MemStats
			runtime.ReadMemStats(&before)
			for n := range 10 * jnl / region {
				for off := int64(0); off < region; off += 64 << 10 {
					writeTo(t, disk, off, 64<<10, byte(n+2))
				}
			}
			runtime.GC()
			runtime.ReadMemStats(&after)
			if grown := int64(after.HeapAlloc) - int64(before.HeapAlloc); grown > 256<<20 {
				t.Errorf("memory has grown by %d bytes", grown)
			}
			st := r.status("a")
			if st.ChangedBytes != region || st.LagBytes < 10*jnl/2 || st.LagSeconds <= 0 {
				t.Errorf("marked %d bytes of %d; lag %d bytes, %v s", st.ChangedBytes, region, st.LagBytes, st.LagSeconds)
			}
			if mode == control.ModePeriodic {
				if st.State != "paired" {
					t.Errorf("%s, %s", st.State, st.BlockedOn)
				}
				r.waitFor("told", func() bool { return r.status("a").Overruns > late })
				time.Sleep(700 * time.Millisecond)
				if n := r.status("a").Overruns - late; n > 2 { // one that was under way, and one that waits
					t.Errorf("of one outage %d overruns are counted", n)
				}
				found := slices.ContainsFunc(r.nodes["a"].node.events.after(0), func(e control.NodeEvent) bool {
					return e.Kind == "overrun" && e.Object == "group/g"
				})
				if !found {
					t.Error("no event tells of the overrun")
				}
			}
			link.set(false)
			if mode == control.ModeAsync {
				r.waitFor("suspended", func() bool { st := r.status("a"); return st.State == "suspended" && st.LinkUp })
				r.call("a", control.CallGroupResume, control.GroupResume{Name: "g"}, nil)
			}
			r.waitFor("in step", inStep(r))
			if sent := r.status("a").WANBytesSent - st.WANBytesSent; sent < region || sent > region+region/8 {
				t.Errorf("sent %d bytes for %d changed", sent, region)
			}
			got := make([]byte, region)
			if _, err := (targetReader{r.disks("c", 1)[0].Target}).ReadAt(got, 0); err != nil {
				t.Fatal(err)
			}
			for i, b := range got {
				if b != byte(10*jnl/region+1) {
					t.Fatalf("byte %d at the secondary is %d", i, b)
				}
			}
		})
	}
}

// A step that the secondary's own journal cannot hold is refused, with the way out, and taken on it.
func TestStepTooLargeForTheSecondary(t *testing.T) {
	r := newRig(t, "a", "c")
	_, link := r.pair(every(200*time.Millisecond), 1, 32<<20, 64<<20, 4<<20)
	disk := r.disks("a", 1)[0].Target
	link.set(true)
	for off := int64(0); off < 8<<20; off += 64 << 10 {
		writeTo(t, disk, off, 64<<10, byte(off>>16+1))
	}
	link.set(false)
	r.waitFor("refused", func() bool {
		st := r.status("a")
		return st.State == "suspended" && strings.Contains(st.BlockedOn, "--allow-inconsistent") && strings.Contains(st.BlockedOn, "the secondary's journal") &&
			st.Overruns > 0
	})
	if err := r.try("a", control.CallGroupResume, control.GroupResume{Name: "g"}, nil); err == nil {
		t.Fatal("resumed")
	}
	r.call("a", control.CallGroupResume, control.GroupResume{Name: "g", AllowInconsistent: true}, nil)
	r.waitFor("in step", inStep(r))
	if st := r.status("c"); !st.Consistent {
		t.Fatal("not consistent at the end")
	}
	writeTo(t, disk, 0, 4096, 200)
	r.waitFor("in step again, as before", inStep(r))
}

// A host outgrows a step that had fitted: it is given up, and the next one tried, without anybody's help.
func TestStepOutgrowsTheJournal(t *testing.T) {
	r := newRig(t, "a", "c")
	_, link := r.pair(async, 1, 32<<20, 64<<20, 4<<20)
	disk := r.disks("a", 1)[0].Target
	r.call("a", control.CallGroupSuspend, control.GroupSuspend{Name: "g"}, nil)
	for off := int64(0); off < 512<<10; off += 64 << 10 {
		writeTo(t, disk, off, 64<<10, byte(off>>16+1))
	}
	link.set(true)
	r.call("a", control.CallGroupResume, control.GroupResume{Name: "g"}, nil)
	r.waitFor("resyncing", func() bool { return r.nodes["a"].node.group("g").sub.State() == volume.SubResyncing })
	for n := range 100 {
		writeTo(t, disk, 0, 64<<10, byte(n))
	}
	link.set(false)
	r.waitFor("in step", inStep(r))
}

// A suspension and a resumption at the same time as the copy loop decides: the last word holds.
func TestSuspendHolds(t *testing.T) {
	r := newRig(t, "a", "c")
	r.pair(async, 1, 8<<20, 8<<20, 8<<20)
	disk := r.disks("a", 1)[0].Target
	rounds := 20
	if os.Getenv("GANTLINE_CAMPAIGN") != "" {
		rounds = 60
	}
	for i := range rounds {
		writeTo(t, disk, int64(i%16)<<16, 4096, byte(i))
		r.call("a", control.CallGroupSuspend, control.GroupSuspend{Name: "g"}, nil)
		r.call("a", control.CallGroupResume, control.GroupResume{Name: "g"}, nil)
		time.Sleep(time.Duration(rand.IntN(3000)) * time.Microsecond)
		r.call("a", control.CallGroupSuspend, control.GroupSuspend{Name: "g"}, nil)
		if i%10 == 0 {
			time.Sleep(20 * time.Millisecond)
		}
		if st := r.status("a"); st.State != "suspended" {
			t.Fatalf("round %d: %s after the suspension", i, st.State)
		}
		r.call("a", control.CallGroupResume, control.GroupResume{Name: "g"}, nil)
		if i%10 == 0 {
			r.waitFor("paired", func() bool { return r.status("a").State == "paired" })
		}
	}
	r.waitFor("in step", inStep(r))
}

func TestIntervals(t *testing.T) {
	const s = time.Second
	var i intervals
	i.set(10*s, 0)
	step := func(what string, ok bool) {
		t.Helper()
		if !ok {
			t.Fatalf("%s: %+v", what, i)
		}
	}
	step("the first is due at once", i.wait(0) == 0)
	i.begin(0)
	step("in time", !i.late(9*s))
	i.end(3 * s)
	step("the next at the boundary", i.wait(3*s) == 7*s)
	i.begin(10 * s)
	i.begin(12 * s)
	step("late once", i.late(20*s) && !i.late(21*s) && !i.fail())
	step("none is stacked", i.wait(35*s) == 0)
	i.end(35 * s)
	step("but waits for the boundary", i.wait(35*s) == 5*s)
	i.begin(40 * s)
	step("given up", i.fail() && !i.late(51*s))
	i.end(50 * s)
	step("ended at a boundary: the next one", i.wait(50*s) == 10*s)
	i.set(2*s, 50*s)
	step("shorter", i.wait(50*s) == 2*s)
	i.set(100*s, 50*s)
	step("longer, from the one after the next", i.wait(50*s) == 2*s)
}
