package node

import (
	"context"
	"time"

	"gantline/internal/block"
	"gantline/internal/control"
	"gantline/internal/migrate"
	"gantline/internal/record"
	"gantline/internal/volume"
)

// moveSeal ends the source's epoch (S901–S906). The fence in the log is the seal: once it is durable this node never
// serves in this epoch again, whatever dies. Repeated, it hands over the same.
func (n *Node) moveSeal(ctx context.Context, id string) (*control.Handover, error) {
	m, _, err := n.move(id)
	if err != nil {
		return nil, err
	}
	m.seal.Lock()
	defer m.seal.Unlock()
	_, rec, err := n.move(id) // as it is now that nobody else changes it
	if err != nil {
		return nil, err
	}
	if rec.Role != control.RoleSource || rec.Stage != migrate.Registered {
		return nil, refused("migration %s: the source does not seal: it is %s, stage %s", id, rec.Role, rec.Stage)
	}
	g := n.group(rec.Spec.Group.Name)
	if g == nil {
		return nil, notFound("group %s is not on node %s", rec.Spec.Group.Name, n.cfg.Name)
	}
	if !g.sealed() {
		if st := g.status(); st.Epoch != rec.Spec.Group.Epoch {
			return nil, refused("migration %s: group %s is in epoch %d, not in %d", id, g.name, st.Epoch, rec.Spec.Group.Epoch)
		}
		if err := g.ready(); err != nil {
			return nil, refused("migration %s: %v", id, err)
		}
		if bad := g.carryRefusals(); rec.Spec.Carries() && len(bad) > 0 { // its settings were changed since
			return nil, refused("migration %s: %s", id, bad[0])
		}
		if rec.Spec.CopyFirst() {
			if err := g.feedsTarget(); err != nil {
				return &control.Handover{Behind: err.Error()}, nil // it will be: nothing is refused for good
			}
		}
		n.cfg.Point(control.StepSeal, "before")
		if err := g.seal(ctx, &rec.Spec); err != nil {
			if cut := g.feedsTarget(); cut != nil && rec.Spec.CopyFirst() && !g.sealed() { // by the last requests of hosts
				return &control.Handover{Behind: cut.Error()}, nil
			}
			return nil, err
		}
		n.cfg.Point(control.StepSeal, "after")
	}
	return g.handover(rec)
}

// moveReopen has the source go on in e+2, sealed or not: the store and the hosts' routes say e+2 from now on. The record
// comes first: from then on a seal for this move that is still under way is refused. targetLost: what hosts were told since the cut is not
// here, and their connections end.
func (n *Node) moveReopen(ctx context.Context, id string, targetLost bool) (control.ReopenResult, error) {
	m, _, err := n.move(id)
	if err != nil {
		return control.ReopenResult{}, err
	}
	m.seal.Lock()
	defer m.seal.Unlock()
	_, rec, err := n.move(id)
	if err != nil {
		return control.ReopenResult{}, err
	}
	g := n.group(rec.Spec.Group.Name)
	if rec.Role != control.RoleSource || g == nil {
		return control.ReopenResult{}, refused("migration %s: node %s is not its source", id, n.cfg.Name)
	}
	if rec.Stage == migrate.Registered {
		n.cfg.Point(control.PointReopen, "before")
		err := n.state.update(func(d *durable) error {
			r := d.Moves[id]
			if r == nil {
				return notFound("migration %s was cancelled meanwhile", id)
			}
			r.Stage = migrate.Reopened
			d.Groups[rec.Spec.Group.Name].Epoch = rec.SourceEpoch()
			for _, mv := range rec.Spec.Volumes {
				if _, name := splitName(mv.Source); targetLost && d.Volumes[name] != nil {
					d.Volumes[name].Taken = rec.SourceEpoch()
				}
			}
			return nil
		})
		if err != nil {
			return control.ReopenResult{}, err
		}
		n.cfg.Point(control.PointReopen, "after")
	}
	if err := g.reopen(ctx); err != nil {
		return control.ReopenResult{}, err
	}
	if err := g.dropTarget(rec); err != nil {
		return control.ReopenResult{}, err
	}
	return control.ReopenResult{Epoch: g.status().Epoch}, nil
}

