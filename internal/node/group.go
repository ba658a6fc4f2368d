package node

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"slices"
	"sync"
	"sync/atomic"

	"gantline/internal/apply"
	"gantline/internal/block"
	"gantline/internal/control"
	"gantline/internal/journal"
	"gantline/internal/pace"
	"gantline/internal/queue"
	"gantline/internal/receiver"
	"gantline/internal/record"
	"gantline/internal/sender"
	"gantline/internal/volume"
)

// secondaryName is what a primary's log calls the subscriber that is the remote copy.
const secondaryName = "secondary"

// group is the runtime of a group on this node: its log, its volumes, and what its role adds.
type group struct {
	n    *Node
	name string
	wan  *wanCounter

	mu    sync.Mutex
	role  string // control.Role…
	epoch uint64 // in which this node serves; 0: it does not
	err   error  // why it does not work

	log  volume.Log
	jnl  *journal.Journal // the log on disk; nil for a queue
	que  *queue.Queue     // the log in memory; else nil
	vg   *volume.Group
	maps map[uint16]changedMap
	// intents are those of a queue, by volume.
	intents map[uint16]changedMap

	oldMaps []block.Device // of volumes that have left

	// Primary and source: what feeds the secondary; under mu. sub is set once, snd and feed are made anew when the group
	// is reopened.
	sub  *volume.Subscriber
	snd  *sender.Sender
	feed *scope

	// Secondary: under mu, set once.
	rcv   *receiver.Receiver
	app   *apply.Loop
	pulls *pulls

	second seconds // source of a copy-first move: what feeds its target

	run *scope // the group's own loops

	// steer is held by who decides whether copying goes on: a command, or the copy loop at the begin of a step. The group
	// is not closed meanwhile. Taken before mu.
	steer    sync.Mutex
	sealing  bool          // under steer: a move ends this node's epoch
	copyWake chan struct{} // copyLoop looks again
	period   period
	copying  atomic.Bool // a volume is being copied for the first time
	noReturn string      // why a group that should resync by itself does not

	stopInitial context.CancelFunc // under mu: ends the initial copy that runs
	copySeen    copySeen
	alarm       control.JournalAlarm // high-water mark of the journal

	sampling sync.Mutex            // a pair that is said to be equal is being compared
	found    findings              // secondary: at digest records
	verify   *control.VerifyStatus // primary: the one under way; replaced, never changed

	limit    *pace.Limiter // of what is sent to the secondary
	compress atomic.Uint32 // wire.Method of it

	told bool // under mu: the old primary knows that this node was promoted

	watched watch  // under mu
	expect  expect // under mu
}

type changedMap struct {
	bits *block.Bitmap
	dev  block.Device
}

func (n *Node) newGroup(name string) *group {
	g := &group{n: n, name: name, wan: &wanCounter{}, copyWake: make(chan struct{}, 1), limit: pace.New()}
	n.mu.Lock()
	defer n.mu.Unlock()
	n.groups[name] = g
	return g
}

func (n *Node) group(name string) *group {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.groups[name]
}

// fail leaves the group closed and saying why.
func (g *group) fail(err error) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.err == nil {
		g.err = err
	}
}

// failed: the running log has stopped on an error. What it had answered and not made durable may be gone when it is
// opened again, and hosts that wrote it must hear of that.
func (g *group) failed(err error) {
	g.fail(err)
	if !g.logBroken() {
		return // the log has all that was answered
	}
	err = g.n.state.update(func(d *durable) error {
		if r := d.Groups[g.name]; r != nil {
			r.Losses++
		}
		return nil
	})
	if err != nil {
		g.n.log.Error("failure of the log not recorded", "group", g.name, "cause", err)
	}
}

