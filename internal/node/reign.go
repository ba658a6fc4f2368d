package node

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"gantline/internal/block"
	"gantline/internal/control"
	"gantline/internal/receiver"
	"gantline/internal/record"
	"gantline/internal/sender"
	"gantline/internal/volume"
	"gantline/internal/wire"
)

const (
	// askPatience bounds how long a primary that starts holds its hosts until its secondary has said that it was not
	// promoted meanwhile. A secondary that cannot be reached is taken for not promoted: guarantees.md says what that means.
	askPatience = 1500 * time.Millisecond
	askAgain    = 200 * time.Millisecond
	// tellPatience bounds how long a promotion waits for an old primary that may be gone.
	tellPatience = time.Second
	// tellEvery is how often the old primary is told until it has heard, tellStill afterwards, for it may be put back to an
	// older state.
	tellEvery = time.Second
	tellStill = 10 * time.Second
	heedEvery = 100 * time.Millisecond // how often a primary looks whether its stream was refused so
)

// reign is what this node says of a group when it is asked: itself, if it was promoted.
func (n *Node) reign(in control.NameOnly) (control.Reign, error) {
	out := control.Reign{Name: in.Name}
	rec, g := n.state.view().Groups[in.Name], n.group(in.Name)
	if rec == nil {
		return out, nil
	}
	if p := rec.Promoted; p != nil { // also if it has moved away since
		return reignOf(in.Name, n.cfg.Name, p), nil
	}
	if g == nil {
		return out, nil
	}
	if vg := g.running(); vg != nil && g.wasOpened() {
		row, _ := vg.Table().Current()
		out.Node, out.Epoch, out.Cut = n.cfg.Name, row.Epoch, uint64(firstOf(vg.Table(), row.Epoch)-1)
	}
	return out, nil
}

// reignOf is the reign that began with a promotion, in a group that this node serves, or has served.
func reignOf(group, self string, p *control.Promotion) control.Reign {
	return control.Reign{Name: group, Node: p.By(self), Epoch: p.Epoch, Cut: p.Cut}
}

// supersedes refuses the stream of a primary in whose place this node was promoted.
func (g *group) supersedes(in *wire.Incoming) error {
	r, err := g.n.reign(control.NameOnly{Name: g.name})
	if err != nil || r.Node == "" {
		return err
	}
	id, err := receiver.HelloEpoch(in)
	if err != nil || id.Number >= r.Epoch {
		return err
	}
	vg := g.running()
	if vg == nil {
		return refused("group %s is closed on node %s", g.name, g.n.cfg.Name)
	}
	return receiver.Superseded(vg.Table(), "node %s was promoted in group %s: it serves in epoch %d, from record %d on", r.Node, g.name,
		r.Epoch, r.Cut+1)
}

// tellOld tells the old primary that it is superseded, once, and returns how many records it has numbered behind the cut; nil:
// it did not say.
func (g *group) tellOld(rec *groupRecord, p *control.Promotion) *uint64 {
	ctx, cancel := context.WithTimeout(g.n.runCtx, tellPatience)
	defer cancel()
	var out control.SupersededReply
	in := reignOf(g.name, g.n.cfg.Name, p)
	if err := g.n.call(ctx, p.From, control.CallGroupSuperseded, in, &out); err != nil {
		g.n.log.Warn("the old primary was not told", "group", g.name, "node", p.From, "cause", err)
		return nil
	}
	lost := uint64(0)
	if out.Appended > p.Cut {
		lost = out.Appended - p.Cut
	}
	return &lost
}

// herald goes on to tell the old primary. With pull nobody else would: it waits to be asked for records.
func (g *group) herald(ctx context.Context, p *control.Promotion) {
	wait := time.Duration(0)
	for {
		select {
		case <-ctx.Done():
			return
		case <-time.After(wait):
		}
		call, cancel := context.WithTimeout(ctx, tellPatience)
		in := reignOf(g.name, g.n.cfg.Name, p)
		err := g.n.call(call, p.From, control.CallGroupSuperseded, in, &control.SupersededReply{})
		cancel()
		if wait = tellStill; err != nil {
			wait = tellEvery
		}
		g.mu.Lock()
		g.told = err == nil
		g.mu.Unlock()
	}
}

