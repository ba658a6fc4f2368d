package volume

import (
	"fmt"
	"time"

	"gantline/internal/record"
)

// guardState says what hosts' answers wait for.
//
//	off ⇄ behind → joining → holds ⇄ lost (stop)
//	        ↑         │        │
//	        └─────────┴────────┘ out of the stream: cut off (continue), suspended, in a step
type guardState uint8

const (
	guardOff     guardState = 1 // asynchronous: for nobody. → behind
	guardBehind  guardState = 2 // for nobody: the subscriber is not in the stream, or too far behind. → joining
	guardJoining guardState = 3 // for the subscriber; what was answered before is still on its way. → holds, behind
	guardHolds   guardState = 4 // for the subscriber, which has all that was answered; durably promised. → behind, lost
	guardLost    guardState = 5 // stop: it has been away too long, requests fail. → holds
)

func (s guardState) String() string {
	names := [...]string{"unknown", "off", "behind", "joining", "holds", "lost"}
	if int(s) >= len(names) {
		s = 0
	}
	return names[s]
}

// gates says whether answers wait in this state.
func (s guardState) gates() bool { return s == guardJoining || s == guardHolds || s == guardLost }

// A subscriber that lacks no more than this is waited for from then on: over most links it is there within a moment.
const (
	joinRecords = 8192
	joinBytes   = 4 << 20
)

// guardFacts are what a guard decides by. Times are since began.
type guardFacts struct {
	now     time.Duration
	serving bool // this group numbers what hosts write
	stream  bool // the subscriber is in the stream, and not inside a step
	link    bool // it is connected and takes records
	stored  record.Seq
	durable record.Seq // there
	tip     record.Seq
	lacks   int64         // bytes of the records above stored
	oldest  time.Duration // since when somebody waits for the subscriber and nothing has come of it; 0: nobody does
}

type guardAction uint8

const (
	guardNothing guardAction = 0
	guardEngage  guardAction = 1 // promise: durably, then engaged
	guardStale   guardAction = 2 // take the subscriber out of the stream, durably, before anybody is answered without it
)

// guard decides whether answers to hosts wait for a subscriber: the synchronous mode. Pure.
type guard struct {
	cfg    SyncConfig
	state  guardState
	join   record.Seq    // joining, lost: left once the subscriber has all up to here
	downAt time.Duration // since when it is not connected; 0: it is
	why    string        // of the last change
}

// next takes the facts in and says what must be done; the state has changed by then, but for guardEngage, which is
// followed by engaged.
func (g *guard) next(f guardFacts) guardAction {
	switch {
	case f.link:
		g.downAt = 0
	case g.downAt == 0:
		g.downAt = f.now
	}
	switch {
	case !g.cfg.On:
		g.become(guardOff, "asynchronous")
		return guardNothing
	case !f.serving:
		return guardNothing
	case !f.stream:
		g.become(guardBehind, "the secondary is not in the stream")
		return guardNothing
	}
	switch g.state {
	case guardHolds:
		return g.holding(f)
	case guardJoining:
		if why := g.lost(f, g.cfg.Patience, g.cfg.Stall); why != "" {
			g.become(guardBehind, why)
		} else if f.stored >= g.join && f.durable >= g.join {
			return guardEngage
		}
	case guardLost:
		if !g.cfg.Stop { // said since: go on without it
			g.become(guardHolds, "hosts are to go on")
			return g.holding(f)
		}
		if f.link && f.stored >= g.join {
			g.become(guardHolds, "the secondary is back and has all writes")
		}
	default:
		if f.link && f.tip <= f.stored+joinRecords && f.lacks <= joinBytes {
			g.join = f.tip
			g.become(guardJoining, "the secondary has nearly caught up")
		} else {
			g.become(guardBehind, "the secondary has not caught up")
		}
	}
	return guardNothing
}

func (g *guard) holding(f guardFacts) guardAction {
	if !g.cfg.Stop {
		if why := g.lost(f, g.cfg.Patience, g.cfg.Stall); why != "" {
			g.why = why
			return guardStale
		}
		return guardNothing
	}
	if why := g.lost(f, g.cfg.Hold, g.cfg.Hold); why != "" {
		g.join = f.tip
		g.become(guardLost, why)
	}
	return guardNothing
}

// engaged: the promise is on disk.
func (g *guard) engaged() {
	if g.state == guardJoining {
		g.become(guardHolds, "the secondary has all that was answered")
	}
}

// lost says why the subscriber counts as lost; empty if it does not.
func (g *guard) lost(f guardFacts, down, stall time.Duration) string {
	switch {
	case !f.link && f.now-g.downAt >= down:
		return fmt.Sprintf("link lost for %v", (f.now - g.downAt).Round(100*time.Millisecond))
	case f.oldest != 0 && f.now-f.oldest >= stall:
		return fmt.Sprintf("the secondary has not answered for %v", (f.now - f.oldest).Round(100*time.Millisecond))
	}
	return ""
}

func (g *guard) become(s guardState, why string) {
	if g.state != s {
		g.state, g.why = s, why
	}
}
