package manager

import (
	"context"
	"fmt"
	"reflect"
	"slices"
	"strings"

	"gantline/internal/control"
)

const maxPairs = 256 // of a group

// newGroup checks a request and fills in the defaults.
func newGroup(in control.GroupRequest) (control.Group, error) {
	g := control.Group{Name: in.Name, Primary: in.Primary, Secondary: in.Secondary, NextNumber: 1, Revision: 1,
		Pairs: []control.Pair{}}
	if err := control.CheckName("group", in.Name); err != nil {
		return g, err
	}
	for _, node := range []string{in.Primary, in.Secondary} {
		if err := control.CheckNode(node); err != nil {
			return g, err
		}
	}
	if in.Primary == in.Secondary {
		return g, control.Errorf(control.KindUsage, "group %s: primary and secondary are both %s; a copy on the same node "+
			"protects from nothing", in.Name, in.Primary)
	}
	settings, err := in.SettingsChange.Apply(control.DefaultSettings())
	if err != nil {
		return g, err
	}
	g.Settings = settings
	if g.Log == control.LogQueue && in.PrimaryJournal != "" {
		return g, control.Errorf(control.KindUsage, "group %s: --primary-journal does not go with --log queue", in.Name)
	}
	g.PrimaryJournal, g.SecondaryJournal = in.PrimaryJournal, in.SecondaryJournal
	for _, j := range []struct{ name, node string }{{g.PrimaryJournal, g.Primary}, {g.SecondaryJournal, g.Secondary}} {
		if j.name == "" {
			continue
		}
		if node, _, err := control.SplitOwned("journal", j.name); err != nil {
			return g, err
		} else if node != j.node {
			return g, control.Errorf(control.KindRefused, "group %s: journal %s is not on node %s, where it is needed",
				in.Name, j.name, j.node)
		}
	}
	return g, nil
}

func (m *Manager) groupCreate(ctx context.Context, in control.GroupRequest) error {
	g, err := newGroup(in)
	if err != nil {
		return err
	}
	unlock, err := m.locks.lock(ctx, "group/"+g.Name)
	if err != nil {
		return err
	}
	defer unlock()
	old, exists, err := find[control.Group](ctx, m, control.KindGroup, g.Name)
	if err != nil {
		return err
	}
	if exists {
		if !sameGroup(&old.V, &g) {
			return control.Errorf(control.KindRefused, "group %s exists with other parameters (primary %s, secondary %s); "+
				"delete it first or choose another name", g.Name, old.V.Primary, old.V.Secondary)
		}
		_, err := m.pushGroup(ctx, &old.V)
		return err
	}
	if err := m.room(ctx, control.KindGroup); err != nil {
		return err
	}
	for _, node := range []string{g.Primary, g.Secondary} {
		if _, err := load[control.Node](ctx, m, control.KindNode, node); err != nil {
			return err
		}
	}
	for _, name := range []string{in.PrimaryJournal, in.SecondaryJournal} { // before anything is made
		if name == "" {
			continue
		}
		if err := m.takeJournal(ctx, m.change(), &g, name); err != nil {
			return err
		}
	}
	made, err := m.makeJournals(ctx, &g)
	if err == nil {
		_, err = attempt(ctx, func() (struct{}, error) { return struct{}{}, m.storeGroup(ctx, old.Key, &g) })
	}
	if err != nil {
		m.unmakeJournals(ctx, made)
		return err
	}
	if _, err := m.pushGroup(ctx, &g); isOldStore(err) {
		return err // the nodes have a group of that name, which is not to be deleted there
	} else if err != nil {
		return m.undoGroup(ctx, &g, err)
	}
	return nil
}

// sameGroup compares what a create states with what there is; an unnamed journal fits any.
func sameGroup(old, in *control.Group) bool {
	return old.Primary == in.Primary && old.Secondary == in.Secondary && old.Settings == in.Settings &&
		(in.PrimaryJournal == "" || in.PrimaryJournal == old.PrimaryJournal) &&
		(in.SecondaryJournal == "" || in.SecondaryJournal == old.SecondaryJournal)
}

