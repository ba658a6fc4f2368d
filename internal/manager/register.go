package manager

import (
	"context"
	"slices"
	"time"

	"gantline/internal/control"
)

// A name belongs to the installation (data directory) that registered it first, until it is removed. One data directory
// has one live process (its lock), so one installation never has two live instances.

// nodeSync registers a node, or notes that it is still there.
func (m *Manager) nodeSync(ctx context.Context, name string, report control.NodeReport) (control.NodeSyncReply, error) {
	n := report.Node
	if n.Name != name {
		return control.NodeSyncReply{}, control.Errorf(control.KindUsage, "report of node %q posted as %q", n.Name, name)
	}
	if err := checkRegistration("node", n.Name, n.Install, n.Instance); err != nil {
		return control.NodeSyncReply{}, err
	}
	if err := control.CheckLoopback(n.PeerAddress()); err != nil {
		return control.NodeSyncReply{}, err
	}
	if err := control.CheckLoopback(n.Address); err != nil {
		return control.NodeSyncReply{}, err
	}
	refused, err := attempt(ctx, func() (string, error) { return m.registerNode(ctx, n) })
	if err != nil || refused != "" {
		return control.NodeSyncReply{Refused: refused}, err
	}
	if again := m.presence.nodeSeen(name, n.Instance); again {
		m.pusher.forget(name)
		m.pusher.kick()
	}
	if err := m.adoptAll(ctx, name, report.Promoted); err != nil {
		return control.NodeSyncReply{}, err
	}
	_, err = attempt(ctx, func() (struct{}, error) { return struct{}{}, m.noteAlarms(ctx, name, report.Alarms) })
	return control.NodeSyncReply{}, err
}

func checkRegistration(kind, name, install, instance string) error {
	if err := control.CheckName(kind, name); err != nil {
		return err
	}
	if install == "" || instance == "" || len(install) > 128 || len(instance) > 128 {
		return control.Errorf(control.KindUsage, "%s %s: a registration names its installation and instance", kind, name)
	}
	return nil
}

func foreign(kind, name string, up bool) string {
	if up {
		return kind + " " + name + " is another process, which is alive: choose another name, or stop that one and run `gantline " +
			kind + " remove " + name + "`"
	}
	return kind + " " + name + " was registered from another data directory: start it there, or, if that is lost, run `gantline " +
		kind + " remove " + name + "`" + map[string]string{"node": " --forget"}[kind]
}

func (m *Manager) registerNode(ctx context.Context, n control.Node) (refused string, err error) {
	if f, given, err := find[forgotten](ctx, m, control.KindForgotten, n.Install); err != nil || given {
		return "node " + n.Name + ": " + f.V.String(), err
	}
	old, exists, err := find[control.Node](ctx, m, control.KindNode, n.Name)
	if err != nil {
		return "", err
	}
	if exists && old.V.Install != n.Install {
		return foreign("node", n.Name, m.presence.nodeUp(n.Name)), nil
	}
	if exists && old.V.Instance == n.Instance && old.V.Address == n.Address && old.V.Peer == n.Peer && old.V.Site == n.Site &&
		slices.Equal(old.V.NBD, n.NBD) {
		return "", nil
	}
	if !exists {
		if _, taken, err := find[control.Gateway](ctx, m, control.KindGateway, n.Name); err != nil || taken {
			return "a gateway has the name " + n.Name + ": nodes and gateways share one namespace", err
		}
	}
	n.Since = time.Now().UTC()
	kind := "registered"
	if exists {
		n.Since, kind = old.V.Since, "restarted"
	}
	c := m.change().put(old.Key, old.Rev, n).
		event("node/"+n.Name, kind, "sync", "node %s %s at %s", n.Name, kind, n.Address)
	_, err = m.commit(ctx, c)
	return "", err
}

// gatewaySync registers a gateway, takes its confirmation, and answers with the routes as soon as they are new to it.
func (m *Manager) gatewaySync(ctx context.Context, name string, report control.GatewayReport) (control.RouteTable, error) {
	g := report.Gateway
	if g.Name != name {
		return control.RouteTable{}, control.Errorf(control.KindUsage, "report of gateway %q posted as %q", g.Name, name)
	}
	if err := checkRegistration("gateway", g.Name, g.Install, g.Instance); err != nil {
		return control.RouteTable{}, err
	}
	if len(report.Vvols) > maxObjects {
		return control.RouteTable{}, control.Errorf(control.KindUsage, "report of %d vvols", len(report.Vvols))
	}
	refused, err := attempt(ctx, func() (string, error) { return m.registerGateway(ctx, g) })
	if err != nil || refused != "" {
		return control.RouteTable{Refused: refused}, err
	}
	m.presence.gatewaySeen(name, g.Instance, report)
	defer m.presence.gatewayDone(name)
	return m.routes.poll(ctx, name, report.Applied), nil
}

func (m *Manager) registerGateway(ctx context.Context, g control.Gateway) (refused string, err error) {
	old, exists, err := find[control.Gateway](ctx, m, control.KindGateway, g.Name)
	if err != nil {
		return "", err
	}
	if exists && old.V.Install != g.Install {
		return foreign("gateway", g.Name, m.presence.gatewayUp(g.Name)), nil
	}
	if exists && old.V.Instance == g.Instance && old.V.Site == g.Site && slices.Equal(old.V.NBD, g.NBD) {
		return "", nil
	}
	if !exists {
		if _, taken, err := find[control.Node](ctx, m, control.KindNode, g.Name); err != nil || taken {
			return "a node has the name " + g.Name + ": nodes and gateways share one namespace", err
		}
	}
	g.Since = time.Now().UTC()
	kind := "registered"
	if exists {
		g.Since, kind = old.V.Since, "restarted"
	}
	c := m.change().put(old.Key, old.Rev, g).
		event("gateway/"+g.Name, kind, "sync", "gateway %s %s", g.Name, kind)
	_, err = m.commit(ctx, c)
	return "", err
}
