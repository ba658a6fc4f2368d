package volume

import (
	"errors"
	"fmt"
	"time"

	"gantline/internal/block"
	"gantline/internal/record"
)

// extentRef is what a record touched: enough to mark it for a subscriber that is cut off, without reading the log.
type extentRef struct {
	off    int64
	length uint32
	volume record.VolumeNumber
	op     record.Op
	total  uint64        // bytes of all records up to this one
	at     time.Duration // when it was seen, since began
}

// began is where this process's own clock starts: lag must not follow jumps of the wall clock.
var began = time.Now()

const (
	maxRecent  = 1 << 16 // records kept in memory for subscribers, besides the bound of their bytes
	maxExtents = 1 << 19 // extentRefs; older ones are read from the log when they are needed
)

// commit numbers and appends the writes of one Submit and answers them. The submitting goroutine does it all; writes of
// concurrent submitters are ordered by who gets the commit mutex first.
func (g *Group) commit(m *member, p *period, epoch uint64, b *batch) {
	b.build(m)
	m.admitAbsent(p, b)
	g.waitRoom()
	if g.mem != nil {
		g.mem.Prepare(b.recs)
	}

	n, held, err := 0, false, ErrHeldBack
	if !g.crowded() {
		n, held, err = g.commitFrom(m, p, epoch, b, 0)
	}
	if errors.Is(err, ErrHeldBack) {
		n, held, err = g.commitLater(m, p, epoch, b, n, held)
	}
	if len(b.redone) > 0 {
		g.settleRedone(p, b, n, held, err)
	}

	m.want(b)
	answered, now := 0, clock()
	for i, r := range b.reqs {
		switch {
		case r == nil: // held
			continue
		case i >= n:
			p.count(r, now)
			r.Finish(err)
		case r.Flags&block.FlagFUA != 0:
			g.waitDurable(p, r, b.recs[i].Seq, b)
			continue
		default:
			p.count(r, now)
			r.Finish(nil)
		}
		answered++
	}
	for _, r := range b.redone {
		if r == nil {
			continue
		}
		if r.Flags&block.FlagFUA != 0 && r.Err == nil {
			g.waitDurable(p, r, g.Tip(), b)
			continue
		}
		p.count(r, now)
		r.Finish(r.Err)
		answered++
	}
	p.leave(answered)
	if held {
		g.answerStored() // the acknowledgement may have been quicker than this
	}
}

// commitFrom commits what of the batch has not been appended, from `from` on, as far as there is room. It returns how many of
// the batch are, and whether answers wait for a subscriber.
func (g *Group) commitFrom(m *member, p *period, epoch uint64, b *batch, from int) (n int, held bool, err error) {
	defer g.feedAhead() // behind the mutex
	g.mu.Lock()
	defer g.mu.Unlock()
	n = from
	if err = g.admit(epoch, m.vol); err == nil {
		g.dropRedone(b, from)
		n, err = g.number(b, from)
	}
	if held = g.gated(); held {
		g.holdAnswers(p, b, from, n)
	}
	return n, held, err
}

// commitLater is commitFrom once there is room.
func (g *Group) commitLater(m *member, p *period, epoch uint64, b *batch, n int, held bool) (int, bool, error) {
	err := g.awaitTurn(func() (err error) {
		var more bool
		n, more, err = g.commitFrom(m, p, epoch, b, n)
		held = held || more
		return err
	})
	return n, held, err
}

// admit is the check at the moment of applying, under the commit mutex: whatever the gate let in, only the owner of the
// epoch numbers.
func (g *Group) admit(epoch uint64, v *Volume) error {
	if err := g.Err(); err != nil {
		return g.hostError(err)
	}
	switch g.Role() {
	case RoleServing:
		if g.superseded.Load() {
			return g.successorOf(v)
		}
		if epoch > g.row.Epoch {
			return &block.MovedError{Volume: v.name, Epoch: epoch}
		}
		_, _, refusal := g.replicated()
		return refusal
	case RoleSealed:
		return g.successorOf(v)
	case RoleFollowing:
		return block.ErrReadOnly
	}
	return fmt.Errorf("%w: group %s serves in no epoch", block.ErrIO, g.cfg.Name)
}

func (g *Group) hostError(err error) error {
	if errors.Is(err, errClosed) {
		return block.ErrShutdown
	}
	return fmt.Errorf("%w: %w", block.ErrIO, err)
}

// successorOf answers for a sealed or superseded group.
func (g *Group) successorOf(v *Volume) error {
	v.gate.mu.Lock()
	defer v.gate.mu.Unlock()
	if v.gate.successor != nil {
		return v.gate.successor
	}
	return &block.MovedError{Node: g.next.Node, Volume: v.name, Epoch: g.next.Number}
}

