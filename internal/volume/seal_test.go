package volume

import (
	"errors"
	"sync/atomic"
	"testing"
	"time"

	"gantline/internal/block"
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

// TestSealSaysWhatIsLacking: a source sends its subscriber the rest by the stream, or hands over in marks all that it lacks: of one
// that is cut off, that leaves the stream at an end, or that is inside a step. The fence itself cuts nobody off.
func TestSealSaysWhatIsLacking(t *testing.T) {
	for name, what := range map[string]struct {
		before func(t *testing.T, m *mirror)
		full   bool
	}{
		"it was cut off":                     {before: func(t *testing.T, m *mirror) { suspend(t, m) }},
		"it is about to leave the stream":    {before: func(t *testing.T, m *mirror) { rest(t, m) }},
		"it is inside a step":                {before: func(t *testing.T, m *mirror) { suspend(t, m); stepIn(t, m) }},
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
			if what.before != nil {
				if err := write(p.vols[0], 8192, stamp(3, 4096), 0); err != nil {
					t.Fatal(err)
				}
			}
			full.Store(what.full)
			next := record.EpochID{Number: 2, Node: "b"}
			if cut, err := p.g.Seal(t.Context(), next); what.full && !errors.Is(err, ErrSuspended) {
				t.Fatalf("sealed at %d with the subscriber %s: %v", cut, m.sub.State(), err)
			}
			if !what.full {
				h, marks := m.sub.Heritage(), m.sub.volumes()[1].marks
				if !h.Suspended || !marks.Test(0) || !marks.Test(1) || marks.Count() != 2 {
					t.Fatalf("handed over: %+v, %d marks", h, marks.Count())
				}
				p.close()
				m.close()
				return
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

func stepIn(t *testing.T, m *mirror) {
	t.Helper()
	if _, err := m.sub.BeginStep(false); err != nil {
		t.Fatal(err)
	}
}

func rest(t *testing.T, m *mirror) {
	t.Helper()
	if _, err := m.sub.Rest(t.Context()); err != nil {
		t.Fatal(err)
	}
}

// A subscriber whose lack nobody takes over is never left behind: without it in the stream a group is not sealed, and goes on as
// before. What another subscriber lacks is no matter.
func TestSealNeeds(t *testing.T) {
	for name, memory := range map[string]bool{"journal": false, "queue": true} {
		t.Run(name, func(t *testing.T) {
			_, seed := seeded(t)
			p, m := newPair(t, seed, 4<<20)
			if memory {
				p, m = newMemPair(t, seed, 1<<20)
			}
			p.open()
			m.open()
			m.subscribe(p)
			lacks := map[record.VolumeNumber]Bitmap{}
			for i, d := range newMaps(t, seed+300) {
				b, _, err := block.OpenBitmap(d)
				if err != nil {
					t.Fatal(err)
				}
				lacks[record.VolumeNumber(i+1)] = b
			}
			other, err := p.g.Subscribe("target", SubscriberConfig{Retain: RetainDurable, Changed: lacks, BlockSize: markSize, Needed: true})
			if err != nil {
				t.Fatal(err)
			}
			suspend(t, m)
			if err := other.Suspend("the log is full"); err != nil {
				t.Fatal(err)
			}
			next := record.EpochID{Number: 2, Node: "b"}
			if cut, err := p.g.Seal(t.Context(), next); !errors.Is(err, ErrSuspended) {
				t.Fatalf("sealed at %d without the target: %v", cut, err)
			}
			if err := write(p.vols[0], 0, stamp(1, 4096), 0); err != nil { // it goes on as before
				t.Fatal(err)
			}
			base, _, err := other.Rejoin()
			if err != nil {
				t.Fatal(err)
			}
			if err := other.Acked(base, base, base); err != nil {
				t.Fatal(err)
			}
			cut, err := p.g.Seal(t.Context(), next)
			if err != nil {
				t.Fatal(err)
			}
			if !m.sub.Heritage().Suspended || other.State() != SubStreaming || !memory && cut <= base {
				t.Fatalf("sealed at %d behind %d: %+v, the target is %s", cut, base, m.sub.Heritage(), other.State())
			}
			p.close()
			m.close()
		})
	}
}
