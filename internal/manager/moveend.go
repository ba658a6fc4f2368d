package manager

import (
	"context"
	"errors"
	"strings"
	"time"

	"gantline/internal/control"
)

// endMove sends a move back in one transaction: virtual volumes to the source, the record failed. oppose: it is also the
// opposite swap, which wins only if the target's has not: the source goes on in e+2 if it was sealed.
func (m *Manager) endMove(ctx context.Context, id, why string, oppose bool) error {
	return m.failTo(ctx, id, why, func(mg *control.Migration, g *control.Group) bool {
		if control.Ended(mg.Phase) || mg.Returning() || mg.Decided == control.DecidedTarget || mg.RunAsked != oppose {
			return false
		}
		if oppose {
			ownGroup(g, mg, false, mg.Epoch+2)
		} else {
			ownGroup(g, mg, false, mg.Epoch)
		}
		return true
	}, oppose)
}

// correctMove makes the store follow the target's durable refusal, whatever the store had decided: on epochs of the
// move's own record a node's record wins.
func (m *Manager) correctMove(ctx context.Context, id, why string) error {
	return m.failTo(ctx, id, why, func(mg *control.Migration, g *control.Group) bool {
		if control.Ended(mg.Phase) || mg.Returning() {
			return false
		}
		ownGroup(g, mg, false, mg.Epoch+2)
		return true
	}, true)
}

func (m *Manager) failTo(ctx context.Context, id, why string, own func(*control.Migration, *control.Group) bool,
	reopen bool) error {
	rev, err := attempt(ctx, func() (uint64, error) {
		mg, err := load[control.Migration](ctx, m, control.KindMigration, id)
		if err != nil {
			return 0, err
		}
		g, err := load[control.Group](ctx, m, control.KindGroup, mg.V.Group)
		if err != nil {
			return 0, err
		}
		if !own(&mg.V, &g.V) {
			return 0, nil
		}
		c := m.change()
		if err := m.leadVvols(ctx, c, &mg.V, false); err != nil {
			return 0, err
		}
		left, err := m.freeSide(ctx, c, &mg.V, true, false)
		if err != nil {
			return 0, err
		}
		message := why
		if len(left) > 0 {
			message += "; made for the move and left: " + strings.Join(left, ", ")
		}
		failMove(&mg.V, g.V.CopiesTo(), message, reopen)
		c.event("migration/"+id, control.PhaseFailed, "move", "move of %s to %s went back to %s: %s", mg.V.What(),
			mg.V.Target, mg.V.Source, message)
		return m.commit(ctx, c.put(mg.Key, mg.Rev, mg.V).put(g.Key, g.Rev, g.V))
	})
	if err != nil || rev == 0 {
		return err
	}
	// The target relays until the gateways lead to the source again; only then is it told to forget.
	m.inForce(ctx, rev, "migration/"+id)
	return nil
}

// freeSide takes the target's (or the source's) volumes and journal out of the group, in c, and lists those that the
// move had made. With keepMade those stay in it, because they are to be removed.
func (m *Manager) freeSide(ctx context.Context, c *change, mg *control.Migration, target, keepMade bool) (left []string, err error) {
	made := map[string]bool{mg.MadeJournal: true}
	for _, v := range mg.MadeVolumes {
		made[v] = true
	}
	for _, mv := range mg.Volumes {
		full := mv.Source
		if target {
			full = mv.Target
		}
		v, exists, err := find[control.Volume](ctx, m, control.KindVolume, full)
		if err != nil {
			return nil, err
		}
		if !exists || v.V.Group != mg.Group { // the latter: made by somebody else before the move came to it
			continue
		}
		if made[full] {
			left = append(left, "volume "+full)
			if keepMade {
				continue
			}
		}
		v.V.Group = ""
		c.put(v.Key, v.Rev, v.V)
	}
	full := mg.SourceJournal
	if target {
		full = mg.TargetJournal
	}
	if full == "" {
		return left, nil // a queue needs none
	}
	j, exists, err := find[control.Journal](ctx, m, control.KindJournal, full)
	if err != nil || !exists || j.V.Group != mg.Group {
		return left, err
	}
	if made[full] {
		left = append(left, "journal "+full)
		if keepMade {
			return left, nil
		}
	}
	j.V.Group = ""
	c.put(j.Key, j.Rev, j.V)
	return left, nil
}

