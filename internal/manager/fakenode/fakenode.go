// Package fakenode is a storage node without storage, for tests of manager and CLI: it answers the calls of a node over
// real connections, keeps what it was told in memory, and plays the target of a move step by step. It imports nothing
// of the data plane.
package fakenode

import (
	"context"
	"encoding/json"
	"fmt"
	"net"
	"slices"
	"sync"
	"time"

	"gantline/internal/control"
	"gantline/internal/wire"
)

// Manager is what a node tells the manager.
type Manager interface {
	SyncNode(ctx context.Context, r control.NodeReport) (control.NodeSyncReply, error)
	Decide(ctx context.Context, id string, r control.DecideRequest) (control.DecideReply, error)
}

// Node answers calls. Its fields may be changed between calls, under Lock.
type Node struct {
	sync.Mutex
	Name     string
	Install  string
	Instance string
	Addr     string

	Volumes  map[string]*control.VolumeStatus
	Journals map[string]*control.JournalStatus
	Groups   map[string]*control.GroupStatus
	Specs    map[string]control.GroupSpec
	Moves    map[string]*Move
	Events   []control.NodeEvent
	Calls    []string                // methods with their object, in order
	Fail     func(call string) error // asked before each call; an error is the answer
	Free     int64                   // bytes, told by migrate.check
	LinkDown bool                    // told by migrate.check
	Hold     chan struct{}           // if not nil, a target waits here after pending
	Rest     chan struct{}           // if not nil, a target that serves waits here before it is filled
	Check    *control.MoveCheck      // what a target finds at a commit; nil: nothing differs
	Refuse   bool                    // a target refuses durably instead of asking for the decision

	mgr    Manager
	ctx    context.Context // of the present run
	cancel context.CancelFunc
	work   sync.WaitGroup
}

// Move is a move as the node was told of it.
type Move struct {
	Spec   control.MigrationSpec
	Status control.MigrationStatus
	ran    bool
}

// New makes a node that is not running.
func New(name string) *Node {
	return &Node{
		Name: name, Install: "install-" + name, Volumes: map[string]*control.VolumeStatus{},
		Journals: map[string]*control.JournalStatus{}, Groups: map[string]*control.GroupStatus{},
		Specs: map[string]control.GroupSpec{}, Moves: map[string]*Move{}, Free: 1 << 40,
	}
}

// Start listens, at the address it had before if it ran before, and registers until Stop.
func (n *Node) Start(mgr Manager, instance string) error {
	addr := n.Addr
	if addr == "" {
		addr = "127.0.0.1:0"
	}
	l, err := net.Listen("tcp", addr)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithCancel(context.Background())
	n.Lock()
	n.Addr, n.Instance, n.mgr, n.ctx, n.cancel = l.Addr().String(), instance, mgr, ctx, cancel
	moves := n.Moves
	n.Unlock()
	server := wire.NewServer(wire.Handlers{Self: wire.Hello{Role: "node", Name: n.Name}, Call: n.serve}, wire.Limits{})
	n.work.Go(func() { _ = server.Serve(ctx, l) })
	n.work.Go(func() { n.register(ctx) })
	for id, mv := range moves {
		if mv.ran {
			n.work.Go(func() { n.take(ctx, id) })
		}
	}
	return nil
}

// Stop ends the process, not what it has stored.
func (n *Node) Stop() {
	n.Lock()
	cancel := n.cancel
	n.Unlock()
	if cancel != nil {
		cancel()
	}
	n.work.Wait()
}

// Report is what the node registers with.
func (n *Node) Report() control.NodeReport {
	n.Lock()
	defer n.Unlock()
	return control.NodeReport{Node: control.Node{Name: n.Name, Site: "s", Install: n.Install, Instance: n.Instance,
		Address: n.Addr, NBD: []string{"127.0.0.1:10809"}}}
}

func (n *Node) register(ctx context.Context) {
	for ctx.Err() == nil {
		wait := 500 * time.Millisecond
		if _, err := n.mgr.SyncNode(ctx, n.Report()); err != nil {
			wait = 50 * time.Millisecond
		}
		select {
		case <-time.After(wait):
		case <-ctx.Done():
		}
	}
}

