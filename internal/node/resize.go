package node

import (
	"context"
	"errors"
	"fmt"
	"time"

	"gantline/internal/block"
	"gantline/internal/control"
	"gantline/internal/migrate"
	"gantline/internal/record"
	"gantline/internal/volume"
)

// resizeVolume makes a volume larger while hosts go on. What is on disk, step by step, and what a start then finds:
//
//	record: growing to S          the old size; the device may have S
//	device has S, zeros behind    the same
//	record: size S                the new size; maps are made as long when they are opened
//	a primary's log: member       the same; a start appends it, again if it is not sure: tellSizes
//	record: not growing           done
//
// A secondary's volume, and a lone one, is done with its record. The secondary's must have grown before this is asked of the
// primary: then no record that lies behind the old end ever finds it too small, in whatever way it gets there, in the stream
// or in a step. Until the primary's has grown, what is new at the secondary is zeros that nobody writes.
//
// A log that is full of what the secondary lacks is waited for a while, with the configuration free.
func (n *Node) resizeVolume(ctx context.Context, in control.VolumeResize) (control.VolumeStatus, error) {
	ahead, err := n.clearAhead(in)
	if err != nil {
		return control.VolumeStatus{}, fmt.Errorf("volume %s/%s: growing to %d bytes: %w", n.cfg.Name, in.Name, in.Size, err)
	}
	end := time.Now().Add(resizePatience)
	for {
		st, err := n.tryResize(in, ahead)
		if !errors.Is(err, volume.ErrHeldBack) || time.Now().After(end) {
			return st, err
		}
		select {
		case <-ctx.Done():
			return st, err
		case <-time.After(resizeLook):
		}
	}
}

const (
	resizePatience = 3 * time.Second
	resizeLook     = 50 * time.Millisecond
	tellSizesAgain = time.Second
)

// cleared is a range of a device that has been made zeros, from one byte to another.
type cleared struct{ from, to int64 }

// clearAhead makes zeros of what a raw device has behind the end of a volume that is about to grow into it. That may take long, so the
// configuration is free meanwhile: nobody uses what is cleared, and the volume is neither deleted nor grown by anybody else.
func (n *Node) clearAhead(in control.VolumeResize) (cleared, error) {
	check := in
	check.Check = true
	n.config.Lock()
	rec, v := n.state.view().Volumes[in.Name], n.volume(in.Name)
	_, err := n.tryResizeLocked(check, cleared{})
	if err != nil || in.Check || !isRaw(v.dev) || rec.Size >= in.Size { // refused: tryResize says so
		n.config.Unlock()
		return cleared{}, nil
	}
	if n.clearing == nil {
		n.clearing = map[string]bool{}
	}
	n.clearing[in.Name] = true
	n.config.Unlock()
	if err = v.dev.Trim(rec.Size, in.Size-rec.Size); err == nil {
		err = v.dev.Flush()
	}
	n.config.Lock()
	defer n.config.Unlock()
	delete(n.clearing, in.Name)
	return cleared{rec.Size, in.Size}, err
}

func (n *Node) tryResize(in control.VolumeResize, ahead cleared) (control.VolumeStatus, error) {
	n.config.Lock()
	defer n.config.Unlock()
	return n.tryResizeLocked(in, ahead)
}

