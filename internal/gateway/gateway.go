package gateway

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"log/slog"
	"net"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sync/errgroup"

	"gantline/internal/block"
	"gantline/internal/nbd"
	"gantline/internal/statefile"
	"gantline/internal/wire"
)

// Config of a gateway.
type Config struct {
	Name, Site string
	DataDir    string
	NBD        string // host:port, loopback; "": none
	NBDUnix    string // path; "": none
	HTTP       string // host:port, loopback, for liveness, readiness and metrics; "": none
	Hold       time.Duration
	Routes     Routes
	Log        *slog.Logger            // nil: slog.Default
	Ready      func(Ready)             // called once, when hosts can open what the table names
	Point      func(step, edge string) // called around the switch of paths
}

// Ready has the real addresses.
type Ready struct {
	NBD, NBDUnix, HTTP string // "": none
}

const (
	drainRequests = 3 * time.Second // at the end: requests in flight may finish
	drainHosts    = 7 * time.Second // then hosts' connections are cut
)

var errClosing = block.ErrShutdown

type gateway struct {
	cfg      Config
	self     wire.Hello
	install  string
	instance string
	since    time.Time
	uris     []string

	file   *statefile.File
	onDisk stored // of the sync loop, and before it of Run
	synced bool   // likewise

	away       atomic.Bool
	ready      atomic.Bool
	dirty      chan struct{}
	registered chan struct{} // closed when there is a table
	readyOnce  sync.Once

	mu       sync.Mutex
	vvols    map[string]*vvol
	revision uint64
	closing  bool
}

// Run serves until ctx ends (nil), or something it cannot do without fails.
func Run(ctx context.Context, cfg Config) error {
	if cfg.Log == nil {
		cfg.Log = slog.Default()
	}
	g, err := newGateway(cfg)
	if err != nil {
		return err
	}
	listeners, ready, err := g.listen()
	if err != nil {
		return err
	}
	httpListener, err := g.listenHTTP(&ready)
	if err != nil {
		closeAll(listeners)
		return err
	}
	server := nbd.NewServer(nbd.Options{Exports: g, DrainTimeout: drainRequests, Log: cfg.Log})
	// The manager is followed until hosts are gone: what drains may still have to be switched.
	syncCtx, stopSync := context.WithCancel(context.WithoutCancel(ctx))
	defer stopSync()
	group, runCtx := errgroup.WithContext(ctx)
	group.Go(func() error { return g.sync(syncCtx) })
	group.Go(func() error { return g.serveHTTP(runCtx, httpListener) })
	group.Go(func() error {
		defer stopSync()
		return g.serve(runCtx, server, listeners, ready)
	})
	err = group.Wait()
	if errors.Is(err, context.Canceled) {
		err = nil
	}
	return err
}

func newGateway(cfg Config) (*gateway, error) {
	var id [8]byte
	_, _ = rand.Read(id[:]) // never fails
	g := &gateway{cfg: cfg, instance: hex.EncodeToString(id[:]), since: time.Now().UTC(), dirty: make(chan struct{}, 1),
		registered: make(chan struct{}), vvols: map[string]*vvol{}}
	file, st, err := openState(cfg.DataDir, cfg.Name, cfg.Log)
	if err != nil {
		return nil, err
	}
	g.file, g.onDisk, g.install, g.synced = file, st, st.Install, st.Synced
	g.self = wire.Hello{Role: "gateway", Name: cfg.Name, Instance: st.Install}
	if st.Synced {
		g.apply(st.Table)
		g.readyOnce.Do(func() { close(g.registered) })
	}
	return g, nil
}

// listen opens the listeners of hosts. They are open, if not served, before there is a table: an address that is taken
// is told at once.
func (g *gateway) listen() ([]net.Listener, Ready, error) {
	var all []net.Listener
	var ready Ready
	if g.cfg.NBD != "" {
		l, err := listenTCP(g.cfg.NBD)
		if err != nil {
			return nil, ready, err
		}
		all = append(all, hostListener{l})
		ready.NBD = l.Addr().String()
		g.uris = append(g.uris, ready.NBD)
	}
	if g.cfg.NBDUnix != "" {
		l, err := listenUnix(g.cfg.NBDUnix)
		if err != nil {
			closeAll(all)
			return nil, ready, err
		}
		all = append(all, hostListener{l})
		ready.NBDUnix = g.cfg.NBDUnix
		g.uris = append(g.uris, "unix:"+g.cfg.NBDUnix)
	}
	return all, ready, nil
}

func closeAll(ls []net.Listener) {
	for _, l := range ls {
		_ = l.Close()
	}
}

// serve waits for a table, serves hosts until ctx ends, and lets them go.
func (g *gateway) serve(ctx context.Context, server *nbd.Server, listeners []net.Listener, ready Ready) error {
	defer closeAll(listeners)
	select {
	case <-g.registered:
	default:
		g.cfg.Log.Info("waiting for the manager: this gateway has no table yet", "name", g.cfg.Name)
		select {
		case <-g.registered:
		case <-ctx.Done():
			return nil
		}
	}
	group, accepting := errgroup.WithContext(ctx)
	for _, l := range listeners {
		group.Go(func() error { return server.Serve(accepting, l) })
	}
	g.ready.Store(true)
	if g.cfg.Ready != nil {
		g.cfg.Ready(ready)
	}
	err := group.Wait()
	g.ready.Store(false)
	// Requests that wait for a node would hold the end up: after a while they are answered for good.
	timer := time.AfterFunc(drainRequests, func() { g.endAll(block.ErrShutdown) })
	defer timer.Stop()
	drain, cancel := context.WithTimeout(context.WithoutCancel(ctx), drainHosts)
	defer cancel()
	if derr := server.Shutdown(drain); derr != nil {
		g.cfg.Log.Warn("hosts' connections were cut", "cause", derr)
	}
	return err
}
