package receiver_test

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"gantline/internal/apply"
	"gantline/internal/receiver"
	"gantline/internal/record"
	"gantline/internal/sender"
	"gantline/internal/wire"

	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func id(n uint64, node string) record.EpochID { return record.EpochID{Number: n, Node: node} }

func openRow(e uint64, node string, first record.Seq) record.Row {
	return record.Row{Epoch: e, Incarnation: 1, Node: node, First: first}
}

func closedRow(e uint64, node string, first, last record.Seq) record.Row {
	return record.Row{Epoch: e, Incarnation: 1, Node: node, First: first, Last: last, Closed: true}
}

// write is a host's write whose data follow from its number, so that the wrong bytes are noticed.
func write(epoch uint64, seq record.Seq, size int) record.Record {
	data := bytes.Repeat([]byte(fmt.Sprintf("%015d\n", seq)), size/16+1)[:size]
	return record.Record{Seq: seq, Epoch: epoch, Incarnation: 1, Op: record.OpWrite, Volume: 1, Offset: uint64(seq) * 512,
		Length: uint32(size), CRC: record.Checksum(data), Data: data}
}

func writes(epoch uint64, first, last record.Seq, size int) []record.Record {
	var recs []record.Record
	for seq := first; seq <= last; seq++ {
		recs = append(recs, write(epoch, seq, size))
	}
	return recs
}

// fence ends an epoch at seq and names the next.
func fence(epoch uint64, seq record.Seq, next record.EpochID) record.Record {
	data := fmt.Appendf(nil, `{"number":%d,"node":%q}`, next.Number, next.Node)
	return record.Record{Seq: seq, Epoch: epoch, Incarnation: 1, Op: record.OpFence, Length: uint32(len(data)),
		CRC: record.Checksum(data), Data: data}
}

// keeper is a log, and where the receiver's state is kept.
type keeper interface {
	receiver.Store
	apply.Log
	state() []byte
	save(b []byte) error
}

// secondary is one life of a subscriber: journal, receiver, applying.
type secondary struct {
	store *memStore // nil if it is another keeper
	recv  *receiver.Receiver
	loop  *apply.Loop
	vols  *volumes
	stop  func()

	alive   context.Context // ends with its life
	die     context.CancelFunc
	pulling sync.WaitGroup
}

// site serves whatever life of the secondary there is just now, on one address.
type site struct {
	t      testing.TB
	addr   string
	life   atomic.Pointer[secondary]
	killed atomic.Bool
	mu     sync.Mutex
	conns  map[*wire.Incoming]context.CancelFunc
	limit  func(conn int) int64 // bytes a dialled connection may carry, both ways; nil: no limit
	dials  atomic.Int64
	delay  time.Duration // SyncDelay
	lost   int           // power losses that took records
	pull   bool          // the receiver dials
	lanes  int           // connections of a stream
}

func newSite(t testing.TB) *site {
	s := &site{t: t, conns: map[*wire.Incoming]context.CancelFunc{}, pull: strings.HasPrefix(t.Name(), "TestPull/"), lanes: 1}
	if strings.HasPrefix(t.Name(), "TestBundle") {
		s.lanes, s.pull = 3, strings.HasPrefix(t.Name(), "TestBundlePull/")
	}
	ctx, cancel := context.WithCancel(context.Background())
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	s.addr = l.Addr().String()
	server := wire.NewServer(wire.Handlers{Self: wire.Hello{Role: "node", Name: "c"}, Stream: s.stream}, wire.Limits{})
	var wg sync.WaitGroup
	wg.Go(func() { _ = server.Serve(ctx, l) })
	t.Cleanup(func() {
		s.kill()
		cancel()
		wg.Wait()
	})
	return s
}

