package manager

import (
	"context"
	"encoding/json"
	"errors"
	"io"
	"net/http"
	"strings"

	"github.com/danielgtaylor/huma/v2"
	"github.com/danielgtaylor/huma/v2/adapters/humago"

	"gantline/internal/control"
)

const maxInternalBody = 4 << 20 // bytes, of a report

type (
	none   struct{}
	nameIn struct {
		Name string `path:"name" maxLength:"200"`
	}
	ownedIn struct {
		Node string `path:"node" maxLength:"200"`
		Name string `path:"name" maxLength:"200"`
	}
	// bodyIn is a request with a body and nothing else; nameBodyIn acts on a named object. A dry run only plans.
	bodyIn[B any] struct {
		DryRun bool `query:"dry_run" doc:"answer with a plan and change nothing"`
		Body   B
	}
	ownedBodyIn[B any] struct {
		Node   string `path:"node" maxLength:"200"`
		Name   string `path:"name" maxLength:"200"`
		DryRun bool   `query:"dry_run" doc:"answer with a plan and change nothing"`
		Body   B
	}
	nameBodyIn[B any] struct {
		Name   string `path:"name" maxLength:"200"`
		DryRun bool   `query:"dry_run" doc:"answer with a plan and change nothing"`
		Body   B
	}
	out[T any] struct{ Body T }
)

func (i ownedIn) full() string { return i.Node + "/" + i.Name }

// handle registers one operation; its errors become {kind, message}.
func handle[I, O any](api huma.API, method, path, id, summary string, f func(context.Context, *I) (O, error)) {
	op := huma.Operation{OperationID: id, Method: method, Path: path, Summary: summary, Tags: []string{strings.Split(path, "/")[2]}}
	huma.Register(api, op, func(ctx context.Context, in *I) (*out[O], error) {
		v, err := f(ctx, in)
		if err != nil {
			return nil, toAPI(err)
		}
		return &out[O]{Body: v}, nil
	})
}

// remove registers a deletion, which answers with nothing.
func remove[I any](api huma.API, path, id, summary string, f func(context.Context, *I) error) {
	op := huma.Operation{OperationID: id, Method: http.MethodDelete, Path: path, Summary: summary,
		DefaultStatus: http.StatusNoContent, Tags: []string{strings.Split(path, "/")[2]}}
	huma.Register(api, op, func(ctx context.Context, in *I) (*struct{}, error) {
		if err := f(ctx, in); err != nil {
			return nil, toAPI(err)
		}
		return nil, nil
	})
}

func (m *Manager) newHandler() http.Handler {
	mux := http.NewServeMux()
	config := huma.DefaultConfig("Gantline", m.version)
	config.CreateHooks = nil // no $schema in answers: they are exactly what the documentation says
	config.DocsPath = ""
	config.Info.Description = "The control plane of Gantline. Errors are {kind, message}; kind is failed, usage, not-found, " +
		"refused, unreachable, timeout or different."
	api := humago.New(mux, config)
	m.registerObjects(api)
	m.registerGroups(api)
	m.registerMoves(api)
	m.registerEvents(api)
	m.registerLater(api)
	m.registerInternal(mux)
	mux.HandleFunc("GET /livez", func(w http.ResponseWriter, _ *http.Request) { _, _ = io.WriteString(w, "ok\n") })
	mux.HandleFunc("GET /readyz", func(w http.ResponseWriter, _ *http.Request) {
		if !m.Ready() {
			http.Error(w, "starting", http.StatusServiceUnavailable)
			return
		}
		_, _ = io.WriteString(w, "ok\n")
	})
	mux.Handle("GET /metrics", m.metrics.handler())
	mux.HandleFunc("/", func(w http.ResponseWriter, r *http.Request) {
		writeError(w, control.Errorf(control.KindNotFound, "%s %s: there is no such address; /openapi.json lists them", r.Method, r.URL.Path))
	})
	return dryRun(mux)
}

