package gateway

import (
	"bytes"
	"context"
	"errors"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"

	"gantline/internal/block"
	"gantline/internal/nbd"
	"gantline/internal/route"
	"gantline/internal/wire"
)

func TestMain(m *testing.M) {
	goleak.VerifyTestMain(m, goleak.IgnoreAnyFunction("net/http.(*persistConn).readLoop"), goleak.IgnoreAnyFunction("net/http.(*persistConn).writeLoop"))
}

// disk is a volume at a node; several nodes may share one, as after a move.
type disk struct {
	mu   sync.Mutex
	data []byte
}

// node serves one volume over wire.
type node struct {
	addr string
	disk *disk

	mu     sync.Mutex
	moved  *block.MovedError
	refuse error
	conns  []*wire.Conn
	count  int
}

func newNode(t *testing.T, d *disk) *node {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	n := &node{addr: ln.Addr().String(), disk: d}
	sessions := wire.NewSessions(wire.SessionLimits{}, nil)
	srv := wire.NewServer(wire.Handlers{IO: func(ctx context.Context, in *wire.Incoming) error {
		var p wire.IOParams
		if err := in.Peer.Decode(&p); err != nil {
			return err
		}
		n.mu.Lock()
		refuse := n.refuse
		n.conns = append(n.conns, in.Conn)
		n.mu.Unlock()
		if refuse != nil {
			return refuse
		}
		return sessions.Serve(ctx, in, p, wire.IOAnswer{Size: int64(len(d.data)), Epoch: p.Epoch}, n, wire.IOHooks{})
	}}, wire.Limits{})
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() { defer close(done); _ = srv.Serve(ctx, ln) }()
	t.Cleanup(func() { cancel(); <-done })
	return n
}

func (n *node) Submit(reqs []*block.Request) {
	for _, r := range reqs {
		r.Finish(n.do(r))
	}
}

func (n *node) do(r *block.Request) error {
	n.mu.Lock()
	n.count++
	moved := n.moved
	n.mu.Unlock()
	if moved != nil {
		return moved
	}
	n.disk.mu.Lock()
	defer n.disk.mu.Unlock()
	switch r.Op {
	case block.OpRead:
		copy(r.Data, n.disk.data[r.Offset:])
	case block.OpWrite:
		copy(n.disk.data[r.Offset:], r.Data)
	}
	return nil
}

func (n *node) vvol(name string, epoch uint64) VVol {
	return VVol{Name: name, Size: int64(len(n.disk.data)), Volume: "v", Node: n.addr, Address: n.addr, Epoch: epoch}
}

// manager hands out tables.
type manager struct {
	mu      sync.Mutex
	table   Table
	changed chan struct{}
	away    bool
	last    Report
	err     error
}

func newManager(vs ...VVol) *manager {
	return &manager{table: Table{Revision: 1, VVols: vs}, changed: make(chan struct{})}
}

