package node

import (
	"context"
	"encoding/json"
	"fmt"
	"net"
	"net/http"
	"net/http/pprof"
	"slices"
	"sync"

	"gantline/internal/block"
	"gantline/internal/control"
	"gantline/internal/migrate"
	"gantline/internal/nbd"
	"gantline/internal/volume"
	"gantline/internal/wire"
)

// exports are the node's volumes as hosts, gateways and other nodes open them, by volume name.
type exports struct {
	n *Node

	mu   sync.Mutex
	open map[string]int // connections, by volume
	gone map[string]bool
}

func newExports(n *Node) *exports {
	return &exports{n: n, open: map[string]int{}, gone: map[string]bool{}}
}

// enter counts a connection in; leave must be called when it ends.
func (e *exports) enter(name string) (leave func(), err error) {
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.gone[name] {
		return nil, notFound("volume %s is being deleted", name)
	}
	e.open[name]++
	return sync.OnceFunc(func() {
		e.mu.Lock()
		defer e.mu.Unlock()
		e.open[name]--
	}), nil
}

// forget makes sure that nobody has the volume open, or will.
func (e *exports) forget(_ context.Context, name string) error {
	e.mu.Lock()
	defer e.mu.Unlock()
	if k := e.open[name]; k > 0 {
		return fmt.Errorf("%d connections have it open: close them first", k)
	}
	e.gone[name] = true
	return nil
}

// revive: a volume of that name was created again.
func (e *exports) revive(name string) {
	e.mu.Lock()
	defer e.mu.Unlock()
	delete(e.gone, name)
}

// Open implements nbd.Exports.
func (e *exports) Open(_ context.Context, name string, _ nbd.Peer) (*nbd.Export, error) {
	v := e.n.volume(name)
	if v == nil {
		return nil, fmt.Errorf("%w: %q", nbd.ErrUnknownExport, name)
	}
	if v.vol.Mode() == volume.ModeMoved {
		if to := e.n.successor(name); to != nil {
			return nil, fmt.Errorf("%w: %q is served by node %s as %s, in epoch %d", nbd.ErrUnknownExport, name, to.Node, to.Volume, to.Epoch)
		}
		return nil, fmt.Errorf("%w: %q", nbd.ErrUnknownExport, name)
	}
	leave, err := e.enter(name)
	if err != nil {
		return nil, err
	}
	return &nbd.Export{Name: name, Size: v.vol.Size(), ReadOnly: v.vol.Mode() == volume.ModeReadOnly,
		Description: e.n.cfg.Name + "/" + name, Target: v.vol, Close: leave}, nil
}

// List implements nbd.Exports.
func (e *exports) List(nbd.Peer) []string {
	e.n.mu.Lock()
	defer e.n.mu.Unlock()
	var names []string
	for name, v := range e.n.volumes {
		if v.vol.Mode() != volume.ModeMoved {
			names = append(names, name)
		}
	}
	slices.Sort(names)
	return names
}

// handlers are what a node answers on its frames listeners.
func (n *Node) handlers() wire.Handlers {
	return wire.Handlers{
		Self:   wire.Hello{Role: "node", Name: n.cfg.Name, Instance: n.instance},
		IO:     n.serveIO,
		Stream: n.serveStream,
		Call:   n.serveCall,
		Refused: func(remote net.Addr, err error) {
			n.log.Info("connection refused", "remote", remote.String(), "cause", err)
		},
	}
}

// serveIO serves one gateway's session, one relay, or the fetches of a move's target.
func (n *Node) serveIO(ctx context.Context, in *wire.Incoming) error {
	var p wire.IOParams
	if err := in.Peer.Decode(&p); err != nil {
		return err
	}
	if to := n.givenTo(&p); to != nil {
		return to
	}
	v := n.volume(p.Volume)
	if v == nil {
		return notFound("volume %s/%s does not exist", n.cfg.Name, p.Volume)
	}
	if moved := n.successor(p.Volume); moved != nil && v.vol.Mode() == volume.ModeMoved && in.Peer.Role != "node" {
		return moved
	}
	leave, err := n.exports.enter(p.Volume)
	if err != nil {
		return err
	}
	defer leave()
	answer := wire.IOAnswer{Size: v.vol.Size(), Epoch: n.epochOf(v), Life: n.life(p.Volume), Taken: n.taken(p.Volume), ReadOnly: v.vol.Mode() == volume.ModeReadOnly,
		MinBlock: 1, PreferredBlock: 4096, MaxBlock: 32 << 20}
	hooks := wire.IOHooks{
		Epoch: func() uint64 { return n.epochOf(v) },
		Admit: func(epoch uint64) error {
			// Only who serves may find a request to be of an epoch it has not heard of yet; others relay, hold or refuse it.
			own := n.epochOf(v) // 0: a lone volume has no epochs
			if mode := v.vol.Mode(); own > 0 && epoch > own && (mode == volume.ModeNormal || mode == volume.ModeMigrating) {
				return wire.ErrStale
			}
			return nil
		},
	}
	return n.sessions.Serve(ctx, in, p, answer, v.vol, hooks)
}