// Called lists the calls answered so far.
func (n *Node) Called() []string {
	n.Lock()
	defer n.Unlock()
	return slices.Clone(n.Calls)
}

func bad(kind wire.Kind, format string, args ...any) error {
	return &wire.Error{Kind: kind, Message: fmt.Sprintf(format, args...)}
}

func (n *Node) serve(_ context.Context, _ wire.Hello, method string, params json.RawMessage) (any, error) {
	n.Lock()
	defer n.Unlock()
	out, err := n.answer(method, params)
	if err != nil {
		return nil, err
	}
	body, err := json.Marshal(out) // under the lock: what is answered may change at once
	return json.RawMessage(body), err
}

func (n *Node) answer(method string, params json.RawMessage) (any, error) {
	var object struct {
		Name  string `json:"name"`
		ID    string `json:"id"`
		Group struct {
			Name string `json:"name"`
		} `json:"group"`
	}
	if err := json.Unmarshal(params, &object); err != nil {
		return nil, bad(wire.KindInvalid, "%v", err)
	}
	call := method + " " + object.ID + object.Name
	if object.ID+object.Name == "" {
		call += object.Group.Name
	}
	if n.Fail != nil {
		if err := n.Fail(call); err != nil {
			return nil, err
		}
	}
	if method != control.CallNodeStatus && method != control.CallNodeEvents && method != control.CallMigrateStatus {
		n.Calls = append(n.Calls, call)
	}
	switch method {
	case control.CallNodeEvents:
		return control.NodeEvents{Instance: n.Instance, Events: n.Events}, nil
	case control.CallNodeStatus:
		return n.status(), nil
	case control.CallVolumeCreate, control.CallVolumeResize, control.CallVolumeDelete, control.CallJournalCreate, control.CallJournalDelete,
		control.CallJournalAdd:
		return n.object(method, object.Name, params)
	case control.CallGroupConfigure, control.CallGroupSuspend, control.CallGroupResume, control.CallGroupDelete, control.CallGroupPromote:
		return n.group(method, object.Name, params)
	}
	return n.migrate(method, object.ID, params)
}

func (n *Node) status() control.NodeStatus {
	st := control.NodeStatus{Name: n.Name, Install: n.Install, Instance: n.Instance}
	for _, v := range n.Volumes {
		st.Volumes = append(st.Volumes, *v)
	}
	for _, j := range n.Journals {
		st.Journals = append(st.Journals, *j)
	}
	for _, g := range n.Groups {
		st.Groups = append(st.Groups, *g)
	}
	for _, mv := range n.Moves {
		st.Migrations = append(st.Migrations, mv.Status)
	}
	return st
}

func (n *Node) object(method, name string, params json.RawMessage) (any, error) {
	switch method {
	case control.CallVolumeDelete:
		delete(n.Volumes, name)
		return struct{}{}, nil
	case control.CallJournalDelete:
		delete(n.Journals, name)
		return struct{}{}, nil
	case control.CallVolumeResize:
		var in control.VolumeResize
		_ = json.Unmarshal(params, &in)
		v := n.Volumes[name]
		switch {
		case v == nil:
			return nil, bad(wire.KindNotFound, "volume %s does not exist", name)
		case v.Size > in.Size && in.Role != control.RoleSecondary:
			return nil, bad(wire.KindRefused, "volume %s has %d bytes", name, v.Size)
		case !in.Check:
			v.Size = max(v.Size, in.Size)
		}
		return v, nil
	case control.CallVolumeCreate:
		var in control.VolumeCreate
		_ = json.Unmarshal(params, &in)
		v := n.Volumes[name]
		if v != nil && v.Size != in.Size {
			return nil, bad(wire.KindRefused, "volume %s exists with %d bytes", name, v.Size)
		}
		if v == nil {
			v = &control.VolumeStatus{Name: name, ID: "id-" + name, Size: in.Size, Device: "/data/" + name + ".raw", Role: "lone",
				Mode: "normal", State: "ok"}
			n.Volumes[name] = v
		}
		return v, nil
	}
	j := n.Journals[name]
	if method == control.CallJournalAdd {
		var in control.JournalAdd
		_ = json.Unmarshal(params, &in)
		if j == nil {
			return nil, &control.Error{Kind: control.KindNotFound, Message: "journal " + name + " does not exist"}
		}
		if len(j.Devices) == len(in.Have) {
			j.Devices = append(j.Devices, fmt.Sprintf("/data/%s.%d.jnl", name, len(in.Have)))
			j.Size += in.Size
		}
		return j, nil
	}
	var in control.JournalCreate
	_ = json.Unmarshal(params, &in)
	if j == nil {
		j = &control.JournalStatus{Name: name, Size: in.Size, Capacity: in.Size, Devices: []string{"/data/" + name + ".jnl"}}
		n.Journals[name] = j
	}
	return j, nil
}

