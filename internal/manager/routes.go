package manager

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"sync"
	"time"

	"gantline/internal/control"
)

const (
	pollHold    = 5 * time.Second // a gateway's poll is answered by then, changed or not
	confirmWait = 5 * time.Second // for gateways to take a new table; one that is cut off is left to the seal
)

// routes is the table that gateways route by, kept up to date from the store. Its revision is the store's at the last
// change of the table; it never falls while the store is the same.
type routes struct {
	m *Manager

	mu      sync.Mutex
	table   []led
	at      uint64        // revision of the table; 0: there is none
	body    string        // the routes as JSON, to see whether they changed
	seen    uint64        // store revision that has been looked at
	changed chan struct{} // closed and replaced with every new table, and with every new seen
}

// led is a virtual volume's route, with those of the gateways that lead it elsewhere.
type led struct {
	Route control.Route
	At    map[string]control.Route
}

func newRoutes(m *Manager) *routes { return &routes{m: m, changed: make(chan struct{})} }

// run follows the store.
func (r *routes) run(ctx context.Context, from uint64) error {
	for {
		if err := r.refresh(ctx, 0); err != nil {
			return err
		}
		changes, err := r.m.store.Watch(ctx, from)
		if errors.Is(err, control.ErrCompacted) {
			_, from, err = r.m.store.List(ctx, control.KindVvol+"/")
			if err == nil {
				continue
			}
		}
		if err != nil {
			return err
		}
		for c := range changes {
			from = c.Revision
			if !routing(c.Key) {
				r.saw(c.Revision)
				continue
			}
			if err := r.refresh(ctx, c.Revision); err != nil {
				return err
			}
		}
		if ctx.Err() != nil {
			return nil
		}
	}
}

func routing(key string) bool {
	kind, _, _ := strings.Cut(key, "/")
	switch kind {
	case control.KindVvol, control.KindGroup, control.KindNode, control.KindVolume:
		return true
	}
	return false
}

func (r *routes) saw(revision uint64) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.seen = max(r.seen, revision)
	r.signal()
}

func (r *routes) signal() {
	close(r.changed)
	r.changed = make(chan struct{})
}

