package node

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/time/rate"

	"gantline/internal/block"
	"gantline/internal/control"
	"gantline/internal/migrate"
	"gantline/internal/record"
	"gantline/internal/volume"
	"gantline/internal/wire"
)

// targetOps does at this node what the target's machine says.
type targetOps struct {
	n    *Node
	m    *move
	spec control.MigrationSpec

	ctx  context.Context // of the move
	disk []*targetDisk
	fill sync.WaitGroup
	once sync.Once

	limiter *rate.Limiter // of what all volumes fetch in the background together

	check  atomic.Pointer[moveCheck] // the last that a commit has asked for
	checks *scope

	sourceLost atomic.Bool // what is absent reads as zeros

	opened bool // saved so; Save's alone, which the machine calls under its lock

	copy    atomic.Pointer[copyFirst] // copy-first, until the cut
	carry   atomic.Pointer[carrier]   // of the backlog, until it stands in front of the group's log
	modes   sync.Mutex                // mode changes of the move
	holding bool                      // the machine has begun to hold
}

// targetDisk is one volume of the move.
type targetDisk struct {
	mv      control.MovedVolume
	vol     *nodeVolume
	peer    *peerVolume // the source's volume: relay before the decision, fetches after it
	fetch   *refiller   // fetches of either, from the source or from the secondary
	present *block.Bitmap
	mapDev  block.Device
	written *block.Bitmap // since the cut; nil: not known

	writtenDev block.Device
}

// prepareTarget opens the present maps and the way to the source. The volumes must know what is absent before their
// group opens, since its recovery writes to them.
func (n *Node) prepareTarget(m *move, rec *migrate.Record) error {
	ctx, cancel := context.WithCancel(n.runCtx)
	m.cancel = cancel
	m.ops = &targetOps{n: n, m: m, spec: rec.Spec, ctx: ctx, opened: rec.Stage == migrate.Opened,
		limiter: rate.NewLimiter(rate.Inf, maxBurst), checks: newScope()}
	m.ops.setLimit(rec.Spec.Limit)
	if rec.SourceLost {
		m.ops.loseSource()
	}
	for _, mv := range rec.Spec.Volumes {
		d, err := m.ops.openDisk(ctx, mv)
		if err != nil {
			return fmt.Errorf("migration %s: %w", m.id, err)
		}
		m.ops.disk = append(m.ops.disk, d)
		if err := m.ops.openWritten(d); err != nil {
			return fmt.Errorf("migration %s: %w", m.id, err)
		}
		if rec.Stage == migrate.Filled {
			continue // all is present, and nobody asks the map any more
		}
		if d.present, d.mapDev, err = n.openPresentMap(rec.Spec.ID, mv.Number); err != nil {
			return err
		}
		if rec.Spec.CopyFirst() {
			continue // all is present before anybody asks
		}
		err = d.vol.vol.SetPresence(volume.Presence{Map: d.present, Region: regionSize, Fetch: d.fetch, Parallel: 8, Limit: m.ops.limiter})
		if err != nil {
			return fmt.Errorf("migration %s: volume %s: %w", m.id, mv.Target, err)
		}
	}
	return nil
}

// startTarget starts the machine on the record: the same at registration and after any crash.
func (n *Node) startTarget(m *move, rec *migrate.Record) error {
	if err := m.ops.contradicted(rec); err != nil {
		m.ops.group().fail(err)
		return nil
	}
	if err := m.ops.firstMode(rec); err != nil {
		return err
	}
	target := migrate.NewTarget(rec, m.ops, n.log, n.cfg.Point)
	m.target.Store(target)
	m.ops.startCopy(rec)
	m.ops.startCarry(rec)
	m.work.Go(func() {
		if err := target.Run(m.ops.ctx); err != nil && m.ops.ctx.Err() == nil {
			n.log.Error("move stopped", "id", m.id, "cause", err)
		}
	})
	return nil
}

