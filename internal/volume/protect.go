package volume

import (
	"context"
	"fmt"
	"sync"
	"sync/atomic"
	"time"

	"gantline/internal/block"
	"gantline/internal/record"
)

// SyncConfig says what hosts' answers wait for; zero times mean the defaults.
type SyncConfig struct {
	On bool // a write is answered once the subscriber has stored it, a flush once it is durable there
	// Stop: with the subscriber lost nothing is answered; otherwise it is cut off, durably, and hosts go on.
	Stop     bool
	Patience time.Duration // without a connection it is lost after this, default 3 s
	Stall    time.Duration // connected, but without any progress that a host waits for, after this, default 10 s
	Hold     time.Duration // Stop: requests fail when it has been lost for so long, default 20 s
}

func (c SyncConfig) filled() SyncConfig {
	setDefault(&c.Patience, 3*time.Second)
	setDefault(&c.Stall, 10*time.Second)
	setDefault(&c.Hold, 20*time.Second)
	return c
}

// SyncStatus is a subscriber's part in the hosts' answers at one instant.
type SyncStatus struct {
	On      bool
	Waits   bool // answers wait for it
	Holds   bool // it has all that was answered: durably promised
	Away    bool // stop: it has not been connected for Patience; writes wait
	Lost    bool // stop: requests fail until it is back
	Reason  string
	Lacks   record.Seq // writes that it has not stored
	Stale   record.Seq // cut off while it was promised: what it lacks begins here; 0: it is not
	Waiting int        // requests
}

// protection is what a Subscriber adds for the synchronous mode.
type protection struct {
	ahead atomic.Bool // records are shipped before they are durable here
	gated atomic.Bool // answers wait; changed under Group.mu

	ackStored  atomic.Uint64 // as of the last acknowledgement: after a loss of power there it may be lower than before
	ackDurable atomic.Uint64
	storedAt   atomic.Int64 // when they last rose, since began
	durableAt  atomic.Int64
	refusal    atomic.Pointer[error] // requests that wait get it, and so do new ones

	guardMu  sync.Mutex // leaf
	guard    guard
	promised bool       // durable: the subscriber has all that was answered
	stale    record.Seq // durable: it was promised when it was cut off
	answered record.Seq // what hosts may have been answered before the start, under the promise
	poke     chan struct{}
}

// guardEvery is how often the guard looks.
const guardEvery = 50 * time.Millisecond

// storedWait is a write that is answered once every gated subscriber has stored it.
type storedWait struct {
	seq record.Seq
	p   *period
	r   *block.Request
	at  time.Duration
}

// replicas lets hosts wait for subscribers. Writes wait in the order of the log, so an acknowledgement answers from the
// front; flushes and FUA writes wait in syncer.waiting, for the lesser of what is durable here and there.
type replicas struct {
	storedMu sync.Mutex
	stored   []storedWait
	flushTo  atomic.Uint64 // how far hosts wait for subscribers to be durable
}

// gated says whether answers wait for anybody.
func (g *Group) gated() bool {
	for _, s := range *g.subs.Load() {
		if s.gated.Load() {
			return true
		}
	}
	return false
}

// replicated is how far all gated subscribers have stored, and have durable; MaxSeq without one. refusal: one of them is
// lost and nothing may be answered without it.
func (g *Group) replicated() (stored, durable record.Seq, refusal error) {
	stored, durable = record.MaxSeq, record.MaxSeq
	for _, s := range *g.subs.Load() {
		if !s.gated.Load() {
			continue
		}
		stored, durable = min(stored, record.Seq(s.ackStored.Load())), min(durable, record.Seq(s.ackDurable.Load()))
		if e := s.refusal.Load(); e != nil && refusal == nil {
			refusal = *e
		}
	}
	return stored, durable, refusal
}

// holdAnswers queues the writes from..n of the batch until subscribers have stored them; under the commit mutex, which keeps
// the queue in order.
func (g *Group) holdAnswers(p *period, b *batch, from, n int) {
	now := time.Since(began)
	g.storedMu.Lock()
	defer g.storedMu.Unlock()
	for i := from; i < n; i++ {
		if r := b.reqs[i]; r.Flags&block.FlagFUA == 0 {
			g.stored = append(g.stored, storedWait{seq: b.recs[i].Seq, p: p, r: r, at: now})
			b.reqs[i] = nil // it may be answered, and used again, from here on
		}
	}
}

