package receiver

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"time"

	"gantline/internal/record"
	"gantline/internal/wire"
)

// ErrFull is wrapped by a Store whose Append has no room just now and has changed nothing: the stream waits.
var ErrFull = errors.New("log is full")

// ErrCut is wrapped by a Store whose Sync has met a Cut: what is durable of the records stored now is to be asked anew.
var ErrCut = errors.New("log was cut back meanwhile")

// ErrStopped: Run has ended; another process, or another life of this one, goes on.
var ErrStopped = errors.New("receiver has ended")

// Store is the log that records are kept in, ready to be appended to behind what recovery found. After an error other
// than ErrFull and ErrCut it is not used again.
type Store interface {
	// Append adds records of the newest row, the first one right behind the last one stored.
	Append(recs []record.Record) error
	// AppendAfterGap is Append where the first record is a begin and may leave a gap.
	AppendAfterGap(recs []record.Record) error
	// Sync makes durable all that was appended before the call and returns the durable cursor.
	Sync() (record.Seq, error)
	// Cut durably drops everything above upTo.
	Cut(upTo record.Seq) error
	// OpenRow durably begins a row of the epoch table. Its first sequence may lie above the last one stored plus one:
	// a begin will follow.
	OpenRow(row record.Row) error
	Table() record.Table
	Cursors() (durable, stored record.Seq)
}

// Applier is told what may be applied. Its methods do not block on the receiver.
type Applier interface {
	Stored(recs []record.Record) // right after the store has taken them; the slice may be kept
	Durable(seq record.Seq)
	Mark(seq record.Seq)
	// Cut forgets what is stored above upTo; an error if some of it has been applied.
	Cut(upTo record.Seq) error
	// Unfinished is the last record before a step that has not ended and of which nothing has been applied; false if
	// what is stored does not end with such a step.
	Unfinished() (before record.Seq, ok bool)
}

// Config wires a Receiver; zero durations mean defaults.
type Config struct {
	Group   string
	Store   Store
	Applier Applier
	Applied record.Seq // at Open
	State   []byte     // as Save was last given it; empty at first
	// Save makes the state durable before it returns. Rare: when it changes whom to believe.
	Save   func(state []byte) error
	Logger *slog.Logger

	// SyncDelay is how long appended records may wait for others to be made durable with, 0: not at all. It ends
	// early when SyncBytes have gathered, behind a fence or the end of a step, and when the source says that somebody
	// waits.
	SyncDelay time.Duration
	SyncBytes int
	// Capacity is how many bytes the store can hold; the source is told with each hello. Nil: it is not told.
	Capacity func() int64
	// StepPatience is how long a full store is waited for before a step that has not ended counts as too large for it,
	// default 5 s.
	StepPatience time.Duration
	// AckEvery is how often an ack is repeated when nothing changes, default 1 s.
	AckEvery time.Duration
}

const (
	maxStreams       = 8
	defaultSyncBytes = 1 << 20
	fullRetry        = 20 * time.Millisecond
)

// Receiver takes in one group's streams at one subscriber. Its methods may be called from any goroutine.
type Receiver struct {
	cfg Config
	log *slog.Logger

	syncWake chan struct{}
	failed   chan struct{} // closed with err set

	mu        sync.Mutex
	state     State
	streams   map[*stream]struct{}
	stored    record.Seq
	durable   record.Seq
	applied   record.Seq
	row       record.Row // the store's newest; zero: none
	cuts      int        // how often stored records have been dropped
	waiting   bool       // something has been appended since the last sync began
	unsynced  int        // bytes of it
	hurry     bool       // the next sync is not to be delayed
	full      bool
	repeated  int64      // records that came though they were stored
	stuck     time.Time  // since when an unfinished step has filled the store; zero: it does not
	mark      record.Seq // the primary's durable mark, as heard in this run
	lastHeard time.Time
	err       error
}