// shown answers with the one object of a list.
func shown[T any](ctx context.Context, views func(context.Context, string) ([]T, error), kind, name string) (T, error) {
	list, err := views(ctx, name)
	if err != nil {
		var none T
		return none, err
	}
	return one(list, kind, name)
}

// lists registers GET for all objects of a kind.
func lists[T any](api huma.API, kind, what string, views func(context.Context, string) ([]T, error)) {
	handle(api, http.MethodGet, "/v1/"+kind, "list-"+kind, "List all "+what,
		func(ctx context.Context, _ *none) ([]T, error) { return views(ctx, "") })
}

// shows registers GET for one object of a kind.
func shows[T any](api huma.API, kind, what string, views func(context.Context, string) ([]T, error)) {
	handle(api, http.MethodGet, "/v1/"+kind+"/{name}", "show-"+singular(kind), "Show one "+what,
		func(ctx context.Context, in *nameIn) (T, error) { return shown(ctx, views, kind, in.Name) })
}

func (m *Manager) registerObjects(api huma.API) {
	lists(api, control.KindNode, "nodes", m.nodeViews)
	shows(api, control.KindNode, "node", m.nodeViews)
	handle(api, http.MethodPost, "/v1/nodes/{name}/drain", "drain-node", "Move all that a node serves; answers when it is stored",
		func(ctx context.Context, in *nameBodyIn[control.DrainRequest]) (control.OperationView, error) {
			id, err := m.nodeDrain(ctx, in.Name, in.Body)
			if err != nil {
				return control.OperationView{}, err
			}
			return shown(ctx, m.operationViews, control.KindOperation, id)
		})
	remove(api, "/v1/nodes/{name}", "remove-node", "Remove a node that is down", func(ctx context.Context, in *struct {
		Name   string `path:"name"`
		Forget bool   `query:"forget" doc:"forget its volumes and journals too"`
		Loss   bool   `query:"accept_loss" doc:"with forget: and what only it has of a move under way"`
	}) error {
		return m.nodeRemove(ctx, in.Name, in.Forget, in.Loss)
	})
	lists(api, control.KindGateway, "gateways", m.gatewayViews)
	shows(api, control.KindGateway, "gateway", m.gatewayViews)
	remove(api, "/v1/gateways/{name}", "remove-gateway", "Remove a gateway that is down",
		func(ctx context.Context, in *nameIn) error { return m.gatewayRemove(ctx, in.Name) })

	lists(api, control.KindLink, "links between nodes", m.linkViews)
	shows(api, control.KindLink, "link, FROM:TO", m.linkViews)
	handle(api, http.MethodPost, "/v1/links/{name}", "set-link", "Change how one node sends to another",
		func(ctx context.Context, in *nameBodyIn[control.LinkRequest]) (control.LinkView, error) {
			if err := m.linkSet(ctx, in.Name, in.Body); err != nil {
				return control.LinkView{}, err
			}
			return shown(ctx, m.linkViews, control.KindLink, in.Name)
		})

	lists(api, control.KindVolume, "volumes", m.volumeViews)
	handle(api, http.MethodGet, "/v1/volumes/{node}/{name}", "show-volume", "Show one volume",
		func(ctx context.Context, in *ownedIn) (control.VolumeView, error) {
			return shown(ctx, m.volumeViews, control.KindVolume, in.full())
		})
	handle(api, http.MethodPost, "/v1/volumes", "create-volume", "Create a volume",
		func(ctx context.Context, in *bodyIn[control.VolumeRequest]) (control.VolumeView, error) {
			if err := m.volumeCreate(ctx, in.Body); err != nil {
				return control.VolumeView{}, err
			}
			return shown(ctx, m.volumeViews, control.KindVolume, in.Body.Name)
		})
	handle(api, http.MethodPost, "/v1/volumes/{node}/{name}/resize", "resize-volume", "Make a volume and its secondary larger",
		func(ctx context.Context, in *ownedBodyIn[control.VolumeResizeRequest]) (control.VolumeView, error) {
			full := in.Node + "/" + in.Name
			if err := m.volumeResize(ctx, full, in.Body); err != nil {
				return control.VolumeView{}, err
			}
			return shown(ctx, m.volumeViews, control.KindVolume, full)
		})
	remove(api, "/v1/volumes/{node}/{name}", "delete-volume", "Delete a volume with its data",
		func(ctx context.Context, in *ownedIn) error { return m.volumeDelete(ctx, in.full()) })

	lists(api, control.KindJournal, "journals", m.journalViews)
	handle(api, http.MethodGet, "/v1/journals/{node}/{name}", "show-journal", "Show one journal",
		func(ctx context.Context, in *ownedIn) (control.JournalView, error) {
			return shown(ctx, m.journalViews, control.KindJournal, in.full())
		})
	handle(api, http.MethodPost, "/v1/journals", "create-journal", "Create a journal",
		func(ctx context.Context, in *bodyIn[control.JournalRequest]) (control.JournalView, error) {
			if _, err := m.journalCreate(ctx, in.Body, false); err != nil {
				return control.JournalView{}, err
			}
			return shown(ctx, m.journalViews, control.KindJournal, in.Body.Name)
		})
	handle(api, http.MethodPost, "/v1/journals/{node}/{name}/add", "add-journal", "Grow a journal by a file or device",
		func(ctx context.Context, in *ownedBodyIn[control.JournalAddRequest]) (control.JournalView, error) {
			full := in.Node + "/" + in.Name
			if err := m.journalAdd(ctx, full, in.Body); err != nil {
				return control.JournalView{}, err
			}
			return shown(ctx, m.journalViews, control.KindJournal, full)
		})
	remove(api, "/v1/journals/{node}/{name}", "delete-journal", "Delete a journal",
		func(ctx context.Context, in *ownedIn) error { return m.journalDelete(ctx, in.full()) })
	m.registerVvols(api)
}

