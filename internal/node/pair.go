package node

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"time"

	"gantline/internal/control"
	"gantline/internal/migrate"
	"gantline/internal/record"
	"gantline/internal/volume"
)

const (
	sampleBlocks = 64               // of a pair that is said to be equal: first, last, and random ones between
	removalWait  = 3 * time.Second  // for a secondary to apply what precedes the removal
	sampleWait   = 20 * time.Second // for its answers
)

// samples are the extents by which two volumes that are said to be equal are compared; all of a small volume.
func samples(number uint16, size int64) []extent {
	blocks := (size + volume.DigestBlock - 1) / volume.DigestBlock
	chosen := []int64{0, blocks - 1}
	for len(chosen) < sampleBlocks && blocks > sampleBlocks {
		chosen = append(chosen, rand.Int64N(blocks))
	}
	for i := int64(1); i < blocks && blocks <= sampleBlocks; i++ {
		chosen = append(chosen, i)
	}
	slices.Sort(chosen)
	var all []extent
	for _, b := range slices.Compact(chosen) {
		off := b * volume.DigestBlock
		all = append(all, extent{number, off, min(volume.DigestBlock, size-off)})
	}
	return all
}

// checkPair compares samples of a pair that was added as equal, and takes it as copied if none differs. The pair is in
// the group already, so what hosts write from then on is in the stream, and each sample is exact at its sequence.
func (n *Node) checkPair(ctx context.Context, in control.PairRef) (control.PairChecked, error) {
	g, err := n.feeding(in.Name)
	if err != nil {
		return control.PairChecked{}, err
	}
	if !g.sampling.TryLock() {
		return control.PairChecked{}, refused("group %s: another pair of it is being compared: repeat the command", in.Name)
	}
	defer g.sampling.Unlock()
	g.mu.Lock()
	verifies := g.verify != nil
	g.mu.Unlock()
	rec := n.state.view().Groups[in.Name]
	if rec == nil {
		return control.PairChecked{}, notFound("group %s is not on node %s", in.Name, n.cfg.Name)
	}
	m := rec.member(in.Number)
	switch {
	case m == nil:
		return control.PairChecked{}, notFound("group %s has no volume %d at node %s", in.Name, in.Number, n.cfg.Name)
	case !m.Initial || !m.Equal:
		return control.PairChecked{}, nil // compared before, or an ordinary pair, which is copied
	case verifies:
		return control.PairChecked{}, refused("group %s is being verified: repeat the command when that has ended", in.Name)
	}
	ctx, cancel := context.WithTimeoutCause(ctx, sampleWait, fmt.Errorf("the secondary has not compared within %v", sampleWait))
	defer cancel()
	different, err := g.compare(ctx, samples(in.Number, n.volume(m.Volume).vol.Size()), func(record.Seq, int64) {})
	if err != nil {
		return control.PairChecked{}, refused("volume %s/%s could not be compared with its secondary: %v; repeat the command", n.cfg.Name, m.Volume, err)
	}
	var out control.PairChecked
	for _, e := range different {
		out.Different = append(out.Different, control.VerifyExtent{Volume: n.cfg.Name + "/" + m.Volume, Offset: e.off, Length: e.length})
	}
	if len(different) > 0 {
		return out, nil
	}
	// From here on it is a volume of which nothing is left to be copied: the copy loop says so to the secondary.
	err = g.updateMember(in.Number, func(r *memberRecord) { r.Equal, r.Marked = false, true })
	g.pokeCopy()
	return out, err
}

