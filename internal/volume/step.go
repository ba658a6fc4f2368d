package volume

import (
	"context"
	"fmt"
	"time"

	"gantline/internal/record"
)

// BeginStep puts a suspended subscriber back into the stream: from the record it appends on it gets everything. With
// atOnce what follows is applied as it comes, at the price of an inconsistent image until the end. A step that is under
// way is given up, what it has brought is marked again, and another begun, unless its end has been appended already.
func (s *Subscriber) BeginStep(atOnce bool) (record.Seq, error) {
	rec := record.Record{Op: record.OpBegin, Time: time.Now().UnixNano()}
	if atOnce {
		rec.Flags = record.FlagAtOnce
	}
	s.g.mu.Lock()
	defer s.g.mu.Unlock()
	if begin, end, ok := s.step(); ok && end != 0 {
		return begin, nil
	} else if ok {
		s.cutOff("the resync begins anew")
	}
	if s.State() != SubSuspended {
		return 0, fmt.Errorf("%w: subscriber %s is %s", ErrRole, s.name, s.State())
	}
	// From here on the blob may say that it has all before the begin: what it lacks of that must stand in its maps on
	// disk, or a kill forgets it.
	if err := s.flushMaps(); err != nil {
		return 0, fmt.Errorf("subscriber %s: %w", s.name, err)
	}
	// A checkpoint, or an acknowledgement of another, must not free the begin before this one is in the stream.
	s.join(true)
	defer s.join(false)
	return s.g.controlLocked(rec, func(seq record.Seq) {
		s.mu.Lock()
		s.begin, s.end = seq, 0
		s.mu.Unlock()
		s.setState(SubResyncing, "resync")
	})
}

// join has the log keep all that is appended from now on, under Group.mu, for a subscriber that is still suspended.
func (s *Subscriber) join(on bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.joining = on; on {
		s.acked = s.g.Tip()
	}
}

func (s *Subscriber) step() (begin, end record.Seq, ok bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.begin, s.end, s.State() == SubResyncing
}

// EndStep ends the step; refused while a mark is left that is not on its way. The subscriber is streaming again once it
// has applied the end.
func (s *Subscriber) EndStep(ctx context.Context) (record.Seq, error) { return s.appendEnd(ctx, false) }

// Rest has a subscriber leave the stream at the record that it appends: it gets all that lies before, and what comes
// behind it marks. A step ends there, as by EndStep. The subscriber is suspended, and holds nothing back, once it has
// applied that record; until then all from the step's begin on is kept for it. Refused with ErrBusy while copied blocks
// are on their way.
func (s *Subscriber) Rest(ctx context.Context) (record.Seq, error) { return s.appendEnd(ctx, true) }

// appendEnd: the end can be sent, applied and acknowledged before it is known here as the end, and the acknowledgement need
// not come again: who has appended it looks once more.
func (s *Subscriber) appendEnd(ctx context.Context, rest bool) (record.Seq, error) {
	if err := ctx.Err(); err != nil {
		return 0, err
	}
	end, err := s.numberEnd(rest)
	if err == nil {
		s.finishStep()
	}
	return end, err
}

func (s *Subscriber) numberEnd(rest bool) (record.Seq, error) {
	s.g.mu.Lock()
	defer s.g.mu.Unlock()
	if end, err := s.mayEnd(rest); err != nil || end != 0 {
		return end, err
	}
	seq, err := s.g.controlLocked(record.Record{Op: record.OpEnd, Time: time.Now().UnixNano()}, nil)
	if err != nil {
		return 0, err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.State() == SubSuspended {
		return 0, ErrSuspended // cut off by this very append
	}
	s.end = seq
	if rest {
		s.g.recentMu.Lock()
		s.lacksNew = lack{bytes: s.g.hostBytes}
		s.g.recentMu.Unlock()
		s.restAt.Store(uint64(seq))
	}
	s.wakeLocked()
	return seq, nil
}

// mayEnd returns the end that has been appended already, or 0 and whether one may be, under Group.mu.
func (s *Subscriber) mayEnd(rest bool) (record.Seq, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	state := s.State()
	switch {
	case s.end != 0 && s.Resting() == rest:
		return s.end, nil
	case s.end != 0:
		return 0, fmt.Errorf("%w: subscriber %s has to apply %d first", ErrBusy, s.name, s.end)
	case state == SubSuspended, state == SubStreaming && !rest:
		return 0, fmt.Errorf("%w: subscriber %s is %s", ErrRole, s.name, state)
	case rest && s.gated.Load():
		return 0, fmt.Errorf("%w: hosts wait for subscriber %s", ErrBusy, s.name)
	case rest && len(s.copies) > 0:
		return 0, fmt.Errorf("%w: %d copied blocks are on their way to subscriber %s", ErrBusy, len(s.copies), s.name)
	}
	for n, b := range s.volumes() {
		if left := s.left(n, b); state == SubResyncing && left > 0 {
			return 0, fmt.Errorf("%w: volume %d has %d marked blocks left", ErrBusy, n, left)
		}
	}
	return 0, nil
}

// AwaitEnd returns nil once the subscriber has applied the end that EndStep or Rest has appended, ErrSuspended if it was
// cut off before.
func (s *Subscriber) AwaitEnd(ctx context.Context, end record.Seq) error {
	stop := context.AfterFunc(ctx, s.wake)
	defer stop()
	s.mu.Lock()
	defer s.mu.Unlock()
	for {
		switch {
		case s.leaving: // the state that follows is not there yet
		case s.ended >= end:
			return nil
		case s.end != end:
			return ErrSuspended
		case s.g.Err() != nil:
			return s.g.Err()
		case ctx.Err() != nil:
			return context.Cause(ctx)
		}
		s.changed.Wait()
	}
}

// Resting says that the subscriber is to leave the stream at the end that has been appended: see Rest. Behind that end all that is
// written is marked, and not in the stream.
func (s *Subscriber) Resting() bool { return s.restAt.Load() != 0 }

// stepDone says whether the end has been applied, under mu.
func (s *Subscriber) stepDone() bool { return s.end != 0 && s.applied >= s.end }

// finishStep: the subscriber has applied all up to the end, so what was collected is not lacking any more.
func (s *Subscriber) finishStep() {
	if !s.leaveStep() {
		return
	}
	// Durable at once: a restart must not take it for a step cut short, and mark and send all of it again. It need not
	// be before the state counts: until it is, a restart finds more marked, never less.
	if err := s.flushMaps(); err != nil {
		_ = s.g.fail(fmt.Errorf("changed map of %s: %w", s.name, err))
		return
	}
	_ = s.g.saveMeta(func(*meta) {}) // fails the group by itself
}

// leaveStep takes the state that follows the end; false if another has done so.
func (s *Subscriber) leaveStep() bool {
	s.g.mu.Lock()
	defer s.g.mu.Unlock()
	s.mu.Lock()
	done, end, resting := s.stepDone(), s.end, s.Resting()
	if done {
		s.ended, s.acked, s.leaving = end, max(s.acked, end), true
		s.lacks = lack{}
		if resting {
			s.lacks = s.lacksNew
		}
	}
	s.mu.Unlock()
	if !done {
		return false
	}
	for _, b := range s.volumes() {
		b.forgetCollected()
	}
	if resting {
		s.setState(SubSuspended, "at rest")
		s.g.forgetAcked(s.g.Tip())
	} else {
		s.mu.Lock()
		s.begin, s.end = 0, 0
		s.mu.Unlock()
		s.setState(SubStreaming, "step applied")
	}
	return true
}
