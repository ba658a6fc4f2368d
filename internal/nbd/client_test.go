package nbd

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"strings"
	"sync"
	"testing"
	"time"

	"gantline/internal/block"
)

func TestEveryOperationTravels(t *testing.T) {
	for _, network := range []string{"unix", "tcp"} {
		t.Run(network, func(t *testing.T) {
			m := newMemory(64 << 20)
			r := newRig(t, network, Options{}, map[string]Export{"a": {Size: 64 << 20, Target: m, CanFastZero: true, Description: "an export"}})
			c := r.dial("a")
			if c.Size() != 64<<20 || c.ReadOnly() || c.Name() != "a" {
				t.Fatalf("size %d, read-only %v, name %q", c.Size(), c.ReadOnly(), c.Name())
			}
			rng := seeded(t)
			for _, n := range []int{1, 512, 4096, 65536, 100_000, 1 << 20, 32 << 20} {
				want := fill(rng, n)
				if _, err := do(c, block.Request{Op: block.OpWrite, Offset: 4096, Data: want}); err != nil {
					t.Fatalf("write of %d: %v", n, err)
				}
				got, err := do(c, block.Request{Op: block.OpRead, Offset: 4096, Data: make([]byte, n)})
				if err != nil || !bytes.Equal(got.Data, want) {
					t.Fatalf("read of %d: %v, equal %v", n, err, bytes.Equal(got.Data, want))
				}
			}
			for _, q := range []block.Request{
				{Op: block.OpFlush},
				{Op: block.OpCache, Offset: 0, Length: 8192},
				{Op: block.OpWrite, Flags: block.FlagFUA, Data: []byte{1}},
				{Op: block.OpTrim, Offset: 8192, Length: 8192},
				{Op: block.OpZero, Flags: block.FlagNoHole, Offset: 32768, Length: 4096},
				{Op: block.OpZero, Flags: block.FlagFastZero | block.FlagFUA, Offset: 36864, Length: 4096},
			} {
				if _, err := do(c, q); err != nil {
					t.Fatalf("operation %d: %v", q.Op, err)
				}
			}
			checkExtents(t, c)
			m.mu.Lock()
			defer m.mu.Unlock()
			if m.flushes != 1 || m.caches != 1 || m.fua != 2 {
				t.Errorf("flushes %d, caches %d, FUA %d", m.flushes, m.caches, m.fua)
			}
		})
	}
}

// checkExtents follows TestEveryOperationTravels.
func checkExtents(t *testing.T, c *Client) {
	got, err := do(c, block.Request{Op: block.OpExtents, Length: 40960})
	want := []block.Extent{{Offset: 0, Length: 8192}, {Offset: 8192, Length: 8192, Type: block.ExtentHole},
		{Offset: 16384, Length: 20480}, {Offset: 36864, Length: 4096, Type: block.ExtentHole}}
	if err != nil || fmt.Sprint(got.Extents) != fmt.Sprint(want) {
		t.Errorf("extents %v, %v", got.Extents, err)
	}
	got, err = do(c, block.Request{Op: block.OpExtents, Flags: block.FlagOne, Offset: 100, Length: 40000})
	if err != nil || fmt.Sprint(got.Extents) != "[{100 8092 0}]" {
		t.Errorf("one extent: %v, %v", got.Extents, err)
	}
}

