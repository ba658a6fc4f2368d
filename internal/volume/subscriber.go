package volume

import (
	"errors"
	"fmt"
	"maps"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"gantline/internal/record"
)

// SubscriberState says whether a subscriber is in the stream.
type SubscriberState uint8

const (
	SubStreaming SubscriberState = 1 // in the stream; marks may be left (initial copy)
	SubResyncing SubscriberState = 2 // in the stream from a step's begin on; its image stands before it until the end
	SubSuspended SubscriberState = 3 // cut off: holds nothing back, every record marks its changed map
)

func (s SubscriberState) String() string {
	switch s {
	case SubStreaming:
		return "streaming"
	case SubResyncing:
		return "resyncing"
	case SubSuspended:
		return "suspended"
	}
	return "unknown"
}

// Retain says which acknowledgement frees a record.
type Retain uint8

const (
	RetainApplied Retain = 1
	RetainDurable Retain = 2 // "transferred"
)

// SubscriberEvent tells of a change of state.
type SubscriberEvent struct {
	Subscriber string
	State      SubscriberState
	Sync       bool // State is as it was: hosts' answers wait for the subscriber now, or fail for it
	Reason     string
}

// SubscriberConfig registers a subscriber; zero values mean the defaults.
type SubscriberConfig struct {
	Acked     record.Seq      // what it has for sure; 0: as the log's blob says, else what has been trimmed
	State     SubscriberState // 0: as the log's blob says, else streaming
	Retain    Retain          // default RetainApplied
	Changed   map[record.VolumeNumber]Bitmap
	BlockSize int64 // bytes that a mark stands for; default 64 KiB
	Sync      SyncConfig
	// Images: a record that only sends a block again, as it is here already, marks nothing.
	Images bool
	// Needed: the group is sealed only with it in the stream, for nobody is told what else it lacks.
	Needed bool
	// OnEvent runs on a goroutine of its own; events of one subscriber come in order.
	OnEvent func(SubscriberEvent)
}

// Subscriber follows the group's log with its own cursors. While it is in the stream, no record above what it has
// acknowledged is freed. When the log is full it is cut off: what it has not acknowledged is marked, and from then on
// every record marks, so its changed map always says at least what it lacks.
type Subscriber struct {
	name  string
	g     *Group
	cfg   SubscriberConfig
	state atomic.Uint32 // changed under Group.mu and mu, in this order

	mu      sync.Mutex
	changed *sync.Cond // on mu: an acknowledgement, another state
	ready   *sync.Cond // on mu: what Wait waits for; see turn.go
	turn    *turn      // of the Wait under way, nil: none
	waits   int        // calls of Wait under way
	stored  record.Seq
	durable record.Seq
	applied record.Seq
	acked   record.Seq    // what Retain counts; holds the log back
	relied  record.Seq    // the highest that was counted of what it has said: records up to it, and their marks, may be gone
	begin   record.Seq    // SubResyncing: of the step
	end     record.Seq    // of the step, or of the stream that comes to rest, once appended
	ended   record.Seq    // the newest end that the subscriber has applied
	restAt  atomic.Uint64 // the end at which it leaves the stream, 0: it does not; what comes behind marks
	leaving bool          // the end is applied, and the state that follows it is being taken
	joining bool          // SubSuspended: a begin is being appended, and all from it on is kept
	joins   uint64        // how often it has come back into the stream by Rejoin; under Group.mu

	copies    []copied // numbered blocks that are not acknowledged, by sequence
	copyBytes int64
	blocks    atomic.Pointer[map[record.VolumeNumber]*blocks]
	unheard   bool  // this log begins where another's ended, and it has said nothing here yet
	lapsed    bool  // SubSuspended only because the log has lost its records at a restart
	cutting   bool  // marks are being set for all that is not acknowledged: acknowledgements clear none any more
	copyTotal int64 // marks when the copy began

	lacks    lack // since when, and of how much, the image there has not been told by the stream alone
	lacksNew lack // resting: of what comes behind the end

	events  []SubscriberEvent
	telling bool
	news    bool // for Wait: something but records
	reason  string

	protection
}

