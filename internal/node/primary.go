package node

import (
	"context"
	"errors"
	"fmt"
	"time"

	"gantline/internal/control"
	"gantline/internal/pace"
	"gantline/internal/record"
	"gantline/internal/sender"
	"gantline/internal/volume"
	"gantline/internal/wire"
)

// startPrimaryRole brings back a primary at the start of the node. A log that ends with a fence is sealed: this node
// is the source of a move, unless it has recorded since that it goes on in a later epoch.
//
// The loops begin behind that: a checkpoint must not free what the secondary lacks before the secondary is a subscriber again.
// Hosts come when all groups have been started.
func (g *group) startPrimaryRole(rec *groupRecord) error {
	err := g.openRole(rec)
	g.goRun()
	if err != nil {
		return err
	}
	g.tellSizes()
	return nil
}

// openRole opens the role without its loops.
func (g *group) openRole(rec *groupRecord) error {
	if err := g.verifyAfterRestart(rec); err != nil {
		return err
	}
	if cut, _, sealed := g.vg.Sealed(); sealed {
		if row, ok := g.vg.Table().At(cut); ok && row.Epoch >= rec.Epoch {
			return g.resumeSource(rec, cut)
		}
	}
	return g.startPrimary(rec.Spec.Group.Secondary)
}

// startPrimary opens the next row of the epoch table and serves hosts in it. A row is never opened twice: recovery goes
// on in a new incarnation, so what a crash has left behind the end of the log is never taken for a record. The row that this
// process has opened ahead, with a hand-over, is the one: nothing has been numbered in it.
func (g *group) startPrimary(secondary string) error {
	rec := g.n.state.group(g.name)
	row := record.Row{Epoch: rec.Epoch, Incarnation: 1, Node: g.n.cfg.Name, First: g.vg.Appended() + 1}
	if cur, ok := g.vg.Table().Current(); ok {
		switch {
		case cur.Epoch > rec.Epoch:
			return fmt.Errorf("log is in epoch %d, this node serves in %d", cur.Epoch, rec.Epoch)
		case cur.Epoch == rec.Epoch && cur.Node != g.n.cfg.Name:
			return fmt.Errorf("log says that epoch %d is %s's", cur.Epoch, cur.Node)
		case cur.Epoch == rec.Epoch:
			row.Incarnation = cur.Incarnation + 1
		}
		if ahead, ok := g.vg.Ahead(); ok && ahead.Epoch == rec.Epoch {
			row = ahead
		}
	}
	if err := g.vg.Serve(row); err != nil {
		return err
	}
	if err := g.subscribeCut(); err != nil {
		return err
	}
	if rec.Promoted != nil { // hosts come when all that they write is marked
		if err := g.startFeed(secondary, rec.Members); err != nil {
			return err
		}
		return g.admit(rec)
	}
	if err := g.admit(rec); err != nil {
		return err
	}
	if !g.fed(rec) {
		return nil
	}
	return g.startFeed(secondary, rec.Members)
}

// copied is false for a group without a secondary: a volume that is not copied, for the time of its move.
func (r *groupRecord) copied() bool { return r.Spec.Group.Secondary != "" }

// fed is false for a group that has never had a pair, or has no secondary: there is nothing to send. One that moves, or has moved, is
// fed also without a pair: the secondary hears the fence, and whom it leaves as the source.
func (g *group) fed(rec *groupRecord) bool {
	if !rec.copied() {
		return false
	}
	if len(rec.Members) > 0 || rec.Spec.Group.NextNumber > 1 || rec.Epoch > 1 {
		return true
	}
	for _, m := range g.n.state.view().Moves {
		if m.Spec.Group.Name == g.name && m.Role == control.RoleSource {
			return true
		}
	}
	return false
}

// admit lets hosts in.
func (g *group) admit(rec *groupRecord) error {
	g.mu.Lock()
	g.role, g.epoch = control.RolePrimary, rec.Epoch
	g.mu.Unlock()
	for _, m := range rec.Members {
		v := g.n.volume(m.Volume)
		v.epoch.Store(rec.Epoch)
		// As it was made, before its group was open; or that of a secondary which was promoted.
		if mode := v.vol.Mode(); mode == volume.ModeFailed || mode == volume.ModeReadOnly {
			if err := v.vol.SetMode(context.Background(), volume.ModeNormal, false); err != nil {
				return err
			}
		}
	}
	if p := rec.Promoted; p != nil {
		feed := newScope()
		g.mu.Lock()
		g.feed = feed
		g.mu.Unlock()
		feed.work.Go(func() { g.herald(feed.ctx, p) })
	}
	return nil
}

