package node

import (
	"encoding/json"
	"net/http/httptest"
	"testing"

	"gantline/internal/control"
)

// TestOwnWord: a node shows its groups by itself; what it cannot know is null, and what is not there is an error with its
// kind.
func TestOwnWord(t *testing.T) {
	r := newRig(t, "c")
	n, stop := startHandle(t, r, "a")
	defer stop()
	r.group(1, 1<<20)
	get := func(path string, into any) int {
		w := httptest.NewRecorder()
		n.ownHandler().ServeHTTP(w, httptest.NewRequest("GET", path, nil))
		if err := json.Unmarshal(w.Body.Bytes(), into); err != nil {
			t.Fatal(err, w.Body.String())
		}
		return w.Code
	}
	var g control.GroupView
	if code := get("/v1/groups/g", &g); code != 200 || *g.State != "paired" || g.Primary != "a" || *g.Link != "up" ||
		g.Sequence.Appended == nil || g.SecondarySequence.Applied != nil || len(g.Pairs) != 1 || *g.Nodes["a"] != "primary" {
		t.Errorf("%d %+v", code, g)
	}
	var e control.Error
	if code := get("/v1/migrations/g-1", &e); code != 404 || e.Kind != control.KindNotFound {
		t.Errorf("%d %+v", code, e)
	}
}
