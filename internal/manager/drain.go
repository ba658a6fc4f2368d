package manager

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"time"

	"gantline/internal/control"
)

// A drain is moves in a row, by the same way as `migrate start`. What it has begun is stored with it; dead between a move's
// begin and its note, the repeated begin joins the move.

// Limits of a drain.
const (
	defaultParallel = 2
	maxParallel     = 16
)

// nodeDrain begins to move all that a node is the primary of. What would be refused is refused before anything is begun. It
// returns the operation's id.
func (m *Manager) nodeDrain(ctx context.Context, node string, in control.DrainRequest) (string, error) {
	switch {
	case in.Parallel < 0 || in.Parallel > maxParallel:
		return "", control.Errorf(control.KindUsage, "--parallel %d: between 1 and %d", in.Parallel, maxParallel)
	case in.To == node:
		return "", control.Errorf(control.KindUsage, "node %s: --to names the node itself", node)
	}
	for _, name := range []string{node, in.To} {
		if _, err := load[control.Node](ctx, m, control.KindNode, name); err != nil {
			return "", err
		}
	}
	id := control.DrainID(node)
	unlock, err := m.locks.lock(ctx, "operation/"+id)
	if err != nil {
		return "", err
	}
	defer unlock()
	old, exists, err := find[control.Drain](ctx, m, control.KindOperation, id)
	if err != nil {
		return "", err
	}
	if exists && old.V.Phase == control.DrainMoving {
		if old.V.To != in.To || old.V.Commit != in.Commit {
			return "", control.Errorf(control.KindRefused, "node %s is being drained to %s already; wait for that", node, old.V.To)
		}
		return id, m.drains.setParallel(ctx, &old.V, in.Parallel)
	}
	if in.Parallel == 0 {
		in.Parallel = defaultParallel
	}
	d := control.Drain{ID: id, Node: node, To: in.To, Parallel: in.Parallel, Commit: in.Commit, Phase: control.DrainMoving,
		Begun: time.Now().UTC(), Items: []control.DrainItem{}}
	stays, err := m.drainItems(ctx, &d)
	if err != nil {
		return "", err
	}
	view, err := m.checkDrain(ctx, &d)
	if err != nil {
		return "", err
	}
	if p := planOf(ctx); p != nil {
		view.Plan = append(view.Plan, stays...)
		p.set(view)
		return id, nil
	}
	if len(view.Refusals) > 0 {
		return "", control.Errorf(control.KindRefused, "node %s cannot be drained to %s: %s", node, in.To, strings.Join(view.Refusals, "; "))
	}
	if _, err := m.commit(ctx, m.change().put(old.Key, old.Rev, d).
		event("node/"+node, "drain", "command", "node %s is drained to %s: %d objects", node, in.To, len(d.Items))); err != nil {
		return "", err
	}
	m.drains.kick(ctx, id)
	return id, nil
}

// drainItems lists what is to move: groups by name, then volumes in no group. What stays is told.
func (m *Manager) drainItems(ctx context.Context, d *control.Drain) (stays []string, err error) {
	groups, err := loadAll[control.Group](ctx, m, control.KindGroup)
	if err != nil {
		return nil, err
	}
	for _, g := range groups {
		if g.V.Lone != "" {
			continue
		}
		move := g.V.Primary == d.Node
		if latest, exists, err := m.latestMove(ctx, g.V.Name); err != nil {
			return nil, err
		} else if exists && latest.V.Source == d.Node && latest.V.Target == d.To && !control.Ended(latest.V.Phase) {
			move = true // decided, and not filled or committed yet
		}
		if move {
			d.Items = append(d.Items, control.DrainItem{Object: g.V.Name, Phase: control.DrainWaiting})
		}
		if g.V.Secondary == d.Node {
			stays = append(stays, "leave the secondary of group "+g.V.Name+" at "+d.Node)
		}
	}
	volumes, err := loadAll[control.Volume](ctx, m, control.KindVolume)
	if err != nil {
		return nil, err
	}
	there := m.live(ctx, d.Node)[d.Node]
	if there == nil {
		return nil, control.Errorf(control.KindUnreachable, "node %s does not answer; is its process running?", d.Node)
	}
	for _, v := range volumes {
		full := v.V.Node + "/" + v.V.Name
		if v.V.Node != d.Node || v.V.Group != "" && !slices.ContainsFunc(groups, func(g got[control.Group]) bool {
			return g.V.Name == v.V.Group && g.V.Lone != "" && (g.V.Lone == full || g.V.Pairs[0].Primary == full) // it moves already
		}) {
			continue
		}
		if slices.ContainsFunc(there.Volumes, func(s control.VolumeStatus) bool { return s.Name == v.V.Name && s.Role == control.RoleRetired }) {
			stays = append(stays, "leave volume "+full+", which was given up by a move and may be deleted")
			continue
		}
		d.Items = append(d.Items, control.DrainItem{Object: full, Phase: control.DrainWaiting})
	}
	return stays, nil
}