// holdRedone queues the batch's repeated writes, under the commit mutex. Their numbers are not known, so they wait for all
// there is.
func (g *Group) holdRedone(p *period, b *batch) {
	now := time.Since(began)
	g.storedMu.Lock()
	defer g.storedMu.Unlock()
	for i, r := range b.redone {
		if r.Flags&block.FlagFUA == 0 && r.Err == nil {
			g.stored = append(g.stored, storedWait{seq: g.Tip(), p: p, r: r, at: now})
			b.redone[i] = nil
		}
	}
}

// hurry tells gated subscribers that a host waits for them to be durable up to seq.
func (g *Group) hurry(seq record.Seq) {
	for {
		was := g.flushTo.Load()
		if uint64(seq) <= was || g.flushTo.CompareAndSwap(was, uint64(seq)) {
			break
		}
	}
	for _, s := range *g.subs.Load() {
		if s.gated.Load() {
			s.tellNews()
		}
	}
}

// answerStored answers the writes that every gated subscriber has stored; all of them once none is gated, or with an
// error once the group has failed or a subscriber that must not be missed is lost.
func (g *Group) answerStored() {
	failure := g.Err()
	stored, _, refusal := g.replicated()
	g.storedMu.Lock()
	n := 0
	for n < len(g.stored) && (g.stored[n].seq <= stored || refusal != nil || failure != nil) {
		n++
	}
	if n == 0 {
		g.storedMu.Unlock()
		return
	}
	var few [64]storedWait
	ready := append(few[:0], g.stored[:n]...)
	left := copy(g.stored, g.stored[n:])
	clear(g.stored[left:])
	g.stored = g.stored[:left]
	g.storedMu.Unlock()
	var answers block.Answers
	now := clock()
	for _, w := range ready {
		w.p.count(w.r, now)
		switch {
		case w.seq <= stored && (failure == nil || stored != record.MaxSeq):
			answers.Finish(w.r, nil)
		case failure != nil:
			answers.Finish(w.r, g.hostError(failure))
		default:
			answers.Finish(w.r, refusal)
		}
		w.p.leave(1)
	}
	answers.Done()
}

// Mark is how far the subscriber may apply: what this log could reproduce after a loss of power.
func (s *Subscriber) Mark() record.Seq { return s.g.Durable() }

// Urgent is how far hosts wait for the subscriber to be durable.
func (s *Subscriber) Urgent() record.Seq {
	if !s.gated.Load() {
		return 0
	}
	return record.Seq(s.g.flushTo.Load())
}

// tellNews has Wait return: the mark or what is urgent has risen.
func (s *Subscriber) tellNews() {
	s.mu.Lock()
	s.news = true
	s.wakeLocked()
	s.mu.Unlock()
}

// synced is told of a sync of the log here.
func (s *Subscriber) synced() {
	if !s.ahead.Load() {
		s.wake()
		return
	}
	s.mu.Lock()
	s.ackCopies() // what is durable there counts only once it is durable here too
	s.news = true
	s.wakeLocked()
	s.mu.Unlock()
}

// SetSync changes what hosts' answers wait for, now. From asynchronous to synchronous they begin to when the subscriber
// has caught up; the other way they stop at once.
func (s *Subscriber) SetSync(cfg SyncConfig) error {
	if s.g.mem != nil && cfg.On {
		return fmt.Errorf("%w: group %s cannot be synchronous on %s", ErrRole, s.g.cfg.Name, s.g.logName())
	}
	cfg = cfg.filled()
	s.g.mu.Lock()
	if s.g.superseded.Load() { // nobody is answered any more by what it says
		s.g.mu.Unlock()
		return nil
	}
	s.guardMu.Lock()
	changed := s.guard.cfg != cfg
	s.guard.cfg = cfg
	was := s.promised
	if !cfg.On {
		s.guard.become(guardOff, "asynchronous")
		s.promised, s.stale = false, 0
		s.refusal.Store(nil)
	}
	s.guardMu.Unlock()
	s.ahead.Store(cfg.On)
	var err error
	if !cfg.On {
		s.gated.Store(false)
		if was {
			err = s.g.saveMeta(func(*meta) {})
		}
	}
	s.g.mu.Unlock()
	if changed {
		s.g.release()
		s.tellNews()
		poke(s.poke)
	}
	return err
}

// release answers who need not wait any more.
func (g *Group) release() {
	g.answerStored()
	g.completeWaiters()
}

