package node

import (
	"context"
	"encoding/json"
	"errors"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"time"

	"golang.org/x/sync/errgroup"

	"gantline/internal/control"
	"gantline/internal/migrate"
)

// maxSocketPath is what a unix socket's name may have on Linux, bytes.
const maxSocketPath = 107

// serveOwn answers on DATA-DIR/control.sock what this node knows by itself, in the manager's addresses and JSON: it works
// while the manager is away. What only others could tell is null.
func (n *Node) serveOwn(ctx context.Context, eg *errgroup.Group) error {
	path := filepath.Join(n.cfg.DataDir, "control.sock")
	if len(path) > maxSocketPath {
		n.log.Warn("no control socket: its path is too long for one; choose a shorter data directory", "path", path, "limit", maxSocketPath)
		return nil
	}
	l, err := listenLoopback("unix", path)
	if err != nil {
		return err
	}
	if err := os.Chmod(path, 0o600); err != nil {
		return errors.Join(err, l.Close())
	}
	srv := &http.Server{Handler: n.ownHandler(), ReadHeaderTimeout: 10 * time.Second}
	eg.Go(func() error { return serveUntilClosed(srv, l) })
	eg.Go(func() error {
		<-ctx.Done()
		return srv.Close() // nothing here takes long, and nobody's data waits for it
	})
	return nil
}

func serveUntilClosed(srv *http.Server, l net.Listener) error {
	if err := srv.Serve(l); !errors.Is(err, http.ErrServerClosed) {
		return err
	}
	return nil
}

func (n *Node) ownHandler() http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /v1/groups/{name}", func(w http.ResponseWriter, r *http.Request) {
		v, ok := n.ownGroup(r.PathValue("name"))
		answerOwn(w, v, ok, "group %s is not on node %s", r.PathValue("name"), n.cfg.Name)
	})
	mux.HandleFunc("POST /v1/groups/{name}/promote", n.ownPromote)
	mux.HandleFunc("GET /v1/migrations/{name}", func(w http.ResponseWriter, r *http.Request) {
		v, ok := n.ownMigration(r.PathValue("name"))
		answerOwn(w, v, ok, "node %s takes part in no migration %s", n.cfg.Name, r.PathValue("name"))
	})
	mux.HandleFunc("/", func(w http.ResponseWriter, r *http.Request) {
		answerOwn(w, nil, false, "%s %s: a node's own socket shows groups and migrations and promotes a group; all else is the manager's", r.Method, r.URL.Path)
	})
	return mux
}

func answerOwn(w http.ResponseWriter, v any, ok bool, missing string, args ...any) {
	w.Header().Set("Content-Type", "application/json")
	if !ok {
		w.WriteHeader(http.StatusNotFound)
		v = control.Errorf(control.KindNotFound, missing, args...)
	}
	_ = json.NewEncoder(w).Encode(v) // who asked may be gone
}