// removePair makes a member a lone volume again. At the primary the removal is a record of the log; At is where the
// secondary should have got to before it lets go of its own volume, 0 if it will not get there: it has left the stream. A
// secondary lets go at the end of a step, not inside one.
//
// This node's record says first that the pair is leaving, the log's blob then that the number is gone, the record last
// that it has gone: dead in between, the group is opened without it (forgetRemoved).
func (n *Node) removePair(ctx context.Context, in control.PairRef) (control.PairRemoved, error) {
	n.config.Lock()
	defer n.config.Unlock()
	d := n.state.view()
	rec := d.Groups[in.Name]
	if rec == nil || rec.Role == control.RoleRetired {
		return control.PairRemoved{}, notFound("group %s is not on node %s", in.Name, n.cfg.Name)
	}
	g, m := n.group(in.Name), rec.member(in.Number)
	if m == nil {
		if in.Gone && rec.Role == control.RoleSecondary {
			if err := g.passOver(in.Number); err != nil {
				return control.PairRemoved{}, err
			}
		}
		return g.removedAt(in.Number), nil // repeated
	}
	for id, mv := range d.Moves {
		if mv.Spec.Group.Name == in.Name && mv.Stage != migrate.Deregistered {
			return control.PairRemoved{}, refused("group %s takes part in migration %s", in.Name, id)
		}
	}
	if apart, _ := g.apart(); apart {
		return control.PairRemoved{}, refused("group %s: a node was promoted in it; its pairs stay as they are until both sides are brought "+
			"together", in.Name)
	}
	if g.que != nil {
		return control.PairRemoved{}, refused("group %s: volumes cannot leave a group with --log queue yet", in.Name)
	}
	if err := g.Err(); err != nil {
		return control.PairRemoved{}, refused("group %s has stopped at node %s: %v", in.Name, n.cfg.Name, err)
	}
	if rec.Role == control.RolePrimary && !m.Equal && g.copiesNow(rec) {
		return control.PairRemoved{}, refused("group %s: a copy is under way; remove the pair when it has ended, or suspend the group first",
			in.Name)
	}
	var payload []byte
	var err error
	if rec.Role == control.RolePrimary {
		if payload, err = json.Marshal(map[string]any{"remove": in.Number}); err != nil {
			return control.PairRemoved{}, err
		}
	} else if err := g.awaitApplied(ctx, record.Seq(in.At)); err != nil {
		return control.PairRemoved{}, err
	}
	if err := g.updateMember(in.Number, func(m *memberRecord) { m.Leaving = true }); err != nil {
		return control.PairRemoved{}, err
	}
	v := n.volume(m.Volume)
	if err := g.vg.Remove(ctx, record.VolumeNumber(in.Number), payload); err != nil && !errors.Is(err, volume.ErrUnknownVolume) {
		err = errors.Join(err, g.updateMember(in.Number, func(m *memberRecord) { m.Leaving = false }))
		return control.PairRemoved{}, fmt.Errorf("group %s: remove volume %s/%s: %w", in.Name, n.cfg.Name, m.Volume, err)
	}
	if g.sub != nil {
		g.sub.DropMap(record.VolumeNumber(in.Number))
	}
	at := g.vg.Appended() // behind the removal, and of this volume there is nothing in between
	if err := n.state.update(func(d *durable) error { d.Groups[in.Name].drop(in.Number, at); return nil }); err != nil {
		return control.PairRemoved{}, err
	}
	v.epoch.Store(0)
	if err := v.vol.SetMode(ctx, volume.ModeNormal, false); err != nil {
		return control.PairRemoved{}, err
	}
	g.forgetMap(in.Number)
	return g.removedAt(in.Number), nil
}

// passOver has a secondary pass over the records of a pair that it was never told of, and never will be.
func (g *group) passOver(number uint16) error {
	vg := g.running()
	if vg == nil {
		return refused("group %s has stopped at node %s: %v", g.name, g.n.cfg.Name, g.Err())
	}
	if err := vg.PassOver(record.VolumeNumber(number)); err != nil {
		return fmt.Errorf("group %s: remove pair %d: %w", g.name, number, err)
	}
	return nil
}

// copiesNow: blocks are being copied to the secondary, or are about to be.
func (g *group) copiesNow(rec *groupRecord) bool {
	if g.sub == nil || g.sub.State() == volume.SubSuspended {
		return false
	}
	return g.sub.State() == volume.SubResyncing || slices.ContainsFunc(rec.Members, func(m memberRecord) bool { return m.Initial && !m.Equal })
}

