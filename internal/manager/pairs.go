package manager

import (
	"context"
	"slices"
	"time"

	"gantline/internal/control"
)

// checkWait is for the samples of a pair that is said to be equal.
const checkWait = 30 * time.Second

// checkPair has the primary compare samples of a pair that is said to be equal. One that differs is taken out again.
func (m *Manager) checkPair(ctx context.Context, g *control.Group, in control.PairRequest) error {
	i := slices.IndexFunc(g.Pairs, func(p control.Pair) bool { return p.Primary == in.Primary })
	if i < 0 || !g.Pairs[i].AssumeEqual {
		return nil // an ordinary pair of an earlier command: it is copied
	}
	var st control.PairChecked
	ref := control.PairRef{Name: g.Name, Number: g.Pairs[i].Number}
	if err := m.do(ctx, g.Primary, control.CallPairCheck, in.Primary, ref, &st, checkWait); err != nil || len(st.Different) == 0 {
		return err
	}
	if err := m.unpair(ctx, g.Name, in.Primary); err != nil {
		return control.Errorf(control.KindRefused, "pair %s to %s: they differ, from byte %d on at the latest, and the pair could not be taken "+
			"back: %v; run `gantline pair remove %s %s`", in.Primary, in.Secondary, st.Different[0].Offset, err, g.Name, in.Primary)
	}
	return control.Errorf(control.KindRefused, "pair %s to %s: they differ, from byte %d on at the latest; the pair was taken back: add it "+
		"without --assume-equal, and it is copied", in.Primary, in.Secondary, st.Different[0].Offset)
}

// sameClaim refuses a repeated pair add that says otherwise whether both sides hold the same.
func sameClaim(g *control.Group, in control.PairRequest) error {
	i := slices.IndexFunc(g.Pairs, func(p control.Pair) bool { return p.Primary == in.Primary })
	if g.Pairs[i].AssumeEqual == in.AssumeEqual {
		return nil
	}
	return control.Errorf(control.KindRefused, "pair %s to %s is there, added %s --assume-equal; `gantline pair remove %s %s` takes it out",
		in.Primary, in.Secondary, map[bool]string{true: "with", false: "without"}[g.Pairs[i].AssumeEqual], g.Name, in.Primary)
}

// letGo asks the nodes to let go of a pair that one of them has refused: the other may have taken it.
func (m *Manager) letGo(ctx context.Context, g *control.Group, primary string) {
	i := slices.IndexFunc(g.Pairs, func(p control.Pair) bool { return p.Primary == primary })
	if i < 0 {
		return
	}
	ref := control.PairRef{Name: g.Name, Number: g.Pairs[i].Number}
	for _, node := range []string{g.Primary, g.Secondary} {
		if err := m.do(ctx, node, control.CallPairRemove, primary, ref, nil, callTimeout); err != nil {
			m.log.Warn("node has not let go of a refused pair", "node", node, "group", g.Name, "pair", primary, "error", err)
		}
	}
}

// pairRemove takes a pair out of its group: both volumes are in no group again and keep what they hold.
func (m *Manager) pairRemove(ctx context.Context, group, primary string) error {
	unlock, err := m.locks.lock(ctx, "group/"+group, "owned/"+primary)
	if err != nil {
		return err
	}
	defer unlock()
	if err := m.quiet(ctx, group, "group "+group); err != nil {
		return err
	}
	return m.unpair(ctx, group, primary)
}

// unpair is the removal: the wish is stored first, then the primary does it, at a sequence of its log, then the secondary.
// Each step may be repeated, and until the last is done the pair is shown, and the command can be given again.
func (m *Manager) unpair(ctx context.Context, group, primary string) error {
	type wish struct {
		g    *control.Group
		pair control.Pair
	}
	w, err := attempt(ctx, func() (wish, error) {
		g, err := load[control.Group](ctx, m, control.KindGroup, group)
		if err != nil {
			return wish{}, err
		}
		i := slices.IndexFunc(g.V.Pairs, func(p control.Pair) bool { return p.Primary == primary })
		if i < 0 {
			return wish{}, control.Errorf(control.KindNotFound, "volume %s is no primary of a pair in group %s", primary, group)
		}
		if g.V.Log == control.LogQueue {
			return wish{}, control.NotBuilt("pair remove in a group with --log queue")
		}
		if g.V.Pairs[i].Removing {
			return wish{&g.V, g.V.Pairs[i]}, nil
		}
		g.V.Pairs[i].Removing = true
		g.V.Revision++
		_, err = m.commit(ctx, m.change().put(g.Key, g.Rev, g.V).
			event("group/"+group, "pair-removing", "command", "pair %s is being removed", primary))
		return wish{&g.V, g.V.Pairs[i]}, err
	})
	if err != nil {
		return err
	}
	ref := control.PairRef{Name: group, Number: w.pair.Number, Gone: true}
	var done control.PairRemoved
	for _, node := range []string{w.g.Primary, w.g.Secondary} {
		err := m.do(ctx, node, control.CallPairRemove, primary, ref, &done, callTimeout)
		if err != nil && control.KindOf(err) != control.KindNotFound {
			return err
		}
		ref.At = done.At
	}
	_, err = attempt(ctx, func() (struct{}, error) { return struct{}{}, m.forgetPair(ctx, group, w.pair) })
	return err
}

// forgetPair takes a removed pair out of the store. Its number stays used.
func (m *Manager) forgetPair(ctx context.Context, group string, pair control.Pair) error {
	g, err := load[control.Group](ctx, m, control.KindGroup, group)
	if err != nil {
		return err
	}
	c := m.change()
	for _, name := range []string{pair.Primary, pair.Secondary} {
		v, exists, err := find[control.Volume](ctx, m, control.KindVolume, name)
		if err != nil {
			return err
		}
		if exists && v.V.Group == group {
			v.V.Group = ""
			c.put(v.Key, v.Rev, v.V)
		}
	}
	g.V.Pairs = slices.DeleteFunc(g.V.Pairs, func(p control.Pair) bool { return p.Number == pair.Number })
	g.V.Revision++
	_, err = m.commit(ctx, c.put(g.Key, g.Rev, g.V).
		event("group/"+group, "pair-removed", "command", "pair %s to %s removed; both keep what they hold", pair.Primary, pair.Secondary))
	return err
}