// Open takes over the store as its recovery left it.
func Open(cfg Config) (*Receiver, error) {
	state, err := decodeState(cfg.State)
	if err != nil {
		return nil, err
	}
	if cfg.AckEvery == 0 {
		cfg.AckEvery = time.Second
	}
	if cfg.StepPatience == 0 {
		cfg.StepPatience = 5 * time.Second
	}
	if cfg.SyncBytes == 0 {
		cfg.SyncBytes = defaultSyncBytes
	}
	if cfg.Logger == nil {
		cfg.Logger = slog.New(slog.DiscardHandler)
	}
	r := &Receiver{cfg: cfg, log: cfg.Logger, state: state, streams: map[*stream]struct{}{},
		syncWake: make(chan struct{}, 1), failed: make(chan struct{}), applied: cfg.Applied}
	r.durable, r.stored = cfg.Store.Cursors()
	r.row, _ = cfg.Store.Table().Current()
	r.wakeSync()
	if r.applied > r.durable || r.durable > r.stored {
		return nil, fmt.Errorf("receiver: applied %d, durable %d, stored %d are not in order", r.applied, r.durable, r.stored)
	}
	return r, nil
}

// Run makes stored records durable until ctx ends (nil) or the receiver has failed (the cause). When it has returned
// nothing more is stored or acknowledged, and all streams end.
func (r *Receiver) Run(ctx context.Context) error {
	for {
		select {
		case <-ctx.Done():
			r.sync()
			return r.end()
		case <-r.failed:
			return r.Err()
		case <-r.syncWake:
		}
		r.gather(ctx)
		r.sync()
	}
}

// end stops the streams.
func (r *Receiver) end() error {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.err != nil {
		return r.err
	}
	r.err = ErrStopped
	close(r.failed)
	return nil
}

// gather waits SyncDelay for more records, or until enough have come.
func (r *Receiver) gather(ctx context.Context) {
	if r.cfg.SyncDelay <= 0 {
		return
	}
	timer := time.NewTimer(r.cfg.SyncDelay)
	defer timer.Stop()
	for {
		r.mu.Lock()
		enough := r.unsynced >= r.cfg.SyncBytes || r.hurry
		r.mu.Unlock()
		if enough {
			return
		}
		select {
		case <-timer.C:
			return
		case <-ctx.Done():
			return
		case <-r.failed:
			return
		case <-r.syncWake:
		}
	}
}

func (r *Receiver) sync() {
	r.mu.Lock()
	idle, cuts := r.durable == r.stored || r.err != nil, r.cuts
	r.waiting, r.unsynced, r.hurry = false, 0, false
	r.mu.Unlock()
	if idle {
		return
	}
	durable, err := r.cfg.Store.Sync()
	cut := errors.Is(err, ErrCut)
	if err != nil && !cut {
		r.fail(fmt.Errorf("receiver: make the log durable: %w", err))
		return
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if cut || cuts != r.cuts || r.err != nil {
		// What was made durable may have been dropped, and other records stored under its numbers.
		r.wakeSync()
		return
	}
	if durable = min(durable, r.stored); durable > r.durable {
		r.durable = durable
		r.cfg.Applier.Durable(durable)
		r.wakeStreams()
	}
	if r.durable < r.stored {
		r.wakeSync()
	}
}

// Applied is told how far the volumes are.
func (r *Receiver) Applied(seq record.Seq) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if seq > r.applied {
		r.applied = seq
		r.wakeStreams()
	}
}

// change makes next the state, durably first. Called under mu.
func (r *Receiver) change(next State) error {
	b, err := next.encode()
	if err == nil {
		err = r.cfg.Save(b)
	}
	if err != nil {
		return fmt.Errorf("receiver: save whom to believe: %w", err)
	}
	r.state = next
	return nil
}

// having is called under mu.
func (r *Receiver) having() Having {
	return Having{Table: r.cfg.Store.Table(), Stored: r.stored, Durable: r.durable, Applied: r.applied}
}

// Permit allows an epoch that the manager, or a move's own record, has named. It becomes valid when its source says
// hello, or by Believe.
func (r *Receiver) Permit(p Permit) error {
	return r.decide(func() (State, error) { return r.state.permit(p) })
}

// Revoke takes back a permission that has not become valid.
func (r *Receiver) Revoke(id record.EpochID) error {
	return r.decide(func() (State, error) {
		next := r.state.clone()
		next.Permitted = nil
		for _, p := range r.state.Permitted {
			if p.Epoch != id {
				next.Permitted = append(next.Permitted, p)
			}
		}
		return next, nil
	})
}

// Believe makes an epoch valid from p.First on (document S807): transitional, as long as older sources are kept. The
// first source of all is made valid so when the pair is made; its First may be 0. A source that was only permitted and
// has not said hello when a later epoch becomes valid is too late.
func (r *Receiver) Believe(p Permit) error {
	return r.decide(func() (State, error) { return r.state.believe(p, r.having()) })
}

