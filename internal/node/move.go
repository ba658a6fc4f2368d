package node

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"sync"
	"sync/atomic"
	"time"

	"gantline/internal/control"
	"gantline/internal/migrate"
	"gantline/internal/queue"
	"gantline/internal/record"
	"gantline/internal/volume"
)

// move is this node's running part in a move. Its record is in the state file; only a target runs anything.
type move struct {
	n  *Node
	id string

	// seal serialises what may end or reopen the source's epoch.
	seal sync.Mutex

	target atomic.Pointer[migrate.Target]
	ops    *targetOps
	cancel context.CancelFunc
	work   sync.WaitGroup
}

// stop ends the machine and what it runs. The present maps stay open for the group, whose last checkpoint needs them.
func (m *move) stop() {
	if m.cancel != nil {
		m.cancel()
	}
	m.work.Wait()
	if m.ops != nil {
		m.ops.copy.Load().end()
		m.ops.carry.Load().end()
		m.ops.checks.stop()
		m.ops.close()
	}
}

// closeMaps comes after the group is closed, or has no use for them any more.
func (m *move) closeMaps() {
	if m.ops == nil {
		return
	}
	for _, d := range m.ops.disk {
		if d.mapDev != nil {
			_ = d.mapDev.Close() // its bits were flushed when they had to be
			d.mapDev = nil
		}
		if d.writtenDev != nil {
			_ = d.writtenDev.Close()
			d.writtenDev = nil
		}
	}
}

// move returns the runtime of a move and its record as it is on disk.
func (n *Node) move(id string) (*move, *migrate.Record, error) {
	n.mu.Lock()
	m := n.moves[id]
	n.mu.Unlock()
	rec := n.state.view().Moves[id]
	if m == nil || rec == nil {
		return nil, nil, notFound("migration %s is not known on node %s", id, n.cfg.Name)
	}
	return m, rec, nil
}

func (n *Node) saveMove(r *migrate.Record) error {
	return n.state.update(func(d *durable) error {
		if old := d.Moves[r.Spec.ID]; old != nil && !migrate.Legal(old.Stage, r.Stage) {
			return fmt.Errorf("migration %s: stage %s cannot follow %s", r.Spec.ID, r.Stage, old.Stage)
		}
		d.Moves[r.Spec.ID] = r
		return nil
	})
}

// registerMove notes a move (S603, S604). What it needs is checked before anything is kept.
func (n *Node) registerMove(ctx context.Context, spec control.MigrationSpec) error {
	n.config.Lock()
	defer n.config.Unlock()
	if old := n.state.view().Moves[spec.ID]; old != nil && (old.Stage != migrate.Deregistered || old.Spec.Group.Epoch == spec.Group.Epoch) {
		if m, _, err := n.move(spec.ID); err == nil && (!runsTarget(old) || m.target.Load() != nil) {
			return nil
		}
		return n.beginMove(spec.ID, old) // recorded, but what runs it could not be started then
	}
	if n.state.view().cancelled(control.MigrationCancel{ID: spec.ID, Epoch: spec.Group.Epoch}) {
		return refused("migration %s has been cancelled", spec.ID) // the call was on its way longer than its cancellation
	}
	n.cfg.Point(control.StepRegister, "before")
	n.learn(spec.Address)
	rec := &migrate.Record{Spec: spec, Stage: migrate.Registered}
	rec.Note(control.StepRegister, time.Now())
	var err error
	switch n.cfg.Name {
	case spec.Secondary:
		rec.Role = control.RoleSecondary
		err = n.registerAtSecondary(rec)
	case spec.Source:
		rec.Role = control.RoleSource
		err = n.registerAtSource(rec)
	case spec.Target:
		rec.Role = control.RoleTarget
		err = n.registerAtTarget(rec)
	default:
		err = invalid("migration %s: node %s has no part in it", spec.ID, n.cfg.Name)
	}
	if err != nil {
		return err
	}
	n.cfg.Point(control.StepRegister, "after")
	return n.beginMove(spec.ID, rec)
}

// registerAtSecondary permits the two epochs that may follow: nothing is raised by it, no source is forgotten.
func (n *Node) registerAtSecondary(rec *migrate.Record) error {
	g := n.group(rec.Spec.Group.Name)
	if g == nil {
		return notFound("migration %s: group %s is not on node %s", rec.Spec.ID, rec.Spec.Group.Name, n.cfg.Name)
	}
	err := g.permit(record.EpochID{Number: rec.TargetEpoch(), Node: rec.Spec.Target},
		record.EpochID{Number: rec.SourceEpoch(), Node: rec.Spec.Source})
	if err != nil {
		return err
	}
	return n.saveMove(rec)
}

