package volume

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sync/errgroup"

	"gantline/internal/record"
)

// Member names a volume inside a group.
type Member struct {
	Number record.VolumeNumber
	Volume *Volume
}

// Config of a group; zero values mean the defaults.
type Config struct {
	Name    string
	Log     Log // Close closes it
	Members []Member
	Logger  *slog.Logger
	// OnRecord is told, on a follower, of each member, digest, end and fence record once it is applied, in order, before
	// the next is. It runs inside Apply, which it must not call.
	OnRecord func(record.Record)
	// OnFailed is told once, from a goroutine of its own, that the group has stopped on an error.
	OnFailed func(error)

	CacheBytes       int64         // not yet on the devices; at the limit writers wait; default 128 MiB
	RecentBytes      int64         // records kept in memory for subscribers; default 64 MiB
	CopyBytes        int64         // copied blocks a subscriber has not acknowledged; default 32 MiB
	RoundBytes       int64         // cached bytes that start a write-back round; default 8 MiB
	RoundDelay       time.Duration // age of the oldest write that starts one; default 100 ms
	SyncDelay        time.Duration // longest time an appended record stays unsynced; default 8 ms
	SyncBytes        int64         // appended bytes that start a sync; default 4 MiB
	CheckpointEvery  time.Duration // default 30 s
	CheckpointFilled float64       // part of the log in use that starts a checkpoint; default 0.4
}

func (c *Config) defaults() {
	if _, ok := c.Log.(MemoryLog); ok {
		// A sync is a flush of the devices, with random writes in it; and a checkpoint costs little, and clears marks.
		setDefault(&c.SyncDelay, 50*time.Millisecond)
		setDefault(&c.SyncBytes, 16<<20)
		setDefault(&c.CheckpointEvery, 10*time.Second)
	}
	setDefault(&c.CacheBytes, 128<<20)
	setDefault(&c.RecentBytes, 64<<20)
	setDefault(&c.CopyBytes, 32<<20)
	setDefault(&c.RoundBytes, 8<<20)
	setDefault(&c.RoundDelay, 100*time.Millisecond)
	setDefault(&c.SyncDelay, 8*time.Millisecond)
	setDefault(&c.SyncBytes, 4<<20)
	setDefault(&c.CheckpointEvery, 30*time.Second)
	if c.CheckpointFilled <= 0 {
		c.CheckpointFilled = 0.4
	}
	if c.Logger == nil {
		c.Logger = slog.New(slog.DiscardHandler)
	}
}

func setDefault[T int64 | time.Duration](v *T, d T) {
	if *v <= 0 {
		*v = d
	}
}

// Role of a group on this node.
type Role uint8

const (
	RoleIdle      Role = 1 // opened; neither numbers nor applies
	RoleFollowing Role = 2 // Apply feeds it
	RoleServing   Role = 3 // numbers what hosts write, in its row of the epoch table
	RoleSealed    Role = 4 // its log ends with a fence; another row must be opened to go on
)

func (r Role) String() string {
	names := [...]string{"unknown", "idle", "following", "serving", "sealed"}
	if int(r) >= len(names) {
		r = 0
	}
	return names[r]
}

