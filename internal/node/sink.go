package node

import (
	"context"
	"errors"
	"time"

	"gantline/internal/record"
	"gantline/internal/volume"
)

// followerSink is where a secondary's records go. A volume that this node has not been told of yet is no failure: who
// tells both nodes of a new pair may reach the primary first. The records wait, durable, until the pair is here.
type followerSink struct{ g *group }

// lookForPair is how often a waiting record is tried again.
const lookForPair = 20 * time.Millisecond

func (s followerSink) Intend(upTo record.Seq) error { return s.g.vg.Intend(upTo) }

func (s followerSink) Apply(recs []record.Record) error {
	if err := s.g.noteCopied(recs); err != nil {
		return err
	}
	told := false
	for {
		err := s.g.vg.Apply(recs) // what it has applied before the error is skipped when it comes again
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