// serving is nil if this node serves the group's hosts.
func (g *group) serving() error {
	g.mu.Lock()
	defer g.mu.Unlock()
	switch {
	case g.err != nil:
		return g.err
	case g.epoch == 0:
		return errors.New("not serving")
	}
	return nil
}

// startFeed makes the secondary a subscriber and begins to send. Repeated, it changes nothing.
func (g *group) startFeed(secondary string, members []memberRecord) error {
	if err := g.resubscribe(); err != nil {
		return err
	}
	if g.sub == nil {
		changed := map[record.VolumeNumber]volume.Bitmap{}
		for _, m := range members {
			changed[record.VolumeNumber(m.Number)] = g.maps[m.Number].bits
		}
		settings := g.settings()
		cfg := volume.SubscriberConfig{Retain: retainOf(&settings), Changed: changed, BlockSize: markSize, OnEvent: g.subscriberEvent,
			Sync: g.syncConfig(settings)}
		if apart, from := g.apart(); apart {
			return g.subscribeApart(cfg, from)
		}
		sub, err := g.vg.Subscribe(secondaryName, cfg)
		if err != nil {
			return err
		}
		g.mu.Lock()
		g.sub = sub
		g.mu.Unlock()
		if sub.Lapsed() {
			_ = g.askBack() // comeBack asks again, and keeps the reason
		}
	}
	g.feedFrom(secondary)
	return nil
}

// apart: nothing is sent to the node at the other end, for one of both was promoted in the other's place. from is what that
// one has for sure, 0: as the log's blob says.
func (g *group) apart() (is bool, from uint64) {
	rec := g.n.state.view().Groups[g.name]
	switch {
	case rec == nil:
		return false, 0
	case rec.Promoted != nil:
		return true, rec.Promoted.Cut
	}
	return rec.Superseded != nil, 0
}

func (g *group) feedFrom(secondary string) {
	feed, link := newScope(), g.n.linkTo(secondary)
	settings := g.settings()
	snd := sender.New(sender.Config{
		Source:  g.sub,
		Mark:    g.sub.Mark,
		Urgent:  g.sub.Urgent,
		Trimmed: func(err error) bool { return errors.Is(err, volume.ErrTrimmed) },
		OnTrimmed: func(from record.Seq) {
			err := g.sub.Lost(from, fmt.Sprintf("%s lacks the records from %d on, which it had acknowledged and which have been freed since: all is marked",
				secondary, from))
			if err != nil {
				g.n.log.Error("loss at the secondary not recorded", "group", g.name, "cause", err)
			}
		},
		Pull:        settings.Transfer == control.TransferPull,
		Gather:      gatherOf(&settings),
		Waiting:     g.vg.Waiting,
		Hurry:       g.hurries,
		CutOff:      func(err error) bool { return errors.Is(err, volume.ErrTrimmed) || errors.Is(err, volume.ErrSuspended) },
		Hello:       wire.Hello{Role: "node", Name: g.n.cfg.Name, Instance: g.n.instance, Group: g.name},
		Dial:        g.dialUnlessSilent(g.n.dialer(secondary)),
		Sent:        g.wan.add,
		Compress:    func() wire.Method { return wire.Method(g.compress.Load()) },
		Pace:        pace.Chain{g.limit, link.limit},
		Retry:       g.n.cfg.linkRetry,
		Connections: func() int { return int(link.connections.Load()) },
		Logger:      g.n.log,
	})
	g.mu.Lock()
	g.snd, g.feed = snd, feed
	g.mu.Unlock()
	feed.work.Go(func() { snd.Run(feed.ctx) })
	feed.work.Go(func() { g.copyLoop(feed.ctx) })
	feed.work.Go(func() { g.sub.Watch(feed.ctx, g.linked) })
	feed.work.Go(func() { g.comeBack(feed.ctx) })
	feed.work.Go(func() { g.heed(feed.ctx, snd, secondary) })
	if rec := g.n.state.group(g.name); rec != nil && rec.Carried != nil {
		g.watchFront()
	}
}

