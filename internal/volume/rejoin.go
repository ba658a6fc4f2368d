package volume

import (
	"fmt"

	"gantline/internal/record"
)

// Rejoin puts a subscriber that is cut off back into the stream without a step: it gets every record behind base, and
// none before. What it lacks of those is what is marked; whoever calls has to bring it the marked blocks as they are at
// base or later, and then to say so by ForgetMarks with the token that this returns. It is for a subscriber whose image
// counts for nothing yet. For one that is in the stream it says from where on that gets records, and changes nothing.
// What base names is durable.
func (s *Subscriber) Rejoin() (base record.Seq, token uint64, err error) {
	base, token, err = s.rejoin()
	if err == nil {
		err = s.g.syncTo(base)
	}
	return base, token, err
}

func (s *Subscriber) rejoin() (record.Seq, uint64, error) {
	g := s.g
	g.mu.Lock()
	defer g.mu.Unlock()
	if err := g.Err(); err != nil {
		return 0, 0, err
	}
	switch s.State() {
	case SubStreaming:
		s.mu.Lock()
		defer s.mu.Unlock()
		return s.durable, s.joins, nil
	case SubResyncing:
		return 0, 0, fmt.Errorf("%w: subscriber %s is %s", ErrRole, s.name, s.State())
	}
	// From here on the blob says that it has all up to base: what it lacks of that must stand in its maps on disk.
	if err := s.flushMaps(); err != nil {
		return 0, 0, fmt.Errorf("subscriber %s: %w", s.name, err)
	}
	s.join(true)
	defer s.join(false)
	base := g.Tip()
	s.mu.Lock()
	s.stored, s.durable, s.applied, s.relied = base, base, base, base
	s.lacks = lack{}
	s.mu.Unlock()
	s.ackStored.Store(uint64(base))
	s.ackDurable.Store(uint64(base))
	s.joins++
	s.setState(SubStreaming, "joined anew")
	return base, s.joins, g.saveMeta(func(*meta) {})
}

// MarkedRuns lists at most limit runs of marked blocks of a volume, as {first, number}, from a block on, and the block
// behind them from which to go on; -1: there are no more.
func (s *Subscriber) MarkedRuns(n record.VolumeNumber, from int64, limit int) (runs [][2]int64, next int64) {
	b := s.volumes()[n]
	if b == nil {
		return nil, -1
	}
	for len(runs) < limit {
		first, ok := b.marks.NextSet(from)
		if !ok {
			return runs, -1
		}
		end, ok := b.marks.NextClear(first)
		if !ok {
			end = b.marks.Bits()
		}
		runs, from = append(runs, [2]int64{first, end - first}), end
	}
	return runs, from
}

// forgetChunk is how many marks go while hosts wait.
const forgetChunk = 4096

// ForgetMarks clears all marks of a subscriber that has come back into the stream by the Rejoin of that token: it takes
// care of what they stand for itself, and will after a crash too. Refused once it has been cut off since: the marks are
// needed then.
func (s *Subscriber) ForgetMarks(token uint64) error {
	for n, b := range s.volumes() {
		for from, more := int64(0), true; more; {
			var err error
			if from, more, err = s.forgetSome(b, from, token); err != nil {
				return fmt.Errorf("volume %d: %w", n, err)
			}
		}
	}
	return s.flushMaps()
}

func (s *Subscriber) forgetSome(b *blocks, from int64, token uint64) (next int64, more bool, err error) {
	s.g.mu.Lock()
	defer s.g.mu.Unlock()
	if s.State() != SubStreaming || s.joins != token {
		return 0, false, fmt.Errorf("%w: subscriber %s has been cut off since", ErrRole, s.name)
	}
	for range forgetChunk {
		bit, ok := b.marks.NextSet(from)
		if !ok {
			return 0, false, nil
		}
		b.marks.Clear(bit)
		from = bit + 1
	}
	return from, true, nil
}

// forgetSubscriber takes one out of the blob that is not subscribed in this run, under Group.mu.
func (g *Group) forgetSubscriber(name string) error {
	g.metaMu.Lock()
	_, known := g.meta.Subs[name]
	g.metaMu.Unlock()
	if !known {
		return nil
	}
	return g.saveMeta(func(m *meta) { delete(m.Subs, name) })
}

// Numbered is the newest number given: whatever a reader had seen of the volumes before this call lies at or below it.
func (g *Group) Numbered() record.Seq {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.Tip()
}

// Hasten makes durable all that is in the log.
func (g *Group) Hasten() error { return g.syncTo(g.Tip()) }
