package node

import (
	"fmt"

	"gantline/internal/control"
)

// A volume in no group moves in a group without a secondary, which the manager makes for the move at the source and ends where the
// volume is served when the move is over. Its log is in memory: neither node needs a journal.

// loneRefusals says what keeps this node from being the source of a lone volume's move, before the group for it is made.
func (n *Node) loneRefusals(spec control.MigrationSpec) []string {
	d := n.state.view()
	bad := d.growing(spec.Volumes)
	add := func(format string, args ...any) { bad = append(bad, fmt.Sprintf(format, args...)) }
	for _, mv := range spec.Volumes {
		_, name := splitName(mv.Source)
		switch v := d.Volumes[name]; {
		case v == nil:
			add("volume %s does not exist", mv.Source)
		case d.userOf(name) != "":
			add("volume %s is in use by %s", mv.Source, d.userOf(name))
		case v.Moved != nil:
			add("volume %s was given up by a move", mv.Source)
		case n.volume(name) == nil:
			add("volume %s could not be opened", mv.Source)
		}
	}
	if len(d.Groups) >= maxGroups {
		add("node %s has %d groups, the most it takes", n.cfg.Name, len(d.Groups))
	}
	return bad
}

// ungroup forgets the moves for which a group was made, with the group; what is still on its way for them is refused. It returns
// their ids.
func (d *durable) ungroup(rec *groupRecord) (over []string) {
	if rec.Spec.Group.Lone == "" {
		return nil
	}
	for id, m := range d.Moves {
		if m.Spec.Group.Name == rec.Spec.Group.Name {
			over = append(over, id)
		}
	}
	for _, id := range over {
		for _, m := range rec.Members {
			if v := d.Volumes[m.Volume]; v != nil && d.Moves[id].Role == control.RoleTarget {
				v.Arrived = id
			}
		}
		d.cancel(control.MigrationCancel{ID: id, Epoch: d.Moves[id].Spec.Group.Epoch})
	}
	return over
}

// ungrouped: the move that a group is said to be made for is over here, and this is a late word of it. A move has the epochs from its
// first on to the second behind.
func (d *durable) ungrouped(g *control.Group) bool {
	if g.Lone == "" {
		return false
	}
	for _, c := range d.Cancelled {
		if c.ID == g.MoveID() && g.Epoch >= c.Epoch && g.Epoch <= c.Epoch+2 {
			return true
		}
	}
	return false
}