func (m *manager) Sync(ctx context.Context, r Report) (Table, error) {
	m.mu.Lock()
	m.last = r
	t, changed, away, err := m.table, m.changed, m.away, m.err
	m.mu.Unlock()
	if err != nil {
		return Table{}, err
	}
	if away {
		return Table{}, errors.New("connection refused")
	}
	if t.Revision == r.Applied {
		select {
		case <-changed:
		case <-time.After(500 * time.Millisecond):
		case <-ctx.Done():
			return Table{}, ctx.Err()
		}
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.table, nil
}

func (m *manager) set(f func()) {
	m.mu.Lock()
	defer m.mu.Unlock()
	f()
	m.table.Revision++
	close(m.changed)
	m.changed = make(chan struct{})
}

func (m *manager) report() Report { m.mu.Lock(); defer m.mu.Unlock(); return m.last }

// run starts a gateway and returns its addresses.
func run(t *testing.T, cfg Config) (Ready, func() error) {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	ready := make(chan Ready, 1)
	end := make(chan error, 1)
	if cfg.NBD == "" {
		cfg.NBD = "127.0.0.1:0"
	}
	cfg.Name, cfg.HTTP = "g", "127.0.0.1:0"
	cfg.Ready = func(r Ready) { ready <- r }
	go func() { end <- Run(ctx, cfg) }()
	var once sync.Once
	var err error
	stop := func() error {
		once.Do(func() {
			cancel()
			select {
			case err = <-end:
			case <-time.After(15 * time.Second):
				err = errors.New("Run does not return")
			}
		})
		return err
	}
	t.Cleanup(func() {
		if err := stop(); err != nil {
			t.Errorf("Run: %v", err)
		}
	})
	select {
	case r := <-ready:
		return r, stop
	case err := <-end:
		end <- nil
		t.Fatalf("Run: %v", err)
	case <-time.After(10 * time.Second):
		t.Fatal("not ready")
	}
	return Ready{}, nil
}

type waiter chan *block.Request

func (w waiter) Complete(r *block.Request) { w <- r }

func io1(t *testing.T, c *nbd.Client, op block.Op, off int64, data []byte) error {
	t.Helper()
	w := make(waiter, 1)
	c.Submit([]*block.Request{{Op: op, Offset: off, Length: int64(len(data)), Data: data, Completer: w}})
	select {
	case r := <-w:
		return r.Err
	case <-time.After(10 * time.Second):
		t.Fatal("no answer")
		return nil
	}
}

func dial(t *testing.T, addr, name string) *nbd.Client {
	t.Helper()
	c, err := nbd.Dial(t.Context(), "tcp", addr, name)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = c.Close() })
	return c
}

func check(t *testing.T, c *nbd.Client, off int64, want string) {
	t.Helper()
	got := make([]byte, len(want))
	if err := io1(t, c, block.OpRead, off, got); err != nil || string(got) != want {
		t.Fatalf("read %q, %v; want %q", got, err, want)
	}
}

func write(t *testing.T, c *nbd.Client, off int64, data string) {
	t.Helper()
	if err := io1(t, c, block.OpWrite, off, []byte(data)); err != nil {
		t.Fatal(err)
	}
}

func TestAHostKeepsItsConnectionThroughSwitchAndMove(t *testing.T) {
	d := &disk{data: make([]byte, 1<<20)}
	a, b := newNode(t, d), newNode(t, d)
	m := newManager(a.vvol("v1", 1))
	var mu sync.Mutex
	var points []string
	addr, _ := run(t, Config{DataDir: t.TempDir(), Routes: m, Point: func(step, edge string) {
		mu.Lock()
		defer mu.Unlock()
		points = append(points, step+"."+edge)
	}})
	c := dial(t, addr.NBD, "v1")
	if c.Size() != 1<<20 {
		t.Fatalf("size %d", c.Size())
	}
	write(t, c, 0, "one")
	m.set(func() { m.table.VVols = []VVol{b.vvol("v1", 1)} })
	eventually(t, func() bool { return m.report().Applied == 2 })
	write(t, c, 4096, "two")
	b.mu.Lock()
	if b.count != 1 {
		t.Fatalf("%d requests at b after the switch", b.count)
	}
	b.mu.Unlock()
	mu.Lock()
	if strings.Join(points, " ") != "switch.before switch.after" {
		t.Fatalf("points %v", points)
	}
	mu.Unlock()
	// The volume moves back by word of the node; the manager hears of the epoch.
	b.mu.Lock()
	b.moved = &block.MovedError{Node: a.addr, Address: a.addr, Volume: "v", Epoch: 2}
	b.mu.Unlock()
	check(t, c, 0, "one")
	check(t, c, 4096, "two")
	eventually(t, func() bool {
		r := m.report()
		return len(r.VVols) == 1 && r.VVols[0] == VVolReport{"v1", 1, 2}
	})
	_ = c.Close()
	eventually(t, func() bool { return m.report().VVols[0].Sessions == 0 })
}

