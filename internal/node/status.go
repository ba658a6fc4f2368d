package node

import (
	"context"
	"fmt"
	"time"

	"gantline/internal/control"
	"gantline/internal/migrate"
	"gantline/internal/sender"
	"gantline/internal/volume"
	"gantline/internal/wire"
)

// call asks another node. The connection is kept for the next call.
func (n *Node) call(ctx context.Context, node, method string, in, out any) error {
	addr := n.addressOf(node)
	if addr == "" {
		return &wire.Error{Kind: wire.KindUnavailable, Message: "address of node " + node + " is not known"}
	}
	n.mu.Lock()
	c := n.callers[addr]
	if c == nil {
		c = wire.NewCaller(addr, wire.Hello{Role: "node", Name: n.cfg.Name, Instance: n.instance})
		n.callers[addr] = c
	}
	n.mu.Unlock()
	ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	return c.Call(ctx, method, in, out)
}

func (n *Node) status() control.NodeStatus {
	d := n.state.view()
	st := control.NodeStatus{Name: n.cfg.Name, Install: d.Install, Instance: n.instance, Volumes: []control.VolumeStatus{},
		Journals: []control.JournalStatus{}, Groups: []control.GroupStatus{}, Migrations: []control.MigrationStatus{}}
	for _, name := range sortedKeys(d.Volumes) {
		if v, err := n.volumeStatus(name); err == nil {
			st.Volumes = append(st.Volumes, v)
		}
	}
	for _, name := range sortedKeys(d.Journals) {
		if j, err := n.journalStatus(name); err == nil {
			st.Journals = append(st.Journals, j)
		}
	}
	for _, name := range sortedKeys(d.Groups) {
		if g := n.group(name); g != nil {
			st.Groups = append(st.Groups, g.status())
		}
	}
	for _, id := range sortedKeys(d.Moves) {
		if m, err := n.moveStatus(id); err == nil {
			st.Migrations = append(st.Migrations, m)
		}
	}
	return st
}

func (n *Node) volumeStatus(name string) (control.VolumeStatus, error) {
	d := n.state.view()
	rec, v := d.Volumes[name], n.volume(name)
	if rec == nil {
		return control.VolumeStatus{}, notFound("volume %s/%s does not exist", n.cfg.Name, name)
	}
	if v == nil {
		n.mu.Lock()
		defer n.mu.Unlock()
		return control.VolumeStatus{Name: name, ID: rec.ID, Size: rec.Size, Device: rec.Device, Role: "lone",
			Mode: volume.ModeFailed.String(), State: fmt.Sprint(n.broken[name])}, nil
	}
	st := control.VolumeStatus{Name: name, ID: rec.ID, Size: rec.Size, Device: rec.Device, Role: "lone",
		Mode: v.vol.Mode().String(), State: "ok"}
	if rec.Moved != nil {
		st.Role = control.RoleRetired
		return st, nil
	}
	for gname, gr := range d.Groups {
		for _, m := range gr.Members {
			if m.Volume == name && gr.Role != control.RoleRetired {
				st.Group = gname
				n.memberStatus(&st, gname, m)
			}
		}
	}
	if ps, ok := v.vol.PresenceStatus(); ok {
		present := min(ps.Present*regionSize, rec.Size)
		st.PresentBytes = &present
	}
	return st, nil
}

func (n *Node) memberStatus(st *control.VolumeStatus, gname string, m memberRecord) {
	g := n.group(gname)
	if g == nil {
		return
	}
	gs := g.status()
	st.Role = gs.Role
	if gs.Error != "" {
		st.State = gs.Error
	}
	switch gs.Role {
	case control.RoleSecondary:
		st.Applied = &gs.Applied
	case control.RolePrimary, control.RoleSource:
		g.mu.Lock()
		if cm, ok := g.maps[m.Number]; ok {
			bytes := cm.bits.Count() * markSize
			st.ChangedBytes = &bytes
		}
		g.mu.Unlock()
	}
}