// life changes when writes that were answered and not flushed may be gone: the machine has started anew, or the group's
// log has failed and was opened again.
func (n *Node) life(volume string) string {
	d := n.state.view()
	losses := 0
	if g := d.Groups[d.owner(volume)]; g != nil {
		losses = g.Losses
	}
	return fmt.Sprintf("%s.%d", n.cfg.Boot, losses)
}

// taken is the epoch in which this node was promoted in the volume's group, or has taken the volume back from a lost target; 0 if neither.
func (n *Node) taken(volume string) (epoch uint64) {
	d := n.state.view()
	if v := d.Volumes[volume]; v != nil {
		epoch = v.Taken
	}
	if g := d.Groups[d.owner(volume)]; g != nil && g.Promoted != nil {
		epoch = max(epoch, g.Promoted.Epoch)
	}
	return epoch
}

// epochOf is the epoch in which the volume's group is served, as this node knows it; 0 for a lone volume.
func (n *Node) epochOf(v *nodeVolume) uint64 { return v.epoch.Load() }

// successor names who serves a volume that moved away from here: as recorded when it was given up, else by the move
// that is under way, of which a volume has one at a time.
func (n *Node) successor(name string) *block.MovedError {
	d := n.state.view()
	if v := d.Volumes[name]; v != nil && v.Moved != nil {
		to := *v.Moved
		if addr := n.addressOf(to.Node); addr != "" {
			to.Address = addr
		}
		return &to
	}
	if rec := d.Groups[d.owner(name)]; rec != nil && rec.Superseded != nil {
		for _, m := range rec.Members {
			if m.Volume == name {
				return n.promotedTo(rec, m.Number, *rec.Superseded)
			}
		}
	}
	for _, rec := range d.Moves {
		if rec.Role != control.RoleSource || rec.Stage != migrate.Registered {
			continue
		}
		for _, mv := range rec.Spec.Volumes {
			if _, vol := splitName(mv.Source); vol == name {
				to := movedTo(&rec.Spec, mv)
				if addr := n.addressOf(to.Node); addr != "" {
					to.Address = addr
				}
				return to
			}
		}
	}
	return nil
}

func movedTo(spec *control.MigrationSpec, mv control.MovedVolume) *block.MovedError {
	node, vol := splitName(mv.Target)
	return &block.MovedError{Node: node, Address: spec.Address[node], Volume: vol, Epoch: spec.Group.Epoch + 1}
}

// serveStream takes a sender's connection for a group this node is the secondary of, or that of a secondary which asks for
// records.
func (n *Node) serveStream(ctx context.Context, in *wire.Incoming) error {
	g := n.group(in.Peer.Group)
	if pull, err := asksToPull(in); err != nil || pull {
		switch {
		case err != nil:
			return err
		case g == nil:
			return notFound("group %s is not on node %s", in.Peer.Group, n.cfg.Name)
		}
		return g.servePull(ctx, in)
	}
	if g == nil {
		return notFound("group %s has no secondary on node %s", in.Peer.Group, n.cfg.Name)
	}
	return g.serveStream(ctx, in)
}

// serveCall answers one call. Parameters that do not parse change nothing.
func (n *Node) serveCall(ctx context.Context, _ wire.Hello, method string, params json.RawMessage) (any, error) {
	switch method {
	case control.CallNodeStatus:
		return n.status(), nil
	case control.CallNodeEvents:
		return with(params, func(in control.EventsAfter) (any, error) {
			return control.NodeEvents{Instance: n.instance, Events: n.events.after(in.After)}, nil
		})
	case control.CallVolumeCreate:
		return with(params, n.createVolume)
	case control.CallVolumeResize:
		return with(params, func(in control.VolumeResize) (any, error) { return n.resizeVolume(ctx, in) })
	case control.CallVolumeDelete:
		return with(params, func(in control.NameOnly) (any, error) { return struct{}{}, n.deleteVolume(ctx, in) })
	case control.CallJournalCreate:
		return with(params, n.createJournal)
	case control.CallJournalAdd:
		return with(params, func(in control.JournalAdd) (any, error) { return n.addJournal(ctx, in) })
	case control.CallJournalDelete:
		return with(params, func(in control.NameOnly) (any, error) { return struct{}{}, n.deleteJournal(in.Name) })
	case control.CallGroupConfigure:
		return with(params, func(in control.GroupSpec) (any, error) { return n.configureGroup(ctx, in) })
	case control.CallGroupSuspend:
		return with(params, func(in control.GroupSuspend) (any, error) { return n.suspendGroup(in.Name) })
	case control.CallGroupResume:
		return with(params, func(in control.GroupResume) (any, error) { return n.resumeGroup(in) })
	case control.CallPairCheck:
		return with(params, func(in control.PairRef) (any, error) { return n.checkPair(ctx, in) })
	case control.CallPairRemove:
		return with(params, func(in control.PairRef) (any, error) { return n.removePair(ctx, in) })
	case control.CallGroupPromote:
		return with(params, func(in control.GroupPromote) (any, error) { return n.promoteGroup(ctx, in) })
	case control.CallGroupReign:
		return with(params, func(in control.NameOnly) (any, error) { return n.reign(in) })
	case control.CallGroupSuperseded:
		return with(params, func(in control.Reign) (any, error) { return n.superseded(ctx, in) })
	case control.CallGroupVerify:
		return with(params, n.verifyGroup)
	case control.CallGroupVerified:
		return with(params, func(in control.NameOnly) (any, error) { return n.verifyStatus(in.Name) })
	case control.CallGroupDigests:
		return with(params, n.digestsFound)
	case control.CallGroupDelete:
		return with(params, func(in control.NameOnly) (any, error) { return struct{}{}, n.deleteGroup(ctx, in.Name) })
	}
	return n.serveMoveCall(ctx, method, params)
}

