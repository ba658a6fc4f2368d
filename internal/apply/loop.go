package apply

import (
	"context"
	"fmt"
	"sync"

	"gantline/internal/record"
)

const (
	defaultWindowBytes  = 32 << 20
	defaultBatchRecords = 1024
	defaultBatchBytes   = 4 << 20
)

// Log gives back records that are stored here.
type Log interface {
	// Read returns consecutive records from sequence from on, at least one, at most maxRecords and about maxBytes.
	// Where from lies in a gap it begins behind the gap. Each has in Mark the primary's durable mark as it was known
	// when the record was stored here.
	Read(from record.Seq, maxRecords, maxBytes int) ([]record.Record, error)
}

// Sink takes the records to the volumes, in order. It does not keep the slice; it may keep the records' data.
// After an error nothing more is applied.
type Sink interface {
	// Intend is called before the first record of a step that is applied whole: the step's end, record upTo, is
	// durable in the log, so whatever happens from now on the step will be finished from there.
	Intend(upTo record.Seq) error
	Apply(recs []record.Record) error
}

// Config wires a Loop. Stored and Durable are the log's at Open; zero limits mean defaults.
type Config struct {
	Log     Log
	Sink    Sink
	State   State
	Stored  record.Seq
	Durable record.Seq

	WindowBytes  int // records kept in memory
	BatchRecords int // most records in one call of the sink
	BatchBytes   int

	// Save makes the state durable; called when consistency is about to be lost and when it is regained. May be nil.
	Save func(State) error
	// Progress is told of what has been applied, from the loop's goroutine. May be nil.
	Progress func(applied record.Seq)
}

// Loop applies what may be applied. Its methods may be called from any goroutine.
type Loop struct {
	cfg  Config
	wake chan struct{}

	mu      sync.Mutex
	machine *Machine
	window  window
	now     Action // last answer of the machine
	err     error  // why nothing more is applied
	changed chan struct{}
}

// Open finds the steps among the records that the log holds above what was applied.
func Open(cfg Config) (*Loop, error) {
	if cfg.WindowBytes == 0 {
		cfg.WindowBytes = defaultWindowBytes
	}
	if cfg.BatchRecords == 0 {
		cfg.BatchRecords = defaultBatchRecords
	}
	if cfg.BatchBytes == 0 {
		cfg.BatchBytes = defaultBatchBytes
	}
	l := &Loop{cfg: cfg, machine: New(cfg.State), wake: make(chan struct{}, 1), changed: make(chan struct{})}
	l.window.limit = cfg.WindowBytes
	for from := cfg.State.Applied + 1; from <= cfg.Stored; {
		recs, err := cfg.Log.Read(from, cfg.BatchRecords, cfg.BatchBytes)
		if err != nil {
			return nil, fmt.Errorf("apply: scan the log from %d: %w", from, err)
		}
		if len(recs) == 0 {
			return nil, fmt.Errorf("apply: scan the log: %w: nothing at %d, stored is %d", ErrLog, from, cfg.Stored)
		}
		for i := range recs {
			if err := l.machine.Stored(recs[i].Seq, recs[i].Op, recs[i].Flags); err != nil {
				return nil, fmt.Errorf("apply: scan the log: %w", err)
			}
			// The mark that came with a record speaks for it and those before it, whatever is cut or comes later.
			l.machine.Mark(min(recs[i].Mark, recs[i].Seq))
		}
		from = last(recs) + 1
	}
	l.machine.Durable(cfg.Durable)
	return l, nil
}

