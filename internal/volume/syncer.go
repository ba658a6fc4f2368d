package volume

import (
	"context"
	"fmt"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"gantline/internal/block"
	"gantline/internal/record"
)

// syncer makes the log durable behind the writes and completes who waits for that.
//
// Syncs are grouped: all that waits when one begins is answered by it. With nobody waiting, one sync in SyncDelay or
// SyncBytes keeps the durable mark near the tip, so that subscribers are shipped to in large groups. A submitter that
// finds itself alone, with nothing else in flight, syncs on its own goroutine, which saves it a hop.
type syncer struct {
	syncing  sync.Mutex // one sync at a time
	durable  atomic.Uint64
	unsynced atomic.Int64 // bytes appended since the last sync began
	kick     chan struct{}
	urgent   chan struct{}

	waitMu  sync.Mutex
	waiting []durableWait
}

// durableWait is a FLUSH or FUA write: answered once the log is durable to seq, here and at every subscriber that hosts
// wait for.
type durableWait struct {
	seq record.Seq
	p   *period
	r   *block.Request
	at  time.Duration // since began
}

func (s *syncer) init() {
	s.kick = make(chan struct{}, 1)
	s.urgent = make(chan struct{}, 1)
}

func poke(c chan struct{}) {
	select {
	case c <- struct{}{}:
	default:
	}
}

// noteAppended counts bytes towards the next sync and round.
func (g *Group) noteAppended(bytes int64) {
	now := g.unsynced.Add(bytes)
	if now == bytes {
		poke(g.kick)
	}
	if now >= g.cfg.SyncBytes && now-bytes < g.cfg.SyncBytes {
		poke(g.urgent)
	}
	g.noteCached(bytes)
}

// noteCached has a round started for what has been put into the caches.
func (g *Group) noteCached(bytes int64) {
	g.sinceCheckpoint.Add(bytes)
	cached := g.cached.Load()
	if cached > 0 && !g.roundDue.Swap(true) || cached >= g.cfg.RoundBytes && !g.roundFull.Swap(true) {
		g.kickRound()
	}
}

// waitDurable answers r once the log is durable to seq: at once, or by the next sync.
func (g *Group) waitDurable(p *period, r *block.Request, seq record.Seq, b *batch) {
	if err := g.Err(); err != nil {
		p.finish(r, g.hostError(err), clock())
		return
	}
	_, there, refusal := g.replicated()
	if seq <= min(g.synced(), there) {
		p.finish(r, nil, clock())
		return
	}
	if refusal != nil {
		p.finish(r, refusal, clock())
		return
	}
	g.waitMu.Lock()
	g.waiting = append(g.waiting, durableWait{seq: seq, p: p, r: r, at: time.Since(began)})
	g.waitMu.Unlock()
	b.waiting++
	if seq > there {
		g.hurry(seq) // first: the subscriber syncs while this side does
	}
}

// wantSync has the sync done that the batch's requests wait for: here, if nothing but they is in flight, and nobody
// syncs already; else by the syncer.
func (g *Group) wantSync(p *period, b *batch) {
	if b.waits == b.total && p.inflight.Load() == int64(b.waiting) && g.syncing.TryLock() {
		g.syncLocked()
		g.syncing.Unlock()
		return
	}
	poke(g.kick)
	poke(g.urgent)
	if _, _, refusal := g.replicated(); g.Err() != nil || refusal != nil {
		g.completeWaiters() // they may have queued behind the failure's own round of answers
	}
}

// Sync returns once all that is in the log is durable.
func (g *Group) Sync(ctx context.Context) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	return g.syncTo(g.Tip())
}

// syncTo returns once the log is durable to seq.
func (g *Group) syncTo(seq record.Seq) error {
	for g.synced() < seq {
		if err := g.syncNow(); err != nil {
			return err
		}
	}
	return g.Err()
}

func (g *Group) syncNow() error {
	g.syncing.Lock()
	defer g.syncing.Unlock()
	return g.syncLocked()
}

func (g *Group) syncLocked() error {
	if err := g.Err(); err != nil {
		g.completeWaiters()
		return err
	}
	g.unsynced.Store(0)
	durable, err := g.log.Sync()
	if err != nil {
		return g.fail(fmt.Errorf("syncing the log: %w", err))
	}
	if uint64(durable) > g.durable.Load() {
		g.durable.Store(uint64(durable))
	}
	g.completeWaiters()
	g.wakeSubscribers()
	if g.mem != nil && len(*g.subs.Load()) > 0 {
		g.forgetAcked(durable) // with nobody in the stream there are no acknowledgements that would
	}
	return nil
}

func (g *Group) wakeSubscribers() {
	for _, s := range *g.subs.Load() {
		s.synced()
	}
}

// completeWaiters answers those the log is durable for now, here and there, or all, once the group has failed or a
// subscriber that must not be missed is lost.
func (g *Group) completeWaiters() {
	_, there, refusal := g.replicated()
	durable, failure := min(g.synced(), there), refusal
	if err := g.Err(); err != nil {
		failure = g.hostError(err)
	}
	g.waitMu.Lock()
	var ready []durableWait
	keep := g.waiting[:0]
	for _, w := range g.waiting {
		if failure != nil || w.seq <= durable {
			ready = append(ready, w)
		} else {
			keep = append(keep, w)
		}
	}
	clear(g.waiting[len(keep):])
	g.waiting = keep
	g.waitMu.Unlock()
	var answers block.Answers
	now := clock()
	for _, w := range ready {
		w.p.count(w.r, now)
		if failure != nil && w.seq > durable {
			answers.Finish(w.r, failure)
		} else {
			answers.Finish(w.r, nil)
		}
		w.p.leave(1)
	}
	answers.Done()
}

func (g *Group) someoneWaits() bool {
	durable := g.synced()
	g.waitMu.Lock()
	defer g.waitMu.Unlock()
	return slices.ContainsFunc(g.waiting, func(w durableWait) bool { return w.seq > durable }) // the others wait for a subscriber
}

// syncLoop syncs at once for those who wait, else when enough has gathered.
func (g *Group) syncLoop(ctx context.Context) error {
	delay := time.NewTimer(time.Hour)
	defer delay.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-g.kick:
		}
		if !g.someoneWaits() {
			delay.Reset(g.cfg.SyncDelay)
			select {
			case <-ctx.Done():
				return nil
			case <-g.urgent:
			case <-delay.C:
			}
		}
		if err := g.syncNow(); err != nil {
			return err
		}
	}
}
