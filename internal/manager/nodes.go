package manager

import (
	"context"
	"fmt"
	"strings"
	"time"

	"gantline/internal/control"
)

// forgotten is what the store keeps of an installation that was given up with what it had. It is told when it comes back, and
// is never a node again: what it holds is of the past.
type forgotten struct {
	Node    string    `json:"node"`
	Install string    `json:"install"`
	At      time.Time `json:"at"`
	Groups  []string  `json:"groups"`
	Volumes []string  `json:"volumes"`
}

func (f *forgotten) String() string {
	text := fmt.Sprintf("this data directory was given up at %s (`gantline node remove %s --forget`)", f.At.Format(time.RFC3339), f.Node)
	if len(f.Groups) > 0 {
		text += fmt.Sprintf(", with its part in groups %s", strings.Join(f.Groups, ", "))
	}
	if len(f.Volumes) > 0 {
		text += fmt.Sprintf(", with volumes %s", strings.Join(f.Volumes, ", "))
	}
	return text + ". What it holds is untouched, and of the past: nothing leads there. Take from its volumes what is missed, and start the node " +
		"with an empty data directory"
}

// nodeRemove forgets a node that is down. What the node still has in groups or under virtual volumes must go first. With
// forget it is gone for good: what the store knows of it is forgotten with it, another data directory may take the name, and the old
// one is refused when it comes back. A group goes on without it, until `group delete`, which then asks it for nothing.
func (m *Manager) nodeRemove(ctx context.Context, name string, forget, loss bool) error {
	if loss && !forget {
		return control.Errorf(control.KindUsage, "accept_loss goes with forget")
	}
	var moves []string
	_, err := attempt(ctx, func() (struct{}, error) {
		moves = nil
		n, err := load[control.Node](ctx, m, control.KindNode, name)
		if err != nil {
			return struct{}{}, err
		}
		if m.presence.nodeUp(name) {
			return struct{}{}, control.Errorf(control.KindRefused, "node %s is up: stop its process first", name)
		}
		f := &forgotten{Node: name, Install: n.V.Install, At: time.Now().UTC(), Groups: []string{}, Volumes: []string{}}
		c := m.change().del(n.Key, n.Rev)
		way := &lostNode{forgotten: f, forget: forget, loss: loss, led: map[string]bool{}}
		if err := m.nodeGroups(ctx, c, way); err != nil {
			return struct{}{}, err
		}
		moves = way.moves
		if err := m.nodeObjects(ctx, c, way); err != nil {
			return struct{}{}, err
		}
		if len(f.Groups)+len(f.Volumes) > 0 {
			if err := m.room(ctx, control.KindForgotten); err != nil {
				return struct{}{}, err
			}
			old, _, err := find[forgotten](ctx, m, control.KindForgotten, f.Install)
			if err != nil {
				return struct{}{}, err
			}
			c.put(old.Key, old.Rev, f)
		}
		_, err = m.commit(ctx, c.event("node/"+name, "removed", "command", "node %s removed%s", name,
			map[bool]string{true: ": " + f.String()}[len(f.Groups)+len(f.Volumes) > 0]))
		return struct{}{}, err
	})
	if err == nil && planOf(ctx) == nil {
		m.presence.forget(name)
		for _, id := range moves {
			m.moves.kick(ctx, id)
		}
	}
	return err
}

// lostNode is what goes with a node that is removed.
type lostNode struct {
	*forgotten
	forget, loss bool
	moves        []string        // that go on otherwise
	led          map[string]bool // volumes whose virtual volumes are led elsewhere by that
}

