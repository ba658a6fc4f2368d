package node

import (
	"context"
	"errors"
	"fmt"
	"time"

	"gantline/internal/control"
	"gantline/internal/record"
	"gantline/internal/volume"
)

// A verify compares all volumes of a group at both sides (compare.go). Its record is durable when it begins and when it
// ends. One that was under way when the node died has failed: what it had found is found again by the next.

// verifyGroup begins a verify, or finds the one that is under way.
func (n *Node) verifyGroup(in control.GroupVerify) (control.VerifyStatus, error) {
	n.config.Lock()
	defer n.config.Unlock()
	g, err := n.feeding(in.Name)
	if err != nil {
		return control.VerifyStatus{}, err
	}
	g.mu.Lock()
	running := g.verify
	g.mu.Unlock()
	if running != nil {
		if running.Repair != in.Repair {
			return *running, refused("group %s: verify %s is under way, with another --repair: wait for its end", in.Name, running.ID)
		}
		return *running, nil
	}
	if !g.sampling.TryLock() { // the secondary keeps what it has found of one run
		return control.VerifyStatus{}, refused("group %s: a pair that is said to be equal is being compared: repeat the command", in.Name)
	}
	defer g.sampling.Unlock() // from here on the other way round: checkPair
	if st := g.status(); st.State != "paired" || g.settings().Mode == control.ModePeriodic {
		return control.VerifyStatus{}, refused("group %s is %s, %s: only what is in the stream can be compared; wait until it is paired%s",
			in.Name, g.settings().Mode, st.State, map[bool]string{true: ", and set --mode async for the time of the verify"}[g.settings().Mode == control.ModePeriodic])
	}
	st := control.VerifyStatus{ID: randomID()[:8], State: control.VerifyRunning, Repair: in.Repair}
	var todo []extent
	for _, m := range n.state.view().Groups[in.Name].Members {
		todo = append(todo, extents(m.Number, n.volume(m.Volume).vol.Size())...)
	}
	st.TotalBytes = sum(todo)
	if err := g.saveVerify(st); err != nil {
		return st, err
	}
	g.mu.Lock()
	running = &st
	g.verify = running
	feed := g.feed
	g.mu.Unlock()
	if !feed.begin(func() { g.runVerify(feed.ctx, todo) }) {
		g.mu.Lock()
		g.verify = nil
		g.mu.Unlock()
		st.State, st.Error = control.VerifyFailed, "copying from node "+n.cfg.Name+" was stopped meanwhile: verify again"
		return st, g.saveVerify(st)
	}
	return st, nil
}

// verifyStatus tells of the verify under way, or of the last.
func (n *Node) verifyStatus(name string) (control.VerifyStatus, error) {
	g := n.group(name)
	if g == nil {
		return control.VerifyStatus{}, notFound("group %s is not on node %s", name, n.cfg.Name)
	}
	g.mu.Lock()
	running := g.verify
	if running != nil {
		defer g.mu.Unlock()
		return *running, nil
	}
	g.mu.Unlock()
	if rec := n.state.view().Groups[name]; rec != nil && rec.Verify != nil {
		return *rec.Verify, nil
	}
	return control.VerifyStatus{}, notFound("group %s has not been verified at node %s", name, n.cfg.Name)
}

func (g *group) saveVerify(st control.VerifyStatus) error {
	return g.n.state.update(func(d *durable) error {
		if r := d.Groups[g.name]; r != nil {
			r.Verify = &st
		}
		return nil
	})
}

// verifyAfterRestart ends the record of a verify that was under way when the process ended.
func (g *group) verifyAfterRestart(rec *groupRecord) error {
	if rec.Verify == nil || rec.Verify.State != control.VerifyRunning {
		return nil
	}
	st := *rec.Verify
	st.State, st.Error = control.VerifyFailed, "node "+g.n.cfg.Name+" was restarted meanwhile: verify again"
	return g.saveVerify(st)
}