func (n *Node) registerAtSource(rec *migrate.Record) error {
	if bad := n.sourceRefusals(rec.Spec); len(bad) > 0 {
		return refused("migration %s: %s", rec.Spec.ID, bad[0])
	}
	g := n.group(rec.Spec.Group.Name)
	if sub, _, _ := g.feeds(); sub == nil && rec.Spec.Secondary != "" { // it has never had a pair: see fed
		if err := g.startFeed(rec.Spec.Secondary, g.members()); err != nil {
			return err
		}
	}
	rec.WANBytesStart = g.wan.total()
	if err := n.saveMove(rec); err != nil {
		return err
	}
	if g.holdsCopy() {
		g.mu.Lock()
		defer g.mu.Unlock()
		if g.stopInitial != nil {
			g.stopInitial()
		}
	}
	return nil
}

// queueLag is how far behind the secondary of a group on a queue may be when hosts are led to the target: they are held
// until it has all.
const queueLag = time.Second

func (g *group) onQueue() bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.que != nil
}

// ready is nil if the group is in a state in which it may be sealed here now.
func (g *group) ready() error {
	st := g.status()
	if bad := g.unmovable(&st); bad != "" {
		return refused("%s", bad)
	}
	sub, _, _ := g.feeds()
	if sub == nil && st.Peer == "" {
		return nil // nothing is copied
	}
	if sub == nil {
		return refused("group %s is fed to nobody yet: register the move first", g.name)
	}
	if sub.State() != volume.SubStreaming || !g.onQueue() {
		return nil // what it lacks is marked, or the log on disk sends it
	}
	if n := sub.Underway(); n > 0 {
		return refused("group %s: %d copied blocks are on their way to the secondary: what is in the queue has to be there before the cut", g.name, n)
	}
	if age := sub.Lag().Age; age > queueLag {
		return refused("group %s: the secondary is %v behind: what is in the queue has to be there before the cut", g.name, age.Round(time.Millisecond))
	}
	return nil
}

// unmovable says why a group does not move in the state that it is in, unless that changes; empty: it does.
func (g *group) unmovable(st *control.GroupStatus) string {
	sub, _, _ := g.feeds()
	switch {
	case st.State == "failed" || st.State == "split-brain":
		return fmt.Sprintf("group %s is %s: %s", g.name, st.State, st.BlockedOn)
	case sub == nil || sub.State() != volume.SubStreaming:
		return ""
	case g.onQueue() && !st.LinkUp:
		return fmt.Sprintf("the link to %s is down: %s; what is in the queue has to be there before the cut, or suspend the group first",
			st.Peer, st.BlockedOn)
	}
	if s := sub.Sync(); s.Away || s.Lost {
		return fmt.Sprintf("group %s: hosts wait for a secondary that is away (--on-link-loss stop): wait until it is back, or suspend the group first",
			g.name)
	}
	return ""
}

// sourceRefusals says what keeps this node from being the source of the move.
func (n *Node) sourceRefusals(spec control.MigrationSpec) []string {
	g := n.group(spec.Group.Name)
	if g == nil {
		return []string{fmt.Sprintf("group %s is not on node %s", spec.Group.Name, n.cfg.Name)}
	}
	st := g.status()
	var bad []string
	if st.Role != control.RolePrimary {
		bad = append(bad, fmt.Sprintf("node %s is %s in group %s, not its primary", n.cfg.Name, st.Role, spec.Group.Name))
	}
	if st.Epoch != spec.Group.Epoch {
		bad = append(bad, fmt.Sprintf("group %s is in epoch %d here, not %d", spec.Group.Name, st.Epoch, spec.Group.Epoch))
	}
	d := n.state.view()
	if spec.Carries() {
		bad = append(bad, g.carryRefusals()...)
	}
	if st.Role == control.RolePrimary {
		if why := g.unmovable(&st); why != "" {
			bad = append(bad, why)
		} else if r := d.Groups[g.name]; spec.CopyFirst() && g.onQueue() && r != nil && r.copied() && r.initial() {
			bad = append(bad, fmt.Sprintf("group %s is being copied for the first time: with a log in memory that would have to wait "+
				"while the target is copied to; wait until it is paired, or move it without --strategy copy-first", g.name))
		}
	}
	return append(bad, d.growing(spec.Volumes)...)
}

