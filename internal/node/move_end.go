package node

import (
	"context"
	"fmt"
	"time"

	"gantline/internal/block"
	"gantline/internal/control"
	"gantline/internal/migrate"
	"gantline/internal/record"
	"gantline/internal/volume"
)

// moveAbort has the target promise never to take over. One that has not been ordered to is sent back by moveCancel alone.
func (n *Node) moveAbort(_ context.Context, id string) error {
	m, _, err := n.move(id)
	if err != nil {
		return nil // cancelled since
	}
	t := m.target.Load()
	if t == nil {
		return nil // it has not begun, or has ended: moveCancel tells them apart
	}
	if err := t.Abort(); err != nil {
		return refused("migration %s: %v", id, err)
	}
	return nil
}

// moveCancel forgets a move that has not been ordered, or that was refused: everything is as before it. One that is not known is
// noted as well, because its registration may still be on its way.
func (n *Node) moveCancel(ctx context.Context, end control.MigrationEnd) error {
	n.config.Lock()
	defer n.config.Unlock()
	if end.By != nil {
		return n.endedByPromotion(ctx, end)
	}
	in, id := end.MigrationCancel, end.ID
	m, rec, err := n.move(id)
	if err != nil || in.Epoch != 0 && in.Epoch != rec.Spec.Group.Epoch { // the id is one of a group that was made again
		if n.state.view().cancelled(in) {
			return nil // repeated
		}
		return n.state.update(func(d *durable) error { d.cancel(in); return nil })
	}
	switch rec.Role {
	case control.RoleTarget:
		return n.cancelTarget(ctx, m, rec, in, n.backToSource(rec))
	case control.RoleSource:
		m.seal.Lock()
		defer m.seal.Unlock()
		g := n.group(rec.Spec.Group.Name)
		if g != nil && g.sealed() {
			return refused("migration %s: the source is sealed; it goes on only when the target has refused", id)
		}
		if g != nil {
			if err := g.dropTarget(rec); err != nil {
				return err
			}
		}
	case control.RoleSecondary:
		if g := n.group(rec.Spec.Group.Name); g != nil {
			if err := g.forbid(record.EpochID{Number: rec.TargetEpoch(), Node: rec.Spec.Target}); err != nil {
				return err
			}
		}
	}
	n.cfg.Point(control.PointCancel, "before")
	if err := n.state.update(func(d *durable) error { d.cancel(in); return nil }); err != nil {
		return err
	}
	n.cfg.Point(control.PointCancel, "after")
	n.forgetMove(id)
	if g := n.group(rec.Spec.Group.Name); g != nil {
		g.pokeCopy() // see holdsCopy
	}
	return nil
}

// cancelTarget first ends the machine by a stage of its own, which it cannot reach from beyond the order, then lets the
// volumes go. Dead in between, the repeated call goes on. Hosts that are still here are sent to who serves: what this
// node's volumes hold is nobody's.
func (n *Node) cancelTarget(ctx context.Context, m *move, rec *migrate.Record, in control.MigrationCancel,
	moved map[string]*block.MovedError) error {
	if t := m.target.Load(); t != nil {
		err := t.Update(func(r *migrate.Record) {
			switch r.Stage {
			case migrate.Registered, migrate.Through, migrate.Returned, migrate.Deregistered: // the last: by an earlier call
				r.Stage = migrate.Deregistered
				return
			}
			r.Stage = "cancelled" // legal from nowhere
		})
		if err != nil {
			now, _ := t.View()
			return refused("migration %s: the target is past the point of return (%s)", m.id, now.Stage)
		}
	} else if err := n.cancelIdle(rec); err != nil {
		return err
	}
	if m.ops != nil {
		m.ops.copy.Load().end() // it writes to the volumes by itself
		if err := m.ops.dropCarry(); err != nil {
			return err
		}
	} else if err := n.removeMap(n.carriedPath(m.id)); err != nil {
		return err
	}
	// What is relayed ends while the move is known: if it does not, the call is repeated and goes on here.
	if err := n.sendAway(ctx, moved); err != nil {
		return refused("migration %s: the target still waits for answers of node %s: %v", m.id, rec.Spec.Source, err)
	}
	n.cfg.Point(control.PointCancel, "before")
	err := n.dropGroup(ctx, rec.Spec.Group.Name, moved, func(d *durable) {
		delete(d.Groups, rec.Spec.Group.Name)
		d.cancel(in)
	})
	if err != nil {
		return err
	}
	n.cfg.Point(control.PointCancel, "after")
	m.stop()
	m.closeMaps()
	n.forgetMove(m.id)
	n.removeMoveMaps(rec)
	return nil
}

