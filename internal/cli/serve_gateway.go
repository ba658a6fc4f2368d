package cli

import (
	"context"
	"errors"
	"strings"

	"gantline/internal/control"
	"gantline/internal/gateway"
	"gantline/internal/manager/client"
)

func serveGateway(ctx context.Context, r *role) error {
	spendMemory()
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
		Hold: hold, Routes: gateway.FromManager(c), Log: r.log, Point: r.point,
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