// Stored is told of records right after the log has stored them, in order. The slice and the data are kept for a
// while and must not change.
func (l *Loop) Stored(recs []record.Record) {
	if len(recs) == 0 {
		return
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	for i := range recs {
		if err := l.machine.Stored(recs[i].Seq, recs[i].Op, recs[i].Flags); err != nil {
			l.stop(fmt.Errorf("apply: %w", err))
			return
		}
	}
	l.window.add(recs)
}

// Durable is told how far the log here is durable.
func (l *Loop) Durable(seq record.Seq) {
	l.mu.Lock()
	l.machine.Durable(seq)
	l.mu.Unlock()
	l.poke()
}

// Mark is told the primary's durable mark.
func (l *Loop) Mark(seq record.Seq) {
	l.mu.Lock()
	higher := seq > l.machine.MarkSeq()
	l.machine.Mark(seq)
	l.mu.Unlock()
	if higher {
		l.poke()
	}
}

// Cut forgets what was stored above upTo; ErrApplied if some of it is at the volumes already. Call it before the log
// is cut: afterwards none of it will be applied.
func (l *Loop) Cut(upTo record.Seq) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	if err := l.machine.Cut(upTo); err != nil {
		return fmt.Errorf("apply: %w", err)
	}
	l.window.cut(upTo)
	return nil
}

// Unfinished is the last record before a step at the end of what is stored that has neither ended nor begun to be
// applied.
func (l *Loop) Unfinished() (before record.Seq, ok bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.machine.Unfinished()
}

// Finish is for a takeover: no source will send more. It returns when all that can be applied has been, with the
// sequence that the volumes stand at. The log must be durable and told so by then.
func (l *Loop) Finish(ctx context.Context) (State, error) {
	l.mu.Lock()
	l.machine.Final()
	l.mu.Unlock()
	for {
		l.poke()
		l.mu.Lock()
		next, state, err, changed := l.machine.Next(), l.machine.State(), l.err, l.changed
		l.mu.Unlock()
		if err != nil {
			return state, err
		}
		if next.Wait == WaitNothing || next.Wait == WaitNever {
			return state, nil
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return state, context.Cause(ctx)
		}
	}
}

// Stand returns when nothing more can be applied before a source is heard of, when the loop has stopped, or when ctx ends.
func (l *Loop) Stand(ctx context.Context) {
	for {
		l.mu.Lock()
		next, err, changed := l.machine.Next(), l.err, l.changed
		l.mu.Unlock()
		if err != nil || next.Wait != 0 {
			return
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return
		}
	}
}

// Takeover returns the records that are stored and not applied, and that Finish would apply, as far as maxBytes of their
// data go; of a step that is applied whole, all or none. Nothing is applied by it. Whole: there are no more.
func (l *Loop) Takeover(maxBytes int) (recs []record.Record, whole bool, err error) {
	l.mu.Lock()
	list, err := l.machine.Takeover(), l.err
	l.mu.Unlock()
	if err != nil {
		return nil, false, err
	}
	for _, a := range list {
		before := len(recs)
		for from := a.From; from <= a.To; {
			more, err := l.cfg.Log.Read(from, l.cfg.BatchRecords, l.cfg.BatchBytes)
			if err != nil {
				return nil, false, fmt.Errorf("apply: read record %d back from the log: %w", from, err)
			}
			for i := range more {
				r := &more[i]
				if r.Seq > a.To {
					break
				}
				if maxBytes -= len(r.Data); maxBytes < 0 {
					if a.Whole {
						recs = recs[:before]
					}
					return recs, false, nil
				}
				recs = append(recs, *r)
			}
			if len(more) == 0 || last(more) < from {
				return nil, false, fmt.Errorf("apply: %w: nothing at %d", ErrLog, from)
			}
			from = last(more) + 1
		}
	}
	return recs, true, nil
}

// LastConsistent is the last sequence at which the volumes would be a prefix if no source sent more; false: there is none.
func (l *Loop) LastConsistent() (record.Seq, bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.machine.LastConsistent()
}

// Status says how far it is, what is waited for, and why nothing more is applied.
type Status struct {
	State State
	Next  Action
	Mark  record.Seq
	Err   error
}

// Status is taken at one instant.
func (l *Loop) Status() Status {
	l.mu.Lock()
	defer l.mu.Unlock()
	return Status{State: l.machine.State(), Next: l.now, Mark: l.machine.MarkSeq(), Err: l.err}
}

func (l *Loop) poke() {
	select {
	case l.wake <- struct{}{}:
	default:
	}
}

