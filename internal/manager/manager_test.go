package manager

import (
	"context"
	"encoding/json"
	"errors"
	"log/slog"
	"net"
	"net/http"
	"os"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"gantline/internal/control"
	"gantline/internal/manager/client"
	"gantline/internal/manager/fakenode"
)

// system is a manager with fake nodes a, b, c, all over real sockets.
type system struct {
	t      *testing.T
	store  control.Store
	addr   string
	client *client.Client
	nodes  map[string]*fakenode.Node
	point  func(step, edge string)

	stop func() // and joins
	cut  func() // without joining
	m    *Manager
}

func newSystem(t *testing.T, names ...string) *system {
	t.Helper()
	s := &system{t: t, store: control.NewMemory(), nodes: map[string]*fakenode.Node{}}
	s.start()
	t.Cleanup(func() { s.stop() })
	for _, name := range names {
		s.addNode(name)
	}
	return s
}

func logger(t *testing.T) *slog.Logger {
	if os.Getenv("GANTLINE_TEST_LOG") == "" {
		return slog.New(slog.DiscardHandler)
	}
	return slog.New(slog.NewTextHandler(t.Output(), &slog.HandlerOptions{Level: slog.LevelDebug}))
}

// start begins a manager on the store; again after stop, on the same address.
func (s *system) start() {
	s.t.Helper()
	addr := s.addr
	if addr == "" {
		addr = "127.0.0.1:0"
	}
	l, err := net.Listen("tcp", addr)
	if err != nil {
		s.t.Fatal(err)
	}
	s.addr = l.Addr().String()
	m := New(Config{Store: s.store, Logger: logger(s.t), Version: "test", Point: func(step, edge string) {
		if s.point != nil {
			s.point(step, edge)
		}
	}})
	s.m = m
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- m.Serve(ctx, l) }()
	s.cut = sync.OnceFunc(func() {
		cancel()
		_ = l.Close()
		s.stop = func() {}
	})
	s.stop = sync.OnceFunc(func() {
		cancel()
		if err := <-done; err != nil {
			s.t.Errorf("manager: %v", err)
		}
	})
	if s.client == nil {
		if s.client, err = client.New("http://" + s.addr); err != nil {
			s.t.Fatal(err)
		}
	}
}

func (s *system) addNode(name string) {
	s.t.Helper()
	n := fakenode.New(name)
	if err := n.Start(s.client, "run1"); err != nil {
		s.t.Fatal(err)
	}
	s.nodes[name] = n
	s.t.Cleanup(n.Stop)
	s.eventually("node "+name+" is up", func() bool {
		var v control.NodeView
		return s.client.Do(context.Background(), "GET", "/v1/nodes/"+name, nil, &v) == nil && v.State == "up"
	})
}

func (s *system) eventually(what string, f func() bool) {
	s.t.Helper()
	deadline := time.Now().Add(10 * time.Second)
	for !f() {
		if time.Now().After(deadline) {
			s.t.Fatalf("not within 10 s: %s", what)
		}
		time.Sleep(10 * time.Millisecond)
	}
}

func (s *system) do(method, path string, in, out any) error {
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	defer cancel()
	return s.client.Do(ctx, method, path, in, out)
}

func (s *system) must(method, path string, in, out any) {
	s.t.Helper()
	if err := s.do(method, path, in, out); err != nil {
		s.t.Fatalf("%s %s: %v", method, path, err)
	}
}

// refused wants a kind and a word of the reason.
func (s *system) refused(kind control.Kind, word, method, path string, in any) {
	s.t.Helper()
	err := s.do(method, path, in, nil)
	if control.KindOf(err) != kind || err == nil || !strings.Contains(err.Error(), word) {
		s.t.Fatalf("%s %s: got %s (%v), want %s with %q", method, path, control.KindOf(err), err, kind, word)
	}
}

// pair builds volumes v1 on a and c, a group g of them, and a vvol that leads to a/v1.
func (s *system) pair() {
	s.t.Helper()
	for _, v := range []string{"a/v1", "c/v1"} {
		s.must("POST", "/v1/volumes", control.VolumeRequest{Name: v, Size: 1 << 20}, nil)
	}
	s.must("POST", "/v1/groups", control.GroupRequest{Name: "g", Primary: "a", Secondary: "c"}, nil)
	s.must("POST", "/v1/groups/g/pairs", control.PairRequest{Primary: "a/v1", Secondary: "c/v1"}, nil)
	s.must("POST", "/v1/vvols", control.VvolRequest{Name: "disk", Volume: "a/v1"}, nil)
}