func TestErrorsKeepTheirKind(t *testing.T) {
	m := newMemory(1 << 20)
	r := newRig(t, "unix", Options{}, map[string]Export{"a": {Size: 1 << 20, Target: m}, "ro": {Size: 1 << 20, Target: m, ReadOnly: true}})
	c := r.dial("a")
	for _, want := range []error{block.ErrReadOnly, block.ErrNoSpace, block.ErrShutdown, block.ErrUnsupported, block.ErrInvalid, block.ErrIO} {
		m.mu.Lock()
		m.fail = fmt.Errorf("told by the target: %w", want)
		m.mu.Unlock()
		for _, op := range []block.Op{block.OpRead, block.OpWrite, block.OpFlush, block.OpTrim, block.OpZero, block.OpCache} {
			_, err := do(c, block.Request{Op: op, Data: make([]byte, 512)})
			if !errors.Is(err, want) || !strings.Contains(err.Error(), "told by the target") {
				t.Errorf("operation %d: %v instead of %v", op, err, want)
			}
		}
	}
	m.mu.Lock()
	m.fail = block.ErrHoldExpired
	m.mu.Unlock()
	if _, err := do(c, block.Request{Op: block.OpFlush}); !errors.Is(err, block.ErrIO) {
		t.Errorf("hold expired: %v", err)
	}
	if _, err := do(c, block.Request{Op: block.OpZero, Flags: block.FlagFastZero, Length: 512}); !errors.Is(err, block.ErrUnsupported) {
		t.Errorf("fast zero where it is not offered: %v", err)
	}
	if _, err := do(c, block.Request{Op: block.OpRead, Offset: 1 << 20, Data: make([]byte, 1)}); !errors.Is(err, block.ErrRange) {
		t.Errorf("beyond the end: %v", err)
	}
	ro := r.dial("ro")
	if _, err := do(ro, block.Request{Op: block.OpTrim, Length: 512}); !ro.ReadOnly() || !errors.Is(err, block.ErrReadOnly) {
		t.Errorf("read-only: %v, %v", ro.ReadOnly(), err)
	}
}

func TestDialTellsWhyNot(t *testing.T) {
	r := newRig(t, "tcp", Options{}, map[string]Export{"a": {Size: 512, Target: newMemory(512)}})
	for _, name := range []string{"", "b"} {
		if _, err := Dial(context.Background(), r.network, r.addr, name); !errors.Is(err, ErrUnknownExport) {
			t.Errorf("export %q: %v", name, err)
		}
	}
	for give, want := range map[error]error{ErrDenied: ErrDenied, block.ErrShutdown: block.ErrShutdown, errors.New("odd"): ErrUnknownExport} {
		r.catalog.mu.Lock()
		r.catalog.deny = give
		r.catalog.mu.Unlock()
		if _, err := Dial(context.Background(), r.network, r.addr, "a"); !errors.Is(err, want) || !strings.Contains(err.Error(), give.Error()) {
			t.Errorf("%v became %v", give, err)
		}
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	ctx, cancel := context.WithTimeout(context.Background(), 50*time.Millisecond)
	defer cancel()
	if _, err := Dial(ctx, "tcp", l.Addr().String(), "a"); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("silent server: %v", err)
	}
}

// scattered completes requests out of order from several goroutines, some inline, with and without cork.
func scattered(workers int) func([]*block.Request, func(*block.Request)) {
	var rng = rand.New(rand.NewPCG(1, 2))
	var mu sync.Mutex
	return func(reqs []*block.Request, do func(*block.Request)) {
		mu.Lock()
		defer mu.Unlock()
		batches := make([][]*block.Request, workers)
		for _, i := range rng.Perm(len(reqs)) {
			if k := rng.IntN(workers + 1); k < workers {
				batches[k] = append(batches[k], reqs[i])
			} else {
				do(reqs[i])
			}
		}
		for k, batch := range batches {
			if len(batch) == 0 {
				continue
			}
			go func() {
				cork, ok := batch[0].Completer.(Corker)
				if ok && k%2 == 0 {
					cork.Cork()
					defer cork.Uncork()
				}
				for _, r := range batch {
					do(r)
				}
			}()
		}
	}
}

// Several workers own a part of the export each and check every read against what they have written, while replies
// come in any order and small limits make every kind of back-pressure happen.
func TestManyInFlightOutOfOrder(t *testing.T) {
	for _, network := range []string{"unix", "tcp"} {
		t.Run(network, func(t *testing.T) {
			m := newMemory(16 << 20)
			m.scatter = scattered(3)
			r := newRig(t, network, Options{MaxRequests: 24}, map[string]Export{"a": {Size: 16 << 20, Target: m}})
			clients := []*Client{r.dial("a"), r.dial("a")}
			rng := seeded(t)
			var wg sync.WaitGroup
			for w := range 16 {
				own := rand.New(rand.NewPCG(rng.Uint64(), 1))
				wg.Go(func() { worker(t, clients[w%2], int64(w)<<20, own) })
			}
			wg.Wait()
		})
	}
}

