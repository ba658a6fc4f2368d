package node

import (
	"context"
	"fmt"
	"path/filepath"
	"time"

	"gantline/internal/control"
)

// journalPath is the file of a journal's device that this node makes itself.
func (n *Node) journalPath(name string, index int) string {
	if index > 0 {
		name = fmt.Sprintf("%s.%d", name, index)
	}
	return filepath.Join(n.cfg.DataDir, "journals", name+".jnl")
}

// The high-water marks of a journal, in percent, and by how much its use must fall below one to clear it.
var alarmMarks = []int{90, 70}

const (
	alarmSlack = 5
	alarmLook  = 200 * time.Millisecond
)

// alarmLevel is the mark that has been reached, 0 for none, of a journal at which was had been before.
func alarmLevel(was int, used, capacity int64) int {
	if capacity <= 0 {
		return 0
	}
	percent := 100 * float64(used) / float64(capacity)
	for _, mark := range alarmMarks {
		if percent >= float64(mark) || was >= mark && percent > float64(mark-alarmSlack) {
			return mark
		}
	}
	return 0
}

// watchJournals notes in each group the high-water mark that its journal has reached, and why it fills up.
func (n *Node) watchJournals(ctx context.Context) error {
	tick := time.NewTicker(alarmLook)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
		n.mu.Lock()
		var groups []*group
		for _, g := range n.groups {
			groups = append(groups, g)
		}
		n.mu.Unlock()
		for _, g := range groups {
			g.watchJournal()
		}
	}
}

func (g *group) watchJournal() {
	g.mu.Lock()
	log, was := g.log, g.alarm.Level
	g.mu.Unlock()
	if log == nil {
		return
	}
	used, capacity := log.Space()
	level := alarmLevel(was, used, capacity)
	if level == was {
		return
	}
	cause := g.whyFilled()
	g.mu.Lock()
	g.alarm.Level, g.alarm.Cause = level, cause
	g.mu.Unlock()
	select {
	case g.n.alarmed <- struct{}{}:
	default:
	}
	if level > was {
		g.n.log.Warn("journal fills up", "group", g.name, "percent", level, "cause", cause)
	} else {
		g.n.log.Info("journal is emptier again", "group", g.name, "below_percent", was, "cause", cause)
	}
}

// whyFilled says what keeps records in the journal.
func (g *group) whyFilled() string {
	st := g.status()
	switch {
	case st.BlockedOn != "":
		return st.BlockedOn
	case st.Role == control.RoleSecondary && st.Applied < st.Durable:
		return fmt.Sprintf("%d records wait to be applied", st.Durable-st.Applied)
	case st.Role != control.RoleSecondary && st.Applied < st.Appended:
		return fmt.Sprintf("%s is %d writes behind", st.Peer, st.Appended-st.Applied)
	}
	return "the next checkpoint will free it"
}

// alarms are those of all journals in use here, for the manager.
func (n *Node) alarms() []control.JournalAlarm {
	list := []control.JournalAlarm{}
	for name, rec := range n.state.view().Groups {
		g := n.group(name)
		if g == nil || rec.Role == control.RoleRetired {
			continue
		}
		g.mu.Lock()
		a := g.alarm
		g.mu.Unlock()
		a.Journal = rec.Journal
		list = append(list, a)
	}
	return list
}