func (n *Node) group(method, name string, params json.RawMessage) (any, error) {
	switch method {
	case control.CallGroupDelete:
		delete(n.Groups, name)
		delete(n.Specs, name)
		return struct{}{}, nil
	case control.CallGroupConfigure:
		var in control.GroupSpec
		_ = json.Unmarshal(params, &in)
		return n.configure(in), nil
	}
	g := n.Groups[name]
	if g == nil {
		return nil, bad(wire.KindNotFound, "no group %s", name)
	}
	if method == control.CallGroupPromote {
		var in control.GroupPromote
		_ = json.Unmarshal(params, &in)
		return n.promote(g, in)
	}
	g.State = map[string]string{control.CallGroupSuspend: "suspended", control.CallGroupResume: "paired"}[method]
	return g, nil
}

// promote makes a secondary the primary behind record 100.
func (n *Node) promote(g *control.GroupStatus, in control.GroupPromote) (any, error) {
	switch {
	case g.Promoted != nil:
	case g.Role != control.RoleSecondary:
		return nil, bad(wire.KindRefused, "node %s is %s", n.Name, g.Role)
	case in.DryRun:
		plan := &control.PlanView{Plan: []string{"serve group " + g.Name}, Refusals: []string{}}
		return control.PromoteStatus{Plan: plan}, nil
	case !in.Force:
		return nil, bad(wire.KindRefused, "--force is needed")
	default:
		g.Promoted = &control.Promotion{Epoch: g.Epoch + 1, Cut: 100, From: n.Specs[g.Name].Group.Primary}
		g.Role, g.State, g.Epoch, g.Node = control.RolePrimary, "suspended", g.Promoted.Epoch, n.Name
	}
	return control.PromoteStatus{PromoteView: g.Promoted.View(g.Name), Done: g.Promoted}, nil
}

func (n *Node) configure(in control.GroupSpec) *control.GroupStatus {
	name := in.Group.Name
	g := n.Groups[name]
	if g == nil {
		g = &control.GroupStatus{Name: name, Role: in.Role, State: "empty", Epoch: in.Group.Epoch, Node: in.Group.Primary,
			CopySource: in.Group.Primary, LinkUp: true, Heard: true, Consistent: true, JournalCapacity: 1 << 30}
		n.Groups[name] = g
	}
	if held := n.Specs[name].Group; in.Group.Revision < held.Revision {
		st := *g
		st.Newer = &held
		return &st
	}
	if len(in.Group.Pairs) > 0 && g.State == "empty" {
		g.State, g.Appended, g.Durable, g.Sent, g.Acked, g.Applied = "paired", 100, 100, 100, 100, 100
	}
	n.Specs[name] = in
	return g
}

func (n *Node) migrate(method, id string, params json.RawMessage) (any, error) {
	switch method {
	case control.CallMigrateCheck:
		return control.MigrationCheck{DataBytes: 4096, FreeBytes: n.Free, LinkDown: n.LinkDown}, nil
	case control.CallMigrateRegister:
		var in control.MigrationSpec
		_ = json.Unmarshal(params, &in)
		return n.registered(in), nil
	}
	mv := n.Moves[id]
	if mv == nil {
		return nil, bad(wire.KindNotFound, "migration %s is not known", id)
	}
	st := &mv.Status
	switch method {
	case control.CallMigrateStatus:
		return st, nil
	case control.CallMigrateThrough:
		if st.Phase == control.PhaseRegistered {
			n.phase(mv, control.PhaseThrough, control.StepThrough)
		}
	case control.CallMigrateRun:
		if !mv.ran {
			mv.ran = true
			run := n.ctx
			n.work.Go(func() { n.take(run, id) })
		}
	case control.CallMigrateSet:
		var in control.MigrationSet
		_ = json.Unmarshal(params, &in)
		mv.Spec.Limit = in.Limit
	case control.CallMigrateCompare:
		var in control.MoveCompare
		_ = json.Unmarshal(params, &in)
		found := control.MoveCheck{State: control.CheckSame}
		if n.Check != nil {
			found = *n.Check
		}
		found.Try = in.Try
		st.Check = &found
		return found, nil
	case control.CallMigrateReopen:
		st.Serving = mv.Spec.Group.Epoch + 2
		return control.ReopenResult{Epoch: st.Serving}, nil
	case control.CallMigrateCancel:
		delete(n.Moves, id)
	case control.CallMigrateDeregister:
		delete(n.Moves, id)
		if g := n.Groups[mv.Spec.Group.Name]; g != nil && n.Name == mv.Spec.Source {
			g.Role = control.RoleRetired
		}
	}
	return struct{}{}, nil
}

