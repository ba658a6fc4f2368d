package node

import (
	"bytes"
	"math/rand/v2"
	"net"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"gantline/internal/block"
	"gantline/internal/control"
	"gantline/internal/proof"
)

// wan is a link between two nodes that can be cut so that neither end hears of it: what was on its way arrives when the
// link is back, as it does where TCP sends it again; who connects meanwhile waits for an answer.
type wan struct {
	addr  string
	bytes atomic.Int64 // towards there
	dials atomic.Int64

	mu    sync.Mutex
	back  *sync.Cond // on mu
	cut   bool
	conns []net.Conn
}

func newWAN(t *testing.T, there func() string) *wan {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	w := &wan{addr: l.Addr().String()}
	w.back = sync.NewCond(&w.mu)
	var work sync.WaitGroup
	work.Go(func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			w.dials.Add(1)
			w.keep(c)
			work.Go(func() { w.carry(c, there()) })
		}
	})
	t.Cleanup(func() {
		_ = l.Close()
		w.set(false)
		w.mu.Lock()
		for _, c := range w.conns {
			_ = c.Close()
		}
		w.mu.Unlock()
		work.Wait()
	})
	return w
}

func (w *wan) keep(c net.Conn) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.conns = append(w.conns, c)
}

func (w *wan) set(cut bool) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.cut = cut
	w.back.Broadcast()
}

func (w *wan) pass() {
	w.mu.Lock()
	defer w.mu.Unlock()
	for w.cut {
		w.back.Wait()
	}
}

func (w *wan) carry(c net.Conn, there string) {
	defer c.Close()
	w.pass()
	d, err := net.Dial("tcp", there)
	if err != nil {
		return
	}
	w.keep(d)
	defer d.Close()
	var work sync.WaitGroup
	work.Go(func() { w.copy(d, c, &w.bytes) })
	w.copy(c, d, new(atomic.Int64))
	work.Wait()
}

func (w *wan) copy(to, from net.Conn, count *atomic.Int64) {
	buf := make([]byte, 64<<10)
	for {
		n, err := from.Read(buf)
		count.Add(int64(n))
		w.pass()
		if _, werr := to.Write(buf[:n]); werr != nil || err != nil {
			_ = to.Close()
			_ = from.Close()
			return
		}
	}
}

// wanRig is a and c with a wan between them.
func wanRig(t *testing.T) (*rig, *wan) { return onWAN(newRig(t, "a", "c")) }

func onWAN(r *rig) (*rig, *wan) {
	w := newWAN(r.t, func() string { return r.listens("c") })
	r.via = map[string]string{"c": w.addr}
	return r, w
}

// A link that swallows everything is noticed within seconds, tried at most once a second, and used again within two
// seconds of its return, however many connections a stream has. Nothing is lost and hosts see no error.
func TestLinkCutInSilence(t *testing.T)        { linkCutInSilence(t, 1) }
func TestConnectionsCutInSilence(t *testing.T) { linkCutInSilence(t, 4) }

func linkCutInSilence(t *testing.T, connections int) {
	r, w := wanRig(t)
	g := r.group(2, 16<<20)
	r.set(&g, map[string]control.LinkSettings{"c": {Connections: connections}})
	r.waitFor("as many connections", func() bool { return r.status("a").Connections == connections })
	l := proof.New(r.disks("a", 2), proof.Options{Seed: 11, Depth: 4, FlushEvery: 30, Rate: 500, Span: 4 << 20})
	runFor(t, l, 300*time.Millisecond)
	for _, away := range []time.Duration{6500 * time.Millisecond, 10 * time.Second} {
		w.set(true)
		cut, dials := time.Now(), w.dials.Load()
		runFor(t, l, 300*time.Millisecond)
		r.waitFor("link down", func() bool { return !r.status("a").LinkUp })
		if d := time.Since(cut); d > 6*time.Second {
			t.Errorf("noticed after %v", d)
		}
		if st := r.status("a"); st.BlockedOn == "" || st.State != "paired" {
			t.Errorf("with the link down: %+v", st)
		}
		r.waitFor("link down at the secondary", func() bool { return !r.status("c").LinkUp })
		time.Sleep(time.Until(cut.Add(away)))
		if n := w.dials.Load() - dials; n > int64(away/time.Second) {
			t.Errorf("%d attempts in %v", n, away)
		}
		w.set(false)
		back := time.Now()
		r.waitFor("link up", func() bool { return r.status("a").LinkUp })
		if d := time.Since(back); d > 2*time.Second {
			t.Errorf("used again %v after its return", d)
		}
		r.waitFor("in step", func() bool { st := r.status("a"); return st.Applied == st.Appended && st.LinkUp })
		r.check(l, "c", 2, true)
	}
}

