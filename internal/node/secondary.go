package node

import (
	"context"
	"errors"
	"path/filepath"
	"time"

	"gantline/internal/apply"
	"gantline/internal/control"
	"gantline/internal/journal"
	"gantline/internal/migrate"
	"gantline/internal/receiver"
	"gantline/internal/record"
	"gantline/internal/statefile"
	"gantline/internal/volume"
	"gantline/internal/wire"
)

// startSecondary makes the group follow: what a believed source sends is stored in the log here, made durable, and
// applied in order. After a restart what the log holds is applied again from the checkpoint on.
func (g *group) startSecondary(rec *groupRecord) error {
	if err := g.jnl.Resume(); err != nil {
		return err
	}
	if err := g.vg.Follow(); err != nil {
		return err
	}
	believed, state, repaired, err := statefile.Open(g.beliefPath())
	if err != nil {
		return err
	}
	if repaired != "" {
		g.n.log.Warn("belief repaired", "group", g.name, "cause", repaired)
	}
	applied := g.vg.Applied()
	var rcv *receiver.Receiver
	app, err := g.openApply(rec, func(seq record.Seq) { rcv.Applied(seq) }) // not before it runs
	if err != nil {
		return err
	}
	preview := &previewer{g: g}
	applier := previewed{app, preview}
	rcv, err = receiver.Open(receiver.Config{Group: g.name, Store: storeLog{g.jnl, g.vg}, Applier: applier, Applied: applied,
		State: state, Save: believed.Save, Logger: g.n.log, SyncDelay: secondarySyncDelay, SyncBytes: secondarySyncBytes,
		Capacity: capacityOf(g.jnl)})
	if err != nil {
		return err
	}
	if state == nil {
		first := receiver.Permit{Epoch: record.EpochID{Number: rec.Spec.Group.Epoch, Node: rec.Spec.Group.Primary}}
		// Believed, not only permitted: it counts even if a later epoch is heard of first.
		if err := rcv.Believe(first); err != nil {
			return err
		}
	}
	// A scope of their own, which ends first: who applies may wait for room that only the write-back makes.
	feed := newScope()
	g.mu.Lock()
	g.app, g.rcv, g.feed = app, rcv, feed
	g.pulls = &pulls{g: g, wake: make(chan struct{}, 1), going: map[string]*pulling{}}
	g.mu.Unlock()
	feed.work.Go(func() { g.watch(feed.ctx, app.Run) })
	if err := g.showAtACut(rec, app); err != nil {
		return err
	}
	for _, run := range []func(context.Context) error{rcv.Run, g.pulls.run} {
		feed.work.Go(func() { g.watch(feed.ctx, run) })
	}
	feed.work.Go(func() { preview.run(feed.ctx) })
	return nil
}

// standPatience is how long readers wait at a start for what is stored to be applied.
const standPatience = 2 * time.Second

// showAtACut opens the volumes to readers once what was stored before the start has been applied: a step that had been stored
// whole would else be seen in the middle.
func (g *group) showAtACut(rec *groupRecord, app *apply.Loop) error {
	ctx, cancel := context.WithTimeout(context.Background(), standPatience)
	defer cancel()
	app.Stand(ctx)
	for _, m := range rec.Members {
		if err := g.n.volume(m.Volume).vol.SetMode(context.Background(), volume.ModeReadOnly, false); err != nil {
			return err
		}
	}
	return nil
}

// An asynchronous secondary makes its log durable so often, for nobody waits for it: each sync, its acknowledgement and what
// follows cost both ends as much as several writes, and on a shared disk they stand in the way of the hosts' own.
const (
	secondarySyncDelay = 8 * time.Millisecond
	secondarySyncBytes = 4 << 20
)

// capacityOf asks a journal how many bytes it can hold.
func capacityOf(jnl *journal.Journal) func() int64 {
	return func() int64 {
		_, capacity := jnl.Space()
		return capacity
	}
}

func (g *group) watch(ctx context.Context, run func(context.Context) error) {
	if err := run(ctx); err != nil && ctx.Err() == nil {
		g.n.log.Error("secondary stopped", "group", g.name, "cause", err)
		g.fail(err)
	}
}

