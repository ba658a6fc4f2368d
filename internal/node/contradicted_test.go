package node

import (
	"encoding/json"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"gantline/internal/block"
	"gantline/internal/control"
	"gantline/internal/migrate"
	"gantline/internal/statefile"
)

// The one copy of the node's state that knew of the taking over is spoiled before there was a second, and the one before is
// found: the log with what hosts have written since is not begun anew over it, and nothing is refused.
func TestLogThatTheStateDoesNotKnowOf(t *testing.T) {
	r := newRig(t, "a", "b", "c")
	g := r.group(1, 4<<20)
	r.filled(g)
	if err := do(r.nbd("b", "v1"), block.OpWrite, 0, filledWith(7), 5*time.Second); err != nil {
		t.Fatal(err)
	}
	appended := r.status("b").Appended
	r.stop("b")
	file, body, _, err := statefile.Open(filepath.Join(r.nodes["b"].cfg.DataDir, "node.state"))
	if err != nil {
		t.Fatal(err)
	}
	var d durable
	if err := json.Unmarshal(body, &d); err != nil {
		t.Fatal(err)
	}
	gr := d.Groups["g"]
	gr.Role, gr.Spec.Group.Primary, gr.Spec.Group.Epoch = control.RoleTarget, "a", g.Epoch
	d.Moves["g-1"].Stage = migrate.Ordered
	if body, err = json.Marshal(&d); err != nil {
		t.Fatal(err)
	}
	if err := file.Save(body); err != nil {
		t.Fatal(err)
	}
	r.start("b")
	if st := r.status("b"); !strings.Contains(st.Error, "node.state") || st.Appended < appended {
		t.Errorf("%d records, there were %d: %q", st.Appended, appended, st.Error)
	}
	time.Sleep(100 * time.Millisecond)
	if st := r.moveStatus("b"); st.Refused {
		t.Error("refused")
	}
}