// Subscribe registers a subscriber. One that was cut off before a restart is suspended again, and all that the log
// still holds above its cursor is marked anew, since marks set shortly before a crash may not have been durable.
func (g *Group) Subscribe(name string, cfg SubscriberConfig) (*Subscriber, error) {
	if cfg.BlockSize <= 0 {
		cfg.BlockSize = 64 << 10
	}
	if cfg.Retain == 0 {
		cfg.Retain = RetainApplied
	}
	s := &Subscriber{name: name, g: g, cfg: cfg}
	s.poke = make(chan struct{}, 1)
	volumes := map[record.VolumeNumber]*blocks{}
	s.changed, s.ready = sync.NewCond(&s.mu), sync.NewCond(&s.mu)
	for n, bits := range cfg.Changed {
		volumes[n] = newBlocks(bits)
	}
	s.blocks.Store(&volumes)
	g.mu.Lock()
	defer g.mu.Unlock()
	g.rounds.Lock() // nothing is trimmed meanwhile
	defer g.rounds.Unlock()
	subs := *g.subs.Load()
	for _, other := range subs {
		if other.name == name {
			return nil, fmt.Errorf("%w: subscriber %s", ErrBusy, name)
		}
	}
	if g.mem != nil && cfg.Sync.On {
		return nil, fmt.Errorf("%w: group %s cannot be synchronous on %s", ErrRole, g.cfg.Name, g.logName())
	}
	if len(subs) >= maxSubs {
		return nil, fmt.Errorf("%w: group %s has %d subscribers", ErrBusy, g.cfg.Name, maxSubs)
	}
	known, ok := s.start()
	if s.State() == SubSuspended {
		if err := s.markRange(s.acked+1, g.Tip()); err != nil {
			return nil, fmt.Errorf("subscriber %s: %w", name, err)
		}
		if !s.lapsed || g.Role() != RoleSealed { // who was in the stream when a log in memory was sealed has all of it
			s.markDoubt()
		}
	}
	grown := append(slices.Clip(slices.Clone(subs)), s)
	g.subs.Store(&grown)
	if ok && known == s.forMeta() {
		return s, nil // the log says so already: it was adopted with it
	}
	return s, g.saveMeta(func(*meta) {})
}

// start sets state and cursors from the configuration and from what the log remembers, which it returns.
func (s *Subscriber) start() (known metaSub, ok bool) {
	s.g.metaMu.Lock()
	known, ok = s.g.meta.Subs[s.name]
	s.g.metaMu.Unlock()
	trimmed := s.g.log.Cursors().Trimmed
	state, acked := s.cfg.State, s.cfg.Acked
	if state == 0 {
		state = SubStreaming
	}
	if acked == 0 {
		acked = max(known.Acked, trimmed)
	}
	if ok && known.Suspended || state == SubResyncing {
		state = SubSuspended // a step that was cut short by a restart is begun anew
	}
	if s.g.mem != nil && s.g.mem.Base() > 0 {
		// The records of the run before are gone. What it lacks of them stands in the regions in doubt, and its stream
		// goes on with a step.
		state, s.lapsed = SubSuspended, !ok || !known.Suspended
	} else if ok && !known.Suspended && known.Acked < trimmed {
		// What it lacks has been freed, which must not happen; nobody knows any more what it was.
		state = SubSuspended
		s.markAll()
	}
	acked = min(max(acked, trimmed), s.g.Tip())
	if acked <= s.g.ownFrom() { // of what was carried here it has what is freed, for sure
		acked = trimmed
	}
	s.relied = min(known.Relied, s.g.Tip()) // a log that has lost its end to a loss of power takes it back from the subscriber
	s.acked, s.stored, s.durable, s.applied = acked, acked, acked, acked
	if s.lapsed { // it has what it had said, and not what has been lost here
		s.stored, s.durable, s.applied = known.Acked, known.Acked, known.Acked
	} else if known.Suspended { // what it lacks may have been trimmed here
		has := min(known.Applied, acked)
		s.stored, s.durable, s.applied = has, has, has
	}
	s.ackStored.Store(uint64(s.stored))
	s.ackDurable.Store(uint64(s.durable))
	s.state.Store(uint32(state))
	if state == SubSuspended {
		s.lacks = lack{known: true, since: time.Since(began), marks: true}
	}
	if _, heir := s.g.heirs[s.name]; heir && state == SubStreaming {
		s.inheritMarks()
	}
	delete(s.g.heirs, s.name)
	s.unheard = known.Inherited
	s.startGuard(known)
	return known, ok
}