func (g *group) beliefPath() string { return filepath.Join(g.n.cfg.DataDir, "maps", g.name+".belief") }

// serveStream takes a stream until it, the node or the group ends.
func (g *group) serveStream(ctx context.Context, in *wire.Incoming) error {
	g.mu.Lock()
	rcv, feed := g.rcv, g.feed
	g.mu.Unlock()
	if c := g.n.copyingTo(g.name); rcv == nil && c != nil {
		return c.serve(ctx, in)
	}
	if rcv == nil {
		if err := g.Err(); err != nil {
			return refused("group %s on node %s has failed: %v", g.name, g.n.cfg.Name, err)
		}
		if err := g.supersedes(in); err != nil {
			return err
		}
		return refused("group %s on node %s is %s, not a secondary", g.name, g.n.cfg.Name, g.status().Role)
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	defer context.AfterFunc(feed.ctx, cancel)()
	return rcv.Handle(ctx, in)
}

// permit allows epochs that may follow, without a source being forgotten for it.
func (g *group) permit(ids ...record.EpochID) error {
	rcv := g.receiver()
	if rcv == nil {
		return refused("group %s on node %s is not a secondary", g.name, g.n.cfg.Name)
	}
	for _, id := range ids {
		if err := rcv.Permit(receiver.Permit{Epoch: id}); err != nil {
			return err
		}
	}
	return nil
}

func (g *group) forbid(id record.EpochID) error {
	rcv := g.receiver()
	if rcv == nil {
		return nil
	}
	return rcv.Revoke(id)
}

// moveSource tells the secondary that the target serves now (S807) and learns how far it is. The fence in the log and
// the permission from registration have told it already; this is where it is asked.
func (n *Node) moveSource(id string) (control.MigrationStatus, error) {
	_, rec, err := n.move(id)
	if err != nil {
		return control.MigrationStatus{}, err
	}
	g := n.group(rec.Spec.Group.Name)
	if g == nil || g.receiver() == nil {
		return control.MigrationStatus{}, refused("migration %s: node %s is not its secondary", id, n.cfg.Name)
	}
	g.pulls.poke()
	n.cfg.Point(control.StepSource, "before")
	st, err := n.moveStatus(id)
	n.cfg.Point(control.StepSource, "after")
	return st, err
}

// moveSingle leaves the target as the only source (S818). Refused while the old one owes records, unless the target's
// changed map has what they touch.
func (n *Node) moveSingle(in control.MigrationSingle) error {
	id := in.ID
	_, rec, err := n.move(id)
	if err != nil {
		return err
	}
	if rec.Stage == migrate.Single || rec.Stage == migrate.Deregistered {
		return nil
	}
	g := n.group(rec.Spec.Group.Name)
	if g == nil || g.receiver() == nil {
		return refused("migration %s: node %s is not its secondary", id, n.cfg.Name)
	}
	target := record.EpochID{Number: rec.TargetEpoch(), Node: rec.Spec.Target}
	n.cfg.Point(control.StepSingle, "before")
	if in.Cut != 0 {
		if err := g.receiver().Believe(receiver.Permit{Epoch: target, First: record.Seq(in.Cut) + 1}); err != nil {
			return err
		}
	}
	if err := g.receiver().Single(target, in.Abandon); err != nil {
		return err
	}
	err = n.state.update(func(d *durable) error {
		r := d.Moves[id]
		if r == nil {
			return refused("migration %s was cancelled meanwhile", id)
		}
		r.Stage = migrate.Single
		sp := &d.Groups[rec.Spec.Group.Name].Spec.Group
		sp.Primary, sp.Epoch, sp.PrimaryJournal = rec.Spec.Target, rec.TargetEpoch(), rec.Spec.TargetJournal
		return nil
	})
	if err == nil {
		n.cfg.Point(control.StepSingle, "after")
	}
	return err
}

// secondaryState is what a secondary failed with, in the words of a pair state.
func secondaryState(err error) string {
	var ref *receiver.Refusal
	if errors.As(err, &ref) && ref.Reason == receiver.ReasonSplitBrain {
		return "split-brain"
	}
	return "failed"
}
