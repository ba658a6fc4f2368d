package manager

import (
	"context"
	"errors"
	"slices"
	"strings"
	"time"

	"gantline/internal/control"
)

func asError(err error, to **control.Error) bool { return errors.As(err, to) }

// latestMove is the latest move of a group; that of a volume in no group, by the name of the group that it moves in, is known also when
// that has gone.
func (m *Manager) latestMove(ctx context.Context, group string) (got[control.Migration], bool, error) {
	g, exists, err := find[control.Group](ctx, m, control.KindGroup, group)
	if err == nil && !exists && control.ForMove(group) {
		return m.latestLone(ctx, group)
	}
	if err != nil || !exists || g.V.Migrations == 0 {
		return got[control.Migration]{}, false, err
	}
	return find[control.Migration](ctx, m, control.KindMigration, latestID(&g.V))
}

// editMove changes a move's record, whoever else changes it meanwhile. edit says false if there is nothing to store.
func (m *Manager) editMove(ctx context.Context, id string, edit func(c *change, v *control.Migration) bool) (uint64, error) {
	return attempt(ctx, func() (uint64, error) {
		mg, err := load[control.Migration](ctx, m, control.KindMigration, id)
		if err != nil {
			return 0, err
		}
		c := m.change()
		before := mg.V.Phase
		if !edit(c, &mg.V) {
			return mg.Rev, nil
		}
		if mg.V.Phase != before {
			c.event("migration/"+id, mg.V.Phase, "move", "move of %s from %s to %s: %s%s", mg.V.What(), mg.V.Source,
				mg.V.Target, mg.V.Phase, map[bool]string{true: ": " + mg.V.Error}[mg.V.Error != ""])
		}
		return m.commit(ctx, c.put(mg.Key, mg.Rev, mg.V))
	})
}

// spec is a move as its nodes learn it.
func (m *Manager) spec(ctx context.Context, mg *control.Migration) (control.MigrationSpec, error) {
	g, err := load[control.Group](ctx, m, control.KindGroup, mg.Group)
	if err != nil {
		return control.MigrationSpec{}, err
	}
	return m.specOf(ctx, mg, &g.V)
}

func (m *Manager) specOf(ctx context.Context, mg *control.Migration, g *control.Group) (s control.MigrationSpec, err error) {
	s = control.MigrationSpec{
		ID: mg.ID, Group: *g, Source: mg.Source, Target: mg.Target, Secondary: g.CopiesTo(), Volumes: mg.Volumes,
		SourceJournal: mg.SourceJournal, TargetJournal: mg.TargetJournal, InFlight: mg.InFlight, Limit: mg.Limit,
		Address: map[string]string{}, Strategy: mg.Strategy, Backlog: mg.Backlog,
	}
	s.Group.Primary, s.Group.Epoch = mg.Source, mg.Epoch // also when the move has been decided since
	for _, node := range []string{mg.Source, mg.Target, g.Secondary} {
		if node == "" {
			continue
		}
		a, err := m.peerAddress(ctx, node)
		if node == g.Secondary && g.Promotion != nil && control.KindOf(err) == control.KindNotFound {
			continue // the old primary was forgotten: there is nobody to tell that it was superseded
		}
		if err != nil {
			return s, err
		}
		s.Address[node] = a
	}
	return s, nil
}

// registerMove makes what the move is to make, and tells secondary, source and target, in this order.
func (m *Manager) registerMove(ctx context.Context, mg *control.Migration) error {
	for _, full := range mg.MadeVolumes {
		if err := m.stillWanted(ctx, mg.ID); err != nil {
			return err
		}
		if err := m.makeTargetVolume(ctx, mg, full); err != nil {
			return err
		}
	}
	if mg.MadeJournal != "" {
		if err := m.stillWanted(ctx, mg.ID); err != nil {
			return err
		}
		if err := m.makeTargetJournal(ctx, mg); err != nil {
			return err
		}
	}
	if err := m.stillWanted(ctx, mg.ID); err != nil {
		return err
	}
	spec, err := m.spec(ctx, mg)
	if err != nil {
		return err
	}
	nodes := []string{spec.Secondary, spec.Source, spec.Target}
	if mg.Untold || spec.Secondary == "" {
		nodes = nodes[1:]
	}
	if mg.Lone != "" {
		if err := m.joinLone(ctx, mg.Group); err != nil {
			return err
		}
	}
	for _, node := range nodes {
		if err := m.do(ctx, node, control.CallMigrateRegister, mg.ID, spec, nil, callTimeout); err != nil {
			return err
		}
	}
	_, err = m.editMove(ctx, mg.ID, func(_ *change, v *control.Migration) bool {
		v.Note(control.StepAt(control.StepRegister, time.Now()))
		v.LimitTold = spec.Limit
		return v.Advance(control.PhaseRegistered)
	})
	return err
}

