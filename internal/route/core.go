package route

import (
	"fmt"
	"slices"
	"time"

	"gantline/internal/block"
)

// Route says who serves a virtual volume.
type Route struct {
	Node    string `json:"node"`
	Address string `json:"address"` // where the node takes frames
	Volume  string `json:"volume"`  // its name there
	Group   string `json:"group"`   // "": the volume is in none
	Epoch   uint64 `json:"epoch"`   // of the group
}

// Older says that r names an owner of the past: epochs order the owners of one group, and say nothing between groups. A volume in no
// group has no epoch: one that is known of it is that of a move of the volume, which has ended since.
func (r Route) Older(o Route) bool {
	return r.Group == o.Group && r.Epoch < o.Epoch && (r.Group != "" || r.Epoch != 0)
}

func (r Route) samePlace(o Route) bool {
	return r.Node == o.Node && r.Address == o.Address && r.Volume == o.Volume
}

// Policy says what becomes of requests in flight when a path is switched (S702–704).
type Policy string

const (
	Finish Policy = "finish" // they finish at the old node, new ones go to the new node at once
	Hold   Policy = "hold"   // new ones wait until they have finished
	// Error: they end in an error at once, so that the host sends them again, to the new node. New ones wait until the old
	// node has done with what it may still execute, movedBarrier at most: what is later than that is behind the session's
	// floor when the host's next write arrives, and executed no more.
	Error Policy = "error"
)

// ParsePolicy takes "" for Finish.
func ParsePolicy(s string) (Policy, error) {
	switch p := Policy(s); p {
	case Finish, Hold, Error:
		return p, nil
	case "":
		return Finish, nil
	}
	return "", fmt.Errorf("in-flight policy %q: want finish, hold or error", s)
}

const (
	retryEvery   = 50 * time.Millisecond
	retryQuick   = 40 // so many retries before the pauses grow
	retryAtMost  = time.Second
	calmAfter    = time.Second     // a connection that lives so long makes past failures forgotten
	movedBarrier = time.Second     // after moved or an Error switch, new requests wait at most so long for the old node
	sleptAfter   = 5 * time.Second // the node has ended a session that was silent for so long
)

// linkID names a connection to a node, or the attempt at one. 0: none.
type linkID uint64

// An action is what the loop must do; the kinds say when.
type action struct {
	kind actionKind
	link linkID
	err  error
}

type actionKind uint8

const (
	doDial  actionKind = 1 // connect to the route as this link; answer with connected or failed
	doFail  actionKind = 2 // answer all requests that were ever sent with an error; their links stay
	doDrop  actionKind = 3 // end a link that is not wanted any more; it has nothing in flight
	doEnd   actionKind = 4 // end the session with err: nothing is replayed
	doDrain actionKind = 5 // report drained(link) once nothing is in flight on it
)

// core decides for one session. It is driven under the session's lock; times are durations since any fixed moment.
//
// At most one link is current. A link that was current and still has requests in flight is old until it has answered
// them or is lost. Requests without a link wait for the gate: it is open when the current link is up and no barrier
// keeps new requests behind the old ones.
type core struct {
	route  Route
	lastID linkID
	cur    linkID
	up     bool // cur is connected; else it is being dialed
	old    []linkID
	former linkID // links up to it led to another group: what their nodes say of epochs and places counts no more

	barrier      bool          // the gate stays shut while there are old links
	barrierUntil time.Duration // 0: as long as it takes

	wanted   bool // there has been a request: from now on the session is kept alive
	failures int
	dialAt   time.Duration // when cur == 0: dial then
	upSince  time.Duration
	ended    bool
}

// open reports whether requests may be sent on cur.
func (c *core) open() bool {
	return !c.ended && c.cur != 0 && c.up && !(c.barrier && len(c.old) > 0)
}

// want: a request waits and there may be no connection yet.
func (c *core) want(now time.Duration) []action {
	if c.wanted || c.ended {
		return nil
	}
	c.wanted = true
	return c.dial(now)
}

// dial begins a connection if one is due.
func (c *core) dial(now time.Duration) []action {
	if c.ended || !c.wanted || c.cur != 0 || now < c.dialAt {
		return nil
	}
	c.lastID++
	c.cur, c.up = c.lastID, false
	return []action{{kind: doDial, link: c.cur}}
}

// backoff puts the next dial off by what past failures call for: the first is at once.
func (c *core) backoff(now time.Duration) {
	pause := time.Duration(0)
	if c.failures > 0 {
		pause = retryEvery << min(max(c.failures-retryQuick, 0), 10)
	}
	c.dialAt = now + min(pause, retryAtMost)
	c.failures++
}

// connected: the dial of this link succeeded and its node is in epoch.
func (c *core) connected(id linkID, epoch uint64, now time.Duration) []action {
	if c.ended || id != c.cur {
		return []action{{kind: doDrop, link: id}}
	}
	c.up, c.upSince = true, now
	c.route.Epoch = max(c.route.Epoch, epoch)
	return nil
}