// startGuard goes on with what was promised before a restart, or by the log that this one goes on from.
func (s *Subscriber) startGuard(known metaSub) {
	s.guard = guard{cfg: s.cfg.Sync.filled(), state: guardOff}
	s.stale = known.Stale
	if !s.guard.cfg.On {
		return
	}
	s.ahead.Store(true)
	s.guard.become(guardBehind, "not caught up since the start")
	if s.State() == SubStreaming && known.Sync {
		s.promised, s.stale = true, 0
		s.answered = s.g.Tip()
		if known.Inherited { // what the subscriber has of the other log has to be heard first
			s.ackStored.Store(0)
			s.ackDurable.Store(0)
		}
		s.guard.become(guardHolds, "promised before the start")
		s.gated.Store(true)
	}
}

// Unsubscribe forgets a subscriber; it holds nothing back any more. When it has returned the group does not touch the
// subscriber's maps any more.
func (g *Group) Unsubscribe(name string) error {
	defer g.release()
	err := g.unsubscribe(name)
	g.rounds.Lock() // a trim that has begun before still flushes them
	defer g.rounds.Unlock()
	return err
}

func (g *Group) unsubscribe(name string) error {
	g.mu.Lock()
	defer g.mu.Unlock()
	subs := slices.Clone(*g.subs.Load())
	i := slices.IndexFunc(subs, func(s *Subscriber) bool { return s.name == name })
	if i < 0 {
		return g.forgetSubscriber(name)
	}
	gone := subs[i]
	subs = slices.Delete(subs, i, i+1)
	g.subs.Store(&subs)
	gone.setState(SubSuspended, "unsubscribed")
	gone.gated.Store(false) // it is no subscriber any more: nobody waits for it
	return g.saveMeta(func(m *meta) { delete(m.Subs, name) })
}

// AddMap makes the subscriber one for a volume that has joined the group since. Nothing is marked by it.
func (s *Subscriber) AddMap(n record.VolumeNumber, changed Bitmap) error {
	s.g.mu.Lock()
	defer s.g.mu.Unlock()
	grown := maps.Clone(s.volumes())
	if grown[n] != nil {
		return fmt.Errorf("%w: volume %d at subscriber %s", ErrBusy, n, s.name)
	}
	grown[n] = newBlocks(changed)
	s.blocks.Store(&grown)
	return nil
}

// DropMap forgets a volume that has left the group, with its marks.
func (s *Subscriber) DropMap(n record.VolumeNumber) {
	s.g.mu.Lock()
	defer s.g.mu.Unlock()
	s.mu.Lock()
	defer s.mu.Unlock()
	left := maps.Clone(s.volumes())
	delete(left, n)
	s.blocks.Store(&left)
	s.changed.Broadcast()
}

func (s *Subscriber) volumes() map[record.VolumeNumber]*blocks { return *s.blocks.Load() }

// Subscriber by name, nil if there is none.
func (g *Group) Subscriber(name string) *Subscriber {
	for _, s := range *g.subs.Load() {
		if s.name == name {
			return s
		}
	}
	return nil
}

// Reason of the state, empty if it has not changed since Subscribe.
func (s *Subscriber) Reason() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.reason
}

func (s *Subscriber) Name() string           { return s.name }
func (s *Subscriber) State() SubscriberState { return SubscriberState(s.state.Load()) }
func (s *Subscriber) Table() record.Table    { return s.g.log.Table() }

// Durable is how far records may be sent: in synchronous mode all that is in the log, else what is durable; and not beyond
// the record that the subscriber is to rest at.
func (s *Subscriber) Durable() record.Seq {
	upTo := s.g.Durable()
	if s.ahead.Load() {
		upTo = s.g.Tip()
	}
	if rest := record.Seq(s.restAt.Load()); rest != 0 {
		upTo = min(upTo, rest)
	}
	return upTo
}

// Cursor is what the subscriber has acknowledged.
func (s *Subscriber) Cursor() (stored, durable, applied record.Seq) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.stored, s.durable, s.applied
}

// Begin is where the stream starts for a subscriber that is resyncing: at the step's begin, whatever lies before.
func (s *Subscriber) Begin() (record.Seq, bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.begin, s.State() == SubResyncing
}