// undoGroup takes a group back that a node has refused. What cannot be taken back now is left to `group delete`.
func (m *Manager) undoGroup(ctx context.Context, g *control.Group, cause error) error {
	if err := m.dropGroup(ctx, g.Name); err != nil {
		m.log.Warn("refused group could not be taken back", "group", g.Name, "error", err)
		return control.Errorf(control.KindOf(cause), "group %s: %v; run `gantline group delete %s`", g.Name, cause, g.Name)
	}
	return control.Errorf(control.KindOf(cause), "group %s: %v; nothing was changed", g.Name, cause)
}

// holders are the nodes that have a group: also both sides of a move that a promotion has ended.
func holders(g *control.Group, migrations []got[control.Migration]) []string {
	nodes := []string{g.Primary, g.Secondary}
	for _, mg := range migrations {
		if mg.V.Group != g.Name || mg.V.Promoted == nil {
			continue
		}
		for _, node := range []string{mg.V.Source, mg.V.Target} {
			if !slices.Contains(nodes, node) {
				nodes = append(nodes, node)
			}
		}
	}
	return nodes
}

// dropGroup is the whole of group delete: nodes, then store, then the journals that came with it.
func (m *Manager) dropGroup(ctx context.Context, name string) error {
	g, err := load[control.Group](ctx, m, control.KindGroup, name)
	if err != nil {
		return err
	}
	migrations, err := loadAll[control.Migration](ctx, m, control.KindMigration)
	if err != nil {
		return err
	}
	for _, node := range holders(&g.V, migrations) {
		err := m.do(ctx, node, control.CallGroupDelete, name, control.NameOnly{Name: name}, nil, callTimeout)
		if err != nil && unreachable(err) {
			return control.Errorf(control.KindOf(err), "group %s is not deleted: %v; if %s is gone for good, `gantline node remove %s --forget`, "+
				"then repeat the command", name, err, node, node)
		}
		if err != nil && control.KindOf(err) != control.KindNotFound {
			return err
		}
	}
	c := m.change().del(g.Key, g.Rev)
	volumes, err := loadAll[control.Volume](ctx, m, control.KindVolume)
	if err != nil {
		return err
	}
	for _, v := range volumes {
		if v.V.Group == name {
			v.V.Group = ""
			c.put(v.Key, v.Rev, v.V)
		}
	}
	journals, err := loadAll[control.Journal](ctx, m, control.KindJournal)
	if err != nil {
		return err
	}
	var auto []string
	for _, j := range journals {
		if j.V.Group != name {
			continue
		}
		if j.V.Auto {
			auto = append(auto, j.V.Node+"/"+j.V.Name)
		}
		j.V.Group = ""
		c.put(j.Key, j.Rev, j.V)
	}
	if err := m.rememberEpochs(ctx, c, &g.V, migrations); err != nil {
		return err
	}
	for _, mg := range migrations {
		if mg.V.Group == name {
			c.del(mg.Key, mg.Rev)
		}
	}
	c.event("group/"+name, "deleted", "command", "group %s deleted; its volumes keep what they hold", name)
	if _, err := m.commit(ctx, c); err != nil {
		return err
	}
	if planOf(ctx) == nil {
		m.pusher.unblock(name)
	}
	for _, j := range auto { // a crash in between leaves a free journal, which `journal delete` removes
		if err := m.journalDelete(ctx, j); err != nil {
			m.log.Warn("journal of a deleted group was left", "journal", j, "error", err)
		}
	}
	return nil
}

