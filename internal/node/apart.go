package node

import (
	"context"
	"fmt"

	"gantline/internal/control"
	"gantline/internal/record"
	"gantline/internal/volume"
)

// subscribeApart makes the node at the other end a subscriber that is out of the stream: what it lacks is marked, and nothing
// is sent by itself.
func (g *group) subscribeApart(cfg volume.SubscriberConfig, from uint64) error {
	cfg.State, cfg.Sync, cfg.Acked = volume.SubSuspended, volume.SyncConfig{}, record.Seq(from)
	sub, err := g.vg.Subscribe(secondaryName, cfg)
	if err != nil {
		return err
	}
	g.mu.Lock()
	g.sub = sub
	g.mu.Unlock()
	return nil
}

// apartStatus is that of a node that was promoted, or of the one in whose place that was; called under mu.
func (g *group) apartStatus(st *control.GroupStatus, rec *groupRecord) {
	if g.sub != nil {
		st.ChangedBytes = g.sub.ChangedBytes()
	}
	if p := rec.Promoted; p != nil {
		st.Promoted, st.State, st.Consistent = p, "suspended", false
		st.Acked, st.Applied = p.Cut, p.Cut
		st.BlockedOn = fmt.Sprintf("%s was promoted in epoch %d behind record %d: %s, the old primary, has no copy of what is written since; "+
			"the way back (`group failback`) is not built yet", p.By(g.n.cfg.Name), p.Epoch, p.Cut, p.From)
		if !g.told {
			st.BlockedOn += fmt.Sprintf("; %s has not heard of it yet: if it serves hosts, stop it", p.From)
		}
		return
	}
	r := rec.Superseded
	st.State, st.Consistent, st.Peer = control.RoleSuperseded, false, r.Node
	st.BlockedOn = fmt.Sprintf("superseded by %s, which was promoted in epoch %d behind record %d: this node refuses hosts; what it has "+
		"written behind that record is nowhere else", r.Node, r.Epoch, r.Cut)
}

// configureApart takes the manager's word on a group in which a node was promoted: what is of an epoch before changes nothing,
// and what says that this node was superseded has it refuse hosts. done: there is nothing else to be done.
func (g *group) configureApart(ctx context.Context, rec *groupRecord, spec *control.GroupSpec) (st control.GroupStatus, done bool, err error) {
	to := &spec.Group
	switch {
	case rec.Promoted != nil && to.Epoch < rec.Promoted.Epoch:
		return st, true, refused("group %s: node %s was promoted in epoch %d, and the manager's word is of epoch %d", g.name, g.n.cfg.Name,
			rec.Promoted.Epoch, to.Epoch)
	case rec.Promoted != nil:
		for _, p := range to.Pairs {
			if rec.member(p.Number) == nil && !p.Removing {
				return st, true, refused("group %s: node %s was promoted, and copies to nobody: a pair can be added once both sides are "+
					"brought together", g.name, g.n.cfg.Name)
			}
		}
		return st, false, nil
	case rec.Superseded != nil && to.Epoch < rec.Superseded.Epoch:
		return st, true, refused("group %s: node %s was superseded by %s in epoch %d, and the manager's word is of epoch %d", g.name,
			g.n.cfg.Name, rec.Superseded.Node, rec.Superseded.Epoch, to.Epoch)
	case rec.Superseded != nil:
		return g.status(), true, nil
	case rec.Role == control.RolePrimary && spec.Role == control.RoleSecondary && to.Promotion != nil:
		r := control.Reign{Name: g.name, Node: to.Promotion.By(to.Primary), Epoch: to.Promotion.Epoch, Cut: to.Promotion.Cut}
		if _, err := g.n.superseded(ctx, r); err != nil {
			return st, true, err
		}
		return g.status(), true, nil
	}
	return st, false, nil
}

// promotions are the groups in which this node was promoted, for the manager.
func (n *Node) promotions() map[string]*control.Promotion {
	out := map[string]*control.Promotion{}
	for name, rec := range n.state.view().Groups {
		if rec.Role == control.RolePrimary && rec.Promoted != nil {
			out[name] = rec.Promoted
		}
	}
	return out
}

// tellPromoted makes the promotion an event, and has the manager told now.
func (n *Node) tellPromoted(group string) {
	p := n.state.view().Groups[group].Promoted
	lost := "how many writes are lost is not known"
	if p.LostWrites != nil {
		lost = fmt.Sprintf("%d writes are lost", *p.LostWrites)
	}
	n.events.add([]control.NodeEvent{{At: p.At, Object: "group/" + group, Kind: "promotion", Cause: "group promote",
		Message: fmt.Sprintf("group %s: node %s serves in epoch %d behind record %d, in the place of %s; %s", group, n.cfg.Name, p.Epoch, p.Cut,
			p.From, lost)}})
	select {
	case n.alarmed <- struct{}{}:
	default:
	}
}
