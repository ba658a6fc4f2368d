package node

import (
	"path/filepath"
	"testing"
	"time"

	"gantline/internal/block"
	"gantline/internal/control"
	"gantline/internal/journal"
	"gantline/internal/record"
)

// The target opens the row of e+1 in its log beside recording that it serves. Dead with the first and without the second
// it asks the store, and goes on in a new incarnation or back to the source.
func TestTargetDeadWithRowAndWithoutPromise(t *testing.T) {
	for _, word := range []string{control.DecidedTarget, control.DecidedSource} {
		t.Run(word, func(t *testing.T) {
			r := newRig(t, "a", "b", "c")
			g := r.group(1, 4<<20)
			if err := do(r.nbd("a", "v1"), block.OpWrite, 4096, filledWith(5), 5*time.Second); err != nil {
				t.Fatal(err)
			}
			r.through(g)
			r.store.mu.Lock()
			r.store.away = true
			r.store.mu.Unlock()
			r.call("b", control.CallMigrateRun, control.MigrationID{ID: "g-1"}, nil)
			r.waitFor("hand-over", func() bool { return r.moveStatus("b").Cut != nil })
			r.stop("b")
			row := record.Row{Epoch: g.Epoch + 1, Incarnation: 1, Node: "b"}
			openRowBehind(t, filepath.Join(r.nodes["b"].cfg.DataDir, "journals", "jg.jnl"), row)
			r.store.mu.Lock()
			r.store.away, r.store.decided = false, word
			r.store.mu.Unlock()
			r.start("b")
			owner := "b"
			if word == control.DecidedSource {
				owner = "a"
				r.waitFor("returned", func() bool { return r.moveStatus("a").Refused && r.moveStatus("b").Modes["b/v1"] == "through" })
			} else {
				r.waitFor("filled", func() bool { return r.moveStatus("b").Phase == control.PhaseFilled })
			}
			host := r.nbd("b", "v1")
			if err := do(host, block.OpWrite, 8192, filledWith(6), 5*time.Second); err != nil {
				t.Fatal(err)
			}
			for off, want := range map[int64]byte{4096: 5, 8192: 6} {
				got := make([]byte, 4096)
				if err := do(r.nbd(owner, "v1"), block.OpRead, off, got, 5*time.Second); err != nil || got[0] != want {
					t.Errorf("%s has %d at %d, want %d: %v", owner, got[0], off, want, err)
				}
			}
			r.waitFor("the secondary in step", func() bool { st := r.status(owner); return st.Applied == st.Appended })
		})
	}
}

// openRowBehind opens a row behind what a journal holds.
func openRowBehind(t *testing.T, path string, row record.Row) {
	t.Helper()
	dev, err := machine{}.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	j, err := journal.Open([]block.Device{dev})
	if err != nil {
		t.Fatal(err)
	}
	row.First = j.Cursors().Appended + 1
	if err := j.OpenRow(row); err != nil {
		t.Fatal(err)
	}
	if err := j.Close(); err != nil {
		t.Fatal(err)
	}
}
