package node

import (
	"context"
	"math/rand/v2"
	"strings"
	"testing"
	"time"

	"gantline/internal/control"
	"gantline/internal/proof"
	"gantline/internal/volume"
)

// setSettings is what `group set` makes of a live group.
func (r *rig) setSettings(g *control.Group, change func(*control.Settings)) {
	r.t.Helper()
	change(&g.Settings)
	g.Revision++
	for _, n := range []struct{ name, role string }{{"c", control.RoleSecondary}, {"a", control.RolePrimary}} {
		r.call(n.name, control.CallGroupConfigure, control.GroupSpec{Group: *g, Role: n.role, Address: r.addresses()}, nil)
	}
}

// syncGroup is group, with nodes that lose patience sooner, made synchronous while it lives.
func (r *rig) syncGroup(n int, size int64, onLoss string) control.Group {
	r.t.Helper()
	for _, name := range []string{"a", "c"} {
		r.stop(name)
		r.nodes[name].cfg.patience = volume.SyncConfig{Patience: time.Second, Stall: 2 * time.Second, Hold: 2 * time.Second}
		r.start(name)
	}
	g := r.group(n, size)
	r.setSettings(&g, func(s *control.Settings) { s.Mode, s.OnLinkLoss = control.ModeSync, onLoss })
	r.waitFor("in sync", func() bool { st := r.status("a"); return st.State == "paired" && st.LinkUp && st.BlockedOn == "" })
	return g
}

// inSync waits for the end of whatever was copied, with both images equal.
func (r *rig) inSync() {
	r.t.Helper()
	r.waitFor("in sync and in step", func() bool {
		st := r.status("a")
		return st.State == "paired" && st.LinkUp && st.Applied == st.Appended && st.ChangedBytes == 0
	})
}

func running(l *proof.Load) (stop func() error) {
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- l.Run(ctx) }()
	return func() error { cancel(); return <-ended }
}

// The secondary goes away under load. Hosts stand still until it counts as lost, then go on; the group is suspended, and
// when the secondary is back it resyncs by itself, sends what is marked, and is paired again. The primary's restart in
// between changes nothing of that.
func TestSyncContinue(t *testing.T) {
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	r := newRig(t, "a", "c")
	r.syncGroup(2, 16<<20, control.LinkLossContinue)
	l := proof.New(r.disks("a", 2), proof.Options{Seed: seed, Depth: 8, ReadPercent: 20, FlushEvery: 10, Span: 4 << 20})
	for round := range 2 {
		stop := running(l)
		time.Sleep(300 * time.Millisecond)
		r.stop("c")
		r.waitFor("suspended", func() bool { return r.status("a").State == "suspended" })
		if st := r.status("a"); !strings.Contains(st.BlockedOn, "stale from record") || !st.Consistent {
			t.Fatalf("suspended: %+v", st)
		}
		time.Sleep(300 * time.Millisecond)
		if err := stop(); err != nil {
			t.Fatalf("the host saw an error: %v", err)
		}
		if round == 1 {
			r.stop("a")
			r.start("a")
			l.SetDisks(r.disks("a", 2))
			if st := r.status("a"); st.State != "suspended" || st.ChangedBytes == 0 {
				t.Fatalf("restarted: %+v", st)
			}
		}
		before := r.status("a")
		r.start("c")
		r.inSync()
		if sent := r.status("a").WANBytesSent - before.WANBytesSent; sent > before.ChangedBytes+1<<20 {
			t.Fatalf("sent %d bytes for %d marked", sent, before.ChangedBytes)
		}
		r.check(l, "c", 2, true)
	}
	if st := l.Stats(); st.LongestGap > 4*time.Second {
		t.Errorf("hosts stood still for %v", st.LongestGap)
	}
	runFor(t, l, 300*time.Millisecond)
	r.inSync()
	r.check(l, "c", 2, true)
}

