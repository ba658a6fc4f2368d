package node

import (
	"errors"
	"fmt"
	"path/filepath"
	"sync"
	"sync/atomic"
	"time"

	"gantline/internal/control"
	"gantline/internal/migrate"
	"gantline/internal/record"
	"gantline/internal/sender"
	"gantline/internal/volume"
	"gantline/internal/wire"
)

// targetName is what a source's log calls the target of a copy-first move. A group has one move at a time.
const targetName = "target"

// maxRuns is how many runs of marks one call answers with.
const maxRuns = 4096

// hastens is how long the target's records count as urgent after it has said that hosts are held.
const hastens = 10 * time.Second

// second feeds the target of a copy-first move with the source's log, beside the secondary. It outlives seal and restart;
// what is sent to the target, and how often its stream begins anew, changes nothing for the secondary.
type second struct {
	sub    *volume.Subscriber
	maps   map[uint16]changedMap
	feed   *scope // of the sender; nil: the target has not joined in this run
	urgent atomic.Int64
}

// seconds guards a group's second; held by whoever joins, resubscribes or ends it.
type seconds struct {
	mu     sync.Mutex
	closed bool // the group is being closed: nobody joins any more
	now    atomic.Pointer[second]
}

// copyFirstMove is the move of which this node has to feed the target; nil: none.
func (n *Node) copyFirstMove(group string) *migrate.Record {
	for _, rec := range n.state.view().Moves {
		if rec.Role == control.RoleSource && rec.Stage == migrate.Registered && rec.Spec.CopyFirst() && rec.Spec.Group.Name == group {
			return rec
		}
	}
	return nil
}

func (n *Node) lacksPath(move string, number uint16) string {
	return filepath.Join(n.cfg.DataDir, "maps", fmt.Sprintf("%s.%d.lacks", move, number))
}

// resubscribe brings the target back as a subscriber when the group is opened, before anything it needs can be freed.
// Nothing is sent before it joins.
func (g *group) resubscribe() error {
	g.second.mu.Lock()
	defer g.second.mu.Unlock()
	if g.second.now.Load() != nil {
		return nil
	}
	rec := g.n.copyFirstMove(g.name)
	there := rec != nil
	for i := 0; there && i < len(rec.Spec.Volumes); i++ {
		exists, err := g.n.cfg.Devices.Exists(g.n.lacksPath(rec.Spec.ID, rec.Spec.Volumes[i].Number))
		if err != nil {
			return err
		}
		there = exists
	}
	if !there {
		return g.vg.Unsubscribe(targetName) // one that an ended move has left, if any
	}
	return g.subscribeTarget(rec, 0)
}

// subscribeTarget opens the maps and makes the target a subscriber that has all up to acked, 0: as the log says; under
// second.mu.
func (g *group) subscribeTarget(rec *migrate.Record, acked record.Seq) (err error) {
	s := &second{maps: map[uint16]changedMap{}}
	defer func() {
		if err != nil {
			err = errors.Join(err, s.closeMaps())
		}
	}()
	changed := map[record.VolumeNumber]volume.Bitmap{}
	for _, mv := range rec.Spec.Volumes {
		bits, dev, err := g.n.openMarks(g.n.lacksPath(rec.Spec.ID, mv.Number), bitsFor(mv.Size, regionSize))
		if err != nil {
			return err
		}
		s.maps[mv.Number] = changedMap{bits, dev}
		changed[record.VolumeNumber(mv.Number)] = bits
	}
	s.sub, err = g.vg.Subscribe(targetName, volume.SubscriberConfig{Acked: acked, Retain: volume.RetainDurable,
		Changed: changed, BlockSize: regionSize, Needed: true, OnEvent: g.targetEvent})
	if err != nil {
		return err
	}
	g.second.now.Store(s)
	return nil
}

func (s *second) closeMaps() error {
	var errs []error
	for _, m := range s.maps {
		errs = append(errs, m.dev.Close())
	}
	return errors.Join(errs...)
}

// targetEvent: one that was cut off hears of it by its next question, and joins anew.
func (g *group) targetEvent(e volume.SubscriberEvent) {
	g.n.log.Info("target of a move changed state", "group", g.name, "state", e.State, "cause", e.Reason)
	if e.State != volume.SubSuspended || e.Reason != "the log is full" {
		return
	}
	g.n.events.add([]control.NodeEvent{{At: time.Now().UTC(), Object: "group/" + g.name, Kind: "target-behind", Cause: e.Reason,
		Message: fmt.Sprintf("group %s: the log is full of what the target of the move has not got: it fetches what has changed again", g.name)}})
}