// ownGroup is `group show` as far as this node knows it.
func (n *Node) ownGroup(name string) (control.GroupView, bool) {
	rec, g := n.state.view().Groups[name], n.group(name)
	if rec == nil || g == nil || rec.Role == control.RoleRetired {
		return control.GroupView{}, false
	}
	spec, st := rec.Spec.Group, g.status()
	link := control.StateDown
	if st.LinkUp {
		link = control.StateUp
	}
	v := control.GroupView{Name: name, Mode: spec.Mode, Log: spec.Log, Transfer: spec.Transfer, Retain: spec.Retain, Epoch: st.Epoch,
		IntervalSeconds: spec.Interval().Seconds(), SendEverySeconds: spec.SendEvery().Seconds(), SendBytes: spec.SendBytes,
		OnLinkLoss: spec.OnLinkLoss, RPOSeconds: spec.RPO().Seconds(), Limit: spec.Limit, Compress: spec.Compress,
		Primary: st.Node, Secondary: spec.Secondary, Link: &link, Pairs: []control.PairView{}, PrimaryJournal: spec.PrimaryJournal,
		SecondaryJournal: spec.SecondaryJournal, Suspended: spec.Suspended, Error: &st.Error,
		Nodes: map[string]*string{spec.Primary: nil}}
	if spec.Secondary != "" {
		v.Nodes[spec.Secondary] = nil
	}
	v.Nodes[n.cfg.Name] = &st.Role
	for _, p := range spec.Pairs {
		v.Pairs = append(v.Pairs, control.PairView{Primary: p.Primary, Secondary: p.Secondary, Size: p.Size})
	}
	v.Promoted = st.Promoted
	switch st.Role {
	case control.RoleSuperseded:
		v.State, v.BlockedOn, v.ChangedBytes = &st.State, &st.BlockedOn, &st.ChangedBytes
	case control.RoleSecondary:
		v.SecondarySequence = control.SecondaryView{Stored: &st.Appended, Durable: &st.Durable, Applied: &st.Applied}
		v.CopySource, v.Consistent, v.BlockedOn = &st.CopySource, &st.Consistent, &st.BlockedOn
		if st.State == "failed" || st.State == "split-brain" {
			v.State = &st.State // all others are the primary's to say
		}
	case control.RolePrimary:
		v.State, v.Sequence = &st.State, control.SequenceView{Appended: &st.Appended, Durable: &st.Durable, Sent: &st.Sent, Acked: &st.Acked}
		v.ChangedBytes, v.BlockedOn, v.Copy = &st.ChangedBytes, &st.BlockedOn, st.Copy
		v.Journal = control.JournalSpaceView{UsedBytes: &st.JournalUsed, CapacityBytes: &st.JournalCapacity}
		if !n.sharesSending(name) {
			v.WANBytesSent = &st.WANBytesSent // with what those before have sent
		}
	}
	return v, true
}

// ownMigration is `migrate show` as far as this node knows it; a group's name, or that of a volume in none, means the move that this node
// registered last.
func (n *Node) ownMigration(name string) (control.MigrationView, bool) {
	name = control.LoneGroup(name)
	var found *migrate.Record
	for id, rec := range n.state.view().Moves {
		newer := found == nil || rec.Spec.Group.Epoch > found.Spec.Group.Epoch || len(id) > len(found.Spec.ID) || id > found.Spec.ID
		if id == name || rec.Spec.Group.Name == name && newer {
			found = rec
		}
		if id == name {
			break
		}
	}
	if found == nil {
		return control.MigrationView{}, false
	}
	st, err := n.moveStatus(found.Spec.ID)
	if err != nil {
		return control.MigrationView{}, false
	}
	spec := found.Spec
	of := spec.Group.Name
	if spec.Group.Lone != "" {
		of = spec.Group.Lone
	}
	v := control.MigrationView{ID: spec.ID, Group: of, Source: spec.Source, Target: spec.Target, Phase: st.Phase,
		Modes: map[string]*string{}, Cut: st.Cut, Epoch: st.Epoch, PauseMS: st.PauseMS, AtRisk: []string{}, BlockedOn: &st.BlockedOn,
		Error: st.Error, Steps: st.Steps, InFlight: spec.InFlight, Limit: spec.Limit, Volumes: spec.Volumes}
	for _, mv := range spec.Volumes {
		v.Modes[mv.Target] = nil
	}
	for vol, mode := range st.Modes {
		v.Modes[vol] = &mode
	}
	if found.Role == control.RoleTarget {
		v.Regions = control.RegionsView{Total: &st.Total, Present: &st.Present}
		v.Bytes = control.MovedBytesView{Background: &st.Background, OnDemand: &st.OnDemand, Twice: &st.TwiceBytes}
		if st.Carry != nil {
			v.Bytes.Carried, v.Bytes.CarryTotal = &st.Carry.Done, &st.Carry.Total
		}
	}
	v.AtRisk = append(v.AtRisk, st.AtRisk...)
	if v.Steps == nil {
		v.Steps = []control.Step{}
	}
	return v, true
}

// sharesSending: in a move to or from here, source and target may both have sent to the secondary since the cut, and neither
// knows the sum.
func (n *Node) sharesSending(group string) bool {
	for _, m := range n.state.view().Moves {
		if m.Spec.Group.Name == group && (m.Role == control.RoleTarget && m.Stage == migrate.Opened ||
			m.Role == control.RoleSource && m.Stage == migrate.Registered) {
			return true
		}
	}
	return false
}
