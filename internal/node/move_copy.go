package node

import (
	"context"
	"fmt"

	"gantline/internal/block"
	"gantline/internal/control"
	"gantline/internal/migrate"
	"gantline/internal/record"
	"gantline/internal/volume"
)

// How the copying to the secondary goes from the source of a move to its target, in whatever state it is: what travels in
// the hand-over, and the pages of the changed map behind it.

// copyState is what a sealed source says of its copying.
func (g *group) copyState() control.CopyState {
	rec := g.n.state.view().Groups[g.name]
	c := control.CopyState{Halted: rec.Halted, Promoted: rec.Promoted.Kept(g.n.cfg.Name), WANBytes: g.wan.total() + rec.WANBase}
	for _, m := range rec.Members {
		c.Members = append(c.Members, control.CopyMember{Number: m.Number, Initial: m.Initial, Marked: m.Marked, Equal: m.Equal})
	}
	if g.sub == nil {
		c.Suspended = true // there is no secondary: it owes nothing
		return c
	}
	h := g.sub.Heritage()
	c.LagMS = g.sub.Lag().Age.Milliseconds()
	c.Suspended, c.Sync, c.Stale, c.Relied, c.Applied = h.Suspended, h.Sync, uint64(h.Stale), uint64(h.Relied), uint64(h.Applied)
	c.Marked = g.sub.ChangedBytes() > 0
	if c.Suspended {
		c.Resume, c.AtOnce = rec.Resume, rec.AtOnce
	}
	return c
}

func heritageOf(c *control.CopyState) volume.Heritage {
	return volume.Heritage{Suspended: c.Suspended, Sync: c.Sync, Stale: record.Seq(c.Stale), Relied: record.Seq(c.Relied),
		Applied: record.Seq(c.Applied)}
}

// inherit notes at the target of a move what the source's record has said of the copying.
func (g *groupRecord) inherit(c *control.CopyState) {
	g.Halted, g.Resume, g.AtOnce, g.Promoted = c.Halted, c.Resume, c.AtOnce, c.Promoted
	for _, from := range c.Members {
		if m := g.member(from.Number); m != nil {
			m.Initial, m.Marked, m.Equal = from.Initial, from.Marked, from.Equal
		}
	}
}

// changedPage is how much of a map travels at a time, in bytes.
const changedPage = 512 << 10

// moveChanged answers with a page of a sealed source's changed map. Nothing is marked any more there, so the pages of several
// calls together have at least what the secondary lacks.
func (n *Node) moveChanged(in control.ChangedAsked) (control.ChangedPage, error) {
	_, rec, err := n.move(in.ID)
	if err != nil {
		return control.ChangedPage{}, err
	}
	g := n.group(rec.Spec.Group.Name)
	if rec.Role != control.RoleSource || g == nil || !g.sealed() {
		return control.ChangedPage{}, refused("migration %s: node %s is not its sealed source", in.ID, n.cfg.Name)
	}
	g.mu.Lock()
	m, ok := g.maps[in.Number]
	g.mu.Unlock()
	if !ok || in.From < 0 || in.From >= m.bits.Bits() {
		return control.ChangedPage{}, invalid("migration %s: volume %d has no block %d", in.ID, in.Number, in.From)
	}
	n8 := min(changedPage, (m.bits.Bits()-in.From+7)/8)
	page := control.ChangedPage{Bits: make([]byte, n8)}
	end := in.From + 8*n8
	for bit, ok := m.bits.NextSet(in.From); ok && bit < end; bit, ok = m.bits.NextSet(bit + 1) {
		page.Bits[(bit-in.From)/8] |= 1 << ((bit - in.From) % 8)
	}
	if end < m.bits.Bits() {
		page.Next = end
	}
	return page, nil
}

