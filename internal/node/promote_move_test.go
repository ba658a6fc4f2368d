package node

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"gantline/internal/block"
	"gantline/internal/control"
	"gantline/internal/proof"
	"gantline/internal/volume"
)

// The secondary is promoted inside a move, with the manager gone: while the move is registered, copies first, relays, is sealed, or fills
// its target; with source and target alive, or gone and back later. It serves a prefix; both others refuse hosts, also after a restart, and
// keep what only they have until the group is deleted; a target that lacks regions is never opened as a whole volume.
func TestPromoteInsideAMove(t *testing.T) {
	for _, c := range []struct {
		stage  string
		gone   bool
		target string // its role afterwards; "": it has forgotten the group
	}{
		{"registered", true, ""}, {"copying", true, ""}, {"through", false, ""}, {"sealed", false, ""}, {"sealed", true, ""},
		{"migrating", false, control.RoleSuperseded}, {"migrating", true, control.RoleSuperseded},
	} {
		t.Run(fmt.Sprintf("%s, gone %v", c.stage, c.gone), func(t *testing.T) { promoteInsideAMove(t, c.stage, c.gone, c.target) })
	}
}

func promoteInsideAMove(t *testing.T, stage string, gone bool, target string) {
	r := newRig(t, "a", "b", "c")
	if stage == "copying" {
		r.strategy = control.StrategyCopyFirst
	}
	r.limit = 4096
	g := r.group(1, 16<<20)
	// Data all over, in more regions than hosts ask for in the move: no limit counts holes.
	l := proof.New(r.disks("a", 1), proof.Options{Seed: 5, Depth: 4, Rate: 400})
	runFor(t, l, 300*time.Millisecond)
	r.inMove(g, stage, l)
	if _, err := r.promote(false, false); err == nil || !strings.Contains(err.Error(), "migration g-1") {
		t.Fatalf("without --force: %v", err)
	}
	if gone {
		r.stop("a")
		r.stop("b")
	}
	done, err := r.promote(true, false)
	if err != nil {
		t.Fatal(err)
	}
	if want := map[bool]string{true: "b", false: "a"}[target != ""]; done.Done.From != want {
		t.Errorf("promoted in the place of %s, not of %s", done.Done.From, want)
	}
	if gone {
		r.start("a")
		r.start("b")
	}
	end := control.MigrationEnd{MigrationCancel: control.MigrationCancel{ID: "g-1", Epoch: g.Epoch},
		By: &control.Reign{Name: "g", Node: "c", Epoch: done.Epoch, Cut: done.Cut}}
	for range 2 {
		r.call("b", control.CallMigrateCancel, end, nil)
		r.call("a", control.CallMigrateCancel, end, nil)
	}
	for again := range 2 {
		for node, role := range map[string]string{"a": control.RoleSuperseded, "b": target} {
			if st := r.status(node); st.Role != role {
				t.Errorf("%s is %q, not %q: %+v", node, st.Role, role, st)
			}
			n := r.nodes[node].node
			if len(n.state.view().Moves) > 0 || n.volume("v1").vol.Mode() != volume.ModeMoved {
				t.Errorf("%s: %v, volume %v", node, n.state.view().Moves, n.volume("v1").vol.Mode())
			}
		}
		if again == 0 {
			r.stop("a")
			r.stop("b")
			r.start("a")
			r.start("b")
		}
	}
	r.check(l, "c", 1, false)
	if err := do(r.nbd("c", "v1"), block.OpWrite, 0, filledWith(9), 5*time.Second); err != nil {
		t.Errorf("a write at the promoted node: %v", err)
	}
	r.call("b", control.CallGroupDelete, control.NameOnly{Name: "g"}, nil)
	if mode := r.nodes["b"].node.volume("v1").vol.Mode(); mode != volume.ModeMoved {
		t.Errorf("a half-filled target is %v", mode)
	}
	r.call("a", control.CallGroupDelete, control.NameOnly{Name: "g"}, nil)
	for _, node := range []string{"a", "b"} {
		r.call(node, control.CallVolumeDelete, control.NameOnly{Name: "v1"}, nil)
	}
}

// inMove brings a move to a stage, with what hosts do there.
func (r *rig) inMove(g control.Group, stage string, l *proof.Load) {
	r.t.Helper()
	id := control.MigrationID{ID: "g-1"}
	switch stage {
	case "registered", "copying":
		sp := r.spec(g, "b")
		for _, n := range []string{"c", "a", "b"} {
			r.call(n, control.CallMigrateRegister, sp, nil)
		}
		if stage == "copying" {
			r.call("b", control.CallMigrateCopy, id, nil)
			runFor(r.t, l, 200*time.Millisecond)
		}
		return
	}
	r.through(g)
	if stage == "sealed" {
		r.store.set(true, "")
		r.call("b", control.CallMigrateRun, id, nil)
		r.waitFor("sealed", func() bool { return r.moveStatus("a").Sealed })
	}
	if stage == "migrating" {
		l.SetDisks(r.disks("b", 1))
		r.call("b", control.CallMigrateRun, id, nil)
		runFor(r.t, l, 300*time.Millisecond)
		r.waitFor("the target's records are at the secondary", func() bool {
			st := r.status("b")
			return r.moveStatus("b").Phase == control.PhaseMigrating && st.LinkUp && st.Applied == st.Appended
		})
		if st := r.moveStatus("b"); st.Present == st.Total {
			r.t.Fatalf("filled already: %+v", st)
		}
	}
}

// A source whose move was refused is about to let hosts in again when it hears of the promotion: they stay out.
func TestPromotionBesideAReopeningSource(t *testing.T) {
	r := newRig(t, "a", "b", "c")
	g := r.group(1, 4<<20)
	l := proof.New(r.disks("a", 1), proof.Options{Seed: 6, Depth: 4, Span: 256 << 10})
	runFor(t, l, 200*time.Millisecond)
	r.stop("a")
	var promoted error
	r.nodes["a"].cfg.Point = func(step, edge string) {
		if step != control.PointReopen || edge != "after" {
			return
		}
		_, promoted = r.promote(true, false)
		for end := time.Now().Add(10 * time.Second); time.Now().Before(end); time.Sleep(10 * time.Millisecond) {
			if rec := r.nodes["a"].node.state.view().Groups["g"]; rec.Superseded != nil {
				return
			}
		}
	}
	r.start("a")
	r.inMove(g, "sealed", l)
	err := r.try("a", control.CallMigrateReopen, control.MigrationID{ID: "g-1"}, nil)
	if promoted != nil {
		t.Fatal(promoted)
	}
	if st := r.status("a"); err == nil || st.Role != control.RoleSuperseded {
		t.Errorf("reopened: %v; a is %q", err, st.Role)
	}
	if mode := r.nodes["a"].node.volume("v1").vol.Mode(); mode != volume.ModeMoved {
		t.Errorf("hosts find the superseded volume %v", mode)
	}
}
