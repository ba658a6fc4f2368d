package node

import (
	"testing"

	"gantline/internal/control"
)

// After a move the secondary names the target's journal when it is asked by an older store: at once, and one that still has
// the name of before learns it with the next word of the manager.
func TestSecondaryKnowsTheTargetsJournal(t *testing.T) {
	r := newRig(t, "a", "b", "c")
	g := r.group(1, 4<<20)
	r.filled(g)
	r.waitFor("drained", func() bool { return r.moveStatus("a").Drained })
	for _, n := range []string{"c", "b", "a"} {
		r.call(n, control.CallMigrateDeregister, control.MigrationID{ID: "g-1"}, nil)
	}
	held := func() control.Group { return r.nodes["c"].node.state.view().Groups["g"].Spec.Group }
	before := g.PrimaryJournal
	g.Epoch, g.Primary, g.PrimaryJournal, g.Pairs[0].Primary = 2, "b", "b/jg", "b/v1"
	if h := held(); h.PrimaryJournal != "b/jg" {
		t.Fatalf("c holds %+v", h)
	}
	g.Revision += 5
	r.call("c", control.CallGroupConfigure, control.GroupSpec{Group: g, Role: control.RoleSecondary, Address: r.addresses()}, nil)
	if h := held(); h.Primary != "b" || h.PrimaryJournal != "b/jg" || h.Epoch != 2 {
		t.Fatalf("c holds %+v", h)
	}
	if err := r.nodes["c"].node.state.update(func(d *durable) error {
		d.Groups["g"].Spec.Group.PrimaryJournal = before
		return nil
	}); err != nil {
		t.Fatal(err)
	}
	g.Revision++
	r.call("c", control.CallGroupConfigure, control.GroupSpec{Group: g, Role: control.RoleSecondary, Address: r.addresses()}, nil)
	if h := held(); h.PrimaryJournal != "b/jg" {
		t.Fatalf("c still holds %+v", h)
	}
}
