package node

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"gantline/internal/record"
	"gantline/internal/volume"
)

// followerSink is where a secondary's records go. A volume that this node has not been told of yet is no failure: who
// tells both nodes of a new pair may reach the primary first. The records wait, durable, until the pair is here.
type followerSink struct{ g *group }

// lookForPair is how often a waiting record is tried again.
const lookForPair = 20 * time.Millisecond

// Intend announces a step once all its volumes are known here: a step that is announced is finished before anything else is
// done, after a kill too, and one with a record that cannot be applied could not be.
func (s followerSink) Intend(upTo record.Seq) error {
	if upTo <= s.g.vg.Announced() {
		return nil
	}
	unknown, err := s.g.unknownUpTo(upTo)
	if err != nil {
		return err
	}
	return s.awaitPairs(func() error {
		for number, seq := range unknown {
			if s.g.unknown(number) {
				return fmt.Errorf("%w: record %d of a step, volume %d", volume.ErrUnknownVolume, seq, number)
			}
		}
		return s.g.vg.Intend(upTo)
	})
}

// Apply may be handed the same records again: what has been applied is skipped.
func (s followerSink) Apply(recs []record.Record) error {
	return s.awaitPairs(func() error {
		// A note of a volume that is not known waits as its records do: it comes only once.
		known := slices.IndexFunc(recs, func(r record.Record) bool { return copiedOf(&r) != 0 && s.g.strange(&r) })
		if known < 0 {
			known = len(recs)
		}
		if err := s.g.noteCopied(recs[:known]); err != nil {
			return err
		}
		if err := s.g.vg.Apply(recs[:known]); err != nil {
			return err
		}
		if known < len(recs) {
			return fmt.Errorf("%w: record %d, volume %d", volume.ErrUnknownVolume, recs[known].Seq, copiedOf(&recs[known]))
		}
		return nil
	})
}

// awaitPairs tries again while a volume is not known.
func (s followerSink) awaitPairs(try func() error) error {
	told := false
	for {
		err := try()
		if !errors.Is(err, volume.ErrUnknownVolume) {
			return err
		}
		if !told {
			told = true
			s.g.n.log.Warn("records wait for a pair that this node has not heard of", "group", s.g.name, "cause", err)
		}
		s.g.mu.Lock()
		feed := s.g.feed
		s.g.mu.Unlock()
		if feed == nil { // a promotion is finished: who would tell of the pair is not waited for
			return err
		}
		select {
		case <-feed.ctx.Done():
			return context.Cause(feed.ctx)
		case <-time.After(lookForPair):
		}
	}
}