// set changes the group's settings at both nodes.
func (r *rig) set(g *control.Group, links map[string]control.LinkSettings) {
	r.t.Helper()
	g.Revision++
	r.call("c", control.CallGroupConfigure, control.GroupSpec{Group: *g, Role: control.RoleSecondary, Address: r.addresses()}, nil)
	r.call("a", control.CallGroupConfigure, control.GroupSpec{Group: *g, Role: control.RolePrimary, Address: r.addresses(), Links: links}, nil)
}

// The bytes on the link keep to the lower of the group's and the link's limit, changed while they flow, and a restart
// keeps both.
func TestLimitsOnTheWire(t *testing.T) {
	r, w := onWAN(aloneRig(t, "a", "c")) // it measures rates
	g := r.group(1, 64<<20)
	g.Limit = 2 << 20
	r.set(&g, nil)
	d := r.disks("a", 1)
	payload := make([]byte, 1<<20)
	write := func(n int) {
		t.Helper()
		for i := range n {
			for j := range payload {
				payload[j] = byte(i*7 + j*13 + j>>8)
			}
			done := make(waiter, 1)
			d[0].Target.Submit([]*block.Request{{Op: block.OpWrite, Offset: int64(i) << 20, Length: 1 << 20,
				Data: slices.Clone(payload), Completer: done}})
			<-done
		}
	}
	rate := func(what string, want int64) {
		t.Helper()
		time.Sleep(200 * time.Millisecond)
		from, at := w.bytes.Load(), time.Now()
		time.Sleep(2 * time.Second)
		got := float64(w.bytes.Load()-from) / time.Since(at).Seconds()
		if got < 0.9*float64(want) || got > 1.1*float64(want) {
			t.Errorf("%s: %.0f bytes a second, want %d", what, got, want)
		}
	}
	write(20)
	rate("the group's limit", 2<<20)
	r.set(&g, map[string]control.LinkSettings{"c": {Limit: 1 << 20}})
	rate("the link's limit", 1<<20)
	g.Limit = 300_000
	r.set(&g, nil)
	rate("the group's, lowered", 300_000)
	r.stop("a")
	r.start("a")
	r.waitFor("link up", func() bool { return r.status("a").LinkUp })
	rate("after a restart", 300_000)
	if st := r.status("a"); st.BlockedOn == "" {
		t.Errorf("with the link full nothing is said: %+v", st)
	}
	g.Limit = 0
	r.set(&g, map[string]control.LinkSettings{"c": {}})
	began := time.Now()
	r.waitFor("in step", func() bool { st := r.status("a"); return st.Applied == st.Appended })
	if d := time.Since(began); d > 5*time.Second {
		t.Errorf("without a limit the rest took %v", d)
	}
}

// The stream is compressed by what is set, changed while it flows, and data that does not shrink costs nothing on the
// link. What arrives is what was written.
func TestCompressedStream(t *testing.T) {
	r, w := wanRig(t)
	g := r.group(1, 64<<20)
	d := r.disks("a", 1)
	const size = 8 << 20
	text := bytes.Repeat([]byte("a page of a database, half of which is always the same, says "), size/61+1)[:size]
	noise := make([]byte, size)
	rand.NewChaCha8([32]byte{3}).Read(noise)
	for i, c := range []struct {
		method   string
		data     []byte
		low, top float64 // of the data's size on the link
	}{{"s2", text, 0, 0.3}, {"zstd", text, 0, 0.2}, {"off", text, 1, 1.2}, {"zstd", noise, 1, 1.2}, {"s2", noise, 1, 1.2}} {
		g.Compress = c.method
		r.set(&g, nil)
		from, counted := w.bytes.Load(), r.status("a").WANBytesSent
		for off := 0; off < size; off += 64 << 10 {
			done := make(waiter, 1)
			d[0].Target.Submit([]*block.Request{{Op: block.OpWrite, Offset: int64(off), Length: 64 << 10,
				Data: slices.Clone(c.data[off : off+64<<10]), Completer: done}})
			<-done
		}
		r.waitFor("in step", func() bool { st := r.status("a"); return st.Applied == st.Appended })
		sent := float64(w.bytes.Load() - from)
		if sent < c.low*size || sent > c.top*size {
			t.Errorf("%d %s: %.0f bytes on the link for %d", i, c.method, sent, size)
		}
		r.waitFor("counted", func() bool { return float64(r.status("a").WANBytesSent-counted) >= 0.99*sent })
		got := make([]byte, size)
		if _, err := r.images("c", 1)[0].ReadAt(got, 0); err != nil || !bytes.Equal(got, c.data) {
			t.Errorf("%d %s: the copy differs (%v)", i, c.method, err)
		}
	}
}
