package node

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net"
	"time"

	"gantline/internal/control"
	"gantline/internal/journal"
	"gantline/internal/migrate"
	"gantline/internal/record"
	"gantline/internal/sender"
	"gantline/internal/volume"
	"gantline/internal/wire"
)

// The source's part in a move that carries its backlog: it says how much that is, gives it away once it is sealed, and stops
// sending when the target has it. Its own copy stays until it is retired.

const (
	carryRecords = 4096
	carryBytes   = 2 << 20 // of data in one batch, unless one record has more
	carryPiece   = 3 << 20 // of a batch in one answer

	// carrySlack and carryShare are room for what hosts write between the look at the backlog and the cut.
	carrySlack = 16 << 20
	carryShare = 8
)

// backlog is the newest record that the secondary has durably, and how large a log of those behind it is.
func (g *group) backlog() (base record.Seq, size int64, err error) {
	g.mu.Lock()
	jnl, sub, vg := g.jnl, g.sub, g.vg
	g.mu.Unlock()
	if jnl == nil || sub == nil || vg == nil {
		return 0, 0, refused("group %s has no log on disk that could be carried", g.name)
	}
	_, base, _ = sub.Cursor()
	if sub.State() != volume.SubStreaming {
		return base, journal.SizeFor(0, 0), nil // what it lacks is marked
	}
	from := max(base, jnl.Cursors().Trimmed)
	records, bytes, err := jnl.Above(from)
	if errors.Is(err, journal.ErrTrimmed) { // by an acknowledgement since
		return g.backlog()
	}
	if err != nil {
		return 0, 0, fmt.Errorf("group %s: %w", g.name, err)
	}
	before, more := vg.CarriedLeft(secondaryName) // it was carried here itself, and is still to be sent
	return base, journal.SizeFor(records+uint64(before), bytes+max(more, before*4096)), nil
}

// withSlack is what a log is made with before the cut is known.
func withSlack(size int64) int64 { return size + size/carryShare + carrySlack }

// carryRefusals says why what the secondary lacks of this group cannot be carried.
func (g *group) carryRefusals() []string {
	rec := g.n.state.group(g.name)
	if rec == nil {
		return nil // refused for that
	}
	if sub, _, _ := g.feeds(); sub == nil {
		return []string{fmt.Sprintf("group %s has no pairs, and so no backlog: move it without --backlog carry", g.name)}
	}
	if why := control.CannotCarry(&rec.Spec.Group); why != "" {
		return []string{fmt.Sprintf("group %s: %s", g.name, why)}
	}
	return nil
}

// moveCarry answers with records of the sealed log.
func (n *Node) moveCarry(in control.CarryAsk) (control.CarryPage, error) {
	_, rec, err := n.move(in.ID)
	if err != nil {
		return control.CarryPage{}, err
	}
	g := n.group(rec.Spec.Group.Name)
	if rec.Role != control.RoleSource || rec.Stage != migrate.Registered || !rec.Spec.Carries() || g == nil || g.running() == nil {
		return control.CarryPage{}, refused("migration %s: node %s is not the source of a move that carries its backlog", in.ID, n.cfg.Name)
	}
	base, size, err := g.backlog()
	if err != nil {
		return control.CarryPage{}, err
	}
	page := control.CarryPage{Base: uint64(base), Size: size}
	vg := g.running()
	if vg == nil {
		return control.CarryPage{}, refused("group %s is closed on node %s", g.name, n.cfg.Name)
	}
	cut, _, sealed := vg.Sealed()
	if !sealed {
		return page, nil
	}
	page.Cut = uint64(cut)
	if in.From == 0 || in.From > page.Cut {
		return page, nil
	}
	g.mu.Lock()
	log := g.log
	g.mu.Unlock()
	if log == nil {
		return control.CarryPage{}, refused("group %s is closed on node %s", g.name, n.cfg.Name)
	}
	recs, err := log.Read(record.Seq(in.From), carryRecords, carryBytes)
	if err != nil {
		return control.CarryPage{}, fmt.Errorf("migration %s: what is to be carried: %w", in.ID, err)
	}
	if len(recs) == 0 || recs[0].Seq != record.Seq(in.From) {
		return control.CarryPage{}, fmt.Errorf("migration %s: the log has no record %d", in.ID, in.From)
	}
	parts, err := wire.EncodeBatch(wire.Batch{Records: recs})
	if err != nil {
		return control.CarryPage{}, fmt.Errorf("migration %s: %w", in.ID, err)
	}
	skip, piece := in.At, int64(cmp.Or(n.cfg.carryPiece, carryPiece))
	for _, p := range parts {
		length := int64(len(p))
		page.Total += length
		if from, room := min(max(skip, 0), length), piece-int64(len(page.Piece)); room > 0 {
			page.Piece = append(page.Piece, p[from:min(length, from+room)]...)
		}
		skip -= length
	}
	return page, nil
}

