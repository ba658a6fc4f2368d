package node

import (
	"context"
	"log/slog"
	"net"
	"sync"
	"testing"

	"gantline/internal/block"
	"gantline/internal/wire"
)

// testWriter keeps what nodes tell with the test that it belongs to: shown when it fails. A goroutine that a node left
// behind may tell something after the end.
type testWriter struct {
	mu   sync.Mutex
	t    *testing.T
	over bool
}

func (w *testWriter) Write(p []byte) (int, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if !w.over {
		return w.t.Output().Write(p)
	}
	return len(p), nil
}

func newLog(t *testing.T) *slog.Logger {
	w := &testWriter{t: t}
	t.Cleanup(func() {
		w.mu.Lock()
		defer w.mu.Unlock()
		w.over = true
	})
	return slog.New(slog.NewTextHandler(w, nil))
}

// serveTarget answers io connections with a target.
func serveTarget(t *testing.T, ctx context.Context, target block.Target, size int64) string {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	s := wire.NewServer(wire.Handlers{Self: wire.Hello{Role: "node", Name: "a"},
		IO: func(ctx context.Context, in *wire.Incoming) error {
			if err := in.Answer(wire.IOAnswer{Size: size}); err != nil {
				return err
			}
			return wire.ServeIO(ctx, in.Conn, target, wire.IOHooks{})
		}}, wire.Limits{})
	go func() { _ = s.Serve(ctx, l) }()
	return l.Addr().String()
}

// startHandle runs a node of the rig with its insides in reach.
func startHandle(t *testing.T, r *rig, name string) (*Node, func()) {
	ctx, cancel := context.WithCancel(context.Background())
	ready := make(chan struct{})
	rn := &rigNode{}
	rn.cfg = Config{Name: name, Site: "s", DataDir: t.TempDir(), Listen: []string{r.host + ":0"}, NBD: r.host + ":0",
		Manager: &r.store, Logger: newLog(t)}
	rn.cfg.Ready = func(listen, nbd, _ string) {
		r.mu.Lock()
		rn.listen, rn.nbd = listen, nbd
		r.mu.Unlock()
		close(ready)
	}
	n, err := start(ctx, rn.cfg)
	if err != nil {
		t.Fatal(err)
	}
	ended := make(chan error, 1)
	go func() { ended <- n.serve(ctx) }()
	<-ready
	rn.caller = wire.NewCaller(rn.listen, wire.Hello{Role: "manager", Name: "m"})
	r.mu.Lock()
	defer r.mu.Unlock()
	r.nodes[name] = rn // its cancel is nil: the rig leaves it alone
	return n, func() {
		rn.caller.Close()
		cancel()
		<-ended
		_ = n.stop()
	}
}
