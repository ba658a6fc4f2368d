package volume

import (
	"testing"
	"time"

	"gantline/internal/record"
	"pgregory.net/rapid"
)

func testGuard(stop bool) *guard {
	return &guard{state: guardOff, cfg: SyncConfig{On: true, Stop: stop, Patience: 3 * time.Second, Stall: 10 * time.Second,
		Hold: 20 * time.Second}}
}

// A history of a guard: each line is what it hears, what it answers and where it stands then.
func TestGuardHistories(t *testing.T) {
	type line struct {
		f      guardFacts
		action guardAction
		state  guardState
	}
	at := func(sec float64, f guardFacts) guardFacts {
		f.now = time.Duration(sec * float64(time.Second))
		f.serving, f.stream = true, !f.stream // in the tables stream means: out of it
		return f
	}
	up := func(sec float64, stored, durable, tip record.Seq) guardFacts {
		return at(sec, guardFacts{link: true, stored: stored, durable: durable, tip: tip})
	}
	down := func(sec float64, stored, tip record.Seq) guardFacts {
		return at(sec, guardFacts{stored: stored, durable: stored, tip: tip})
	}
	for name, c := range map[string]struct {
		stop  bool
		lines []line
	}{
		"far behind, then near, then promised": {false, []line{
			{up(1, 0, 0, 1<<20), guardNothing, guardBehind},
			{up(2, 1<<20, 1<<19, 1<<20+5), guardNothing, guardJoining},
			{up(3, 1<<20+5, 1<<20, 1<<20+9), guardNothing, guardJoining}, // flushes answered before are not durable there
			{up(4, 1<<20+9, 1<<20+5, 1<<20+9), guardEngage, guardJoining},
		}},
		"lost before it was promised": {false, []line{
			{up(1, 5, 5, 9), guardNothing, guardJoining},
			{down(2, 5, 9), guardNothing, guardJoining},
			{down(5, 5, 9), guardNothing, guardBehind},
			{down(6, 5, 9), guardNothing, guardBehind},
			{up(7, 5, 5, 9), guardNothing, guardJoining},
		}},
		"continue": {false, []line{
			{up(1, 5, 5, 5), guardNothing, guardHolds},
			{down(10, 5, 5), guardNothing, guardHolds}, // the time is counted from when it was first seen to be away
			{down(12.9, 5, 9), guardNothing, guardHolds},
			{down(13, 5, 9), guardStale, guardHolds},
			{at(14, guardFacts{stream: true, tip: 9}), guardNothing, guardBehind},
		}},
		"continue, link comes back in time": {false, []line{
			{down(1, 5, 5), guardNothing, guardHolds},
			{up(3, 5, 5, 9), guardNothing, guardHolds},
			{down(5, 5, 5), guardNothing, guardHolds},
			{down(7.9, 5, 5), guardNothing, guardHolds},
		}},
		"connected and silent": {false, []line{
			{at(20, guardFacts{link: true, stored: 5, tip: 9, oldest: 11 * time.Second}), guardNothing, guardHolds},
			{at(21, guardFacts{link: true, stored: 5, tip: 9, oldest: 11 * time.Second}), guardStale, guardHolds},
		}},
		"stop": {true, []line{
			{down(1, 5, 9), guardNothing, guardHolds},
			{down(20, 5, 9), guardNothing, guardHolds},
			{down(21, 5, 12), guardNothing, guardLost},
			{up(30, 11, 5, 12), guardNothing, guardLost},
			{up(31, 12, 5, 12), guardNothing, guardHolds},
		}},
		"stop, suspended by command": {true, []line{
			{down(21, 5, 12), guardNothing, guardHolds},
			{down(41, 5, 12), guardNothing, guardLost},
			{at(42, guardFacts{stream: true, tip: 12}), guardNothing, guardBehind},
		}},
	} {
		t.Run(name, func(t *testing.T) {
			g := testGuard(c.stop)
			if c.lines[0].state == guardHolds {
				g.state = guardHolds
			}
			for i, l := range c.lines {
				if a := g.next(l.f); a != l.action || g.state != l.state {
					t.Fatalf("line %d: action %d, state %v, wanted %d and %v (%s)", i, a, g.state, l.action, l.state, g.why)
				}
			}
		})
	}
}

// Whatever happens, in whatever order: out of the promise leads only the order to make that durable first, a change of
// the configuration, or the subscriber being out of the stream, which is durable; and with stop none but the last two.
func TestGuardKeepsItsPromise(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		stop := rapid.Bool().Draw(t, "stop")
		g := testGuard(stop)
		f := guardFacts{now: time.Second, serving: true, stream: true}
		for range rapid.IntRange(1, 200).Draw(t, "n") {
			f.now += time.Duration(rapid.IntRange(0, 4000).Draw(t, "ms")) * time.Millisecond
			f.link = rapid.Bool().Draw(t, "link")
			f.stream = rapid.IntRange(0, 9).Draw(t, "stream") > 0
			f.tip += record.Seq(rapid.IntRange(0, 5).Draw(t, "more"))
			f.stored = min(f.tip, f.stored+record.Seq(rapid.IntRange(0, 5).Draw(t, "stored")))
			f.durable = min(f.stored, f.durable+record.Seq(rapid.IntRange(0, 5).Draw(t, "durable")))
			f.oldest = 0
			if rapid.Bool().Draw(t, "waits") {
				f.oldest = f.now - time.Duration(rapid.IntRange(0, 30).Draw(t, "for"))*time.Second
			}
			was := g.state
			a := g.next(f)
			promised := was == guardHolds || was == guardLost
			if promised && !g.state.gates() && f.stream {
				t.Fatalf("from %v to %v in the stream", was, g.state)
			}
			if a == guardStale && (stop || was != guardHolds) {
				t.Fatalf("stale from %v, stop %v", was, stop)
			}
			if was != guardHolds && was != guardLost && g.state == guardHolds {
				t.Fatalf("from %v to a promise that is not durable", was)
			}
			if a == guardEngage {
				if f.stored < g.join || f.durable < g.join {
					t.Fatalf("promised up to %d with %d stored and %d durable", g.join, f.stored, f.durable)
				}
				g.engaged()
			}
			if a == guardStale {
				f.stream = false
				g.next(f)
				if g.state != guardBehind {
					t.Fatalf("cut off, and %v", g.state)
				}
			}
		}
	})
}
