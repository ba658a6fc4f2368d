package manager

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"gantline/internal/control"
)

// moveNamed is a move by its id, or the latest of a group or of a volume in none.
func (m *Manager) moveNamed(ctx context.Context, name string) (got[control.Migration], error) {
	name = control.LoneGroup(name)
	mg, exists, err := find[control.Migration](ctx, m, control.KindMigration, name)
	if err == nil && !exists {
		if mg, exists, err = m.latestMove(ctx, name); err == nil && !exists {
			err = notFound(control.KindMigration, name)
		}
	}
	return mg, err
}

// moveAbort turns a move back by command: one transaction that gives group and virtual volumes to the source. Where the
// target may have been ordered to take over it is the opposite swap (source, e+2), which wins only if the target's has not.
// The loop does the rest. It returns the move's id.
func (m *Manager) moveAbort(ctx context.Context, name string) (string, error) {
	mg, err := m.moveNamed(ctx, name)
	if err != nil {
		return "", err
	}
	id := mg.V.ID
	turned, err := attempt(ctx, func() (bool, error) {
		mg, err := load[control.Migration](ctx, m, control.KindMigration, id)
		if err != nil {
			return false, err
		}
		if mg.V.Returning() || mg.V.Phase == control.PhaseAborted {
			return false, nil // repeated
		}
		if err := abortable(&mg.V); err != nil {
			return false, err
		}
		return true, m.turnBack(ctx, mg)
	})
	if err != nil {
		return "", err
	}
	if planOf(ctx) != nil {
		return id, nil
	}
	if turned {
		m.point(control.PointAbort, "after")
	}
	m.moves.kick(ctx, id) // repeated too: the first may have been stored by a command that was told of an error
	return id, nil
}

// abortable refuses what has been decided, or has ended otherwise.
func abortable(mg *control.Migration) error {
	refuse := func(format string, args ...any) error {
		return control.Errorf(control.KindRefused, "migration "+mg.ID+" cannot be aborted: "+format, args...)
	}
	switch {
	case mg.Phase == control.PhaseFailed:
		return refuse("it has failed and gone back to %s already: %s", mg.Source, mg.Error)
	case mg.Phase == control.PhaseCommitted:
		return refuse("it has been committed; move %s back with `gantline migrate start %s --to %s`", mg.What(), mg.Arrived(), mg.Source)
	case mg.Decided == control.DecidedTarget:
		return refuse("%s has been the primary since it was decided, and only it has what hosts have written there; let it end, commit it, "+
			"and move %s back", mg.Target, mg.What())
	}
	return nil
}

func (m *Manager) turnBack(ctx context.Context, mg got[control.Migration]) error {
	g, err := load[control.Group](ctx, m, control.KindGroup, mg.V.Group)
	if err != nil {
		return err
	}
	v := &mg.V
	epoch := v.Epoch
	if v.RunAsked {
		epoch += 2
	}
	c := m.change()
	if err := m.leadVvols(ctx, c, v, false); err != nil {
		return err
	}
	if _, err := m.freeSide(ctx, c, v, true, true); err != nil {
		return err
	}
	ownGroup(&g.V, v, false, epoch)
	was := v.Phase
	if was == "" {
		was = "registering"
	}
	abortMove(v, g.V.CopiesTo(), "aborted by command; it was "+was)
	if p := planOf(ctx); p != nil {
		p.set(abortPlan(v, g.V.CopiesTo(), epoch))
		return nil
	}
	m.point(control.PointAbort, "before")
	_, err = m.commit(ctx, c.put(mg.Key, mg.Rev, v).put(g.Key, g.Rev, g.V).
		event("migration/"+v.ID, "aborting", "command", "move of %s from %s to %s goes back: it was %s", v.What(), v.Source, v.Target, was))
	return err
}

func abortPlan(mg *control.Migration, secondary string, epoch uint64) control.PlanView {
	v := control.PlanView{Refusals: []string{}, SpaceBytes: ptr(int64(0))}
	add := func(format string, args ...any) { v.Plan = append(v.Plan, fmt.Sprintf(format, args...)) }
	if mg.RunAsked {
		add("have %s go on as the primary of %s in epoch %d", mg.Source, mg.What(), epoch)
	}
	for _, mv := range mg.Volumes {
		add("lead hosts of %s to %s", mv.Target, mv.Source)
	}
	if secondary == "" {
		add("have %s and %s forget the move", mg.Target, mg.Source)
	} else {
		add("have %s, %s and the secondary forget the move", mg.Target, mg.Source)
	}
	for _, full := range mg.MadeVolumes {
		add("remove volume %s", full)
	}
	if mg.MadeJournal != "" {
		add("remove journal %s", mg.MadeJournal)
	}
	return v
}

// abortedMove ends an abort: the source serves, and whoever can be reached knows. Entries that are left are made afterwards.
func (m *Manager) abortedMove(ctx context.Context, id string) error {
	m.point(control.PointAborted, "before")
	_, err := m.editMove(ctx, id, func(_ *change, v *control.Migration) bool { return v.Advance(control.PhaseAborted) })
	if err == nil {
		m.point(control.PointAborted, "after")
	}
	return err
}