// Epochs order the owners of one group. A volume of another group, or of none, has lower ones without being older.
func TestAVolumeIsSwitchedToAnotherGroupWithALowerEpoch(t *testing.T) {
	a, b, lone := newNode(t, &disk{data: make([]byte, 1<<20)}), newNode(t, &disk{data: make([]byte, 1<<20)}), newNode(t, &disk{data: make([]byte, 1<<20)})
	of := func(v VVol, group string) []VVol { v.Group = group; return []VVol{v} }
	m := newManager(of(a.vvol("v1", 5), "g")...)
	dir := t.TempDir()
	addr, stop := run(t, Config{DataDir: dir, Routes: m})
	c := dial(t, addr.NBD, "v1")
	write(t, c, 0, "first")
	for i, next := range []struct {
		n     *node
		table []VVol
	}{{b, of(b.vvol("v1", 2), "h")}, {lone, of(lone.vvol("v1", 0), "")}} {
		m.set(func() { m.table.VVols = next.table })
		eventually(t, func() bool { return m.report().Applied == uint64(i+2) })
		write(t, c, 4096, "next")
		next.n.mu.Lock()
		if next.n.count != 1 {
			t.Fatalf("switch %d: %d requests at the new place", i, next.n.count)
		}
		next.n.mu.Unlock()
	}
	_ = c.Close()
	if err := stop(); err != nil {
		t.Fatal(err)
	}
	// After a restart with the manager away it still leads there.
	m.set(func() { m.away = true })
	addr, _ = run(t, Config{DataDir: dir, Routes: m})
	c = dial(t, addr.NBD, "v1")
	check(t, c, 4096, "next")
	_ = c.Close()
}

func TestItServesFromItsOwnTableWhileTheManagerIsAway(t *testing.T) {
	d := &disk{data: make([]byte, 1<<20)}
	a := newNode(t, d)
	dir := t.TempDir()
	m := newManager(a.vvol("v1", 1))
	addr, stop := run(t, Config{DataDir: dir, Routes: m})
	c := dial(t, addr.NBD, "v1")
	write(t, c, 0, "kept")
	if err := stop(); err != nil {
		t.Fatal(err)
	}
	install := m.report().Install
	// One copy of the state rots; the manager is away.
	if err := os.WriteFile(filepath.Join(dir, "gateway.state.a"), []byte("rot"), 0o600); err != nil {
		t.Fatal(err)
	}
	m.away = true
	addr, _ = run(t, Config{DataDir: dir, Routes: m})
	check(t, dial(t, addr.NBD, "v1"), 0, "kept")
	eventually(t, func() bool { return m.report().Instance != "" })
	// What it serves by was never confirmed to this manager, which may be another one than before.
	if m.report().Install != install || m.report().Applied != 0 {
		t.Fatalf("report %+v", m.report())
	}
	for path, want := range map[string]string{"/livez": "ok", "/readyz": "ok", "/metrics": `gantline_gateway_sessions{vvol="v1"} 1`} {
		resp, err := http.Get("http://" + addr.HTTP + path)
		if err != nil {
			t.Fatal(err)
		}
		body, _ := io.ReadAll(resp.Body)
		_ = resp.Body.Close()
		if !bytes.Contains(body, []byte(want)) {
			t.Errorf("%s: %s", path, body)
		}
	}
	http.DefaultClient.CloseIdleConnections()
	m.mu.Lock()
	m.away = false
	m.mu.Unlock()
	eventually(t, func() bool { return m.report().Applied == 1 })
}