func (s *system) group() control.GroupView {
	s.t.Helper()
	var v control.GroupView
	s.must("GET", "/v1/groups/g", nil, &v)
	return v
}

func (s *system) move(id string) control.MigrationView {
	s.t.Helper()
	var v control.MigrationView
	s.must("GET", "/v1/migrations/"+id, nil, &v)
	return v
}

func TestVolumesAndJournals(t *testing.T) {
	s := newSystem(t, "a")
	var v control.VolumeView
	req := control.VolumeRequest{Name: "a/v1", Size: 1 << 20}
	s.must("POST", "/v1/volumes", req, &v)
	if v.Name != "a/v1" || v.ID != "id-v1" || v.Size != 1<<20 || v.Role == nil || *v.Role != "lone" {
		t.Fatalf("created %+v", v)
	}
	s.must("POST", "/v1/volumes", req, nil) // again: done
	s.refused(control.KindRefused, "exists with", "POST", "/v1/volumes", control.VolumeRequest{Name: "a/v1", Size: 2 << 20})
	s.refused(control.KindUsage, "multiple of", "POST", "/v1/volumes", control.VolumeRequest{Name: "a/v2", Size: 100})
	s.refused(control.KindUsage, "name", "POST", "/v1/volumes", control.VolumeRequest{Name: "a/V2", Size: 1 << 20})
	s.refused(control.KindUsage, "NODE/NAME", "POST", "/v1/volumes", control.VolumeRequest{Name: "v2", Size: 1 << 20})
	s.refused(control.KindNotFound, "node z", "POST", "/v1/volumes", control.VolumeRequest{Name: "z/v2", Size: 1 << 20})
	s.refused(control.KindUsage, "unexpected property", "POST", "/v1/volumes", map[string]any{"name": "a/v2", "size": 1 << 20, "colour": 1})
	s.refused(control.KindRefused, "one namespace", "POST", "/v1/journals", control.JournalRequest{Name: "a/v1", Size: 1 << 20})
	s.must("POST", "/v1/journals", control.JournalRequest{Name: "a/j1", Size: 1 << 20}, nil)
	s.refused(control.KindNotFound, "does not exist", "GET", "/v1/volumes/a/v9", nil)
	s.must("DELETE", "/v1/volumes/a/v1", nil, nil)
	s.refused(control.KindNotFound, "does not exist", "DELETE", "/v1/volumes/a/v1", nil)
	if got := s.nodes["a"].Called(); !slices.Contains(got, "volume.delete v1") {
		t.Fatalf("calls %q", got)
	}
}

func TestNodeDown(t *testing.T) {
	s := newSystem(t, "a")
	s.must("POST", "/v1/volumes", control.VolumeRequest{Name: "a/v1", Size: 1 << 20}, nil)
	s.nodes["a"].Stop()
	s.refused(control.KindUnreachable, "does not answer", "POST", "/v1/volumes", control.VolumeRequest{Name: "a/v2", Size: 1 << 20})
	var v control.VolumeView
	s.must("GET", "/v1/volumes/a/v1", nil, &v)
	if v.Role != nil || v.State != nil {
		t.Fatalf("what a dead node would know is shown: %+v", v)
	}
	if err := s.nodes["a"].Start(s.client, "run2"); err != nil {
		t.Fatal(err)
	}
	s.must("POST", "/v1/volumes", control.VolumeRequest{Name: "a/v2", Size: 1 << 20}, nil)
}

