package node

import (
	"context"
	"math/rand/v2"
	"net"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"gantline/internal/control"
	"gantline/internal/proof"
)

// lanes stands between two nodes, counts what each connection carries, and kills single ones.
type lanes struct {
	addr string
	rate int64 // bytes a second of each connection and direction; 0: no limit

	mu    sync.Mutex
	open  map[*lane]struct{}
	dials int
}

type lane struct {
	in, out net.Conn
	rate    int64
	bytes   atomic.Int64 // both ways
}

func newLanes(t *testing.T, to func() string) *lanes {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	s := &lanes{addr: l.Addr().String(), open: map[*lane]struct{}{}}
	var work sync.WaitGroup
	work.Go(func() {
		for {
			in, err := l.Accept()
			if err != nil {
				return
			}
			out, err := net.Dial("tcp", to())
			if err != nil {
				in.Close()
				continue
			}
			one := &lane{in: in, out: out, rate: s.rate}
			s.mu.Lock()
			s.open[one] = struct{}{}
			s.dials++
			s.mu.Unlock()
			work.Go(func() { one.carry(in, out) })
			work.Go(func() {
				one.carry(out, in)
				s.mu.Lock()
				delete(s.open, one)
				s.mu.Unlock()
			})
		}
	})
	t.Cleanup(func() {
		l.Close()
		s.mu.Lock()
		for one := range s.open {
			one.in.Close()
			one.out.Close()
		}
		s.mu.Unlock()
		work.Wait()
	})
	return s
}

func (l *lane) carry(from, to net.Conn) {
	defer from.Close()
	defer to.Close()
	buf := make([]byte, 64<<10)
	free := time.Now()
	for {
		n, err := from.Read(buf)
		l.bytes.Add(int64(n))
		if l.rate > 0 {
			if now := time.Now(); free.Before(now) {
				free = now
			}
			free = free.Add(time.Duration(n) * time.Second / time.Duration(l.rate))
			time.Sleep(time.Until(free))
		}
		if _, werr := to.Write(buf[:n]); err != nil || werr != nil {
			return
		}
	}
}

// busy counts the connections that have carried so many bytes.
func (s *lanes) busy(bytes int64) (n int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for one := range s.open {
		if one.bytes.Load() >= bytes {
			n++
		}
	}
	return n
}

// kill ends one connection of those that carry records.
func (s *lanes) kill() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	for one := range s.open { // in any order
		if one.bytes.Load() > 100_000 {
			one.in.Close()
			one.out.Close()
			return true
		}
	}
	return false
}

// A group streams over four connections, pushed or pulled, synchronous or not; single connections die under it at any
// moment. The secondary is a prefix throughout and equal in the end; the number is changed live and outlives restarts.
func TestConnections(t *testing.T)     { connections(t, control.TransferPush) }
func TestPullConnections(t *testing.T) { connections(t, control.TransferPull) }

func connections(t *testing.T, transfer string) {
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	r := newRig(t, "a", "c")
	r.with = func(s *control.Settings) { s.Transfer = transfer }
	dialled := map[string]string{control.TransferPush: "c", control.TransferPull: "a"}[transfer]
	link := newLanes(t, func() string { return r.listens(dialled) })
	r.via = map[string]string{dialled: link.addr}
	r.quick("a")
	g := r.group(2, 16<<20)
	set := func(n int) {
		t.Helper()
		r.set(&g, map[string]control.LinkSettings{"c": {Connections: n}})
		r.waitFor("as many connections", func() bool { st := r.status("a"); return st.LinkUp && st.Connections == n })
	}
	l := proof.New(r.disks("a", 2), proof.Options{Seed: seed, Depth: 8, FlushEvery: 40, Rate: 2500})
	stop := keepRunning(t, l)
	set(4)
	r.waitFor("bytes on all four", func() bool { return link.busy(200_000) == 4 })
	kills := 0
	for end := time.Now().Add(3 * time.Second); time.Now().Before(end); {
		time.Sleep(time.Duration(rand.IntN(200)) * time.Millisecond)
		if link.kill() {
			kills++
		}
	}
	if kills < 2 {
		t.Errorf("%d connections were killed", kills)
	}
	stop()
	r.waitFor("in step", inStep(r))
	r.check(l, "c", 2, true)
	if again := r.nodes["c"].node.group("g").rcv.Status().Repeated; again != 0 {
		t.Errorf("%d records were sent that the secondary had", again)
	}

	g.Mode = control.ModeSync
	stop = keepRunning(t, l)
	set(3)
	r.waitFor("synchronous on all three", func() bool { return r.status("a").State == "paired" && link.busy(50_000) == 3 })
	link.kill()
	r.waitFor("synchronous again", func() bool { st := r.status("a"); return st.State == "paired" && st.Connections == 3 })
	set(1)
	stop()
	r.waitFor("in step", inStep(r))
	r.check(l, "c", 2, true)

	set(2)
	r.stop("a")
	r.start("a")
	r.waitFor("two again", func() bool { st := r.status("a"); return st.LinkUp && st.Connections == 2 })
	l.SetDisks(r.disks("a", 2))
	runFor(t, l, 200*time.Millisecond)
	r.waitFor("in step", inStep(r))
	r.check(l, "c", 2, true)
	t.Logf("%d connections killed, %d dialled", kills, link.dials)
}

// A move under load, with source and target sending over several connections each.
func TestMoveOverConnections(t *testing.T) {
	r := newRig(t, "a", "b", "c")
	for _, node := range []string{"a", "b"} {
		if err := r.nodes[node].node.learnLinks(map[string]control.LinkSettings{"c": {Connections: 3}}); err != nil {
			t.Fatal(err)
		}
	}
	moveUnderLoad(r)
	if n := r.status("b").Connections; n != 3 {
		t.Errorf("%d connections from the target", n)
	}
}

// Where the network limits each connection, four carry what one cannot.
func TestConnectionsCarryMore(t *testing.T) {
	r := newRig(t, "a", "c")
	link := newLanes(t, func() string { return r.listens("c") })
	link.rate = 4 << 20
	r.via = map[string]string{"c": link.addr}
	r.quick("a")
	g := r.group(1, 32<<20)
	l := proof.New(r.disks("a", 1), proof.Options{Seed: 9, Depth: 8, MaxBlocks: 32})
	// took is the time for 8 MiB of hosts' writes, until all is applied there.
	took := func(n int) float64 {
		r.set(&g, map[string]control.LinkSettings{"c": {Connections: n}})
		r.waitFor("as many connections", func() bool { st := r.status("a"); return st.LinkUp && st.Connections == n })
		before, began := l.Stats().Bytes, time.Now()
		ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
		defer cancel()
		go func() {
			for ctx.Err() == nil && l.Stats().Bytes < before+8<<20 {
				time.Sleep(time.Millisecond)
			}
			cancel()
		}()
		if err := l.Run(ctx); err != nil {
			t.Fatal(err)
		}
		r.waitFor("in step", inStep(r))
		return time.Since(began).Seconds() / float64(l.Stats().Bytes-before) * (8 << 20)
	}
	one, four := 0.0, 0.0
	for range 3 { // a busy machine may be slower than four such connections
		one, four = took(1), took(4)
		t.Logf("8 MiB over connections of 4 MiB/s: %.2f s by one, %.2f s by four", one, four)
		if one < 1.5 {
			t.Errorf("one connection has carried more than it may")
		}
		if four < 0.7*one {
			break
		}
	}
	if four >= 0.7*one {
		t.Errorf("four connections carry no more than one: %.2f s, %.2f s", four, one)
	}
	r.check(l, "c", 1, true)
}
