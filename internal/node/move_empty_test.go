package node

import (
	"testing"
	"time"

	"gantline/internal/control"
	"gantline/internal/proof"
)

// A group that has never had a pair moves, over a restart of its source, and again to a third node. A pair that it then gets
// is copied like any other, and the secondary takes it from the last of the three.
func TestMoveEmpty(t *testing.T) {
	t.Parallel()
	for name, with := range map[string]func(*control.Settings){
		"async": async, "sync": synced, "queue": onQueue(async), "periodic": every(100 * time.Millisecond),
	} {
		t.Run(name, func(t *testing.T) {
			r := newRig(t, "a", "b", "c", "d")
			g := control.Group{Name: "g", Settings: control.DefaultSettings(), Epoch: 1, Primary: "a", Secondary: "c", NextNumber: 1,
				PrimaryJournal: "a/jg", SecondaryJournal: "c/jg", Revision: 1}
			with(&g.Settings)
			r.call("c", control.CallJournalCreate, control.JournalCreate{Name: "jg", Size: 32 << 20}, nil)
			if g.Log == control.LogQueue {
				g.PrimaryJournal, g.SecondaryJournalSize = "", 32<<20
			} else {
				r.call("a", control.CallJournalCreate, control.JournalCreate{Name: "jg", Size: 32 << 20}, nil)
			}
			configure := func(primary string) {
				t.Helper()
				r.call("c", control.CallGroupConfigure, control.GroupSpec{Group: g, Role: control.RoleSecondary, Address: r.addresses()}, nil)
				r.call(primary, control.CallGroupConfigure, control.GroupSpec{Group: g, Role: control.RolePrimary, Address: r.addresses()}, nil)
			}
			configure("a")
			if st := r.status("a"); st.State != "empty" {
				t.Fatalf("%+v", st)
			}
			for i, to := range []string{"b", "d"} {
				from := g.Primary
				sp := r.spec(g, to)
				sp.ID, sp.Source, sp.SourceJournal = []string{"g-1", "g-2"}[i], from, g.PrimaryJournal
				id := control.MigrationID{ID: sp.ID}
				status := func(node string) (st control.MigrationStatus) {
					t.Helper()
					r.call(node, control.CallMigrateStatus, id, &st)
					return st
				}
				for _, n := range []string{"c", from, to} {
					r.call(n, control.CallMigrateRegister, sp, nil)
				}
				if i == 0 {
					r.stop(from)
					r.start(from)
				}
				r.waitFor("ready", func() bool { return status(from).Ready })
				r.call(to, control.CallMigrateThrough, id, nil)
				r.store.set(false, "")
				r.call(to, control.CallMigrateRun, id, nil)
				r.waitFor("filled", func() bool { return status(to).Phase == control.PhaseFilled })
				for _, n := range []string{"c", to, from} {
					r.waitFor("deregistered at "+n, func() bool { return r.try(n, control.CallMigrateDeregister, id, nil) == nil })
				}
				g.Primary, g.Epoch, g.Revision = to, g.Epoch+1, g.Revision+1
				if g.Log != control.LogQueue {
					g.PrimaryJournal = to + "/jg"
				}
				if st := r.status(to); st.State != "empty" || st.Epoch != g.Epoch {
					t.Fatalf("at %s: %+v", to, st)
				}
			}
			for _, node := range []string{"d", "c"} {
				r.call(node, control.CallVolumeCreate, control.VolumeCreate{Name: "v1", Size: 2 << 20}, nil)
			}
			l := proof.New(r.disks("d", 1), proof.Options{Seed: 5, Depth: 4, Rate: 800})
			runFor(t, l, 100*time.Millisecond)
			g.Pairs = append(g.Pairs, control.Pair{Number: 1, Primary: "d/v1", Secondary: "c/v1", Size: 2 << 20})
			g.NextNumber, g.Revision = 2, g.Revision+1
			configure("d")
			runFor(t, l, 100*time.Millisecond)
			r.waitFor("in step", func() bool {
				st, c := r.status("d"), r.status("c")
				return st.State == "paired" && st.LinkUp && st.ChangedBytes == 0 && c.Applied == st.Appended && c.Consistent
			})
			r.check(l, "c", 1, true)
			if cs := r.status("c").CopySource; cs != "d" {
				t.Errorf("copy source %s", cs)
			}
		})
	}
}
