package node

import (
	"strings"
	"testing"
	"time"

	"gantline/internal/block"
	"gantline/internal/control"
	"gantline/internal/proof"
)

// gone brings a move to where it fills its target, and takes the source away for good.
func (r *rig) gone(g control.Group, l *proof.Load) {
	r.t.Helper()
	r.limit = 4096
	r.through(g)
	l.SetDisks(r.disks("b", len(g.Pairs)))
	r.call("b", control.CallMigrateRun, control.MigrationID{ID: "g-1"}, nil)
	r.waitFor("migrating", func() bool { return r.moveStatus("b").Phase == control.PhaseMigrating })
}

// The source is gone for good while the target lacks most regions: the target fetches them from the secondary, over its own restart too,
// and is filled. Hosts write on meanwhile, see no error but for the restart, and both images are what they wrote.
func TestSourceGoneIsRefilled(t *testing.T) {
	r := newRig(t, "a", "b", "c")
	g := r.group(2, 4<<20)
	l := proof.New(r.disks("a", 2), proof.Options{Seed: 7, Depth: 4, ReadPercent: 30, FlushEvery: 20, Rate: 500})
	runFor(t, l, 300*time.Millisecond)
	r.gone(g, l)
	r.waitFor("drained", func() bool { return r.moveStatus("a").Drained })
	r.stop("a")
	if st := r.moveStatus("b"); st.Present == st.Total {
		t.Fatalf("nothing is absent: %+v", st)
	}
	runFor(t, l, 4*time.Second) // some of it waits until the source is given up
	if st := l.Stats(); st.Errors > 0 {
		t.Errorf("hosts got errors: %+v", st)
	}
	r.stop("b")
	r.start("b")
	r.call("b", control.CallMigrateSet, control.MigrationSet{ID: "g-1"}, nil)
	l.SetDisks(r.disks("b", 2))
	runFor(t, l, 300*time.Millisecond)
	r.waitFor("filled", func() bool { return r.moveStatus("b").Phase == control.PhaseFilled })
	r.waitFor("in step", func() bool { st := r.status("b"); return st.Applied == st.Appended && st.LinkUp })
	r.check(l, "b", 2, true)
	r.check(l, "c", 2, true)
	for _, n := range []string{"c", "b"} {
		r.call(n, control.CallMigrateDeregister, control.MigrationID{ID: "g-1"}, nil)
	}
}

// A secondary that lacks records of the source gives nothing: what is absent fails and is listed, with the way out, and what is present is
// served. Promoted by force, the secondary serves the prefix that it has.
func TestSourceGoneWithRecords(t *testing.T) {
	r := newRig(t, "a", "b", "c")
	g := r.group(1, 4<<20)
	l := proof.New(r.disks("a", 1), proof.Options{Seed: 7, Depth: 4})
	r.with = func(s *control.Settings) { s.Limit = 4096 }
	r.with(&g.Settings)
	g.Revision++
	r.configure(g)
	runFor(t, l, 300*time.Millisecond)
	r.gone(g, l)
	host := r.nbd("b", "v1")
	if err := do(host, block.OpRead, 0, make([]byte, 4096), 10*time.Second); err != nil {
		t.Fatal(err)
	}
	if r.moveStatus("a").Drained {
		t.Fatal("the secondary has all")
	}
	r.stop("a")
	absent := make(chan error, 1)
	late := r.nbd("b", "v1")
	go func() { absent <- do(late, block.OpRead, 4<<20-4096, make([]byte, 4096), 20*time.Second) }()
	r.waitFor("told", func() bool {
		st := r.moveStatus("b")
		return len(st.AtRisk) > 0 && strings.Contains(st.BlockedOn, "group promote g --force")
	})
	if err := do(host, block.OpRead, 0, make([]byte, 4096), 10*time.Second); err != nil {
		t.Errorf("what is present: %v", err)
	}
	if err := <-absent; err == nil {
		t.Error("what is absent was read")
	}
	if _, err := r.promote(true, false); err != nil {
		t.Fatal(err)
	}
	r.check(l, "c", 1, false)
	r.waitFor("the target has heard", func() bool { return r.status("b").Role == control.RoleSuperseded })
}
