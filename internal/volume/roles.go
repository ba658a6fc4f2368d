package volume

import (
	"context"
	"encoding/json"
	"fmt"
	"maps"
	"time"

	"gantline/internal/record"
)

// Serve makes the group the primary in a new row of the epoch table, which must begin behind the last record. A
// follower must have applied all that its log holds. The modes of the volumes are the caller's to set.
func (g *Group) Serve(row record.Row) error {
	g.mu.Lock()
	defer g.mu.Unlock()
	if err := g.Err(); err != nil {
		return err
	}
	if err := g.mayServe(row); err != nil {
		return fmt.Errorf("group %s, epoch %d.%d: %w", g.cfg.Name, row.Epoch, row.Incarnation, err)
	}
	durable, err := g.log.Sync()
	if err != nil {
		return g.fail(fmt.Errorf("syncing the log: %w", err))
	}
	if err := g.log.OpenRow(row); err != nil {
		return fmt.Errorf("group %s: opening epoch %d.%d: %w", g.cfg.Name, row.Epoch, row.Incarnation, err)
	}
	if g.isFollowing() {
		if err := g.saveMeta(func(m *meta) { m.Following = false }); err != nil {
			return err
		}
	}
	g.row, g.ahead = row, record.Row{}
	g.durable.Store(uint64(durable))
	g.role.Store(uint32(RoleServing))
	return nil
}

func (g *Group) mayServe(row record.Row) error {
	switch {
	case g.superseded.Load():
		return fmt.Errorf("%w: another node was promoted in this one's place", ErrRole)
	case g.Role() == RoleServing && row.Epoch == g.row.Epoch && row.Incarnation == g.row.Incarnation:
		return fmt.Errorf("%w: it serves in that row already", ErrRole)
	case g.Role() == RoleSealed && row.Epoch <= g.sealedEpoch():
		return fmt.Errorf("%w: sealed at %d", ErrEpoch, g.cut)
	case g.Role() == RoleFollowing && g.intent > g.Tip():
		return fmt.Errorf("%w: inside a step that ends at %d", ErrBehind, g.intent)
	case g.Tip() != g.log.Cursors().Appended:
		return fmt.Errorf("%w: applied %d, the log ends at %d", ErrBehind, g.Tip(), g.log.Cursors().Appended)
	}
	return nil
}

// Supersede ends the numbering for good, because another node was promoted in this one's place. Whatever is not numbered yet,
// wherever it waits, is answered with its volume's successor; who waits for a subscriber is not told any more that all is
// well, whether that is cut off meanwhile or not. Appended counts host writes no further. Modes and successors of the volumes
// are the caller's to set, before.
func (g *Group) Supersede() {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.superseded.Store(true)
}

// mayNumber is nil in a group that numbers records; exact under the commit mutex.
func (g *Group) mayNumber() error {
	if r := g.Role(); r != RoleServing {
		return fmt.Errorf("%w: group %s is %s", ErrRole, g.cfg.Name, r)
	}
	if g.superseded.Load() {
		return fmt.Errorf("%w: group %s: another node was promoted in this one's place", ErrRole, g.cfg.Name)
	}
	return nil
}

// sealedEpoch is the epoch that the fence has ended: the newest of the table.
func (g *Group) sealedEpoch() uint64 {
	if t := g.log.Table(); len(t) > 0 {
		return t[len(t)-1].Epoch
	}
	return 0
}