// removedAt is what the secondary should get to before it removes a volume too. The link may be down: it gets there when
// that is back. One that has left the stream does not.
func (g *group) removedAt(number uint16) control.PairRemoved {
	rec := g.n.state.view().Groups[g.name]
	sub, _, _ := g.feeds()
	if rec == nil || rec.Role != control.RolePrimary || sub == nil {
		return control.PairRemoved{}
	}
	at, known := rec.RemovedAt[number]
	if !known { // it left when another node was the primary
		at = g.vg.Appended()
	}
	if _, _, applied := sub.Cursor(); applied < at && sub.State() != volume.SubStreaming {
		return control.PairRemoved{}
	}
	return control.PairRemoved{At: uint64(at)}
}

// awaitApplied waits for a secondary to have what its primary had before a removal.
func (g *group) awaitApplied(ctx context.Context, at record.Seq) error {
	for end := time.Now().Add(removalWait); g.vg.Applied() < at; {
		if time.Now().After(end) || ctx.Err() != nil {
			return refused("group %s: node %s has applied %d, the pair was removed at %d: repeat the command when it has got there, "+
				"or suspend the group first if its copy may stay behind", g.name, g.n.cfg.Name, g.vg.Applied(), at)
		}
		time.Sleep(10 * time.Millisecond)
	}
	return nil
}

// drop takes a volume out that has left the log at a sequence.
func (g *groupRecord) drop(number uint16, at record.Seq) {
	if g.Role == control.RolePrimary {
		if g.RemovedAt == nil {
			g.RemovedAt = map[uint16]record.Seq{}
		}
		g.RemovedAt[number] = at
	}
	g.Members = slices.DeleteFunc(g.Members, func(m memberRecord) bool { return m.Number == number })
}

// forgetRemovals forgets where volumes have left whose pairs the manager has forgotten.
func (g *groupRecord) forgetRemovals() {
	for number := range g.RemovedAt {
		if !slices.ContainsFunc(g.Spec.Group.Pairs, func(p control.Pair) bool { return p.Number == number }) {
			delete(g.RemovedAt, number)
		}
	}
}

// forgetMap removes the changed map of a volume that has left. Its device is closed with the group: a checkpoint under way
// may still be writing to it.
func (g *group) forgetMap(number uint16) {
	g.mu.Lock()
	m, ok := g.maps[number]
	delete(g.maps, number)
	if ok {
		g.oldMaps = append(g.oldMaps, m.dev)
	}
	g.mu.Unlock()
	if !ok {
		return
	}
	if err := errors.Join(g.n.removeMap(g.n.changedPath(g.name, number))); err != nil {
		g.n.log.Warn("map not removed", "group", g.name, "number", number, "cause", err)
	}
}

// forgetRemoved takes out of the record what the log says has left the group by a command: the process died in a removal.
func (g *group) forgetRemoved(rec *groupRecord) error {
	if g.jnl == nil {
		return nil // a queue loses no volumes yet: removePair
	}
	gone, err := volume.Removed(groupLog{g.jnl})
	if err != nil {
		return err
	}
	for _, number := range gone {
		m := rec.member(uint16(number))
		if m == nil || !m.Leaving {
			continue
		}
		v := g.n.volume(m.Volume)
		at := g.jnl.Cursors().Appended // at the removal, or behind it
		if err := g.n.state.update(func(d *durable) error { d.Groups[g.name].drop(uint16(number), at); return nil }); err != nil {
			return err
		}
		rec.drop(uint16(number), at)
		if err := g.n.removeMap(g.n.changedPath(g.name, uint16(number))); err != nil {
			return err
		}
		if v == nil {
			continue
		}
		if err := v.vol.SetMode(context.Background(), volume.ModeNormal, false); err != nil {
			return err
		}
	}
	return nil
}