func TestGroupLifecycle(t *testing.T) {
	s := newSystem(t, "a", "b", "c")
	s.pair()
	g := s.group()
	if g.State == nil || *g.State != "paired" || g.Lag.Writes == nil || *g.Lag.Writes != 0 || g.PrimaryJournal != "a/g" {
		body, _ := json.Marshal(g)
		t.Fatalf("group %s", body)
	}
	s.must("POST", "/v1/groups", control.GroupRequest{Name: "g", Primary: "a", Secondary: "c"}, nil)
	s.must("POST", "/v1/groups/g/pairs", control.PairRequest{Primary: "a/v1", Secondary: "c/v1"}, nil)
	s.refused(control.KindRefused, "other parameters", "POST", "/v1/groups", control.GroupRequest{Name: "g", Primary: "b", Secondary: "c"})
	s.refused(control.KindUsage, "it is async", "POST", "/v1/groups", control.GroupRequest{Name: "h", Primary: "a", Secondary: "c", SettingsChange: control.SettingsChange{Mode: "fast"}})
	s.refused(control.KindRefused, "group g", "DELETE", "/v1/volumes/a/v1", nil)
	s.refused(control.KindRefused, "group g", "DELETE", "/v1/journals/a/g", nil)
	s.must("POST", "/v1/volumes", control.VolumeRequest{Name: "a/big", Size: 2 << 20}, nil)
	s.must("POST", "/v1/volumes", control.VolumeRequest{Name: "c/v2", Size: 1 << 20}, nil)
	s.refused(control.KindRefused, "sizes differ", "POST", "/v1/groups/g/pairs", control.PairRequest{Primary: "a/big", Secondary: "c/v2"})
	s.refused(control.KindRefused, "is in group g", "POST", "/v1/groups/g/pairs", control.PairRequest{Primary: "a/v1", Secondary: "c/v2"})
	s.refused(control.KindRefused, "primary is a", "POST", "/v1/groups/g/pairs", control.PairRequest{Primary: "c/v2", Secondary: "c/v1"})

	s.must("POST", "/v1/groups/g/suspend", struct{}{}, nil)
	if g := s.group(); *g.State != "suspended" || !g.Suspended {
		t.Fatalf("state %s", *g.State)
	}
	s.must("POST", "/v1/groups/g/resume", control.ResumeRequest{}, nil)
	if g := s.group(); *g.State != "paired" || g.Suspended {
		t.Fatalf("state %s", *g.State)
	}
	s.must("DELETE", "/v1/groups/g", nil, nil)
	s.refused(control.KindNotFound, "does not exist", "GET", "/v1/groups/g", nil)
	s.refused(control.KindNotFound, "does not exist", "GET", "/v1/journals/a/g", nil) // it came with the group
	s.refused(control.KindRefused, "virtual volume", "DELETE", "/v1/volumes/a/v1", nil)
	s.must("DELETE", "/v1/vvols/disk", nil, nil)
	s.must("DELETE", "/v1/volumes/a/v1", nil, nil)
}

func TestGroupRefusedByNodeIsTakenBack(t *testing.T) {
	s := newSystem(t, "a", "c")
	n := s.nodes["a"]
	n.Lock()
	n.Fail = func(call string) error {
		if strings.HasPrefix(call, "group.configure") {
			return &control.Error{Kind: control.KindRefused, Message: "the journal is too small"}
		}
		return nil
	}
	n.Unlock()
	s.refused(control.KindRefused, "too small", "POST", "/v1/groups", control.GroupRequest{Name: "g", Primary: "a", Secondary: "c"})
	s.refused(control.KindNotFound, "does not exist", "GET", "/v1/groups/g", nil)
	if c := s.nodes["c"].Called(); !slices.Contains(c, "group.delete g") {
		t.Fatalf("the secondary was told of the group and not of its end: %q", c)
	}
	n.Lock()
	n.Fail = nil
	n.Unlock()
	s.must("POST", "/v1/groups", control.GroupRequest{Name: "g", Primary: "a", Secondary: "c"}, nil)
}

// A node that has taken a pair does not give it back, so neither end may take it when the other says no.
func TestARefusedPairIsTakenByNobody(t *testing.T) {
	s := newSystem(t, "a", "c")
	for _, v := range []string{"a/v1", "c/v1", "a/v2", "c/v2"} {
		s.must("POST", "/v1/volumes", control.VolumeRequest{Name: v, Size: 1 << 20}, nil)
	}
	s.must("POST", "/v1/groups", control.GroupRequest{Name: "g", Primary: "a", Secondary: "c"}, nil)
	configured := func(node string) (n int) {
		for _, c := range s.nodes[node].Called() {
			if strings.HasPrefix(c, control.CallGroupConfigure) {
				n++
			}
		}
		return n
	}
	// The primary's volume is not free: it is seen before the secondary is told.
	a := s.nodes["a"]
	a.Lock()
	a.Volumes["v1"].Role = control.RoleRetired
	a.Unlock()
	before := configured("c")
	s.refused(control.KindRefused, "retired", "POST", "/v1/groups/g/pairs", control.PairRequest{Primary: "a/v1", Secondary: "c/v1"})
	if n := configured("c"); n != before {
		t.Fatalf("the secondary was told %d times of a pair that was refused", n-before)
	}
	// The secondary says no at the last moment: the primary is not told, not in the background either.
	c := s.nodes["c"]
	c.Lock()
	c.Fail = func(call string) error {
		if strings.HasPrefix(call, control.CallGroupConfigure) {
			time.Sleep(200 * time.Millisecond) // time for the background to be faster
			return &control.Error{Kind: control.KindRefused, Message: "no"}
		}
		return nil
	}
	c.Unlock()
	before = configured("a")
	s.refused(control.KindRefused, "no", "POST", "/v1/groups/g/pairs", control.PairRequest{Primary: "a/v2", Secondary: "c/v2"})
	if n := configured("a"); n != before {
		t.Fatalf("the primary was told %d times of a pair that the secondary has refused", n-before)
	}
	if g := s.group(); len(g.Pairs) != 0 {
		t.Fatalf("pairs %+v", g.Pairs)
	}
}

