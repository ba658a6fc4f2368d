package manager

import (
	"context"
	"fmt"
	"slices"
	"strings"

	"gantline/internal/control"
)

// look is what nodes said of themselves: secondaries first, the others after them. A lag of 0 is then true: whatever the
// secondary had applied, the primary had not appended more a moment later.
type look struct {
	first, then map[string]*control.NodeStatus
}

func (m *Manager) look(ctx context.Context, groups []control.Group, migrations []got[control.Migration], more ...string) look {
	var first, then []string
	then = append(then, more...)
	for i := range groups {
		first = append(first, groups[i].Secondary)
		for node := range rolesOf(&groups[i], migrations) {
			if node != groups[i].Secondary {
				then = append(then, node)
			}
		}
	}
	l := look{first: m.live(ctx, first...)}
	l.then = m.live(ctx, then...)
	return l
}

// node is the latest word of a node.
func (l look) node(name string) *control.NodeStatus {
	if st := l.then[name]; st != nil {
		return st
	}
	return l.first[name]
}

func groupOf(st *control.NodeStatus, name string) *control.GroupStatus {
	if st == nil {
		return nil
	}
	for i := range st.Groups {
		if st.Groups[i].Name == name {
			return &st.Groups[i]
		}
	}
	return nil
}

func migrationOf(st *control.NodeStatus, id string) *control.MigrationStatus {
	if st == nil {
		return nil
	}
	for i := range st.Migrations {
		if st.Migrations[i].ID == id {
			return &st.Migrations[i]
		}
	}
	return nil
}

func ptr[T any](v T) *T { return &v }

// groupView composes `group show`.
func groupView(g *control.Group, migrations []got[control.Migration], l look) control.GroupView {
	p, s := groupOf(l.then[g.Primary], g.Name), groupOf(l.first[g.Secondary], g.Name)
	v := control.GroupView{
		Name: g.Name, Mode: g.Mode, Log: g.Log, Transfer: g.Transfer, Retain: g.Retain, Epoch: g.Epoch,
		IntervalSeconds: g.Interval().Seconds(), SendEverySeconds: g.SendEvery().Seconds(), SendBytes: g.SendBytes,
		OnLinkLoss: g.OnLinkLoss, RPOSeconds: g.RPO().Seconds(), Limit: g.Limit, Compress: g.Compress,
		Primary: g.Primary, Secondary: g.Secondary, State: stateOf(g, p, s), Pairs: []control.PairView{},
		Promoted: g.Promotion, PrimaryJournal: g.PrimaryJournal, SecondaryJournal: g.SecondaryJournal, Suspended: g.Suspended,
		Migration: latestID(g), Nodes: map[string]*string{}, WANBytesSent: wanBytes(g, migrations, l),
	}
	for _, pair := range g.Pairs {
		v.Pairs = append(v.Pairs, control.PairView{Primary: pair.Primary, Secondary: pair.Secondary, Size: pair.Size})
	}
	for node := range rolesOf(g, migrations) {
		v.Nodes[node] = nil
		if st := groupOf(l.node(node), g.Name); st != nil {
			v.Nodes[node] = ptr(st.Role)
		}
	}
	if s != nil {
		v.SecondarySequence = control.SecondaryView{Stored: &s.Appended, Durable: &s.Durable, Applied: &s.Applied}
		v.CopySource, v.Consistent, v.Link = &s.CopySource, &s.Consistent, link(s.LinkUp)
		v.Error = &s.Error
	}
	if p != nil {
		v.Sequence = control.SequenceView{Appended: &p.Appended, Durable: &p.Durable, Sent: &p.Sent, Acked: &p.Acked}
		v.ChangedBytes, v.BlockedOn, v.Copy, v.Link = &p.ChangedBytes, &p.BlockedOn, p.Copy, link(p.LinkUp)
		v.Late, v.Stopped = &p.Late, &p.Stopped
		v.Overruns = &p.Overruns
		v.Journal = control.JournalSpaceView{UsedBytes: &p.JournalUsed, CapacityBytes: &p.JournalCapacity}
		if p.Error != "" || s == nil {
			v.Error = &p.Error
		}
	}
	if v.Copy == nil && p != nil {
		v.Copy = moveCopy(g, migrations, l)
	}
	if p == nil && l.then[g.Primary] != nil && len(g.Pairs) > 0 {
		v.Error = ptr(disowned(g, l))
	}
	v.Lag = lagOf(p, s)
	return v
}