// copyMove is the record of a copy-first move of which this node is the source, and its group.
func (n *Node) copyMove(id string) (*group, *migrate.Record, error) {
	_, rec, err := n.move(id)
	if err != nil {
		return nil, nil, err
	}
	if rec.Role != control.RoleSource || !rec.Spec.CopyFirst() {
		return nil, nil, refused("migration %s: node %s is not the source of a copy-first move", id, n.cfg.Name)
	}
	g := n.group(rec.Spec.Group.Name)
	if g == nil || g.running() == nil {
		return nil, nil, refused("migration %s: group %s is not open on node %s", id, rec.Spec.Group.Name, n.cfg.Name)
	}
	return g, rec, g.Err()
}

// moveJoin has the target fed from now on, as a process that knows nothing but its present maps: it is told where the
// stream begins. Repeated, the stream begins anew.
func (n *Node) moveJoin(id string) (control.CopyJoin, error) {
	g, rec, err := n.copyMove(id)
	if err != nil {
		return control.CopyJoin{}, err
	}
	g.second.mu.Lock()
	defer g.second.mu.Unlock()
	if _, rec, err = n.copyMove(id); err != nil { // as it is now that nobody ends it
		return control.CopyJoin{}, err
	}
	if rec.Stage != migrate.Registered || g.second.closed {
		return control.CopyJoin{}, refused("migration %s: the source feeds no target any more: %s", id, rec.Stage)
	}
	s := g.second.now.Load()
	if s == nil {
		n.cfg.Point(control.StepCopy, "before")
		// An earlier move's, if any. The maps come first: without them a restart knows that nobody has joined.
		if err := g.vg.Unsubscribe(targetName); err != nil {
			return control.CopyJoin{}, err
		}
		for _, mv := range rec.Spec.Volumes {
			if err := n.createMap(n.lacksPath(id, mv.Number), bitsFor(mv.Size, regionSize)); err != nil {
				return control.CopyJoin{}, err
			}
		}
		if err := g.subscribeTarget(rec, g.vg.Appended()); err != nil {
			return control.CopyJoin{}, err
		}
		s = g.second.now.Load()
		n.cfg.Point(control.StepCopy, "after")
	}
	s.feed.stop()
	s.feed = nil
	base, token, err := s.sub.Rejoin()
	if err != nil {
		return control.CopyJoin{}, fmt.Errorf("migration %s: %w", id, err)
	}
	out := control.CopyJoin{Run: n.instance, Base: uint64(base), Token: token, Marked: s.sub.ChangedBytes() > 0,
		Table: rowsOf(g.vg.Table())}
	g.feedTarget(s, rec.Spec.Target)
	return out, nil
}

func rowsOf(t record.Table) []control.TableRow {
	var rows []control.TableRow
	for _, r := range t {
		rows = append(rows, control.TableRow{Epoch: r.Epoch, Incarnation: uint32(r.Incarnation), Node: r.Node,
			First: uint64(r.First), Last: uint64(r.Last), Closed: r.Closed})
	}
	return rows
}

// feedTarget sends the log. It counts nothing as sent over the WAN: nothing of it goes to the secondary.
func (g *group) feedTarget(s *second, target string) {
	s.feed = newScope()
	vg := g.vg
	snd := sender.New(sender.Config{
		Source: s.sub,
		Mark:   s.sub.Mark,
		Urgent: func() record.Seq {
			if time.Now().UnixNano() > s.urgent.Load() {
				return 0
			}
			return vg.Appended()
		},
		Trimmed: func(err error) bool { return errors.Is(err, volume.ErrTrimmed) },
		OnTrimmed: func(from record.Seq) {
			if err := s.sub.Lost(from, "the target lacks records that have been freed: all is marked"); err != nil {
				g.n.log.Error("loss at the target not recorded", "group", g.name, "cause", err)
			}
		},
		CutOff: func(err error) bool { return errors.Is(err, volume.ErrTrimmed) || errors.Is(err, volume.ErrSuspended) },
		Hello:  wire.Hello{Role: "node", Name: g.n.cfg.Name, Instance: g.n.instance, Group: g.name},
		Dial:   g.n.dialer(target),
		Retry:  200 * time.Millisecond,
		Logger: g.n.log,
	})
	feed := s.feed
	feed.work.Go(func() { snd.Run(feed.ctx) })
	feed.work.Go(func() { g.endFeed(feed, s) })
}