// open brings the group up from its log, in the role that its record gives it.
func (g *group) open(rec *groupRecord) (err error) {
	defer func() {
		if err != nil {
			err = errors.Join(fmt.Errorf("group %s: %w", g.name, err), g.close())
		}
	}()
	g.mu.Lock()
	g.role = rec.Role
	g.mu.Unlock()
	if err := g.applySettings(); err != nil {
		return err
	}
	if err := g.wan.open(g.n.wanPath(g.name)); err != nil {
		return fmt.Errorf("count of bytes sent: %w", err)
	}
	if err := g.openLog(rec); err != nil {
		return err
	}
	if err := g.forgetRemoved(rec); err != nil {
		return err
	}
	var members []volume.Member
	for _, m := range rec.Members {
		v := g.n.volume(m.Volume)
		if v == nil {
			return notFound("volume %s/%s does not exist", g.n.cfg.Name, m.Volume)
		}
		members = append(members, volume.Member{Number: record.VolumeNumber(m.Number), Volume: v.vol})
	}
	if rec.Role != control.RoleSecondary {
		if err := g.openMaps(rec); err != nil {
			return err
		}
	}
	cache := g.n.cacheShare()
	vg, err := volume.Open(volume.Config{Name: g.name, Log: g.log, Members: members, Logger: g.n.log,
		CacheBytes: cache, RecentBytes: cache, CopyBytes: g.n.cfg.copyBytes, OnFailed: g.failed, OnRecord: g.onRecord})
	if err != nil {
		return err
	}
	g.mu.Lock()
	g.vg = vg
	g.mu.Unlock()
	g.run = newScope()
	switch rec.Role {
	case control.RoleSecondary:
		g.goRun()
		if g.wasOpened() { // promoted, and dead before it was recorded
			return g.finishPromotion(rec)
		}
		return g.startSecondary(rec)
	case control.RolePrimary:
		return g.startPrimaryRole(rec)
	case control.RoleSuperseded:
		defer g.goRun()
		return g.startSuperseded(rec)
	}
	g.goRun()
	return nil // a target waits for its move
}

// maxGroups bounds the groups of a node: each has a log, caches and loops of its own.
const maxGroups = control.MaxGroups

// cacheShare is what a group may keep of what is not on its devices yet, and as much again of what it has still to
// send: half the node's memory shared by its groups, and at most an eighth, in bytes. A group that joins later leaves
// the shares of the others as they are until the node starts again.
func (n *Node) cacheShare() int64 {
	groups := int64(0)
	for _, g := range n.state.view().Groups {
		if g.Role != control.RoleRetired {
			groups++
		}
	}
	return max(min(n.cfg.Memory/8, n.cfg.Memory/4/max(groups, 1)), 4<<20)
}

// goRun starts the loops behind the writes.
func (g *group) goRun() {
	g.run.work.Go(func() {
		if err := g.vg.Run(g.run.ctx); err != nil {
			g.fail(err)
		}
	})
}