// disowned says that the node which the store has as primary is there and knows nothing of the group, as after a restore
// of the store from an old backup. What nodes have stored wins; hosts are led by it.
func disowned(g *control.Group, l look) string {
	for _, all := range []map[string]*control.NodeStatus{l.then, l.first} {
		for node, ns := range all {
			if st := groupOf(ns, g.Name); st != nil && st.Role == control.RolePrimary && node != g.Primary {
				return fmt.Sprintf("the store has %s as primary in epoch %d, which does not have the group; node %s serves it in epoch "+
					"%d: the store is older than the nodes", g.Primary, g.Epoch, node, st.Epoch)
			}
		}
	}
	return fmt.Sprintf("the store has %s as primary in epoch %d, which does not have the group: is the store older than the nodes?",
		g.Primary, g.Epoch)
}

// moveCopy is the copying of a move under way, as a group shows it.
func moveCopy(g *control.Group, migrations []got[control.Migration], l look) *control.CopyStatus {
	for i := range migrations {
		mg := &migrations[i].V
		if mg.Group != g.Name || mg.Phase == control.PhaseFilled || control.Ended(mg.Phase) || mg.Phase != control.PhaseCopying && !control.After(mg.Phase, control.PhaseMigrating) {
			continue
		}
		st := migrationOf(l.node(mg.Target), mg.ID)
		if st == nil || st.Total == 0 {
			return nil
		}
		c := &control.CopyStatus{Kind: "migration", Percent: 100 * float64(st.Present) / float64(st.Total)}
		for _, v := range mg.Volumes {
			c.BytesTotal += v.Size
		}
		c.BytesDone = int64(float64(c.BytesTotal) / float64(st.Total) * float64(st.Present))
		return c
	}
	return nil
}

func link(up bool) *string {
	if up {
		return ptr(control.StateUp)
	}
	return ptr(control.StateDown)
}

// stateOf is the primary's word, unless either end has stopped.
func stateOf(g *control.Group, p, s *control.GroupStatus) *string {
	for _, bad := range []string{"split-brain", "failed"} {
		if p != nil && p.State == bad || s != nil && s.State == bad {
			return ptr(bad)
		}
	}
	switch {
	case len(g.Pairs) == 0:
		return ptr("empty")
	case p != nil:
		return &p.State
	}
	return nil
}

func lagOf(p, s *control.GroupStatus) control.LagView {
	var v control.LagView
	if p != nil && s != nil {
		var writes uint64
		if p.Appended > s.Applied {
			writes = p.Appended - s.Applied
		}
		if writes == 0 && p.ChangedBytes > 0 {
			return v // blocks that are still to be copied have no numbers yet: how many writes they are is not known
		}
		v.Writes = &writes
		if writes == 0 {
			v.Bytes, v.Seconds = ptr[int64](0), ptr(0.0)
			return v
		}
	}
	if p != nil && p.Heard {
		v.Bytes, v.Seconds = &p.LagBytes, &p.LagSeconds
	}
	return v
}

func latestID(g *control.Group) string {
	if g.Migrations == 0 {
		return ""
	}
	return g.MoveID()
}