// growing names volumes of a move that a resize has not ended with.
func (d *durable) growing(volumes []control.MovedVolume) (bad []string) {
	for _, mv := range volumes {
		_, name := splitName(mv.Source)
		if v := d.Volumes[name]; v != nil && (v.Size != mv.Size || v.Growing != 0) {
			size := max(v.Size, v.Growing)
			bad = append(bad, fmt.Sprintf("a resize of volume %s to %d bytes has not ended: repeat `gantline volume resize %s --size %d`",
				mv.Source, size, mv.Source, size))
		}
	}
	return bad
}

// targetRefusals says what keeps this node from being the target of the move. early: before what is to be made has been made.
func (n *Node) targetRefusals(spec control.MigrationSpec, early bool) []string {
	d := n.state.view()
	var bad []string
	add := func(format string, args ...any) { bad = append(bad, fmt.Sprintf(format, args...)) }
	for _, mv := range spec.Volumes {
		_, name := splitName(mv.Target)
		switch v := d.Volumes[name]; {
		case v == nil && early:
		case v == nil:
			add("volume %s does not exist", mv.Target)
		case v.Size != mv.Size:
			add("volume %s has %d bytes, %s has %d", mv.Target, v.Size, mv.Source, mv.Size)
		}
		if user := d.userOf(name); user != "" {
			add("volume %s is in use by %s", mv.Target, user)
		}
		n.exports.mu.Lock()
		open := n.exports.open[name]
		n.exports.mu.Unlock()
		if open > 0 {
			add("volume %s is open by %d hosts", mv.Target, open)
		}
	}
	_, jnl := splitName(spec.TargetJournal)
	if spec.Group.Log == control.LogQueue {
		// It needs none.
	} else if d.Journals[jnl] == nil && early {
		// It is to be made.
	} else if d.Journals[jnl] == nil {
		add("journal %s does not exist", spec.TargetJournal)
	} else if user := d.userOf(jnl); user != "" {
		add("journal %s is in use by %s", spec.TargetJournal, user)
	}
	if g := d.Groups[spec.Group.Name]; g != nil && g.Role != control.RoleRetired {
		add("node %s is %s in group %s", n.cfg.Name, g.Role, spec.Group.Name)
	} else if g == nil && len(d.Groups) >= maxGroups {
		add("node %s has %d groups, the most it takes", n.cfg.Name, len(d.Groups))
	}
	return bad
}

// checkMove is a dry run: what would refuse the move here, and the figures that a plan needs.
func (n *Node) checkMove(spec control.MigrationSpec) (control.MigrationCheck, error) {
	var c control.MigrationCheck
	switch n.cfg.Name {
	case spec.Source:
		if n.group(spec.Group.Name) == nil && spec.Group.Lone != "" {
			c.Refusals = n.loneRefusals(spec)
		} else {
			c.Refusals = n.sourceRefusals(spec)
		}
		if g := n.group(spec.Group.Name); g != nil {
			st := g.status()
			c.Backlog, c.LinkDown = st.LagBytes, !st.LinkUp
			if spec.Carries() && len(c.Refusals) == 0 {
				_, size, err := g.backlog()
				if err != nil {
					return c, err
				}
				c.CarrySize = withSlack(size)
			}
		}
		for _, mv := range spec.Volumes {
			_, name := splitName(mv.Source)
			if v := n.volume(name); v != nil {
				data, err := dataBytes(v.dev)
				if err != nil {
					return c, err
				}
				c.DataBytes += data
			}
		}
	case spec.Target:
		free, err := freeBytes(filepath.Join(n.cfg.DataDir, "volumes"))
		if err != nil {
			return c, err
		}
		c.FreeBytes = free
		c.Refusals = n.targetRefusals(spec, true)
	case spec.Secondary:
		if n.group(spec.Group.Name) == nil {
			c.Refusals = append(c.Refusals, fmt.Sprintf("group %s is not on node %s", spec.Group.Name, n.cfg.Name))
		}
	}
	return c, nil
}

