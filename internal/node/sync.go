package node

import (
	"context"
	"fmt"
	"time"

	"gantline/internal/control"
	"gantline/internal/sender"
	"gantline/internal/volume"
)

// syncConfig is what the settings mean to the subscriber that is the secondary.
func (g *group) syncConfig(s control.Settings) volume.SyncConfig {
	c := g.n.cfg.patience
	c.On, c.Stop = s.Mode == control.ModeSync, s.OnLinkLoss == control.LinkLossStop
	return c
}

// applySync changes what hosts' answers wait for, as the settings say.
func (g *group) applySync(s control.Settings) error {
	g.mu.Lock()
	sub := g.sub
	g.mu.Unlock()
	if sub == nil {
		return nil // it is made with the settings that are recorded then
	}
	return sub.SetSync(g.syncConfig(s))
}

// linked: the secondary is connected and takes records, or waits for a resync.
func (g *group) linked() bool {
	snd := g.sender()
	if snd == nil {
		return false
	}
	st := snd.Status().State
	return st == sender.StateStreaming || st == sender.StateResync
}

// backLook is how often a synchronous group that has lost its secondary looks whether it is back.
const backLook = 250 * time.Millisecond

// comeBack has a synchronous group that was cut off, by whatever but a command, resync as soon as the link is there; and a
// group on a queue whose secondary was in the stream when the process before this one ended: the queue has lost its records,
// and what they touched stands in the changed map.
func (g *group) comeBack(ctx context.Context) {
	tick := time.NewTicker(backLook)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		why := ""
		if g.sub.State() == volume.SubSuspended && g.vg.Role() == volume.RoleServing && g.linked() {
			if err := g.askBack(); err != nil {
				why = err.Error()
			}
		}
		g.mu.Lock()
		g.noReturn = why
		g.mu.Unlock()
	}
}

// askBack notes the wish, under steer: it is about the state that was looked at, and a command that comes meanwhile wins.
func (g *group) askBack() error {
	g.steer.Lock()
	defer g.steer.Unlock()
	rec := g.n.state.view().Groups[g.name]
	if rec == nil || g.sub.State() != volume.SubSuspended || rec.Spec.Group.Mode != control.ModeSync && !g.sub.Lapsed() || rec.Halted || rec.Resume {
		return nil
	}
	if err := g.stepFits(); err != nil {
		return err
	}
	atOnce := g.onlyInitial()
	asked := false
	err := g.n.state.update(func(d *durable) error {
		if r := d.Groups[g.name]; r != nil {
			r.Resume, r.AtOnce, asked = true, atOnce, true
		}
		return nil
	})
	if err == nil && asked {
		g.n.log.Info("resync", "group", g.name, "changed_bytes", g.sub.ChangedBytes())
		g.pokeCopy()
	}
	return err
}

// syncState is what a synchronous group in the stream is, beyond what an asynchronous one would be: paired only while
// the secondary has all that hosts were answered for. Called under mu.
func syncState(st volume.SyncStatus) (state, blockedOn string) {
	switch {
	case !st.On:
		return "paired", ""
	case st.Lost:
		return "suspended", "writes fail (--on-link-loss stop): " + st.Reason
	case st.Away:
		return "suspended", "writes wait (--on-link-loss stop): the link is lost"
	case st.Holds:
		return "paired", ""
	}
	return "resyncing", fmt.Sprintf("not synchronous yet: %s, which lacks %d writes", st.Reason, st.Lacks)
}