func (n *Node) journalStatus(name string) (control.JournalStatus, error) {
	d := n.state.view()
	rec := d.Journals[name]
	if rec == nil {
		return control.JournalStatus{}, notFound("journal %s/%s does not exist", n.cfg.Name, name)
	}
	st := control.JournalStatus{Name: name, Size: rec.Size, Devices: rec.Devices}
	for gname, gr := range d.Groups {
		if gr.Journal != name || gr.Role == control.RoleRetired {
			continue
		}
		st.Group = gname
		g := n.group(gname)
		if g == nil {
			continue
		}
		gs := g.status()
		st.Used, st.Capacity = gs.JournalUsed, gs.JournalCapacity
		st.Stored, st.Applied = gs.Appended, gs.Applied
		st.Transferred = gs.Sent
		if gs.Role == control.RoleSecondary {
			st.Transferred = gs.Durable
		}
		g.mu.Lock()
		if g.jnl != nil {
			st.Discarded = uint64(g.jnl.Cursors().Trimmed)
		}
		st.Alarm, st.Cause = g.alarm.Level, g.alarm.Cause
		g.mu.Unlock()
	}
	return st, nil
}

// status says what is so, from facts: role and epoch from what is durable, the rest from who does the work.
func (g *group) status() control.GroupStatus {
	rec := g.n.state.group(g.name)
	g.mu.Lock()
	defer g.mu.Unlock()
	st := control.GroupStatus{Name: g.name, Role: g.role, WANBytesSent: g.wan.total()}
	if g.err != nil {
		st.Error = g.err.Error()
	}
	if rec == nil || g.vg == nil {
		st.State = "failed"
		return st
	}
	st.WANBytesSent += rec.WANBase
	st.Epoch, st.Node = rec.Spec.Group.Epoch, rec.Spec.Group.Primary
	if row, ok := g.vg.Table().Current(); ok && g.role != control.RoleTarget { // which has a row that it may never serve in
		st.Epoch, st.Node = row.Epoch, row.Node
	}
	st.JournalUsed, st.JournalCapacity = g.log.Space()
	st.Appended, st.Durable = uint64(g.vg.Appended()), uint64(g.vg.Durable())
	switch g.role {
	case control.RoleSecondary:
		g.secondaryStatus(&st, rec)
	case control.RoleTarget:
		st.State, st.Consistent = "paired", true
	default:
		g.primaryStatus(&st, rec)
	}
	if g.err != nil {
		st.State, st.BlockedOn = "failed", g.err.Error()
		if g.role == control.RoleSecondary {
			st.State = secondaryState(g.err)
		}
	}
	return st
}

// primaryStatus is called under mu.
func (g *group) primaryStatus(st *control.GroupStatus, rec *groupRecord) {
	st.Peer = rec.Spec.Group.Secondary
	st.State, st.Consistent = g.pairState(rec)
	st.CopySource = g.n.cfg.Name
	if rec.Promoted != nil || rec.Superseded != nil {
		g.apartStatus(st, rec)
		return
	}
	if g.sub == nil || g.snd == nil {
		st.Applied, st.Heard = st.Appended, len(rec.Members) == 0
		return
	}
	snd := g.snd.Status()
	_, durable, applied := g.sub.Cursor()
	st.Sent, st.Acked, st.Applied = uint64(max(snd.Sent, durable)), uint64(durable), uint64(applied)
	st.Heard, st.LinkUp = snd.Heard, snd.State == sender.StateStreaming || snd.State == sender.StateResync
	if st.Connections = snd.Connections; snd.RTT > 0 {
		ms := float64(snd.RTT.Microseconds()) / 1000
		st.RTTMS = &ms
	}
	_, st.CarriedBytes = g.vg.CarriedLeft(secondaryName)
	lag := g.sub.Lag()
	st.LagBytes, st.LagSeconds = lag.Bytes, lag.Age.Seconds()
	st.ChangedBytes = g.sub.ChangedBytes()
	st.BlockedOn = snd.BlockedOn
	switch {
	case snd.State == sender.StateDown && rec.Spec.Group.Transfer == control.TransferPull:
		st.BlockedOn = notPulled(snd, st.Peer)
	case st.State == "paired" && snd.State == sender.StateResync:
		st.BlockedOn = "" // a periodic group between two steps
	}
	st.Late, st.Stopped = g.watched.late, g.watched.stopped
	if snd.State == sender.StateRefused && snd.Reason == "split-brain" {
		st.State = "split-brain"
	}
	st.Overruns = rec.Overruns
	sync := g.sub.Sync()
	if st.State == "suspended" {
		st.BlockedOn = g.whySuspended(rec, sync)
	}
	if st.State == "paired" && sync.On && g.role == control.RolePrimary {
		state, blocked := syncState(sync)
		if st.State = state; blocked != "" {
			st.BlockedOn = blocked
		}
	}
	if g.role == control.RoleSource {
		if cut, _, ok := g.vg.Sealed(); ok && (hasAll(g.sub, cut) || g.n.carriedAway(g.name)) {
			st.WANBytesSent = 0 // counted by the target from now on
		}
		return
	}
	if v := g.verify; v != nil && st.State == "paired" {
		st.Copy = g.copyStatus("verify", v.ComparedBytes, v.TotalBytes)
		return
	}
	catchingUp := st.State == "resyncing" && g.sub.State() == volume.SubStreaming // by the journal: there is nothing to copy
	if p := g.sub.CopyProgress(); p.Total > 0 && st.State != "paired" && st.State != "suspended" && !catchingUp {
		kind := "initial"
		switch {
		case st.State == "resyncing" && rec.periodic():
			kind = "periodic"
		case st.State == "resyncing":
			kind = "resync"
		}
		st.Copy = g.copyStatus(kind, p.Done, p.Total)
	}
}