// runVerify does it and keeps the result.
func (g *group) runVerify(ctx context.Context, todo []extent) {
	err := g.verifyAll(ctx, todo)
	g.mu.Lock()
	st := *g.verify
	g.mu.Unlock()
	st.State = control.VerifyDone
	if err != nil {
		st.State, st.Error = control.VerifyFailed, err.Error()
		if errors.Is(err, context.Canceled) {
			st.Error = "copying from node " + g.n.cfg.Name + " was stopped meanwhile: verify again"
		}
	}
	g.n.log.Info("verify ended", "group", g.name, "id", st.ID, "compared", st.ComparedBytes, "different", len(st.Different),
		"repaired", st.RepairedBytes, "cause", st.Error)
	if err := g.saveVerify(st); err != nil {
		g.n.log.Error("result of the verify not recorded", "group", g.name, "cause", err)
	}
	g.mu.Lock()
	g.verify = nil
	g.mu.Unlock()
}

func (g *group) noteVerify(change func(*control.VerifyStatus)) {
	g.mu.Lock()
	defer g.mu.Unlock()
	st := *g.verify // the one before may be on its way to somebody
	change(&st)
	g.verify = &st
}

func (g *group) verifyAll(ctx context.Context, todo []extent) error {
	different, err := g.compare(ctx, todo, func(seq record.Seq, bytes int64) {
		g.noteVerify(func(st *control.VerifyStatus) {
			st.Cut, st.ComparedBytes = max(st.Cut, uint64(seq)), st.ComparedBytes+bytes
		})
	})
	members := map[uint16]string{}
	for _, m := range g.members() { // none, once the group is deleted
		members[m.Number] = g.n.cfg.Name + "/" + m.Volume
	}
	g.noteVerify(func(st *control.VerifyStatus) {
		st.Different = nil
		for _, e := range different {
			st.Different = append(st.Different, control.VerifyExtent{Volume: members[e.number], Offset: e.off, Length: e.length})
		}
	})
	if err != nil || len(different) == 0 || !g.verify.Repair {
		return err
	}
	if err := g.repair(ctx, different); err != nil {
		return fmt.Errorf("repair: %w", err)
	}
	again, err := g.compare(ctx, cut(different), func(record.Seq, int64) {})
	if err == nil && len(again) > 0 {
		err = fmt.Errorf("%d bytes still differ after they were copied: is the disk of the secondary sound?", sum(again))
	}
	if err != nil {
		return fmt.Errorf("repair: %w", err)
	}
	g.noteVerify(func(st *control.VerifyStatus) { st.RepairedBytes = sum(different) })
	return nil
}

// lacks takes the secondary out of the stream, to come back by a step; under steer, so that nobody takes the wish for one
// that was fulfilled. Where it has left the stream already, whoever brings it back brings this too.
func (g *group) lacks(different []extent) error {
	release, err := g.steered()
	if err != nil {
		return err
	}
	defer release()
	if g.sub.State() == volume.SubStreaming {
		err := g.n.state.update(func(d *durable) error {
			if r := d.Groups[g.name]; r != nil {
				r.Resume, r.AtOnce = true, false
			}
			return nil
		})
		if err != nil {
			return err
		}
	}
	return g.sub.Lacks("a verify has found differences", lacking(different))
}

// repair marks what differs and has it copied as one step. That it goes on after a death stands on disk before the
// secondary leaves the stream.
func (g *group) repair(ctx context.Context, different []extent) error {
	capacity := g.stepCapacity()
	if n := sum(different); n > capacity/stepShare {
		return fmt.Errorf("%d bytes differ, more than %d, a quarter of the journal, that one step may take: remove the pair and add it again",
			n, capacity/stepShare)
	}
	if err := g.lacks(different); err != nil {
		return err
	}
	g.pokeCopy()
	for g.sub.State() != volume.SubStreaming {
		if err := g.serving(); err != nil {
			return err
		}
		if rec := g.n.state.view().Groups[g.name]; g.sub.State() == volume.SubSuspended && (rec == nil || !rec.Resume) {
			return errors.New("copying was suspended meanwhile; what differs stays marked, and is copied when copying goes on")
		}
		select {
		case <-ctx.Done():
			return context.Cause(ctx)
		case <-time.After(50 * time.Millisecond):
		}
	}
	return nil
}