func (n *Node) tryResizeLocked(in control.VolumeResize, ahead cleared) (control.VolumeStatus, error) {
	full := n.cfg.Name + "/" + in.Name
	d := n.state.view()
	rec, v := d.Volumes[in.Name], n.volume(in.Name)
	if rec != nil && in.Role == control.RoleSecondary {
		in.Size = max(in.Size, rec.Size) // larger already: what its primary could not follow
	}
	switch {
	case rec == nil:
		return control.VolumeStatus{}, notFound("volume %s does not exist", full)
	case v == nil:
		return control.VolumeStatus{}, refused("volume %s could not be opened: %v; mend or replace %s and restart the node", full,
			n.brokenCause(in.Name), rec.Device)
	case n.clearing[in.Name]:
		return control.VolumeStatus{}, refused("volume %s is being grown: repeat the command when that has ended", full)
	case in.Size < minVolume || in.Size > maxVolume || in.Size%512 != 0:
		return control.VolumeStatus{}, invalid("volume %s: size %d bytes must be a multiple of 512 from %d to %d", full, in.Size,
			minVolume, int64(maxVolume))
	case in.Size < rec.Size:
		return control.VolumeStatus{}, refused("volume %s has %d bytes and cannot be made smaller: what hosts keep behind %d would be lost; "+
			"make a new volume and copy what is needed", full, rec.Size, in.Size)
	case in.Size < rec.Growing:
		return control.VolumeStatus{}, refused("volume %s: a growth to %d bytes was begun and cut short: give that size, or a larger one",
			full, rec.Growing)
	}
	number, err := n.mayResize(d, full, in)
	if err != nil {
		return control.VolumeStatus{}, err
	}
	if err := n.canHold(v, full, in.Size); err != nil || in.Check {
		if err != nil {
			return control.VolumeStatus{}, err
		}
		return n.volumeStatus(in.Name)
	}
	if err := n.growVolume(rec, v, in, ahead); err != nil {
		return control.VolumeStatus{}, fmt.Errorf("volume %s: growing to %d bytes: %w", full, in.Size, err)
	}
	if err := n.showSize(v, number, in); err != nil {
		return control.VolumeStatus{}, fmt.Errorf("volume %s: %d bytes are recorded here and not in force yet: %w; repeat the command", full,
			in.Size, err)
	}
	return n.volumeStatus(in.Name)
}

// mayResize says whether the volume is what the manager takes it for, and nothing else has it in hand. It returns the
// volume's number in its group.
func (n *Node) mayResize(d *durable, full string, in control.VolumeResize) (uint16, error) {
	if to := d.Volumes[in.Name].Moved; to != nil {
		return 0, refused("volume %s was given up by a move: node %s serves what it held", full, to.Node)
	}
	owner, role, number := d.owner(in.Name), control.RoleLone, uint16(0)
	if owner != "" {
		role = d.Groups[owner].Role
		for _, m := range d.Groups[owner].Members {
			if m.Volume == in.Name {
				number = m.Number
			}
		}
	}
	if owner != in.Group || role != in.Role {
		return 0, refused("volume %s is %s here (group %q), not %s (group %q): look at `gantline volume show %s`", full, role, owner,
			in.Role, in.Group, full)
	}
	for id, mv := range d.Moves {
		if owner != "" && mv.Spec.Group.Name == owner && mv.Stage != migrate.Deregistered {
			return 0, refused("volume %s: group %s takes part in migration %s; resize it when that has been committed", full, owner, id)
		}
	}
	if owner == "" {
		if user := d.userOf(in.Name); user != "" {
			return 0, refused("volume %s is in use by %s", full, user)
		}
		return 0, nil
	}
	if bitsFor(in.Size, markSize) > block.MaxBits {
		return 0, refused("volume %s: %d bytes are more than a volume of a group can have, %d", full, in.Size, block.MaxBits*markSize)
	}
	if role == control.RoleSecondary {
		return number, nil // one that has failed may have failed for want of the size
	}
	g := n.group(owner)
	if g == nil {
		return 0, refused("group %s is not open on node %s", owner, n.cfg.Name)
	}
	if err := g.serving(); err != nil {
		return 0, refused("group %s: %v", owner, err)
	}
	if !g.has(number) {
		return 0, refused("volume %s is not in group %s yet: repeat `gantline pair add`", full, owner)
	}
	return number, nil
}

// canHold asks whether the device below can have the size. Of a file that is known only when it is tried.
func (n *Node) canHold(v *nodeVolume, full string, size int64) error {
	dev, ok := v.dev.(block.Grower)
	switch {
	case !ok:
		return refused("volume %s: its device cannot grow", full)
	case !isRaw(v.dev):
		return nil
	}
	if err := dev.Grow(size); err != nil { // changes nothing: the device is asked how large it is
		return refused("volume %s: %v", full, err)
	}
	return nil
}

func isRaw(dev block.Device) bool {
	r, ok := dev.(interface{ Raw() bool })
	return ok && r.Raw()
}

// fitsRecord says whether a device is the one that a volume was recorded with. A raw device may have been made larger since,
// to be grown into; a file has a size that it was given here, maybe by an earlier growth than the last that was cut short.
func fitsRecord(dev block.Device, rec *volumeRecord) bool {
	return dev.Size() == rec.Size || dev.Size() > rec.Size && (dev.Size() <= rec.Growing || isRaw(dev))
}