// Sync is the subscriber's part in the hosts' answers.
func (s *Subscriber) Sync() SyncStatus {
	s.guardMu.Lock()
	st := SyncStatus{On: s.guard.cfg.On, Waits: s.gated.Load(), Lost: s.guard.state == guardLost, Reason: s.guard.why, Stale: s.stale}
	holds := s.guard.state == guardHolds
	st.Away = holds && s.guard.cfg.Stop && s.guard.downAt != 0 && time.Since(began)-s.guard.downAt >= s.guard.cfg.Patience
	s.guardMu.Unlock()
	s.mu.Lock()
	once := max(s.stored, s.answered) // ever: after a loss of power there it may have less
	s.mu.Unlock()
	have := record.Seq(s.ackStored.Load())
	st.Holds = holds && have >= once
	if tip := s.g.Tip(); tip > have {
		st.Lacks = tip - have
	}
	s.g.storedMu.Lock()
	st.Waiting = len(s.g.stored)
	s.g.storedMu.Unlock()
	return st
}

// Watch keeps the guard of the synchronous mode until ctx ends. link says whether the subscriber is connected and takes
// records. When it returns, who waits has been told that this side shuts down: nobody acknowledges any more.
func (s *Subscriber) Watch(ctx context.Context, link func() bool) {
	s.guardMu.Lock()
	if s.guard.state == guardLost {
		s.guard.become(guardHolds, "judged anew") // requests wait again at first
	}
	s.guardMu.Unlock()
	if !s.g.superseded.Load() {
		s.refusal.Store(nil)
	}
	defer s.StopWaiting()
	tick := time.NewTicker(guardEvery)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-s.poke:
			s.g.release()
		case <-tick.C:
		}
		s.look(link())
	}
}

// StopWaiting: this side shuts down, who waits is told so at once.
func (s *Subscriber) StopWaiting() {
	s.letGo()
	s.g.release()
}

// letGo: nobody acknowledges any more, so nobody is to wait.
func (s *Subscriber) letGo() {
	err := fmt.Errorf("%w: nobody copies to %s", block.ErrShutdown, s.name)
	s.refusal.Store(&err)
}

// look lets the guard decide and does what it says.
func (s *Subscriber) look(link bool) {
	s.guardMu.Lock()
	idle := !s.guard.cfg.On && s.guard.state == guardOff
	s.guardMu.Unlock()
	if idle {
		return
	}
	action, changed, why := s.decide(link)
	switch action {
	case guardEngage:
		s.engage()
	case guardStale:
		s.goStale(why)
	}
	if changed {
		s.g.release()
	}
}

// decide runs under the commit mutex: whoever is numbered afterwards waits, or does not.
func (s *Subscriber) decide(link bool) (action guardAction, changed bool, why string) {
	g := s.g
	oldest := s.oldestWait()
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.superseded.Load() {
		return 0, false, "" // who waits keeps its refusal
	}
	f := guardFacts{now: time.Since(began), serving: g.Role() == RoleServing, stream: s.State() == SubStreaming && !s.Resting(), link: link,
		stored: record.Seq(s.ackStored.Load()), durable: record.Seq(s.ackDurable.Load()), tip: g.Tip(), oldest: oldest}
	f.lacks = g.bytesAbove(f.stored)
	s.guardMu.Lock()
	was := s.guard.state
	action = s.guard.next(f)
	now, why := s.guard.state, s.guard.why
	s.guardMu.Unlock()
	if was == now {
		return action, false, why
	}
	s.gated.Store(now.gates())
	s.refusal.Store(nil)
	if now == guardLost {
		err := fmt.Errorf("%w: group %s, --on-link-loss stop: %s", block.ErrIO, g.cfg.Name, why)
		s.refusal.Store(&err)
	}
	g.cfg.Logger.Info("synchronous copying", "subscriber", s.name, "state", now, "cause", why)
	if now == guardLost || was == guardLost {
		s.tellSync(why)
	}
	return action, true, why
}

