package node

import (
	"fmt"
	"time"

	"gantline/internal/control"
	"gantline/internal/sender"
)

// intervals says when a periodic group begins a step. Boundaries lie `every` apart; a step that is due begins at one, and
// the next at the first boundary behind its end: what was not finished in time is not made up for. Pure; times are since
// some beginning, by a clock that never jumps.
type intervals struct {
	every   time.Duration
	next    time.Duration // while running: the boundary at which the step was due
	running bool          // a step is due, waits for the link, or is under way
	told    bool          // that it is late
}

// set changes the length of the intervals; the boundary ahead moves closer if it lies further off than that.
func (i *intervals) set(every, now time.Duration) {
	i.every = every
	if !i.running {
		i.next = min(i.next, now+every)
	}
}

// wait is how long it is until the next step is due, 0 if one is.
func (i *intervals) wait(now time.Duration) time.Duration {
	if i.running {
		return 0
	}
	return max(0, i.next-now)
}

// begin makes the step that is due the one under way. Repeated, it changes nothing.
func (i *intervals) begin(now time.Duration) {
	if !i.running {
		i.running, i.told, i.next = true, false, min(i.next, now)
	}
}

// late says, once for a step, that its interval is over and it is not.
func (i *intervals) late(now time.Duration) bool {
	if !i.running || i.told || now < i.next+i.every {
		return false
	}
	i.told = true
	return true
}

// fail is late for a step that will not be finished at all.
func (i *intervals) fail() bool {
	if !i.running || i.told {
		return false
	}
	i.told = true
	return true
}

// end sets the boundary of the next step.
func (i *intervals) end(now time.Duration) {
	if i.every <= 0 {
		return
	}
	i.running = false
	if behind := now - i.next; behind >= 0 {
		i.next += (behind/i.every + 1) * i.every
	}
}

// period is a periodic group's clock and what it has to say; under group.mu.
type period struct {
	intervals
	lateAt  *time.Timer // tells that the step under way is late
	blocked string      // why the step that is due has not begun, and will not by itself
}

// linkLook is how often a step that waits for the link looks for it.
const linkLook = 200 * time.Millisecond

// now is the time by a clock that never jumps.
func (n *Node) now() time.Duration { return time.Since(n.began) }

// awaitInterval returns 0 if a step is to begin, else after how long to look again; under steer. A step that is due and
// cannot begin is late like one that is not finished.
func (g *group) awaitInterval(rec *groupRecord) time.Duration {
	now := g.n.now()
	g.mu.Lock()
	g.period.set(rec.Spec.Group.Interval(), now)
	wait := g.period.wait(now)
	g.mu.Unlock()
	joins := rec.initial() // a volume that joins does not wait: its initial copy needs the stream
	if wait > 0 && !joins {
		return wait
	}
	if _, _, applied := g.sub.Cursor(); !joins && g.sub.ChangedBytes() == 0 && applied >= g.vg.Appended() {
		g.mu.Lock()
		defer g.mu.Unlock()
		g.period.begin(now)
		g.period.end(now) // nothing to copy
		return max(g.period.wait(now), time.Millisecond)
	}
	g.beginInterval(rec)
	blocked := ""
	if !joins {
		if err := g.stepFits(); err != nil {
			blocked = err.Error()
		}
	}
	snd := g.sender().Status()
	up := snd.State == sender.StateStreaming || snd.State == sender.StateResync
	g.mu.Lock()
	defer g.mu.Unlock()
	g.period.blocked = blocked
	if blocked != "" || !up {
		return linkLook
	}
	return 0
}

// beginInterval notes that a step is under way, or would be.
func (g *group) beginInterval(rec *groupRecord) {
	now := g.n.now()
	g.mu.Lock()
	defer g.mu.Unlock()
	p := &g.period
	p.set(rec.Spec.Group.Interval(), now)
	p.begin(now)
	if p.lateAt == nil {
		p.lateAt = time.AfterFunc(p.next+p.every-now, g.tellLate)
	}
}

// tellLate runs when the interval of the step under way is over.
func (g *group) tellLate() {
	g.mu.Lock()
	late := g.period.late(g.n.now())
	why := g.period.blocked
	if why == "" && g.snd != nil {
		why = g.snd.Status().BlockedOn
	}
	g.mu.Unlock()
	if late {
		g.tellOverrun(why)
	}
}

// endInterval ends the step under way; with an error it was not finished.
func (g *group) endInterval(err error) {
	now := g.n.now()
	g.mu.Lock()
	late := g.period.late(now) || err != nil && g.period.fail()
	g.stopInterval(now)
	g.mu.Unlock()
	if !late {
		return
	}
	why := ""
	if err != nil {
		why = err.Error()
	}
	g.tellOverrun(why)
}

// dropInterval ends the step under way by command.
func (g *group) dropInterval() {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.stopInterval(g.n.now())
}

// stopInterval is called under mu.
func (g *group) stopInterval(now time.Duration) {
	p := &g.period
	if p.lateAt != nil {
		p.lateAt.Stop()
		p.lateAt = nil
	}
	p.end(now)
	p.blocked = ""
}

// tellOverrun counts an interval that was not finished in time, and tells it.
func (g *group) tellOverrun(why string) {
	rec := g.n.state.view().Groups[g.name]
	if rec == nil || !rec.periodic() {
		return
	}
	err := g.n.state.update(func(d *durable) error {
		if r := d.Groups[g.name]; r != nil {
			r.Overruns++
		}
		return nil
	})
	if err != nil {
		g.n.log.Error("overrun not counted", "group", g.name, "cause", err)
	}
	message := fmt.Sprintf("group %s: an interval of %v was over before its copy; the next begins at the next boundary behind its end",
		g.name, rec.Spec.Group.Interval())
	if why != "" {
		message += ": " + why
	}
	g.n.log.Warn("interval overrun", "group", g.name, "cause", why)
	g.n.events.add([]control.NodeEvent{{At: time.Now().UTC(), Object: "group/" + g.name, Kind: "overrun", Cause: why, Message: message}})
}