func (s *site) stream(ctx context.Context, in *wire.Incoming) error {
	ctx, cancel := context.WithCancel(ctx)
	s.mu.Lock()
	s.conns[in] = cancel
	s.mu.Unlock()
	defer func() {
		cancel()
		s.mu.Lock()
		delete(s.conns, in)
		s.mu.Unlock()
	}()
	life := s.life.Load()
	if life == nil {
		return &wire.Error{Kind: wire.KindUnavailable, Message: "starting"}
	}
	return life.recv.Handle(ctx, in)
}

// start begins a life on the store.
func (s *site) start(store keeper) *secondary {
	life, err := s.open(store)
	if err != nil {
		s.t.Fatal(err)
	}
	s.life.Store(life)
	return life
}

func (s *site) open(store keeper) (*secondary, error) {
	life := &secondary{vols: &volumes{}}
	life.store, _ = store.(*memStore)
	life.alive, life.die = context.WithCancel(context.Background())
	durable, stored := store.Cursors()
	var recv atomic.Pointer[receiver.Receiver]
	loop, err := apply.Open(apply.Config{Log: store, Sink: life.vols, State: apply.State{Consistent: true}, Stored: stored,
		Durable: durable, BatchRecords: 64, Progress: func(seq record.Seq) {
			if r := recv.Load(); r != nil {
				r.Applied(seq)
			}
		}})
	if err != nil {
		return nil, err
	}
	life.loop = loop
	life.recv, err = receiver.Open(receiver.Config{Group: "g", Store: store, Applier: loop, State: store.state(),
		AckEvery: 50 * time.Millisecond, SyncDelay: s.delay, Save: store.save})
	if err != nil {
		return nil, err
	}
	recv.Store(life.recv)
	ctx, cancel := context.WithCancel(context.Background())
	var wg sync.WaitGroup
	wg.Go(func() { _ = life.recv.Run(ctx) })
	wg.Go(func() { _ = loop.Run(ctx) })
	life.stop = func() { cancel(); wg.Wait() }
	return life, nil
}

// kill ends the present life: connections first, so that nothing is acknowledged by a process that is dead.
func (s *site) kill() {
	s.mu.Lock()
	life := s.life.Swap(nil)
	if life == nil {
		s.mu.Unlock()
		return
	}
	for _, cancel := range s.conns {
		cancel()
	}
	s.mu.Unlock()
	life.die()
	life.pulling.Wait()
	life.stop()
}

// dial connects, by a link that is cut after as many bytes as limit says.
func (s *site) dial(ctx context.Context) (net.Conn, error) { return s.dialTo(ctx, s.addr) }

// push opens the stream of a's first epoch by hand.
func (s *site) push() *wire.Conn {
	s.t.Helper()
	nc, err := s.dial(s.t.Context())
	if err != nil {
		s.t.Fatal(err)
	}
	h, err := wire.Hello{Role: "node", Name: "a", Group: "g", Purpose: wire.PurposeStream}.WithParams(
		wire.StreamHello{Epoch: id(1, "a"), Table: record.Table{openRow(1, "a", 1)}})
	if err != nil {
		s.t.Fatal(err)
	}
	c, _, err := wire.Handshake(s.t.Context(), nc, h)
	if err != nil {
		s.t.Fatal(err)
	}
	s.t.Cleanup(func() { c.Close() })
	return c
}

func (s *site) dialTo(ctx context.Context, addr string) (net.Conn, error) {
	var d net.Dialer
	nc, err := d.DialContext(ctx, "tcp", addr)
	n := s.dials.Add(1)
	if err != nil || s.limit == nil {
		return nc, err
	}
	return &cutConn{Conn: nc, left: s.limit(int(n))}, nil
}

// cutConn is a link that breaks after so many bytes, in the middle of whatever frame that is.
type cutConn struct {
	net.Conn
	mu   sync.Mutex
	left int64 // negative: no limit
}

func (c *cutConn) spend(n int) (may int, over bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.left < 0 {
		return n, false
	}
	if may = min(n, int(c.left)); may < n {
		over = true
	}
	c.left -= int64(may)
	return may, over
}

