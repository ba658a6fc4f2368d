package node

import (
	"context"
	"errors"
	"fmt"
	"time"

	"gantline/internal/apply"
	"gantline/internal/control"
	"gantline/internal/record"
	"gantline/internal/volume"
)

// A promotion, and what a death leaves at each point:
//
//	maps    the changed maps are made, empty: what hosts write from now on is marked for the old primary    secondary as before
//	cut     the stream has ended; the log is cut behind the last consistent record                          secondary as before
//	open    the row of a higher epoch, with this node's name, is opened in the log                          ── it stands ──
//	apply   what is stored and not applied is applied                                                       finished at the restart
//	serve   the group numbers records                                                                       finished at the restart
//	record  role, epoch, turned pairs are in the node's state; the old primary is a suspended subscriber    primary
//	        hosts are admitted                                                                              primary
//
// Nothing above the old primary's durable mark is applied before the row is open (I5): a death before it leaves a secondary
// that can go on following. A secondary that finds its own row as the newest finishes what was begun.

// promoteGroup makes this node, the secondary of a group, its primary. Repeated, it gives the same answer.
func (n *Node) promoteGroup(ctx context.Context, in control.GroupPromote) (control.PromoteStatus, error) {
	n.config.Lock()
	defer n.config.Unlock()
	rec, g := n.state.view().Groups[in.Name], n.group(in.Name)
	switch {
	case rec == nil || g == nil || rec.Role == control.RoleRetired:
		return control.PromoteStatus{}, notFound("group %s is not on node %s", in.Name, n.cfg.Name)
	case rec.Role == control.RolePrimary && rec.Promoted != nil:
		out := control.PromoteStatus{PromoteView: rec.Promoted.View(in.Name), Done: rec.Promoted}
		if in.DryRun {
			out.Plan = &control.PlanView{Plan: []string{}, Refusals: []string{}}
		}
		return out, nil
	case rec.Role != control.RoleSecondary:
		return control.PromoteStatus{}, refused("group %s: node %s is %s, and only a secondary is promoted; its secondary is %s",
			in.Name, n.cfg.Name, rec.Role, rec.Spec.Group.Secondary)
	}
	if err := g.Err(); err != nil { // also of a promotion that stands and did not end: a second row must not follow the first
		return control.PromoteStatus{}, refused("group %s has stopped on node %s: restart the node, then repeat the command: %v", in.Name,
			n.cfg.Name, err)
	}
	p, err := g.planPromotion(rec)
	if err != nil {
		return control.PromoteStatus{}, fmt.Errorf("group %s: %w", in.Name, err)
	}
	if !in.Force {
		p.refusals = append(p.refusals, append(p.needsMoves(), p.needsForce())...)
	}
	if in.DryRun {
		return control.PromoteStatus{PromoteView: control.PromoteView{Group: in.Name, Epoch: p.epoch, Cut: uint64(p.cut)}, Plan: p.view()}, nil
	}
	if len(p.refusals) > 0 {
		return control.PromoteStatus{}, refused("group %s: %s", in.Name, p.refusals[0])
	}
	n.log.Warn("promotion", "group", in.Name, "epoch", p.epoch, "cut", p.cut, "from", p.from)
	if err := g.promote(rec); err != nil {
		return control.PromoteStatus{}, fmt.Errorf("group %s: promotion: %w", in.Name, err)
	}
	n.tellPromoted(in.Name)
	done := n.state.view().Groups[in.Name].Promoted
	return control.PromoteStatus{PromoteView: done.View(in.Name), Done: done}, nil
}

// promote ends the stream, and opens the row by which the promotion stands. Until then an error leaves a secondary.
func (g *group) promote(rec *groupRecord) (err error) {
	point := g.n.cfg.Point
	point(control.StepPromoteMaps, "before")
	if err := g.n.makeChangedMaps(g.name, rec); err != nil {
		return err
	}
	point(control.StepPromoteMaps, "after")
	g.stopFeed() // all that has been stored is durable then
	opened := false
	defer func() {
		if err != nil && !opened {
			g.vg.DropPreview() // a new previewer does not know of it
			if again := g.startSecondary(g.n.state.view().Groups[g.name]); again != nil {
				g.fail(again)
				err = errors.Join(err, again)
			}
		}
	}()
	p, err := g.settle()
	if err != nil {
		return err
	}
	if len(p.refusals) > 0 {
		return refused("%s", p.refusals[0])
	}
	point(control.StepPromoteCut, "before")
	if err := g.jnl.Cut(p.cut); err != nil {
		return err
	}
	point(control.StepPromoteCut, "after")
	row := record.Row{Epoch: p.epoch, Incarnation: 1, Node: p.self, First: g.jnl.Cursors().Appended + 1}
	point(control.StepPromoteOpen, "before")
	if err := g.jnl.OpenRow(row); err != nil {
		opened = g.jnl.Err() != nil // its log has ended: a restart finds out whether the row is there
		return err
	}
	opened = true
	point(control.StepPromoteOpen, "after")
	if err := g.finishPromotion(g.n.state.view().Groups[g.name]); err != nil {
		g.fail(fmt.Errorf("promoted, and not serving: restart the node to go on: %w", err))
		return err
	}
	return nil
}