// undo does what is left of a move that went back, in order; a node that is away does not hold up the others.
func (r *moveRunner) undo(ctx context.Context, mg *control.Migration) error {
	failed := map[string]bool{}
	var away, waits []string
	progress := false
	for _, entry := range mg.Undo {
		u := parseUndo(entry)
		if failed[u.node] {
			continue
		}
		if err := r.m.undoNext(ctx, mg, u, entry); err != nil {
			if !isNodeError(err) && !unreachable(err) {
				return err
			}
			r.m.log.Info("move's end is not told yet", "migration", mg.ID, "node", u.node, "call", u.method, "error", err)
			failed[u.node] = true
			if unreachable(err) {
				away = append(away, u.node)
			}
			waits = append(waits, err.Error())
			continue
		}
		progress = true
	}
	r.facts.Away = away
	r.m.moves.note(mg.ID, strings.Join(waits, "; "))
	switch {
	case progress || len(failed) == 0:
	case !mg.Returning():
		sleep(ctx, retryUndo)
	case len(away) > 0:
		sleep(ctx, retryCall)
	default:
		sleep(ctx, watchFast) // the target has still to hear from the source that it goes on
	}
	return nil
}

// undoNext does one thing and takes it off the list.
func (m *Manager) undoNext(ctx context.Context, mg *control.Migration, u undo, entry string) error {
	done := func(v *control.Migration) {
		v.Undo = slices.DeleteFunc(v.Undo, func(e string) bool { return e == entry })
	}
	if u.method == control.CallGroupDelete {
		return m.endLone(ctx, mg, u.node, func(_ *change, v *control.Migration) bool { done(v); return true })
	}
	if err := m.undoOne(ctx, mg, u); err != nil {
		return err
	}
	_, err := m.editMove(ctx, mg.ID, func(c *change, v *control.Migration) bool {
		done(v)
		return m.forgetMade(ctx, c, mg, u) == nil
	})
	return err
}

// forgetMade removes from the store, in c, what the target has removed.
func (m *Manager) forgetMade(ctx context.Context, c *change, mg *control.Migration, u undo) error {
	kind := map[string]string{control.CallVolumeDelete: control.KindVolume, control.CallJournalDelete: control.KindJournal}[u.method]
	if kind == "" {
		return nil
	}
	full := u.node + "/" + u.name
	if made, err := m.madeFor(ctx, mg, u, full); err != nil || !made {
		return err
	}
	e, err := m.store.Get(ctx, control.Key(kind, full))
	if errors.Is(err, control.ErrNotFound) {
		return nil
	}
	if err != nil {
		return err
	}
	c.del(control.Key(kind, full), e.Revision).event(singular(kind)+"/"+full, "deleted", "migration "+mg.ID, "%s %s, made for the move, removed",
		singular(kind), full)
	return nil
}

func (m *Manager) undoOne(ctx context.Context, mg *control.Migration, u undo) error {
	if u.method == undoGateways {
		// The target relays until the gateways lead to the source again; only then is it told to forget.
		at, err := m.vvolRevision(ctx)
		if err == nil {
			m.inForce(ctx, at, "migration/"+mg.ID)
		}
		return err
	}
	in := control.MigrationEnd{MigrationCancel: control.MigrationCancel{ID: mg.ID, Epoch: mg.Epoch}, By: mg.Promoted, TargetLost: mg.TargetLost}
	if _, exists, err := find[control.Node](ctx, m, control.KindNode, u.node); err == nil && !exists {
		return nil // removed: there is nobody to tell
	}
	var err error
	switch u.method {
	case control.CallVolumeDelete, control.CallJournalDelete:
		err = m.removeMade(ctx, mg, u)
	case control.CallMigrateReopen:
		var out control.ReopenResult
		if err = m.do(ctx, u.node, u.method, mg.ID, in, &out, callTimeout); err == nil {
			return m.sourceServes(ctx, mg, out.Epoch)
		}
	default:
		if mg.Untold && u.method == control.CallMigrateCancel && u.node != mg.Source && u.node != mg.Target {
			if !mg.RunAsked {
				return nil // it has never heard of the move, and nothing was sealed
			}
			err = m.tellSecondary(ctx, mg) // the source may go on in an epoch that only the registration permits
		}
		if err == nil {
			err = m.do(ctx, u.node, u.method, mg.ID, in, nil, callTimeout)
		}
	}
	if control.KindOf(err) == control.KindNotFound {
		return nil
	}
	return err
}

func (m *Manager) vvolRevision(ctx context.Context) (uint64, error) {
	_, at, err := m.store.List(ctx, control.KindVvol+"/")
	return at, err
}

// madeFor is false for what somebody else has made under the name, before the move came to it.
func (m *Manager) madeFor(ctx context.Context, mg *control.Migration, u undo, full string) (bool, error) {
	if u.method == control.CallJournalDelete {
		j, exists, err := find[control.Journal](ctx, m, control.KindJournal, full)
		return !exists || j.V.Group == mg.Group, err
	}
	v, exists, err := find[control.Volume](ctx, m, control.KindVolume, full)
	return !exists || v.V.Group == mg.Group, err
}

// removeMade has the target remove what was made for a move. A gateway that still leads there would fail its hosts: it must
// have learnt of the way back first.
func (m *Manager) removeMade(ctx context.Context, mg *control.Migration, u undo) error {
	full := u.node + "/" + u.name
	unlock, err := m.locks.lock(ctx, "owned/"+full)
	if err != nil {
		return err
	}
	defer unlock()
	if made, err := m.madeFor(ctx, mg, u, full); err != nil || !made {
		return err
	}
	at, err := m.vvolRevision(ctx)
	if err != nil {
		return err
	}
	if late := m.confirmed(ctx, at, retryCall); len(late) > 0 {
		return control.Errorf(control.KindUnreachable, "gateways %s have not confirmed the way back: %s/%s stays until they have",
			strings.Join(late, ", "), u.node, u.name)
	}
	limit := removeBase + time.Minute
	return m.do(ctx, u.node, u.method, u.name, control.NameOnly{Name: u.name, For: mg.ID}, nil, limit)
}