// With stop hosts stand still, then get errors, and nothing is answered that the secondary does not have. When it is
// back they go on, without a resync.
func TestSyncStopsHosts(t *testing.T) {
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	r := newRig(t, "a", "c")
	g := r.syncGroup(2, 16<<20, control.LinkLossStop)
	l := proof.New(r.disks("a", 2), proof.Options{Seed: seed, Depth: 8, FlushEvery: 10, Tolerate: true})
	stop := running(l)
	time.Sleep(300 * time.Millisecond)
	r.stop("c")
	r.waitFor("errors at the host", func() bool { return l.Stats().Errors > 8 })
	if err := stop(); err == nil || !strings.Contains(err.Error(), "input/output") {
		t.Fatalf("the host's error: %v", err)
	}
	if st := r.status("a"); st.State != "suspended" || st.ChangedBytes != 0 || !strings.Contains(st.BlockedOn, "on-link-loss stop") {
		t.Fatalf("lost: %+v", st)
	}
	r.start("c")
	r.inSync()
	images := r.images("a", 2)
	if err := l.Forget(images); err != nil { // a write that got an error may be there or not, the same on both sides
		t.Fatal(err)
	}
	r.check(l, "c", 2, true)
	l.SetDisks(r.disks("a", 2))
	errors := l.Stats().Errors
	stop = running(l)
	time.Sleep(300 * time.Millisecond)
	_ = stop() // tells the first error of all
	if n := l.Stats().Errors - errors; n != 0 {
		t.Fatalf("%d errors with the link up", n)
	}
	// A restart of the primary with the secondary away answers nobody; as an asynchronous group it does at once.
	r.stop("c")
	r.stop("a")
	r.start("a")
	l.SetDisks(r.disks("a", 2))
	writes := l.Stats().Writes
	stop = running(l)
	time.Sleep(500 * time.Millisecond)
	if n := l.Stats().Writes - writes; n != 0 {
		t.Errorf("%d writes were answered without the secondary", n)
	}
	r.start("c") // it must hear of the change too
	r.setSettings(&g, func(s *control.Settings) { s.Mode = control.ModeAsync })
	r.stop("c")
	r.waitFor("hosts go on", func() bool { return l.Stats().Writes > writes+100 })
	_ = stop()
	if st := r.status("a"); st.State != "paired" || st.LinkUp {
		t.Errorf("asynchronous with the link down: %+v", st)
	}
	r.start("c")
	r.inSync()
}

// A synchronous group that moves stays one: nothing is answered without the secondary, before, in and after the move.
func TestSyncMove(t *testing.T) {
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	r := newRig(t, "a", "b", "c")
	g := r.syncGroup(2, 16<<20, control.LinkLossStop)
	l := proof.New(r.disks("a", 2), proof.Options{Seed: seed, Depth: 8, ReadPercent: 20, FlushEvery: 20})
	runFor(t, l, 300*time.Millisecond)
	r.through(g)
	l.SetDisks(r.disks("b", 2))
	stop := running(l)
	time.Sleep(200 * time.Millisecond)
	r.call("b", control.CallMigrateRun, control.MigrationID{ID: "g-1"}, nil)
	r.waitFor("filled", func() bool { return r.moveStatus("b").Phase == control.PhaseFilled })
	time.Sleep(200 * time.Millisecond)
	if err := stop(); err != nil {
		t.Fatal(err)
	}
	t.Logf("pause %v", *r.moveStatus("b").PauseMS)
	r.waitFor("in step", func() bool { st := r.status("b"); return st.State == "paired" && st.Applied == st.Appended })
	r.check(l, "c", 2, true)
	r.check(l, "b", 2, true)
	for _, n := range []string{"c", "b", "a"} {
		r.call(n, control.CallMigrateDeregister, control.MigrationID{ID: "g-1"}, nil)
	}
	r.stop("c")
	stop = running(l)
	writes := l.Stats().Writes
	time.Sleep(500 * time.Millisecond)
	if n := l.Stats().Writes - writes; n > 8 { // what was on its way
		t.Errorf("%d writes were answered by the target without the secondary", n)
	}
	r.start("c")
	r.waitFor("hosts go on", func() bool { return l.Stats().Writes > writes+100 })
	if err := stop(); err != nil {
		t.Fatal(err)
	}
	r.waitFor("in step", func() bool { st := r.status("b"); return st.State == "paired" && st.Applied == st.Appended })
	r.check(l, "c", 2, true)
}