// wanBytes adds up what all nodes have sent since the group was made. It is unknown while a node that may have sent more
// does not answer.
func wanBytes(g *control.Group, migrations []got[control.Migration], l look) *int64 {
	var sum int64
	for _, n := range g.WANGone {
		sum += n
	}
	for node := range rolesOf(g, migrations) {
		st := groupOf(l.node(node), g.Name)
		switch {
		case st != nil:
			sum += st.WANBytesSent
		case node != g.Secondary:
			return nil
		}
	}
	return &sum
}

// volumeView composes `volume show`.
func volumeView(v *control.Volume, g *control.Group, migrations []got[control.Migration], nodes map[string]control.Node,
	l look, vvols []string) control.VolumeView {
	full := v.Node + "/" + v.Name
	view := control.VolumeView{
		Name: full, Node: v.Node, ID: v.ID, Size: v.Size, Group: v.Group, Device: v.Device, Vvols: vvols,
		Exports: uris(v.Name, nodes[v.Node].NBD), CopySources: []control.CopyEndView{}, CopyTargets: []control.CopyEndView{},
	}
	if st := l.node(v.Node); st != nil {
		for i := range st.Volumes {
			if s := &st.Volumes[i]; s.Name == v.Name {
				view.Role, view.Mode, view.State = &s.Role, &s.Mode, &s.State
				if s.Mode == "moved" { // hosts find it at the successor only
					view.Exports = []string{}
				}
				view.Applied, view.ChangedBytes, view.PresentBytes = s.Applied, s.ChangedBytes, s.PresentBytes
			}
		}
	}
	end := func(full string, valid bool) control.CopyEndView {
		node := control.NodeOf(full)
		return control.CopyEndView{Node: node, Address: nodes[node].Address, Volume: full, Valid: valid}
	}
	if g == nil {
		return view
	}
	if g.Lone != "" {
		view.Group = "" // which nobody has put it into
	}
	sources := ""
	if s := groupOf(l.node(g.Secondary), g.Name); s != nil {
		sources = s.CopySource
	}
	for _, p := range g.Pairs {
		switch full {
		case p.Primary:
			if p.Secondary != "" {
				view.CopyTargets = append(view.CopyTargets, end(p.Secondary, true))
			}
		case p.Secondary:
			view.CopySources = append(view.CopySources, end(p.Primary, validSource(sources, g.Primary)))
		}
	}
	addMove(&view, full, g, migrations, sources, end)
	return view
}

// validSource says whether a node is a valid copy source: "a" names one, "transitional a->b" both.
func validSource(sources, node string) bool {
	list := strings.Split(strings.TrimPrefix(sources, "transitional "), "->")
	return slices.Contains(list, node)
}

// addMove adds what a registered move has to say of a volume (S603, S604).
func addMove(view *control.VolumeView, full string, g *control.Group, migrations []got[control.Migration], sources string,
	end func(string, bool) control.CopyEndView) {
	for _, mg := range migrations {
		if mg.V.Group != g.Name || control.Ended(mg.V.Phase) {
			continue
		}
		for _, mv := range mg.V.Volumes {
			src, dst := end(mv.Source, true), end(mv.Target, true)
			secondary := secondaryOf(g, mv.Number)
			switch full {
			case mv.Source:
				view.MigrationTarget = &control.MoveEndView{Node: dst.Node, Address: dst.Address, Volume: dst.Volume}
			case mv.Target:
				view.MigrationSource = &control.MoveEndView{Node: src.Node, Address: src.Address, Volume: src.Volume}
				if len(view.CopyTargets) == 0 && secondary != "" {
					view.CopyTargets = append(view.CopyTargets, end(secondary, false))
				}
			case secondary:
				other := mv.Target
				if g.Primary == mg.V.Target {
					other = mv.Source
				}
				view.CopySources = append(view.CopySources, end(other, validSource(sources, control.NodeOf(other))))
			}
		}
	}
}

func secondaryOf(g *control.Group, number uint16) string {
	for _, p := range g.Pairs {
		if p.Number == number {
			return p.Secondary
		}
	}
	return ""
}
