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

// What a move was to make at its target is not made by a call that was on its way longer than the cancellation.
func TestMakingAfterItsCancellation(t *testing.T) {
	r := newRig(t, "b")
	in := control.MigrationCancel{ID: "g-1", Epoch: 1}
	r.call("b", control.CallMigrateCancel, in, nil)
	for method, call := range map[string]any{control.CallVolumeCreate: control.VolumeCreate{Name: "v1", Size: 1 << 20, For: in},
		control.CallJournalCreate: control.JournalCreate{Name: "jg", Size: 1 << 20, For: in}} {
		if err := r.try("b", method, call, nil); wire.KindOf(err) != wire.KindRefused {
			t.Errorf("late %s: %v", method, err)
		}
	}
	if d := r.nodes["b"].node.state.view(); len(d.Volumes) > 0 || len(d.Journals) > 0 {
		t.Errorf("b keeps %d volumes, %d journals", len(d.Volumes), len(d.Journals))
	}
	in.ID = "g-2"
	r.call("b", control.CallVolumeCreate, control.VolumeCreate{Name: "v1", Size: 1 << 20, For: in}, nil)
}

// A target that cannot open its group is forgotten like any other, at once or after a restart, and its volumes may be used again.
func TestCancelOfATargetThatCannotOpen(t *testing.T) {
	for _, restart := range []bool{false, true} {
		t.Run(fmt.Sprintf("restart %v", restart), func(t *testing.T) {
			r := newRig(t, "a", "b", "c")
			g := r.group(1, 4<<20)
			sp := r.spec(g, "b")
			r.breakJournal("b")
			for _, n := range []string{"c", "a"} {
				r.call(n, control.CallMigrateRegister, sp, nil)
			}
			if err := r.try("b", control.CallMigrateRegister, sp, nil); err == nil {
				t.Fatal("registered with a broken journal")
			}
			if restart {
				r.stop("b")
				r.start("b")
			}
			in := control.MigrationCancel{ID: sp.ID, Epoch: g.Epoch}
			for _, n := range []string{"b", "a", "c"} {
				for range 2 {
					r.call(n, control.CallMigrateCancel, in, nil)
				}
			}
			if d := r.nodes["b"].node.state.view(); len(d.Moves) > 0 || len(d.Groups) > 0 {
				t.Errorf("b keeps %d moves, %d groups", len(d.Moves), len(d.Groups))
			}
			r.call("b", control.CallJournalDelete, control.NameOnly{Name: "jg"}, nil)
			sp = r.spec(g, "b")
			sp.ID = "g-2"
			for _, n := range []string{"c", "a", "b"} {
				r.call(n, control.CallMigrateRegister, sp, nil)
			}
		})
	}
}

// A gateway that was cut off comes for a volume of the group that a cancelled move had made, after that was deleted, and after another of
// its name was made: it is led to who serves, and gets nothing of the other one.
func TestGivenUpVolumeLeadsOn(t *testing.T) {
	r := newRig(t, "a", "b", "c")
	g := r.group(1, 4<<20)
	r.through(g)
	r.call("b", control.CallMigrateCancel, control.MigrationCancel{ID: "g-1", Epoch: g.Epoch}, nil)
	dial := func(group string) error {
		c, err := wire.DialIO(t.Context(), r.nodes["b"].listen, wire.Hello{Role: "gateway", Name: "gw"},
			wire.IOParams{Volume: "v1", Group: group, Session: 7, From: 1, Epoch: g.Epoch}, wire.IOClientHooks{})
		if err == nil {
			c.Close()
		}
		return err
	}
	led := func(what string) {
		t.Helper()
		if to := wire.AsMoved(dial("g")); to == nil || to.Node != "a" || to.Volume != "v1" || to.Address != r.nodes["a"].listen {
			t.Errorf("%s: led to %+v", what, to)
		}
	}
	led("closed")
	r.call("b", control.CallVolumeDelete, control.NameOnly{Name: "v1"}, nil)
	led("deleted")
	r.stop("b")
	r.start("b")
	r.call("b", control.CallVolumeCreate, control.VolumeCreate{Name: "v1", Size: 4 << 20}, nil)
	led("made again")
	if err := dial(""); err != nil {
		t.Errorf("the other one is not served: %v", err)
	}
}
