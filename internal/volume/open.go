package volume

import (
	"encoding/json"
	"fmt"
	"sync"
	"time"

	"gantline/internal/record"
)

const (
	replayRecords = 4096
	replayBytes   = 16 << 20
)

// Open makes a group of its members and its log, which has gone through its own recovery, and brings the image back:
// all records behind the checkpoint go into the caches again. A primary replays all that its log holds: nothing was
// ever on a device that the log could lose. A follower replays as far as its devices may have been; what lies above is
// Apply's. A trailing fence leaves the group sealed.
//
// The members must serve nobody yet. A member that was being filled from the source of a move when the log was closed
// stays blind until SetPresence is called again: nothing is written to its device, and nothing read from it.
func Open(cfg Config) (*Group, error) {
	cfg.defaults()
	g := &Group{cfg: cfg, log: cfg.Log, done: newDoneTable(), failed: make(chan struct{})}
	g.room = sync.NewCond(&g.roomMu)
	g.recent.limit, g.extents.limit = maxRecent, maxExtents
	g.syncer.init()
	g.held.patience = heldBackFor
	g.roundKick, g.checkpointKick = make(chan struct{}, 1), make(chan struct{}, 1)
	g.ckptAt = time.Now()
	g.subs.Store(&[]*Subscriber{})
	g.role.Store(uint32(RoleIdle))
	if g.mem, _ = cfg.Log.(MemoryLog); g.mem != nil {
		g.mem.Attach(backing{g})
	}
	var err error
	if g.meta, err = decodeMeta(g.log.Meta()); err != nil {
		return nil, fmt.Errorf("opening group %s: %w", cfg.Name, err)
	}
	if err := g.attachAll(cfg.Members); err != nil {
		return nil, fmt.Errorf("opening group %s: %w", cfg.Name, err)
	}
	err = g.recover()
	if err == nil && g.mem != nil && g.mem.Suspect() {
		err = g.writeAgain()
	}
	if err != nil {
		for _, m := range g.each() {
			m.vol.member.CompareAndSwap(m, nil)
		}
		return nil, fmt.Errorf("recovering group %s: %w", cfg.Name, err)
	}
	if err := g.saveMeta(func(*meta) {}); err != nil {
		return nil, err
	}
	return g, nil
}

func (g *Group) attachAll(members []Member) error {
	all := map[record.VolumeNumber]*member{}
	g.members.Store(&all)
	for _, m := range members {
		if err := g.attach(m, all); err != nil {
			return err
		}
	}
	return nil
}

// attach makes a volume a member in the given map.
func (g *Group) attach(m Member, all map[record.VolumeNumber]*member) error {
	if m.Number == 0 || all[m.Number] != nil || g.wasRemoved(m.Number) {
		return fmt.Errorf("%w: volume number %d", ErrBusy, m.Number)
	}
	mem := &member{vol: m.Volume, group: g, number: m.Number, cache: newCache()}
	mem.unflushed.Store(true)
	if p := m.Volume.presence.Load(); p != nil {
		mem.cache.splitAt(p.region)
	} else if g.isFilling(m.Number) {
		mem.blind.Store(true)
	}
	if !m.Volume.member.CompareAndSwap(nil, mem) {
		return fmt.Errorf("%w: volume %s is a member already", ErrBusy, m.Volume.name)
	}
	all[m.Number] = mem
	return nil
}

// recover replays the log.
func (g *Group) recover() error {
	if err := g.done.decode(g.meta.done); err != nil {
		return fmt.Errorf("%w: %w", ErrMeta, err)
	}
	c, own := g.log.Cursors(), g.ownFrom()
	g.ckpt = max(g.meta.Checkpoint, own)
	g.covered.Store(uint64(own))
	upTo := c.Appended
	if g.meta.Following {
		upTo = min(upTo, max(g.meta.Applied, g.ckpt))
		g.role.Store(uint32(RoleFollowing))
	}
	if g.ckpt > c.Appended {
		return fmt.Errorf("%w: checkpoint %d lies above the log's end %d", ErrMeta, g.ckpt, c.Appended)
	}
	g.durable.Store(uint64(c.Durable))
	g.tip.Store(uint64(g.ckpt))
	g.roundTip = g.ckpt
	if err := g.replay(own+1, upTo); err != nil {
		return err
	}
	g.tip.Store(uint64(max(upTo, g.ckpt)))
	if s := g.meta.Sealed; s != nil && g.mem != nil {
		g.role.Store(uint32(RoleSealed))
		g.cut, g.next, g.fenced = s.Cut, s.Next, s.Epoch
	}
	if g.Role() == RoleSealed && g.sealedEpoch() > g.fenced {
		g.role.Store(uint32(RoleIdle)) // another row has been opened since, without a record yet
	}
	g.roundDue.Store(g.cached.Load() > 0)
	if g.cached.Load() > 0 {
		g.kickRound()
	}
	return nil
}

// replay reads (from, upTo]: all of it for the table of done requests, what lies above the checkpoint for the caches.
func (g *Group) replay(from, upTo record.Seq) error {
	next := from
	for next <= upTo {
		recs, err := g.log.Read(next, replayRecords, replayBytes)
		if err != nil {
			return fmt.Errorf("reading the log at %d: %w", next, err)
		}
		if len(recs) == 0 {
			return fmt.Errorf("the log ends at %d, before %d", next-1, upTo)
		}
		for i := range recs {
			if recs[i].Seq > upTo {
				return nil
			}
			if err := g.replayOne(&recs[i]); err != nil {
				return err
			}
			next = recs[i].Seq + 1
		}
		g.tip.Store(uint64(max(next-1, g.ckpt)))
		if g.cached.Load() >= g.cfg.CacheBytes/2 {
			if err := g.roundNow(); err != nil {
				return err
			}
		}
	}
	return nil
}

func (g *Group) replayOne(r *record.Record) error {
	if r.Session != 0 {
		g.done.mu.Lock()
		g.done.set(r.Session, r.Request, 0)
		g.done.mu.Unlock()
	}
	g.recentMu.Lock()
	g.noteExtent(r, time.Since(began))
	g.recentMu.Unlock()
	if r.Op == record.OpFence {
		return g.replayFence(r)
	}
	if g.Role() == RoleSealed {
		g.role.Store(uint32(RoleIdle)) // another row followed the fence
	}
	if r.Seq <= g.ckpt || r.Volume == 0 || r.Op == record.OpMember || r.Op == record.OpDigest {
		return nil // a member record, or a digest, may be of a volume that a follower has not been told of: it changes none
	}
	m := g.member(r.Volume)
	if m == nil {
		if g.wasRemoved(r.Volume) {
			return nil
		}
		return fmt.Errorf("%w: record %d, volume %d", ErrUnknownVolume, r.Seq, r.Volume)
	}
	if int64(r.Offset)+int64(r.Length) > m.vol.Size() {
		return fmt.Errorf("record %d lies outside volume %s", r.Seq, m.vol.name)
	}
	g.grow(m.insert(r))
	return nil
}

// replayFence seals the group again, unless it follows: a follower only stores and applies fences.
func (g *Group) replayFence(r *record.Record) error {
	if g.Role() == RoleFollowing {
		return nil
	}
	var next record.EpochID
	if err := json.Unmarshal(r.Data, &next); err != nil {
		return fmt.Errorf("fence at %d: %w", r.Seq, err)
	}
	g.role.Store(uint32(RoleSealed))
	g.cut, g.next, g.fenced = r.Seq, next, r.Epoch
	return nil
}