func (n *Node) serveMoveCall(ctx context.Context, method string, params json.RawMessage) (any, error) {
	done := func(f func(context.Context, string) error) (any, error) {
		return with(params, func(in control.MigrationID) (any, error) { return struct{}{}, f(ctx, in.ID) })
	}
	switch method {
	case control.CallMigrateCheck:
		return with(params, func(in control.MigrationSpec) (any, error) { return n.checkMove(in) })
	case control.CallMigrateRegister:
		return with(params, func(in control.MigrationSpec) (any, error) { return struct{}{}, n.registerMove(ctx, in) })
	case control.CallMigrateThrough:
		return done(n.moveThrough)
	case control.CallMigrateRun:
		return done(n.moveRun)
	case control.CallMigrateStatus:
		return with(params, func(in control.MigrationID) (any, error) { return n.moveStatus(in.ID) })
	case control.CallMigrateSet:
		return with(params, func(in control.MigrationSet) (any, error) { return struct{}{}, n.moveSet(in) })
	case control.CallMigrateAbort:
		return done(n.moveAbort)
	case control.CallMigrateCancel:
		return with(params, func(in control.MigrationEnd) (any, error) { return struct{}{}, n.moveCancel(ctx, in) })
	case control.CallMigrateDeregister:
		return done(n.moveDeregister)
	case control.CallMigrateSeal:
		return with(params, func(in control.MigrationID) (any, error) { return n.moveSeal(ctx, in.ID) })
	case control.CallMigrateCopy:
		return done(n.moveCopy)
	case control.CallMigrateJoin:
		return with(params, func(in control.MigrationID) (any, error) { return n.moveJoin(in.ID) })
	case control.CallMigrateMarks:
		return with(params, n.moveMarks)
	case control.CallMigrateTaken:
		return with(params, func(in control.CopyTaken) (any, error) { return struct{}{}, n.moveTaken(in) })
	case control.CallMigrateTip:
		return with(params, n.moveTip)
	case control.CallMigrateCarry:
		return with(params, n.moveCarry)
	case control.CallMigrateCarried:
		return with(params, func(in control.MigrationID) (any, error) { return n.moveCarried(in.ID) })
	case control.CallMigrateReopen:
		return with(params, func(in control.MigrationEnd) (any, error) { return n.moveReopen(ctx, in.ID, in.TargetLost) })
	case control.CallMigrateAbandon:
		return with(params, func(in control.MigrationAbandon) (any, error) { return struct{}{}, n.moveAbandon(in) })
	case control.CallMigrateRefill:
		return with(params, func(in control.MigrationRefill) (any, error) { return n.moveRefill(ctx, in) })
	case control.CallMigrateSource:
		return with(params, func(in control.MigrationID) (any, error) { return n.moveSource(in.ID) })
	case control.CallMigrateChanged:
		return with(params, func(in control.ChangedAsked) (any, error) { return n.moveChanged(in) })
	case control.CallMigrateCompare:
		return with(params, n.moveCompare)
	case control.CallMigrateDigests:
		return with(params, func(in control.DigestsAsked) (any, error) { return n.moveDigests(ctx, in) })
	case control.CallMigrateSingle:
		return with(params, func(in control.MigrationSingle) (any, error) { return struct{}{}, n.moveSingle(in) })
	}
	return nil, notFound("no method %q", method)
}

// with decodes the parameters of a call for its function.
func with[In, Out any](params json.RawMessage, f func(In) (Out, error)) (any, error) {
	var in In
	if err := json.Unmarshal(params, &in); err != nil {
		return nil, invalid("parameters: %v", err)
	}
	return f(in)
}

// healthHandler: alive while the process answers; ready once it serves, which it does before it listens here.
func (n *Node) healthHandler() http.Handler {
	mux := http.NewServeMux()
	ok := func(w http.ResponseWriter, _ *http.Request) { fmt.Fprintln(w, "ok") }
	mux.HandleFunc("GET /livez", ok)
	mux.HandleFunc("GET /readyz", ok)
	mux.Handle("GET /metrics", n.metricsHandler())
	mux.HandleFunc("GET /debug/pprof/", pprof.Index)
	mux.HandleFunc("GET /debug/pprof/profile", pprof.Profile)
	mux.HandleFunc("GET /debug/pprof/trace", pprof.Trace)
	return mux
}