func (m *Manager) groupDelete(ctx context.Context, name string) error {
	unlock, err := m.locks.lock(ctx, "group/"+name)
	if err != nil {
		return err
	}
	defer unlock()
	mg, exists, err := m.latestMove(ctx, name)
	if err != nil {
		return err
	}
	if exists && !control.Ended(mg.V.Phase) {
		return control.Errorf(control.KindRefused, "group %s is in use by migration %s (phase %q); it ends with `gantline migrate "+
			"commit %s` once it is filled", name, mg.V.ID, mg.V.Phase, mg.V.ID)
	}
	_, err = attempt(ctx, func() (struct{}, error) { return struct{}{}, m.dropGroup(ctx, name) })
	return err
}

// groupSet changes how a live group copies. It is stored first and then told; a node that is away hears of it when it is
// back.
func (m *Manager) groupSet(ctx context.Context, name string, in control.SettingsChange) error {
	unlock, err := m.locks.lock(ctx, "group/"+name)
	if err != nil {
		return err
	}
	defer unlock()
	if err := m.quiet(ctx, name, "group "+name); err != nil {
		return err
	}
	g, err := attempt(ctx, func() (*control.Group, error) {
		g, err := load[control.Group](ctx, m, control.KindGroup, name)
		if err != nil {
			return nil, err
		}
		old := g.V.Settings
		if g.V.Settings, err = in.Apply(old); err != nil || g.V.Settings == old {
			return &g.V, err
		}
		if g.V.Log != old.Log {
			return nil, control.Errorf(control.KindRefused, "group %s: a live group keeps its log, %s; make a new group for the other", name, old.Log)
		}
		g.V.Revision++
		_, err = m.commit(ctx, m.change().put(g.Key, g.Rev, g.V).
			event("group/"+name, "set", "command", "group %s set: %s", name, settingsDiff(old, g.V.Settings)))
		return &g.V, err
	})
	if err != nil {
		return err
	}
	_, err = m.pushGroup(ctx, g)
	return err
}

// settingsDiff lists what has changed, for people.
func settingsDiff(old, now control.Settings) string {
	was, is := reflect.ValueOf(old), reflect.ValueOf(now)
	var list []string
	for i := range was.NumField() {
		if a, b := was.Field(i).Interface(), is.Field(i).Interface(); a != b {
			name, _, _ := strings.Cut(was.Type().Field(i).Tag.Get("json"), ",")
			list = append(list, fmt.Sprintf("%s %v (was %v)", name, b, a))
		}
	}
	return strings.Join(list, ", ")
}

// setSuspended stores the wish first, then tells the primary; a primary that is away hears of it when it is back, but
// the command then fails, because it is not in force.
func (m *Manager) setSuspended(ctx context.Context, name string, suspended bool) (*control.Group, error) {
	return attempt(ctx, func() (*control.Group, error) {
		g, err := load[control.Group](ctx, m, control.KindGroup, name)
		if err != nil || g.V.Suspended == suspended {
			return &g.V, err
		}
		if len(g.V.Pairs) == 0 {
			return nil, control.Errorf(control.KindRefused, "group %s has no pairs", name)
		}
		g.V.Suspended = suspended
		g.V.Revision++
		kind := map[bool]string{true: "suspended", false: "resumed"}[suspended]
		_, err = m.commit(ctx, m.change().put(g.Key, g.Rev, g.V).event("group/"+name, kind, "command", "group %s %s", name, kind))
		return &g.V, err
	})
}

func (m *Manager) groupSuspend(ctx context.Context, name string) error {
	unlock, err := m.locks.lock(ctx, "group/"+name)
	if err != nil {
		return err
	}
	defer unlock()
	if err := m.quiet(ctx, name, "group "+name); err != nil {
		return err
	}
	g, err := m.setSuspended(ctx, name, true)
	if err != nil {
		return err
	}
	if err := m.do(ctx, g.Primary, control.CallGroupSuspend, name, control.GroupSuspend{Name: name}, nil, callTimeout); err != nil {
		return err
	}
	_, err = m.pushGroup(ctx, g)
	return err
}

