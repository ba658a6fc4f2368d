package node

import (
	"encoding/json"
	"io"
	"net/http"

	"gantline/internal/control"
	"gantline/internal/wire"
)

const maxOwnBody = 64 << 10

// ownPromote is `group promote` on the node's own socket: it needs nobody else.
func (n *Node) ownPromote(w http.ResponseWriter, r *http.Request) {
	var in control.PromoteRequest
	body, err := io.ReadAll(http.MaxBytesReader(w, r.Body, maxOwnBody))
	if err == nil && len(body) > 0 {
		err = json.Unmarshal(body, &in)
	}
	if err != nil {
		answerError(w, invalid("request: %v", err))
		return
	}
	dry := r.URL.Query().Get("dry_run") == "true"
	var out control.PromoteStatus
	done := make(chan struct{})
	begun := n.asked.begin(func() { // joined when the node stops, as the socket's requests are not
		defer close(done)
		out, err = n.promoteGroup(n.runCtx, control.GroupPromote{Name: r.PathValue("name"), Force: in.Force, DryRun: dry})
	})
	if !begun {
		answerError(w, refused("node %s is stopping: repeat the command once it runs again", n.cfg.Name))
		return
	}
	<-done
	switch {
	case err != nil:
		answerError(w, err)
	case dry:
		answerOwn(w, out.Plan, true, "")
	default:
		answerOwn(w, out.PromoteView, true, "")
	}
}

// answerError says no in the manager's words.
func answerError(w http.ResponseWriter, err error) {
	kind, status := control.KindFailed, http.StatusInternalServerError
	switch wire.KindOf(err) {
	case wire.KindNotFound:
		kind, status = control.KindNotFound, http.StatusNotFound
	case wire.KindRefused:
		kind, status = control.KindRefused, http.StatusConflict
	case wire.KindInvalid:
		kind, status = control.KindUsage, http.StatusBadRequest
	}
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	_ = json.NewEncoder(w).Encode(control.Errorf(kind, "%v", err)) // who asked may be gone
}