// contradicted: the log holds what hosts wrote in e+1, and the record of the move does not know of it. That is so if the one
// copy of the node's state that had it was spoiled before there was a second. Nothing may be adopted over such a log, and
// nothing refused.
func (o *targetOps) contradicted(rec *migrate.Record) error {
	vg := o.group().running()
	if vg == nil || o.n.state.group(o.spec.Group.Name).Role != control.RoleTarget {
		return nil
	}
	row, ok := vg.Table().At(vg.Appended())
	if !ok || row.Epoch < rec.TargetEpoch() {
		return nil
	}
	return fmt.Errorf("migration %s: the log has records of epoch %d from %d on, and node.state of node %s, at stage %s, does not "+
		"know that it served: put a later copy of node.state back", rec.Spec.ID, row.Epoch, row.First, o.n.cfg.Name, rec.Stage)
}

func (o *targetOps) openDisk(ctx context.Context, mv control.MovedVolume) (*targetDisk, error) {
	_, local := splitName(mv.Target)
	_, remote := splitName(mv.Source)
	d := &targetDisk{mv: mv, vol: o.n.volume(local)}
	if d.vol == nil {
		return nil, notFound("volume %s does not exist", mv.Target)
	}
	self := wire.Hello{Role: "node", Name: o.n.cfg.Name, Instance: o.n.instance}
	d.peer = newPeerVolume(ctx, self, remote, mv.Size, func() string { return o.n.addressOf(o.spec.Source) }, o.n.log)
	d.fetch = &refiller{o: o, mv: mv, from: d.peer}
	d.vol.vol.SetRelay(d.peer)
	if d.vol.epoch.Load() == 0 {
		d.vol.epoch.Store(o.spec.Group.Epoch) // what it relays is served in
	}
	return d, nil
}

// loseSource has what is absent read as zeros, for which there is no limit.
func (o *targetOps) loseSource() {
	o.sourceLost.Store(true)
	o.setLimit(0)
}

// maxBurst is what a limited background copy may take at once, bytes.
const maxBurst = 8 << 20

// setLimit changes how much is fetched in the background, bytes a second; 0: as much as there is.
func (o *targetOps) setLimit(limit int64) {
	if limit <= 0 {
		o.limiter.SetLimit(rate.Inf)
		return
	}
	o.limiter.SetBurst(int(min(limit, maxBurst)))
	o.limiter.SetLimit(rate.Limit(limit))
}

// pace waits until the limit of the move's background copy lets so many bytes be read. It fails when ctx, which has no deadline, ends.
func (o *targetOps) pace(ctx context.Context, bytes int64) error {
	for bytes > 0 {
		n := min(bytes, int64(o.limiter.Burst()))
		if err := o.limiter.WaitN(ctx, int(n)); err == nil {
			bytes -= n
		} else if n <= int64(o.limiter.Burst()) { // else the burst has been made less just now
			return err
		}
	}
	return nil
}

// firstMode is the mode of the volumes before the machine's first action. Holding is always safe.
func (o *targetOps) firstMode(rec *migrate.Record) error {
	switch rec.Stage {
	case migrate.Through, migrate.Returned:
		return o.Relay()
	case migrate.Filled, migrate.Deregistered:
		return nil // a primary like any other: its group has set the mode
	}
	return o.setMode(o.ctx, volume.ModePending, false)
}

func (o *targetOps) setMode(ctx context.Context, mode volume.Mode, drain bool) error {
	for _, d := range o.disk {
		if err := d.vol.vol.SetMode(ctx, mode, drain); err != nil {
			return fmt.Errorf("volume %s to %v mode: %w", d.mv.Target, mode, err)
		}
	}
	return nil
}

func (o *targetOps) group() *group { return o.n.group(o.spec.Group.Name) }

