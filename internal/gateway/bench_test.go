package gateway

import (
	"context"
	"log/slog"
	"net"
	"testing"

	"gantline/internal/block"
	"gantline/internal/nbd"
	"gantline/internal/wire"
)

type nullTarget struct{}

func (nullTarget) Submit(reqs []*block.Request) {
	for _, r := range reqs {
		r.Finish(nil)
	}
}

type fixedRoutes struct{ t Table }

func (f fixedRoutes) Sync(ctx context.Context, r Report) (Table, error) {
	if r.Applied == f.t.Revision {
		<-ctx.Done()
		return Table{}, ctx.Err()
	}
	return f.t, nil
}

// BenchmarkGateway sends 4 KiB writes over NBD through a gateway to a null target at a node, all in one process.
func BenchmarkGateway(b *testing.B) {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		b.Fatal(err)
	}
	sessions := wire.NewSessions(wire.SessionLimits{}, nil)
	srv := wire.NewServer(wire.Handlers{IO: func(ctx context.Context, in *wire.Incoming) error {
		var p wire.IOParams
		if err := in.Peer.Decode(&p); err != nil {
			return err
		}
		return sessions.Serve(ctx, in, p, wire.IOAnswer{Size: 1 << 30}, nullTarget{}, wire.IOHooks{})
	}}, wire.Limits{})
	ctx, cancel := context.WithCancel(context.Background())
	ready, ended := make(chan Ready, 1), make(chan error, 2)
	go func() { ended <- srv.Serve(ctx, ln) }()
	go func() {
		ended <- Run(ctx, Config{Name: "g", DataDir: b.TempDir(), NBD: "127.0.0.1:0", Log: slog.New(slog.DiscardHandler),
			Ready:  func(r Ready) { ready <- r },
			Routes: fixedRoutes{Table{Revision: 1, VVols: []VVol{{Name: "v", Size: 1 << 30, Volume: "v", Address: ln.Addr().String()}}}}})
	}()
	addr := (<-ready).NBD
	for _, depth := range []int{1, 32} {
		b.Run(map[int]string{1: "depth=1", 32: "depth=32"}[depth], func(b *testing.B) {
			c, err := nbd.Dial(ctx, "tcp", addr, "v")
			if err != nil {
				b.Fatal(err)
			}
			w := make(waiter, depth)
			var batch []*block.Request
			for range depth {
				batch = append(batch, &block.Request{Op: block.OpWrite, Length: 4096, Data: make([]byte, 4096), Completer: w})
			}
			b.SetBytes(4096)
			b.ResetTimer()
			for answered, sent := 0, 0; answered < b.N; {
				batch = batch[:min(len(batch), b.N-sent)]
				c.Submit(batch)
				sent += len(batch)
				batch = append(batch[:0], <-w)
				for more := true; more; {
					select {
					case r := <-w:
						batch = append(batch, r)
					default:
						more = false
					}
				}
				answered += len(batch)
			}
			b.StopTimer()
			_ = c.Close()
		})
	}
	cancel()
	<-ended
	<-ended
}
