package manager

import (
	"context"

	"gantline/internal/control"
)

// nodeRemove forgets a node that is down. What the node still has in groups or under virtual volumes must go first; with
// forget, its other volumes and journals are forgotten with it, and another data directory may take the name.
func (m *Manager) nodeRemove(ctx context.Context, name string, forget bool) error {
	_, err := attempt(ctx, func() (struct{}, error) {
		n, err := load[control.Node](ctx, m, control.KindNode, name)
		if err != nil {
			return struct{}{}, err
		}
		if m.presence.nodeUp(name) {
			return struct{}{}, control.Errorf(control.KindRefused, "node %s is up: stop its process first", name)
		}
		c := m.change().del(n.Key, n.Rev)
		if err := m.nodeObjects(ctx, c, name, forget); err != nil {
			return struct{}{}, err
		}
		_, err = m.commit(ctx, c.event("node/"+name, "removed", "command", "node %s removed", name))
		return struct{}{}, err
	})
	if err == nil && planOf(ctx) == nil {
		m.presence.forget(name)
	}
	return err
}

func (m *Manager) nodeObjects(ctx context.Context, c *change, name string, forget bool) error {
	groups, err := loadAll[control.Group](ctx, m, control.KindGroup)
	if err != nil {
		return err
	}
	for _, g := range groups {
		if g.V.Primary == name || g.V.Secondary == name {
			return control.Errorf(control.KindRefused, "node %s is in use by group %s; delete or move the group first", name, g.V.Name)
		}
	}
	volumes, err := loadAll[control.Volume](ctx, m, control.KindVolume)
	if err != nil {
		return err
	}
	for _, v := range volumes {
		if v.V.Node != name {
			continue
		}
		full := v.V.Node + "/" + v.V.Name
		vvols, err := m.vvolsOf(ctx, full)
		switch {
		case err != nil:
			return err
		case v.V.Group != "":
			return control.Errorf(control.KindRefused, "node %s is in use: volume %s is in group %s", name, full, v.V.Group)
		case len(vvols) > 0:
			return control.Errorf(control.KindRefused, "node %s is in use: virtual volume %s leads to %s", name, vvols[0], full)
		case !forget:
			return control.Errorf(control.KindRefused, "node %s has volume %s; delete it, or use --forget", name, full)
		}
		c.del(v.Key, v.Rev)
	}
	journals, err := loadAll[control.Journal](ctx, m, control.KindJournal)
	if err != nil {
		return err
	}
	for _, j := range journals {
		if j.V.Node != name {
			continue
		}
		if j.V.Group != "" || !forget {
			return control.Errorf(control.KindRefused, "node %s has journal %s/%s; delete it, or use --forget", name, name, j.V.Name)
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
