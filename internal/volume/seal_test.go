package volume

import (
	"errors"
	"sync/atomic"
	"testing"
	"time"

	"gantline/internal/record"
)

// noRoomFor is a log that has no room for a record of one op, while it is full.
type noRoomFor struct {
	Log
	op   record.Op
	full *atomic.Bool
}

func (l noRoomFor) Append(recs []record.Record) error {
	if l.full.Load() && recs[0].Op == l.op {
		return ErrFull
	}
	return l.Log.Append(recs)
}

// TestSealLeavesNobodyBehind: a source hands over only what its subscriber gets by the stream. What one that is cut off, or that leaves the
// stream at an end, lacks is known at the source alone, which sends nothing more of that once it is sealed.
func TestSealLeavesNobodyBehind(t *testing.T) {
	for name, what := range map[string]struct {
		before func(t *testing.T, m *mirror)
		full   bool
	}{
		"it was cut off":                     {before: func(t *testing.T, m *mirror) { suspend(t, m) }},
		"it is about to leave the stream":    {before: func(t *testing.T, m *mirror) { rest(t, m) }},
		"the fence would have it be cut off": {full: true},
	} {
		t.Run(name, func(t *testing.T) {
			_, seed := seeded(t)
			var full atomic.Bool
			p := newSite(t, seed, testVolumes, testSize, 4<<20)
			p.cfg = Config{SyncDelay: time.Millisecond}
			p.wrap = func(l Log) Log { return noRoomFor{l, record.OpFence, &full} }
			p.open()
			m := &mirror{site: newSite(t, seed+100, testVolumes, testSize, 8<<20), maps: newMaps(t, seed+200)}
			m.follow = true
			m.open()
			m.subscribe(p)
			if err := write(p.vols[0], 0, stamp(1, 4096), 0); err != nil {
				t.Fatal(err)
			}
			if what.before != nil {
				what.before(t, m)
			}
			full.Store(what.full)
			next := record.EpochID{Number: 2, Node: "b"}
			if cut, err := p.g.Seal(t.Context(), next); !errors.Is(err, ErrSuspended) {
				t.Fatalf("sealed at %d with the subscriber %s: %v", cut, m.sub.State(), err)
			}
			if err := write(p.vols[0], 8192, stamp(2, 4096), 0); err != nil { // it goes on as before
				t.Fatal(err)
			}
			if full.Swap(false) {
				finish(t, p, m)
				if _, err := p.g.Seal(t.Context(), next); err != nil {
					t.Fatal(err)
				}
			}
			p.close()
			m.close()
		})
	}
}

func suspend(t *testing.T, m *mirror) {
	t.Helper()
	if err := m.sub.Suspend("by command"); err != nil {
		t.Fatal(err)
	}
}

func rest(t *testing.T, m *mirror) {
	t.Helper()
	if _, err := m.sub.Rest(t.Context()); err != nil {
		t.Fatal(err)
	}
}