func TestARefusedGroupLeavesNoJournal(t *testing.T) {
	s := newSystem(t, "a", "c")
	s.pair()
	none := func(what string) {
		t.Helper()
		for _, j := range []string{"a/h", "c/h"} {
			if err := s.do("GET", "/v1/journals/"+j, nil, nil); control.KindOf(err) != control.KindNotFound {
				t.Fatalf("%s: journal %s is there (%v)", what, j, err)
			}
		}
	}
	s.refused(control.KindRefused, "serves group g", "POST", "/v1/groups",
		control.GroupRequest{Name: "h", Primary: "a", Secondary: "c", PrimaryJournal: "a/g"})
	none("a journal of another group")
	s.refused(control.KindNotFound, "a/none", "POST", "/v1/groups",
		control.GroupRequest{Name: "h", Primary: "a", Secondary: "c", PrimaryJournal: "a/none"})
	none("a journal that is not there")
	n := s.nodes["a"]
	n.Lock()
	n.Fail = func(call string) error {
		if strings.HasPrefix(call, "journal.create") {
			return &control.Error{Kind: control.KindRefused, Message: "no space"}
		}
		return nil
	}
	n.Unlock()
	s.refused(control.KindRefused, "no space", "POST", "/v1/groups", control.GroupRequest{Name: "h", Primary: "a", Secondary: "c"})
	none("one node has no space")
	n.Lock()
	n.Fail = nil
	n.Unlock()
	s.must("POST", "/v1/groups", control.GroupRequest{Name: "h", Primary: "a", Secondary: "c"}, nil)
}

// A gateway that slept through the end of a group believes the highest epoch it has heard of: the next group of that name
// begins above it.
func TestAGroupThatIsMadeAgainBeginsAboveItsPast(t *testing.T) {
	s := newSystem(t, "a", "b", "c")
	s.pair()
	s.must("POST", "/v1/migrations", control.MoveRequest{Group: "g", To: "b", Commit: true}, nil)
	s.waitPhase("g-1", control.PhaseCommitted)
	s.must("DELETE", "/v1/groups/g", nil, nil)
	s.must("POST", "/v1/groups", control.GroupRequest{Name: "g", Primary: "b", Secondary: "c"}, nil)
	if e := s.group().Epoch; e != 3 {
		t.Fatalf("the moved group had epoch 2, the next begins in %d", e)
	}
	// Without a pair it has led nobody anywhere.
	s.must("DELETE", "/v1/groups/g", nil, nil)
	s.stop()
	s.start()
	s.eventually("the manager answers again", func() bool { return s.do("GET", "/v1/groups", nil, nil) == nil })
	s.must("POST", "/v1/groups", control.GroupRequest{Name: "g", Primary: "b", Secondary: "c"}, nil)
	if e := s.group().Epoch; e != 3 {
		t.Fatalf("a group without pairs raised the epoch to %d", e)
	}
}

func TestGroupIsToldAgainAfterRestartOfNode(t *testing.T) {
	s := newSystem(t, "a", "c")
	s.pair()
	a := s.nodes["a"]
	a.Stop()
	a.Lock()
	a.Addr = "" // comes back elsewhere
	a.Calls = nil
	a.Unlock()
	if err := a.Start(s.client, "run2"); err != nil {
		t.Fatal(err)
	}
	s.eventually("a has its group again", func() bool { return slices.Contains(a.Called(), "group.configure g") })
	c := s.nodes["c"]
	s.eventually("c knows a's new address", func() bool {
		c.Lock()
		defer c.Unlock()
		return c.Specs["g"].Address["a"] == a.Report().Node.Address
	})
}