// openLog opens the log that the group has on this node.
func (g *group) openLog(rec *groupRecord) error {
	if rec.onQueue() {
		return g.openQueue(rec)
	}
	jnl, err := g.n.openJournal(rec.Journal)
	if err != nil {
		return err
	}
	log, err := g.chained(rec, groupLog{jnl})
	if err != nil {
		return errors.Join(err, jnl.Close())
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	g.jnl, g.log = jnl, log
	return nil
}

// prepareLog makes the log of a new group empty.
func (n *Node) prepareLog(rec *groupRecord) error {
	if rec.onQueue() {
		return n.createQueue(rec.Spec.Group.Name)
	}
	return n.prepareJournal(n.state.view().Journals[rec.Journal])
}

func (g *group) openMaps(rec *groupRecord) error {
	opened := map[uint16]changedMap{}
	g.mu.Lock()
	g.maps = opened // close finds those of an opening that fails
	g.mu.Unlock()
	for _, m := range rec.Members {
		bits, dev, err := g.n.openChangedMap(g.name, m.Number, bitsFor(g.n.volume(m.Volume).vol.Size(), markSize))
		if err != nil {
			return err
		}
		g.mu.Lock()
		opened[m.Number] = changedMap{bits, dev}
		g.mu.Unlock()
	}
	return nil
}

// close stops everything so that the devices are complete: first what brings records, then what writes them back.
func (g *group) close() error {
	g.stopFeed()
	g.dropInterval() // last, for the copy loop may have begun one
	closeLacks := g.stopTarget()
	g.run.stop()
	g.steer.Lock() // a command that has begun ends first, later ones find it closed
	defer g.steer.Unlock()
	g.mu.Lock()
	vg, log, maps, intents := g.vg, g.log, g.maps, g.intents
	oldMaps := g.oldMaps
	g.oldMaps = nil
	g.vg, g.log, g.jnl, g.que, g.maps, g.intents = nil, nil, nil, nil, nil, nil
	g.mu.Unlock()
	var errs []error
	switch {
	case vg != nil:
		errs = append(errs, vg.Close()) // closes the log
	case log != nil:
		errs = append(errs, log.Close())
	}
	errs = append(errs, closeMaps(maps, intents)...)
	errs = append(errs, closeLacks())
	for _, dev := range oldMaps {
		errs = append(errs, dev.Close())
	}
	errs = append(errs, g.wan.close())
	return errors.Join(errs...)
}

// release closes the group and gives its volumes back to themselves: lone volumes again, or, given up, closed to hosts,
// who are told where to go.
func (g *group) release(ctx context.Context, rec *groupRecord, moved map[string]*block.MovedError) error {
	if err := g.applySync(control.DefaultSettings()); err != nil && g.Err() == nil { // nobody is to wait for a copy that ends
		return err
	}
	g.stopFeed()
	for _, m := range rec.Members {
		v := g.n.volume(m.Volume)
		if v == nil {
			continue
		}
		if g.vg == nil { // it could not be opened
			v.vol.DropPresence()
			continue
		}
		to, mode := moved[m.Volume], volume.ModeNormal
		if to != nil {
			// Before it leaves the group: what is held is answered with it, never executed on a volume of its own.
			v.vol.SetSuccessor(to)
			mode = volume.ModeMoved
			if err := v.vol.SetMode(ctx, mode, true); err != nil {
				return err
			}
		}
		v.vol.DropPresence()
		if err := g.vg.Remove(ctx, record.VolumeNumber(m.Number), nil); err != nil {
			return err
		}
		if err := v.vol.SetMode(ctx, mode, false); err != nil {
			return err
		}
		v.epoch.Store(0)
	}
	if err := g.close(); err != nil {
		return err
	}
	g.removeMaps(rec)
	if rec.Role == control.RoleSecondary || rec.Promoted != nil {
		for _, suffix := range []string{".a", ".b"} {
			if err := os.Remove(g.beliefPath() + suffix); err != nil && !errors.Is(err, os.ErrNotExist) {
				return err // the next group of this name must not find it
			}
		}
	}
	return nil
}

// configureGroup makes this node do what the manager wants of a group: a new group, new pairs, new addresses. Roles
// and epochs of a group that is here already are not the manager's to change.
func (n *Node) configureGroup(ctx context.Context, spec control.GroupSpec) (control.GroupStatus, error) {
	n.config.Lock()
	defer n.config.Unlock()
	n.learn(spec.Address)
	name := spec.Group.Name
	rec := n.state.view().Groups[name]
	if g := n.group(name); g != nil && rec != nil && rec.Role != control.RoleRetired && spec.Group.Revision < rec.Spec.Group.Revision {
		if spec.Group.Epoch > rec.Spec.Group.Epoch {
			// A put-back store, which has learnt of a promotion: that counts, and ends what is held here.
			if st, done, err := g.configureApart(ctx, rec, &spec); done || err != nil {
				return st, err
			}
		}
		// A late word, or that of a manager whose store was put back: nothing of it counts.
		st := g.status()
		st.Newer = &rec.Spec.Group
		return st, nil
	}
	if err := n.learnLinks(spec.Links); err != nil {
		return control.GroupStatus{}, err
	}
	// A late word of the group that moved away is told from a new group of its name: that begins in a higher epoch.
	if rec != nil && rec.Role == control.RoleRetired && spec.Group.Revision <= rec.Spec.Group.Revision && spec.Group.Epoch <= rec.Epoch {
		return control.GroupStatus{}, refused("group %s was retired from node %s since", name, n.cfg.Name)
	}
	if rec == nil || rec.Role == control.RoleRetired {
		if n.state.view().ungrouped(&spec.Group) {
			return control.GroupStatus{}, refused("the move of volume %s has ended on node %s since", spec.Group.Lone, n.cfg.Name)
		}
		if err := n.createGroup(spec); err != nil {
			return control.GroupStatus{}, err
		}
		rec = n.state.view().Groups[name]
	}
	g := n.group(name)
	if g == nil {
		return control.GroupStatus{}, refused("group %s is not open on node %s", name, n.cfg.Name)
	}
	if st, done, err := g.configureApart(ctx, rec, &spec); done || err != nil {
		return st, err
	}
	if spec.Group.Revision > rec.Spec.Group.Revision {
		err := n.state.update(func(d *durable) error {
			r := d.Groups[name]
			keep := r.Spec.Group
			old := r.Spec.Group.Mode
			r.Spec = spec
			r.modeChanged(old)
			r.forgetRemovals()
			of := &r.Spec.Group
			if rec.Role != control.RoleSecondary || of.Primary != keep.Primary || of.Epoch < keep.Epoch {
				of.PrimaryJournal = keep.PrimaryJournal // else it is the manager's to name, not this node's
			}
			of.Epoch, of.Primary = keep.Epoch, keep.Primary
			return nil
		})
		if err != nil {
			return control.GroupStatus{}, err
		}
	}
	if err := g.applySettings(); err != nil {
		return control.GroupStatus{}, err
	}
	for _, p := range spec.Group.Pairs {
		if p.Removing {
			continue
		}
		// Recorded is not enough: the call that recorded it may have failed before the volume was in the group.
		if rec.member(p.Number) == nil || !g.has(p.Number) {
			if err := g.addPair(ctx, rec.Role, p); err != nil {
				return control.GroupStatus{}, err
			}
		}
	}
	return g.status(), nil
}

// has says whether the volume is in the running group.
func (g *group) has(number uint16) bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.vg == nil || g.vg.Volume(record.VolumeNumber(number)) != nil
}

