package node

import (
	"testing"
	"time"

	"gantline/internal/control"
	"gantline/internal/volume"
)

func (r *rig) atRest(node string) bool {
	return r.nodes[node].node.group("g").sub.State() == volume.SubSuspended
}

// A periodic group moves at rest, or inside a step, and goes on with its steps at the target.
func TestMovePeriodic(t *testing.T) {
	r := newRig(t, "a", "b", "c")
	r.with, r.span = every(100*time.Millisecond), 2<<20 // what one step may take
	moveUnderLoad(r)
	r.waitFor("at rest at the target", func() bool { return r.atRest("b") && r.status("b").State == "paired" })
}

// One that goes back to the source, goes back to its steps there.
func TestPeriodicGoesBack(t *testing.T) {
	r := newRig(t, "a", "b", "c")
	r.with = every(100 * time.Millisecond)
	storeAwayGoesBack(r)
	r.waitFor("at rest at the source", func() bool { return r.atRest("a") && r.status("a").State == "paired" })
}

// A move that is registered, and cancelled before it was ordered, leaves a periodic group to its steps.
func TestPeriodicMoveCancelled(t *testing.T) {
	r := newRig(t, "a", "b", "c")
	r.with = every(100 * time.Millisecond)
	g := r.group(1, 8<<20)
	r.waitFor("at rest", func() bool { return r.atRest("a") })
	r.through(g)
	writeTo(t, r.disks("a", 1)[0].Target, 0, 4096, 6)
	r.waitFor("in step", inStep(r))
	for _, n := range []string{"b", "a", "c"} {
		r.call(n, control.CallMigrateCancel, control.MigrationID{ID: "g-1"}, nil)
	}
	r.waitFor("at rest again", func() bool { return r.atRest("a") })
	writeTo(t, r.disks("a", 1)[0].Target, 0, 4096, 7)
	r.waitFor("in step", inStep(r))
}

// A group whose primary keeps its log in memory moves, and keeps it so at the target.
func TestMoveQueue(t *testing.T) {
	r := newRig(t, "a", "b", "c")
	r.with, r.span = onQueue(async), 4<<20
	moveUnderLoad(r)
	if r.nodes["b"].node.group("g").que == nil {
		t.Fatal("the target's log is no queue")
	}
}

func TestMovePeriodicQueue(t *testing.T) {
	r := newRig(t, "a", "b", "c")
	r.with, r.span = onQueue(every(100*time.Millisecond)), 2<<20
	moveUnderLoad(r)
	r.waitFor("at rest at the target", func() bool { return r.atRest("b") && r.status("b").State == "paired" })
}

func TestQueueGoesBack(t *testing.T) {
	r := newRig(t, "a", "b", "c")
	r.with = onQueue(async)
	storeAwayGoesBack(r)
}