// whySuspended is called under mu.
func (g *group) whySuspended(rec *groupRecord, sync volume.SyncStatus) string {
	why := g.sub.Reason()
	switch {
	case rec.Halted:
		return byCommand
	case g.period.blocked != "":
		return g.period.blocked
	case g.noReturn != "":
		return g.noReturn
	case why == "" && sync.Stale != 0:
		return fmt.Sprintf("the secondary is stale from record %d on, since before this node started", sync.Stale)
	case why == "":
		return "suspended before this node started"
	}
	return why
}

func (g *group) pairState(rec *groupRecord) (state string, consistent bool) {
	if len(rec.Members) == 0 || g.sub == nil {
		return "empty", true
	}
	initial := rec.initial()
	switch s := g.sub.State(); {
	case s == volume.SubSuspended && rec.Resume:
		return "resyncing", !initial
	case s == volume.SubSuspended && rec.periodic() && !rec.Halted && g.period.blocked == "":
		if initial {
			return "initial-copy", false
		}
		return "paired", true // between two steps
	case s == volume.SubSuspended:
		return "suspended", !initial
	case s == volume.SubResyncing:
		return "resyncing", !initial && !rec.AtOnce
	case initial:
		return "initial-copy", false
	}
	return "paired", true
}

// secondaryStatus is called under mu.
func (g *group) secondaryStatus(st *control.GroupStatus, rec *groupRecord) {
	if g.rcv == nil {
		st.State, st.BlockedOn = "paired", "the group is being opened here"
		return
	}
	rs, as := g.rcv.Status(), g.app.Status()
	st.State, st.Consistent = "paired", as.State.Consistent
	st.CopySource, st.LinkUp = rs.CopySource, len(rs.Connected) > 0
	st.Appended, st.Durable, st.Applied = uint64(rs.Stored), uint64(rs.Durable), uint64(as.State.Applied)
	st.Heard, st.BlockedOn = true, rs.BlockedOn
	if st.BlockedOn == "" {
		st.BlockedOn = g.pulls.blocked(rs.Sources)
	}
	st.Peer = rec.Spec.Group.Primary
	for _, err := range []error{rs.Err, as.Err} {
		if err != nil {
			st.State, st.Error, st.BlockedOn = secondaryState(err), err.Error(), err.Error()
		}
	}
}

// copyStatus is called under mu. The time left is by the mean rate since the copy was first seen.
func (g *group) copyStatus(kind string, done, total int64) *control.CopyStatus {
	c := &control.CopyStatus{Kind: kind, BytesDone: done, BytesTotal: total, Percent: 100 * float64(done) / float64(total)}
	if g.copySeen.total != total {
		g.copySeen = copySeen{total: total, done: done, at: time.Now()}
	}
	if moved := done - g.copySeen.done; moved > 0 {
		eta := time.Since(g.copySeen.at).Seconds() * float64(total-done) / float64(moved)
		c.ETASeconds = &eta
	}
	return c
}