// sourceServes corrects the group's epoch by the source's own word: it goes on in e if it had not been sealed.
func (m *Manager) sourceServes(ctx context.Context, mg *control.Migration, epoch uint64) error {
	_, err := attempt(ctx, func() (uint64, error) {
		g, err := load[control.Group](ctx, m, control.KindGroup, mg.Group)
		if err != nil || g.V.Primary != mg.Source || g.V.Epoch == epoch || epoch == 0 {
			return 0, err
		}
		g.V.Epoch = epoch
		g.V.Revision++
		return m.commit(ctx, m.change().put(g.Key, g.Rev, g.V).
			event(g.V.Object(), "epoch", "migration "+mg.ID, "%s serves %s in epoch %d", mg.Source, g.V.What(), epoch))
	})
	return err
}

// commitGuard refuses to let go of the source before nothing needs it any more (S8).
func (m *Manager) commitGuard(ctx context.Context, mg *control.Migration) error {
	refuse := func(format string, args ...any) error {
		return control.Errorf(control.KindRefused, "migration "+mg.ID+" cannot be committed: "+format, args...)
	}
	if mg.Phase != control.PhaseFilled {
		return refuse("its phase is %q; wait until it is filled (`gantline wait migration %s --for phase=filled`)", mg.Phase, mg.ID)
	}
	if mg.Done(control.StepDeregister) {
		return nil
	}
	var st control.MigrationStatus
	if err := m.nodes.call(ctx, mg.Target, control.CallMigrateStatus, control.MigrationID{ID: mg.ID}, &st, callTimeout); err != nil {
		if control.KindOf(err) == control.KindNotFound {
			return m.targetHasIt(ctx, mg, refuse)
		}
		return err
	}
	if st.Phase == control.PhaseCommitted {
		return nil
	}
	if st.Present != st.Total || st.Phase != control.PhaseFilled {
		return refuse("%d of %d regions are at %s", st.Present, st.Total, mg.Target)
	}
	g, err := load[control.Group](ctx, m, control.KindGroup, mg.Group)
	if err != nil {
		return err
	}
	if gone, err := m.forgottenSecondary(ctx, mg); gone || err != nil || g.V.CopiesTo() == "" {
		return err
	}
	var ns control.NodeStatus
	if err := m.nodes.call(ctx, g.V.Secondary, control.CallNodeStatus, struct{}{}, &ns, callTimeout); err != nil {
		return err
	}
	s := groupOf(&ns, mg.Group)
	if s == nil || st.Cut == nil {
		return refuse("%s does not know group %s", g.V.Secondary, mg.Group)
	}
	if s.Durable < *st.Cut && !st.Marked {
		return refuse("secondary %s has sequence %d durable, the cut is %d; wait until it has caught up", g.V.Secondary, s.Durable, *st.Cut)
	}
	return nil
}

// forgottenSecondary says whether the secondary of a move's group was forgotten by command, as gone for good.
func (m *Manager) forgottenSecondary(ctx context.Context, mg *control.Migration) (bool, error) {
	g, err := load[control.Group](ctx, m, control.KindGroup, mg.Group)
	if err != nil || g.V.CopiesTo() == "" {
		return false, err
	}
	_, exists, err := find[control.Node](ctx, m, control.KindNode, g.V.Secondary)
	return !exists, err
}

// abandonSecondary has a decided move go on without a secondary that was forgotten: nobody waits for what it lacks.
func (m *Manager) abandonSecondary(ctx context.Context, mg *control.Migration) error {
	if gone, err := m.forgottenSecondary(ctx, mg); !gone || err != nil || mg.Decided != control.DecidedTarget {
		return err
	}
	for _, node := range []string{mg.Target, mg.Source} {
		err := m.nodes.call(ctx, node, control.CallMigrateAbandon, control.MigrationAbandon{ID: mg.ID}, nil, liveTimeout)
		if err != nil && control.KindOf(err) != control.KindNotFound {
			m.log.Info("the loss of the secondary is not told yet", "migration", mg.ID, "node", node, "error", err)
		}
	}
	return nil
}