// eachChanged asks the source for the pages of all changed maps.
func (o *targetOps) eachChanged(ctx context.Context, f func(mv control.MovedVolume, from int64, bits []byte) error) error {
	for _, mv := range o.spec.Volumes {
		for from, more := int64(0), true; more; {
			var page control.ChangedPage
			in := control.ChangedAsked{ID: o.spec.ID, Number: mv.Number, From: from}
			if err := o.n.call(ctx, o.spec.Source, control.CallMigrateChanged, in, &page); err != nil {
				return fmt.Errorf("changed map of %s: %w", mv.Source, err)
			}
			if err := f(mv, from, page.Bits); err != nil {
				return err
			}
			if more = page.Next != 0; more && page.Next <= from {
				return fmt.Errorf("changed map of %s: the page behind %d begins at %d", mv.Source, from, page.Next)
			}
			from = page.Next
		}
	}
	return nil
}

// takeChanged makes the changed maps here those of the source. They are durable before the log here takes over (Adopt), and
// before the store is asked to decide; an earlier try may have left others.
func (o *targetOps) takeChanged(ctx context.Context, h *control.Handover) error {
	g := o.group()
	for _, mv := range o.spec.Volumes {
		g.maps[mv.Number].bits.ClearAll()
	}
	if !h.Copy.Marked {
		return nil
	}
	return o.eachChanged(ctx, func(mv control.MovedVolume, from int64, bits []byte) error {
		setMarks(g.maps[mv.Number].bits, from, bits)
		return nil
	})
}

// setMarks sets a page's bits in a map, as far as that goes.
func setMarks(m *block.Bitmap, from int64, bits []byte) {
	n := min(int64(len(bits))*8, m.Bits()-from)
	for i := int64(0); i < n; i++ {
		first := i
		for i < n && bits[i/8]&(1<<(i%8)) != 0 {
			i++
		}
		if i > first {
			m.SetRange(from+first, i-first)
		}
	}
}

// settleChanged: the secondary has all that the source was to send. What the source had on its way when it was sealed need not
// be copied again. A target that has died since its hand-over knows no more which marks are the source's, and copies them all.
func (o *targetOps) settleChanged(ctx context.Context) error {
	sub, _, _ := o.group().feeds()
	err := o.eachChanged(ctx, func(mv control.MovedVolume, from int64, bits []byte) error {
		return sub.Settle(record.VolumeNumber(mv.Number), from, bits)
	})
	if err != nil {
		return err
	}
	return sub.Settled()
}

// holdsCopy: this node is the source of a move, with its log in memory. The secondary is to have all of that before the cut, so
// nothing is put into it that the target can copy as well. With copy-first that may be long before the cut; such a group has no
// initial copy to wait for (sourceRefusals).
func (g *group) holdsCopy() bool {
	if !g.onQueue() {
		return false
	}
	for _, m := range g.n.state.view().Moves {
		if m.Spec.Group.Name == g.name && m.Role == control.RoleSource && m.Stage == migrate.Registered && !m.Spec.CopyFirst() {
			return true
		}
	}
	return false
}

// runInitial copies what is marked outside a step. held: a move has ended it before it was through.
func (g *group) runInitial(whole context.Context) (held bool, err error) {
	ctx, cancel := context.WithCancel(whole)
	defer cancel()
	g.mu.Lock()
	g.stopInitial = cancel
	g.mu.Unlock()
	if g.holdsCopy() {
		return true, nil
	}
	err = g.sub.RunCopy(ctx, volume.CopyOptions{Parallel: 4, AtOnce: true})
	if err != nil && ctx.Err() != nil && whole.Err() == nil {
		return true, nil
	}
	return false, err
}

// awaitsSource: this node is the target of a move whose source may still be sending blocks that are marked here. Nothing is
// copied before it has said what of them has arrived.
func (g *group) awaitsSource() bool {
	for _, m := range g.n.state.view().Moves {
		if m.Spec.Group.Name != g.name || m.Role != control.RoleTarget || m.Handover == nil || m.Handover.Copy.Suspended {
			continue
		}
		// With a backlog that is carried, a step must not begin before what it carries stands in the log, or in the map.
		if m.Stage == migrate.Opened && (m.Handover.Copy.Marked || m.Spec.Carries()) || m.Stage == migrate.Drained && m.Spec.Carries() {
			return true
		}
	}
	return false
}