func (n *Node) createGroup(spec control.GroupSpec) error {
	full := spec.Group.PrimaryJournal
	if spec.Role == control.RoleSecondary {
		full = spec.Group.SecondaryJournal
	}
	_, jnl := splitName(full)
	d := n.state.view()
	rec := &groupRecord{Spec: spec, Role: spec.Role, Journal: jnl, Epoch: max(spec.Group.Epoch, 1)}
	switch {
	case spec.Role != control.RolePrimary && spec.Role != control.RoleSecondary:
		return invalid("group %s: role %q", spec.Group.Name, spec.Role)
	case rec.onQueue() && jnl != "":
		return invalid("group %s: journal %s is named, and its log is a queue", spec.Group.Name, full)
	case !rec.onQueue() && d.Journals[jnl] == nil:
		return notFound("journal %s does not exist", full)
	case len(d.Groups) >= maxGroups:
		return refused("group %s: node %s has %d groups, the most it takes", spec.Group.Name, n.cfg.Name, len(d.Groups))
	case !rec.onQueue() && d.userOf(jnl) != "":
		return refused("journal %s is in use by %s: groups never share a journal", full, d.userOf(jnl))
	}
	if err := errors.Join(n.prepareLog(rec), n.forgetWAN(spec.Group.Name)); err != nil {
		return err
	}
	err := n.state.update(func(d *durable) error {
		d.Groups[spec.Group.Name] = rec
		if j := d.Journals[jnl]; j != nil {
			j.Used = true
		}
		return nil
	})
	if err != nil {
		return err
	}
	g := n.newGroup(spec.Group.Name)
	if err := g.open(rec); err != nil {
		g.fail(err)
		return err
	}
	return nil
}

