package node

import (
	"fmt"
	"testing"
	"time"

	"gantline/internal/block"
	"gantline/internal/control"
	"gantline/internal/wire"
)

// A registration that was on its way longer than the cancellation of its move leaves nothing behind, whether the move was known or
// not, over restarts too: the next move is not in its way. A group that was made again may use the id.
func TestRegistrationAfterItsCancellation(t *testing.T) {
	r := newRig(t, "a", "b", "c")
	g := r.group(1, 4<<20)
	sp := r.spec(g, "b")
	r.call("c", control.CallMigrateRegister, sp, nil)
	for _, n := range []string{"b", "a", "c"} {
		for range 2 {
			r.call(n, control.CallMigrateCancel, control.MigrationCancel{ID: sp.ID, Epoch: g.Epoch}, nil)
		}
	}
	r.stop("b")
	r.start("b")
	for _, n := range []string{"c", "a", "b"} {
		if err := r.try(n, control.CallMigrateRegister, sp, nil); wire.KindOf(err) != wire.KindRefused {
			t.Errorf("late registration at %s: %v", n, err)
		}
		if d := r.nodes[n].node.state.view(); len(d.Moves) > 0 || len(d.Cancelled) != 1 {
			t.Errorf("%s keeps %d moves, %d cancelled ones", n, len(d.Moves), len(d.Cancelled))
		}
	}
	sp.ID = "g-2"
	for _, n := range []string{"c", "a", "b"} {
		r.call(n, control.CallMigrateRegister, sp, nil)
	}
}

func TestCancelledMovesAreBounded(t *testing.T) {
	d := &durable{}
	d.init()
	for i := range 3 * maxCancelled {
		before := d.Cancelled
		d.cancel(control.MigrationCancel{ID: fmt.Sprintf("g-%d", i), Epoch: 1})
		if i > 0 && before[0].ID == "" {
			t.Fatal("a reader's copy was changed")
		}
	}
	if n := len(d.Cancelled); n != maxCancelled || d.Cancelled[n-1].ID != fmt.Sprintf("g-%d", 3*maxCancelled-1) {
		t.Errorf("%d remembered: %v", n, d.Cancelled)
	}
}

// What the target relays and nobody answers keeps it from being forgotten, and a repetition goes on: else the group would be gone
// from the record with its journal still open.
func TestCancelWithASourceThatDoesNotAnswer(t *testing.T) {
	r := newRig(t, "a", "b", "c")
	g := r.group(1, 4<<20)
	r.through(g)
	host := r.nbd("b", "v1")
	r.stop("a")
	ended := make(chan error, 1)
	go func() { ended <- do(host, block.OpWrite, 0, filledWith(1), 30*time.Second) }()
	time.Sleep(200 * time.Millisecond)
	in := control.MigrationCancel{ID: "g-1", Epoch: g.Epoch}
	err := r.try("b", control.CallMigrateCancel, in, nil)
	if wire.KindOf(err) != wire.KindRefused || r.nodes["b"].node.group("g") == nil {
		t.Errorf("cancelled with a write that waits for the source: %v", err)
	}
	r.start("a")
	<-ended
	r.waitFor("cancelled", func() bool { return r.try("b", control.CallMigrateCancel, in, nil) == nil })
	if r.nodes["b"].node.group("g") != nil {
		t.Error("the group is still there")
	}
}