func TestRegistration(t *testing.T) {
	s := newSystem(t, "a")
	ctx := t.Context()
	other := fakenode.New("a").Report()
	other.Node.Install, other.Node.Instance, other.Node.Address = "other", "x", "127.0.0.1:1"
	reply, err := s.client.SyncNode(ctx, other)
	if err != nil || !strings.Contains(reply.Refused, "alive") {
		t.Fatalf("a second process of the name: %q, %v", reply.Refused, err)
	}
	gw := control.GatewayReport{Gateway: control.Gateway{Name: "a", Install: "i", Instance: "x"}}
	table, err := s.client.GatewaySync(ctx, gw)
	if err != nil || !strings.Contains(table.Refused, "namespace") {
		t.Fatalf("a gateway of a node's name: %q, %v", table.Refused, err)
	}
	s.refused(control.KindRefused, "is up", "DELETE", "/v1/nodes/a", nil)
	s.nodes["a"].Stop()
	s.m.presence.forget("a") // instead of six seconds
	if reply, err = s.client.SyncNode(ctx, other); err != nil || !strings.Contains(reply.Refused, "--forget") {
		t.Fatalf("another data directory: %q, %v", reply.Refused, err)
	}
	s.must("DELETE", "/v1/nodes/a?forget=true", nil, nil)
	if reply, err = s.client.SyncNode(ctx, other); err != nil || reply.Refused != "" {
		t.Fatalf("after remove --forget: %q, %v", reply.Refused, err)
	}
	if err := control.CheckLoopback("0.0.0.0:1"); control.KindOf(err) != control.KindRefused {
		t.Fatalf("a listener for everybody: %v", err)
	}
}

func TestRoutes(t *testing.T) {
	s := newSystem(t, "a", "c")
	s.pair()
	gw := &fakeGateway{name: "gw", client: s.client}
	gw.start(t)
	s.eventually("the gateway has the route", func() bool { return len(gw.routes()) == 1 })
	r := gw.routes()[0]
	if r.Vvol != "disk" || r.Node != "a" || r.Volume != "v1" || r.Group != "g" || r.Epoch != 1 || r.Address != s.nodes["a"].Addr || r.ReadOnly {
		t.Fatalf("route %+v", r)
	}
	// A command returns when the gateway has it in force.
	s.must("POST", "/v1/vvols", control.VvolRequest{Name: "copy", Volume: "c/v1", Hosts: []string{"127.0.0.1"}}, nil)
	i := slices.IndexFunc(gw.routes(), func(r control.Route) bool { return r.Vvol == "copy" })
	if i < 0 || !gw.routes()[i].ReadOnly || len(gw.routes()[i].Hosts) != 1 {
		t.Fatalf("routes %+v", gw.routes())
	}
	var v control.VvolView
	s.must("GET", "/v1/vvols/copy", nil, &v)
	if len(v.URIs) != 2 || v.URIs[0] != "nbd://127.0.0.1:10809/copy" || v.URIs[1] != "nbd+unix:///copy?socket=/run/gw.sock" {
		t.Fatalf("uris %q", v.URIs)
	}
	s.refused(control.KindRefused, "only host", "POST", "/v1/vvols/copy/deny", control.HostRequest{Host: "127.0.0.1"})
	s.must("POST", "/v1/vvols/copy/allow", control.HostRequest{Host: "::1", ReadOnly: true}, nil)
	s.must("POST", "/v1/vvols/copy/deny", control.HostRequest{Host: "127.0.0.1"}, nil)
	s.must("GET", "/v1/vvols/copy", nil, &v)
	if len(v.Hosts) != 1 || v.Hosts[0] != (control.Host{Name: "::1", ReadOnly: true}) {
		t.Fatalf("hosts %+v", v.Hosts)
	}
}

// fakeGateway polls for routes and takes them at once.
type fakeGateway struct {
	name   string
	client *client.Client
	stop   func()
	mu     sync.Mutex
	table  control.RouteTable
	stuck  bool // it polls, and takes nothing
}

func (g *fakeGateway) routes() []control.Route {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.table.Routes
}

func (g *fakeGateway) start(t *testing.T) {
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() {
		defer close(done)
		for ctx.Err() == nil {
			g.mu.Lock()
			applied := g.table.Revision
			g.mu.Unlock()
			table, err := g.client.GatewaySync(ctx, control.GatewayReport{Applied: applied, Gateway: control.Gateway{
				Name: g.name, Install: "i", Instance: "x", NBD: []string{"127.0.0.1:10809", "unix:/run/gw.sock"}}})
			if err != nil {
				time.Sleep(10 * time.Millisecond)
				continue
			}
			g.mu.Lock()
			if !g.stuck {
				g.table = table
			}
			g.mu.Unlock()
		}
	}()
	g.stop = func() { cancel(); <-done }
	t.Cleanup(g.stop)
}