func (m *Manager) groupResume(ctx context.Context, name string, in control.ResumeRequest) error {
	unlock, err := m.locks.lock(ctx, "group/"+name)
	if err != nil {
		return err
	}
	defer unlock()
	if err := m.quiet(ctx, name, "group "+name); err != nil {
		return err
	}
	g, err := m.setSuspended(ctx, name, false)
	if err != nil {
		return err
	}
	// The spec first: a primary that was told twice, in the other order, would be resumed and suspended again.
	if _, err := m.pushGroup(ctx, g); err != nil {
		return err
	}
	return m.do(ctx, g.Primary, control.CallGroupResume, name, control.GroupResume{Name: name, AllowInconsistent: in.AllowInconsistent}, nil, callTimeout)
}

// pairAdd makes two volumes a pair. The number is taken in the store first and never given away again.
func (m *Manager) pairAdd(ctx context.Context, group string, in control.PairRequest) error {
	for _, v := range []string{in.Primary, in.Secondary} {
		if _, _, err := control.SplitOwned("volume", v); err != nil {
			return err
		}
	}
	unlock, err := m.locks.lock(ctx, "group/"+group, "owned/"+in.Primary, "owned/"+in.Secondary)
	if err != nil {
		return err
	}
	defer unlock()
	g, added, err := m.storePair(ctx, group, in)
	if err != nil {
		return err
	}
	away, err := m.pushGroup(ctx, g)
	if err != nil {
		if !added || isOldStore(err) { // the number may be that of another pair at the nodes
			return err
		}
		m.letGo(ctx, g, in.Primary)
		if uerr := m.dropPair(ctx, group, in); uerr != nil {
			m.log.Warn("refused pair could not be taken back", "group", group, "pair", in.Primary, "error", uerr)
		}
		return err
	}
	if !in.AssumeEqual || planOf(ctx) != nil {
		return nil
	}
	if len(away) > 0 {
		return control.Errorf(control.KindUnreachable, "pair %s to %s: node %s is away, so nothing could be compared; repeat the command when "+
			"it is back", in.Primary, in.Secondary, away[0])
	}
	return m.checkPair(ctx, g, in)
}

func (m *Manager) storePair(ctx context.Context, group string, in control.PairRequest) (*control.Group, bool, error) {
	g, err := load[control.Group](ctx, m, control.KindGroup, group)
	if err != nil {
		return nil, false, err
	}
	p, err := load[control.Volume](ctx, m, control.KindVolume, in.Primary)
	if err != nil {
		return nil, false, err
	}
	s, err := load[control.Volume](ctx, m, control.KindVolume, in.Secondary)
	if err != nil {
		return nil, false, err
	}
	if slices.ContainsFunc(g.V.Pairs, func(o control.Pair) bool {
		return o.Primary == in.Primary && o.Secondary == in.Secondary && !o.Removing
	}) {
		return &g.V, false, sameClaim(&g.V, in)
	}
	if in.AssumeEqual && g.V.Log == control.LogQueue {
		return nil, false, control.NotBuilt("pair add --assume-equal in a group with --log queue")
	}
	if err := pairFits(&g.V, &p.V, &s.V, in); err != nil {
		return nil, false, err
	}
	if mg, exists, err := m.latestMove(ctx, group); err != nil {
		return nil, false, err
	} else if exists && !control.Ended(mg.V.Phase) {
		return nil, false, control.Errorf(control.KindRefused, "group %s: migration %s is not committed yet (phase %q); a group "+
			"moves as it was registered", group, mg.V.ID, mg.V.Phase)
	}
	if err := m.volumesFree(ctx, &g.V, &p.V, &s.V); err != nil {
		return nil, false, err
	}
	g.V.Pairs = append(g.V.Pairs, control.Pair{Number: g.V.NextNumber, Primary: in.Primary, Secondary: in.Secondary, Size: p.V.Size,
		AssumeEqual: in.AssumeEqual})
	g.V.NextNumber++
	g.V.Revision++
	p.V.Group, s.V.Group = group, group
	_, err = m.commit(ctx, m.change().put(g.Key, g.Rev, g.V).put(p.Key, p.Rev, p.V).put(s.Key, s.Rev, s.V).
		event("group/"+group, "pair-added", "command", "pair %s to %s added to group %s", in.Primary, in.Secondary, group))
	return &g.V, true, err
}