// nodeGroups looks at the groups and moves that need the node. What a node that is gone for good keeps from its end has its own way
// out, which comes first.
func (m *Manager) nodeGroups(ctx context.Context, c *change, f *lostNode) error {
	groups, err := loadAll[control.Group](ctx, m, control.KindGroup)
	if err != nil {
		return err
	}
	for _, g := range groups {
		if mg, exists, err := m.latestMove(ctx, g.V.Name); err != nil {
			return err
		} else if exists && !control.Ended(mg.V.Phase) && (mg.V.Source == f.Node || mg.V.Target == f.Node) {
			if g.V.CopiesTo() == "" {
				done, err := m.loseUncopied(ctx, c, f, mg, g)
				if err != nil {
					return err
				}
				if done {
					continue
				}
			} else if !f.forget || mg.V.Phase != control.PhaseFilled || mg.V.Source != f.Node {
				return control.Errorf(control.KindRefused, "node %s is in use by migration %s (phase %q): end that first: `gantline migrate abort "+
					"%s` until it is decided, if the source is there; else `gantline group promote %s --force`", f.Node, mg.V.ID, mg.V.Phase, mg.V.ID,
					g.V.Name)
			}
			c.hold(mg.Key, mg.Rev) // the source of a filled move: the target has all
			f.Groups = append(f.Groups, g.V.Name)
		}
		switch {
		case g.V.Primary != f.Node && g.V.Secondary != f.Node:
			continue
		case !f.forget:
			return control.Errorf(control.KindRefused, "node %s is in use by group %s; delete or move the group first, or, if the node is gone for "+
				"good, use --forget, and then delete the group", f.Node, g.V.Name)
		}
		c.hold(g.Key, g.Rev)
		f.Groups = append(f.Groups, g.V.Name)
	}
	return nil
}

func (m *Manager) nodeObjects(ctx context.Context, c *change, f *lostNode) error {
	volumes, err := loadAll[control.Volume](ctx, m, control.KindVolume)
	if err != nil {
		return err
	}
	for _, v := range volumes {
		if v.V.Node != f.Node {
			continue
		}
		full := v.V.Node + "/" + v.V.Name
		vvols, err := m.vvolsOf(ctx, full)
		switch {
		case err != nil:
			return err
		case len(vvols) > 0 && !f.led[full]:
			return control.Errorf(control.KindRefused, "node %s is in use: virtual volume %s leads to %s; promote the secondary of its group, or "+
				"delete the virtual volume", f.Node, vvols[0], full)
		case !f.forget && v.V.Group != "":
			return control.Errorf(control.KindRefused, "node %s is in use: volume %s is in group %s", f.Node, full, v.V.Group)
		case !f.forget:
			return control.Errorf(control.KindRefused, "node %s has volume %s; delete it, or use --forget", f.Node, full)
		}
		c.del(v.Key, v.Rev)
		f.Volumes = append(f.Volumes, v.V.Name)
	}
	journals, err := loadAll[control.Journal](ctx, m, control.KindJournal)
	if err != nil {
		return err
	}
	for _, j := range journals {
		if j.V.Node != f.Node {
			continue
		}
		if !f.forget {
			return control.Errorf(control.KindRefused, "node %s has journal %s/%s; delete it, or use --forget", f.Node, f.Node, j.V.Name)
		}
		c.del(j.Key, j.Rev)
	}
	return nil
}

func (m *Manager) gatewayRemove(ctx context.Context, name string) error {
	g, err := load[control.Gateway](ctx, m, control.KindGateway, name)
	if err != nil {
		return err
	}
	if m.presence.gatewayUp(name) {
		return control.Errorf(control.KindRefused, "gateway %s is up: stop its process first", name)
	}
	c := m.change().del(g.Key, g.Rev)
	vvols, err := loadAll[control.Vvol](ctx, m, control.KindVvol)
	if err != nil {
		return err
	}
	for _, v := range vvols {
		if v.V.Lead(v.V.Volume, name) {
			c.put(v.Key, v.Rev, v.V)
		}
	}
	_, err = m.commit(ctx, c.event("gateway/"+name, "removed", "command", "gateway %s removed", name))
	if err == nil && planOf(ctx) == nil {
		m.presence.forget(name)
	}
	return err
}