// askPeers asks the secondaries of the groups that this node is to serve whether they were promoted meanwhile, all at once,
// and records what they say, before a host is served.
func (n *Node) askPeers(d *durable) error {
	ctx, cancel := context.WithTimeout(n.runCtx, askPatience)
	defer cancel()
	var asking sync.WaitGroup
	var mu sync.Mutex
	var errs []error
	for name, rec := range d.Groups {
		if rec.Role != control.RolePrimary || rec.Promoted != nil || len(rec.Members) == 0 || !rec.copied() {
			continue
		}
		n.learn(rec.Spec.Address)
		asking.Go(func() {
			r, err := n.askPeer(ctx, name, rec.Spec.Group.Secondary)
			if err != nil {
				n.log.Warn("the secondary was not asked whether it was promoted", "group", name, "node", rec.Spec.Group.Secondary, "cause", err)
				return
			}
			if superseding(rec, r) == nil {
				err := n.recordSuperseded(name, r)
				mu.Lock()
				defer mu.Unlock()
				errs = append(errs, err)
			}
		})
	}
	asking.Wait()
	return errors.Join(errs...)
}

func (n *Node) askPeer(ctx context.Context, group, peer string) (control.Reign, error) {
	for {
		var r control.Reign
		err := n.call(ctx, peer, control.CallGroupReign, control.NameOnly{Name: group}, &r)
		if err == nil {
			return r, nil
		}
		select {
		case <-ctx.Done():
			return r, err
		case <-time.After(askAgain):
		}
	}
}

// superseding is nil if r supersedes this node in a group: its own secondary, in a higher epoch.
func superseding(rec *groupRecord, r control.Reign) error {
	switch {
	case rec == nil:
		return notFound("group %s is not here", r.Name)
	case rec.Role == control.RoleSuperseded && rec.Superseded != nil && rec.Superseded.Node == r.Node && rec.Superseded.Epoch == r.Epoch:
		return nil
	case rec.Role != control.RolePrimary:
		return refused("group %s: this node is %s, not its primary", r.Name, rec.Role)
	case r.Node == "" || r.Node != rec.Spec.Group.Secondary:
		return refused("group %s: its secondary is %s, not %q", r.Name, rec.Spec.Group.Secondary, r.Node)
	case r.Epoch <= rec.Epoch:
		return refused("group %s: epoch %d is not above %d", r.Name, r.Epoch, rec.Epoch)
	}
	return nil
}

func (n *Node) recordSuperseded(name string, r control.Reign) error {
	n.cfg.Point(control.StepSupersede, "before")
	err := n.state.update(func(d *durable) error {
		rec := d.Groups[name]
		if err := superseding(rec, r); err != nil || rec.Role == control.RoleSuperseded {
			return err
		}
		d.forgetMoves(name)
		rec.Role, rec.Superseded = control.RoleSuperseded, &r
		rec.Resume, rec.AtOnce, rec.CutMarked = false, false, false
		return nil
	})
	if err == nil {
		n.cfg.Point(control.StepSupersede, "after")
	}
	return err
}

// superseded stops this node from serving a group: its secondary was promoted. Repeated, it changes nothing.
func (n *Node) superseded(ctx context.Context, r control.Reign) (control.SupersededReply, error) {
	g, rec := n.group(r.Name), n.state.view().Groups[r.Name]
	if err := superseding(rec, r); err != nil {
		return control.SupersededReply{}, err
	}
	if g == nil {
		return control.SupersededReply{}, refused("group %s is not open on node %s", r.Name, n.cfg.Name)
	}
	vg := g.running()
	if vg == nil {
		return control.SupersededReply{}, refused("group %s on node %s has failed: %v", r.Name, n.cfg.Name, g.Err())
	}
	moves := n.movesOf(r.Name)
	n.stopMoves(r.Name)
	if err := g.turnAway(ctx, rec, r); err != nil { // at once: whatever a command waits for may wait for hosts
		return control.SupersededReply{}, err
	}
	vg.Supersede() // the gates do not stop what has passed them
	if err := n.recordSuperseded(r.Name, r); err != nil {
		return control.SupersededReply{}, err
	}
	for _, id := range moves {
		n.forgetMove(id)
	}
	if err := g.turnAway(ctx, rec, r); err != nil { // a source that was just reopening may have let hosts in: see reopen
		return control.SupersededReply{}, err
	}
	if err := n.sweepCarried(); err != nil {
		n.log.Warn("room that nobody needs is given back at the next start", "group", r.Name, "cause", err)
	}
	g.retire(r)
	g.letFinish(ctx, rec)
	return control.SupersededReply{Appended: uint64(vg.Appended())}, nil
}

// turnAway sends hosts to who was promoted.
func (g *group) turnAway(ctx context.Context, rec *groupRecord, r control.Reign) error {
	for _, m := range rec.Members {
		v := g.n.volume(m.Volume)
		if v == nil {
			continue
		}
		v.vol.SetSuccessor(g.n.promotedTo(rec, m.Number, r))
		if err := v.vol.SetMode(ctx, volume.ModeMoved, false); err != nil {
			return err
		}
	}
	return nil
}

