package cli

import (
	"context"
	"errors"
	"fmt"
	"strings"

	"gantline/internal/control"
	"gantline/internal/gateway"
	"gantline/internal/manager/client"
)

func serveGateway(ctx context.Context, r *role) error {
	s := r.settings
	hold, err := s.duration("hold")
	if err != nil {
		return err
	}
	c, err := client.New(r.managers()...)
	if err != nil {
		return err
	}
	defer c.Close()
	name := s.get("name")
	err = gateway.Run(ctx, gateway.Config{
		Name: name, Site: s.get("site"), DataDir: r.dir, NBD: s.get("nbd"), NBDUnix: s.get("nbd-unix"), HTTP: s.get("http"),
		Hold: hold, Routes: managerRoutes{c}, Log: r.log, Point: r.point,
		Ready: func(at gateway.Ready) {
			nbd := at.NBD
			if at.NBDUnix != "" {
				nbd = strings.TrimPrefix(nbd+",unix:"+at.NBDUnix, ",")
			}
			r.ready(name, "nbd", nbd, "http", at.HTTP)
		},
	})
	if errors.Is(err, gateway.ErrRefused) {
		return &control.Error{Kind: control.KindRefused, Message: err.Error()}
	}
	return err
}

// managerRoutes is the manager as a gateway sees it.
type managerRoutes struct{ client *client.Client }

// Sync implements gateway.Routes.
func (m managerRoutes) Sync(ctx context.Context, in gateway.Report) (gateway.Table, error) {
	report := control.GatewayReport{Applied: in.Applied, Gateway: control.Gateway{Name: in.Name, Site: in.Site,
		Install: in.Install, Instance: in.Instance, NBD: in.NBD, Since: in.Since}}
	for _, v := range in.VVols {
		report.Vvols = append(report.Vvols, control.GatewayedVvol{Name: v.Name, Sessions: v.Sessions, Epoch: v.Epoch})
	}
	table, err := m.client.GatewaySync(ctx, report)
	if err != nil {
		return gateway.Table{}, err
	}
	if table.Refused != "" {
		return gateway.Table{}, fmt.Errorf("%w: %s", gateway.ErrRefused, table.Refused)
	}
	out := gateway.Table{Revision: table.Revision}
	for _, rt := range table.Routes {
		v := gateway.VVol{Name: rt.Vvol, Size: rt.Size, Volume: rt.Volume, Node: rt.Node, Address: rt.Address, Epoch: rt.Epoch,
			ReadOnly: rt.ReadOnly, InFlight: rt.InFlight}
		for _, h := range rt.Hosts {
			v.Hosts = append(v.Hosts, gateway.Host{Name: h.Name, ReadOnly: h.ReadOnly})
		}
		out.VVols = append(out.VVols, v)
	}
	return out, nil
}