// backToSource says where hosts of a target that is cancelled go.
func (n *Node) backToSource(rec *migrate.Record) map[string]*block.MovedError {
	epoch := rec.Spec.Group.Epoch
	if rec.Returned {
		epoch = rec.SourceEpoch()
	}
	moved := map[string]*block.MovedError{}
	for _, mv := range rec.Spec.Volumes {
		_, local := splitName(mv.Target)
		node, remote := splitName(mv.Source)
		moved[local] = &block.MovedError{Node: node, Address: n.addressOf(node), Volume: remote, Epoch: epoch}
	}
	return moved
}

// cancelIdle ends the move of a target that could not open its group, and so runs no machine, by the same stage.
func (n *Node) cancelIdle(rec *migrate.Record) error {
	switch rec.Stage {
	case migrate.Registered, migrate.Through, migrate.Returned:
		rec.Stage = migrate.Deregistered
		return n.saveMove(rec)
	case migrate.Deregistered:
		if rec.Phase() != control.PhaseCommitted {
			return nil // by an earlier call
		}
	}
	return refused("migration %s: the target cannot be cancelled (%s)", rec.Spec.ID, rec.Stage)
}

// awayLimit is how long a target that is cancelled waits for answers to what it relays, in one call.
const awayLimit = 2 * time.Second

// sendAway has volumes answer hosts with their successors, and waits for what is under way.
func (n *Node) sendAway(ctx context.Context, moved map[string]*block.MovedError) error {
	ctx, cancel := context.WithTimeout(ctx, awayLimit)
	defer cancel()
	for name, to := range moved {
		v := n.volume(name)
		if v == nil {
			continue
		}
		v.vol.SetSuccessor(to)
		if err := v.vol.SetMode(ctx, volume.ModeMoved, true); err != nil {
			return fmt.Errorf("volume %s: %w", name, err)
		}
	}
	return nil
}

// moveAbandon has a move go on without its secondary, or without its source, which the operator has given up.
func (n *Node) moveAbandon(in control.MigrationAbandon) error {
	id := in.ID
	if in.SourceLost {
		return n.moveSourceLost(id)
	}
	m, rec, err := n.move(id)
	if err != nil || rec.Abandoned {
		return err
	}
	if t := m.target.Load(); t != nil {
		return t.Update(func(r *migrate.Record) { r.Abandoned = true })
	}
	return n.state.update(func(d *durable) error {
		if r := d.Moves[id]; r != nil {
			r.Abandoned = true
		}
		return nil
	})
}

// moveSourceLost has a target that serves a group which is not copied go on without what its source alone had: that reads as zeros from now
// on. A later copy to somebody else has to have it too: it is marked before that is so.
func (n *Node) moveSourceLost(id string) error {
	m, rec, err := n.move(id)
	if err != nil || rec.SourceLost {
		return err
	}
	t := m.target.Load()
	switch {
	case t == nil || rec.Cut() == 0 || !rec.Did(control.StepRun):
		return refused("migration %s: node %s does not serve as its target", id, n.cfg.Name)
	case rec.Spec.Secondary != "":
		return refused("migration %s: what is absent here may be at the secondary, %s", id, rec.Spec.Secondary)
	}
	g := m.ops.group()
	for _, d := range m.ops.disk {
		absent, _ := d.vol.vol.Absent(int(bitsFor(d.mv.Size, regionSize)))
		g.mu.Lock()
		marks, ok := g.maps[d.mv.Number]
		g.mu.Unlock()
		if !ok {
			continue
		}
		for _, e := range absent {
			marks.bits.SetRange(e.Offset/markSize, bitsFor(e.Length, markSize))
		}
		if err := marks.bits.Flush(); err != nil {
			return err
		}
	}
	if err := t.Update(func(r *migrate.Record) { r.SourceLost = true }); err != nil {
		return err
	}
	m.ops.loseSource()
	return nil
}