// Save also makes this node the group's primary in its own record, in the same write that opens e+1. That one ends with
// the first copy: one sync less for hosts to wait for, and the next Save brings the second. Dead in between, the first counts.
func (o *targetOps) Save(r *migrate.Record) error {
	if r.Stage == migrate.Drained || r.Stage == migrate.Single {
		defer o.group().pokeCopy() // see awaitsSource
	}
	update := o.n.state.update
	if r.Stage == migrate.Opened && !o.opened {
		update = o.n.state.updateSoon
	}
	err := update(func(d *durable) error {
		g := d.Groups[r.Spec.Group.Name]
		if g == nil || g.Role == control.RoleSuperseded {
			return refused("migration %s was cancelled meanwhile", r.Spec.ID)
		}
		if old := d.Moves[r.Spec.ID]; r.Carried && (old == nil || !old.Carried) {
			g.Carried = o.carry.Load().record()
		}
		d.Moves[r.Spec.ID] = r
		switch {
		case r.Stage == migrate.Opened && g.Role == control.RoleTarget:
			g.inherit(&r.Handover.Copy)
			g.Role = control.RolePrimary
			g.Epoch = r.TargetEpoch()
			g.Spec.Group.Primary, g.Spec.Group.Epoch, g.Spec.Group.PrimaryJournal = r.Spec.Target, g.Epoch, r.Spec.TargetJournal
			for i := range g.Spec.Group.Pairs {
				for _, mv := range r.Spec.Volumes {
					if mv.Number == g.Spec.Group.Pairs[i].Number {
						g.Spec.Group.Pairs[i].Primary = mv.Target
					}
				}
			}
		case r.Stage == migrate.Drained:
			g.WANBase = r.WANBytes
		}
		return nil
	})
	if err == nil && r.Stage == migrate.Opened {
		o.opened = true
	}
	return err
}

// Pend: all volumes hold before the first one drains, so that the group stops as one.
func (o *targetOps) Pend(ctx context.Context) error {
	o.modes.Lock()
	o.holding = true
	err := o.setMode(ctx, volume.ModePending, false)
	o.modes.Unlock()
	if err != nil {
		return err
	}
	for _, d := range o.disk {
		if err := d.vol.vol.Drain(ctx); err != nil {
			return fmt.Errorf("relayed requests of %s: %w", d.mv.Target, err)
		}
	}
	return nil
}

// Near is where a copy-first move waits before it holds anybody: it holds them only for what a moment's writes take. After a restart they
// may be held already; they go back to the source then, unless that is sealed.
func (o *targetOps) Near(ctx context.Context) error {
	if err := o.nearCarry(ctx); err != nil {
		return err
	}
	c := o.copy.Load()
	if c == nil {
		return nil
	}
	sealed, heard, err := c.near(ctx)
	if sealed || err == nil {
		return nil
	}
	if !heard {
		return err // nobody knows whether the source is sealed: who is held stays so
	}
	if relay := o.relayAsOrdered(); relay != nil {
		return relay
	}
	return fmt.Errorf("%w: %v", migrate.ErrBehind, err)
}

// Meet has a copy-first target come in step with hosts held. If it does not, they are served by the source again.
func (o *targetOps) Meet(ctx context.Context) error {
	c := o.copy.Load()
	if c == nil {
		return nil
	}
	err := c.meet(ctx)
	if err == nil {
		return nil
	}
	switch sealed, askErr := c.sealed(ctx); {
	case askErr != nil:
		return askErr // nobody knows whether it is sealed: hosts stay held
	case sealed:
		return nil // by an earlier try that was cut short: the seal says where
	}
	return o.stepBack(c, err)
}

// stepBack lets hosts go on at the source, and tells it.
func (o *targetOps) stepBack(c *copyFirst, why error) error {
	o.modes.Lock()
	defer o.modes.Unlock()
	if err := o.setMode(o.ctx, volume.ModeThrough, false); err != nil {
		return err
	}
	o.holding = false
	err := fmt.Errorf("%w: hosts were held, and go on at the source: %v", migrate.ErrBehind, why)
	if !c.back(err) {
		return err
	}
	o.n.events.add([]control.NodeEvent{{At: time.Now().UTC(), Object: "migration/" + o.spec.ID, Kind: "target-behind", Cause: why.Error(),
		Message: fmt.Sprintf("migration %s: the target could not follow the source: hosts go on there, it will be tried again", o.spec.ID)}})
	return err
}

// Seal returns when the changed maps here are the source's and, with copy-first, all up to the cut is here durably.
func (o *targetOps) Seal(ctx context.Context) (*control.Handover, error) {
	var h control.Handover
	err := o.n.call(ctx, o.spec.Source, control.CallMigrateSeal, control.MigrationID{ID: o.spec.ID}, &h)
	if err != nil && wire.KindOf(err) == wire.KindRefused {
		return nil, fmt.Errorf("%w: %v", migrate.ErrNotSealed, err)
	}
	if err != nil {
		return nil, err
	}
	if c := o.copy.Load(); c != nil {
		if h.Behind != "" {
			return nil, o.stepBack(c, errors.New(h.Behind))
		}
		if err := c.reach(ctx, h.Cut); err != nil {
			return nil, err
		}
	}
	return &h, o.takeChanged(ctx, &h)
}