// failed: the dial of this link did not succeed.
func (c *core) failed(id linkID, moved *block.MovedError, now time.Duration) []action {
	if c.ended || id != c.cur {
		return nil
	}
	c.cur = 0
	if moved != nil && c.follow(moved, now) {
		return c.dial(now)
	}
	c.backoff(now)
	return c.dial(now)
}

// lost: a link has ended; its requests wait again.
func (c *core) lost(id linkID, now time.Duration) []action {
	if i := slices.Index(c.old, id); i >= 0 {
		return c.drained(id, now)
	}
	if c.ended || id != c.cur {
		return nil
	}
	c.cur = 0
	c.backoff(now)
	return c.dial(now)
}

// unavailable: the node answered that it cannot serve now. It is asked again on a new link; what this one still
// answers counts.
func (c *core) unavailable(id linkID, now time.Duration) []action {
	if c.ended || id != c.cur {
		return nil // the request just waits for the current link
	}
	acts := c.retire()
	c.backoff(now)
	return append(acts, c.dial(now)...)
}

// moved: the node of this link answered that another serves the volume.
func (c *core) moved(id linkID, m *block.MovedError, now time.Duration) []action {
	if c.ended {
		return nil
	}
	if id != c.cur && (id <= c.former || m.Epoch <= c.route.Epoch) {
		return nil // an old link says what is known, or speaks of another group
	}
	if m.Address == "" || m.Epoch < c.route.Epoch {
		return c.unavailable(id, now)
	}
	acts := c.retire()
	c.follow(m, now)
	if len(c.old) > 0 && !c.barrier {
		// What the old node has not answered yet is answered with moved in a moment, and belongs before what is new.
		c.barrier, c.barrierUntil = true, now+movedBarrier
	}
	return append(acts, c.dial(now)...)
}

// follow adopts the place that moved names, if its epoch is not behind ours. Two nodes that name each other in one
// epoch are asked in turn, but with the pauses of failures.
func (c *core) follow(m *block.MovedError, now time.Duration) bool {
	if m.Address == "" || m.Epoch < c.route.Epoch {
		return false
	}
	if m.Epoch > c.route.Epoch {
		c.failures = 0
	}
	c.route = Route{Node: m.Node, Address: m.Address, Volume: m.Volume, Group: c.route.Group, Epoch: m.Epoch}
	c.backoff(now)
	return true
}

// switchTo: the manager has given the volume another route. A route of an epoch behind what a node has confirmed is
// not believed.
func (c *core) switchTo(r Route, p Policy, now time.Duration) []action {
	if c.ended || r.Older(c.route) {
		return nil
	}
	if r.Group != c.route.Group {
		c.former = c.lastID
	}
	if r.samePlace(c.route) {
		c.route = r
		return nil
	}
	c.route, c.failures, c.dialAt = r, 0, now
	var acts []action
	if p == Error {
		acts = []action{{kind: doFail}}
	}
	acts = append(acts, c.retire()...)
	switch p {
	case Hold:
		c.barrier, c.barrierUntil = len(c.old) > 0, 0
	case Error:
		c.barrier, c.barrierUntil = len(c.old) > 0, now+movedBarrier
	}
	return append(acts, c.dial(now)...)
}

// retire makes the current link an old one.
func (c *core) retire() []action {
	id := c.cur
	wasUp := c.up
	c.cur, c.up = 0, false
	if id == 0 {
		return nil
	}
	if !wasUp {
		return []action{{kind: doDrop, link: id}}
	}
	c.old = append(c.old, id)
	return []action{{kind: doDrain, link: id}}
}

// drained: an old link has nothing in flight, or is lost.
func (c *core) drained(id linkID, _ time.Duration) []action {
	i := slices.Index(c.old, id)
	if i < 0 {
		return nil
	}
	c.old = slices.Delete(c.old, i, i+1)
	if len(c.old) == 0 {
		c.barrier = false
	}
	return []action{{kind: doDrop, link: id}}
}

// learn: the current link's node has confirmed an epoch.
func (c *core) learn(id linkID, epoch uint64) bool {
	if id != c.cur || epoch <= c.route.Epoch {
		return false
	}
	c.route.Epoch = epoch
	return true
}

// tick: time has passed; pause is how long ago the last tick was, sleep of the machine included.
func (c *core) tick(now, pause time.Duration) []action {
	if pause > sleptAfter {
		return c.end(fmt.Errorf("%w: gateway slept for %v", block.ErrSession, pause.Round(time.Millisecond)))
	}
	if c.up && now-c.upSince >= calmAfter {
		c.failures = 0
	}
	if c.barrier && c.barrierUntil != 0 && now >= c.barrierUntil {
		c.barrier = false
	}
	return c.dial(now)
}

// end ends the session.
func (c *core) end(err error) []action {
	if c.ended {
		return nil
	}
	c.ended = true
	return []action{{kind: doEnd, err: err}}
}

// nextTick is when tick has something to do, at most a second away.
func (c *core) nextTick(now time.Duration) time.Duration {
	at := now + time.Second
	if c.wanted && c.cur == 0 {
		at = min(at, c.dialAt)
	}
	if c.barrier && c.barrierUntil != 0 {
		at = min(at, c.barrierUntil)
	}
	return max(at-now, time.Millisecond)
}