func TestDryRunChangesNothing(t *testing.T) {
	s := newSystem(t, "a", "b", "c")
	var p control.PlanView
	s.must("POST", "/v1/volumes?dry_run=true", control.VolumeRequest{Name: "a/v1", Size: 1 << 20}, &p)
	if len(p.Plan) != 2 || len(p.Refusals) != 0 {
		t.Fatalf("plan %+v", p)
	}
	s.must("POST", "/v1/groups?dry_run=true", control.GroupRequest{Name: "g", Primary: "a", Secondary: "c"}, &p)
	if len(p.Plan) < 4 || len(p.Refusals) != 0 {
		t.Fatalf("plan %+v", p)
	}
	if calls := s.nodes["a"].Called(); len(calls) != 0 {
		t.Fatalf("a dry run called %q", calls)
	}
	s.refused(control.KindNotFound, "does not exist", "GET", "/v1/volumes/a/v1", nil)
	s.pair()
	s.must("POST", "/v1/migrations?dry_run=true", control.MoveRequest{Group: "g", To: "b"}, &p)
	if len(p.Plan) == 0 || len(p.Refusals) != 0 || p.SpaceBytes == nil || *p.SpaceBytes != 1<<30+4096 || p.Seconds != nil { // nothing was measured
		t.Fatalf("plan %+v", p)
	}
	s.nodes["b"].Lock()
	s.nodes["b"].Free = 5000
	s.nodes["b"].Unlock()
	s.must("POST", "/v1/migrations?dry_run=true", control.MoveRequest{Group: "g", To: "b"}, &p)
	if len(p.Refusals) != 1 || !strings.Contains(p.Refusals[0], "are free") {
		t.Fatalf("plan %+v", p)
	}
	s.must("POST", "/v1/volumes?dry_run=true", control.VolumeRequest{Name: "a/v1", Size: 2 << 20}, &p)
	if len(p.Refusals) != 1 {
		t.Fatalf("plan %+v", p)
	}
}

func TestEvents(t *testing.T) {
	s := newSystem(t, "a")
	s.must("POST", "/v1/volumes", control.VolumeRequest{Name: "a/v1", Size: 1 << 20}, nil)
	var kept []control.Event
	if err := s.client.Events(t.Context(), 0, false, func(e control.Event) error { kept = append(kept, e); return nil }); err != nil {
		t.Fatal(err)
	}
	if len(kept) < 2 || kept[len(kept)-1].Object != "volume/a/v1" || kept[len(kept)-1].Kind != "created" {
		t.Fatalf("kept %+v", kept)
	}
	stop := errors.New("seen")
	got := make(chan error, 1)
	go func() {
		got <- s.client.Events(context.Background(), kept[len(kept)-1].Revision, true, func(e control.Event) error {
			if e.Object == "volume/a/v2" {
				return stop
			}
			return errors.New("unexpected event of " + e.Object)
		})
	}()
	s.must("POST", "/v1/volumes", control.VolumeRequest{Name: "a/v2", Size: 1 << 20}, nil)
	select {
	case err := <-got:
		if !errors.Is(err, stop) {
			t.Fatal(err)
		}
	case <-time.After(5 * time.Second):
		t.Fatal("no event within 5 s")
	}
}

func TestOpenAPIAndProbes(t *testing.T) {
	s := newSystem(t, "a")
	for path, word := range map[string]string{"/openapi.json": `"/v1/groups/{name}"`, "/livez": "ok", "/readyz": "ok",
		"/metrics": `gantline_peer_up{kind="node",name="a"} 1`} {
		resp, err := http.Get("http://" + s.addr + path)
		if err != nil {
			t.Fatal(err)
		}
		body := new(strings.Builder)
		buf := make([]byte, 1<<20)
		for {
			n, err := resp.Body.Read(buf)
			body.Write(buf[:n])
			if err != nil {
				break
			}
		}
		resp.Body.Close()
		if resp.StatusCode != 200 || !strings.Contains(body.String(), word) {
			t.Errorf("%s: %s, without %q", path, resp.Status, word)
		}
	}
	s.refused(control.KindNotFound, "no such address", "GET", "/v1/nonsense", nil)
	s.refused(control.KindRefused, "not built yet", "POST", "/v1/groups/g/failback", nil)
}