// dropRedone takes the writes from `from` on out of the batch that have been done before, keeping the order of the others.
func (g *Group) dropRedone(b *batch, from int) {
	g.done.mu.Lock()
	defer g.done.mu.Unlock()
	g.done.batch++
	keep := from
	for i := from; i < len(b.reqs); i++ {
		r := b.reqs[i]
		state := doneNot
		if r.Session != 0 {
			state = g.done.look(r.Session, r.Number, r.Floor)
		}
		if state == doneMaybe && inBatch(b.reqs[from:keep], r) {
			state = doneYes
		}
		switch state {
		case doneYes:
			r.Err = nil
			b.redone = append(b.redone, r)
		case doneStale:
			r.Err = fmt.Errorf("%w: request %d is older than what is remembered", block.ErrSession, r.Number)
			b.redone = append(b.redone, r)
		default:
			if keep != i {
				b.reqs[keep], b.recs[keep] = r, b.recs[i]
			}
			keep++
		}
	}
	clear(b.reqs[keep:])
	clear(b.recs[keep:])
	b.reqs, b.recs = b.reqs[:keep], b.recs[:keep]
}

func inBatch(reqs []*block.Request, r *block.Request) bool {
	for _, q := range reqs {
		if q.Session == r.Session && q.Number == r.Number {
			return true
		}
	}
	return false
}

// number gives the batch's writes from `from` on their sequence, appends them and makes them visible. It returns how many of
// the batch are appended; the others get the error.
func (g *Group) number(b *batch, from int) (int, error) {
	n, err := g.appendLocked(b.recs[from:])
	g.done.lift(b.reqs[from : from+n])
	return from + n, err
}

// settleRedone gives repeated writes the error of those that they repeat, if these were not appended, and has the others wait
// like what they repeat.
func (g *Group) settleRedone(p *period, b *batch, n int, held bool, err error) {
	for _, r := range b.redone {
		if r.Err == nil && n < len(b.reqs) && inBatch(b.reqs[n:], r) {
			r.Err = err // the first of the two was not appended
		}
	}
	if held {
		g.mu.Lock()
		g.holdRedone(p, b)
		g.mu.Unlock()
	}
}

// passed moves the tip past recs. Their writes become done in the same moment: a snapshot of the table says of each
// record up to its tip that it is done, and of none beyond.
func (g *Group) passed(recs []record.Record) {
	g.done.mu.Lock()
	defer g.done.mu.Unlock()
	for i := range recs {
		if recs[i].Session != 0 {
			g.done.set(recs[i].Session, recs[i].Request, 0)
		}
	}
	g.tip.Store(uint64(recs[len(recs)-1].Seq))
}

// appendLocked numbers records, appends them to the log and puts them into the caches, under the commit mutex. A batch
// that is too big for the log as a whole goes in parts. It returns how many were appended. Those who are sent records before
// they are durable are still to be told: feedAhead, wakeAhead.
func (g *Group) appendLocked(recs []record.Record) (int, error) {
	if len(recs) == 0 {
		return 0, nil
	}
	seq, mark := g.Tip(), record.Seq(g.durable.Load())
	bytes := int64(0)
	for i := range recs {
		r := &recs[i]
		seq++
		r.Seq, r.Epoch, r.Incarnation, r.Mark = seq, g.row.Epoch, g.row.Incarnation, mark
		bytes += int64(len(r.Data)) + segmentOverhead
	}
	err := g.log.Append(recs)
	if errors.Is(err, ErrFull) {
		err = g.relieve(recs)
	}
	if errors.Is(err, ErrFull) && (errors.Is(err, ErrSourceAway) || errors.Is(err, ErrHeldBack) || errors.Is(err, ErrSuspended)) {
		return 0, fmt.Errorf("%w: %w", block.ErrIO, err)
	}
	if tooMuch := errors.Is(err, ErrFull) || errors.Is(err, ErrTooLarge); tooMuch && len(recs) > 1 {
		half := len(recs) / 2
		n, err := g.appendLocked(recs[:half])
		if err != nil || n < half {
			return n, err
		}
		n, err = g.appendLocked(recs[half:])
		return half + n, err
	} else if tooMuch {
		return 0, fmt.Errorf("%w: the record is larger than the log can hold: %w", block.ErrNoSpace, err)
	}
	if err != nil {
		return 0, g.hostError(g.fail(fmt.Errorf("appending to the log: %w", err)))
	}
	g.spread(recs)
	g.passed(recs)
	if g.synced() > mark {
		g.wakeSubscribers() // a sync that was quicker than this has woken them for nothing
	}
	g.noteAppended(bytes)
	return len(recs), nil
}

