package manager

import (
	"context"
	"encoding/json"
	"maps"
	"slices"
	"sync"
	"time"

	"gantline/internal/control"
)

const (
	pushEvery = 2 * time.Second // looks again at what is not in force yet
	pushAtOne = 16              // nodes told at a time
)

// pusher tells nodes what the store says of their groups: after every change, after every registration, and again until
// they have acknowledged it. It compares whole specs, so that a changed address of a peer is told like anything else.
type pusher struct {
	m    *Manager
	wake chan struct{} // capacity 1

	mu   sync.Mutex
	told map[string]map[string]string // node → group → spec as JSON, acknowledged in the node's present run
	old  map[string]string            // group → why its record in the store is too old to be used
}

func newPusher(m *Manager) *pusher {
	return &pusher{m: m, wake: make(chan struct{}, 1), told: map[string]map[string]string{}, old: map[string]string{}}
}

func (p *pusher) kick() {
	select {
	case p.wake <- struct{}{}:
	default:
	}
}

// forget says that a node knows nothing for sure: it has a new run.
func (p *pusher) forget(node string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	delete(p.told, node)
}

func (p *pusher) run(ctx context.Context) error {
	tick := time.NewTicker(pushEvery)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-p.wake:
		case <-tick.C:
		}
		if err := p.round(ctx); err != nil && ctx.Err() == nil {
			p.m.log.Warn("groups could not be told to nodes", "error", err)
		}
	}
}

// wish is what one node should know of one group.
type wish struct {
	node string
	spec control.GroupSpec
	body string
}

// wishes are what the store says, for nodes that are up.
func (m *Manager) wishes(ctx context.Context) ([]wish, error) {
	groups, err := loadAll[control.Group](ctx, m, control.KindGroup)
	if err != nil {
		return nil, err
	}
	migrations, err := loadAll[control.Migration](ctx, m, control.KindMigration)
	if err != nil {
		return nil, err
	}
	nodes, err := loadAll[control.Node](ctx, m, control.KindNode)
	if err != nil {
		return nil, err
	}
	address := map[string]string{}
	for _, n := range nodes {
		address[n.V.Name] = n.V.PeerAddress()
	}
	links, err := m.linkSettings(ctx)
	if err != nil {
		return nil, err
	}
	var out []wish
	for _, g := range groups {
		if holding(g.V.Name, migrations) {
			continue // told when hosts are served again; the move itself tells its nodes all they need
		}
		roles := rolesOf(&g.V, migrations)
		for _, node := range slices.Sorted(maps.Keys(roles)) {
			w, err := newWish(&g.V, node, roles, address, links)
			if err != nil {
				return nil, err
			}
			out = append(out, w)
		}
	}
	return out, nil
}

// holding says that hosts of a group may be held just now by a move.
func holding(group string, migrations []got[control.Migration]) bool {
	return slices.ContainsFunc(migrations, func(mg got[control.Migration]) bool {
		return mg.V.Group == group && mg.V.RunAsked && !control.Ended(mg.V.Phase) &&
			!control.After(mg.V.Phase, control.PhaseMigrating)
	})
}

// rolesOf says which nodes a group concerns. Source and target of a move count while the move is registered with them.
func rolesOf(g *control.Group, migrations []got[control.Migration]) map[string]string {
	roles := map[string]string{}
	for _, mg := range migrations {
		if mg.V.Group == g.Name && mg.V.Phase != "" && !control.Ended(mg.V.Phase) && !mg.V.Returning() {
			roles[mg.V.Source], roles[mg.V.Target] = control.RoleSource, control.RoleTarget
		}
	}
	roles[g.Primary] = control.RolePrimary
	if g.Secondary != "" {
		roles[g.Secondary] = control.RoleSecondary
	}
	return roles
}

func newWish(g *control.Group, node string, roles, address map[string]string, links map[string]control.LinkSettings) (wish, error) {
	w := wish{node: node, spec: control.GroupSpec{Group: *g, Role: roles[node], Address: map[string]string{}}}
	for other := range roles {
		if a := address[other]; a != "" {
			w.spec.Address[other] = a
		}
		if s, ok := links[node+":"+other]; ok {
			if w.spec.Links == nil {
				w.spec.Links = map[string]control.LinkSettings{}
			}
			w.spec.Links[other] = s
		}
	}
	body, err := json.Marshal(w.spec)
	w.body = string(body)
	return w, err
}

