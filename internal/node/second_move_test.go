package node

import (
	"testing"
	"time"

	"gantline/internal/control"
	"gantline/internal/proof"
)

// As TestSecondTryAfterReturn, with a fresh journal at the target.
func TestSecondTryFreshJournal(t *testing.T) {
	r := newRig(t, "a", "b", "c")
	g := r.group(1, 4<<20)
	l := proof.New(r.disks("a", 1), proof.Options{Seed: 5, Depth: 4})
	runFor(t, l, 200*time.Millisecond)
	r.goBack(g)
	for _, n := range []string{"b", "a", "c"} {
		r.call(n, control.CallMigrateCancel, control.MigrationID{ID: "g-1"}, nil)
	}
	runFor(t, l, 200*time.Millisecond)
	r.store.set(false, "")
	g.Epoch = 3
	sp := r.spec(g, "b")
	sp.ID, sp.TargetJournal = "g-2", "b/jg2"
	r.call("b", control.CallJournalCreate, control.JournalCreate{Name: "jg2", Size: 64 << 20}, nil)
	for _, n := range []string{"c", "a", "b"} {
		if err := r.try(n, control.CallMigrateRegister, sp, nil); err != nil {
			t.Fatalf("register at %s: %v", n, err)
		}
	}
	r.call("b", control.CallMigrateThrough, control.MigrationID{ID: "g-2"}, nil)
	l.SetDisks(r.disks("b", 1))
	r.call("b", control.CallMigrateRun, control.MigrationID{ID: "g-2"}, nil)
	runFor(t, l, 500*time.Millisecond)
	r.waitFor("filled", func() bool {
		var st control.MigrationStatus
		return r.try("b", control.CallMigrateStatus, control.MigrationID{ID: "g-2"}, &st) == nil && st.Phase == control.PhaseFilled
	})
	r.waitFor("in step", func() bool { st := r.status("b"); return st.Applied == st.Appended && st.LinkUp })
	r.check(l, "c", 1, true)
	r.check(l, "b", 1, true)
}

// The count of bytes sent never falls, whoever has sent them.
func TestWANBytesAfterTwoMoves(t *testing.T) {
	r := newRig(t, "a", "b", "c", "d")
	g := r.group(1, 4<<20)
	l := proof.New(r.disks("a", 1), proof.Options{Seed: 5, Depth: 4})
	runFor(t, l, 500*time.Millisecond)
	r.waitFor("in step", func() bool { st := r.status("a"); return st.Applied == st.Appended })
	first := r.status("a").WANBytesSent
	r.filled(g)
	for _, n := range []string{"c", "b", "a"} {
		r.waitFor("deregistered at "+n, func() bool {
			return r.try(n, control.CallMigrateDeregister, control.MigrationID{ID: "g-1"}, nil) == nil
		})
	}
	second := r.status("b").WANBytesSent
	g.Epoch, g.Primary, g.PrimaryJournal = 2, "b", "b/jg"
	g.Pairs[0].Primary = "b/v1"
	sp := r.spec(g, "d")
	sp.ID, sp.Source, sp.SourceJournal = "g-2", "b", "b/jg"
	for _, n := range []string{"c", "b", "d"} {
		r.call(n, control.CallMigrateRegister, sp, nil)
	}
	r.store.set(false, "")
	r.call("d", control.CallMigrateThrough, control.MigrationID{ID: "g-2"}, nil)
	r.call("d", control.CallMigrateRun, control.MigrationID{ID: "g-2"}, nil)
	r.waitFor("filled", func() bool {
		var st control.MigrationStatus
		return r.try("d", control.CallMigrateStatus, control.MigrationID{ID: "g-2"}, &st) == nil && st.Phase == control.PhaseFilled
	})
	if third := r.status("d").WANBytesSent; third < second {
		t.Fatalf("sent %d at a, %d in all after the first move, %d after the second", first, second, third)
	}
}