func (c *cutConn) Write(p []byte) (int, error) {
	may, over := c.spend(len(p))
	n, err := c.Conn.Write(p[:may])
	if over && err == nil {
		_ = c.Conn.Close()
		err = io.ErrClosedPipe
	}
	return n, err
}

func (c *cutConn) Read(p []byte) (int, error) {
	n, err := c.Conn.Read(p)
	if may, over := c.spend(n); over {
		_ = c.Conn.Close()
		return may, io.ErrUnexpectedEOF
	}
	return n, err
}

// send starts a sender of the log; it is stopped at the test's end or by the returned function.
func (s *site) send(node string, log sender.Source, change ...func(*sender.Config)) (*sender.Sender, func()) {
	cfg := sender.Config{Source: log, Hello: wire.Hello{Role: "node", Name: node, Group: "g"}, Dial: s.dial,
		Heartbeat: 50 * time.Millisecond, Retry: 5 * time.Millisecond, BatchRecords: 32}
	for _, f := range change {
		f(&cfg)
	}
	cfg.Pull, cfg.Connections = s.pull, func() int { return s.lanes }
	snd := sender.New(cfg)
	ctx, cancel := context.WithCancel(context.Background())
	var wg sync.WaitGroup
	wg.Go(func() { snd.Run(ctx) })
	if s.pull {
		addr := serveSource(s.t, ctx, &wg, node, snd)
		wg.Go(func() { s.pullFrom(ctx, node, addr) })
	}
	stop := func() { cancel(); wg.Wait() }
	s.t.Cleanup(stop)
	return snd, stop
}

// serveSource lets receivers ask the sender for records.
func serveSource(t testing.TB, ctx context.Context, wg *sync.WaitGroup, node string, snd *sender.Sender) string {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	server := wire.NewServer(wire.Handlers{Self: wire.Hello{Role: "node", Name: node}, Stream: snd.Handle}, wire.Limits{})
	wg.Go(func() { _ = server.Serve(ctx, l) })
	return l.Addr().String()
}

// pullFrom has each life of the secondary ask the source.
func (s *site) pullFrom(ctx context.Context, node, addr string) {
	for ; ctx.Err() == nil; time.Sleep(time.Millisecond) {
		s.mu.Lock()
		life := s.life.Load()
		if life != nil {
			life.pulling.Add(1)
		}
		s.mu.Unlock()
		if life == nil {
			continue
		}
		puller := receiver.NewPuller(receiver.PullConfig{Receiver: life.recv, Node: node, Retry: 5 * time.Millisecond,
			Hello: wire.Hello{Role: "node", Name: "c", Group: "g"},
			Dial:  func(ctx context.Context) (net.Conn, error) { return s.dialTo(ctx, addr) }})
		both, cancel := context.WithCancel(ctx)
		stop := context.AfterFunc(life.alive, cancel)
		puller.Run(both)
		stop()
		cancel()
		life.pulling.Done()
	}
}

// mustPrefix checks that got is a prefix of log, bytes included.
func mustPrefix(t testing.TB, what string, got, log []record.Record) {
	t.Helper()
	if len(got) > len(log) {
		t.Fatalf("%s has %d records, the log %d", what, len(got), len(log))
	}
	for i := range got {
		g, w := &got[i], &log[i]
		if g.Seq != w.Seq || g.Epoch != w.Epoch || g.Incarnation != w.Incarnation || g.Op != w.Op || g.Flags != w.Flags ||
			g.Offset != w.Offset || g.Length != w.Length || g.CRC != w.CRC || !bytes.Equal(g.Data, w.Data) {
			t.Fatalf("%s: place %d holds record %d of epoch %d/%d, the log's is %d of epoch %d/%d", what, i,
				g.Seq, g.Epoch, g.Incarnation, w.Seq, w.Epoch, w.Incarnation)
		}
	}
}

func newRand(t testing.TB, seed uint64) *rand.Rand {
	t.Logf("seed %d", seed)
	return rand.New(rand.NewPCG(seed, 1))
}