// stillWanted ends the making of what a move needs, which may take long, when the move was aborted meanwhile.
func (m *Manager) stillWanted(ctx context.Context, id string) error {
	mg, err := load[control.Migration](ctx, m, control.KindMigration, id)
	if err == nil && mg.V.Returning() {
		return control.Errorf(control.KindRefused, "migration %s was aborted", id)
	}
	return err
}

// notMade refuses what somebody else has made under the name since the move was begun: it is neither overwritten nor removed.
func notMade(mg *control.Migration, kind, full string) error {
	return control.Errorf(control.KindRefused, "migration %s: %s %s has been made by another command meanwhile; delete it and begin again", mg.ID,
		kind, full)
}

// tellSecondary registers the move with a secondary that could not be reached when it began. Until then the secondary believes
// only its source, whose fence, if it gets that far, names the target too.
func (m *Manager) tellSecondary(ctx context.Context, mg *control.Migration) error {
	spec, err := m.spec(ctx, mg)
	if err != nil {
		return err
	}
	if err := m.do(ctx, spec.Secondary, control.CallMigrateRegister, mg.ID, spec, nil, liveTimeout); err != nil {
		return err
	}
	_, err = m.editMove(ctx, mg.ID, func(_ *change, v *control.Migration) bool {
		untold := v.Untold
		v.Untold = false
		return untold
	})
	return err
}

func (m *Manager) makeTargetVolume(ctx context.Context, mg *control.Migration, full string) error {
	i := slices.IndexFunc(mg.Volumes, func(v control.MovedVolume) bool { return v.Target == full })
	unlock, err := m.locks.lock(ctx, "owned/"+full)
	if err != nil {
		return err
	}
	defer unlock()
	old, exists, err := find[control.Volume](ctx, m, control.KindVolume, full)
	if err == nil && exists && old.V.Group != mg.Group {
		return notMade(mg, "volume", full)
	}
	if err != nil || exists || i < 0 {
		return err
	}
	v, err := m.makeVolume(ctx, mg.Target, control.VolumeCreate{Name: control.BaseOf(full), Size: mg.Volumes[i].Size,
		For: control.MigrationCancel{ID: mg.ID, Epoch: mg.Epoch}})
	if err != nil {
		return err
	}
	v.Group = mg.Group
	_, err = m.commit(ctx, m.change().put(old.Key, 0, v).
		event("volume/"+full, "created", "move", "volume %s created for migration %s", full, mg.ID))
	return err
}

func (m *Manager) makeTargetJournal(ctx context.Context, mg *control.Migration) error {
	unlock, err := m.locks.lock(ctx, "owned/"+mg.MadeJournal)
	if err != nil {
		return err
	}
	defer unlock()
	old, exists, err := find[control.Journal](ctx, m, control.KindJournal, mg.MadeJournal)
	if err == nil && exists && old.V.Group != mg.Group {
		return notMade(mg, "journal", mg.MadeJournal)
	}
	if err != nil || exists {
		return err
	}
	j, err := m.makeJournal(ctx, mg.Target, control.JournalCreate{Name: control.BaseOf(mg.MadeJournal), Size: mg.JournalSize,
		For: control.MigrationCancel{ID: mg.ID, Epoch: mg.Epoch}})
	if err != nil {
		return err
	}
	j.Group, j.Auto = mg.Group, true
	_, err = m.commit(ctx, m.change().put(old.Key, 0, j).
		event("journal/"+mg.MadeJournal, "created", "move", "journal %s created for migration %s", mg.MadeJournal, mg.ID))
	return err
}

// readyLimit is how long a move waits for its source to come into the stream, before hosts are led anywhere.
const readyLimit = 10 * time.Minute

// sourceReady waits a little for a source that is not ready to be sealed: a periodic one has to copy what has changed first.
func (m *Manager) sourceReady(ctx context.Context, mg *control.Migration) (bool, error) {
	var st control.MigrationStatus
	err := m.nodes.call(ctx, mg.Source, control.CallMigrateStatus, control.MigrationID{ID: mg.ID}, &st, liveTimeout)
	if err != nil || st.Ready {
		return st.Ready, err
	}
	for _, s := range mg.Steps {
		last := s.Step == control.StepRegister && mg.Strategy != control.StrategyCopyFirst || s.Step == control.StepCopy
		if last && time.Since(s.At) > readyLimit && time.Since(mg.Continued) > readyLimit {
			return false, control.Errorf(control.KindRefused, "%s did not come to be in step within %v, as a move needs it; see `gantline %s show %s`",
				mg.What(), readyLimit, map[bool]string{true: "volume", false: "group"}[mg.Lone != ""], mg.Object())
		}
	}
	sleep(ctx, watchSlow)
	return false, nil
}