// volumesFree asks the nodes, as far as they are there, whether they could take the pair. One that has taken it does not
// give it back when the other says no, so both are asked first.
func (m *Manager) volumesFree(ctx context.Context, g *control.Group, volumes ...*control.Volume) error {
	live := m.live(ctx, g.Primary, g.Secondary)
	for _, v := range volumes {
		st := live[v.Node]
		if st == nil {
			continue
		}
		if there := groupOf(st, g.Name); there != nil && there.Error != "" {
			return control.Errorf(control.KindRefused, "group %s has stopped at node %s: %s", g.Name, v.Node, there.Error)
		}
		full := v.Node + "/" + v.Name
		i := slices.IndexFunc(st.Volumes, func(s control.VolumeStatus) bool { return s.Name == v.Name })
		switch {
		case i < 0:
			return control.Errorf(control.KindRefused, "volume %s: its node does not have it", full)
		case st.Volumes[i].Role != control.RoleLone:
			return control.Errorf(control.KindRefused, "volume %s: its node has it as %s; a pair is made of volumes in no group",
				full, st.Volumes[i].Role)
		}
	}
	return nil
}

func pairFits(g *control.Group, p, s *control.Volume, in control.PairRequest) error {
	refuse := func(format string, args ...any) error {
		return control.Errorf(control.KindRefused, "pair "+in.Primary+" to "+in.Secondary+": "+format, args...)
	}
	switch {
	case p.Node != g.Primary:
		return refuse("%s is on node %s, the group's primary is %s", in.Primary, p.Node, g.Primary)
	case s.Node != g.Secondary:
		return refuse("%s is on node %s, the group's secondary is %s", in.Secondary, s.Node, g.Secondary)
	case slices.ContainsFunc(g.Pairs, func(o control.Pair) bool {
		return o.Removing && (o.Primary == in.Primary || o.Secondary == in.Secondary)
	}):
		return refuse("one of them is being removed from the group: repeat `gantline pair remove` first")
	case p.Group != "":
		return refuse("%s is in %s", in.Primary, inGroup(p.Group))
	case s.Group != "":
		return refuse("%s is in %s", in.Secondary, inGroup(s.Group))
	case p.Size != s.Size:
		return refuse("sizes differ: %d and %d bytes; both must be equal", p.Size, s.Size)
	case len(g.Pairs) >= maxPairs || g.NextNumber == 0:
		return refuse("group %s has %d pairs, the most allowed", g.Name, len(g.Pairs))
	}
	return nil
}

// dropPair takes back a pair that a node has refused; its number stays used.
func (m *Manager) dropPair(ctx context.Context, group string, in control.PairRequest) error {
	g, err := attempt(ctx, func() (*control.Group, error) {
		g, err := load[control.Group](ctx, m, control.KindGroup, group)
		if err != nil {
			return nil, err
		}
		c := m.change()
		for _, name := range []string{in.Primary, in.Secondary} {
			v, err := load[control.Volume](ctx, m, control.KindVolume, name)
			if err != nil {
				return nil, err
			}
			v.V.Group = ""
			c.put(v.Key, v.Rev, v.V)
		}
		g.V.Pairs = slices.DeleteFunc(g.V.Pairs, func(o control.Pair) bool { return o.Primary == in.Primary })
		g.V.Revision++
		_, err = m.commit(ctx, c.put(g.Key, g.Rev, g.V).
			event("group/"+group, "pair-dropped", "refused", "pair %s taken back: a node has refused it", in.Primary))
		return &g.V, err
	})
	if err != nil {
		return err
	}
	_, err = m.pushGroup(ctx, g)
	return err
}
