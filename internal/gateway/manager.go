package gateway

import (
	"context"
	"fmt"

	"gantline/internal/control"
)

// Manager is the manager's client as a gateway needs it.
type Manager interface {
	GatewaySync(ctx context.Context, report control.GatewayReport) (control.RouteTable, error)
}

// FromManager are the routes that a manager gives.
func FromManager(m Manager) Routes { return managerRoutes{m} }

type managerRoutes struct{ m Manager }

// Sync implements Routes.
func (r managerRoutes) Sync(ctx context.Context, in Report) (Table, error) {
	report := control.GatewayReport{Applied: in.Applied, Gateway: control.Gateway{Name: in.Name, Site: in.Site,
		Install: in.Install, Instance: in.Instance, NBD: in.NBD, Since: in.Since}}
	for _, v := range in.VVols {
		report.Vvols = append(report.Vvols, control.GatewayedVvol{Name: v.Name, Sessions: v.Sessions, Epoch: v.Epoch})
	}
	table, err := r.m.GatewaySync(ctx, report)
	if err != nil {
		return Table{}, err
	}
	if table.Refused != "" {
		return Table{}, fmt.Errorf("%w: %s", ErrRefused, table.Refused)
	}
	out := Table{Revision: table.Revision}
	for _, rt := range table.Routes {
		v := VVol{Name: rt.Vvol, Size: rt.Size, Volume: rt.Volume, Node: rt.Node, Address: rt.Address, Group: rt.Group, Epoch: rt.Epoch,
			ReadOnly: rt.ReadOnly, InFlight: rt.InFlight}
		for _, h := range rt.Hosts {
			v.Hosts = append(v.Hosts, Host{Name: h.Name, ReadOnly: h.ReadOnly})
		}
		out.VVols = append(out.VVols, v)
	}
	return out, nil
}