// checkDrain asks for each move whether it would be made now.
func (m *Manager) checkDrain(ctx context.Context, d *control.Drain) (control.PlanView, error) {
	all := control.PlanView{Plan: []string{}, Refusals: []string{}, SpaceBytes: ptr(int64(0)), Seconds: ptr(0.0), PauseMS: ptr(0.0)}
	free := int64(0)
	for _, it := range d.Items {
		p := &plan{}
		_, err := m.moveStart(context.WithValue(ctx, planKey{}, p), drainRequest(d, it))
		switch control.KindOf(err) {
		case control.KindOK:
		case control.KindRefused, control.KindUsage, control.KindNotFound:
			p.view.Refusals = append(p.view.Refusals, err.Error())
		default:
			return all, err
		}
		all.Plan = append(all.Plan, "move "+it.Object+" from "+d.Node+" to "+d.To)
		for _, r := range p.view.Refusals {
			all.Refusals = append(all.Refusals, it.Object+": "+r)
		}
		if p.view.SpaceBytes != nil {
			*all.SpaceBytes += *p.view.SpaceBytes
		}
		all.Seconds = both(all.Seconds, p.view.Seconds, func(a, b float64) float64 { return a + b })
		all.PauseMS = both(all.PauseMS, p.view.PauseMS, func(a, b float64) float64 { return max(a, b) })
		free = max(free, p.free)
	}
	if len(d.Items) == 0 {
		all.Plan, all.PauseMS = append(all.Plan, "nothing of "+d.Node+" is to be moved"), nil
	}
	if why := m.crowded(ctx, d); why != "" {
		all.Refusals = append(all.Refusals, why)
	}
	if free > 0 && *all.SpaceBytes > free && len(all.Refusals) == 0 {
		all.Refusals = append(all.Refusals, noRoom(d.To, *all.SpaceBytes, free))
	}
	return all, nil
}

// crowded says why a drain would stop on the way, at the number of groups that a node takes: a volume in no group has one until its move
// has been committed, at both nodes.
func (m *Manager) crowded(ctx context.Context, d *control.Drain) string {
	groups, lone := 0, 0
	for _, it := range d.Items {
		if strings.Contains(it.Object, "/") {
			lone++
		} else {
			groups++
		}
	}
	atOnce := lone
	if d.Commit {
		atOnce = min(lone, d.Parallel)
	}
	if lone == 0 {
		return ""
	}
	live := m.live(ctx, d.Node, d.To)
	for _, node := range []struct {
		name string
		more int
	}{{d.Node, atOnce}, {d.To, groups + atOnce}} {
		st := live[node.name]
		if st == nil {
			continue // refused for that
		}
		has := 0
		for _, g := range st.Groups {
			if !control.ForMove(g.Name) || !slices.ContainsFunc(d.Items, func(it control.DrainItem) bool {
				return control.LoneGroup(it.Object) == g.Name // one that moves already is counted with what is to move
			}) {
				has++
			}
		}
		if has+node.more <= control.MaxGroups {
			continue
		}
		way := "drain it with --commit, so that those that have moved count no more"
		if d.Commit {
			way = fmt.Sprintf("name a --parallel below %d", d.Parallel)
		}
		return fmt.Sprintf("%d groups and %d volumes in no group are to move: node %s has %d groups and takes %d, and a volume in no group counts as "+
			"one until its move has been committed: %s", groups, lone, node.name, has, control.MaxGroups, way)
	}
	return ""
}

// both combines two figures; what is not known of one is not known of both.
func both(a, b *float64, f func(a, b float64) float64) *float64 {
	if a == nil || b == nil {
		return nil
	}
	return ptr(f(*a, *b))
}

// drainViews shows drains under way, or the latest of a node by its id.
func (m *Manager) drainViews(ctx context.Context, id string, moves []control.MigrationView) ([]control.OperationView, error) {
	drains, err := loadAll[control.Drain](ctx, m, control.KindOperation)
	if err != nil {
		return nil, err
	}
	out := []control.OperationView{}
	for _, d := range drains {
		if id == d.V.ID || id == "" && d.V.Phase == control.DrainMoving {
			out = append(out, drainView(&d.V, moves))
		}
	}
	return out, nil
}

func drainView(d *control.Drain, moves []control.MigrationView) control.OperationView {
	v := control.OperationView{ID: d.ID, Kind: "drain", Object: "node/" + d.Node, Phase: d.Phase, Error: d.Error, ErrorKind: d.Kind, Items: d.Items}
	done := 0.0
	for _, it := range d.Items {
		if it.Phase == control.DrainDone {
			done++
		}
		for _, mv := range moves {
			if r := mv.Regions; it.Phase == control.DrainMoving && mv.ID == it.Migration && r.Total != nil && r.Present != nil && *r.Total > 0 {
				done += float64(*r.Present) / float64(*r.Total)
			}
		}
	}
	switch {
	case len(d.Items) > 0:
		v.Percent = ptr(100 * done / float64(len(d.Items)))
	case d.Phase == control.DrainDone:
		v.Percent = ptr(100.0)
	}
	return v
}
