package node

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"slices"
	"time"

	"gantline/internal/block"
	"gantline/internal/control"
	"gantline/internal/journal"
	"gantline/internal/migrate"
	"gantline/internal/record"
	"gantline/internal/volume"
	"gantline/internal/wire"
)

// carriedRecord is the log of what a move has carried here. It stands in front of the group's own log until the secondary has
// all of it; then its space is given back.
type carriedRecord struct {
	Move   string `json:"move"`
	Device string `json:"device"`
	Cut    uint64 `json:"cut"`   // its last record
	Bytes  int64  `json:"bytes"` // of data, when it came
	// Freed: nobody needs it any more; the device may be gone.
	Freed bool `json:"freed,omitempty"`
}

func (n *Node) carriedPath(move string) string { return n.journalPath(move+".carried", 0) }

// openJournalAt opens the journal on one device; nil: there is no device of that name.
func (n *Node) openJournalAt(path string) (*journal.Journal, int64, error) {
	exists, err := n.cfg.Devices.Exists(path)
	if err != nil || !exists {
		return nil, 0, err
	}
	dev, err := n.cfg.Devices.Open(path)
	if err != nil {
		return nil, 0, err
	}
	size := dev.Size()
	jnl, err := journal.Open([]block.Device{dev})
	if err != nil {
		return nil, 0, errors.Join(fmt.Errorf("%s: %w", path, err), dev.Close())
	}
	return jnl, size, nil
}

// chained is the group's log, with what was carried here in front of it, or with room for it if a move brings it.
func (g *group) chained(rec *groupRecord, log volume.Log) (volume.Log, error) {
	c := rec.Carried
	if c != nil && c.Freed {
		if err := g.n.dropCarried(g.name, c); err != nil {
			return nil, err
		}
		c = nil
	}
	if c == nil {
		for _, m := range g.n.state.view().Moves {
			if m.Role == control.RoleTarget && m.Spec.Carries() && m.Spec.Group.Name == g.name {
				return volume.NewChain(log, nil, 0, 0), nil
			}
		}
		return log, nil
	}
	jnl, _, err := g.n.openJournalAt(c.Device)
	switch {
	case err != nil:
		return nil, fmt.Errorf("what migration %s has carried here: %w", c.Move, err)
	case jnl == nil:
		return nil, fmt.Errorf("what migration %s has carried here, and the secondary has not got yet, is gone: %s does not exist", c.Move, c.Device)
	}
	if at := jnl.Cursors(); uint64(at.Durable) != c.Cut || at.Appended != at.Durable {
		return nil, errors.Join(fmt.Errorf("what migration %s has carried here ends at %d, not at %d", c.Move, at.Durable, c.Cut), jnl.Close())
	}
	return volume.NewChain(log, groupLog{jnl}, record.Seq(c.Cut), c.Bytes), nil
}

// tellCarried tells the source once more, if it did not hear of it, that it need not send what was carried here: one that was
// away would send all of it beside this node when it is back. Nobody waits for it.
func (g *group) tellCarried(ctx context.Context) (told bool) {
	rec := g.n.state.group(g.name)
	if rec == nil || rec.Carried == nil {
		return true
	}
	m := g.n.state.move(rec.Carried.Move)
	if m == nil || m.Stage == migrate.Deregistered {
		return true
	}
	ctx, cancel := context.WithTimeout(ctx, carryGrace)
	defer cancel()
	err := g.n.call(ctx, m.Spec.Source, control.CallMigrateCarried, control.MigrationID{ID: rec.Carried.Move}, nil)
	if err == nil {
		return true
	}
	kind := wire.KindOf(err)
	return kind == wire.KindRefused || kind == wire.KindNotFound // it has left the move, and sends nothing
}

// frontLook is how often is looked whether the secondary has what was carried here.
const frontLook = 200 * time.Millisecond

// watchFront gives the space of what was carried here back as soon as nobody needs it: the secondary has it, or, out of the
// stream, has it marked.
func (g *group) watchFront() {
	g.run.begin(func() {
		tick := time.NewTicker(frontLook)
		defer tick.Stop()
		told, sourceTold, asked := "", false, time.Time{}
		for {
			select {
			case <-g.run.ctx.Done():
				return
			case <-tick.C:
			}
			if !sourceTold && time.Since(asked) >= tellEvery {
				sourceTold, asked = g.tellCarried(g.run.ctx), time.Now()
			}
			done, err := g.freeFront(g.run.ctx)
			if err != nil && g.run.ctx.Err() == nil && err.Error() != told {
				told = err.Error()
				g.n.log.Warn("what was carried here is not given back yet", "group", g.name, "cause", err)
			}
			if done {
				return
			}
		}
	})
}

// freeFront, in this order: freed in its own superblock, noted, closed, removed, forgotten. Dead anywhere, the next start goes on.
func (g *group) freeFront(ctx context.Context) (done bool, err error) {
	vg, rec := g.running(), g.n.state.group(g.name)
	if vg == nil || rec == nil || rec.Carried == nil {
		return true, nil
	}
	c := *rec.Carried
	if c.Freed { // and not removed
		if err := vg.TakeFront(); err != nil {
			return false, err
		}
		err := g.n.dropCarried(g.name, &c)
		return err == nil, err
	}
	if sub := vg.Subscriber(secondaryName); sub != nil && sub.State() == volume.SubStreaming && g.n.abandoned(c.Move) {
		if err := sub.Suspend("the secondary was given up"); err != nil {
			return false, err
		}
	}
	if free, err := vg.FreeFront(ctx, secondaryName); err != nil || !free {
		return false, err
	}
	g.n.cfg.Point(control.PointCarryFree, "before")
	err = g.n.state.update(func(d *durable) error {
		if r := d.Groups[g.name]; r != nil && r.Carried != nil {
			r.Carried.Freed = true
		}
		return nil
	})
	if err == nil {
		err = vg.TakeFront()
	}
	if err == nil {
		err = g.n.dropCarried(g.name, &c)
	}
	if err != nil {
		return false, err
	}
	g.n.cfg.Point(control.PointCarryFree, "after")
	g.n.log.Info("the secondary has what was carried here; its space is given back", "group", g.name, "up_to", c.Cut)
	return true, nil
}

// dropCarried removes the log and forgets it.
func (n *Node) dropCarried(group string, c *carriedRecord) error {
	if err := n.removeMap(c.Device); err != nil {
		return err
	}
	return n.state.update(func(d *durable) error {
		if r := d.Groups[group]; r != nil && r.Carried != nil && r.Carried.Move == c.Move {
			r.Carried = nil
		}
		return nil
	})
}

// sweepCarried removes logs that nobody carries to any more: their move was ended by a promotion, or the process died behind
// the note that it had ended. A journal of the operator's cannot have such a name.
func (n *Node) sweepCarried() error {
	paths, err := filepath.Glob(n.carriedPath("*"))
	if err != nil || len(paths) == 0 {
		return err
	}
	d := n.state.view() // behind the look: what is begun meanwhile is left alone
	for _, g := range d.Groups {
		if g.Carried != nil {
			paths = slices.DeleteFunc(paths, func(p string) bool { return p == g.Carried.Device })
		}
	}
	for id, m := range d.Moves {
		if m.Role == control.RoleTarget && m.Stage != migrate.Deregistered {
			paths = slices.DeleteFunc(paths, func(p string) bool { return p == n.carriedPath(id) })
		}
	}
	for _, p := range paths {
		n.log.Info("what was carried for a move that has ended is removed", "path", p)
		if err := n.removeMap(p); err != nil {
			return err
		}
	}
	return nil
}