func (m *Manager) registerVvols(api huma.API) {
	lists(api, control.KindVvol, "virtual volumes", m.vvolViews)
	shows(api, control.KindVvol, "virtual volume", m.vvolViews)
	handle(api, http.MethodPost, "/v1/vvols", "create-vvol", "Create a virtual volume",
		func(ctx context.Context, in *bodyIn[control.VvolRequest]) (control.VvolView, error) {
			if err := m.vvolCreate(ctx, in.Body); err != nil {
				return control.VvolView{}, err
			}
			return shown(ctx, m.vvolViews, control.KindVvol, in.Body.Name)
		})
	remove(api, "/v1/vvols/{name}", "delete-vvol", "Delete a virtual volume; its volume stays",
		func(ctx context.Context, in *nameIn) error { return m.vvolDelete(ctx, in.Name) })
	vvolAction(m, api, "allow", "Allow a host", m.vvolAllow)
	vvolAction(m, api, "deny", "Deny a host", m.vvolDeny)
	vvolAction(m, api, "switch", "Lead a virtual volume to another volume", m.vvolSwitch)
}

func vvolAction[B any](m *Manager, api huma.API, verb, summary string, f func(context.Context, string, B) error) {
	handle(api, http.MethodPost, "/v1/vvols/{name}/"+verb, verb+"-vvol", summary,
		func(ctx context.Context, in *nameBodyIn[B]) (control.VvolView, error) {
			if err := f(ctx, in.Name, in.Body); err != nil {
				return control.VvolView{}, err
			}
			return shown(ctx, m.vvolViews, control.KindVvol, in.Name)
		})
}