// The manager comes back from a backup: its history is another one, and by chance its table has the same number.
func TestATableOfTheSameRevisionFromAnotherHistoryIsTaken(t *testing.T) {
	a, b := newNode(t, &disk{data: make([]byte, 1<<20)}), newNode(t, &disk{data: make([]byte, 1<<20)})
	m := newManager(a.vvol("v1", 1))
	addr, _ := run(t, Config{DataDir: t.TempDir(), Routes: m})
	eventually(t, func() bool { return m.report().Applied == 1 })
	m.mu.Lock()
	m.away = true
	m.mu.Unlock()
	eventually(t, func() bool { return m.report().Applied == 0 }) // and stays so while it is away
	m.mu.Lock()
	m.table, m.away = Table{Revision: 1, VVols: []VVol{b.vvol("v1", 1)}}, false
	m.mu.Unlock()
	eventually(t, func() bool { return m.report().Applied == 1 })
	c := dial(t, addr.NBD, "v1")
	write(t, c, 0, "there")
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.count != 1 {
		t.Fatalf("%d requests at the new place", b.count)
	}
	_ = c.Close()
}

func TestANewGatewayWaitsForTheManager(t *testing.T) {
	a := newNode(t, &disk{data: make([]byte, 4096)})
	m := newManager(a.vvol("v1", 1))
	m.away = true
	go func() {
		time.Sleep(200 * time.Millisecond)
		m.mu.Lock()
		m.away = false
		m.mu.Unlock()
	}()
	start := time.Now()
	run(t, Config{DataDir: t.TempDir(), Routes: m})
	if time.Since(start) < 200*time.Millisecond {
		t.Fatal("ready without a table")
	}
}

func TestWhoMayOpenWhat(t *testing.T) {
	a := newNode(t, &disk{data: make([]byte, 4096)})
	ro, other, denied, mine := a.vvol("ro", 1), a.vvol("elsewhere", 1), a.vvol("denied", 1), a.vvol("mine", 1)
	ro.ReadOnly = true
	denied.Hosts = []Host{{Name: "10.1.2.3"}}
	mine.Hosts = []Host{{Name: "127.0.0.1", ReadOnly: true}}
	m := newManager(ro, other, denied, mine)
	addr, _ := run(t, Config{DataDir: t.TempDir(), Routes: m})
	for name, want := range map[string]error{"nope": nbd.ErrUnknownExport, "denied": nbd.ErrDenied} {
		if _, err := nbd.Dial(t.Context(), "tcp", addr.NBD, name); err == nil {
			t.Errorf("%s opens, want %v", name, want)
		}
	}
	for _, name := range []string{"ro", "mine"} {
		c := dial(t, addr.NBD, name)
		if !c.ReadOnly() {
			t.Errorf("%s is not read-only", name)
		}
		if err := io1(t, c, block.OpWrite, 0, []byte("x")); err == nil {
			t.Errorf("%s takes a write", name)
		}
		if err := io1(t, c, block.OpRead, 0, make([]byte, 10)); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestAnEndedSessionClosesTheHostsConnection(t *testing.T) {
	a := newNode(t, &disk{data: make([]byte, 4096)})
	dir := t.TempDir()
	unix := filepath.Join(dir, "s")
	addr, _ := run(t, Config{DataDir: dir, Routes: newManager(a.vvol("v1", 1)), NBDUnix: unix})
	overUnix, err := nbd.Dial(t.Context(), "unix", unix, "v1")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = overUnix.Close() })
	for _, c := range []*nbd.Client{dial(t, addr.NBD, "v1"), overUnix} {
		write(t, c, 0, "x")
	}
	a.mu.Lock()
	a.refuse = block.ErrSession
	for _, c := range a.conns {
		c.Abort(errors.New("cut"))
	}
	a.mu.Unlock()
	c := dial(t, addr.NBD, "v1")
	for _, c := range []*nbd.Client{c, overUnix} {
		if err := io1(t, c, block.OpFlush, 0, nil); err == nil {
			t.Error("answered without error")
		}
		select {
		case <-c.Done():
		case <-time.After(5 * time.Second):
			t.Error("the host's connection stays open")
		}
	}
}