// Single ends the transitional state (document S818): id alone is left. Refused while older sources owe records,
// unless abandon says that the new source's changed map covers them.
func (r *Receiver) Single(id record.EpochID, abandon bool) error {
	return r.decide(func() (State, error) { return r.state.single(id, r.durable, abandon) })
}

func (r *Receiver) decide(f func() (State, error)) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.err != nil {
		return r.err
	}
	next, err := f()
	if err != nil {
		return err
	}
	if err := r.change(next); err != nil {
		return err
	}
	r.rebind()
	return nil
}

// rebind gives the streams the bounds of the present state; under mu.
func (r *Receiver) rebind() {
	for s := range r.streams {
		if src, ok := r.state.source(s.right.id); ok {
			s.right.last = src.Last
		}
		s.right.owed = r.state.owed(s.right.id)
	}
	r.wakeStreams()
}

// wakeStreams and its like are called under mu.
func (r *Receiver) wakeStreams() {
	for s := range r.streams {
		poke(s.ackWake)
		poke(s.storeWake)
	}
}

// toBeSynced counts records that have just been stored. Run is woken for the first of those that wait for the same sync,
// when enough have gathered, and for haste: not for each append. Under mu.
func (r *Receiver) toBeSynced(recs []record.Record) {
	first, before, hurried := !r.waiting, r.unsynced, r.hurry
	r.waiting = true
	for i := range recs {
		r.unsynced += len(recs[i].Data)
		r.hurry = r.hurry || recs[i].Op == record.OpFence || recs[i].Op == record.OpEnd
	}
	if first || before < r.cfg.SyncBytes && r.unsynced >= r.cfg.SyncBytes || r.hurry && !hurried {
		r.wakeSync()
	}
}

func (r *Receiver) wakeSync() { poke(r.syncWake) }

// urge has what is stored made durable at once: a host waits for it.
func (r *Receiver) urge() {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.durable < r.stored {
		r.hurry = true
		r.wakeSync()
	}
}

func poke(c chan struct{}) {
	select {
	case c <- struct{}{}:
	default:
	}
}

// fail stops everything: nothing is stored or acknowledged after it.
func (r *Receiver) fail(err error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.failLocked(err)
}

func (r *Receiver) failLocked(err error) {
	if r.err != nil {
		return
	}
	r.err = err
	r.log.Error("receiver stopped", "group", r.cfg.Group, "error", err)
	close(r.failed)
	r.wakeStreams()
}

// Err is why the receiver has stopped, nil while it has not.
func (r *Receiver) Err() error {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.err
}

// Status is a receiver at one instant.
type Status struct {
	Stored, Durable, Applied record.Seq
	Mark                     record.Seq
	Sources                  []Source
	Permitted                []Permit
	CopySource               string
	Owed                     record.Seq // older sources have still to send up to here; at or below Durable: none
	Connected                []string   // nodes whose streams are up
	Repeated                 int64      // records that came though they were stored here; not kept
	LastHeard                time.Time  // of a record or mark, zero: not in this run
	BlockedOn                string
	Err                      error
}

// Status never waits for the network.
func (r *Receiver) Status() Status {
	r.mu.Lock()
	defer r.mu.Unlock()
	state := r.state.clone()
	st := Status{Stored: r.stored, Durable: r.durable, Applied: r.applied, Mark: r.mark, Sources: state.Sources,
		Permitted: state.Permitted, CopySource: state.CopySource(), LastHeard: r.lastHeard, Repeated: r.repeated,
		Err: r.err}
	if cur, ok := state.current(); ok {
		st.Owed = state.owed(cur.Epoch)
	}
	for s := range r.streams {
		st.Connected = append(st.Connected, s.right.id.Node)
		if s.missing != "" {
			st.BlockedOn = s.missing
		}
		if s.waits {
			st.BlockedOn = fmt.Sprintf("records from %d on wait for those of the older source, up to %d", r.stored+1, s.right.owed)
		}
	}
	if r.full {
		st.BlockedOn = "journal here is full"
	}
	return st
}

// ack is what this side has, as it concerns one stream; under mu.
func (r *Receiver) ack(last record.Seq) wire.Ack {
	a := wire.Ack{Stored: r.stored, Durable: r.durable, Applied: r.applied}
	if last != 0 { // a source whose epoch is over knows nothing of the records behind its cut
		a.Stored, a.Durable, a.Applied = min(a.Stored, last), min(a.Durable, last), min(a.Applied, last)
	}
	return a
}