// round tells every node that is up what it has not acknowledged, group by group: a slow node of one group does not hold
// up the others.
func (p *pusher) round(ctx context.Context) error {
	wishes, err := p.m.wishes(ctx)
	if err != nil {
		return err
	}
	byGroup := map[string][]wish{}
	for _, w := range wishes {
		if p.m.presence.nodeUp(w.node) && !p.acknowledged(w) {
			byGroup[w.spec.Group.Name] = append(byGroup[w.spec.Group.Name], w)
		}
	}
	slots := make(chan struct{}, pushAtOne)
	var wg sync.WaitGroup
	for group, list := range byGroup {
		wg.Go(func() {
			slots <- struct{}{}
			defer func() { <-slots }()
			p.tellGroup(ctx, group, list)
		})
	}
	wg.Wait()
	return nil
}

// tellGroup tells the secondary first. When it says no, the others are not told: the primary would send what the
// secondary cannot take, and a command that is about to be taken back would have taken hold. A group that a command has
// in hand is left to it.
func (p *pusher) tellGroup(ctx context.Context, group string, list []wish) {
	unlock, ok := p.m.locks.try("group/" + group)
	if !ok {
		return
	}
	defer unlock()
	// What was read before the lock may have been taken back by the command that had it.
	fresh, err := load[control.Group](ctx, p.m, control.KindGroup, group)
	if err != nil || fresh.V.Revision != list[0].spec.Group.Revision {
		if err == nil {
			p.kick()
		}
		return
	}
	slices.SortStableFunc(list, func(a, b wish) int { return rank(&a) - rank(&b) })
	for _, w := range list {
		if _, err := p.tell(ctx, w); err != nil {
			p.m.log.Warn("node did not take its group", "node", w.node, "group", group, "error", err)
			if isOldStore(err) {
				return // every node of it holds the same
			}
			if rank(&w) == 0 && control.KindOf(err) == control.KindRefused {
				return
			}
		}
	}
}

// rank orders who is told of a group.
func rank(w *wish) int {
	if w.spec.Role == control.RoleSecondary {
		return 0
	}
	return 1
}

func (p *pusher) acknowledged(w wish) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.told[w.node][w.spec.Group.Name] == w.body
}

// tell pushes one spec and notes that it was acknowledged.
func (p *pusher) tell(ctx context.Context, w wish) (control.GroupStatus, error) {
	var st control.GroupStatus
	g := &w.spec.Group
	if err := p.m.do(ctx, w.node, control.CallGroupConfigure, g.Name, w.spec, &st, callTimeout); err != nil {
		return st, err
	}
	if planOf(ctx) != nil {
		return st, nil
	}
	if st.Newer != nil {
		return st, p.m.storeIsOld(ctx, w.node, st.Newer)
	}
	// A suspension by command that the primary missed while it was away.
	if g.Suspended && w.node == g.Primary && st.State != "suspended" && st.State != "empty" && st.State != "" {
		in := control.GroupSuspend{Name: g.Name}
		if err := p.m.do(ctx, w.node, control.CallGroupSuspend, g.Name, in, &st, callTimeout); err != nil {
			return st, err
		}
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.told[w.node] == nil {
		p.told[w.node] = map[string]string{}
	}
	p.told[w.node][g.Name] = w.body
	return st, nil
}

// pushGroup tells one group's nodes at once: the secondary first, so that the primary's stream finds it. Nodes that are
// away are told later; they are listed. An answer other than yes is the error.
func (m *Manager) pushGroup(ctx context.Context, g *control.Group) (away []string, err error) {
	nodes, err := loadAll[control.Node](ctx, m, control.KindNode)
	if err != nil {
		return nil, err
	}
	address := map[string]string{}
	for _, n := range nodes {
		address[n.V.Name] = n.V.PeerAddress()
	}
	links, err := m.linkSettings(ctx)
	if err != nil {
		return nil, err
	}
	roles := rolesOf(g, nil)
	for _, node := range []string{g.Secondary, g.Primary} {
		if node == "" {
			continue
		}
		w, err := newWish(g, node, roles, address, links)
		if err != nil {
			return nil, err
		}
		if _, err := m.pusher.tell(ctx, w); unreachable(err) {
			away = append(away, node)
		} else if err != nil {
			return nil, err
		}
	}
	return away, nil
}