// addPair takes a lone volume into the group. The record comes first; a restart then opens the group with it.
func (g *group) addPair(ctx context.Context, role string, p control.Pair) error {
	full := p.Primary
	if role == control.RoleSecondary {
		full = p.Secondary
	}
	node, name := splitName(full)
	if node != g.n.cfg.Name {
		return nil // a pair of another node's
	}
	d := g.n.state.view()
	v := g.n.volume(name)
	switch {
	case v == nil:
		return notFound("volume %s does not exist", full)
	case v.vol.Size() != p.Size:
		return refused("volume %s has %d bytes, the pair has %d", full, v.vol.Size(), p.Size)
	case d.userOf(name) != "" && d.Groups[g.name].member(p.Number) == nil:
		return refused("volume %s is in use by %s", full, d.userOf(name))
	case d.Volumes[name].Moved != nil:
		return refused("volume %s was given up by a move: delete it first", full)
	}
	if err := g.Err(); err != nil {
		return fmt.Errorf("group %s: %w", g.name, err)
	}
	mem := memberRecord{Number: p.Number, Volume: name, Initial: true, Equal: p.AssumeEqual}
	if role == control.RoleSecondary {
		mem.Initial, mem.Equal = false, false
		if err := clearSecondary(v, p); err != nil {
			return fmt.Errorf("volume %s: clear it: %w", full, err)
		}
	} else if d.Groups[g.name].member(p.Number) != nil {
		// An earlier call has made the map; it may be open already.
	} else if err := g.makeMaps(d.Groups[g.name], p.Number, p.Size); err != nil {
		return err
	}
	err := g.n.state.update(func(d *durable) error {
		r := d.Groups[g.name]
		if !slices.ContainsFunc(r.Members, func(m memberRecord) bool { return m.Number == p.Number }) {
			r.Members = append(r.Members, mem)
		}
		return nil
	})
	if err != nil {
		return err
	}
	payload, err := json.Marshal(p)
	if err != nil {
		return err
	}
	m := volume.Member{Number: record.VolumeNumber(p.Number), Volume: v.vol}
	if role == control.RoleSecondary {
		return g.vg.Add(ctx, m, nil)
	}
	return g.addPrimary(ctx, mem, m, payload)
}

// clearSecondary: the initial copy skips what is zero at the primary, so nothing old may stay. A pair that is said to be
// equal has none.
func clearSecondary(v *nodeVolume, p control.Pair) error {
	if p.AssumeEqual {
		return nil
	}
	if err := v.dev.Trim(0, v.vol.Size()); err != nil {
		return err
	}
	return v.dev.Flush()
}

// Err is why the group does not work, nil if it does.
func (g *group) Err() error {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.err
}

func (n *Node) deleteGroup(ctx context.Context, name string) error {
	n.config.Lock()
	defer n.config.Unlock()
	d := n.state.view()
	rec := d.Groups[name]
	if rec == nil {
		return nil
	}
	for id, m := range d.Moves {
		if m.Spec.Group.Name == name && m.Stage != "deregistered" && rec.Role != control.RoleRetired {
			return refused("group %s takes part in migration %s", name, id)
		}
	}
	var over []string
	err := n.dropGroup(ctx, name, n.staysClosed(rec), func(d *durable) {
		delete(d.Groups, name)
		over = d.ungroup(rec)
	})
	for _, id := range over {
		n.forgetMove(id)
	}
	return err
}

// learn keeps addresses of other nodes.
func (n *Node) learn(addr map[string]string) {
	n.mu.Lock()
	defer n.mu.Unlock()
	for node, a := range addr {
		if a != "" {
			n.address[node] = a
		}
	}
}
