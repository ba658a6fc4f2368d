package nbd

import (
	"context"
	"fmt"
	"net"
	"testing"

	"gantline/internal/block"
)

// null answers everything at once.
type null struct{}

func (null) Submit(reqs []*block.Request) {
	for _, r := range reqs {
		r.Finish(nil)
	}
}

// BenchmarkServer drives a server from a client that does nothing but write whole bursts and read whole bursts of
// replies, so that the figure is the server's: one burst of depth requests per round trip.
func BenchmarkServer(b *testing.B) {
	for _, network := range []string{"unix", "tcp"} {
		for _, kind := range []uint16{cmdWrite, cmdRead} {
			for _, depth := range []int{1, 32} {
				b.Run(fmt.Sprintf("%s/%s/depth%d", network, map[uint16]string{cmdRead: "read", cmdWrite: "write"}[kind], depth), func(b *testing.B) {
					benchServer(b, network, kind, depth)
				})
			}
		}
	}
}

func benchServer(b *testing.B, network string, kind uint16, depth int) {
	r := newRig(b, network, Options{}, map[string]Export{"a": {Size: 1 << 30, Target: null{}}})
	sock, err := net.Dial(network, r.addr)
	if err != nil {
		b.Fatal(err)
	}
	defer sock.Close()
	setSocketOptions(sock)
	p := &peer{sock: sock}
	hello := make([]byte, 18)
	sock.Read(hello)
	// EXPORT_NAME and simple replies: the plainest client there is.
	sock.Write(join(uint32(3), magicOption, optExportName, uint32(1), "a"))
	sock.Read(hello[:10])
	one := join(magicRequest, uint16(0), kind, uint64(1), uint64(0), uint32(4096))
	answer := simpleSize
	if kind == cmdWrite {
		one = append(one, make([]byte, 4096)...)
	} else {
		answer += 4096
	}
	var burst []byte
	for range depth {
		burst = append(burst, one...)
	}
	in := make([]byte, depth*answer)
	b.SetBytes(4096)
	b.ReportAllocs()
	b.ResetTimer()
	for n := 0; n < b.N; n += depth {
		if _, err := sock.Write(burst); err != nil {
			b.Fatal(err)
		}
		for got := 0; got < len(in); {
			k, err := p.sock.Read(in[got:])
			if err != nil {
				b.Fatal(err)
			}
			got += k
		}
	}
	b.StopTimer()
	b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "requests/s")
}

// BenchmarkClient has our client and our server talk to each other, depth requests in flight.
func BenchmarkClient(b *testing.B) {
	for _, depth := range []int{1, 32} {
		b.Run(fmt.Sprintf("depth%d", depth), func(b *testing.B) {
			r := newRig(b, "unix", Options{}, map[string]Export{"a": {Size: 1 << 30, Target: null{}}})
			c, err := Dial(context.Background(), "unix", r.addr, "a")
			if err != nil {
				b.Fatal(err)
			}
			defer c.Close()
			done := make(one, depth)
			data := make([]byte, 4096)
			batch := make([]*block.Request, 0, depth)
			for range depth {
				batch = append(batch, &block.Request{Op: block.OpWrite, Length: 4096, Data: data, Completer: done})
			}
			b.ReportAllocs()
			b.ResetTimer()
			for n := 0; n < b.N; {
				c.Submit(batch)
				n += len(batch)
				batch = append(batch[:0], <-done)
				for len(done) > 0 {
					batch = append(batch, <-done)
				}
			}
			b.StopTimer()
			for range depth - len(batch) {
				<-done
			}
			b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "requests/s")
		})
	}
}