// Group is the set of volumes that share one log. All methods may be called concurrently.
//
// Locks, outermost first: rounds → mu is forbidden (a full log is relieved under mu, which takes rounds), so nothing
// under rounds or checkpoints takes mu. mu → checkpoints → rounds → syncing → the leaves (cache.mu, doneTable.mu, Subscriber.mu, recentMu, roomMu).
type Group struct {
	cfg  Config
	log  Log
	mem  MemoryLog // the log, if it keeps its records in memory only; else nil
	done *doneTable

	// preview lies over the applied image for readers, and nobody else: see SetPreview.
	preview atomic.Pointer[preview]

	// mu is the commit mutex: who holds it numbers, appends and puts into the caches; roles change under it.
	mu     sync.Mutex
	role   atomic.Uint32
	row    record.Row
	ahead  record.Row          // opened by Adopt in this process, and not served in yet; or none
	heirs  map[string]struct{} // taken over by Adopt in this process, and not subscribed yet
	cut    record.Seq          // RoleSealed: the fence
	next   record.EpochID      // RoleSealed: what the fence names
	fenced uint64              // the epoch that the newest fence found at Open has ended
	// superseded: another node serves in this one's place. Set under mu, for good; RoleServing numbers nothing more with it.
	superseded atomic.Bool
	intent     record.Seq // RoleFollowing: the announced end of the step being applied
	copying    []*copyRange
	members    atomic.Pointer[map[record.VolumeNumber]*member]
	subs       atomic.Pointer[[]*Subscriber]

	tip     atomic.Uint64 // newest sequence in the log (serving) or applied (following) whose effect is in the caches
	cached  atomic.Int64
	waited  atomic.Uint64 // submissions that found the cache full
	roomMu  sync.Mutex
	room    *sync.Cond
	running atomic.Bool // the loops behind the writes run
	failure atomic.Pointer[error]
	failed  chan struct{}

	recentMu    sync.Mutex
	recent      seqRing[record.Record]
	recentBytes int64
	extents     seqRing[extentRef]
	totalBytes  uint64 // of all records, since the group was opened
	hostBytes   uint64 // of those that hosts have written

	metaStore
	syncer
	replicas
	writeBack
	held heldBack
}

// Run does what happens behind the writes until ctx ends: syncs, write-back rounds, checkpoints. It returns nil then,
// or the error that the group failed with.
func (g *Group) Run(ctx context.Context) error {
	work, stop := context.WithCancel(ctx)
	defer stop()
	g.running.Store(true)
	defer func() {
		g.running.Store(false)
		g.roomMu.Lock()
		g.room.Broadcast() // whoever waits for room makes it from now on
		g.roomMu.Unlock()
	}()
	var loops errgroup.Group
	loops.Go(func() error { defer stop(); return g.syncLoop(work) })
	loops.Go(func() error { defer stop(); return g.writeBackLoop(work) })
	loops.Go(func() error { defer stop(); return g.checkpointLoop(work) })
	loops.Go(func() error {
		select {
		case <-work.Done():
		case <-g.failed:
			stop()
		}
		return nil
	})
	err := loops.Wait()
	if failure := g.Err(); failure != nil {
		return failure
	}
	return err
}

// Close ends the group after Run has returned: volumes refuse, what is in flight is answered, everything is written
// back, flushed and checkpointed, so that the devices are complete, and the log is closed. A follower inside a step
// finishes it first from its own log.
func (g *Group) Close() error {
	for _, m := range g.each() {
		m.vol.closed.Store(true)
		m.vol.gate.change(ModeFailed, m.vol.execute)
	}
	for _, s := range *g.subs.Load() {
		s.letGo()
	}
	g.release()
	if err := g.drainForClose(); err != nil {
		return err
	}
	var errs []error
	if g.Err() == nil {
		errs = append(errs, g.finishStep(), g.checkpoint())
	} else {
		errs = append(errs, g.Err())
	}
	g.fail(errClosed)
	for _, m := range g.each() {
		m.vol.background.Wait()
		m.vol.workers.wait()
	}
	errs = append(errs, g.log.Close())
	return errors.Join(errs...)
}

// drainForClose waits for what is in flight while the loops that it may wait for run once more.
func (g *Group) drainForClose() error {
	ctx, stop := context.WithCancel(context.Background())
	var loops errgroup.Group
	loops.Go(func() error { return g.Run(ctx) })
	var err error
	for _, m := range g.each() {
		err = errors.Join(err, m.vol.Drain(ctx))
	}
	stop()
	_ = loops.Wait() // a failure of the group is told by Err
	return err
}

// Volume by its number in the group; nil if there is none.
func (g *Group) Volume(n record.VolumeNumber) *Volume {
	if m := g.member(n); m != nil {
		return m.vol
	}
	return nil
}

func (g *Group) member(n record.VolumeNumber) *member { return (*g.members.Load())[n] }

// each lists the members by number.
func (g *Group) each() []*member {
	all := *g.members.Load()
	list := make([]*member, 0, len(all))
	for _, n := range sortedKeys(all) {
		list = append(list, all[n])
	}
	return list
}

// Role, Err: Err is why the group has failed, nil otherwise.
func (g *Group) Role() Role { return Role(g.role.Load()) }

