package manager

import (
	"context"
	"errors"
	"log/slog"
	"net"
	"net/http"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"

	"gantline/internal/control"
)

// Config of a Manager.
type Config struct {
	Store   control.Store
	Dial    Dialer // how nodes are called; nil: frames over TCP
	Logger  *slog.Logger
	Version string
	// Point is called around each durable change of a move, for tests that kill the process there. May be nil.
	Point func(step, edge string)
}

// Manager runs operations against a store and the nodes. New, then Run; Handler may be used while Run runs.
type Manager struct {
	store    control.Store
	log      *slog.Logger
	version  string
	point    func(step, edge string)
	locks    keyLocks
	nodes    *nodeCalls
	presence *presence
	routes   *routes
	pusher   *pusher
	moves    *moves
	drains   *drains
	metrics  *metrics
	handler  http.Handler

	mu    sync.Mutex
	ready bool
}

// New reads nothing yet and starts nothing.
func New(cfg Config) *Manager {
	m := &Manager{store: cfg.Store, log: cfg.Logger, version: cfg.Version, point: cfg.Point, presence: newPresence()}
	if m.log == nil {
		m.log = slog.New(slog.DiscardHandler)
	}
	if m.point == nil {
		m.point = func(string, string) {}
	}
	dial := cfg.Dial
	if dial == nil {
		dial = DialWire
	}
	m.nodes = newNodeCalls(dial, m.nodeAddress)
	m.routes = newRoutes(m)
	m.pusher = newPusher(m)
	m.moves = newMoves(m)
	m.drains = newDrains(m)
	m.metrics = newMetrics(m)
	m.handler = m.newHandler()
	return m
}

// Run carries on what the store says is under way until ctx ends, and joins everything it started.
func (m *Manager) Run(ctx context.Context) error {
	defer m.nodes.close()
	entries, revision, err := m.store.List(ctx, control.KindMigration+"/")
	if err != nil {
		return err
	}
	g, ctx := errgroup.WithContext(ctx)
	g.Go(func() error { return m.routes.run(ctx, revision) })
	g.Go(func() error { return m.pusher.run(ctx) })
	g.Go(func() error { return m.notice(ctx) })
	g.Go(func() error { return m.moves.run(ctx, entries) })
	g.Go(func() error { return m.drains.run(ctx) })
	m.mu.Lock()
	m.ready = true
	m.mu.Unlock()
	if err := g.Wait(); err != nil && !errors.Is(err, context.Canceled) {
		return err
	}
	return nil
}

// Ready says whether the manager serves: for /readyz.
func (m *Manager) Ready() bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.ready
}

// Limits of the HTTP server.
const (
	maxConnections   = 1024
	maxRequestHeader = 64 << 10 // bytes
	headerTimeout    = 10 * time.Second
	idleTimeout      = 2 * time.Minute
	shutdownTimeout  = 2 * time.Second
)

// Serve runs the manager with its API on l until ctx ends.
func (m *Manager) Serve(ctx context.Context, l net.Listener) error {
	if err := control.CheckLoopback(l.Addr().String()); err != nil {
		return err
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	srv := &http.Server{
		Handler: m.handler, ReadHeaderTimeout: headerTimeout, IdleTimeout: idleTimeout,
		MaxHeaderBytes: maxRequestHeader, BaseContext: func(net.Listener) context.Context { return ctx },
		ErrorLog: slog.NewLogLogger(m.log.Handler(), slog.LevelDebug),
	}
	g, gctx := errgroup.WithContext(ctx)
	g.Go(func() error { return m.Run(gctx) })
	g.Go(func() error {
		if err := srv.Serve(limitListener(l, maxConnections)); !errors.Is(err, http.ErrServerClosed) {
			return err
		}
		return nil
	})
	g.Go(func() error {
		<-gctx.Done()
		cancel() // long polls end at once: their requests live under ctx
		stop, done := context.WithTimeout(context.Background(), shutdownTimeout)
		defer done()
		if err := srv.Shutdown(stop); err != nil {
			return srv.Close()
		}
		return nil
	})
	return g.Wait()
}

// Handler is the API.
func (m *Manager) Handler() http.Handler { return m.handler }
