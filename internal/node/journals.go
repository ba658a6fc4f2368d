package node

import (
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"path/filepath"
	"slices"
	"time"

	"gantline/internal/block"
	"gantline/internal/control"
	"gantline/internal/journal"
)

// journalPath is the file of a journal's device that this node makes itself.
func (n *Node) journalPath(name string, index int) string {
	if index > 0 {
		name = fmt.Sprintf("%s.%d", name, index)
	}
	return filepath.Join(n.cfg.DataDir, "journals", name+".jnl")
}

// addJournal has a journal grow by a device: prepared, then recorded, then joined. Dead before the record, nothing has
// changed, and the repeated call prepares it again. Dead behind it, it joins when the journal is opened.
func (n *Node) addJournal(in control.JournalAdd) (control.JournalStatus, error) {
	n.config.Lock()
	defer n.config.Unlock()
	what := "journal " + n.cfg.Name + "/" + in.Name
	d := n.state.view()
	rec := d.Journals[in.Name]
	if rec == nil {
		return control.JournalStatus{}, notFound("%s does not exist", what)
	}
	path := in.Device
	if path == "" {
		path = n.journalPath(in.Name, len(in.Have))
	}
	switch {
	case slices.Equal(rec.Devices, append(slices.Clone(in.Have), path)):
		return n.journalStatus(in.Name) // repeated
	case !slices.Equal(rec.Devices, in.Have):
		return control.JournalStatus{}, refused("%s has the devices %v here, not %v: repeat first what was added last", what, rec.Devices, in.Have)
	case !filepath.IsAbs(path):
		return control.JournalStatus{}, invalid("%s: device %q must be an absolute path", what, path)
	}
	dev, err := n.newJournalDevice(what, path, in)
	if err != nil {
		return control.JournalStatus{}, err
	}
	undo := func(err error) (control.JournalStatus, error) {
		err = errors.Join(refused("%s: device %s: %v", what, path, err), dev.Close())
		if in.Device == "" {
			err = errors.Join(err, n.cfg.Devices.Remove(path))
		}
		return control.JournalStatus{}, err
	}
	id, err := journalID(rec.ID)
	if err == nil {
		err = journal.Prepare(dev, id, len(rec.Devices))
	}
	if err != nil {
		return undo(err)
	}
	err = n.state.update(func(d *durable) error {
		r := *d.Journals[in.Name]
		r.Devices, r.Size = append(slices.Clone(r.Devices), path), r.Size+dev.Size()
		d.Journals[in.Name] = &r
		return nil
	})
	if err != nil {
		return control.JournalStatus{}, errors.Join(err, dev.Close())
	}
	if err := n.joinJournal(in.Name, dev); err != nil {
		return control.JournalStatus{}, refused("%s: device %s has been recorded and joins when the journal is opened anew: %v", what, path, err)
	}
	return n.journalStatus(in.Name)
}

// newJournalDevice opens the operator's device, or makes a file. A file of that name that is there is of a call that died.
func (n *Node) newJournalDevice(what, path string, in control.JournalAdd) (block.Device, error) {
	exists, err := n.cfg.Devices.Exists(path)
	switch {
	case err != nil:
		return nil, refused("%s: device %s: %v", what, path, err)
	case in.Device != "" && !exists:
		return nil, refused("%s: device %s does not exist; --size makes a file", what, path)
	case in.Device == "" && exists:
		if err := n.cfg.Devices.Remove(path); err != nil {
			return nil, refused("%s: what an earlier try has left at %s: %v", what, path, err)
		}
	}
	if err := n.roomFor(what, []string{path}, in.Size); err != nil {
		return nil, err
	}
	return n.makeDevice(what, path, in.Size)
}

func journalID(text string) (id journal.ID, err error) {
	b, err := hex.DecodeString(text)
	if err != nil || len(b) != len(id) {
		return id, fmt.Errorf("the record of the journal has the id %q", text)
	}
	copy(id[:], b)
	return id, nil
}

// joinJournal gives a prepared and recorded device to the journal, if that is open. It takes the device over.
func (n *Node) joinJournal(name string, dev block.Device) error {
	for gname, rec := range n.state.view().Groups {
		g := n.group(gname)
		if rec.Journal != name || rec.Role == control.RoleRetired || g == nil {
			continue
		}
		g.mu.Lock()
		jnl := g.jnl
		g.mu.Unlock()
		if jnl == nil {
			continue
		}
		if err := jnl.Join(dev); err != nil {
			return errors.Join(err, dev.Close())
		}
		return nil
	}
	return dev.Close()
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
