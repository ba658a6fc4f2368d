package route

import (
	"context"
	"net"
	"testing"

	"gantline/internal/block"
	"gantline/internal/wire"
)

type null struct{}

func (null) Submit(reqs []*block.Request) {
	for _, r := range reqs {
		r.Finish(nil)
	}
}

// again submits what was answered until left answers have come, from a goroutine of its own, as a host's reader does.
type again struct {
	ready chan *block.Request
}

func (a *again) Complete(r *block.Request) { a.ready <- r }

// BenchmarkSession sends 4 KiB writes through a session to a null target over loopback.
func BenchmarkSession(b *testing.B) {
	for _, depth := range []int{1, 32} {
		b.Run(map[int]string{1: "depth=1", 32: "depth=32"}[depth], func(b *testing.B) {
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
				return sessions.Serve(ctx, in, p, wire.IOAnswer{}, null{}, wire.IOHooks{})
			}}, wire.Limits{})
			ctx, cancel := context.WithCancel(context.Background())
			done := make(chan struct{})
			go func() { defer close(done); _ = srv.Serve(ctx, ln) }()
			s := NewSession(Config{Route: Route{Address: ln.Addr().String()}})
			a := &again{make(chan *block.Request, depth)}
			var batch []*block.Request
			for range depth {
				batch = append(batch, &block.Request{Op: block.OpWrite, Length: 4096, Data: make([]byte, 4096), Completer: a})
			}
			b.ReportAllocs()
			b.SetBytes(4096)
			b.ResetTimer()
			flying, sent := 0, 0
			for answered := 0; answered < b.N; {
				batch = batch[:min(len(batch), b.N-sent)]
				s.Submit(batch)
				flying, sent = flying+len(batch), sent+len(batch)
				batch = append(batch[:0], <-a.ready)
				for more := true; more; {
					select {
					case r := <-a.ready:
						batch = append(batch, r)
					default:
						more = false
					}
				}
				flying -= len(batch)
				answered += len(batch)
			}
			b.StopTimer()
			s.Close()
			cancel()
			<-done
		})
	}
}