// Read returns records that may be sent from `from` on, at least one if there is one, from memory or else from the log. Copied
// blocks carry their data if they were copied for this subscriber and are not acknowledged yet. A resyncing subscriber
// reads from the step's begin on.
func (s *Subscriber) Read(from record.Seq, maxRecords, maxBytes int) ([]record.Record, error) {
	if s.State() == SubSuspended {
		return nil, ErrSuspended
	}
	if begin, ok := s.Begin(); ok {
		from = max(from, begin)
	}
	sendable := s.Durable()
	if from > sendable {
		return nil, nil
	}
	recs := s.g.readRecent(from, sendable, maxRecords, maxBytes)
	if recs == nil {
		var err error
		if recs, err = s.g.log.Read(from, maxRecords, maxBytes); err != nil {
			return nil, fmt.Errorf("subscriber %s: reading the log at %d: %w", s.name, from, err)
		}
	}
	for i := range recs {
		if recs[i].Seq > sendable {
			recs = recs[:i]
			break
		}
		if recs[i].Op == record.OpCopy {
			s.attachData(&recs[i])
		}
	}
	return recs, nil
}

// readRecent is nil if memory does not reach back to from.
func (g *Group) readRecent(from, upTo record.Seq, maxRecords, maxBytes int) []record.Record {
	g.recentMu.Lock()
	defer g.recentMu.Unlock()
	if !g.recent.has(from) {
		return nil
	}
	n := min(int(g.recent.next()-from), int(upTo-from)+1, maxRecords)
	recs := make([]record.Record, 0, n)
	bytes := 0
	for seq := from; len(recs) < n; seq++ {
		r := g.recent.at(seq)
		if bytes += len(r.Data); bytes > maxBytes && len(recs) > 0 {
			break
		}
		recs = append(recs, *r)
	}
	return recs
}

// Acked tells what the subscriber has, after each hello too. What is impossible is refused and changes nothing. Cursors only
// rise, but for a subscriber that has lost what it had: see fellBack.
func (s *Subscriber) Acked(stored, durable, applied record.Seq) error {
	s.mu.Lock()
	if durable > stored || applied > durable || stored > s.g.Tip() {
		s.mu.Unlock()
		return fmt.Errorf("subscriber %s: acknowledgement of %d stored, %d durable, %d applied is impossible, the log ends at %d",
			s.name, stored, durable, applied, s.g.Tip())
	}
	if s.fellBack(stored) {
		s.mu.Unlock()
		if err := s.standBack(stored, durable, applied); err != nil {
			return err
		}
		s.mu.Lock()
	}
	s.unheard = s.unheard && stored < s.acked
	s.stored, s.durable, s.applied = max(s.stored, stored), max(s.durable, durable), max(s.applied, applied)
	s.acknowledged(stored, durable)
	if s.State() == SubSuspended || s.cutting {
		s.mu.Unlock()
		return nil // its records may have been freed already; the marks say what it lacks
	}
	s.count()
	s.relied = max(s.relied, s.counted(durable, applied)) // heard, where the cursors may be from before a restart
	s.ackCopies()
	if s.g.mem != nil && s.State() == SubResyncing {
		s.acked = max(s.acked, s.collectStep())
	}
	stepDone := s.stepDone()
	s.changed.Broadcast()
	acked := s.acked
	s.mu.Unlock()
	if stepDone {
		s.finishStep()
	}
	if s.gated.Load() {
		s.g.release() // hosts wait for it; what it frees can wait
	}
	s.g.forgetAcked(acked)
	return nil
}

// Lapsed says that the subscriber was in the stream when the process before this one ended, and needs a step (BeginStep)
// to be in it again, because the log has lost its records.
func (s *Subscriber) Lapsed() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.lapsed
}

// count raises acked to what Retain counts, under mu.
func (s *Subscriber) count() {
	s.acked = max(s.acked, s.counted(s.durable, s.applied))
}

// counted is how far records may be freed that the subscriber has so.
func (s *Subscriber) counted(durable, applied record.Seq) record.Seq {
	if s.cfg.Retain == RetainDurable && s.State() != SubResyncing {
		return durable
	}
	return applied // inside a step nothing is sure before the whole is applied
}

// SetRetain changes which acknowledgement frees a record. What has been freed by the other one stays freed.
func (s *Subscriber) SetRetain(r Retain) {
	s.mu.Lock()
	if s.cfg.Retain == r {
		s.mu.Unlock()
		return
	}
	s.cfg.Retain = r
	if s.State() != SubSuspended && !s.cutting {
		s.count()
	}
	acked := s.acked
	s.mu.Unlock()
	s.g.forgetAcked(acked)
}

// forgetAcked frees the memory of what every subscriber has. The list of what records touch is kept up to what they have
// applied: the lag is counted from it.
func (g *Group) forgetAcked(acked record.Seq) {
	listed := acked
	for _, s := range *g.subs.Load() {
		if keep, applied, ok := s.keepsAndLists(); ok {
			acked, listed = min(acked, keep), min(listed, applied)
		}
	}
	if g.mem != nil {
		g.mem.Forget(acked)
	}
	g.recentMu.Lock()
	defer g.recentMu.Unlock()
	g.forgetRecent(acked)
	g.extents.dropTo(listed)
}

