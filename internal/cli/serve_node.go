package cli

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"sync"

	"gantline/internal/control"
	"gantline/internal/manager/client"
	"gantline/internal/node"
)

func serveNode(ctx context.Context, r *role) error {
	spendMemory()
	spendThreads()
	s := r.settings
	memory, err := s.size("memory")
	if err != nil {
		return err
	}
	c, err := client.New(r.managers()...)
	if err != nil {
		return err
	}
	defer c.Close()
	name := s.get("name")
	reg := &registration{Client: c, marker: filepath.Join(r.dir, "registered"), done: make(chan struct{})}
	var wait sync.WaitGroup
	defer wait.Wait()
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	wait.Go(func() { steady(ctx) })
	err = node.Run(ctx, node.Config{
		Name: name, Site: s.get("site"), DataDir: r.dir, Listen: s.list("listen"), PeerListen: s.get("peer-listen"),
		Advertise: s.get("advertise"), NBD: s.get("nbd"), NBDUnix: s.get("nbd-unix"), HTTP: s.get("http"), Memory: memory,
		Manager: reg, Logger: r.log, Point: r.point,
		Ready: func(listen, nbd, http string) {
			if reg.known() {
				r.ready(name, "listen", listen, "nbd", nbd, "http", http)
				return
			}
			r.log.Info("waiting for the manager to register this new node", "manager", s.get("manager"))
			wait.Go(func() {
				select {
				case <-reg.done:
					r.ready(name, "listen", listen, "nbd", nbd, "http", http)
				case <-ctx.Done():
				}
			})
		},
	})
	var address *node.AddressError
	if errors.Is(err, node.ErrRegistered) || errors.As(err, &address) {
		return &control.Error{Kind: control.KindRefused, Message: err.Error()}
	}
	return err
}

// registration is the manager as a node sees it; it remembers on disk that the node has been registered once, because
// such a node is ready without its manager.
type registration struct {
	*client.Client
	marker string
	once   sync.Once
	done   chan struct{}
}

func (g *registration) known() bool {
	_, err := os.Stat(g.marker)
	return err == nil
}

// SyncNode implements node.Manager.
func (g *registration) SyncNode(ctx context.Context, in control.NodeReport) (control.NodeSyncReply, error) {
	reply, err := g.Client.SyncNode(ctx, in)
	if err == nil && reply.Refused == "" {
		g.once.Do(func() {
			if err := remember(g.marker); err != nil && !errors.Is(err, os.ErrExist) {
				return // it waits again next time: no harm
			}
			close(g.done)
		})
	}
	return reply, err
}