// abandoned says whether the move's secondary was given up.
func (n *Node) abandoned(id string) bool {
	rec := n.state.view().Moves[id]
	return rec != nil && rec.Abandoned
}

func (n *Node) forgetMove(id string) {
	n.mu.Lock()
	defer n.mu.Unlock()
	delete(n.moves, id)
}

// moveDeregister ends a move that is filled (S1601, S1602): the secondary forgets the source, the target is a primary
// like any other, the source is retired.
func (n *Node) moveDeregister(ctx context.Context, id string) error {
	n.config.Lock()
	defer n.config.Unlock()
	m, rec, err := n.move(id)
	if err != nil || rec.Stage == migrate.Deregistered {
		return nil // repeated
	}
	n.cfg.Point(control.StepDeregister, "before")
	rec.Note(control.StepDeregister, time.Now())
	switch rec.Role {
	case control.RoleTarget:
		err = n.deregisterTarget(m)
	case control.RoleSource:
		err = n.retire(ctx, m, rec)
	case control.RoleSecondary:
		err = n.deregisterSecondary(rec)
	}
	if err != nil {
		return err
	}
	n.cfg.Point(control.StepDeregister, "after")
	return nil
}

// deregisterTarget: the record first, so that no restart looks for the maps.
func (n *Node) deregisterTarget(m *move) error {
	t := m.target.Load()
	if t == nil {
		return refused("migration %s: the target does not run", m.id)
	}
	err := t.Update(func(r *migrate.Record) {
		if r.Stage == migrate.Filled {
			r.Stage = migrate.Deregistered
			r.Note(control.StepDeregister, time.Now())
		}
	})
	if err != nil {
		return err
	}
	rec, _ := t.View()
	if rec.Stage != migrate.Deregistered {
		return refused("migration %s: the target is not filled yet (%s)", m.id, rec.Stage)
	}
	m.stop()
	if vg := m.ops.running(); vg != nil {
		if err := vg.Unsubscribe(cutName); err != nil {
			return err // the group has failed: its next opening forgets it
		}
	}
	m.closeMaps()
	m.target.Store(nil)
	n.removeMoveMaps(&rec)
	return nil
}

// deregisterSecondary: e+2 was for a move that goes back; this one has not.
func (n *Node) deregisterSecondary(rec *migrate.Record) error {
	if g := n.group(rec.Spec.Group.Name); g != nil {
		if err := g.forbid(record.EpochID{Number: rec.SourceEpoch(), Node: rec.Spec.Source}); err != nil {
			return err
		}
	}
	rec.Stage = migrate.Deregistered
	return n.saveMove(rec)
}

// dropGroup ends a group here. Volumes in moved refuse hosts from now on and say who serves. The record comes first:
// dead behind it, a restart finds no group to open, and the volumes as they are to be.
func (n *Node) dropGroup(ctx context.Context, name string, moved map[string]*block.MovedError, change func(*durable)) error {
	g, rec := n.group(name), n.state.view().Groups[name]
	if g != nil && g.Err() == nil && g.running() != nil {
		// What the devices lack is written while the log still says so.
		if err := g.running().Checkpoint(ctx); err != nil {
			return err
		}
	}
	err := n.state.update(func(d *durable) error {
		for volume, to := range moved {
			if v := d.Volumes[volume]; v != nil {
				v.Moved = to
			}
			d.give(name, volume, to)
		}
		change(d)
		if r := d.Groups[name]; r != nil {
			r.Carried = nil
		}
		return nil
	})
	if err != nil {
		return err
	}
	n.mu.Lock()
	delete(n.groups, name)
	n.mu.Unlock()
	if g == nil || rec == nil {
		return nil
	}
	if err := g.release(ctx, rec, moved); err != nil || rec.Carried == nil {
		return err
	}
	return n.removeMap(rec.Carried.Device)
}

func (n *Node) removeMoveMaps(rec *migrate.Record) {
	for _, mv := range rec.Spec.Volumes {
		_ = n.removeMap(n.presentPath(rec.Spec.ID, mv.Number)) // only room is lost if it stays
		_ = n.removeMap(n.writtenPath(rec.Spec.ID, mv.Number))
	}
}