func TestItStopsInTimeWithRequestsThatWait(t *testing.T) {
	a := newNode(t, &disk{data: make([]byte, 4096)})
	v := a.vvol("v1", 1)
	v.Address = "127.0.0.1:1" // nobody
	addr, stop := run(t, Config{DataDir: t.TempDir(), Routes: newManager(v)})
	c := dial(t, addr.NBD, "v1")
	w := make(waiter, 1)
	c.Submit([]*block.Request{{Op: block.OpFlush, Completer: w}})
	time.Sleep(50 * time.Millisecond)
	start := time.Now()
	if err := stop(); err != nil {
		t.Fatal(err)
	}
	if d := time.Since(start); d > 9*time.Second {
		t.Fatalf("took %v", d)
	}
	if r := <-w; r.Err == nil {
		t.Fatal("the request was answered without error")
	}
}

func TestWhatCannotBeIsRefused(t *testing.T) {
	dir := t.TempDir()
	m := newManager()
	for _, c := range []struct {
		name string
		cfg  Config
		want string
	}{
		{"not loopback", Config{Name: "g", DataDir: dir, NBD: "0.0.0.0:0", Routes: m}, "only loopback"},
		{"no address", Config{Name: "g", DataDir: dir, NBD: "127.0.0.1", Routes: m}, "listen address"},
		{"another's directory", Config{Name: "h", DataDir: dir, NBD: "127.0.0.1:0", Routes: m}, `belongs to gateway "g"`},
	} {
		if err := Run(t.Context(), c.cfg); err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: %v", c.name, err)
		}
	}
	m.err = ErrRefused
	if err := Run(t.Context(), Config{Name: "g", DataDir: dir, NBD: "127.0.0.1:0", Routes: m}); !errors.Is(err, ErrRefused) {
		t.Errorf("refused by the manager: %v", err)
	}
}

func TestATableThatMakesNoSenseIsNotUsed(t *testing.T) {
	a := newNode(t, &disk{data: make([]byte, 4096)})
	m := newManager(a.vvol("v1", 1))
	addr, _ := run(t, Config{DataDir: t.TempDir(), Routes: m})
	bad := a.vvol("v1", 1)
	bad.InFlight = "perhaps"
	m.set(func() { m.table.VVols = []VVol{bad} })
	time.Sleep(100 * time.Millisecond)
	if got := m.report().Applied; got != 1 {
		t.Fatalf("revision %d applied", got)
	}
	write(t, dial(t, addr.NBD, "v1"), 0, "x")
	// An empty table takes the volume off the list and leaves open sessions alone.
	c := dial(t, addr.NBD, "v1")
	write(t, c, 0, "y")
	m.set(func() { m.table.VVols = nil })
	eventually(t, func() bool { return m.report().Applied == 3 })
	write(t, c, 0, "z")
	if _, err := nbd.Dial(t.Context(), "tcp", addr.NBD, "v1"); err == nil {
		t.Fatal("a volume that is not listed opens")
	}
}

func eventually(t *testing.T, ok func() bool) {
	t.Helper()
	for end := time.Now().Add(10 * time.Second); !ok(); time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			t.Fatal("does not come about")
		}
	}
}

// The policy of a switch is for that switch alone: not for a node that has come back at another address, nor for a new epoch.
func TestPolicyIsOfASwitchToAnotherVolume(t *testing.T) {
	was := VVol{Node: "a", Volume: "v", Address: "x:1", Group: "g", Epoch: 1, InFlight: "error"}
	for name, c := range map[string]struct {
		to   func(*VVol)
		want route.Policy
	}{
		"another node":    {func(v *VVol) { v.Node = "b" }, route.Error},
		"another volume":  {func(v *VVol) { v.Volume, v.InFlight = "w", "hold" }, route.Hold},
		"another address": {func(v *VVol) { v.Address = "x:2" }, route.Finish},
		"another epoch":   {func(v *VVol) { v.Epoch = 2 }, route.Finish},
		"another group":   {func(v *VVol) { v.Group = "h" }, route.Finish},
	} {
		is := was
		c.to(&is)
		if got := is.policyFrom(was); got != c.want {
			t.Errorf("%s: %s, wanted %s", name, got, c.want)
		}
	}
}