func (g *Group) Err() error {
	if e := g.failure.Load(); e != nil {
		return *e
	}
	return nil
}

// fail stops the group for good: a promise of durability or order cannot be kept any more. Everybody who waits gets an
// error; only opening the log anew helps.
func (g *Group) fail(err error) error {
	wrapped := fmt.Errorf("%w: group %s: %w", ErrFailed, g.cfg.Name, err)
	if !g.failure.CompareAndSwap(nil, &wrapped) {
		return g.Err()
	}
	close(g.failed)
	if !errors.Is(err, errClosed) {
		g.cfg.Logger.Error("group failed", "group", g.cfg.Name, "error", err)
		if g.cfg.OnFailed != nil {
			go g.cfg.OnFailed(wrapped)
		}
	}
	g.roomMu.Lock()
	g.room.Broadcast()
	g.roomMu.Unlock()
	g.release()
	g.wakeSubscribers()
	return wrapped
}

// Tip is the newest sequence whose effect reads can see: Appended on a primary, Applied on a secondary.
func (g *Group) Tip() record.Seq      { return record.Seq(g.tip.Load()) }
func (g *Group) Applied() record.Seq  { return g.Tip() }
func (g *Group) Appended() record.Seq { return max(g.Tip(), g.log.Cursors().Appended) }

// Durable is how far the log is on disk and seen by reads. A record may be synced by another's sync before it is in the
// caches; it is not shown before, lest a subscriber acknowledge what is not there yet.
func (g *Group) Durable() record.Seq {
	d := g.synced()
	if g.Role() == RoleFollowing {
		return d
	}
	return min(d, g.Tip())
}

// synced is how far the log is on disk.
func (g *Group) synced() record.Seq {
	if g.Role() == RoleServing || g.Role() == RoleSealed {
		return record.Seq(g.durable.Load())
	}
	return g.log.Cursors().Durable
}

// Table is the epoch table of the group's log.
func (g *Group) Table() record.Table { return g.log.Table() }

// Epoch is that of the row the group serves in, 0 if it does not serve.
func (g *Group) Epoch() uint64 {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.mayNumber() != nil {
		return 0
	}
	return g.row.Epoch
}

// CachedBytes is what has not reached the devices yet.
func (g *Group) CachedBytes() int64 { return g.cached.Load() }

// Memory is what a group keeps in memory, in bytes.
type Memory struct {
	Cached, CacheLimit int64  // not on the devices yet; at the limit writers wait
	Recent             int64  // records kept for subscribers, so that they need not be read from the log
	RecentLimit        int64  // beyond it the oldest are forgotten
	Waited             uint64 // submissions of writes that have had to wait for room in the cache, in this run
}

// Memory may be called at any time.
func (g *Group) Memory() Memory {
	g.recentMu.Lock()
	defer g.recentMu.Unlock()
	return Memory{Cached: g.cached.Load(), CacheLimit: g.cfg.CacheBytes, Recent: g.recentBytes, RecentLimit: g.cfg.RecentBytes,
		Waited: g.waited.Load()}
}

// waitRoom blocks while the cache is at its limit. Where no loop writes back, it does so itself.
func (g *Group) waitRoom() {
	if g.cached.Load() < g.cfg.CacheBytes {
		return
	}
	g.waited.Add(1)
	g.roomMu.Lock()
	defer g.roomMu.Unlock()
	for g.cached.Load() >= g.cfg.CacheBytes && g.Err() == nil {
		if !g.running.Load() {
			g.roomMu.Unlock()
			g.rounds.Lock()
			_ = g.round() // fails the group by itself
			g.rounds.Unlock()
			time.Sleep(time.Millisecond) // what cannot be written back now is not asked for at full speed
			g.roomMu.Lock()
			continue
		}
		g.kickRound()
		g.room.Wait()
	}
}

// grow counts what an insert has added to the caches, or, negative, what has left them.
func (g *Group) grow(delta int64) {
	now := g.cached.Add(delta)
	if delta < 0 && now < g.cfg.CacheBytes && now-delta >= g.cfg.CacheBytes {
		g.roomMu.Lock()
		g.room.Broadcast()
		g.roomMu.Unlock()
	}
}