func (o *targetOps) Adopt(h *control.Handover) error {
	if h.ID != o.spec.ID || h.Epoch != o.spec.Group.Epoch || h.Cut == 0 {
		return fmt.Errorf("hand-over of %s in epoch %d at %d is not this move's", h.ID, h.Epoch, h.Cut)
	}
	g := o.group()
	for _, mv := range o.spec.Volumes {
		if err := g.maps[mv.Number].bits.Flush(); err != nil {
			return fmt.Errorf("changed map of %s: %w", mv.Target, err)
		}
	}
	return g.vg.Adopt(volume.Adoption{
		Base: record.Seq(h.Cut), Table: tableOf(h.Table), Done: h.Done,
		Next:  record.Row{Epoch: o.spec.Group.Epoch + 1, Incarnation: 1, Node: o.n.cfg.Name, First: record.Seq(h.Cut) + 1},
		Heirs: o.heirs(h),
	})
}

func (o *targetOps) Decide(ctx context.Context, cut uint64) (string, error) {
	if o.n.cfg.Manager == nil {
		return "", errors.New("no manager is configured")
	}
	reply, err := o.n.cfg.Manager.Decide(ctx, o.spec.ID, control.DecideRequest{Node: o.spec.Target, Epoch: o.spec.Group.Epoch, Cut: cut})
	return reply.Decided, err
}

// Serve opens the epoch in the log, once a run, and begins to feed the secondary.
func (o *targetOps) Serve(context.Context) error {
	g := o.group()
	if err := g.serving(); err == nil {
		return nil
	}
	return g.startPrimary(o.spec.Secondary)
}

// Release lets the held requests run here; what is absent has been known since the start.
func (o *targetOps) Release() error {
	o.copy.Load().end() // the volumes are hosts' from now on
	if err := o.setMode(o.ctx, volume.ModeMigrating, false); err != nil {
		return err
	}
	o.once.Do(func() {
		for _, d := range o.disk {
			o.fill.Go(func() {
				o.keepFilling(d)
			})
		}
	})
	return nil
}

// Relay and Pend exclude each other: a repeated order to relay must not overtake the hold.
func (o *targetOps) Relay() error {
	o.modes.Lock()
	defer o.modes.Unlock()
	return o.setMode(o.ctx, volume.ModeThrough, false)
}

// relayAsOrdered relays unless the machine has begun to hold since.
func (o *targetOps) relayAsOrdered() error {
	o.modes.Lock()
	defer o.modes.Unlock()
	if o.holding {
		return nil
	}
	return o.setMode(o.ctx, volume.ModeThrough, false)
}

// keepFilling begins a fill that has ended early anew: regions that are here are not fetched again.
func (o *targetOps) keepFilling(d *targetDisk) {
	for o.ctx.Err() == nil {
		err := d.vol.vol.Fill(o.ctx)
		if err == nil {
			return
		}
		if o.ctx.Err() == nil {
			o.n.log.Error("fill begins anew", "volume", d.mv.Target, "cause", err)
		}
		select {
		case <-o.ctx.Done():
		case <-time.After(time.Second):
		}
	}
}

func (o *targetOps) Reopen(ctx context.Context) error {
	o.copy.Load().end()
	err := o.n.call(ctx, o.spec.Source, control.CallMigrateReopen, control.MigrationID{ID: o.spec.ID}, nil)
	if err != nil && wire.KindOf(err) == wire.KindNotFound {
		return nil // it has forgotten the move, which it does only when it is not sealed: it has never stopped serving
	}
	return err
}

// Drained drops what was being carried here if it turns out that nobody needs it.
func (o *targetOps) Drained(ctx context.Context) (bool, int64, error) {
	done, bytes, err := o.drained(ctx)
	if rec, _ := o.m.target.Load().View(); done && err == nil && !rec.Carried {
		err = o.dropCarry()
	}
	return done, bytes, err
}