// refresh computes the table anew.
func (r *routes) refresh(ctx context.Context, revision uint64) error {
	table, at, err := r.m.routeTable(ctx)
	if err != nil {
		return err
	}
	body, err := json.Marshal(table)
	if err != nil {
		return err
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if string(body) != r.body || r.at == 0 {
		r.body, r.table, r.at = string(body), table, max(at, r.at+1)
	}
	r.seen = max(r.seen, revision, at)
	r.signal()
	return nil
}

// routeTable is derived from the store alone.
func (m *Manager) routeTable(ctx context.Context) ([]led, uint64, error) {
	_, at, err := m.store.List(ctx, control.KindVvol+"/")
	if err != nil {
		return nil, 0, err
	}
	vvols, err := loadAll[control.Vvol](ctx, m, control.KindVvol)
	if err != nil {
		return nil, 0, err
	}
	groups, err := m.groupOfVolume(ctx)
	if err != nil {
		return nil, 0, err
	}
	nodes, err := loadAll[control.Node](ctx, m, control.KindNode)
	if err != nil {
		return nil, 0, err
	}
	address := map[string]string{}
	for _, n := range nodes {
		address[n.V.Name] = n.V.Address
	}
	table := make([]led, 0, len(vvols))
	for _, v := range vvols {
		lead := func(volume string) control.Route {
			route := control.Route{
				Vvol: v.V.Name, Size: v.V.Size, Node: control.NodeOf(volume), Volume: control.BaseOf(volume),
				InFlight: v.V.InFlight, Hosts: v.V.Hosts, Address: address[control.NodeOf(volume)],
			}
			if g := groups[volume]; g != nil {
				route.Group, route.Epoch = g.Name, g.Epoch
				route.ReadOnly = isSecondary(g, volume)
			}
			return route
		}
		l := led{Route: lead(v.V.Volume), At: map[string]control.Route{}}
		for gateway, volume := range v.V.At {
			l.At[gateway] = lead(volume)
		}
		table = append(table, l)
	}
	return table, at, nil
}

func isSecondary(g *control.Group, volume string) bool {
	for _, p := range g.Pairs {
		if p.Secondary == volume {
			return true
		}
	}
	return false
}

// groupOfVolume finds the group that each volume belongs to, targets of a move included.
func (m *Manager) groupOfVolume(ctx context.Context) (map[string]*control.Group, error) {
	groups, err := loadAll[control.Group](ctx, m, control.KindGroup)
	if err != nil {
		return nil, err
	}
	byName := map[string]*control.Group{}
	for i := range groups {
		byName[groups[i].V.Name] = &groups[i].V
	}
	volumes, err := loadAll[control.Volume](ctx, m, control.KindVolume)
	if err != nil {
		return nil, err
	}
	out := map[string]*control.Group{}
	for _, v := range volumes {
		if g := byName[v.V.Group]; g != nil {
			out[v.V.Node+"/"+v.V.Name] = g
		}
	}
	return out, nil
}

// wanted is the revision that gateways should have in force.
func (r *routes) wanted() uint64 {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.at
}

// tableOf is the table as one gateway has it, under mu.
func (r *routes) tableOf(gateway string) control.RouteTable {
	t := control.RouteTable{Revision: r.at, Routes: make([]control.Route, 0, len(r.table))}
	for _, l := range r.table {
		route, elsewhere := l.At[gateway]
		if !elsewhere {
			route = l.Route
		}
		t.Routes = append(t.Routes, route)
	}
	return t
}

// poll answers with a gateway's table as soon as it is another than the one that the gateway has.
func (r *routes) poll(ctx context.Context, gateway string, applied uint64) control.RouteTable {
	hold := time.NewTimer(pollHold)
	defer hold.Stop()
	over := false
	for {
		r.mu.Lock()
		changed := r.changed
		if over || r.at != 0 && r.at != applied {
			table := r.tableOf(gateway)
			r.mu.Unlock()
			return table
		}
		r.mu.Unlock()
		select {
		case <-changed:
		case <-hold.C:
			over = true
		case <-ctx.Done():
			over = true
		}
	}
}

// revisionAt waits until the table takes the store's revision into account, and gives the table's own.
func (r *routes) revisionAt(ctx context.Context, store uint64) (uint64, error) {
	for {
		r.mu.Lock()
		table, seen, changed := r.at, r.seen, r.changed
		r.mu.Unlock()
		if seen >= store {
			return table, nil
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return 0, ctx.Err()
		}
	}
}

// confirmed waits until every gateway that is up has in force what the store said at a revision, and lists those that
// have not within the wait.
func (m *Manager) confirmed(ctx context.Context, store uint64, wait time.Duration) (late []string) {
	if planOf(ctx) != nil {
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, wait)
	defer cancel()
	want, err := m.routes.revisionAt(ctx, store)
	if err != nil {
		return nil
	}
	for {
		late, changed := m.presence.behind(want)
		if len(late) == 0 {
			return nil
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return late
		}
	}
}

// inForce tells which gateways were too slow, for the log and the events.
func (m *Manager) inForce(ctx context.Context, store uint64, object string) {
	if late := m.confirmed(ctx, store, confirmWait); len(late) > 0 {
		m.tell(ctx, object, "gateways-late", "timeout", "%s: gateways %s have not confirmed within %v; they learn of it "+
			"when they are back", object, strings.Join(late, ", "), confirmWait)
	}
}

// uris are the ways in which hosts open a virtual volume.
func uris(vvol string, nbd []string) []string {
	out := []string{}
	for _, addr := range nbd {
		if path, ok := strings.CutPrefix(addr, "unix:"); ok {
			out = append(out, fmt.Sprintf("nbd+unix:///%s?socket=%s", vvol, path))
		} else {
			out = append(out, fmt.Sprintf("nbd://%s/%s", addr, vvol))
		}
	}
	return out
}
