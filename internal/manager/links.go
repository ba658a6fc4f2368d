package manager

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"time"

	"gantline/internal/control"
)

// linkSettings are those of all links that something was set for, by FROM:TO.
func (m *Manager) linkSettings(ctx context.Context) (map[string]control.LinkSettings, error) {
	all, err := loadAll[control.Link](ctx, m, control.KindLink)
	if err != nil {
		return nil, err
	}
	out := map[string]control.LinkSettings{}
	for _, l := range all {
		out[l.V.From+":"+l.V.To] = l.V.LinkSettings
	}
	return out, nil
}

// linkUse is what copies over a link, or has to: the groups whose node From sends to their secondary To.
func linkUse(groups []control.Group, migrations []got[control.Migration]) map[string][]string {
	use := map[string][]string{}
	for i := range groups {
		g := &groups[i]
		for node, role := range rolesOf(g, migrations) {
			if g.Secondary != "" && (role == control.RolePrimary || role == control.RoleSource) {
				use[node+":"+g.Secondary] = append(use[node+":"+g.Secondary], g.Name)
			}
		}
	}
	return use
}

// linkViews are the links that groups copy over, and those that something was set for.
func (m *Manager) linkViews(ctx context.Context, name string) ([]control.LinkView, error) {
	if name != "" {
		if _, _, err := control.SplitLink(name); err != nil {
			return nil, err
		}
	}
	s, err := m.read(ctx)
	if err != nil {
		return nil, err
	}
	set, err := m.linkSettings(ctx)
	if err != nil {
		return nil, err
	}
	use := linkUse(s.groups, s.migrations)
	for link := range set {
		if _, ok := use[link]; !ok {
			use[link] = nil
		}
	}
	if name != "" {
		groups, ok := use[name]
		if use = map[string][]string{}; ok {
			use[name] = groups
		}
	}
	var from []string
	for link := range use {
		a, _, _ := control.SplitLink(link)
		from = append(from, a)
	}
	live := m.live(ctx, from...)
	out := []control.LinkView{}
	for _, link := range slices.Sorted(maps.Keys(use)) {
		a, b, _ := control.SplitLink(link)
		node := s.nodes[b]
		v := control.LinkView{Name: link, From: a, To: b, Address: node.PeerAddress(), Limit: set[link].Limit,
			Connections: max(set[link].Connections, 1), Groups: slices.Sorted(slices.Values(use[link]))}
		if v.Groups == nil {
			v.Groups = []string{}
		}
		lookAtLink(&v, live[a])
		out = append(out, v)
	}
	return out, nil
}

// lookAtLink adds what the sending node says.
func lookAtLink(v *control.LinkView, st *control.NodeStatus) {
	for _, name := range v.Groups {
		g := groupOf(st, name)
		if g == nil {
			continue
		}
		if v.SentBytes == nil {
			v.SentBytes = ptr[int64](0)
		}
		*v.SentBytes += g.WANBytesSent
		if v.State == nil || g.LinkUp {
			v.State = link(g.LinkUp)
		}
		if g.RTTMS != nil && (v.RTTMS == nil || *g.RTTMS < *v.RTTMS) {
			v.RTTMS = g.RTTMS
		}
	}
}

// linkSet stores a link's settings, then tells the node at its beginning; one that is away hears of it when it is back.
func (m *Manager) linkSet(ctx context.Context, name string, in control.LinkRequest) error {
	from, to, err := control.SplitLink(name)
	if err != nil {
		return err
	}
	if in == (control.LinkRequest{}) {
		return control.Errorf(control.KindUsage, "link set %s: nothing to change: give --limit or --connections", name)
	}
	for _, node := range []string{from, to} {
		if _, err := load[control.Node](ctx, m, control.KindNode, node); err != nil {
			return err
		}
	}
	_, err = attempt(ctx, func() (struct{}, error) {
		old, _, err := find[control.Link](ctx, m, control.KindLink, name)
		if err != nil {
			return struct{}{}, err
		}
		l := control.Link{From: from, To: to}
		if l.LinkSettings, err = in.Apply(old.V.LinkSettings); err != nil || l == old.V {
			return struct{}{}, err
		}
		_, err = m.commit(ctx, m.change().put(old.Key, old.Rev, l).event("link/"+name, "set", "command", "link %s set: %s", name,
			fmt.Sprintf("limit %d (was %d), connections %d (was %d)", l.Limit, old.V.Limit, max(l.Connections, 1), max(old.V.Connections, 1))))
		return struct{}{}, err
	})
	if err != nil {
		return err
	}
	groups, err := loadAll[control.Group](ctx, m, control.KindGroup)
	if err != nil {
		return err
	}
	for _, g := range groups {
		if g.V.Primary != from || g.V.Secondary != to {
			continue
		}
		if err := m.tellLink(ctx, g.V.Name); err != nil {
			return err
		}
	}
	m.pusher.kick() // sources and targets of moves, and groups that are busy
	return nil
}

// linkPatience is how long a change of a link waits for whoever has a group in hand.
const linkPatience = 5 * time.Second

// tellLink tells a group's nodes what has changed beside the group, unless a long command or a move has it in hand: they are
// told of it all the same then, later.
func (m *Manager) tellLink(ctx context.Context, name string) error {
	short, stop := context.WithTimeout(ctx, linkPatience)
	defer stop()
	unlock, err := m.locks.lock(short, "group/"+name)
	if err != nil && ctx.Err() == nil {
		return nil
	}
	if err != nil {
		return err
	}
	defer unlock()
	g, err := load[control.Group](ctx, m, control.KindGroup, name)
	if err != nil {
		return err
	}
	if mg, exists, err := m.latestMove(ctx, name); err != nil || exists && holding(name, []got[control.Migration]{mg}) {
		return err
	}
	_, err = m.pushGroup(ctx, &g.V)
	return err
}
