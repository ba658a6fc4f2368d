package nbd

import (
	"context"
	"encoding/binary"
	"errors"
	"io"
	"log/slog"
	"math/rand/v2"
	"net"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"

	"gantline/internal/block"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// memory is a Target in memory that knows which of its pages were ever written.
type memory struct {
	mu      sync.Mutex
	data    []byte
	used    []bool // per page
	fail    error  // answer of every request
	scatter func([]*block.Request, func(*block.Request))
	flushes int
	fua     int
	caches  int
}

const page = 4096

func newMemory(size int) *memory {
	return &memory{data: make([]byte, size), used: make([]bool, (size+page-1)/page)}
}

func (m *memory) Submit(reqs []*block.Request) {
	if m.scatter != nil {
		m.scatter(reqs, m.do)
		return
	}
	for _, r := range reqs {
		m.do(r)
	}
}

func (m *memory) do(r *block.Request) {
	m.mu.Lock()
	err := m.fail
	if err == nil {
		err = m.apply(r)
	}
	m.mu.Unlock()
	r.Finish(err)
}

func (m *memory) apply(r *block.Request) error {
	end := r.Offset + r.Length
	if r.Flags&block.FlagFUA != 0 {
		m.fua++
	}
	switch r.Op {
	case block.OpRead:
		copy(r.Data, m.data[r.Offset:end])
	case block.OpWrite:
		copy(m.data[r.Offset:end], r.Data)
		m.mark(r.Offset, end, true)
	case block.OpTrim, block.OpZero:
		clear(m.data[r.Offset:end])
		m.mark((r.Offset+page-1)/page*page, end/page*page, r.Flags&block.FlagNoHole != 0)
	case block.OpFlush:
		m.flushes++
	case block.OpCache:
		m.caches++
	case block.OpExtents:
		r.Extents = m.extents(r.Offset, end)
	default:
		return block.ErrInvalid
	}
	return nil
}

func (m *memory) mark(from, to int64, used bool) {
	for p := from / page; p*page < to; p++ {
		m.used[p] = used
	}
}

func (m *memory) extents(at, end int64) (out []block.Extent) {
	for at < end {
		next := min((at/page+1)*page, end)
		x := block.Extent{Offset: at, Length: next - at, Type: block.ExtentHole}
		if m.used[at/page] {
			x.Type = block.ExtentData
		}
		out = append(out, x)
		at = next
	}
	return out
}

// catalog is Exports over a map.
type catalog struct {
	mu     sync.Mutex
	all    map[string]Export
	open   int
	closed int
	deny   error
}

func (c *catalog) Open(_ context.Context, name string, _ Peer) (*Export, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.deny != nil {
		return nil, c.deny
	}
	e, ok := c.all[name]
	if !ok {
		return nil, ErrUnknownExport
	}
	c.open++
	e.Name = name
	e.Close = func() {
		c.mu.Lock()
		c.closed++
		c.mu.Unlock()
	}
	return &e, nil
}

func (c *catalog) List(Peer) (names []string) {
	for name := range c.all {
		names = append(names, name)
	}
	return names
}

func (c *catalog) counts() (open, closed int) {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.open, c.closed
}

// rig is a server with its listener; it ends with the test and then checks that every export was closed.
type rig struct {
	t       testing.TB
	server  *Server
	catalog *catalog
	network string
	addr    string
}

func newRig(t testing.TB, network string, opts Options, exports map[string]Export) *rig {
	t.Helper()
	r := &rig{t: t, network: network, catalog: &catalog{all: exports}}
	addr := "127.0.0.1:0"
	if network == "unix" {
		dir, err := os.MkdirTemp("", "nbd")
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { os.RemoveAll(dir) })
		addr = filepath.Join(dir, "s")
	}
	l, err := net.Listen(network, addr)
	if err != nil {
		t.Fatal(err)
	}
	r.addr = l.Addr().String()
	opts.Exports = r.catalog
	opts.Log = slog.New(slog.NewTextHandler(io.Discard, nil))
	r.server = NewServer(opts)
	served := make(chan error, 1)
	go func() { served <- r.server.Serve(context.Background(), l) }()
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
		defer cancel()
		if err := r.server.Shutdown(ctx); err != nil && !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("Shutdown: %v", err)
		}
		if err := <-served; err != nil {
			t.Errorf("Serve: %v", err)
		}
		if open, closed := r.catalog.counts(); open != closed {
			t.Errorf("%d exports were opened, %d closed", open, closed)
		}
	})
	return r
}

func (r *rig) dial(export string) *Client {
	r.t.Helper()
	c, err := Dial(context.Background(), r.network, r.addr, export)
	if err != nil {
		r.t.Fatal(err)
	}
	r.t.Cleanup(func() { c.Close() })
	return c
}

// one is a Completer for one request.
type one chan *block.Request

func (o one) Complete(r *block.Request) { o <- r }

// do runs one request to its end.
func do(t block.Target, r block.Request) (*block.Request, error) {
	done := make(one, 1)
	r.Completer = done
	if r.Data != nil && r.Length == 0 {
		r.Length = int64(len(r.Data))
	}
	t.Submit([]*block.Request{&r})
	<-done
	return &r, r.Err
}

func seeded(t testing.TB) *rand.Rand {
	seed := uint64(time.Now().UnixNano())
	t.Logf("seed %d", seed)
	return rand.New(rand.NewPCG(seed, 1))
}

func fill(rng *rand.Rand, n int) []byte {
	p := make([]byte, n)
	for i := 0; i < n; i += 8 {
		if i == 64<<10 { // enough; the rest repeats it, less one byte so that no two pages are the same
			for i < n {
				i += copy(p[i:], p[:64<<10-1])
			}
			break
		}
		var word [8]byte
		binary.LittleEndian.PutUint64(word[:], rng.Uint64())
		copy(p[i:], word[:])
	}
	return p
}
