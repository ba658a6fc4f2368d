package manager

import (
	"context"
	"slices"
	"time"

	"gantline/internal/control"
)

// volumeResize makes a volume larger, and if it is one of a pair both: the secondary's first, so that nothing that is written
// behind the old end ever finds it too small. Each node is asked whether it can before one of them does it. What a node has
// done is stored before the next is asked, and virtual volumes are shown at the new size last. A command that was cut short
// is finished by its repetition: nodes that have the size say so. A secondary's volume may be larger than the primary's, which
// could not follow it: it stays as it is.
func (m *Manager) volumeResize(ctx context.Context, full string, in control.VolumeResizeRequest) error {
	if _, _, err := control.SplitOwned("volume", full); err != nil {
		return err
	}
	if err := checkSize("volume", full, in.Size, 4096); err != nil {
		return err
	}
	v, err := load[control.Volume](ctx, m, control.KindVolume, full)
	if err != nil {
		return err
	}
	keys := []string{"owned/" + full}
	if v.V.Group != "" {
		keys = append(keys, "group/"+v.V.Group)
	}
	unlock, err := m.locks.lock(ctx, keys...)
	if err != nil {
		return err
	}
	defer unlock()
	ends, err := m.resizeEnds(ctx, full, v.V.Group)
	if err != nil {
		return err
	}
	limit := callTimeout
	for _, e := range ends {
		was, err := load[control.Volume](ctx, m, control.KindVolume, e.volume)
		if err != nil {
			return err
		}
		if in.Size < was.V.Size && e.role != control.RoleSecondary {
			return control.Errorf(control.KindRefused, "volume %s has %d bytes and cannot be made smaller: what hosts keep behind %d would "+
				"be lost; make a new volume and copy what is needed", e.volume, was.V.Size, in.Size)
		}
		limit = max(limit, callTimeout+time.Duration((in.Size-was.V.Size)/slowestDisk)*time.Second)
	}
	for _, e := range ends {
		if err := m.nodes.call(ctx, e.node(), control.CallVolumeResize, e.ask(in.Size, true), nil, callTimeout); err != nil {
			return err
		}
	}
	rev := uint64(0)
	for _, e := range ends {
		var now control.VolumeStatus // nothing in a dry run
		if err := m.do(ctx, e.node(), control.CallVolumeResize, e.volume, e.ask(in.Size, false), &now, limit); err != nil {
			return err
		}
		m.point(control.PointGrow, "before")
		if rev, err = attempt(ctx, func() (uint64, error) { return m.noteResized(ctx, e, max(in.Size, now.Size)) }); err != nil {
			return err
		}
		m.point(control.PointGrow, "after")
	}
	m.point(control.PointResize, "before")
	m.inForce(ctx, rev, "volume/"+full)
	m.point(control.PointResize, "after")
	return nil
}

// resizeEnd is a volume that grows, and what it is in its group; "" in none.
type resizeEnd struct{ volume, group, role string }

func (e resizeEnd) node() string { return control.NodeOf(e.volume) }

func (e resizeEnd) ask(size int64, check bool) control.VolumeResize {
	return control.VolumeResize{Name: control.BaseOf(e.volume), Size: size, Group: e.group, Role: e.role, Check: check}
}

// resizeEnds lists what has to grow, in order.
func (m *Manager) resizeEnds(ctx context.Context, full, group string) ([]resizeEnd, error) {
	v, err := load[control.Volume](ctx, m, control.KindVolume, full)
	if err != nil {
		return nil, err
	}
	if v.V.Group != group {
		return nil, control.Errorf(control.KindRefused, "volume %s has joined or left a group just now: repeat the command", full)
	}
	if group == "" {
		return []resizeEnd{{full, "", control.RoleLone}}, nil
	}
	if err := m.quiet(ctx, group, "volume "+full); err != nil {
		return nil, err
	}
	g, err := load[control.Group](ctx, m, control.KindGroup, group)
	if err != nil {
		return nil, err
	}
	if g.V.Lone != "" {
		return nil, control.Errorf(control.KindRefused, "volume %s is in %s: commit that first", full, inGroup(group))
	}
	if g.V.Promotion != nil {
		return nil, control.Errorf(control.KindRefused, "volume %s: group %s has no secondary since %s was promoted, and its pairs must stay as "+
			"they are until they are copied anew", full, group, g.V.Primary)
	}
	i := slices.IndexFunc(g.V.Pairs, func(p control.Pair) bool { return p.Primary == full || p.Secondary == full })
	switch {
	case i < 0:
		return nil, control.Errorf(control.KindRefused, "volume %s is not in a pair of group %s, which has it in hand: it is a volume of a "+
			"migration; `gantline migrate commit` or `abort` it first", full, group)
	case g.V.Pairs[i].Removing:
		return nil, control.Errorf(control.KindRefused, "volume %s: its pair is being removed: repeat `gantline pair remove` first", full)
	}
	p := g.V.Pairs[i]
	return []resizeEnd{{p.Secondary, group, control.RoleSecondary}, {p.Primary, group, control.RolePrimary}}, nil
}

// noteResized stores that a volume has grown, with what shows it to hosts, and returns the revision at which that was stored.
func (m *Manager) noteResized(ctx context.Context, e resizeEnd, size int64) (uint64, error) {
	c := m.change()
	changed := false
	v, err := load[control.Volume](ctx, m, control.KindVolume, e.volume)
	if err != nil {
		return 0, err
	}
	was := v.V.Size
	if was != size {
		v.V.Size, changed = size, true
		c.put(v.Key, v.Rev, v.V)
	}
	vvols, err := loadAll[control.Vvol](ctx, m, control.KindVvol)
	if err != nil {
		return 0, err
	}
	for _, vv := range vvols {
		if vv.V.Volume == e.volume && vv.V.Size != size { // a gateway that leads it to a smaller volume serves it no more
			vv.V.Size, changed = size, true
			c.put(vv.Key, vv.Rev, vv.V)
		}
	}
	if e.role == control.RolePrimary {
		g, err := load[control.Group](ctx, m, control.KindGroup, e.group)
		if err != nil {
			return 0, err
		}
		for i := range g.V.Pairs {
			if p := &g.V.Pairs[i]; p.Primary == e.volume && p.Size != size {
				p.Size, changed = size, true
				g.V.Revision++
				c.put(g.Key, g.Rev, g.V)
			}
		}
	}
	if !changed {
		return v.Rev, nil // by an earlier try; gateways may not have it yet
	}
	return m.commit(ctx, c.event("volume/"+e.volume, "resized", "command", "volume %s grown from %d to %d bytes; hosts see it when they "+
		"connect anew", e.volume, was, size))
}