// moveCarried ends what this node sends: the target has all of it, durably, and sends it. That is noted before the answer, so
// that no restart sends again. Repeated, it says the same.
func (n *Node) moveCarried(id string) (control.CarryEnd, error) {
	m, _, err := n.move(id)
	if err != nil {
		return control.CarryEnd{}, err
	}
	m.seal.Lock()
	defer m.seal.Unlock()
	_, rec, err := n.move(id)
	if err != nil {
		return control.CarryEnd{}, err
	}
	g := n.group(rec.Spec.Group.Name)
	if rec.Role != control.RoleSource || rec.Stage != migrate.Registered || g == nil || !g.sealed() {
		return control.CarryEnd{}, refused("migration %s: node %s is not its sealed source", id, n.cfg.Name)
	}
	if !rec.Carried {
		n.cfg.Point(control.PointCarried, "before")
		rec.Carried = true
		if err := n.saveMove(rec); err != nil {
			return control.CarryEnd{}, err
		}
		n.cfg.Point(control.PointCarried, "after")
	}
	g.endStream()
	return control.CarryEnd{WANBytes: g.wan.total() + n.wanBase(g.name)}, nil
}

// carryRest is how long what is on its way to the secondary is waited for, so that the target need not send it again.
const carryRest = time.Second

// endStream sends nothing more.
func (g *group) endStream() {
	if snd := g.sender(); snd != nil && snd.Status().State == sender.StateStreaming {
		snd.StopAt(snd.Status().Sent)
		select {
		case <-snd.Drained():
		case <-time.After(carryRest):
		}
	}
	g.stopFeed()
}

// carriedAway: the target of a move has what this node had to send, and sends it.
func (n *Node) carriedAway(group string) bool {
	for _, rec := range n.state.now.Load().record().Moves {
		if rec.Role == control.RoleSource && rec.Stage == migrate.Registered && rec.Carried && rec.Spec.Group.Name == group {
			return true
		}
	}
	return false
}

// dialUnlessSilent is dial while this node may send.
func (g *group) dialUnlessSilent(dial func(context.Context) (net.Conn, error)) func(context.Context) (net.Conn, error) {
	return func(ctx context.Context) (net.Conn, error) {
		if err := g.silent(); err != nil {
			return nil, err
		}
		return dial(ctx)
	}
}

// silent says why this node sends nothing to the secondary of a group that a move carries; nil: it may. There is one sender at
// a time: the source until the target has all, the target once the secondary has taken it as its only source. Where nothing was carried, because
// the secondary had all or was out of the stream, it takes the target once it has heard it.
func (g *group) silent() error {
	if g.n.carriedAway(g.name) {
		return fmt.Errorf("group %s: the target of the move has what was to be sent, and sends it", g.name)
	}
	for _, rec := range g.n.state.now.Load().record().Moves {
		if rec.Role != control.RoleTarget || !rec.Spec.Carries() || rec.Spec.Group.Name != g.name {
			continue
		}
		switch {
		case rec.Stage == migrate.Opened:
			return fmt.Errorf("group %s: what the secondary lacks up to the cut is being carried here from node %s, which sends until then",
				g.name, rec.Spec.Source)
		case rec.Stage == migrate.Drained && rec.Carried:
			return fmt.Errorf("group %s: the secondary has not taken node %s as its only source yet", g.name, g.n.cfg.Name)
		}
	}
	return nil
}
