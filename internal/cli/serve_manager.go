package cli

import (
	"context"
	"errors"
	"fmt"
	"net"
	"path/filepath"
	"strings"

	"gantline/internal/control"
	"gantline/internal/manager"
	"gantline/internal/store"
)

func serveManager(ctx context.Context, r *role) (err error) {
	switch kind := r.settings.get("store"); {
	case strings.HasPrefix(kind, "etcd://"):
		return control.NotBuilt("--store etcd://")
	case kind != "bolt":
		return r.settings.wrong("store", "it is bolt or etcd://HOST:PORT")
	case r.settings.get("http") != "":
		return r.settings.wrong("http", "the manager serves /livez, /readyz and /metrics on its --listen address")
	}
	st, err := store.Open(filepath.Join(r.dir, "state.db"), r.log)
	if errors.Is(err, store.ErrLocked) {
		return &control.Error{Kind: control.KindRefused, Message: err.Error()}
	}
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, st.Close()) }()
	l, err := net.Listen("tcp", r.settings.get("listen"))
	if err != nil {
		return fmt.Errorf("manager: %w", err)
	}
	m := manager.New(manager.Config{Store: st, Logger: r.log, Version: versionText(), Point: r.point})
	r.ready("manager", "listen", l.Addr().String())
	return m.Serve(ctx, l)
}
