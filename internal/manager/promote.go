package manager

import (
	"context"
	"strings"
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
	} else if err := m.quiet(ctx, name, "group "+name); err != nil && !in.Force { // by force it ends the move
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
	ended := ""
	rev, err := attempt(ctx, func() (uint64, error) {
		g, err := load[control.Group](ctx, m, control.KindGroup, group)
		if err != nil {
			return 0, err
		}
		mg, moving, err := m.latestMove(ctx, group)
		if err != nil {
			return 0, err
		}
		moving = moving && !control.Ended(mg.V.Phase)
		of := g.V.Primary == p.From || moving && (mg.V.Source == p.From || mg.V.Target == p.From)
		if g.V.Secondary != node || !of || p.Epoch <= g.V.Epoch {
			return 0, nil
		}
		c := m.change()
		leads := map[string]string{}
		if moving {
			if err := m.endByPromotion(ctx, c, mg, &g.V, node, p, leads); err != nil {
				return 0, err
			}
		}
		if err := m.leadPromoted(ctx, c, &g.V, leads); err != nil {
			return 0, err
		}
		g.V.Promoted(p)
		g.V.Suspended = false
		g.V.Revision++
		c.event("group/"+group, "promoted", "promotion of "+node, "group %s: %s was promoted in epoch %d behind record %d in the place of %s; "+
			"hosts are led there", group, node, p.Epoch, p.Cut, p.From)
		if moving {
			ended = mg.V.ID
		}
		return m.commit(ctx, c.put(g.Key, g.Rev, g.V))
	})
	if err == nil && ended != "" {
		m.moves.kick(ctx, ended) // its two nodes are to be told
	}
	return rev, err
}

// endByPromotion ends a move in which the group's secondary was promoted, in c: the group's old primary is whom the promoted node has
// followed last, and the other side of the move has no part in it any more. Both are told once they can be reached. leads gets the
// volumes of both sides with those that serve now.
func (m *Manager) endByPromotion(ctx context.Context, c *change, mg got[control.Migration], g *control.Group, node string,
	p *control.Promotion, leads map[string]string) error {
	v := &mg.V
	ownGroup(g, v, p.From == v.Target, g.Epoch)
	left, err := m.freeSide(ctx, c, v, p.From == v.Source, false)
	if err != nil {
		return err
	}
	for _, pair := range g.Pairs {
		for _, mv := range v.Volumes {
			if mv.Number == pair.Number {
				leads[mv.Source], leads[mv.Target] = pair.Secondary, pair.Secondary
			}
		}
	}
	v.Error = "its secondary " + node + " was promoted meanwhile, and serves"
	if len(left) > 0 {
		v.Error += "; made for the move and left: " + strings.Join(left, ", ")
	}
	v.Phase, v.VvolsMoved = control.PhaseFailed, false
	v.Promoted = &control.Reign{Name: g.Name, Node: node, Epoch: p.Epoch, Cut: p.Cut}
	v.Undo = []string{undoEntry(control.CallMigrateCancel, v.Target), undoEntry(control.CallMigrateCancel, v.Source)}
	c.put(mg.Key, mg.Rev, v).event("migration/"+v.ID, control.PhaseFailed, "promotion of "+node, "move of group %s from %s to %s: %s", v.Group,
		v.Source, v.Target, v.Error)
	return nil
}

// leadPromoted leads the virtual volumes of a group's primary volumes to its secondary ones, in c, and those of others as leads says.
func (m *Manager) leadPromoted(ctx context.Context, c *change, g *control.Group, leads map[string]string) error {
	vvols, err := loadAll[control.Vvol](ctx, m, control.KindVvol)
	if err != nil {
		return err
	}
	for _, pair := range g.Pairs {
		leads[pair.Primary] = pair.Secondary
	}
	for _, v := range vvols {
		led := false
		for from, to := range leads {
			led = v.V.Relead(from, to) || led
		}
		if led {
			v.V.InFlight = ""
			c.put(v.Key, v.Rev, v.V)
		}
	}
	return nil
}