// settle is planPromotion for a stream that has ended, with whom it believes as it was.
func (g *group) settle() (*promotion, error) {
	if _, err := g.jnl.Sync(); err != nil {
		return nil, err
	}
	rec := g.n.state.view().Groups[g.name]
	app, err := g.openApply(rec, func(record.Seq) {})
	if err != nil {
		return nil, err
	}
	g.mu.Lock()
	g.app = app
	g.mu.Unlock()
	return g.planPromotion(rec)
}

// wasOpened: a promotion stands, by the log alone.
func (g *group) wasOpened() bool {
	rec, vg := g.n.state.view().Groups[g.name], g.running()
	if vg == nil {
		return false
	}
	row, ok := vg.Table().Current()
	return ok && rec != nil && rec.Role == control.RoleSecondary && row.Node == g.n.cfg.Name && row.Epoch > rec.Spec.Group.Epoch
}

// finishPromotion goes on from an open row to admitted hosts. It may begin at a restart.
func (g *group) finishPromotion(rec *groupRecord) error {
	point := g.n.cfg.Point
	row, _ := g.vg.Table().Current()
	first := firstOf(g.vg.Table(), row.Epoch)
	made := &control.Promotion{Node: g.n.cfg.Name, Epoch: row.Epoch, Cut: uint64(first - 1), From: g.ousted(rec), At: time.Now().UTC()}
	// Before this side serves anybody: an old primary that is alive stops first.
	made.LostWrites = g.tellOld(rec, made)
	point(control.StepPromoteApply, "before")
	if err := g.applyRest(rec); err != nil {
		return err
	}
	point(control.StepPromoteApply, "after")
	point(control.StepPromoteServe, "before")
	if err := g.serveAgain(row); err != nil {
		return err
	}
	point(control.StepPromoteServe, "after")
	point(control.StepPromoteRecord, "before")
	moves := g.n.movesOf(g.name)
	err := g.n.state.update(func(d *durable) error {
		d.endMoves(g.name, made)
		d.Groups[g.name].promoted(made)
		return nil
	})
	if err != nil {
		return err
	}
	for _, id := range moves {
		g.n.forgetMove(id)
	}
	point(control.StepPromoteRecord, "after")
	rec = g.n.state.view().Groups[g.name]
	g.vg.DropPreview()
	g.mu.Lock()
	g.rcv, g.app, g.pulls, g.feed, g.err = nil, nil, nil, nil, nil
	g.mu.Unlock()
	if err := g.openMaps(rec); err != nil {
		return err
	}
	if err := g.startFeed(rec.Spec.Group.Secondary, rec.Members); err != nil {
		return err
	}
	return g.admit(rec)
}

// promoted is what the record of a secondary becomes.
func (r *groupRecord) promoted(p *control.Promotion) {
	r.Role, r.Epoch, r.Promoted = control.RolePrimary, p.Epoch, p
	r.Belief, r.Resume, r.AtOnce, r.Halted = nil, false, false, false
	r.Spec.Role = control.RolePrimary
	r.Spec.Group.Promoted(p)
	for i := range r.Members {
		r.Members[i].Initial, r.Members[i].Equal, r.Members[i].Marked, r.Members[i].CopiedAt = false, false, true, 0
	}
}

func firstOf(t record.Table, epoch uint64) record.Seq {
	for _, row := range t {
		if row.Epoch == epoch {
			return row.First
		}
	}
	return 0
}

// applyRest applies all that the log holds, which ends at the cut.
func (g *group) applyRest(rec *groupRecord) error {
	if g.vg.Role() != volume.RoleFollowing {
		return nil // replayed at the restart
	}
	app, err := g.openApply(rec, func(record.Seq) {})
	if err != nil {
		return err
	}
	run := newScope()
	defer run.stop()
	run.work.Go(func() { _ = app.Run(run.ctx) }) // Finish tells its error
	st, err := app.Finish(run.ctx)
	if err != nil {
		return err
	}
	if end := g.jnl.Cursors().Appended; st.Applied != end || !st.Consistent {
		return fmt.Errorf("applied %d of %d, consistent %v", st.Applied, end, st.Consistent)
	}
	return nil
}

// serveAgain opens the group for records in row, or, after a restart, in the next run of its epoch.
func (g *group) serveAgain(row record.Row) error {
	if g.vg.Role() == volume.RoleServing {
		return nil
	}
	open := row
	open.First = g.vg.Appended() + 1
	err := g.vg.Serve(open)
	if err != nil && g.vg.Err() == nil { // this process has not opened it
		open.Incarnation++
		err = g.vg.Serve(open)
	}
	return err
}

// openApply makes an applier of what the log holds above what is applied.
func (g *group) openApply(rec *groupRecord, progress func(record.Seq)) (*apply.Loop, error) {
	cur := g.jnl.Cursors()
	return apply.Open(apply.Config{
		Log: groupLog{g.jnl}, Sink: followerSink{g},
		State: apply.State{Applied: g.vg.Applied(), Consistent: !rec.Inconsistent},
		Save: func(s apply.State) error {
			return g.n.state.update(func(d *durable) error {
				if r := d.Groups[g.name]; r != nil { // else it is being deleted
					r.Inconsistent = !s.Consistent
				}
				return nil
			})
		},
		Stored: cur.Appended, Durable: cur.Durable, Progress: progress,
	})
}