// Follow makes the group a secondary: only Apply feeds it; its volumes become read-only.
func (g *Group) Follow() error {
	if err := g.Err(); err != nil {
		return err
	}
	if g.mem != nil { // a follower's log is its redo log
		return fmt.Errorf("%w: group %s cannot follow on %s", ErrRole, g.cfg.Name, g.logName())
	}
	for _, m := range g.each() {
		if err := m.vol.SetMode(context.Background(), ModeReadOnly, true); err != nil {
			return err
		}
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.Role() == RoleFollowing {
		return nil
	}
	// What was served or replayed here is on its way to the devices: the bound of what they may hold begins there.
	// A follower feeds nobody; whom it fed when it served must not be met again under its name.
	err := g.saveMeta(func(m *meta) { m.Following, m.Applied, m.Subs = true, max(m.Applied, g.Tip()), nil })
	if err != nil {
		return err
	}
	g.intent = 0
	g.role.Store(uint32(RoleFollowing))
	return nil
}

// Adoption is what a log takes over from another node's.
type Adoption struct {
	Base  record.Seq   // the last record there; the next here is Base+1
	Table record.Table // of the records up to Base
	Done  []byte       // DoneTable there
	// Next is the row that this node will serve in, if it ever does: opened ahead, so that Serve need not. It must not have
	// numbered a record. A log in memory reserves numbers with its row, and opens it in Serve as ever.
	Next record.Row
	// Heirs are the subscribers, by name, as the other log had them. What their maps are to hold is durable there by now.
	Heirs map[string]Heritage
}

// Adopt makes the log begin anew behind another's end: the target of a move takes over the counter, the epoch table, the table
// of done requests, and the subscribers. What the caches hold is written back first; the records so far are forgotten. The
// group is idle afterwards. All of it is one durable step: dead before it, nothing is adopted; dead behind it, it may be adopted
// again, as long as this log has not served.
func (g *Group) Adopt(a Adoption) error {
	g.mu.Lock()
	defer g.mu.Unlock()
	if r := g.Role(); r == RoleServing || r == RoleSealed && len(*g.subs.Load()) > 0 {
		return fmt.Errorf("%w: group %s is %s", ErrRole, g.cfg.Name, r)
	}
	base := a.Base
	table, ahead, err := g.adoptedTable(a)
	if err != nil {
		return fmt.Errorf("group %s: %w", g.cfg.Name, err)
	}
	fresh := newDoneTable()
	if err := fresh.decode(a.Done); err != nil {
		return fmt.Errorf("group %s: %w", g.cfg.Name, err)
	}
	// A log that holds nothing, as a move's target's, owes its devices nothing: hosts are held meanwhile.
	if c := g.log.Cursors(); c.Appended > c.Trimmed || g.cached.Load() > 0 {
		if err := g.checkpoint(); err != nil {
			return err
		}
	}
	g.checkpoints.Lock() // one that is under way speaks for the old log
	defer g.checkpoints.Unlock()
	g.rounds.Lock()
	defer g.rounds.Unlock()
	if g.cached.Load() > 0 {
		return fmt.Errorf("%w: group %s has writes for absent regions", ErrBusy, g.cfg.Name)
	}
	err = g.saveMetaBy(func(m *meta) {
		m.Checkpoint, m.Applied, m.Following, m.Subs, m.Sealed = base, base, false, inherited(a.Heirs, base), nil
		m.done = fresh.encode(maxDoneBytes)
	}, func(blob []byte) error { return g.log.Reset(base, table, blob) })
	if err != nil {
		return err
	}
	g.done.replace(fresh)
	g.covered.Store(uint64(base))
	g.snapshot = true // in the meta above
	g.ckpt, g.ckptAt, g.roundTip, g.postponed = base, time.Now(), base, 0
	g.tip.Store(uint64(base))
	g.durable.Store(uint64(base))
	g.recentMu.Lock()
	g.forgetRecent(g.recent.next())
	g.extents.reset()
	g.recentMu.Unlock()
	g.cut, g.next, g.intent, g.ahead, g.heirs = 0, record.EpochID{}, 0, ahead, map[string]struct{}{}
	for name := range a.Heirs {
		g.heirs[name] = struct{}{}
	}
	g.role.Store(uint32(RoleIdle))
	return nil
}

// adoptedTable is the table as the log will have it, with the row that is opened ahead.
func (g *Group) adoptedTable(a Adoption) (table record.Table, ahead record.Row, err error) {
	if err := a.Table.Validate(); err != nil {
		return nil, ahead, err
	}
	if a.Next.Epoch == 0 || g.mem != nil {
		return a.Table, ahead, nil
	}
	if a.Next.First != a.Base+1 {
		return nil, ahead, fmt.Errorf("%w: a row opened ahead begins at %d, the log at %d", ErrEpoch, a.Next.First, a.Base+1)
	}
	table, err = a.Table.Forget(a.Base, record.MaxRows-1).Extend(a.Next)
	return table, a.Next, err
}

// Ahead is the row that Adopt has opened and nobody has served in. Only the process that opened it may: after a restart
// it is not known any more, and left empty.
func (g *Group) Ahead() (record.Row, bool) {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.ahead, g.ahead.Epoch != 0
}

// Seal ends the epoch: all volumes answer `moved` from now on, what was admitted before is finished, the fence that
// names the next owner is appended and made durable. The cut is the fence's sequence. Sealing again with the same next
// owner returns the same cut. If it cannot drain in time, the volumes go back to their modes and nothing is sealed.
//
// A subscriber inside a step, or on its way out of the stream, is cut off at the cut: its changed map then has all that it
// lacks, and the next owner makes the step anew. One in the stream has the rest, up to the cut, still from here. ErrSuspended: one
// that must be in the stream (SubscriberConfig.Needed) is not, or would have to leave it for the fence.
func (g *Group) Seal(ctx context.Context, next record.EpochID) (record.Seq, error) {
	if cut, was, ok := g.Sealed(); ok {
		if was != next {
			return 0, fmt.Errorf("%w: group %s is sealed for %s in epoch %d", ErrRole, g.cfg.Name, was.Node, was.Number)
		}
		return cut, nil
	}
	if g.Role() != RoleServing {
		return 0, fmt.Errorf("%w: group %s is %s, on %s", ErrRole, g.cfg.Name, g.Role(), g.logName())
	}
	if err := g.neededThere(); err != nil {
		return 0, err
	}
	reopen := g.shutGates(next)
	for _, m := range g.each() {
		if err := m.vol.Drain(ctx); err != nil {
			reopen()
			return 0, err
		}
	}
	if g.mem != nil {
		cut, err := g.sealMemory(ctx, next)
		if err != nil && g.Err() == nil {
			reopen()
		}
		return cut, err
	}
	cut, err := g.appendFence(next)
	if err != nil {
		if g.Err() == nil {
			reopen()
		}
		return 0, err
	}
	// The fence is in the log: from here on the only way is forward, even if the sync fails.
	if err := g.syncTo(cut); err != nil {
		return 0, err
	}
	return cut, nil
}

// shutGates puts all volumes into moved mode and returns what puts them back.
func (g *Group) shutGates(next record.EpochID) func() {
	type was struct {
		m    *member
		mode Mode
	}
	var before []was
	for _, m := range g.each() {
		before = append(before, was{m, m.vol.gate.current.Load().mode})
		m.vol.defaultSuccessor(next)
		m.vol.gate.change(ModeMoved, m.vol.execute)
	}
	return func() {
		for _, b := range before {
			b.m.vol.gate.change(b.mode, b.m.vol.execute)
		}
	}
}

// neededThere is nil while all subscribers are in the stream whose lack is handed over to nobody.
func (g *Group) neededThere() error {
	for _, s := range *g.subs.Load() {
		if s.cfg.Needed && s.State() != SubStreaming {
			return fmt.Errorf("%w: group %s is not sealed: %s is %s", ErrSuspended, g.cfg.Name, s.name, s.State())
		}
	}
	return nil
}

// appendFence, which must not cut anybody off: see relieve.
func (g *Group) appendFence(next record.EpochID) (record.Seq, error) {
	payload, err := json.Marshal(next)
	if err != nil {
		return 0, err
	}
	fence := record.Record{Op: record.OpFence, Data: payload, Length: uint32(len(payload)), CRC: record.Checksum(payload),
		Time: time.Now().UnixNano()}
	var cut record.Seq
	err = g.whenRoom(func() (err error) {
		g.mu.Lock()
		defer g.mu.Unlock()
		if err := g.neededThere(); err != nil {
			return err
		}
		g.cutSteps()
		cut, err = g.controlLocked(fence, func(seq record.Seq) {
			g.cut, g.next = seq, next
			g.role.Store(uint32(RoleSealed))
		})
		return err
	})
	return cut, err
}

// appendControl numbers a record that is no host's write; then runs, under the commit mutex, as soon as it is in the
// log.
func (g *Group) appendControl(r record.Record, then func(record.Seq)) (record.Seq, error) {
	r.Time = time.Now().UnixNano()
	if r.Data != nil {
		r.Length, r.CRC = uint32(len(r.Data)), record.Checksum(r.Data)
	}
	var seq record.Seq
	err := g.whenRoom(func() (err error) {
		g.mu.Lock()
		defer g.mu.Unlock()
		seq, err = g.controlLocked(r, then)
		return err
	})
	return seq, err
}

func (g *Group) controlLocked(r record.Record, then func(record.Seq)) (record.Seq, error) {
	if err := g.Err(); err != nil {
		return 0, err
	}
	if err := g.mayNumber(); err != nil {
		return 0, err
	}
	recs := []record.Record{r}
	if err := g.appendOwn(recs); err != nil {
		return 0, err
	}
	if then != nil {
		then(recs[0].Seq)
	}
	return recs[0].Seq, nil
}

// Append numbers a member or digest record.
func (g *Group) Append(op record.Op, n record.VolumeNumber, payload []byte) (record.Seq, error) {
	if op != record.OpMember && op != record.OpDigest {
		return 0, fmt.Errorf("%w: op %d is not the caller's to append", ErrRole, op)
	}
	return g.appendControl(record.Record{Op: op, Volume: n, Data: payload}, nil)
}

// Sealed tells where and for whom.
func (g *Group) Sealed() (cut record.Seq, next record.EpochID, ok bool) {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.cut, g.next, g.Role() == RoleSealed
}

// DoneTable is the table of done requests for a hand-over.
func (g *Group) DoneTable() []byte { return g.done.encode(maxDoneExport) }

const maxDoneExport = 4 << 20

// SetDoneTable adds the table of done requests that came with a hand-over, durably.
func (g *Group) SetDoneTable(b []byte) error {
	if err := g.done.decode(b); err != nil {
		return err
	}
	return g.saveMeta(func(m *meta) { m.done = g.done.encode(maxDoneBytes) })
}

// Add makes a lone volume a member: it holds, drains and flushes, then goes through the group. On a primary a payload
// is appended as a member record, before it is one: if that fails, the volume stays a lone one.
func (g *Group) Add(ctx context.Context, m Member, payload []byte) error {
	v := m.Volume
	mode := v.gate.current.Load().mode
	if err := v.SetMode(ctx, ModePending, true); err != nil {
		v.gate.change(mode, v.execute)
		return err
	}
	err := v.dev.Flush()
	if err == nil && payload != nil {
		_, err = g.Append(record.OpMember, m.Number, payload)
	}
	if err == nil {
		err = g.join(m)
	}
	if err == nil && g.Role() == RoleFollowing {
		mode = ModeReadOnly
	}
	v.gate.change(mode, v.execute)
	return err
}

func (g *Group) join(m Member) error {
	g.mu.Lock()
	defer g.mu.Unlock()
	all := maps.Clone(*g.members.Load())
	if err := g.attach(m, all); err != nil {
		return err
	}
	g.members.Store(&all)
	return nil
}

// Remove makes a member a lone volume again: it holds, drains, is written back and flushed, then goes straight to its
// device. Its number is never used again. A follower finishes a step that it has announced before: no half of one stays on
// the volume. ErrBusy: it has announced another meanwhile.
func (g *Group) Remove(ctx context.Context, n record.VolumeNumber, payload []byte) error {
	m := g.member(n)
	if m == nil {
		return fmt.Errorf("%w: %d", ErrUnknownVolume, n)
	}
	if err := g.finishStep(); err != nil {
		return err
	}
	v := m.vol
	mode := v.gate.current.Load().mode
	err := v.SetMode(ctx, ModePending, true)
	if err == nil && payload != nil {
		_, err = g.Append(record.OpMember, n, payload)
	}
	if err == nil {
		err = g.checkpoint()
	}
	if err == nil {
		err = g.detach(m)
	}
	v.gate.change(mode, v.execute)
	return err
}

// Removed lists the numbers that a log's group has used for volumes which have left it.
func Removed(log Log) ([]record.VolumeNumber, error) {
	m, err := decodeMeta(log.Meta())
	return m.Removed, err
}

// insideStep: a follower has announced a step and not applied all of it. Under mu.
func (g *Group) insideStep() error {
	if g.Role() == RoleFollowing && g.intent > g.Tip() {
		return fmt.Errorf("%w: group %s applies a step that ends at %d", ErrBusy, g.cfg.Name, g.intent)
	}
	return nil
}

func (g *Group) detach(m *member) error {
	g.mu.Lock()
	defer g.mu.Unlock()
	if err := g.insideStep(); err != nil {
		return err
	}
	g.rounds.Lock()
	defer g.rounds.Unlock()
	if m.cache.tree.Len() > 0 {
		return fmt.Errorf("%w: volume %s has writes for absent regions", ErrBusy, m.vol.name)
	}
	if err := g.spend(m.number); err != nil {
		return err
	}
	all := maps.Clone(*g.members.Load())
	delete(all, m.number)
	g.members.Store(&all)
	m.vol.member.Store(nil)
	return nil
}

// spend makes a number one that has been used, durably; under mu.
func (g *Group) spend(n record.VolumeNumber) error {
	if g.removedCount() >= maxRemoved {
		return fmt.Errorf("%w: %d volumes have been removed from group %s", ErrBusy, maxRemoved, g.cfg.Name)
	}
	return g.saveMeta(func(s *meta) { s.Removed = append(s.Removed, n) })
}

// PassOver has a follower pass over the records of a volume that has left the group before this node was ever told of it, those that
// its log has and those that come. Durable on return. Repeated, or of a member, it changes nothing.
func (g *Group) PassOver(n record.VolumeNumber) error {
	g.mu.Lock()
	defer g.mu.Unlock()
	if r := g.Role(); r != RoleFollowing {
		return fmt.Errorf("%w: group %s is %s", ErrRole, g.cfg.Name, r)
	}
	if g.member(n) != nil || g.wasRemoved(n) {
		return nil
	}
	return g.spend(n)
}