// copySeen is where a copy stood when it was first looked at.
type copySeen struct {
	total, done int64
	at          time.Time
}

// moveStatus is this node's word on a move.
func (n *Node) moveStatus(id string) (control.MigrationStatus, error) {
	m, rec, err := n.move(id)
	if err != nil {
		return control.MigrationStatus{}, err
	}
	st := control.MigrationStatus{ID: id, Node: n.cfg.Name, Role: rec.Role, Phase: rec.Phase(), Modes: map[string]string{},
		Steps: rec.Steps, Error: rec.Error}
	g := n.group(rec.Spec.Group.Name)
	switch rec.Role {
	case control.RoleSource:
		st.Refused = rec.Stage == migrate.Reopened
		if g != nil {
			st.Sealed, st.Drained, st.Ready = g.sealed(), g.drained(), g.ready() == nil
			st.WANBytesSent = g.wan.total() + n.wanBase(rec.Spec.Group.Name)
			g.mu.Lock()
			st.Serving = g.epoch
			g.mu.Unlock()
		}
		if rec.Stage == migrate.Deregistered {
			st.Sealed, st.Drained = true, true
		}
	case control.RoleSecondary:
		if g != nil && g.receiver() != nil {
			rs := g.receiver().Status()
			st.Drained, st.Durable = rs.Owed <= rs.Durable, uint64(rs.Durable)
			st.BlockedOn = rs.BlockedOn
		}
	case control.RoleTarget:
		n.targetStatus(m, g, &st)
	}
	return st, nil
}

// wanBase is what others had sent before this node became primary.
func (n *Node) wanBase(group string) int64 {
	if rec := n.state.view().Groups[group]; rec != nil {
		return rec.WANBase
	}
	return 0
}

func (n *Node) targetStatus(m *move, g *group, st *control.MigrationStatus) {
	target := m.target.Load()
	if target == nil {
		return
	}
	rec, blocked := target.View()
	st.Phase, st.Steps, st.Error, st.BlockedOn, st.PauseMS = rec.Phase(), rec.Steps, rec.Error, blocked, rec.PauseMS
	st.Refused = rec.Stage == migrate.Refused || rec.Stage == migrate.Returned
	st.Abandoned, st.SourceLost = rec.Abandoned, rec.SourceLost
	if c := m.ops.check.Load(); c != nil {
		check, waits := c.status()
		if st.Check = &check; waits != nil {
			st.BlockedOn = fmt.Sprintf("comparing source and target: %v", waits)
		}
	}
	if cut := rec.Cut(); cut > 0 {
		st.Cut, st.Marked = &cut, rec.Handover.Copy.Suspended || rec.Carried
	}
	if g != nil {
		g.mu.Lock()
		st.Serving = g.epoch
		g.mu.Unlock()
		st.WANBytesSent = g.wan.total() + rec.WANBytes
	}
	if st.Serving > 0 {
		epoch := st.Serving
		st.Epoch = &epoch
	}
	for _, d := range m.ops.disk {
		st.Modes[d.mv.Target] = d.vol.vol.Mode().String()
		total := bitsFor(d.mv.Size, regionSize)
		st.Total += total
		ps, ok := d.vol.vol.PresenceStatus()
		switch {
		case ok:
			st.Present += ps.Arrived
			st.Background += ps.Background
			st.OnDemand += ps.Demand
			if ps.Err != nil {
				st.BlockedOn = ps.Err.Error()
			}
			risks, blocked := m.ops.risks(d)
			if st.AtRisk = append(st.AtRisk, risks...); blocked != "" {
				st.BlockedOn = blocked
			}
		case rec.Did(control.StepFill):
			st.Present += total
		case d.present != nil:
			st.Present += d.present.Count()
		}
	}
	if c := m.ops.copy.Load(); c != nil && !rec.Did(control.StepFill) {
		c.status(st)
	}
	m.ops.carryStatus(st, &rec)
	st.Background += rec.Background
	st.OnDemand += rec.OnDemand
}
