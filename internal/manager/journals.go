package manager

import (
	"context"
	"slices"
	"time"

	"gantline/internal/control"
)

// journalAdd grows a journal by a device, in use or not. The node does it and is then asked what the journal has; a
// command that was cut short is finished by its repetition.
func (m *Manager) journalAdd(ctx context.Context, full string, in control.JournalAddRequest) error {
	node, name, err := control.SplitOwned("journal", full)
	if err != nil {
		return err
	}
	switch {
	case (in.Size == 0) == (in.Device == ""):
		return control.Errorf(control.KindUsage, "journal %s: give either --size, for a new file, or --device", full)
	case in.Size != 0:
		err = checkSize("journal", full, in.Size, minJournal)
	default:
		err = checkDevice(in.Device)
	}
	if err != nil {
		return err
	}
	unlock, err := m.locks.lock(ctx, "owned/"+full)
	if err != nil {
		return err
	}
	defer unlock()
	j, err := load[control.Journal](ctx, m, control.KindJournal, full)
	if err != nil {
		return err
	}
	switch {
	case in.Device != "" && slices.Contains(j.V.Devices, in.Device):
		return nil
	case len(j.V.Devices) >= maxDevices:
		return control.Errorf(control.KindRefused, "journal %s has %d devices, the most allowed; make a larger one and move the group to it",
			full, len(j.V.Devices))
	}
	var st control.JournalStatus
	limit := callTimeout + time.Duration(in.Size/slowestDisk)*time.Second
	if in.Device != "" {
		limit += unknownFill
	}
	add := control.JournalAdd{Name: name, Size: in.Size, Device: in.Device, Have: j.V.Devices}
	if err := m.do(ctx, node, control.CallJournalAdd, full, add, &st, limit); err != nil {
		return err
	}
	_, err = attempt(ctx, func() (struct{}, error) {
		j, err := load[control.Journal](ctx, m, control.KindJournal, full)
		if err != nil {
			return struct{}{}, err
		}
		was, by := j.V.Size, in.Device
		if by == "" {
			by = "a file"
		}
		j.V.Size, j.V.Devices = st.Size, st.Devices
		_, err = m.commit(ctx, m.change().put(j.Key, j.Rev, j.V).event("journal/"+full, "grown", "command",
			"journal %s grown from %d to %d bytes by %s", full, was, st.Size, by))
		return struct{}{}, err
	})
	return err
}

// unknownFill is how long a device of a size that only the node knows may take to be written once.
const unknownFill = 10 * time.Minute

// noteAlarms tells of journals that have reached a high-water mark since the node's last report, or left it.
func (m *Manager) noteAlarms(ctx context.Context, node string, alarms []control.JournalAlarm) error {
	if len(alarms) > maxObjects {
		return control.Errorf(control.KindUsage, "report of %d journals", len(alarms))
	}
	now := map[string]control.JournalAlarm{} // of one that is not in use there is nothing to tell
	for _, a := range alarms {
		now[a.Journal] = a
	}
	journals, err := loadAll[control.Journal](ctx, m, control.KindJournal)
	if err != nil {
		return err
	}
	for _, j := range journals {
		a, full := now[j.V.Name], node+"/"+j.V.Name
		if j.V.Node != node || j.V.Alarm == a.Level {
			continue
		}
		kind, was := "high-water", j.V.Alarm
		if a.Level < was {
			kind = "high-water-cleared"
		}
		j.V.Alarm, j.V.Cause = a.Level, a.Cause
		c := m.change().put(j.Key, j.Rev, j.V)
		switch {
		case a.Level > was:
			c.event("journal/"+full, kind, a.Cause, "journal %s is more than %d %% full: %s", full, a.Level, a.Cause)
		default:
			c.event("journal/"+full, kind, a.Cause, "journal %s is less than %d %% full again", full, was)
		}
		if _, err := m.commit(ctx, c); err != nil {
			return err
		}
	}
	return nil
}