func (g *group) subscriberEvent(e volume.SubscriberEvent) {
	g.n.log.Info("copying changed state", "group", g.name, "state", e.State, "cause", e.Reason)
	if snd := g.sender(); snd != nil {
		snd.Wake()
	}
	g.pokeCopy()
}

// addPrimary takes a volume into a serving group. Its blocks that are not zero are marked before its first write is
// numbered, so that nothing it holds is missed.
func (g *group) addPrimary(ctx context.Context, mem memberRecord, m volume.Member, payload []byte) error {
	g.mu.Lock()
	_, open := g.maps[mem.Number] // by an earlier call that failed behind this point
	g.mu.Unlock()
	if !open {
		if err := g.openMap(mem.Number, m); err != nil {
			return err
		}
	}
	if err := g.vg.Add(ctx, m, payload); err != nil {
		return err
	}
	rec := g.n.state.view().Groups[g.name]
	g.n.volume(mem.Volume).epoch.Store(rec.Epoch)
	if !rec.copied() {
		return nil
	}
	if g.sub == nil {
		return g.startFeed(rec.Spec.Group.Secondary, rec.Members)
	}
	g.pokeCopy()
	return nil
}

// openMap opens the changed map of a volume that joins and shows it to the subscriber.
func (g *group) openMap(number uint16, m volume.Member) error {
	if g.que != nil && g.intents[number].bits == nil {
		if err := g.openIntents(number, m.Volume.Size()); err != nil {
			return err
		}
	}
	bits, dev, err := g.n.openChangedMap(g.name, number, bitsFor(m.Volume.Size(), markSize))
	if err != nil {
		return err
	}
	if g.sub != nil {
		if err := g.sub.AddMap(m.Number, bits); err != nil {
			return errors.Join(err, dev.Close())
		}
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	g.maps[number] = changedMap{bits, dev}
	return nil
}

func (g *group) pokeCopy() {
	select {
	case g.copyWake <- struct{}{}:
	default:
	}
}

// lookAgain is how long the copy loop waits where it is poked when there is something to do.
const lookAgain = time.Hour

// copyLoop does the background copies to the secondary: initial copies, a resync that was under way or is asked for, and
// the steps of a periodic group.
func (g *group) copyLoop(ctx context.Context) {
	for ctx.Err() == nil {
		wait, err := g.copyOnce(ctx)
		if err != nil && ctx.Err() == nil {
			g.n.log.Warn("background copy waits", "group", g.name, "cause", err)
			wait = time.Second
		}
		timer := time.NewTimer(wait)
		select {
		case <-ctx.Done():
		case <-g.copyWake:
		case <-timer.C:
		}
		timer.Stop()
	}
}

// copyOnce does what is to be done now, and says after how long to look again if nobody pokes.
func (g *group) copyOnce(ctx context.Context) (time.Duration, error) {
	if g.vg.Role() != volume.RoleServing {
		return lookAgain, nil // sealed: another primary goes on with it
	}
	if g.awaitsSource() {
		return lookAgain, nil
	}
	switch g.sub.State() {
	case volume.SubSuspended:
		if wait, err := g.beginStep(); wait > 0 || err != nil {
			return wait, err
		}
		return lookAgain, g.resync(ctx)
	case volume.SubResyncing: // an earlier try has failed inside the step
		return lookAgain, g.resync(ctx)
	}
	if err := g.noteResumed(); err != nil { // a restart came between the end of the resync and its record
		return lookAgain, err
	}
	if err := g.initialCopies(ctx); err != nil {
		return lookAgain, err
	}
	return lookAgain, g.rest(ctx)
}

// initialCopies marks and copies volumes that are new to the pair. The record of a finished copy comes last: dead
// before it, a look at the empty map finishes it.
func (g *group) initialCopies(ctx context.Context) error {
	var todo []memberRecord
	for _, m := range g.members() {
		if m.Initial && !m.Equal { // an equal one waits for its samples: checkPair
			todo = append(todo, m)
		}
	}
	if len(todo) == 0 && g.sub.ChangedBytes() == 0 { // marks without a step: it came to rest when the node died
		return nil
	}
	g.copying.Store(true)
	defer g.copying.Store(false)
	for _, m := range todo {
		if m.Marked {
			continue
		}
		if err := g.sub.MarkData(record.VolumeNumber(m.Number)); err != nil {
			return err
		}
		if err := g.updateMember(m.Number, func(r *memberRecord) { r.Marked = true }); err != nil {
			return err
		}
	}
	if held, err := g.runInitial(ctx); err != nil || held {
		return err
	}
	if told, err := g.tellCopied(ctx, todo); err != nil || !told {
		return err // cut off: the loop is poked by that
	}
	for _, m := range todo {
		if err := g.updateMember(m.Number, func(r *memberRecord) { r.Initial = false }); err != nil {
			return err
		}
	}
	g.pokeCopy() // another volume may have come meanwhile
	return nil
}

func (g *group) updateMember(number uint16, change func(*memberRecord)) error {
	return g.n.state.update(func(d *durable) error {
		if r := d.Groups[g.name]; r != nil && r.member(number) != nil {
			change(r.member(number))
		}
		return nil
	})
}

// feeding returns a group that this node feeds to a secondary.
func (n *Node) feeding(name string) (*group, error) {
	g := n.group(name)
	if g == nil {
		return nil, notFound("group %s is not on node %s", name, n.cfg.Name)
	}
	if err := g.serving(); err != nil {
		return nil, refused("group %s: %v", name, err)
	}
	if sub, _, _ := g.feeds(); sub == nil {
		return nil, refused("group %s has no pair yet", name)
	}
	if apart, _ := g.apart(); apart {
		return nil, refused("group %s: node %s was promoted, and nothing is copied back: `group failback` is not built yet", name, n.cfg.Name)
	}
	return g, nil
}

// becomeSource: this node has sealed its epoch. It goes on sending up to the cut and answers fetches; no host.
func (g *group) becomeSource(cut record.Seq) {
	g.mu.Lock()
	g.role, g.epoch = control.RoleSource, 0
	snd, feed := g.snd, g.feed
	g.mu.Unlock()
	if snd != nil {
		snd.StopAt(cut)
	}
	feed.begin(func() { g.noteDrained(feed.ctx) })
}

// resumeSource brings a sealed source back after a restart.
func (g *group) resumeSource(rec *groupRecord, cut record.Seq) error {
	for _, m := range rec.Members {
		v := g.n.volume(m.Volume)
		if to := g.n.successor(m.Volume); to != nil {
			v.vol.SetSuccessor(to)
		}
		v.epoch.Store(rec.Epoch)
		if err := v.vol.SetMode(context.Background(), volume.ModeMoved, false); err != nil {
			return err
		}
	}
	if g.fed(rec) {
		if err := g.startFeed(rec.Spec.Group.Secondary, rec.Members); err != nil {
			return err
		}
	}
	g.becomeSource(cut)
	return nil
}

// sealed: the log ends with a fence and no later epoch has been opened here.
func (g *group) sealed() bool {
	vg := g.running()
	if vg == nil {
		return false
	}
	_, _, ok := vg.Sealed()
	return ok
}

// reopen has a source whose move was refused serve in the epoch that its record now says. Repeated, it changes nothing.
// Hosts' requests are held for the moment in which the row is opened.
func (g *group) reopen(ctx context.Context) error {
	rec := g.n.state.view().Groups[g.name]
	g.mu.Lock()
	serves := g.epoch
	g.mu.Unlock()
	if serves >= rec.Epoch {
		return nil
	}
	for _, m := range rec.Members {
		v := g.n.volume(m.Volume).vol
		if v.Mode() == volume.ModeMoved {
			continue // sealed: nothing is admitted
		}
		if err := v.SetMode(ctx, volume.ModePending, true); err != nil {
			return err
		}
	}
	g.stopFeed()
	if err := g.startPrimary(rec.Spec.Group.Secondary); err != nil {
		return err
	}
	for _, m := range rec.Members {
		if err := g.n.volume(m.Volume).vol.SetMode(ctx, volume.ModeNormal, false); err != nil {
			return err
		}
	}
	// Superseded meanwhile: either that is seen here, or superseded turns hosts away once more behind its record.
	if now := g.n.state.view().Groups[g.name]; now != nil && now.Superseded != nil {
		if err := g.turnAway(ctx, now, *now.Superseded); err != nil {
			return err
		}
		g.retire(*now.Superseded)
		return refused("group %s: node %s was promoted meanwhile", g.name, now.Superseded.Node)
	}
	return nil
}
