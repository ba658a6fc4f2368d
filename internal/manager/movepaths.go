package manager

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"time"

	"gantline/internal/control"
)

// Paths that are switched one by one (S702–704). While some gateways lead to the target and others to the source, the target relays:
// all requests meet at the source, which gives them their one order. Whoever is passed over is led when all are, or by the seal.

// abortLook is how soon a wait for a gateway notices that the move is aborted.
const abortLook = 250 * time.Millisecond

// pathMove takes the next step of switching one gateway after the other.
func (m *Manager) pathMove(ctx context.Context, mg *control.Migration) error {
	if mg.Gateways == nil {
		return m.listPaths(ctx, mg.ID)
	}
	p := mg.NextPath()
	if p.State == control.PathWaits {
		return m.leadPath(ctx, mg.ID, p.Gateway)
	}
	return m.awaitPath(ctx, mg, p.Gateway)
}

// listPaths notes the gateways that there are. One that registers later is led with all of them, at the end.
func (m *Manager) listPaths(ctx context.Context, id string) error {
	gateways, err := loadAll[control.Gateway](ctx, m, control.KindGateway)
	if err != nil {
		return err
	}
	paths := []control.MovePath{}
	for _, g := range gateways {
		paths = append(paths, control.MovePath{Gateway: g.V.Name, State: control.PathWaits})
	}
	slices.SortFunc(paths, func(a, b control.MovePath) int { return strings.Compare(a.Gateway, b.Gateway) })
	_, err = m.editMove(ctx, id, func(_ *change, v *control.Migration) bool {
		if v.Returning() || control.Ended(v.Phase) || v.Gateways != nil {
			return false
		}
		v.Gateways = paths
		return true
	})
	return err
}

// editPath changes the state of the gateway that is next, if it still has state from and the move goes on.
func (m *Manager) editPath(ctx context.Context, id, gateway, from, to string, also func(c *change, v *control.Migration) error) error {
	var failed error
	_, err := m.editMove(ctx, id, func(c *change, v *control.Migration) bool {
		p := v.NextPath()
		if v.Returning() || control.Ended(v.Phase) || v.VvolsMoved || p == nil || p.Gateway != gateway || p.State != from {
			return false
		}
		p.State, p.At = to, time.Now().UTC()
		failed = also(c, v)
		return failed == nil
	})
	if failed != nil {
		return failed
	}
	return err
}

// leadPath has one gateway lead to the target, in one transaction.
func (m *Manager) leadPath(ctx context.Context, id, gateway string) error {
	m.point(control.PointPath, "before")
	err := m.editPath(ctx, id, gateway, control.PathWaits, control.PathLed, func(c *change, v *control.Migration) error {
		vvols, err := loadAll[control.Vvol](ctx, m, control.KindVvol)
		if err != nil {
			return err
		}
		for _, vv := range vvols {
			for _, mv := range v.Volumes {
				if vv.V.VolumeAt(gateway) == mv.Source {
					vv.V.Lead(mv.Target, gateway)
					vv.V.InFlight = v.InFlight
					c.put(vv.Key, vv.Rev, vv.V)
					break
				}
			}
		}
		return nil
	})
	if err == nil {
		m.point(control.PointPath, "after")
	}
	return err
}

// awaitPath waits until a gateway has confirmed that it leads to the target, for confirmWait at most. What a manager that was
// restarted knows of gateways is what they tell it anew: the wait begins again.
func (m *Manager) awaitPath(ctx context.Context, mg *control.Migration, gateway string) error {
	at, err := m.vvolRevision(ctx)
	if err != nil {
		return err
	}
	state := control.PathLate
	for end := time.Now().Add(confirmWait); state == control.PathLate && time.Now().Before(end); {
		if m.confirmedBy(ctx, gateway, at, abortLook) {
			state = control.PathConfirmed
			break
		}
		now, err := load[control.Migration](ctx, m, control.KindMigration, mg.ID)
		if err != nil || now.V.Returning() || ctx.Err() != nil {
			return err
		}
	}
	return m.editPath(ctx, mg.ID, gateway, control.PathLed, state, func(c *change, v *control.Migration) error {
		done := 0
		for _, p := range v.Gateways {
			if p.State == control.PathConfirmed || p.State == control.PathLate {
				done++
			}
		}
		if state == control.PathLate {
			c.event("migration/"+mg.ID, "path-late", "timeout", "gateway %s has not confirmed within %v that it leads to %s, and is passed over "+
				"(%d of %d); it learns of it when it is back, or from the seal", gateway, confirmWait, v.Target, done, len(v.Gateways))
		} else {
			c.event("migration/"+mg.ID, "path-switched", "move", "gateway %s leads hosts of group %s to %s (%d of %d)", gateway, v.Group,
				v.Target, done, len(v.Gateways))
		}
		return nil
	})
}

// confirmedBy waits a while until a gateway is up and has in force what the store said at a revision.
func (m *Manager) confirmedBy(ctx context.Context, gateway string, store uint64, wait time.Duration) bool {
	ctx, cancel := context.WithTimeout(ctx, wait)
	defer cancel()
	want, err := m.routes.revisionAt(ctx, store)
	if err != nil {
		return false
	}
	for {
		has, changed := m.presence.has(gateway, want)
		if has {
			return true
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return false
		}
	}
}

// pathsWait is what a move waits for that switches its gateways one by one.
func pathsWait(mg *control.Migration, next *control.MovePath) string {
	i := slices.IndexFunc(mg.Gateways, func(p control.MovePath) bool { return p.Gateway == next.Gateway })
	return fmt.Sprintf("gateway %s to lead to %s (%d of %d are done)", next.Gateway, mg.Target, i, len(mg.Gateways))
}