// endFeed ends the stream once the target has all up to the cut. Should it ask again, it joins again.
func (g *group) endFeed(feed *scope, s *second) {
	tick := time.NewTicker(hastens / 10)
	defer tick.Stop()
	for {
		select {
		case <-feed.ctx.Done():
			return
		case <-tick.C:
		}
		if vg := g.running(); vg != nil {
			cut, _, sealed := vg.Sealed()
			if _, durable, _ := s.sub.Cursor(); sealed && durable >= cut {
				feed.cancel()
				return
			}
		}
	}
}

// moveMarks lists what the target has to fetch again.
func (n *Node) moveMarks(in control.CopyMarks) (control.CopyMarked, error) {
	g, _, err := n.copyMove(in.ID)
	if err != nil {
		return control.CopyMarked{}, err
	}
	s := g.second.now.Load()
	if s == nil || in.Run != n.instance {
		return control.CopyMarked{}, refused("migration %s: the target has not joined in this run of node %s", in.ID, n.cfg.Name)
	}
	runs, next := s.sub.MarkedRuns(record.VolumeNumber(in.Number), in.From, maxRuns)
	return control.CopyMarked{Runs: runs, Next: next}, nil
}

// moveTaken: what was marked counts as absent at the target, durably.
func (n *Node) moveTaken(in control.CopyTaken) error {
	g, _, err := n.copyMove(in.ID)
	if err != nil {
		return err
	}
	s := g.second.now.Load()
	if s == nil || in.Run != n.instance {
		return refused("migration %s: the target has not joined in this run of node %s", in.ID, n.cfg.Name)
	}
	return s.sub.ForgetMarks(in.Token)
}

// moveTip tells the target how far the log is.
func (n *Node) moveTip(in control.CopyAsk) (control.CopyTip, error) {
	g, _, err := n.copyMove(in.ID)
	if err != nil {
		return control.CopyTip{}, err
	}
	s, vg := g.second.now.Load(), g.running()
	if vg == nil {
		return control.CopyTip{}, refused("migration %s: group %s is not open on node %s", in.ID, g.name, n.cfg.Name)
	}
	if in.Hasten && s != nil {
		s.urgent.Store(time.Now().Add(hastens).UnixNano())
	}
	tip := control.CopyTip{Run: n.instance, Tip: uint64(vg.Numbered()), Sealed: g.sealed(), HostOps: vg.HostOps(),
		Streaming: s != nil && s.sub.State() == volume.SubStreaming, WANBytes: g.wan.total() + n.wanBase(g.name)}
	if in.Hasten {
		err = vg.Hasten()
	}
	return tip, err
}

// feedsTarget is nil if the target of a copy-first move is in the stream here: only then may the group be sealed.
func (g *group) feedsTarget() error {
	s := g.second.now.Load()
	if s == nil || s.sub.State() != volume.SubStreaming {
		return fmt.Errorf("group %s: the target is not in the stream of the log", g.name)
	}
	return nil
}

// dropTarget ends the feeding for good. The subscriber goes before its maps: a map alone is no subscriber.
func (g *group) dropTarget(rec *migrate.Record) error {
	if !rec.Spec.CopyFirst() {
		return nil
	}
	g.second.mu.Lock()
	defer g.second.mu.Unlock()
	var errs []error
	if s := g.second.now.Load(); s != nil && !g.second.closed { // else close ends it: the log's last checkpoint needs its maps
		g.second.now.Store(nil)
		s.feed.stop()
		if vg := g.running(); vg != nil {
			errs = append(errs, vg.Unsubscribe(targetName))
		}
		errs = append(errs, s.closeMaps())
	}
	for _, mv := range rec.Spec.Volumes {
		errs = append(errs, g.n.removeMap(g.n.lacksPath(rec.Spec.ID, mv.Number)))
	}
	return errors.Join(errs...)
}

// stopTarget ends the feeding in this run, when the group is closed: first the stream, and, once the log is closed, the
// maps.
func (g *group) stopTarget() (closeMaps func() error) {
	g.second.mu.Lock()
	defer g.second.mu.Unlock()
	g.second.closed = true
	s := g.second.now.Load()
	if s == nil {
		return func() error { return nil }
	}
	s.feed.stop()
	s.feed = nil
	return func() error {
		g.second.now.CompareAndSwap(s, nil)
		return s.closeMaps()
	}
}
