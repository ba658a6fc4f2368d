package node

import (
	"testing"
	"time"

	"gantline/internal/control"
	"gantline/internal/proof"
)

// The primary hears of a new pair before the secondary does: its records wait there, also across a restart, and are
// applied once the secondary has been told.
func TestSecondaryHearsOfAPairLate(t *testing.T) {
	r := newRig(t, "a", "c")
	g := control.Group{Name: "g", Settings: control.DefaultSettings(), Epoch: 1, Primary: "a", Secondary: "c",
		PrimaryJournal: "a/jg", SecondaryJournal: "c/jg", Revision: 1}
	for _, node := range []string{"a", "c"} {
		r.call(node, control.CallJournalCreate, control.JournalCreate{Name: "jg", Size: 64 << 20}, nil)
		r.call(node, control.CallVolumeCreate, control.VolumeCreate{Name: "v1", Size: 8 << 20}, nil)
	}
	tell := func(node, role string) {
		r.call(node, control.CallGroupConfigure, control.GroupSpec{Group: g, Role: role, Address: r.addresses()}, nil)
	}
	tell("c", control.RoleSecondary)
	g.Pairs = []control.Pair{{Number: 1, Primary: "a/v1", Secondary: "c/v1", Size: 8 << 20}}
	g.Revision = 2
	tell("a", control.RolePrimary)
	l := proof.New(r.disks("a", 1), proof.Options{Seed: 1, FlushEvery: 20})
	runFor(t, l, 200*time.Millisecond)
	r.waitFor("stored at c", func() bool { st := r.status("c"); return st.Appended > 1 && st.Appended == r.status("a").Appended })
	for range 2 {
		if st := r.status("c"); st.State != "paired" || st.Error != "" || st.Applied > 1 {
			t.Fatalf("%+v", st)
		}
		r.stop("c")
		r.start("c")
	}
	tell("c", control.RoleSecondary)
	r.waitFor("in step", func() bool { st := r.status("a"); return st.LinkUp && st.Applied == st.Appended })
	r.check(l, "c", 1, true)
}