// appendOwn appends the group's own records, under the commit mutex, and has them sent.
func (g *Group) appendOwn(recs []record.Record) error {
	_, err := g.appendLocked(recs)
	g.wakeAhead()
	return err
}

// relieve makes room in a full log, under the commit mutex: first what needs nobody's leave, then by cutting off, one
// by one, the subscriber that holds the log back most. Hosts wait for it, they do not stop.
func (g *Group) relieve(recs []record.Record) error {
	for {
		if err := g.checkpoint(); err != nil {
			return err
		}
		if err := g.log.Append(recs); !errors.Is(err, ErrFull) {
			return err
		}
		slowest := g.slowest()
		if slowest == nil && g.someoneStays() {
			return errors.Join(ErrFull, ErrHeldBack) // whenRoom waits, with nothing locked
		}
		if slowest == nil {
			return g.waitPostponed(func() error { return g.log.Append(recs) })
		}
		if recs[0].Op == record.OpFence { // behind it nobody is brought back into the stream
			return fmt.Errorf("%w: %w: %s would have to be cut off", ErrFull, ErrSuspended, slowest.name)
		}
		slowest.cutOff("the log is full")
	}
}

// spread puts appended or applied records where they are seen: the caches, the recent records, the marks of
// subscribers that are cut off, the copies under way.
func (g *Group) spread(recs []record.Record) {
	grown := int64(0)
	members := *g.members.Load()
	for i := range recs {
		if m := members[recs[i].Volume]; m != nil && g.mem == nil {
			grown += m.insert(&recs[i])
		}
	}
	g.grow(grown)
	for _, c := range g.copying {
		c.meet(recs)
	}
	subs := *g.subs.Load()
	if len(subs) == 0 {
		return
	}
	followed := false
	for _, s := range subs {
		followed = followed || s.State() != SubSuspended
		if s.State() == SubSuspended || s.Resting() {
			s.markAllOf(recs)
		}
	}
	g.remember(recs, followed)
}

// segmentOf is a record's effect on its volume; false: it has none.
func segmentOf(r *record.Record) (s segment, ok bool) {
	s = segment{off: int64(r.Offset), end: int64(r.Offset) + int64(r.Length), seq: r.Seq}
	switch r.Op {
	case record.OpWrite:
		s.kind, s.data = kindData, r.Data
	case record.OpCopy:
		if r.Data == nil {
			return s, false
		}
		s.kind, s.data = kindData, r.Data
	case record.OpZero:
		s.kind = kindZero
	case record.OpTrim:
		s.kind = kindTrim
	default:
		return s, false
	}
	return s, true
}

// insert puts a record's effect into the volume's cache.
func (m *member) insert(r *record.Record) int64 {
	s, ok := segmentOf(r)
	if !ok {
		return 0
	}
	m.cache.mu.Lock()
	defer m.cache.mu.Unlock()
	return m.cache.insert(s)
}

// remember keeps records in memory for those who follow the log closely, if there are any.
func (g *Group) remember(recs []record.Record, followed bool) {
	g.recentMu.Lock()
	defer g.recentMu.Unlock()
	now := time.Since(began)
	for i := range recs {
		r := &recs[i]
		if isHosts(r.Op) {
			g.hostBytes += uint64(r.Length)
		}
		if !followed {
			continue
		}
		g.noteExtent(r, now)
		if g.mem != nil {
			continue // it reads from memory itself
		}
		switch {
		case g.recent.n > 0 && r.Seq != g.recent.next(): // nobody followed for a while
			g.forgetRecent(g.recent.next())
		case g.recent.n == maxRecent:
			g.forgetRecent(g.recent.first)
		}
		if g.recent.n == 0 {
			g.recentBytes = 0
		}
		g.recent.push(r.Seq, *r)
		g.recentBytes += int64(len(r.Data))
		for g.recentBytes > g.cfg.RecentBytes && g.recent.n > 1 {
			g.forgetRecent(g.recent.first)
		}
	}
}

// noteExtent lists what a record touches, under recentMu.
func (g *Group) noteExtent(r *record.Record, now time.Duration) {
	g.totalBytes += uint64(r.Length)
	e := extentRef{off: int64(r.Offset), length: r.Length, volume: r.Volume, op: r.Op, total: g.totalBytes, at: now}
	g.extents.push(r.Seq, e)
}

// forgetRecent drops the recent records up to and including seq.
func (g *Group) forgetRecent(upTo record.Seq) {
	for g.recent.n > 0 && g.recent.first <= upTo {
		r := g.recent.pop()
		g.recentBytes -= int64(len(r.Data))
	}
}