func (m *Manager) registerGroups(api huma.API) {
	lists(api, control.KindGroup, "groups", m.groupViews)
	shows(api, control.KindGroup, "group", m.groupViews)
	handle(api, http.MethodPost, "/v1/groups", "create-group", "Create a group",
		func(ctx context.Context, in *bodyIn[control.GroupRequest]) (control.GroupView, error) {
			if err := m.groupCreate(ctx, in.Body); err != nil {
				return control.GroupView{}, err
			}
			return shown(ctx, m.groupViews, control.KindGroup, in.Body.Name)
		})
	remove(api, "/v1/groups/{name}", "delete-group", "Delete a group; its volumes keep what they hold",
		func(ctx context.Context, in *nameIn) error {
			if err := byCommand(in.Name); err != nil {
				return err
			}
			return m.groupDelete(ctx, in.Name)
		})
	groupAction(m, api, "suspend", "Stop copying and mark what changes",
		func(ctx context.Context, name string, _ struct{}) error { return m.groupSuspend(ctx, name) })
	groupAction(m, api, "set", "Change how a group copies", m.groupSet)
	groupAction(m, api, "resume", "Resync what has changed", m.groupResume)
	groupAction(m, api, "pairs", "Add a pair", m.pairAdd)
	remove(api, "/v1/groups/{name}/pairs", "remove-pair", "Remove a pair; its volumes keep what they hold", func(ctx context.Context, in *struct {
		Name    string `path:"name" maxLength:"200"`
		Primary string `query:"primary" required:"true" doc:"the pair's primary volume, NODE/NAME" maxLength:"200"`
	}) error {
		if err := byCommand(in.Name); err != nil {
			return err
		}
		return m.pairRemove(ctx, in.Name, in.Primary)
	})
	handle(api, http.MethodPost, "/v1/groups/{name}/promote", "promote-group", "Make the secondary the primary",
		func(ctx context.Context, in *nameBodyIn[control.PromoteRequest]) (control.PromoteView, error) {
			if err := byCommand(in.Name); err != nil {
				return control.PromoteView{}, err
			}
			return m.groupPromote(ctx, in.Name, in.Body)
		})
	handle(api, http.MethodPost, "/v1/groups/{name}/verify", "verify-group", "Compare both sides; answers when it has begun",
		func(ctx context.Context, in *nameBodyIn[control.VerifyRequest]) (control.VerifyView, error) {
			if err := byCommand(in.Name); err != nil {
				return control.VerifyView{}, err
			}
			return m.groupVerify(ctx, in.Name, in.Body)
		})
	handle(api, http.MethodGet, "/v1/groups/{name}/verify", "show-verify", "Show the verify under way, or the last",
		func(ctx context.Context, in *nameIn) (control.VerifyView, error) { return m.verifyView(ctx, in.Name) })
	handle(api, http.MethodGet, "/v1/pairs", "list-pairs", "List the pairs of all groups",
		func(ctx context.Context, _ *none) ([]control.PairListView, error) { return m.pairViews(ctx) })
	handle(api, http.MethodGet, "/v1/status", "status", "The whole at a glance",
		func(ctx context.Context, _ *none) (control.StatusView, error) { return m.statusView(ctx) })
	lists(api, control.KindOperation, "moves, drains and copies under way", m.operationViews)
	shows(api, control.KindOperation, "move or copy under way, or a node's latest drain", m.operationViews)
}

func groupAction[B any](m *Manager, api huma.API, verb, summary string, f func(context.Context, string, B) error) {
	handle(api, http.MethodPost, "/v1/groups/{name}/"+verb, verb+"-group", summary,
		func(ctx context.Context, in *nameBodyIn[B]) (control.GroupView, error) {
			if err := byCommand(in.Name); err != nil {
				return control.GroupView{}, err
			}
			if err := f(ctx, in.Name, in.Body); err != nil {
				return control.GroupView{}, err
			}
			return shown(ctx, m.groupViews, control.KindGroup, in.Name)
		})
}

