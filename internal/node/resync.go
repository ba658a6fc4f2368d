package node

import (
	"context"
	"time"

	"gantline/internal/control"
	"gantline/internal/receiver"
	"gantline/internal/record"
	"gantline/internal/sender"
	"gantline/internal/volume"
)

// beginStep begins the step that was asked for, or that is due. wait > 0: there is none now; look again then, or when
// poked. The wish is read and followed under steer, so a suspension either is seen here or finds the step.
func (g *group) beginStep() (wait time.Duration, err error) {
	g.steer.Lock()
	defer g.steer.Unlock()
	rec := g.n.state.view().Groups[g.name]
	if rec == nil || rec.Halted || g.sub.State() != volume.SubSuspended {
		return lookAgain, nil
	}
	if !rec.Resume {
		if !rec.periodic() {
			return lookAgain, nil
		}
		if wait := g.awaitInterval(rec); wait > 0 {
			return wait, nil
		}
	}
	if rec.periodic() {
		g.beginInterval(rec)
	}
	g.mu.Lock()
	g.period.blocked = ""
	g.mu.Unlock()
	_, err = g.sub.BeginStep(rec.AtOnce || g.onlyInitial())
	return 0, err
}

// resync copies what is marked, as one step: begin, the blocks and what hosts write meanwhile, end. It returns once the
// secondary has applied the step. A link that comes and goes only holds it up. A step that was cut off leaves its marks,
// and another is begun.
func (g *group) resync(ctx context.Context) error {
	err := g.copyStep(ctx)
	if ctx.Err() != nil {
		return err
	}
	if err == nil {
		err = g.noteResumed()
	}
	g.endInterval(err)
	if err == nil {
		g.pokeCopy() // after an error the loop comes back by itself
	}
	return err
}

func (g *group) copyStep(ctx context.Context) error {
	g.sender().Wake()
	defer g.watchStep(ctx)()
	if err := g.sub.RunCopy(ctx, volume.CopyOptions{Parallel: 4}); err != nil {
		return err
	}
	end, err := g.endStep(ctx)
	if err != nil {
		return err
	}
	return g.sub.AwaitEnd(ctx, end)
}

// endStep ends the step. A periodic group leaves the stream with it, unless a volume waits for its initial copy.
func (g *group) endStep(ctx context.Context) (record.Seq, error) {
	if rec := g.n.state.view().Groups[g.name]; rec != nil && rec.periodic() && !rec.initial() {
		return g.sub.Rest(ctx)
	}
	return g.sub.EndStep(ctx)
}

// rest takes a periodic group that is in the stream out of it, once its volumes have been copied for the first time.
func (g *group) rest(ctx context.Context) error {
	rec := g.n.state.view().Groups[g.name]
	if rec == nil || !rec.periodic() || rec.initial() || g.sub.State() != volume.SubStreaming {
		return nil
	}
	end, err := g.sub.Rest(ctx)
	if err != nil {
		return err
	}
	if err := g.sub.AwaitEnd(ctx, end); err != nil {
		return err
	}
	g.pokeCopy()
	return nil
}

// noteResumed records that the resync that was asked for has ended: the group is in the stream again, or, periodic, at
// the end of a step. Where it has become asynchronous inside its last step, the resync is still owed.
func (g *group) noteResumed() error {
	g.steer.Lock()
	defer g.steer.Unlock()
	rec := g.n.state.view().Groups[g.name]
	if rec == nil || !rec.Resume && !rec.AtOnce {
		return nil
	}
	streaming := g.sub.State() == volume.SubStreaming
	return g.n.state.update(func(d *durable) error {
		if r := d.Groups[g.name]; r != nil && (streaming || r.periodic()) {
			r.Resume, r.AtOnce = false, false
		}
		return nil
	})
}

// stepLook is how often a step under way is looked at, for a secondary that cannot hold it.
const stepLook = 200 * time.Millisecond

// watchStep gives a step up that the secondary says it will never have room for. The result ends the watch.
func (g *group) watchStep(ctx context.Context) (stop func()) {
	watch := newScope()
	watch.work.Go(func() {
		ticker := time.NewTicker(stepLook)
		defer ticker.Stop()
		for {
			select {
			case <-ctx.Done():
				return
			case <-watch.ctx.Done():
				return
			case <-ticker.C:
			}
			st := g.sender().Status()
			if st.State == sender.StateRefused && st.Reason == string(receiver.ReasonStep) && g.giveUpStep(st.RefusedAt, st.BlockedOn) {
				return
			}
		}
	})
	return watch.stop
}