func (n *Node) registered(in control.MigrationSpec) any {
	if n.Moves[in.ID] == nil {
		role := map[string]string{in.Source: control.RoleSource, in.Target: control.RoleTarget, in.Secondary: control.RoleSecondary}
		mv := &Move{Spec: in, Status: control.MigrationStatus{ID: in.ID, Node: n.Name, Role: role[n.Name],
			Phase: control.PhaseRegistered, Modes: map[string]string{}, Total: 10, Ready: n.Name == in.Source}}
		n.Moves[in.ID] = mv
	}
	return struct{}{}
}

func (n *Node) phase(mv *Move, phase string, steps ...string) {
	mv.Status.Phase = phase
	for _, s := range steps {
		mv.Status.Steps = append(mv.Status.Steps, control.StepAt(s, time.Now()))
	}
	mode := map[string]string{control.PhasePending: "pending", control.PhaseMigrating: "migrating", control.PhaseFilled: "normal"}[phase]
	for _, v := range mv.Spec.Volumes {
		mv.Status.Modes[v.Target] = mode
	}
}

// take plays the target from migrate.run on.
func (n *Node) take(ctx context.Context, id string) {
	n.Lock()
	mv := n.Moves[id]
	if mv == nil || mv.Status.Phase == control.PhaseFilled {
		n.Unlock()
		return
	}
	n.phase(mv, control.PhasePending, control.StepPend, control.StepSeal)
	hold, refuse := n.Hold, n.Refuse
	n.Unlock()
	if hold != nil {
		select {
		case <-hold:
		case <-ctx.Done():
			return
		}
	}
	for !refuse {
		reply, err := n.mgr.Decide(ctx, id, control.DecideRequest{Node: n.Name, Epoch: mv.Spec.Group.Epoch, Cut: 100})
		if err == nil {
			refuse = reply.Decided == control.DecidedSource
			break
		}
		select {
		case <-time.After(20 * time.Millisecond):
		case <-ctx.Done():
			return
		}
	}
	n.Lock()
	defer n.Unlock()
	st := &mv.Status
	if refuse {
		st.Refused, st.Phase, st.Error = true, control.PhaseFailed, "refused by the test"
		return
	}
	cut, epoch, pause := uint64(100), mv.Spec.Group.Epoch+1, 7.5
	st.Cut, st.Epoch, st.PauseMS, st.Present, st.Background, st.OnDemand = &cut, &epoch, &pause, 10, 4096, 512
	st.Serving = epoch
	if rest := n.Rest; rest != nil {
		n.phase(mv, control.PhaseMigrating, control.StepSource, control.StepRun)
		n.Unlock()
		select {
		case <-rest:
		case <-ctx.Done():
		}
		n.Lock()
	}
	n.phase(mv, control.PhaseFilled, control.StepSource, control.StepRun, control.StepDrained, control.StepSingle, control.StepFill)
	n.Groups[mv.Spec.Group.Name] = &control.GroupStatus{Name: mv.Spec.Group.Name, Role: control.RolePrimary, State: "paired",
		Epoch: epoch, Node: n.Name, LinkUp: true, Heard: true, Consistent: true, Appended: 100, Durable: 100, Sent: 100,
		Acked: 100, Applied: 100, JournalCapacity: 1 << 30, WANBytesSent: 5}
}