// engage promises: on disk first, since a restart must not answer anybody without a subscriber that was promised.
func (s *Subscriber) engage() {
	s.guardMu.Lock()
	if s.guard.state != guardJoining { // cut off, or switched, since it was decided
		s.guardMu.Unlock()
		return
	}
	s.promised, s.stale = true, 0
	s.guardMu.Unlock()
	if s.g.saveMeta(func(*meta) {}) != nil {
		return // the group has failed by itself
	}
	s.g.mu.Lock()
	defer s.g.mu.Unlock()
	s.guardMu.Lock()
	stands := s.promised // not cut off meanwhile
	if stands {
		s.guard.engaged()
	}
	s.guardMu.Unlock()
	if stands {
		s.tellSync("in sync")
	}
}

// goStale takes a lost subscriber out of the stream. Sealed meanwhile, the group has nobody to answer any more.
func (s *Subscriber) goStale(why string) {
	s.g.mu.Lock()
	if s.g.Role() == RoleServing && s.State() == SubStreaming {
		s.cutOff(fmt.Sprintf("%s, stale from record %d on", why, s.ackStored.Load()+1))
	}
	s.g.mu.Unlock()
	s.g.release()
}

// ungate is the end of cutOff, under the commit mutex, with the state suspended: that the subscriber is stale becomes
// durable before the first answer that does not wait for it.
func (s *Subscriber) ungate() {
	s.guardMu.Lock()
	if s.promised {
		s.stale = record.Seq(s.ackStored.Load()) + 1
	}
	waited := s.promised || s.gated.Load()
	s.promised = false
	if s.guard.cfg.On {
		s.guard.become(guardBehind, "the secondary was cut off")
	}
	s.guardMu.Unlock()
	if !waited {
		return
	}
	if s.g.saveMeta(func(*meta) {}) != nil {
		return // the group has failed by itself
	}
	if s.g.superseded.Load() {
		return // who waits for it is not to be told that all is well
	}
	s.gated.Store(false)
	s.refusal.Store(nil)
	poke(s.poke) // who waits is answered without the commit mutex
}

// mustStay: hosts would rather wait than go on without it.
func (s *Subscriber) mustStay() bool {
	s.guardMu.Lock()
	defer s.guardMu.Unlock()
	return s.promised && s.guard.cfg.On && s.guard.cfg.Stop
}

// tellSync is an event without a change of the subscriber's own state.
func (s *Subscriber) tellSync(reason string) {
	s.mu.Lock()
	s.tell(SubscriberEvent{Subscriber: s.name, State: s.State(), Sync: true, Reason: reason})
	s.mu.Unlock()
}

// acknowledged notes what the subscriber has, and when that last became more; under mu.
func (s *Subscriber) acknowledged(stored, durable record.Seq) {
	now := int64(time.Since(began))
	if record.Seq(s.ackStored.Swap(uint64(stored))) < stored {
		s.storedAt.Store(now)
	}
	if record.Seq(s.ackDurable.Swap(uint64(durable))) < durable {
		s.durableAt.Store(now)
	}
}

// oldestWait is since when somebody waits for the subscriber without any progress there; 0: nobody does. One that is
// slow, but goes on, is not lost.
func (s *Subscriber) oldestWait() time.Duration {
	stored, durable := record.Seq(s.ackStored.Load()), record.Seq(s.ackDurable.Load())
	oldest := time.Duration(0)
	s.g.storedMu.Lock()
	if list := s.g.stored; len(list) > 0 && list[0].seq > stored {
		oldest = max(list[0].at, time.Duration(s.storedAt.Load()))
	}
	s.g.storedMu.Unlock()
	s.g.waitMu.Lock()
	defer s.g.waitMu.Unlock()
	for i := range s.g.waiting {
		w := &s.g.waiting[i]
		if w.seq <= durable {
			continue
		}
		if at := max(w.at, time.Duration(s.durableAt.Load())); oldest == 0 || at < oldest {
			oldest = at
		}
	}
	return oldest
}

// bytesAbove is the data of the records above seq, as far back as memory reaches.
func (g *Group) bytesAbove(seq record.Seq) int64 {
	g.recentMu.Lock()
	defer g.recentMu.Unlock()
	q := &g.extents
	if q.n == 0 || seq >= q.next()-1 {
		return 0
	}
	first := q.at(max(seq+1, q.first))
	return int64(q.at(q.next()-1).total-first.total) + int64(first.length)
}

// someoneStays: a subscriber holds the full log back that hosts would rather wait for.
func (g *Group) someoneStays() bool {
	lowest := g.freeableHere()
	for _, s := range *g.subs.Load() {
		if keep, ok := s.keeps(); ok && keep < lowest && s.mustStay() {
			return true
		}
	}
	return false
}