// seal: hosts that come from now on are told where to go; those admitted finish; the log ends with the fence. A command that
// takes the secondary out of the stream, or back, comes before the cut, so that the hand-over says it, or is refused.
func (g *group) seal(ctx context.Context, spec *control.MigrationSpec) error {
	g.setSealing(true)
	defer g.setSealing(false)
	for _, mv := range spec.Volumes {
		_, name := splitName(mv.Source)
		if v := g.n.volume(name); v != nil {
			v.vol.SetSuccessor(movedTo(spec, mv))
		}
	}
	cut, err := g.vg.Seal(ctx, record.EpochID{Number: spec.Group.Epoch + 1, Node: spec.Target})
	if err != nil {
		return err
	}
	g.becomeSource(cut)
	return nil
}

func (g *group) setSealing(on bool) {
	g.steer.Lock()
	defer g.steer.Unlock()
	g.sealing = on
}

// handover is what a sealed source gives away. All of it can be made again from the log after a crash.
func (g *group) handover(rec *migrate.Record) (*control.Handover, error) {
	cut, _, ok := g.vg.Sealed()
	if !ok {
		return nil, refused("group %s is not sealed", g.name)
	}
	h := &control.Handover{ID: rec.Spec.ID, Epoch: rec.Spec.Group.Epoch, Cut: uint64(cut), Done: g.vg.DoneTable(),
		Table: rowsOf(g.vg.Table().Close(cut)), Copy: g.copyState()}
	return h, nil
}

func tableOf(rows []control.TableRow) record.Table {
	var t record.Table
	for _, r := range rows {
		t = append(t, record.Row{Epoch: r.Epoch, Incarnation: record.Incarnation(r.Incarnation), Node: r.Node,
			First: record.Seq(r.First), Last: record.Seq(r.Last), Closed: r.Closed})
	}
	return t
}

// retire ends the source's part: it has nothing left that anybody needs, and refuses hosts for ever.
func (n *Node) retire(ctx context.Context, m *move, rec *migrate.Record) error {
	m.seal.Lock()
	defer m.seal.Unlock()
	g := n.group(rec.Spec.Group.Name)
	if g == nil {
		return nil
	}
	if !g.sealed() {
		return refused("migration %s: the source is not sealed", rec.Spec.ID)
	}
	if !g.drained() && !rec.Abandoned {
		return refused("migration %s: the secondary does not have everything up to the cut yet", rec.Spec.ID)
	}
	moved := map[string]*block.MovedError{}
	for _, mv := range rec.Spec.Volumes {
		_, local := splitName(mv.Source)
		moved[local] = movedTo(&rec.Spec, mv)
	}
	if err := g.dropTarget(rec); err != nil {
		return err
	}
	rec.Stage = migrate.Deregistered
	return n.dropGroup(ctx, rec.Spec.Group.Name, moved, func(d *durable) {
		d.Groups[rec.Spec.Group.Name].Role = control.RoleRetired
		d.Moves[rec.Spec.ID] = rec
	})
}

// drained: the secondary has all up to the cut durably, or gets nothing from here any more, because it has been out of the
// stream when this node was sealed, or because the target has what it lacks.
func (g *group) drained() bool {
	g.mu.Lock()
	vg, sub := g.vg, g.sub
	g.mu.Unlock()
	if vg == nil {
		return false
	}
	cut, _, ok := vg.Sealed()
	if rec := g.n.state.group(g.name); sub == nil {
		return ok && rec != nil && !rec.copied()
	}
	return ok && (hasAll(sub, cut) || g.n.carriedAway(g.name))
}

func hasAll(sub *volume.Subscriber, cut record.Seq) bool {
	_, durable, _ := sub.Cursor()
	return durable >= cut || sub.Heritage().Suspended
}

// noteDrained lets the kill points of a source take hold once, when it first sees that nothing is left to send.
func (g *group) noteDrained(ctx context.Context) {
	tick := time.NewTicker(50 * time.Millisecond)
	defer tick.Stop()
	for !g.drained() {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
	}
	g.n.cfg.Point(control.StepDrained, "before")
	g.n.cfg.Point(control.StepDrained, "after")
}