// registerAtTarget makes the group here, without a role yet, and the present maps with every region absent.
func (n *Node) registerAtTarget(rec *migrate.Record) error {
	spec := rec.Spec
	if bad := n.targetRefusals(spec, false); len(bad) > 0 {
		return refused("migration %s: %s", spec.ID, bad[0])
	}
	_, jnl := splitName(spec.TargetJournal)
	gr := &groupRecord{Role: control.RoleTarget, Journal: jnl, Epoch: rec.TargetEpoch(),
		Spec: control.GroupSpec{Group: spec.Group, Role: control.RoleTarget, Address: spec.Address}}
	for _, mv := range spec.Volumes {
		_, name := splitName(mv.Target)
		gr.Members = append(gr.Members, memberRecord{Number: mv.Number, Volume: name, Marked: true})
		if err := n.makeMoveMaps(spec.ID, mv); err != nil {
			return err
		}
		if gr.onQueue() {
			if err := n.createMap(n.intentPath(spec.Group.Name, mv.Number), queue.Regions(mv.Size)); err != nil {
				return err
			}
		}
	}
	if err := n.makeChangedMaps(spec.Group.Name, gr); err != nil {
		return err
	}
	if err := errors.Join(n.prepareLog(gr), n.forgetWAN(spec.Group.Name)); err != nil {
		return err
	}
	// Group and move become durable together: neither is ever found without the other.
	return n.state.update(func(d *durable) error {
		d.Groups[spec.Group.Name] = gr
		d.Moves[spec.ID] = rec
		if j := d.Journals[jnl]; j != nil {
			j.Used = true
		}
		for _, m := range gr.Members {
			d.Volumes[m.Volume].Moved = nil // the operator has named it to be overwritten
		}
		return nil
	})
}

// newMove makes a move's runtime. A target's volumes are prepared by it.
func (n *Node) newMove(id string, rec *migrate.Record) (*move, error) {
	m := &move{n: n, id: id}
	n.mu.Lock()
	n.moves[id] = m
	n.mu.Unlock()
	if !runsTarget(rec) {
		return m, nil
	}
	return m, n.prepareTarget(m, rec)
}

func runsTarget(rec *migrate.Record) bool {
	return rec.Role == control.RoleTarget && rec.Stage != migrate.Deregistered
}

// beginMove builds a move's runtime right after its registration.
func (n *Node) beginMove(id string, rec *migrate.Record) error {
	m, err := n.newMove(id, rec)
	if err != nil || !runsTarget(rec) {
		return err
	}
	g := n.newGroup(rec.Spec.Group.Name)
	if err := g.open(n.state.view().Groups[rec.Spec.Group.Name]); err != nil {
		g.fail(err)
		return fmt.Errorf("migration %s: %w", id, err)
	}
	return n.startTarget(m, rec)
}

func (n *Node) moveThrough(_ context.Context, id string) error {
	m, rec, err := n.move(id)
	if err != nil {
		return err
	}
	if m.target.Load() == nil {
		return refused("migration %s: node %s is not its target", id, n.cfg.Name)
	}
	if rec.Stage != migrate.Registered && rec.Stage != migrate.Through {
		return nil
	}
	n.cfg.Point(control.StepThrough, "before")
	relay := false
	err = m.target.Load().Update(func(r *migrate.Record) {
		// Asked inside the update: a late repetition must not put a target that has gone on back to relaying.
		if relay = r.Stage == migrate.Registered || r.Stage == migrate.Through; relay {
			r.Stage = migrate.Through
			r.Note(control.StepThrough, time.Now())
		}
	})
	if err != nil || !relay {
		return err
	}
	if err := m.ops.relayAsOrdered(); err != nil {
		return err
	}
	n.cfg.Point(control.StepThrough, "after")
	return nil
}

func (n *Node) moveRun(_ context.Context, id string) error {
	m, _, err := n.move(id)
	if err != nil {
		return err
	}
	if m.target.Load() == nil {
		return refused("migration %s: node %s is not its target", id, n.cfg.Name)
	}
	return m.target.Load().Order()
}

// moveSet changes the limit of the background copy; it is durable before it is in force.
func (n *Node) moveSet(in control.MigrationSet) error {
	m, _, err := n.move(in.ID)
	if err != nil {
		return err
	}
	t := m.target.Load()
	if t == nil {
		return nil // it copies nothing any more
	}
	if err := t.Update(func(r *migrate.Record) { r.Spec.Limit = in.Limit }); err != nil {
		return err
	}
	m.ops.setLimit(in.Limit)
	return nil
}