// stop is called under the lock.
func (l *Loop) stop(err error) {
	if l.err == nil {
		l.err = err
	}
	l.announce()
	l.poke()
}

// announce wakes those who wait in Finish; called under the lock.
func (l *Loop) announce() {
	close(l.changed)
	l.changed = make(chan struct{})
}

// Run applies until ctx ends (nil) or something is wrong (the error; nothing is applied after it).
func (l *Loop) Run(ctx context.Context) error {
	scratch := make([]record.Record, 0, l.cfg.BatchRecords)
	for {
		a, err := l.next()
		if err != nil {
			return err
		}
		if ctx.Err() != nil {
			l.mu.Lock()
			l.stop(ErrStopped)
			l.mu.Unlock()
			return nil
		}
		if a.Wait != 0 {
			select {
			case <-l.wake:
			case <-ctx.Done():
			}
			continue
		}
		if err := l.apply(a, scratch); err != nil {
			l.mu.Lock()
			l.stop(err)
			l.mu.Unlock()
			return err
		}
	}
}

func (l *Loop) next() (Action, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.err != nil {
		return Action{}, l.err
	}
	l.now = l.machine.Next()
	return l.now, nil
}

// apply hands one batch of the action's range to the sink.
func (l *Loop) apply(a Action, scratch []record.Record) error {
	if a.Breaks {
		l.mu.Lock()
		l.machine.Break()
		state := l.machine.State()
		l.mu.Unlock()
		if err := l.save(state); err != nil {
			return err
		}
	}
	recs, err := l.records(a, scratch)
	if err != nil {
		return err
	}
	if a.Whole && recs[0].Op == record.OpBegin {
		if err := l.cfg.Sink.Intend(a.To); err != nil {
			return fmt.Errorf("apply: step %d to %d: %w", a.From, a.To, err)
		}
	}
	if err := l.cfg.Sink.Apply(recs); err != nil {
		return fmt.Errorf("apply: records %d to %d: %w", recs[0].Seq, last(recs), err)
	}
	upTo := last(recs)
	clear(recs) // the scratch must not keep their data alive
	l.mu.Lock()
	before := l.machine.State()
	err = l.machine.Applied(upTo)
	state := l.machine.State()
	l.window.drop(upTo)
	l.announce()
	l.mu.Unlock()
	if err != nil {
		return fmt.Errorf("apply: %w", err)
	}
	if state.Consistent && !before.Consistent {
		if err := l.save(state); err != nil {
			return err
		}
	}
	if l.cfg.Progress != nil {
		l.cfg.Progress(upTo)
	}
	return nil
}

func (l *Loop) save(s State) error {
	if l.cfg.Save == nil {
		return nil
	}
	if err := l.cfg.Save(s); err != nil {
		return fmt.Errorf("apply: save state at %d: %w", s.Applied, err)
	}
	return nil
}

// records are the first ones of the range, from memory or from the log.
func (l *Loop) records(a Action, scratch []record.Record) ([]record.Record, error) {
	l.mu.Lock()
	recs := l.window.take(scratch[:0], a.From, a.To, l.cfg.BatchRecords, l.cfg.BatchBytes)
	l.mu.Unlock()
	if len(recs) > 0 {
		return recs, nil
	}
	// No further than asked: what lies behind may be cut back at any time.
	read, err := l.cfg.Log.Read(a.From, int(min(uint64(l.cfg.BatchRecords), uint64(a.To-a.From)+1)), l.cfg.BatchBytes)
	if err != nil {
		return nil, fmt.Errorf("apply: read record %d back from the log: %w", a.From, err)
	}
	for i := range read {
		if read[i].Seq != a.From+record.Seq(i) {
			return nil, fmt.Errorf("apply: %w: %d where %d was expected", ErrLog, read[i].Seq, a.From+record.Seq(i))
		}
		if read[i].Seq > a.To {
			break
		}
		recs = append(recs, read[i])
	}
	if len(recs) == 0 {
		return nil, fmt.Errorf("apply: %w: nothing at %d", ErrLog, a.From)
	}
	return recs, nil
}
