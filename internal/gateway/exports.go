package gateway

import (
	"context"
	"fmt"
	"slices"

	"gantline/internal/nbd"
	"gantline/internal/route"
)

// vvol is a virtual volume with the sessions of the hosts that have it open.
type vvol struct {
	VVol
	listed   bool // it is in the table; a volume that is not keeps the sessions it has
	sessions map[*route.Session]struct{}
}

// List names what a peer may open.
func (g *gateway) List(peer nbd.Peer) []string {
	g.mu.Lock()
	defer g.mu.Unlock()
	var names []string
	for name, v := range g.vvols {
		if _, ok := v.access(peerAddr(peer.Addr)); ok && v.listed {
			names = append(names, name)
		}
	}
	slices.Sort(names)
	return names
}

// Open begins a session for one host connection. It does not wait for the node: the first request does.
func (g *gateway) Open(_ context.Context, name string, peer nbd.Peer) (*nbd.Export, error) {
	g.mu.Lock()
	defer g.mu.Unlock()
	v := g.vvols[name]
	if v == nil || !v.listed {
		return nil, fmt.Errorf("%w: %q", nbd.ErrUnknownExport, name)
	}
	from := peerAddr(peer.Addr)
	readOnly, ok := v.access(from)
	if !ok {
		return nil, fmt.Errorf("%w: %s from %s", nbd.ErrDenied, name, from)
	}
	if g.closing {
		return nil, errClosing
	}
	s := route.NewSession(route.Config{
		Route:    v.route(),
		Size:     v.Size,
		ReadOnly: readOnly,
		Hold:     g.cfg.Hold,
		Self:     g.self,
		Moved:    func(r route.Route) { g.moved(name, r) },
		Ended: func(err error) {
			g.cfg.Log.Warn("session ended, closing the host's connection", "vvol", name, "host", from, "cause", err)
			if h, ok := peer.Addr.(*hostAddr); ok {
				_ = h.end()
			}
		},
	})
	v.sessions[s] = struct{}{}
	g.changed()
	return &nbd.Export{
		Name:     name,
		Size:     v.Size,
		ReadOnly: readOnly,
		Target:   s,
		Close:    func() { g.close(v, s) },
	}, nil
}

func (g *gateway) close(v *vvol, s *route.Session) {
	s.Close()
	g.mu.Lock()
	defer g.mu.Unlock()
	delete(v.sessions, s)
	if !v.listed && len(v.sessions) == 0 && g.vvols[v.Name] == v {
		delete(g.vvols, v.Name)
	}
	g.changed()
}

// moved: a session was told by a node that the volume has another place, or that its epoch is higher. New sessions
// begin there, and so do all after a restart with the manager away.
func (g *gateway) moved(name string, r route.Route) {
	g.mu.Lock()
	defer g.mu.Unlock()
	v := g.vvols[name]
	if v == nil || r.Group != v.Group || r.Older(v.route()) || r == v.route() {
		return
	}
	v.Node, v.Address, v.Volume, v.Epoch = r.Node, r.Address, r.Volume, r.Epoch
	g.changed()
}

// apply takes a table into force: sessions whose route changes are switched.
func (g *gateway) apply(t Table) {
	type change struct {
		s *route.Session
		r route.Route
		p route.Policy
	}
	var changes []change
	placed := false
	g.mu.Lock()
	for _, v := range g.vvols {
		v.listed = false
	}
	for _, n := range t.VVols {
		v := g.vvols[n.Name]
		if v == nil {
			v = &vvol{sessions: map[*route.Session]struct{}{}}
			g.vvols[n.Name] = v
		} else if n.route().Older(v.route()) {
			// A node has confirmed a higher epoch than the store knows: its word is newer.
			g.cfg.Log.Info("route from the manager is older than what a node has confirmed", "vvol", n.Name,
				"epoch", n.Epoch, "confirmed", v.Epoch)
			n.Node, n.Address, n.Volume, n.Epoch = v.Node, v.Address, v.Volume, v.Epoch
		} else if n.route() != v.route() {
			placed = placed || n.Node != v.Node || n.Address != v.Address || n.Volume != v.Volume
			policy := n.policyFrom(v.VVol)
			for s := range v.sessions {
				changes = append(changes, change{s, n.route(), policy})
			}
		}
		v.VVol, v.listed = n, true
	}
	for name, v := range g.vvols {
		if !v.listed && len(v.sessions) == 0 {
			delete(g.vvols, name)
		}
	}
	g.revision = t.Revision
	g.mu.Unlock()
	// A session that opens from now on has the new route; those that were open are switched without the lock, which
	// their callbacks need.
	if placed {
		g.point("before")
	}
	for _, c := range changes {
		c.s.Switch(c.r, c.p)
	}
	if placed {
		g.point("after")
	}
}

func (g *gateway) point(edge string) {
	if g.cfg.Point != nil {
		g.cfg.Point("switch", edge)
	}
}

// endAll ends all sessions, so that no request is waited for any longer.
func (g *gateway) endAll(err error) {
	g.mu.Lock()
	g.closing = true
	var all []*route.Session
	for _, v := range g.vvols {
		for s := range v.sessions {
			all = append(all, s)
		}
	}
	g.mu.Unlock()
	for _, s := range all {
		s.End(err)
	}
}

// table is what is in force, as it is kept on disk.
func (g *gateway) table() Table {
	g.mu.Lock()
	defer g.mu.Unlock()
	t := Table{Revision: g.revision}
	for _, v := range g.vvols {
		if v.listed {
			t.VVols = append(t.VVols, v.VVol)
		}
	}
	slices.SortFunc(t.VVols, func(a, b VVol) int {
		if a.Name < b.Name {
			return -1
		}
		return 1
	})
	return t
}

// report is what the manager is told.
func (g *gateway) report() Report {
	g.mu.Lock()
	defer g.mu.Unlock()
	r := Report{Name: g.cfg.Name, Site: g.cfg.Site, Install: g.install, Instance: g.instance, Applied: g.revision,
		NBD: g.uris, Since: g.since}
	for name, v := range g.vvols {
		r.VVols = append(r.VVols, VVolReport{Name: name, Sessions: len(v.sessions), Epoch: v.Epoch})
	}
	slices.SortFunc(r.VVols, func(a, b VVolReport) int {
		if a.Name < b.Name {
			return -1
		}
		return 1
	})
	return r
}