// copyMove has the move wait until the target is filled and follows the source, however long that takes and whoever is away
// meanwhile: hosts are served by the source, and nothing has been led anywhere.
func (m *Manager) copyMove(ctx context.Context, mg *control.Migration) error {
	if mg.Phase == control.PhaseRegistered {
		err := m.do(ctx, mg.Target, control.CallMigrateCopy, mg.ID, control.MigrationID{ID: mg.ID}, nil, callTimeout)
		if err == nil {
			_, err = m.editMove(ctx, mg.ID, func(_ *change, v *control.Migration) bool {
				return !v.Returning() && v.Advance(control.PhaseCopying)
			})
		}
		return err
	}
	var st control.MigrationStatus
	err := m.nodes.call(ctx, mg.Target, control.CallMigrateStatus, control.MigrationID{ID: mg.ID}, &st, liveTimeout)
	if control.KindOf(err) == control.KindNotFound {
		return err // it has lost the move
	}
	if err == nil && mg.Limit != mg.LimitTold {
		err = m.tellLimit(ctx, mg.ID) // it was away when that was changed
		if err != nil && !isNodeError(err) {
			return err
		}
	}
	if err != nil || !st.Copied {
		sleep(ctx, watchSlow)
		return nil
	}
	m.point(control.StepCopy, "before")
	_, err = m.editMove(ctx, mg.ID, func(_ *change, v *control.Migration) bool {
		return !v.Returning() && v.Note(control.StepAt(control.StepCopy, time.Now()))
	})
	if err == nil {
		m.point(control.StepCopy, "after")
	}
	return err
}

func (m *Manager) throughMove(ctx context.Context, mg *control.Migration) error {
	if ready, err := m.sourceReady(ctx, mg); err != nil || !ready {
		return err
	}
	err := m.do(ctx, mg.Target, control.CallMigrateThrough, mg.ID, control.MigrationID{ID: mg.ID}, nil, callTimeout)
	if err != nil {
		return err
	}
	m.point(control.StepThrough, "before")
	_, err = m.editMove(ctx, mg.ID, func(_ *change, v *control.Migration) bool {
		v.Note(control.StepAt(control.StepThrough, time.Now()))
		return v.Advance(control.PhaseThrough)
	})
	if err == nil {
		m.point(control.StepThrough, "after")
	}
	return err
}

// leadVvols rewrites the virtual volumes of a move's volumes, to the target's or back, in c. Back from those that are the
// group's only: under a name that the move has not come to, there may be a volume of somebody else. On the way back what is in
// flight finishes, whatever was asked for the way there: nobody has asked for an error by that.
func (m *Manager) leadVvols(ctx context.Context, c *change, mg *control.Migration, target bool) error {
	vvols, err := loadAll[control.Vvol](ctx, m, control.KindVvol)
	if err != nil {
		return err
	}
	for _, v := range vvols {
		put := false
		for _, mv := range mg.Volumes {
			from, to, policy := mv.Target, mv.Source, inFlightFinish
			if target {
				from, to, policy = mv.Source, mv.Target, mg.InFlight
			}
			if !slices.Contains(v.V.Volumes(), from) {
				continue
			}
			if vol, exists, err := find[control.Volume](ctx, m, control.KindVolume, from); err != nil {
				return err
			} else if exists && vol.V.Group != mg.Group {
				continue
			}
			v.V.Relead(from, to)
			v.V.InFlight = policy
			put = true
		}
		if put {
			c.put(v.Key, v.Rev, v.V)
		}
	}
	return nil
}

// switchMove leads every path to the target at once (S702–704); the step counts when the gateways have confirmed.
func (m *Manager) switchMove(ctx context.Context, mg *control.Migration) error {
	m.point(control.StepSwitch, "before")
	var failed error
	_, err := m.editMove(ctx, mg.ID, func(c *change, v *control.Migration) bool {
		if v.Returning() || control.Ended(v.Phase) {
			return false
		}
		if failed = m.leadVvols(ctx, c, v, true); failed != nil || v.VvolsMoved {
			return false
		}
		v.VvolsMoved = true
		return true
	})
	if err = errors.Join(err, failed); err == nil {
		m.point(control.StepSwitch, "after")
	}
	return err
}

