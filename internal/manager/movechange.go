package manager

import (
	"context"
	"time"

	"gantline/internal/control"
)

// moveContinue lets a move go on that stands where --stop-at has it stand, or will. It returns the move's id.
func (m *Manager) moveContinue(ctx context.Context, name string) (string, error) {
	mg, err := m.moveNamed(ctx, name)
	if err != nil {
		return "", err
	}
	id := mg.V.ID
	switch {
	case mg.V.Returning(), mg.V.Phase == control.PhaseAborted:
		return "", control.Errorf(control.KindRefused, "migration %s was aborted: start another one", id)
	case mg.V.Phase == control.PhaseFailed:
		return "", control.Errorf(control.KindRefused, "migration %s has failed: %s", id, mg.V.Error)
	}
	if p := planOf(ctx); p != nil {
		if mg.V.StopAt != "" {
			p.add("let migration " + id + " go on from " + mg.V.Phase)
		}
		return id, nil
	}
	_, err = m.editMove(ctx, id, func(c *change, v *control.Migration) bool {
		if v.StopAt == "" {
			return false // repeated
		}
		v.StopAt, v.Continued = "", time.Now().UTC()
		c.event("migration/"+id, "continued", "command", "move of group %s from %s to %s goes on", v.Group, v.Source, v.Target)
		return true
	})
	if err == nil {
		m.moves.kick(ctx, id)
	}
	return id, err
}

// moveSet changes the limit of a move's background copy. A target that is away is told by the loop when it is back.
func (m *Manager) moveSet(ctx context.Context, name string, in control.MoveSetRequest) (string, error) {
	mg, err := m.moveNamed(ctx, name)
	if err != nil {
		return "", err
	}
	id := mg.V.ID
	switch {
	case in.Limit == nil:
		return "", control.Errorf(control.KindUsage, "migration %s: --limit is what can be set", id)
	case *in.Limit < 0:
		return "", control.Errorf(control.KindUsage, "--limit %d: bytes a second, 0 for none", *in.Limit)
	case !mg.V.Active() || mg.V.Returning():
		return "", control.Errorf(control.KindRefused, "migration %s is %s: it copies nothing any more", id, mg.V.Phase)
	}
	if p := planOf(ctx); p != nil {
		p.add("node " + mg.V.Target + ": " + control.CallMigrateSet + " " + id)
		return id, nil
	}
	_, err = m.editMove(ctx, id, func(c *change, v *control.Migration) bool {
		if v.Limit == *in.Limit {
			return false
		}
		c.event("migration/"+id, "limit", "command", "background copy of migration %s: limit %d bytes a second (0: none), was %d", id,
			*in.Limit, v.Limit)
		v.Limit = *in.Limit
		return true
	})
	if err != nil {
		return "", err
	}
	if err := m.tellLimit(ctx, id); err != nil && !unreachable(err) {
		return "", err
	}
	return id, nil
}

// tellLimit has the target go by the move's limit. One that does not know the move yet learns of it with the registration.
func (m *Manager) tellLimit(ctx context.Context, id string) error {
	unlock, err := m.locks.lock(ctx, "limit/"+id) // the last word told is the one that is noted
	if err != nil {
		return err
	}
	defer unlock()
	mg, err := load[control.Migration](ctx, m, control.KindMigration, id)
	if err != nil {
		return err
	}
	limit := mg.V.Limit
	err = m.do(ctx, mg.V.Target, control.CallMigrateSet, id, control.MigrationSet{ID: id, Limit: limit}, nil, callTimeout)
	if control.KindOf(err) == control.KindNotFound {
		return nil
	}
	if err != nil {
		return err
	}
	_, err = m.editMove(ctx, id, func(_ *change, v *control.Migration) bool {
		changed := v.LimitTold != limit
		v.LimitTold = limit
		return changed
	})
	return err
}