func (s *Subscriber) keepsAndLists() (acked, applied record.Seq, ok bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.acked, min(s.acked, s.applied), s.State() != SubSuspended || s.joining
}

// keeps is the cursor that holds the log back; false for one that is cut off, and is not about to be in the stream again.
func (s *Subscriber) keeps() (record.Seq, bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.acked, s.State() != SubSuspended || s.joining
}

func (s *Subscriber) forMeta() metaSub {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.guardMu.Lock()
	defer s.guardMu.Unlock()
	return metaSub{Acked: s.acked, Suspended: s.State() != SubStreaming && !s.lapsed, Sync: s.promised, Stale: s.stale,
		Relied: s.relied, Applied: s.applied, Inherited: s.unheard}
}

// slowest is the subscriber in the stream that holds back records which the group itself does not need any more.
func (g *Group) slowest() *Subscriber {
	var found *Subscriber
	lowest := g.freeableHere()
	for _, s := range *g.subs.Load() {
		if keep, ok := s.keeps(); ok && keep < lowest && !s.mustStay() {
			found, lowest = s, keep
		}
	}
	return found
}

func (g *Group) freeableHere() record.Seq {
	g.rounds.Lock()
	defer g.rounds.Unlock()
	return g.ckpt
}

// Suspend takes the subscriber out of the stream at the newest record.
func (s *Subscriber) Suspend(reason string) error {
	s.g.mu.Lock()
	s.mu.Lock()
	s.lapsed = false
	s.mu.Unlock()
	if s.State() != SubSuspended {
		s.cutOff(reason)
	}
	err := s.g.saveMeta(func(*meta) {})
	s.g.mu.Unlock()
	s.g.release()
	return err
}

// cutOff suspends under the commit mutex. First the marks of all that is not acknowledged, then the state: whoever sees
// the state, and frees records by it, flushes the maps with these marks before (I7).
func (s *Subscriber) cutOff(reason string) {
	was := s.Lag()
	s.mu.Lock()
	s.cutting = true
	if !s.lacks.known {
		s.lacks = s.g.lacking(was)
	}
	s.mu.Unlock()
	if err := s.markRange(s.unackedFrom(), s.g.Tip()); err != nil {
		// Without a list of what it lacks it lacks everything.
		s.g.cfg.Logger.Error("marking by the log failed, all is marked", "subscriber", s.name, "error", err)
		s.markAll()
	}
	s.setState(SubSuspended, reason)
	s.ungate()
	s.g.forgetAcked(s.g.Tip())
}

func (s *Subscriber) unackedFrom() record.Seq {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.acked + 1
}

// setState also drops what belongs to the old state.
func (s *Subscriber) setState(state SubscriberState, reason string) {
	s.mu.Lock()
	s.state.Store(uint32(state))
	s.cutting, s.lapsed, s.leaving, s.reason = false, false, false, reason
	s.restAt.Store(0)
	if state == SubSuspended {
		s.copies, s.copyBytes, s.begin, s.end = nil, 0, 0, 0
		for _, b := range s.volumes() {
			b.forgetUnderWay()
		}
	}
	s.wakeLocked()
	s.tell(SubscriberEvent{Subscriber: s.name, State: state, Reason: reason})
	s.mu.Unlock()
}

// tell queues an event, under mu; one goroutine at a time hands them over, in order.
func (s *Subscriber) tell(e SubscriberEvent) {
	if s.cfg.OnEvent == nil {
		return
	}
	s.events = append(s.events, e)
	if s.telling {
		return
	}
	s.telling = true
	go func() {
		for {
			s.mu.Lock()
			if len(s.events) == 0 {
				s.telling = false
				s.mu.Unlock()
				return
			}
			e := s.events[0]
			s.events = s.events[1:]
			s.mu.Unlock()
			s.cfg.OnEvent(e)
		}
	}()
}

// markRange marks what the records from..upTo touch.
func (s *Subscriber) markRange(from, upTo record.Seq) error {
	return s.g.eachExtent(from, upTo, func(e *extentRef) { s.markExtent(e.op, e.volume, e.off, int64(e.length)) })
}