// targetHasIt: the target does not know the move, as when it was deregistered there before a crash of ours. Then it is the
// group's primary like any other, in an epoch behind the source's; else it is not what the move went to.
func (m *Manager) targetHasIt(ctx context.Context, mg *control.Migration, refuse func(string, ...any) error) error {
	var ns control.NodeStatus
	if err := m.nodes.call(ctx, mg.Target, control.CallNodeStatus, struct{}{}, &ns, callTimeout); err != nil {
		return err
	}
	s := groupOf(&ns, mg.Group)
	if s == nil || s.Role != control.RolePrimary || s.Epoch <= mg.Epoch || s.Error != "" {
		return refuse("node %s does not know it and does not serve group %s: the source is the only one that may have its data", mg.Target, mg.Group)
	}
	return nil
}

// deregisterMove removes the source (S1601–1602): secondary, target, source, then the store, so that a repeat begins
// again at whoever has not been told.
func (m *Manager) deregisterMove(ctx context.Context, mg *control.Migration) error {
	g, err := load[control.Group](ctx, m, control.KindGroup, mg.Group)
	if err != nil {
		return err
	}
	if err := m.abandonSecondary(ctx, mg); err != nil {
		return err
	}
	sent := m.sourceSent(ctx, mg)
	wan := m.movedWAN(ctx, mg.ID)
	for _, node := range []string{g.V.CopiesTo(), mg.Target, mg.Source} {
		if node == "" {
			continue
		}
		err := m.do(ctx, node, control.CallMigrateDeregister, mg.ID, control.MigrationID{ID: mg.ID}, nil, callTimeout)
		if err != nil && control.KindOf(err) != control.KindNotFound {
			return err
		}
	}
	if mg.Lone != "" {
		return m.commitLone(ctx, mg)
	}
	m.point(control.StepDeregister, "before")
	var failed error
	_, err = m.editMove(ctx, mg.ID, func(c *change, v *control.Migration) bool {
		if !v.Advance(control.PhaseCommitted) {
			return false
		}
		v.Note(control.StepAt(control.StepDeregister, time.Now()))
		if wan != nil {
			v.Seen.WANBytesSent = wan
		}
		failed = m.retireSource(ctx, c, v, sent)
		return failed == nil
	})
	if err = errors.Join(err, failed); err != nil {
		return err
	}
	m.point(control.StepDeregister, "after")
	if err := m.tellGroup(ctx, mg.Group); err != nil {
		m.log.Info("group will be told to its nodes later", "group", mg.Group, "error", err)
	}
	return nil
}

// tellGroup tells a group's nodes what the store says. No command changes it, or deletes it, in between: a node that is told late of
// a group would make it again.
func (m *Manager) tellGroup(ctx context.Context, name string) error {
	unlock, err := m.locks.lock(ctx, "group/"+name)
	if err != nil {
		return err
	}
	defer unlock()
	g, err := load[control.Group](ctx, m, control.KindGroup, name)
	if err == nil {
		_, err = m.pushGroup(ctx, &g.V)
	}
	return err
}

// retireSource frees the source's volumes and journal and keeps the count of what the source has sent, in c.
func (m *Manager) retireSource(ctx context.Context, c *change, mg *control.Migration, sent *int64) error {
	if _, err := m.freeSide(ctx, c, mg, false, false); err != nil {
		return err
	}
	g, err := load[control.Group](ctx, m, control.KindGroup, mg.Group)
	if err != nil {
		return err
	}
	if sent != nil {
		gone := map[string]int64{}
		for n, b := range g.V.WANGone {
			gone[n] = b
		}
		gone[mg.Source] += *sent
		g.V.WANGone = gone
	}
	g.V.Revision++
	c.put(g.Key, g.Rev, g.V)
	return nil
}

// sourceSent is what the source has put on the link to the secondary; nil if it does not say any more.
func (m *Manager) sourceSent(ctx context.Context, mg *control.Migration) *int64 {
	st := groupOf(m.live(ctx, mg.Source)[mg.Source], mg.Group)
	if st == nil {
		return nil
	}
	return ptr(st.WANBytesSent)
}