// letFinish waits for what hosts had under way, as long as that ends by itself in a moment.
func (g *group) letFinish(ctx context.Context, rec *groupRecord) {
	ctx, cancel := context.WithTimeout(ctx, tellPatience/2)
	defer cancel()
	for _, m := range rec.Members {
		if v := g.n.volume(m.Volume); v != nil {
			if err := v.vol.Drain(ctx); err != nil {
				g.n.log.Warn("requests are still under way", "group", g.name, "cause", err)
			}
		}
	}
}

func (n *Node) promotedTo(rec *groupRecord, number uint16, r control.Reign) *block.MovedError {
	to := &block.MovedError{Node: r.Node, Address: n.addressOf(r.Node), Epoch: r.Epoch}
	for _, p := range rec.Spec.Group.Pairs {
		if p.Number == number {
			_, to.Volume = splitName(p.Secondary)
		}
	}
	return to
}

// retire ends the copying, once: what the promoted node lacks is marked here, for the way back.
func (g *group) retire(r control.Reign) {
	g.steer.Lock()
	defer g.steer.Unlock()
	g.mu.Lock()
	was, feed, sub := g.role, g.feed, g.sub
	if was == control.RoleSuperseded {
		g.mu.Unlock()
		return
	}
	g.role, g.epoch = control.RoleSuperseded, 0
	g.mu.Unlock()
	g.n.log.Error("superseded: this node refuses hosts", "group", g.name, "reign", fmt.Sprint(r))
	if sub != nil {
		sub.StopWaiting() // who waits for the secondary must not be told that all is well
	}
	g.n.work.Go(func() { // may be asked for by what it ends
		feed.stop()
		g.dropInterval()
		if sub != nil {
			if err := g.markBehindCut(sub, r); err != nil {
				g.n.log.Error("what the promoted node lacks is marked at the next start", "group", g.name, "cause", err)
			}
		}
	})
}

// startSuperseded brings a superseded primary back: closed to hosts, with its image, log and marks as they were.
func (g *group) startSuperseded(rec *groupRecord) error {
	if err := g.turnAway(context.Background(), rec, *rec.Superseded); err != nil {
		return err
	}
	g.mu.Lock()
	g.role = control.RoleSuperseded
	g.mu.Unlock()
	if err := g.subscribeCut(); err != nil || len(rec.Members) == 0 {
		return err
	}
	if err := g.startFeed(rec.Spec.Group.Secondary, rec.Members); err != nil {
		return err
	}
	if !rec.CutMarked {
		if err := g.markBehindCut(g.sub, *rec.Superseded); err != nil {
			return err
		}
	}
	if rec.Carried != nil { // marked as well: it may go
		g.watchFront()
	}
	return nil
}

// markBehindCut takes the promoted node out of the stream with all marked that lies behind the cut, and records that: what it had
// acknowledged behind the cut it has let go. Once recorded it is not looked for again, for the log may have freed it. Marks come
// first: a log in memory forgets what nobody in the stream lacks.
func (g *group) markBehindCut(sub *volume.Subscriber, r control.Reign) error {
	if err := sub.CutBack(record.Seq(r.Cut)); err != nil {
		return err
	}
	if err := sub.Suspend("superseded"); err != nil {
		return err
	}
	return g.n.state.update(func(d *durable) error {
		if rec := d.Groups[g.name]; rec != nil && rec.Superseded != nil { // else deleted meanwhile
			rec.CutMarked = true
		}
		return nil
	})
}

// heed looks whether the secondary refuses the stream because it was promoted. One that sends nothing yet (silent) asks instead.
func (g *group) heed(ctx context.Context, snd *sender.Sender, secondary string) {
	tick := time.NewTicker(heedEvery)
	defer tick.Stop()
	var asked time.Time
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		var r control.Reign
		st := snd.Status()
		row, ok := st.ReceiversTable.Current()
		switch {
		case st.State == sender.StateRefused && st.Reason == string(receiver.ReasonSuperseded) && ok && row.Node == secondary:
			r = control.Reign{Name: g.name, Node: row.Node, Epoch: row.Epoch, Cut: uint64(firstOf(st.ReceiversTable, row.Epoch) - 1)}
		case time.Since(asked) >= tellEvery && g.silent() != nil:
			call, cancel := context.WithTimeout(ctx, tellPatience)
			err := g.n.call(call, secondary, control.CallGroupReign, control.NameOnly{Name: g.name}, &r)
			cancel()
			if asked = time.Now(); err != nil {
				continue
			}
		default:
			continue
		}
		if superseding(g.n.state.view().Groups[g.name], r) != nil {
			continue
		}
		if _, err := g.n.superseded(ctx, r); err != nil {
			g.n.log.Error("superseded, and not recorded", "group", g.name, "cause", err)
			continue
		}
		return
	}
}
