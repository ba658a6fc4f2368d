package volume

import (
	"time"

	"gantline/internal/record"
)

// Lag is how far the subscriber is behind.
type Lag struct {
	Writes int64
	Bytes  int64
	Age    time.Duration // of the oldest record that it has not applied, by this process's own clock
}

// lack is since when a subscriber misses writes that it gets by a step and not one by one: their records may be gone
// from memory long before it has them.
type lack struct {
	known bool
	since time.Duration // since began; the first of them
	bytes uint64        // Group.hostBytes before the first of them
	marks bool          // from before this process: the marks are all that is known of their bytes
}

// lacking turns what a subscriber was behind at this moment into a lack.
func (g *Group) lacking(was Lag) lack {
	g.recentMu.Lock()
	defer g.recentMu.Unlock()
	if was.Writes == 0 {
		return lack{bytes: g.hostBytes} // known with the first write that it misses
	}
	return lack{known: true, since: time.Since(began) - was.Age, bytes: g.hostBytes - min(g.hostBytes, uint64(was.Bytes))}
}

// miss notes that the subscriber will not get a record of a host by the stream, under Group.mu.
func (s *Subscriber) miss() {
	s.mu.Lock()
	defer s.mu.Unlock()
	l := &s.lacks
	if s.Resting() {
		l = &s.lacksNew
	}
	if !l.known {
		l.known, l.since = true, time.Since(began)
	}
}

// Lag of the subscriber at this moment.
func (s *Subscriber) Lag() Lag {
	s.mu.Lock()
	applied, lacks := s.applied, s.lacks
	s.mu.Unlock()
	tip := s.g.Tip()
	if applied >= tip {
		return Lag{}
	}
	lag := Lag{Writes: int64(tip - applied)}
	if lacks.known && lacks.marks {
		lag.Bytes, lag.Age = s.ChangedBytes(), time.Since(began)-lacks.since
		return lag
	}
	carried, since, some := s.g.carriedLeft(applied)
	s.g.recentMu.Lock()
	defer s.g.recentMu.Unlock()
	q := &s.g.extents
	switch {
	case lacks.known:
		lag.Bytes, lag.Age = int64(s.g.hostBytes-lacks.bytes), time.Since(began)-lacks.since
	case q.n > 0:
		oldest := q.at(min(max(applied+1, q.first), q.next()-1))
		lag.Bytes = int64(q.at(q.next()-1).total-oldest.total) + int64(oldest.length)
		lag.Age = time.Since(began) - oldest.at
	}
	if some && !lacks.known {
		lag.Bytes, lag.Age = lag.Bytes+carried, max(lag.Age, time.Since(began)-since)
	}
	return lag
}

// isHosts says whether a record changes a volume by a host's wish.
func isHosts(op record.Op) bool {
	return op == record.OpWrite || op == record.OpZero || op == record.OpTrim
}