func (m *Manager) registerMoves(api huma.API) {
	lists(api, control.KindMigration, "moves", m.migrationViews)
	handle(api, http.MethodGet, "/v1/migrations/{name}", "show-migration", "Show one move; the name of what was moved means its latest",
		func(ctx context.Context, in *nameIn) (control.MigrationView, error) {
			return shown(ctx, m.migrationViews, control.KindMigration, in.Name)
		})
	handle(api, http.MethodPost, "/v1/migrations", "start-migration", "Start a move; answers when it is stored",
		func(ctx context.Context, in *bodyIn[control.MoveRequest]) (control.MigrationView, error) {
			id, err := m.moveStart(ctx, in.Body)
			if err != nil {
				return control.MigrationView{}, err
			}
			return shown(ctx, m.migrationViews, control.KindMigration, id)
		})
	plain := func(f func(context.Context, string) (string, error)) func(context.Context, string, struct{}) (string, error) {
		return func(ctx context.Context, name string, _ struct{}) (string, error) { return f(ctx, name) }
	}
	moveVerb(m, api, "commit", "Remove the source of a filled move", m.moveCommit)
	moveVerb(m, api, "abort", "Turn back a move that has not been decided; answers when nothing can decide it any more", plain(m.moveAbort))
	moveVerb(m, api, "continue", "Let a move go on that stopped where it was told to", plain(m.moveContinue))
	moveVerb(m, api, "set", "Change a move under way", m.moveSet)
}

func moveVerb[B any](m *Manager, api huma.API, verb, summary string, f func(context.Context, string, B) (string, error)) {
	handle(api, http.MethodPost, "/v1/migrations/{name}/"+verb, verb+"-migration", summary,
		func(ctx context.Context, in *nameBodyIn[B]) (control.MigrationView, error) {
			id, err := f(ctx, in.Name, in.Body)
			if err != nil {
				return control.MigrationView{}, err
			}
			return shown(ctx, m.migrationViews, control.KindMigration, id)
		})
}

// registerLater refuses what a later version brings, so that nothing is accepted and ignored.
func (m *Manager) registerLater(api huma.API) {
	for _, l := range []struct{ method, path, what string }{
		{http.MethodGet, "/v1/pools", "pool list"},
		{http.MethodPost, "/v1/pools", "pool create"},
		{http.MethodGet, "/v1/pools/{name}", "pool show"},
		{http.MethodDelete, "/v1/pools/{name}", "pool delete"},
		{http.MethodPost, "/v1/groups/{name}/failback", "group failback"},
		{http.MethodPost, "/v1/groups/{name}/test", "group test"},
	} {
		id := strings.ReplaceAll(l.what, " ", "-")
		handle(api, l.method, l.path, id, "Not built yet", func(context.Context, *none) (struct{}, error) {
			return struct{}{}, control.NotBuilt(l.what)
		})
	}
}

// registerInternal has what nodes and gateways post. It is no part of the published API.
func (m *Manager) registerInternal(mux *http.ServeMux) {
	internal(mux, control.PathNodeSync, m.nodeSync)
	internal(mux, control.PathGatewaySync, m.gatewaySync)
	internal(mux, control.PathDecide, m.decide)
}

func internal[I, O any](mux *http.ServeMux, path string, f func(context.Context, string, I) (O, error)) {
	mux.HandleFunc("POST "+strings.ReplaceAll(path, "%s", "{name}"), func(w http.ResponseWriter, r *http.Request) {
		var in I
		body, err := io.ReadAll(http.MaxBytesReader(w, r.Body, maxInternalBody))
		if err == nil {
			err = json.Unmarshal(body, &in)
		}
		if err != nil {
			writeError(w, control.Errorf(control.KindUsage, "malformed report: %v", err))
			return
		}
		reply, err := f(r.Context(), r.PathValue("name"), in)
		if err != nil {
			if !errors.Is(err, context.Canceled) {
				writeError(w, err)
			}
			return
		}
		writeJSON(w, http.StatusOK, reply)
	})
}
