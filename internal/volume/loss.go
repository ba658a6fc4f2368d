package volume

import (
	"fmt"
	"time"

	"gantline/internal/record"
)

// A subscriber loses what it had when its disk is put back from a backup, or had only said that it was flushed. Its next
// hello tells so: it has stored less than it had before.

// fellBack says, under mu, whether a subscriber that has stored so much lacks what was relied on: records that may have
// been freed; of a step, or of copied blocks, whose marks may have been cleared.
func (s *Subscriber) fellBack(stored record.Seq) bool {
	if stored >= s.durable {
		return stored < s.relied
	}
	switch s.State() {
	case SubResyncing:
		return stored < s.relied || s.durable >= s.begin // before its begin, a step that was given up may be gone
	case SubStreaming:
		return stored >= s.g.log.Cursors().Trimmed // else its next read is told so, and Lost follows
	}
	return stored < s.relied
}

// standBack takes a subscriber for what it is: what the log still has of what it lacks is sent, or marked, again. If the log
// has freed some of that, nobody knows what it was, and all is marked. The marks are durable on return.
func (s *Subscriber) standBack(stored, durable, applied record.Seq) error {
	s.g.mu.Lock()
	defer s.g.mu.Unlock()
	s.mu.Lock()
	if !s.fellBack(stored) { // another state by now
		s.mu.Unlock()
		return nil
	}
	state, had, relied := s.State(), s.durable, s.relied
	s.durable, s.applied = durable, applied
	s.relied = min(relied, s.counted(durable, applied))
	if state == SubStreaming {
		s.acked = max(s.g.log.Cursors().Trimmed, s.relied)
	} else {
		s.stored = stored
	}
	s.mu.Unlock()
	reason := fmt.Sprintf("%s has %d records stored and %d applied, and had acknowledged %d: it has been put back, or has lost them",
		s.name, stored, applied, max(had, relied))
	var err error
	switch {
	case state == SubStreaming:
		err = s.markCopies(stored+1, had) // all else comes by the stream
	case stored >= relied: // a part of a step: its marks are still there
	case applied >= s.g.log.Cursors().Trimmed:
		err = s.markRange(applied+1, relied)
	default:
		reason += "; all is marked"
		s.markAll()
	}
	if err != nil {
		s.g.cfg.Logger.Error("marking by the log failed, all is marked", "subscriber", s.name, "error", err)
		s.markAll()
	}
	s.g.cfg.Logger.Warn("the subscriber has fallen back", "group", s.g.cfg.Name, "cause", reason)
	if state == SubResyncing {
		s.cutOff(reason)
	} else {
		s.noteBack(reason)
	}
	if err := s.flushMaps(); err != nil {
		return s.g.fail(fmt.Errorf("changed map of %s: %w", s.name, err))
	}
	return s.g.saveMeta(func(*meta) {})
}

// noteBack tells why the subscriber has marks that it had not before; its state is as it was.
func (s *Subscriber) noteBack(reason string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.reason = reason; s.State() == SubSuspended {
		since := s.lacks.since
		if !s.lacks.known {
			since = time.Since(began)
		}
		s.lacks = lack{known: true, since: since, marks: true}
	}
	s.tell(SubscriberEvent{Subscriber: s.name, State: s.State(), Reason: reason})
}

// markCopies marks the copied blocks among the records from..upTo: the log has them without their data.
func (s *Subscriber) markCopies(from, upTo record.Seq) error {
	return s.g.eachExtent(from, upTo, func(e *extentRef) {
		if e.op == record.OpCopy {
			s.markExtent(e.op, e.volume, e.off, int64(e.length))
		}
	})
}

// Lost takes a subscriber out of the stream that needs the records from `from` on next, which have been freed: nobody knows
// what it lacks, so all is marked. It changes nothing for one that is out of the stream, or that needs less by now.
func (s *Subscriber) Lost(from record.Seq, reason string) error {
	s.g.mu.Lock()
	defer s.g.mu.Unlock()
	begin, inStep := s.Begin()
	if inStep {
		from = max(from, begin)
	}
	if s.State() == SubSuspended || from > s.g.log.Cursors().Trimmed {
		return nil
	}
	s.markAll()
	s.mu.Lock()
	s.relied = 0
	s.mu.Unlock()
	s.cutOff(reason)
	if err := s.flushMaps(); err != nil {
		return s.g.fail(fmt.Errorf("changed map of %s: %w", s.name, err))
	}
	return s.g.saveMeta(func(*meta) {})
}

// CutBack marks what the records behind cut touch, whatever the subscriber has acknowledged of them: it was promoted behind cut,
// and has let them go. If the log has freed some, all is marked. The marks are durable on return.
func (s *Subscriber) CutBack(cut record.Seq) error {
	s.g.mu.Lock()
	defer s.g.mu.Unlock()
	s.g.rounds.Lock() // nothing is trimmed meanwhile
	defer s.g.rounds.Unlock()
	if err := s.g.Err(); err != nil {
		return err
	}
	if cut >= s.g.Tip() {
		return nil
	}
	if cut < s.g.log.Cursors().Trimmed {
		s.markAll()
	} else if err := s.markRange(cut+1, s.g.Tip()); err != nil {
		s.g.cfg.Logger.Error("marking by the log failed, all is marked", "subscriber", s.name, "error", err)
		s.markAll()
	}
	if err := s.flushMaps(); err != nil {
		return fmt.Errorf("changed map of %s: %w", s.name, err)
	}
	return nil
}