// growVolume makes the device larger, with zeros behind the old end, and then the record. What is in ahead has them already.
func (n *Node) growVolume(rec *volumeRecord, v *nodeVolume, in control.VolumeResize, ahead cleared) error {
	if rec.Size == in.Size {
		return nil
	}
	note := func(size, growing int64) error {
		return n.state.update(func(d *durable) error {
			r := *d.Volumes[in.Name]
			r.Size, r.Growing = size, growing
			d.Volumes[in.Name] = &r
			return nil
		})
	}
	if err := note(rec.Size, in.Size); err != nil {
		return err
	}
	n.cfg.Point(control.PointGrow, "before")
	if err := v.dev.(block.Grower).Grow(in.Size); err != nil {
		if !errors.Is(err, block.ErrUnsure) { // it has changed nothing; an earlier growth may still be on its way into the log
			err = errors.Join(err, note(rec.Size, rec.Growing))
		}
		return err
	}
	// A file that grows has a hole there. What a raw device has there is anybody's, and it must be the same on both sides.
	if ahead != (cleared{rec.Size, in.Size}) {
		if err := v.dev.Trim(rec.Size, in.Size-rec.Size); err != nil {
			return err
		}
	}
	if err := v.dev.Flush(); err != nil {
		return err
	}
	n.cfg.Point(control.PointGrow, "after")
	growing := int64(0)
	if in.Role == control.RolePrimary {
		growing = in.Size
	}
	return note(in.Size, growing)
}

// showSize puts the recorded size in force.
func (n *Node) showSize(v *nodeVolume, number uint16, in control.VolumeResize) error {
	n.cfg.Point(control.PointResize, "before")
	if in.Role != control.RolePrimary {
		if err := v.vol.Extend(in.Size); err != nil {
			return err
		}
		n.cfg.Point(control.PointResize, "after")
		return nil
	}
	if n.state.view().Volumes[in.Name].Growing == 0 && v.vol.Size() >= in.Size {
		return nil // repeated
	}
	g := n.group(in.Group)
	g.mu.Lock()
	vg := g.vg
	g.mu.Unlock()
	if vg == nil {
		return fmt.Errorf("group %s is being closed", in.Group)
	}
	if err := vg.Resize(record.VolumeNumber(number), in.Size); err != nil {
		return err
	}
	n.cfg.Point(control.PointResize, "after")
	return n.grown(in.Name, in.Size)
}

// grown notes that the log of the group has the record of a volume's size.
func (n *Node) grown(name string, size int64) error {
	return n.state.update(func(d *durable) error {
		if d.Volumes[name] == nil || d.Volumes[name].Growing != size {
			return nil // deleted, or growing on
		}
		r := *d.Volumes[name]
		r.Growing = 0
		d.Volumes[name] = &r
		return nil
	})
}

// tellSizes appends the record of each resize that this node died in, before hosts are served: they will be shown the
// recorded size. A log that has no room is no reason not to serve it: the secondary's volume had grown before that size was
// recorded here, and if it has been put back since, it stops at a write that it has no place for, as it would at the record.
func (g *group) tellSizes() {
	if err := g.appendSizes(); err != nil {
		g.n.log.Warn("finishing a resize waits", "group", g.name, "cause", err)
		g.run.begin(func() { g.tellSizesLater(g.run.ctx) })
	}
}

func (g *group) tellSizesLater(ctx context.Context) {
	tick := time.NewTicker(tellSizesAgain)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		if g.appendSizes() == nil {
			return
		}
	}
}

func (g *group) appendSizes() error {
	vg := g.running()
	if vg == nil || vg.Role() != volume.RoleServing {
		return nil // sealed: no move begins before the record is there
	}
	d := g.n.state.view()
	for _, m := range g.members() {
		v := d.Volumes[m.Volume]
		if v == nil || v.Growing == 0 {
			continue
		}
		if err := vg.Resize(record.VolumeNumber(m.Number), v.Size); err != nil {
			return err
		}
		if v.Growing != v.Size {
			continue // another has been begun behind it, and waits for the command to be repeated
		}
		if err := g.n.grown(m.Volume, v.Size); err != nil {
			return err
		}
		g.n.log.Info("resize finished after a restart", "group", g.name, "volume", m.Volume, "bytes", v.Size)
	}
	return nil
}