// confirmMove waits for the gateways that are up. One that is cut off is left to the seal: the source answers it "moved".
func (m *Manager) confirmMove(ctx context.Context, mg *control.Migration) error {
	_, at, err := m.store.List(ctx, control.KindVvol+"/")
	if err != nil {
		return err
	}
	late := m.confirmed(ctx, at, confirmWait)
	if ctx.Err() != nil {
		return nil
	}
	_, err = m.editMove(ctx, mg.ID, func(c *change, v *control.Migration) bool {
		if len(late) > 0 {
			c.event("migration/"+mg.ID, "gateways-late", "timeout", "gateways %s have not confirmed within %v; the seal will lead "+
				"them", strings.Join(late, ", "), confirmWait)
		}
		v.Note(control.StepAt(control.StepSwitch, time.Now()))
		return v.Advance(control.PhaseSwitched)
	})
	return err
}

// decide is the one compare-and-swap of a move (S4). It takes no lock: hosts are waiting.
func (m *Manager) decide(ctx context.Context, id string, in control.DecideRequest) (control.DecideReply, error) {
	refuse := func(format string, args ...any) (control.DecideReply, error) {
		return control.DecideReply{}, control.Errorf(control.KindRefused, "migration "+id+": "+format, args...)
	}
	return attempt(ctx, func() (control.DecideReply, error) {
		mg, err := load[control.Migration](ctx, m, control.KindMigration, id)
		if err != nil {
			return control.DecideReply{}, err
		}
		if mg.V.Decided != control.DecidedNone {
			return control.DecideReply{Decided: mg.V.Decided, At: decidedAt(&mg.V)}, nil
		}
		g, err := load[control.Group](ctx, m, control.KindGroup, mg.V.Group)
		if err != nil {
			return control.DecideReply{}, err
		}
		switch {
		case in.Node != mg.V.Target:
			return refuse("%s asks, but %s is its target", in.Node, mg.V.Target)
		case in.Epoch != mg.V.Epoch:
			return refuse("asked for epoch %d, it was registered in %d", in.Epoch, mg.V.Epoch)
		case !mg.V.RunAsked:
			return refuse("it has not been run")
		case g.V.Primary != mg.V.Source || g.V.Epoch != mg.V.Epoch:
			// The opposite swap may have come between the two reads: then there is a decision to tell.
			if now, err := load[control.Migration](ctx, m, control.KindMigration, id); err == nil && now.Rev != mg.Rev {
				return control.DecideReply{}, control.ErrConflict
			}
			return refuse("the store has primary %s in epoch %d, not %s in %d", g.V.Primary, g.V.Epoch, mg.V.Source, mg.V.Epoch)
		}
		now := time.Now().UTC()
		ownGroup(&g.V, &mg.V, true, mg.V.Epoch+1)
		mg.V.Decided = control.DecidedTarget
		mg.V.Note(control.StepAt(control.StepDecide, now))
		mg.V.Seen.Cut, mg.V.Seen.Epoch = ptr(in.Cut), ptr(g.V.Epoch)
		m.point(control.StepDecide, "before")
		_, err = m.commit(ctx, m.change().put(mg.Key, mg.Rev, mg.V).put(g.Key, g.Rev, g.V).
			event(g.V.Object(), "decided", "migration "+id, "%s is the primary of %s from sequence %d on, in epoch %d",
				in.Node, g.V.What(), in.Cut+1, g.V.Epoch))
		if err != nil {
			return control.DecideReply{}, err
		}
		m.point(control.StepDecide, "after")
		return control.DecideReply{Decided: control.DecidedTarget, At: now}, nil
	})
}

func decidedAt(mg *control.Migration) time.Time {
	for _, s := range mg.Steps {
		if s.Step == control.StepDecide {
			return s.At
		}
	}
	return time.Now().UTC()
}

// mergeMove stores what the target tells.
func (m *Manager) mergeMove(ctx context.Context, id string, st *control.MigrationStatus) error {
	wan := m.movedWAN(ctx, id)
	_, err := m.editMove(ctx, id, func(_ *change, v *control.Migration) bool {
		if v.Returning() {
			return false
		}
		changed := mergeStatus(v, st)
		if changed && wan != nil {
			v.Seen.WANBytesSent = wan
		}
		return changed
	})
	return err
}

// movedWAN is what went over the WAN since the move's start, if it can be known now.
func (m *Manager) movedWAN(ctx context.Context, id string) *int64 {
	mg, err := load[control.Migration](ctx, m, control.KindMigration, id)
	if err != nil || !control.After(mg.V.Phase, control.PhaseMigrating) {
		return nil // asking more nodes has no place near the pause
	}
	g, err := load[control.Group](ctx, m, control.KindGroup, mg.V.Group)
	if err != nil {
		return nil
	}
	all := []got[control.Migration]{mg}
	sum := wanBytes(&g.V, all, m.look(ctx, []control.Group{g.V}, all))
	if sum == nil {
		return nil
	}
	return ptr(*sum - mg.V.WANBytesStart)
}