// giveUpStep does so if the secondary had stored the begin of this step when it refused; else the word was about one
// before, which that begin has made it drop, or will.
func (g *group) giveUpStep(refusedAt record.Seq, why string) bool {
	g.steer.Lock()
	defer g.steer.Unlock()
	if begin, ok := g.sub.Begin(); !ok || refusedAt < begin || g.sealing || g.sealed() {
		return false
	}
	if err := g.sub.Suspend(why); err != nil {
		g.n.log.Error("step not given up", "group", g.name, "cause", err)
	}
	return true
}

func (n *Node) suspendGroup(name string) (control.GroupStatus, error) {
	g, err := n.feeding(name)
	if err != nil {
		return control.GroupStatus{}, err
	}
	if err := g.halt(); err != nil {
		return control.GroupStatus{}, err
	}
	return g.status(), nil
}

// halt stops the copying until it is resumed by command.
func (g *group) halt() error {
	release, err := g.steered()
	if err != nil {
		return err
	}
	defer release()
	err = g.n.state.update(func(d *durable) error {
		if r := d.Groups[g.name]; r != nil {
			r.Resume, r.AtOnce, r.Halted = false, false, true
		}
		return nil
	})
	if err != nil {
		return err
	}
	g.dropInterval()
	g.sendWaiting()
	return g.sub.Suspend(byCommand)
}

const byCommand = "by command"

// resumeGroup begins the resync; it does not wait for its end.
func (n *Node) resumeGroup(in control.GroupResume) (control.GroupStatus, error) {
	g, err := n.feeding(in.Name)
	if err != nil {
		return control.GroupStatus{}, err
	}
	if err := g.goOn(in.AllowInconsistent); err != nil {
		return control.GroupStatus{}, err
	}
	g.pokeCopy()
	return g.status(), nil
}

func (g *group) goOn(allowInconsistent bool) error {
	release, err := g.steered()
	if err != nil {
		return err
	}
	defer release()
	if g.sub.State() != volume.SubSuspended {
		return nil
	}
	if !allowInconsistent {
		if err := g.stepFits(); err != nil {
			return err
		}
	}
	atOnce := allowInconsistent || g.onlyInitial()
	return g.n.state.update(func(d *durable) error {
		if r := d.Groups[g.name]; r != nil {
			r.Resume, r.AtOnce, r.Halted = true, atOnce, false
		}
		return nil
	})
}

// stepShare is the part of a journal that the marked blocks of a step may take: the secondary keeps the whole step, with
// what hosts write meanwhile, until its end has come.
const stepShare = 4

// stepCapacity is the size of the secondary's journal, by which a step is measured, in bytes: as it has said, else as the
// manager knows it, else that of the journal here, since both are made of one size unless the operator has chosen otherwise.
func (g *group) stepCapacity() int64 {
	if snd := g.sender(); snd != nil { // nil before the stream has begun
		if said := snd.Status().Capacity; said > 0 {
			return said
		}
	}
	g.mu.Lock()
	que, log := g.que, g.log
	g.mu.Unlock()
	if rec := g.n.state.view().Groups[g.name]; que != nil && rec != nil {
		return rec.Spec.Group.SecondaryJournalSize
	}
	_, capacity := log.Space()
	return capacity
}

// stepFits refuses a resync that the secondary's journal could not hold as one step.
func (g *group) stepFits() error {
	if g.onlyInitial() {
		return nil // there is no image to be kept whole yet
	}
	capacity := g.stepCapacity()
	if marked := g.sub.ChangedBytes(); marked > capacity/stepShare {
		return refused("group %s: %d bytes have changed, more than %d, a quarter of the secondary's journal, that one step may take: a larger one "+
			"takes it, or `gantline group resume %s --allow-inconsistent`; the secondary is then no consistent image until the "+
			"resync has ended", g.name, marked, capacity/stepShare, g.name)
	}
	return nil
}

// onlyInitial: no volume's initial copy has ended yet.
func (g *group) onlyInitial() bool {
	for _, m := range g.members() {
		if !m.Initial {
			return false
		}
	}
	return true
}

// periodic says whether the record asks for steps at intervals: the group leaves the stream between two of them.
func (r *groupRecord) periodic() bool { return r.Spec.Group.Mode == control.ModePeriodic }

// initial says whether a volume's initial copy has not ended.
func (r *groupRecord) initial() bool {
	for _, m := range r.Members {
		if m.Initial {
			return true
		}
	}
	return false
}

// modeChanged adjusts the record to a mode that replaces another: who was at rest between two intervals has to be
// brought back into the stream.
func (r *groupRecord) modeChanged(old string) {
	if old == control.ModePeriodic && !r.periodic() && !r.Halted {
		r.Resume = true
	}
}
