package demo

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"time"

	"gantline/internal/control"
	"gantline/internal/gateway"
	"gantline/internal/manager"
	"gantline/internal/manager/client"
	"gantline/internal/node"
	"gantline/internal/store"
)

// system is the two sites: nodes a and b and the gateway local, node c remote.
type system struct {
	dir     string
	log     *slog.Logger
	url     string
	client  *client.Client
	nbd     string // the gateway's
	manager *process
	gateway *process
	nodes   map[string]*process
	listen  map[string]string // nodes' frames addresses, kept across restarts
}

// process is a part of the system that can be stopped by itself.
type process struct {
	cancel context.CancelFunc
	ended  chan error
}

func begin(run func(context.Context) error) *process {
	ctx, cancel := context.WithCancel(context.Background())
	p := &process{cancel: cancel, ended: make(chan error, 1)}
	go func() { p.ended <- run(ctx) }()
	return p
}

func (p *process) stop() error {
	if p == nil {
		return nil
	}
	p.cancel()
	select {
	case err := <-p.ended:
		if errors.Is(err, context.Canceled) {
			return nil
		}
		return err
	case <-time.After(15 * time.Second):
		return errors.New("did not stop within 15 s")
	}
}

// await waits for a process to be ready, or to have failed.
func (p *process) await(what string, ready <-chan struct{}) error {
	select {
	case <-ready:
		return nil
	case err := <-p.ended:
		p.ended <- err
		return fmt.Errorf("%s ended: %w", what, err)
	case <-time.After(20 * time.Second):
		return fmt.Errorf("%s is not ready after 20 s", what)
	}
}

func startSystem(dir string, log *slog.Logger) (s *system, err error) {
	s = &system{dir: dir, log: log, nodes: map[string]*process{}, listen: map[string]string{}}
	defer func() {
		if err != nil {
			err = errors.Join(err, s.stop())
		}
	}()
	if err := s.startManager(); err != nil {
		return s, err
	}
	for name := range sites {
		if err := s.startNode(name); err != nil {
			return s, err
		}
	}
	return s, s.startGateway()
}

var sites = map[string]string{"a": "local", "b": "local", "c": "remote"}

func (s *system) startManager() error {
	dir := filepath.Join(s.dir, "manager")
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return err
	}
	st, err := store.Open(filepath.Join(dir, "store.db"), s.log)
	if err != nil {
		return err
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return errors.Join(err, st.Close())
	}
	m := manager.New(manager.Config{Store: st, Logger: s.log.With("process", "manager"), Version: "demo"})
	s.manager = begin(func(ctx context.Context) error { return errors.Join(m.Serve(ctx, l), st.Close()) })
	s.url = "http://" + l.Addr().String()
	s.client, err = client.New(s.url)
	return err
}

func (s *system) startNode(name string) error {
	c, err := client.New(s.url)
	if err != nil {
		return err
	}
	listen := s.listen[name]
	if listen == "" {
		listen = "127.0.0.1:0"
	}
	ready := make(chan struct{})
	cfg := node.Config{Name: name, Site: sites[name], DataDir: filepath.Join(s.dir, name), Listen: []string{listen},
		Manager: c, Logger: s.log.With("process", "node "+name), Ready: func(listen, _, _ string) {
			s.listen[name] = listen
			close(ready)
		}}
	p := begin(func(ctx context.Context) error { return node.Run(ctx, cfg) })
	s.nodes[name] = p
	if err := p.await("node "+name, ready); err != nil {
		return err
	}
	return s.until(10*time.Second, "node "+name+" is known to the manager", func(ctx context.Context) (bool, error) {
		var v control.NodeView
		err := s.client.Do(ctx, "GET", "/v1/nodes/"+name, nil, &v)
		return err == nil && v.State == "up", nil
	})
}

func (s *system) startGateway() error {
	c, err := client.New(s.url)
	if err != nil {
		return err
	}
	ready := make(chan struct{})
	cfg := gateway.Config{Name: "g", Site: "local", DataDir: filepath.Join(s.dir, "g"), NBD: "127.0.0.1:0", Hold: time.Minute,
		Routes: gateway.FromManager(c), Log: s.log.With("process", "gateway"), Ready: func(r gateway.Ready) {
			s.nbd = r.NBD
			close(ready)
		}}
	if err := os.MkdirAll(cfg.DataDir, 0o700); err != nil {
		return err
	}
	s.gateway = begin(func(ctx context.Context) error { return gateway.Run(ctx, cfg) })
	return s.gateway.await("gateway", ready)
}

// until polls until ok, an error, or the limit.
func (s *system) until(limit time.Duration, what string, ok func(context.Context) (bool, error)) error {
	ctx, cancel := context.WithTimeout(context.Background(), limit)
	defer cancel()
	for {
		done, err := ok(ctx)
		if err != nil {
			return fmt.Errorf("%s: %w", what, err)
		}
		if done {
			return nil
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("not within %v: %s", limit, what)
		case <-time.After(50 * time.Millisecond):
		}
	}
}

func (s *system) stop() error {
	if s == nil {
		return nil
	}
	errs := []error{s.gateway.stop()}
	for _, n := range s.nodes {
		errs = append(errs, n.stop())
	}
	return errors.Join(append(errs, s.manager.stop())...)
}