func (o *targetOps) drained(ctx context.Context) (bool, int64, error) {
	rec, _ := o.m.target.Load().View()
	if c := &rec.Handover.Copy; c.Suspended {
		return true, c.WANBytes, nil // the source has nothing that the secondary is to get
	}
	if o.spec.Carries() && (rec.Carried || !rec.Abandoned) {
		if done, bytes, err := o.drainedHere(ctx); done || err != nil {
			return done, bytes, err
		}
	}
	if rec.Abandoned {
		return true, rec.Handover.Copy.WANBytes, nil
	}
	var st control.MigrationStatus
	err := o.n.call(ctx, o.spec.Source, control.CallMigrateStatus, control.MigrationID{ID: o.spec.ID}, &st)
	if err != nil {
		return o.drainedThere(ctx, err)
	}
	if st.Drained && rec.Handover.Copy.Marked {
		if err := o.settleChanged(ctx); err != nil {
			return false, 0, err
		}
	}
	return st.Drained, st.WANBytesSent, nil
}

// drainedThere asks the secondary: its rest, which is what is needed of the source for it, may be there already.
func (o *targetOps) drainedThere(ctx context.Context, away error) (bool, int64, error) {
	rec := o.n.state.view().Moves[o.spec.ID]
	var st control.MigrationStatus
	if err := o.n.call(ctx, o.spec.Secondary, control.CallMigrateStatus, control.MigrationID{ID: o.spec.ID}, &st); err != nil {
		return false, 0, err
	}
	if rec == nil || rec.Cut() == 0 || st.Durable < rec.Cut() {
		return false, 0, fmt.Errorf("the secondary has the records up to %d durably, and needs those up to the cut from %s: %w", st.Durable,
			o.spec.Source, away)
	}
	bytes := rec.Handover.Copy.WANBytes // at the cut; what it has sent since, the source alone knows
	if c := o.copy.Load(); c != nil {
		c.mu.Lock()
		bytes = max(bytes, c.wan)
		c.mu.Unlock()
	}
	return true, bytes, nil
}

// Single first has the secondary heard of: it must know this node as a source before it forgets the other.
func (o *targetOps) Single(ctx context.Context) error {
	if o.spec.Secondary == "" || o.n.abandoned(o.spec.ID) {
		return nil
	}
	var st control.MigrationStatus
	if err := o.n.call(ctx, o.spec.Secondary, control.CallMigrateSource, control.MigrationID{ID: o.spec.ID}, &st); err != nil {
		return err
	}
	rec, _ := o.m.target.Load().View()
	in := control.MigrationSingle{ID: o.spec.ID, Abandon: rec.Handover.Copy.Suspended || rec.Carried}
	if rec.Carried {
		in.Cut = rec.Cut()
	}
	return o.n.call(ctx, o.spec.Secondary, control.CallMigrateSingle, in, nil)
}

// Filled: every region is durably here and the secondary is durably past the cut, fed by this node.
func (o *targetOps) Filled(ctx context.Context) (bool, error) {
	for _, d := range o.disk {
		st, ok := d.vol.vol.PresenceStatus()
		if !ok {
			continue // cleared by an earlier try
		}
		if st.Err != nil {
			return false, st.Err
		}
		if st.Present < st.Regions {
			select {
			case <-ctx.Done():
			case <-time.After(20 * time.Millisecond):
			}
			return false, nil
		}
	}
	return true, nil
}

func (o *targetOps) Fetched() (background, onDemand int64) {
	for _, d := range o.disk {
		if ps, ok := d.vol.vol.PresenceStatus(); ok {
			background += ps.Background
			onDemand += ps.Demand
		}
	}
	return background + o.copy.Load().bytes(), onDemand
}

func (o *targetOps) Normal() error {
	for _, d := range o.disk {
		if err := d.vol.vol.ClearPresence(); err != nil {
			return fmt.Errorf("volume %s: %w", d.mv.Target, err)
		}
	}
	return o.setMode(o.ctx, volume.ModeNormal, false)
}

// letGo ends relayed requests, so that a node that stops need not wait for the source.
func (o *targetOps) letGo() {
	for _, d := range o.disk {
		d.peer.Close()
	}
}

// close ends what the move runs here; the volumes stay with their group.
func (o *targetOps) close() {
	o.fill.Wait()
	for _, d := range o.disk {
		d.vol.vol.SetRelay(nil)
		d.peer.Close()
	}
}
