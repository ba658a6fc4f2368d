package node

import (
	"context"
	"fmt"
	"slices"

	"gantline/internal/block"
	"gantline/internal/control"
	"gantline/internal/migrate"
)

// A promotion inside a move ends the move, at whatever step: source, target or manager may be gone for good. Who promotes takes the
// next epoch above those of the move; whoever of the two is alive hears that it is superseded, from the promoted node, from the answer to
// its stream, from its question at a start, or from the manager.

// movesOf lists the moves of a group that have not ended here.
func (n *Node) movesOf(group string) []string {
	var ids []string
	for id, m := range n.state.view().Moves {
		if m.Spec.Group.Name == group && m.Stage != migrate.Deregistered {
			ids = append(ids, id)
		}
	}
	slices.Sort(ids)
	return ids
}

// ousted is the primary in whose place this node is promoted: inside a move its target, once records of its reign have come.
func (g *group) ousted(rec *groupRecord) string {
	var last string
	for _, row := range slices.Backward(g.vg.Table()) {
		if last = row.Node; last != g.n.cfg.Name {
			break
		}
	}
	for _, m := range g.n.state.view().Moves {
		if m.Spec.Group.Name == g.name && m.Stage != migrate.Deregistered && m.Spec.Target == last {
			return last
		}
	}
	return rec.Spec.Group.Primary
}

// needsMoves refuses to end moves that nobody has given up.
func (p *promotion) needsMoves() (refusals []string) {
	for _, id := range p.moves {
		refusals = append(refusals, fmt.Sprintf("it takes part in migration %s: end that first (`gantline migrate abort %s` until it is decided, "+
			"`gantline migrate commit %s` once it is filled); with --force the promotion ends it, if source or target is gone for good", id, id, id))
	}
	return refusals
}

// endMoves forgets a promoted group's moves, in the write that makes this node its primary. The pairs are those of whom it replaces.
func (d *durable) endMoves(group string, p *control.Promotion) {
	g := &d.Groups[group].Spec.Group
	for id, m := range d.Moves {
		if m.Spec.Group.Name != group || m.Stage == migrate.Deregistered {
			continue
		}
		if p.From == m.Spec.Target {
			g.Primary, g.PrimaryJournal = m.Spec.Target, m.Spec.TargetJournal
			for i := range g.Pairs {
				for _, mv := range m.Spec.Volumes {
					if mv.Number == g.Pairs[i].Number {
						g.Pairs[i].Primary = mv.Target
					}
				}
			}
		}
		d.cancel(control.MigrationCancel{ID: id, Epoch: m.Spec.Group.Epoch})
	}
}

// stopMoves ends what the moves of a group run here, so that nothing of them opens a volume to hosts any more. Their records are
// still there: forgetMoves comes with the record of what ends them.
func (n *Node) stopMoves(group string) {
	for _, id := range n.movesOf(group) {
		if m, _, err := n.move(id); err == nil {
			m.stop()
		}
	}
}

// forgetMoves forgets the moves of a group that is superseded here.
func (d *durable) forgetMoves(group string) {
	for id, m := range d.Moves {
		if m.Spec.Group.Name != group || m.Stage == migrate.Deregistered {
			continue
		}
		if m.Role == control.RoleTarget && m.Stage != migrate.Filled {
			d.Groups[group].Partial = true
		}
		d.cancel(control.MigrationCancel{ID: id, Epoch: m.Spec.Group.Epoch})
	}
}

// staysClosed says where hosts of a superseded group's volumes go when the group is deleted here and they are no whole images; nil:
// they are.
func (n *Node) staysClosed(rec *groupRecord) map[string]*block.MovedError {
	if !rec.Partial || rec.Superseded == nil {
		return nil
	}
	moved := map[string]*block.MovedError{}
	for _, m := range rec.Members {
		moved[m.Volume] = n.promotedTo(rec, m.Number, *rec.Superseded)
	}
	return moved
}

// endedByPromotion ends a move in which the group's secondary was promoted. Who has served of its two nodes is superseded, and keeps
// what only it has; a target that has not holds nothing of anybody, and forgets the group. It is called under the config lock.
func (n *Node) endedByPromotion(ctx context.Context, in control.MigrationEnd) error {
	gr := n.state.view().Groups[in.By.Name]
	m, rec, err := n.move(in.ID)
	known := err == nil && (in.Epoch == 0 || in.Epoch == rec.Spec.Group.Epoch)
	switch {
	case gr != nil && gr.Role == control.RolePrimary && gr.Epoch < in.By.Epoch:
		if _, err := n.superseded(ctx, *in.By); err != nil {
			return err
		}
	case gr != nil && gr.Role == control.RoleTarget && known:
		return n.dropTargetFor(ctx, m, rec, in)
	}
	return n.state.update(func(d *durable) error { d.cancel(in.MigrationCancel); return nil })
}

// dropTargetFor has a target that never served promise that it never will, and forget the move.
func (n *Node) dropTargetFor(ctx context.Context, m *move, rec *migrate.Record, in control.MigrationEnd) error {
	if t := m.target.Load(); t != nil {
		if err := t.Abort(); err != nil {
			return refused("%v", err)
		}
		m.stop() // it may be about to relay again
		err := t.Update(func(r *migrate.Record) {
			if r.Stage == migrate.Refused { // whether the source goes on is nothing to wait for any more
				r.Stage, r.Returned = migrate.Returned, true
			}
		})
		if err != nil {
			return err
		}
	}
	gr := n.state.view().Groups[rec.Spec.Group.Name]
	moved := map[string]*block.MovedError{}
	for _, mv := range rec.Spec.Volumes {
		_, local := splitName(mv.Target)
		moved[local] = n.promotedTo(gr, mv.Number, *in.By)
	}
	return n.cancelTarget(ctx, m, n.state.view().Moves[in.ID], in.MigrationCancel, moved)
}
