package node

import (
	"context"
	"fmt"
	"sync"
	"time"

	"gantline/internal/control"
)

const (
	watchEvery = 250 * time.Millisecond
	// stoppedAfter is how long a secondary that is behind must have got nothing for its copying to count as stopped.
	stoppedAfter = 10 * time.Second
	maxEvents    = 256 // kept for the manager; when it is away for longer, the oldest go
)

// expect is what the settings of a group make of its lag.
type expect struct {
	rpo      time.Duration // a longer lag is late; 0: none is
	pause    time.Duration // so long nothing may be sent, by an interval that was asked for
	quantity int64         // less than that may wait
}

func expectOf(s *control.Settings) expect {
	e := expect{rpo: s.RPO(), pause: s.SendEvery()}
	if s.SendEveryMS == 0 {
		e.quantity = s.SendBytes
	}
	if s.Mode == control.ModePeriodic {
		e.pause = s.Interval()
	}
	return e
}

// watch compares a group's status with the one before. Pure; times are this process's own clock.
type watch struct {
	seen          bool
	state, link   string
	late, stopped bool
	progress      [4]uint64
	moved         time.Duration // when progress was last another
}

// look returns what has changed, as events without object and number.
func (w *watch) look(st *control.GroupStatus, want expect, now time.Duration) []control.NodeEvent {
	var out []control.NodeEvent
	tell := func(kind, cause, format string, args ...any) {
		out = append(out, control.NodeEvent{Kind: kind, Cause: cause, Message: fmt.Sprintf(format, args...)})
	}
	link := control.StateDown
	if st.LinkUp {
		link = control.StateUp
	}
	if w.seen && w.state != st.State && st.State != "" {
		tell("state", causeOf(w.state, st), "group %s is %s (was %s)", st.Name, st.State, w.state)
	}
	feeds := st.Role == control.RolePrimary && st.State != "empty" && st.State != "failed"
	if w.seen && w.link != link && feeds {
		cause := "the stream is open again"
		if link == control.StateDown {
			cause = st.BlockedOn
		}
		tell("link-"+link, cause, "group %s: the link to %s is %s", st.Name, st.Peer, link)
	}
	w.seen, w.state, w.link = true, st.State, link
	w.judge(st, feeds, want, now, tell)
	return out
}

// judge finds the two conditions of a group that lags: late, and stopped.
func (w *watch) judge(st *control.GroupStatus, feeds bool, want expect, now time.Duration, tell func(kind, cause, format string, args ...any)) {
	behind := feeds && (st.Applied < st.Appended || st.ChangedBytes > 0)
	progress := [4]uint64{st.Sent, st.Acked, st.Applied, uint64(st.ChangedBytes)}
	if progress != w.progress || !behind {
		w.progress, w.moved = progress, now
	}
	why := st.BlockedOn
	if why == "" {
		why = "hosts write faster than the secondary takes it"
	}
	lag := time.Duration(st.LagSeconds * float64(time.Second))
	if late := behind && st.Heard && want.rpo > 0 && lag > want.rpo; late != w.late {
		if w.late = late; late {
			tell("late", why, "group %s is late: the secondary is %.1f s behind, more than %v", st.Name, lag.Seconds(), want.rpo)
		} else {
			tell("in-time", "the lag is small enough again", "group %s is no longer late", st.Name)
		}
	}
	if stopped := behind && now-w.moved >= stoppedAfter+want.pause && st.LagBytes >= want.quantity; stopped != w.stopped {
		if w.stopped = stopped; stopped {
			tell("stopped", why, "group %s: copying has stopped: the secondary is behind and has got nothing for %v", st.Name, (now - w.moved).Round(time.Second))
		} else {
			tell("going-on", "the secondary gets on, or is not behind", "group %s: copying goes on", st.Name)
		}
	}
}

// causeOf says why a group has another state.
func causeOf(was string, st *control.GroupStatus) string {
	switch {
	case st.Error != "":
		return st.Error
	case st.State == "paired" && was == "initial-copy":
		return "the initial copy is complete"
	case st.State == "paired" && was == "resyncing":
		return "the secondary has applied the resync"
	case st.State == "initial-copy":
		return "a pair was added"
	case st.State == "resyncing":
		return "resumed"
	case st.BlockedOn != "":
		return st.BlockedOn
	}
	return "role " + st.Role
}

// events are those that this run of the node has noticed, numbered, for the manager to fetch.
type events struct {
	mu   sync.Mutex
	last uint64
	kept []control.NodeEvent
}

func (e *events) add(list []control.NodeEvent) {
	e.mu.Lock()
	defer e.mu.Unlock()
	for _, ev := range list {
		e.last++
		ev.Number = e.last
		e.kept = append(e.kept, ev)
	}
	if n := len(e.kept) - maxEvents; n > 0 {
		e.kept = append([]control.NodeEvent(nil), e.kept[n:]...)
	}
}

// after lists the events with higher numbers than n.
func (e *events) after(n uint64) []control.NodeEvent {
	e.mu.Lock()
	defer e.mu.Unlock()
	out := []control.NodeEvent{}
	for _, ev := range e.kept {
		if ev.Number > n {
			out = append(out, ev)
		}
	}
	return out
}

// watchGroups looks at all groups until ctx ends.
func (n *Node) watchGroups(ctx context.Context) error {
	began := time.Now()
	ticker := time.NewTicker(watchEvery)
	defer ticker.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-ticker.C:
		}
		n.mu.Lock()
		groups := make([]*group, 0, len(n.groups))
		for _, g := range n.groups {
			groups = append(groups, g)
		}
		n.mu.Unlock()
		for _, g := range groups {
			st := g.status()
			g.mu.Lock()
			found := g.watched.look(&st, g.expect, time.Since(began))
			if rec := n.state.group(g.name); rec != nil && rec.Spec.Group.Lone != "" && st.State != "failed" {
				found = nil // it is the move's, and the move tells of it
			}
			g.mu.Unlock()
			at := time.Now().UTC()
			for i := range found {
				found[i].At, found[i].Object = at, "group/"+g.name
				n.log.Info(found[i].Message, "event", found[i].Kind, "cause", found[i].Cause)
			}
			n.events.add(found)
		}
	}
}