// eachExtent calls fn for what each of the records from..upTo touches, by the list in memory, or the log where that does
// not reach.
func (g *Group) eachExtent(from, upTo record.Seq, fn func(*extentRef)) error {
	for from = g.heldFrom(from); from <= upTo; from = g.heldFrom(from) {
		if next, ok := g.eachListed(from, upTo, fn); ok {
			from = next
			continue
		}
		recs, err := g.entries(from)
		if err != nil {
			return err
		}
		if len(recs) == 0 {
			return errors.New("the log ends early")
		}
		for i := range recs {
			if r := &recs[i]; r.Seq <= upTo {
				fn(&extentRef{off: int64(r.Offset), length: r.Length, volume: r.Volume, op: r.Op})
			}
		}
		from = recs[len(recs)-1].Seq + 1
	}
	return nil
}

func (g *Group) entries(from record.Seq) ([]record.Record, error) {
	if c, ok := g.log.(*Chain); ok {
		return c.entries(from)
	}
	return g.log.Read(from, replayRecords, replayBytes)
}

func (g *Group) eachListed(from, upTo record.Seq, fn func(*extentRef)) (record.Seq, bool) {
	g.recentMu.Lock()
	defer g.recentMu.Unlock()
	if !g.extents.has(from) {
		return from, false
	}
	for ; from <= upTo && g.extents.has(from); from++ {
		fn(g.extents.at(from))
	}
	return from, true
}

// markAllOf marks what records touch that the subscriber will not get one by one, under Group.mu.
func (s *Subscriber) markAllOf(recs []record.Record) {
	missed := false
	for i := range recs {
		s.mark(&recs[i])
		missed = missed || isHosts(recs[i].Op)
	}
	if missed {
		s.miss()
	}
}

func (s *Subscriber) mark(r *record.Record) {
	if s.cfg.Images && r.Flags&record.FlagCopied != 0 {
		return // of zeros that are zeros here
	}
	s.markExtent(r.Op, r.Volume, int64(r.Offset), int64(r.Length))
}

func (s *Subscriber) markExtent(op record.Op, n record.VolumeNumber, off, length int64) {
	switch op {
	case record.OpWrite, record.OpZero, record.OpTrim:
	case record.OpCopy:
		if s.cfg.Images {
			return
		}
	default:
		return
	}
	b := s.volumes()[n]
	if b == nil || length == 0 {
		return // not a volume that is copied to this subscriber
	}
	first := off / s.cfg.BlockSize
	last := min((off+length-1)/s.cfg.BlockSize, b.marks.Bits()-1)
	if first <= last {
		b.mark(first, last-first+1)
	}
}

// markDoubt marks what may differ after a restart with a log in memory.
func (s *Subscriber) markDoubt() {
	if s.g.mem == nil {
		return
	}
	for n := range s.volumes() {
		for _, e := range s.g.mem.Doubt(n) {
			s.markExtent(record.OpWrite, n, e.Offset, e.Length)
		}
	}
}

func (s *Subscriber) markAll() {
	for _, b := range s.volumes() {
		b.mark(0, b.marks.Bits())
	}
}

// MarkAll marks a whole volume.
func (s *Subscriber) MarkAll(n record.VolumeNumber) error {
	b := s.volumes()[n]
	if b == nil {
		return fmt.Errorf("%w: %d at subscriber %s", ErrUnknownVolume, n, s.name)
	}
	b.mark(0, b.marks.Bits())
	return b.marks.Flush()
}

// flushMaps makes all marks durable that were set before the call.
func (s *Subscriber) flushMaps() error {
	for _, b := range s.volumes() {
		if err := b.marks.Flush(); err != nil {
			return err
		}
	}
	return nil
}

// Waiting is how many bytes the records above after touch. Of records so far behind that memory has no list of them any
// more it knows nothing: the answer is then less than what waits, and at least what the list has.
func (g *Group) Waiting(after record.Seq) int64 {
	carried, _, _ := g.carriedLeft(after)
	g.recentMu.Lock()
	defer g.recentMu.Unlock()
	q := &g.extents
	if q.n == 0 || after+1 >= q.next() {
		return carried
	}
	oldest := q.at(max(after+1, q.first))
	return carried + int64(q.at(q.next()-1).total-oldest.total) + int64(oldest.length)
}

// ChangedBytes is what the subscriber lacks besides the stream.
func (s *Subscriber) ChangedBytes() int64 {
	total := int64(0)
	for _, b := range s.volumes() {
		total += b.marks.Count()
	}
	return total * s.cfg.BlockSize
}