func worker(t *testing.T, c *Client, base int64, rng *rand.Rand) {
	model := make([]byte, 1<<20)
	for range 150 {
		n := 1 + rng.IntN(8192)
		if rng.IntN(20) == 0 {
			n = 1 + rng.IntN(300_000)
		}
		off := rng.IntN(len(model) - n)
		var err error
		switch rng.IntN(5) {
		case 0, 1:
			p := fill(rng, n)
			copy(model[off:], p)
			_, err = do(c, block.Request{Op: block.OpWrite, Offset: base + int64(off), Data: p})
		case 2:
			clear(model[off : off+n])
			_, err = do(c, block.Request{Op: block.OpZero, Offset: base + int64(off), Length: int64(n)})
		default:
			var got *block.Request
			got, err = do(c, block.Request{Op: block.OpRead, Offset: base + int64(off), Data: make([]byte, n)})
			if err == nil && !bytes.Equal(got.Data, model[off:off+n]) {
				t.Errorf("read of %d at %d differs", n, off)
				return
			}
		}
		if err != nil {
			t.Error(err)
			return
		}
	}
}

func TestClientOverAPipe(t *testing.T) {
	m := newMemory(1 << 20)
	near, far := net.Pipe()
	s := NewServer(Options{Exports: &catalog{all: map[string]Export{"a": {Size: 1 << 20, Target: m}}}})
	s.start(context.Background(), far)
	c, err := newClient(context.Background(), near, "a")
	if err != nil {
		t.Fatal(err)
	}
	want := fill(seeded(t), 200_000)
	_, werr := do(c, block.Request{Op: block.OpWrite, Offset: 7, Data: want})
	got, rerr := do(c, block.Request{Op: block.OpRead, Offset: 7, Data: make([]byte, len(want))})
	if werr != nil || rerr != nil || !bytes.Equal(got.Data, want) {
		t.Errorf("write %v, read %v", werr, rerr)
	}
	c.Close()
	if err := s.Shutdown(context.Background()); err != nil {
		t.Error(err)
	}
}

// A lost connection completes every request with an error, exactly once, and later ones at once.
func TestConnectionLoss(t *testing.T) {
	m := newMemory(1 << 20)
	held := make(chan *block.Request, 100)
	m.scatter = func(reqs []*block.Request, _ func(*block.Request)) {
		for _, r := range reqs {
			held <- r
		}
	}
	r := newRig(t, "unix", Options{DrainTimeout: 50 * time.Millisecond}, map[string]Export{"a": {Size: 1 << 20, Target: m}})
	c := r.dial("a")
	done := make(one, 64)
	for i := range 64 {
		c.Submit([]*block.Request{{Op: block.OpWrite, Offset: int64(i) * 512, Length: 512, Data: make([]byte, 512), Completer: done}})
	}
	for range 64 {
		defer (<-held).Finish(nil) // long after the end: nothing may come of it
	}
	r.server.mu.Lock()
	for s := range r.server.conns {
		s.sock.Close()
	}
	r.server.mu.Unlock()
	for range 64 {
		if q := <-done; !errors.Is(q.Err, ErrConnLost) || !errors.Is(q.Err, block.ErrIO) {
			t.Errorf("lost request: %v", q.Err)
		}
	}
	<-c.Done()
	if _, err := do(c, block.Request{Op: block.OpFlush}); !errors.Is(err, ErrConnLost) {
		t.Errorf("request after the loss: %v", err)
	}
	for deadline := time.Now().Add(5 * time.Second); r.server.Conns() > 0; time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatal("connection was not given up")
		}
	}
}
