package manager

import (
	"context"
	"time"

	"gantline/internal/control"
)

// promoteTimeout is for a secondary that has a full journal to apply. It goes on when the call is given up.
const promoteTimeout = 5 * time.Minute

// groupPromote has a group's secondary become its primary, and follows. The node alone decides; this is the same as the command
// on the node's own socket, and what that did is adopted when the node tells.
func (m *Manager) groupPromote(ctx context.Context, name string, in control.PromoteRequest) (control.PromoteView, error) {
	unlock, err := m.locks.lock(ctx, "group/"+name)
	if err != nil {
		return control.PromoteView{}, err
	}
	defer unlock()
	g, err := load[control.Group](ctx, m, control.KindGroup, name)
	if err != nil {
		return control.PromoteView{}, err
	}
	node := g.V.Secondary
	if g.V.Promotion != nil {
		node = g.V.Primary // repeated
	} else if err := m.quiet(ctx, name, "group "+name); err != nil {
		return control.PromoteView{}, err
	}
	ask := control.GroupPromote{Name: name, Force: in.Force, DryRun: planOf(ctx) != nil}
	var st control.PromoteStatus
	if err := m.nodes.call(ctx, node, control.CallGroupPromote, ask, &st, promoteTimeout); err != nil {
		return control.PromoteView{}, err
	}
	if p := planOf(ctx); p != nil {
		if st.Plan != nil {
			p.set(*st.Plan)
		}
		return st.PromoteView, nil
	}
	st.Group = name
	if st.Done != nil {
		rev, err := m.adopt(ctx, node, name, st.Done)
		if err != nil {
			return st.PromoteView, err
		}
		if rev != 0 {
			m.inForce(ctx, rev, "group/"+name)
		}
	}
	return st.PromoteView, nil
}

// adoptAll takes over what a node says of its own promotions.
func (m *Manager) adoptAll(ctx context.Context, node string, told map[string]*control.Promotion) error {
	for group, p := range told {
		if p == nil {
			continue
		}
		if _, err := m.adopt(ctx, node, group, p); err != nil && control.KindOf(err) != control.KindNotFound {
			return err
		}
	}
	return nil
}

// adopt turns a group around in the store: only for its own secondary, which says that it took over from the group's present
// primary in a higher epoch. What nodes have stored of epochs wins over the store. The virtual volumes go with it. 0: there was nothing
// to be done.
func (m *Manager) adopt(ctx context.Context, node, group string, p *control.Promotion) (uint64, error) {
	return attempt(ctx, func() (uint64, error) {
		g, err := load[control.Group](ctx, m, control.KindGroup, group)
		if err != nil {
			return 0, err
		}
		if g.V.Secondary != node || g.V.Primary != p.From || p.Epoch <= g.V.Epoch {
			return 0, nil
		}
		if err := m.quiet(ctx, group, "group "+group); err != nil {
			m.log.Warn("a promotion is not adopted", "group", group, "node", node, "cause", err)
			return 0, nil
		}
		c := m.change()
		if err := m.leadPromoted(ctx, c, &g.V); err != nil {
			return 0, err
		}
		g.V.Promoted(p)
		g.V.Suspended = false
		g.V.Revision++
		c.event("group/"+group, "promoted", "promotion of "+node, "group %s: %s was promoted in epoch %d behind record %d in the place of %s; "+
			"hosts are led there", group, node, p.Epoch, p.Cut, p.From)
		return m.commit(ctx, c.put(g.Key, g.Rev, g.V))
	})
}

// leadPromoted leads the virtual volumes of a group's primary volumes to its secondary ones, in c.
func (m *Manager) leadPromoted(ctx context.Context, c *change, g *control.Group) error {
	vvols, err := loadAll[control.Vvol](ctx, m, control.KindVvol)
	if err != nil {
		return err
	}
	for _, v := range vvols {
		for _, pair := range g.Pairs {
			if v.V.Relead(pair.Primary, pair.Secondary) {
				v.V.InFlight = ""
				c.put(v.Key, v.Rev, v.V)
				break
			}
		}
	}
	return nil
}
