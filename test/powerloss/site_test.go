package powerloss

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"math/rand/v2"
	"net"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"gantline/internal/block"
	"gantline/internal/control"
	"gantline/internal/gateway"
	"gantline/internal/manager"
	"gantline/internal/manager/client"
	"gantline/internal/nbd"
	"gantline/internal/node"
	"gantline/internal/wire"
)

const (
	volumes     = 3
	volumeSize  = 1792 << 10 // all of them marked fit a resync: a quarter of the log
	journalSize = 24 << 20
	group       = "g"
)

func sorted[V any](m map[string]V) []string { return slices.Sorted(maps.Keys(m)) }

// campaign is how many times as many rounds are asked for; 0 in a plain run.
func campaign() int {
	n, _ := strconv.Atoi(os.Getenv("GANTLINE_CAMPAIGN"))
	return n
}

func seedOf(t *testing.T) (uint64, *rand.Rand) {
	seed := rand.Uint64()
	if s, err := strconv.ParseUint(os.Getenv("GANTLINE_SEED"), 10, 64); err == nil {
		seed = s
	}
	t.Logf("GANTLINE_SEED=%d", seed)
	return seed, rand.New(rand.NewPCG(seed, 1))
}

// site is the whole system.
type site struct {
	// tells: nodes tell their hosts that the machine was started anew, so that a gateway ends sessions which may have
	// lost writes. Off, gateways hide every outage: the history below then sees all that comes of it.
	tells bool
	t     *testing.T
	dir   string
	rnd   *rand.Rand
	log   *logBuffer
	net   *network
	node  map[string]*machine

	manager  *process
	gateway  *process
	switched atomic.Pointer[func(edge string)] // called around the gateway's switch of paths
	client   *client.Client
	nbd      string
	hosts    []*nbd.Client
	load     *load
	watch    *watchdog
	marked   int64 // bytes that resyncs had to send
}

// machine is one node's hardware, and the node that runs on it at the moment.
type machine struct {
	boots int // with site.tells: a number of its own for each time it has power
	s     *site
	name  string
	dir   string
	addr  string // in the network
	disks *disks

	mu     sync.Mutex
	on     bool
	cancel context.CancelFunc
	ended  chan error
	listen string
	nbd    string
	caller *wire.Caller
	point  func(step, edge string)
	torn   int
}

// process is the manager or the gateway.
type process struct {
	cancel context.CancelFunc
	ended  chan error
}

func begin(run func(context.Context) error) *process {
	ctx, cancel := context.WithCancel(context.Background())
	p := &process{cancel: cancel, ended: make(chan error, 1)}
	go func() { p.ended <- run(ctx) }()
	return p
}

func (p *process) stop(t *testing.T, what string) {
	if p == nil {
		return
	}
	p.cancel()
	select {
	case err := <-p.ended:
		if err != nil && !errors.Is(err, context.Canceled) {
			t.Errorf("%s: %v", what, err)
		}
	case <-time.After(15 * time.Second):
		t.Errorf("%s did not stop:\n%s", what, stacks())
	}
}

func stacks() string {
	buf := make([]byte, 1<<20)
	return string(buf[:runtime.Stack(buf, true)])
}

// logBuffer keeps what all processes say, for a test that fails.
type logBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (l *logBuffer) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.b.Len() < 8<<20 {
		l.b.Write(p)
	}
	return len(p), nil
}

func (s *site) say(format string, args ...any) {
	msg := fmt.Sprintf(format, args...)
	s.t.Log(msg)
	fmt.Fprintf(s.log, "%s ---- %s\n", time.Now().Format("15:04:05.000"), msg)
}

// newSite starts everything, with group g of a's volumes copied to c, and a load at rest.
func newSite(t *testing.T, seed uint64, rnd *rand.Rand) *site {
	s := &site{t: t, dir: t.TempDir(), rnd: rnd, log: &logBuffer{}, net: newNetwork(), node: map[string]*machine{}}
	t.Cleanup(s.close)
	l, err := net.Listen("tcp", "127.0.0.1:0")
	s.must(err)
	m := manager.New(manager.Config{Store: control.NewMemory(), Logger: s.logger("manager"), Version: "test"})
	s.manager = begin(func(ctx context.Context) error { return m.Serve(ctx, l) })
	url := "http://" + l.Addr().String()
	s.client, err = client.New(url)
	s.must(err)
	for _, name := range []string{"a", "b", "c"} {
		mc := &machine{s: s, name: name, dir: filepath.Join(s.dir, name), disks: newDisks(rand.New(rand.NewPCG(seed, uint64(name[0]))))}
		mc.addr, err = s.net.open(name)
		s.must(err)
		s.node[name] = mc
		s.start(name)
	}
	s.startGateway(url)
	s.build()
	s.open(seed)
	s.watch = newWatchdog(s)
	return s
}

func (s *site) logger(who string) *slog.Logger {
	return slog.New(slog.NewTextHandler(s.log, &slog.HandlerOptions{Level: slog.LevelDebug, ReplaceAttr: shortTime})).With("who", who)
}

func shortTime(_ []string, a slog.Attr) slog.Attr {
	if a.Key == slog.TimeKey {
		return slog.String("time", a.Value.Time().Format("15:04:05.000"))
	}
	return a
}

func (s *site) must(err error) {
	s.t.Helper()
	if err != nil {
		s.t.Fatal(err)
	}
}

func (s *site) close() {
	if s.load != nil {
		s.load.pause()
	}
	s.watch.stop()
	for _, c := range s.hosts {
		c.Close()
	}
	if s.load != nil {
		s.load.stop()
	}
	s.gateway.stop(s.t, "gateway")
	for _, name := range sorted(s.node) {
		mc := s.node[name]
		mc.disks.setHook(nil)
		if mc.running() {
			if err := mc.end(); err != nil {
				s.t.Errorf("node %s ended: %v", name, err)
			}
		}
	}
	s.manager.stop(s.t, "manager")
	s.net.close()
	if s.t.Failed() {
		path := filepath.Join(os.TempDir(), "powerloss-"+s.t.Name()+"-"+strconv.FormatInt(time.Now().Unix(), 10)+".log")
		if dir := os.Getenv("GANTLINE_LOGS"); dir != "" {
			path = filepath.Join(dir, filepath.Base(path))
		}
		if err := os.WriteFile(path, s.log.b.Bytes(), 0o600); err == nil {
			s.t.Logf("what all processes said is in %s", path)
		}
	}
}

// managerOf keeps a node that has no power from being heard by the manager.
type managerOf struct {
	*client.Client
	m *machine
}

var errNoPower = errors.New("this node has no power")

func (c managerOf) SyncNode(ctx context.Context, r control.NodeReport) (control.NodeSyncReply, error) {
	if !c.m.running() {
		return control.NodeSyncReply{}, errNoPower
	}
	if err := c.m.s.net.says(ctx, c.m.name, "manager"); err != nil {
		return control.NodeSyncReply{}, err
	}
	reply, err := c.Client.SyncNode(ctx, r)
	if cut := c.m.s.net.says(ctx, "manager", c.m.name); cut != nil {
		return control.NodeSyncReply{}, cut
	}
	return reply, err
}

func (c managerOf) Decide(ctx context.Context, id string, r control.DecideRequest) (control.DecideReply, error) {
	if !c.m.running() {
		return control.DecideReply{}, errNoPower
	}
	if err := c.m.s.net.says(ctx, c.m.name, "manager"); err != nil {
		return control.DecideReply{}, err
	}
	reply, err := c.Client.Decide(ctx, id, r)
	if !c.m.running() {
		return control.DecideReply{}, errNoPower
	}
	if cut := c.m.s.net.says(ctx, "manager", c.m.name); cut != nil {
		return control.DecideReply{}, cut // it was decided, and the node does not hear of it
	}
	return reply, err
}

func (m *machine) running() bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.on
}

// start gives power to a node.
func (s *site) start(name string) { s.t.Helper(); s.must(s.tryStart(name)) }

func (s *site) tryStart(name string) error {
	m := s.node[name]
	ready := make(chan struct{})
	cfg := node.Config{Name: name, Site: "s", DataDir: m.dir, Listen: []string{"127.0.0.1:0"}, NBD: "127.0.0.1:0",
		Advertise: m.addr, Memory: 256 << 20, Devices: m.disks, Manager: managerOf{s.client, m}, Logger: s.logger("node " + name),
		Point: func(step, edge string) {
			m.mu.Lock()
			p := m.point
			m.mu.Unlock()
			if p != nil {
				p(step, edge)
			}
		},
		Ready: func(listen, nbd, _ string) {
			m.mu.Lock()
			m.listen, m.nbd = listen, nbd
			m.mu.Unlock()
			close(ready)
		}}
	cfg.Boot = "boot"
	if s.tells {
		m.boots++
		cfg.Boot = fmt.Sprint("boot ", m.boots)
	}
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	m.mu.Lock()
	m.on, m.cancel, m.ended = true, cancel, ended
	m.mu.Unlock()
	s.net.power(name, true)
	go func() { ended <- node.Run(ctx, cfg) }()
	select {
	case <-ready:
	case err := <-ended:
		ended <- err
		if !m.running() {
			return nil // power was lost again while it started
		}
		m.mu.Lock()
		m.on = false
		m.mu.Unlock()
		return fmt.Errorf("node %s does not start: %w", name, err)
	case <-time.After(20 * time.Second):
		return fmt.Errorf("node %s is not ready:\n%s", name, stacks())
	}
	s.net.lead(name, m.listen)
	m.mu.Lock()
	m.caller = wire.NewCaller(m.listen, wire.Hello{Role: "manager", Name: "test"})
	m.mu.Unlock()
	return nil
}

// crash takes the power of a node; it does not wait for its goroutines. Any goroutine may call it, the node's too.
func (s *site) crash(name string) (did bool) {
	m := s.node[name]
	m.mu.Lock()
	if !m.on {
		m.mu.Unlock()
		return false
	}
	m.on = false
	cancel := m.cancel
	m.mu.Unlock()
	if s.load != nil && name != "c" {
		s.load.primaryDies()
	}
	s.net.power(name, false)
	// The directory goes first: a process that has lost its power does not note that its devices fail.
	if err := os.Rename(m.dir, m.dir+".off"); err != nil {
		s.t.Errorf("node %s: %v", name, err)
	}
	m.disks.crash()
	cancel()
	return true
}

// gone waits until nothing of a crashed node runs any more and puts its directory back.
func (s *site) gone(name string) {
	s.t.Helper()
	m := s.node[name]
	select {
	case <-m.ended:
	case <-time.After(15 * time.Second):
		fmt.Fprintln(s.log, stacks())
		s.t.Errorf("node %s, its context ended, does not end (its goroutines are in the log)", name) // but it can do no harm
	}
	m.mu.Lock()
	caller := m.caller
	m.mu.Unlock()
	if caller != nil {
		caller.Close()
	}
	s.must(os.RemoveAll(m.dir))
	s.must(os.Rename(m.dir+".off", m.dir))
	s.tear(m)
}

// restart brings a crashed node back.
func (s *site) restart(name string) {
	s.t.Helper()
	s.gone(name)
	if s.load != nil && name != "c" {
		s.load.primaryBegins()
	}
	s.start(name)
}

// tear leaves one copy of a state record as a power loss while it was being written does.
func (s *site) tear(m *machine) {
	if s.rnd.IntN(3) > 0 {
		return
	}
	for _, path := range []string{"node.state", "maps/g.belief"} {
		a, errA := os.ReadFile(filepath.Join(m.dir, path+".a"))
		b, errB := os.ReadFile(filepath.Join(m.dir, path+".b"))
		if errA != nil || errB != nil || !bytes.Equal(a, b) {
			continue // a Save was under way: its copy may be torn already, the other is whole
		}
		copyName := []string{".a", ".b"}[s.rnd.IntN(2)]
		at := 512 * s.rnd.IntN(2)
		for i := range min(512, len(a)-at) {
			a[at+i] = byte(s.rnd.Uint32())
		}
		s.must(os.WriteFile(filepath.Join(m.dir, path+copyName), a, 0o600))
		m.torn++
	}
}

// end stops a node in good order.
func (m *machine) end() error {
	m.mu.Lock()
	m.on = false
	cancel, caller := m.cancel, m.caller
	m.mu.Unlock()
	if caller != nil {
		caller.Close()
	}
	cancel()
	select {
	case err := <-m.ended:
		return err
	case <-time.After(20 * time.Second):
		return fmt.Errorf("does not end:\n%s", stacks())
	}
}

// gatewayName is the gateway's in the network, and manager's is that of the manager.
const gatewayName = "gw"

// routesOf keeps a gateway that is cut off from the manager from hearing of it, and the other way round.
type routesOf struct {
	gateway.Routes
	net *network
}

func (r routesOf) Sync(ctx context.Context, report gateway.Report) (gateway.Table, error) {
	if err := r.net.says(ctx, gatewayName, "manager"); err != nil {
		return gateway.Table{}, err
	}
	t, err := r.Routes.Sync(ctx, report)
	if cut := r.net.says(ctx, "manager", gatewayName); cut != nil {
		return gateway.Table{}, cut
	}
	return t, err
}

func (s *site) startGateway(url string) {
	c, err := client.New(url)
	s.must(err)
	ready := make(chan struct{})
	cfg := gateway.Config{Name: gatewayName, Site: "s", DataDir: filepath.Join(s.dir, "gw"), NBD: "127.0.0.1:0", Hold: 2 * time.Minute,
		Routes: routesOf{gateway.FromManager(c), s.net}, Log: s.logger("gateway"), Ready: func(r gateway.Ready) { s.nbd = r.NBD; close(ready) }}
	cfg.Point = func(_, edge string) {
		if f := s.switched.Load(); f != nil {
			(*f)(edge)
		}
	}
	s.must(os.MkdirAll(cfg.DataDir, 0o700))
	s.gateway = begin(func(ctx context.Context) error { return gateway.Run(ctx, cfg) })
	select {
	case <-ready:
	case <-time.After(20 * time.Second):
		s.t.Fatal("the gateway is not ready")
	}
}

func (s *site) do(method, path string, in, out any) error {
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	if err := s.client.Do(ctx, method, path, in, out); err != nil {
		return fmt.Errorf("%s %s: %w", method, path, err)
	}
	return nil
}

func (s *site) until(limit time.Duration, what string, ok func() bool) {
	s.t.Helper()
	for end := time.Now().Add(limit); !ok(); time.Sleep(10 * time.Millisecond) {
		if time.Now().After(end) {
			for name := range s.node {
				if st, err := s.status(name); err == nil {
					s.t.Logf("%s: %+v", name, st)
				}
			}
			s.t.Fatalf("not within %v: %s", limit, what)
		}
	}
}

func (s *site) build() {
	s.until(20*time.Second, "all nodes are known", func() bool {
		for name := range s.node {
			var v control.NodeView
			if s.do("GET", "/v1/nodes/"+name, nil, &v) != nil || v.State != "up" {
				return false
			}
		}
		return true
	})
	for _, n := range []string{"a", "c"} {
		s.must(s.do("POST", "/v1/journals", control.JournalRequest{Name: n + "/jg", Size: journalSize}, nil))
	}
	s.must(s.do("POST", "/v1/groups", control.GroupRequest{Name: group, Primary: "a", Secondary: "c", PrimaryJournal: "a/jg", SecondaryJournal: "c/jg"}, nil))
	for i := range volumes {
		v := fmt.Sprintf("v%d", i+1)
		for _, n := range []string{"a", "c"} {
			s.must(s.do("POST", "/v1/volumes", control.VolumeRequest{Name: n + "/" + v, Size: volumeSize}, nil))
		}
		s.must(s.do("POST", "/v1/groups/"+group+"/pairs", control.PairRequest{Primary: "a/" + v, Secondary: "c/" + v}, nil))
		s.must(s.do("POST", "/v1/vvols", control.VvolRequest{Name: fmt.Sprintf("disk%d", i+1), Volume: "a/" + v}, nil))
	}
	s.until(20*time.Second, "paired", func() bool { st, err := s.status("a"); return err == nil && st.State == "paired" && st.LinkUp })
}

// open connects the hosts.
func (s *site) open(seed uint64) { s.load = newLoad(seed, s.dial(), volumeSize) }

// reopen connects the hosts again: their connections have ended, since writes may be lost that were under no flush.
func (s *site) reopen() {
	for _, c := range s.hosts {
		_ = c.Close()
	}
	s.hosts = nil
	targets := s.dial()
	s.load.targets.Store(&targets)
}

func (s *site) dial() []block.Target {
	var targets []block.Target
	for i := range volumes {
		name := fmt.Sprintf("disk%d", i+1)
		s.until(10*time.Second, "the gateway exports "+name, func() bool {
			c, err := nbd.Dial(context.Background(), "tcp", s.nbd, name)
			if err == nil {
				s.hosts = append(s.hosts, c)
				targets = append(targets, c)
			}
			return err == nil
		})
	}
	return targets
}

// call asks a node directly, past the network and its cuts.
func (s *site) call(name, method string, in, out any) error {
	m := s.node[name]
	m.mu.Lock()
	c, on := m.caller, m.on
	m.mu.Unlock()
	if !on || c == nil {
		return errNoPower
	}
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
	defer cancel()
	return c.Call(ctx, method, in, out)
}

func (s *site) status(name string) (control.GroupStatus, error) {
	var st control.NodeStatus
	if err := s.call(name, control.CallNodeStatus, struct{}{}, &st); err != nil {
		return control.GroupStatus{}, err
	}
	for _, g := range st.Groups {
		if g.Name == group {
			return g, nil
		}
	}
	return control.GroupStatus{}, fmt.Errorf("node %s has no group", name)
}

func (s *site) mustStatus(name string) control.GroupStatus {
	s.t.Helper()
	st, err := s.status(name)
	s.must(err)
	return st
}

// raw reads the exports of a node past the gateway.
func (s *site) raw(name string) [][]byte {
	s.t.Helper()
	m := s.node[name]
	m.mu.Lock()
	addr := m.nbd
	m.mu.Unlock()
	var out [][]byte
	for i := range volumes {
		c, err := nbd.Dial(context.Background(), "tcp", addr, fmt.Sprintf("v%d", i+1))
		s.must(err)
		raw, err := readVolume(c, volumeSize)
		c.Close()
		s.must(err)
		out = append(out, raw)
	}
	return out
}

// hostsView reads the volumes as hosts do.
func (s *site) hostsView() [][]byte {
	s.t.Helper()
	var out [][]byte
	for _, c := range s.hosts {
		raw, err := readVolume(c, volumeSize)
		s.must(err)
		out = append(out, raw)
	}
	return out
}

func (s *site) parse(what string, raw [][]byte) image {
	s.t.Helper()
	var img image
	s.load.mu.Lock()
	defer s.load.mu.Unlock()
	for v := range raw {
		held, err := s.load.h.parse(v, raw[v])
		if err != nil {
			s.t.Fatalf("image %s: %v", what, err)
		}
		img = append(img, held)
	}
	return img
}

// quiet stops the load with everything answered.
func (s *site) quiet() {
	s.t.Helper()
	if err := s.load.quiet(60 * time.Second); err != nil {
		for name := range s.node {
			st, err := s.status(name)
			s.t.Logf("%s: %+v %v", name, st, err)
		}
		s.t.Fatalf("load: %v", err)
	}
}

// reconcile looks, with the load at rest, what is left of the hosts' writes.
func (s *site) reconcile() (lost int) {
	s.t.Helper()
	img := s.parse("of the primary", s.hostsView())
	s.load.mu.Lock()
	defer s.load.mu.Unlock()
	lost, err := s.load.h.reconcile(img)
	if err != nil {
		s.t.Fatal(err)
	}
	return lost
}

// checkSecondary reads c's image, which must not be moving, and wants a prefix.
func (s *site) checkSecondary() verdict {
	s.t.Helper()
	img := s.parse("at c", s.raw("c"))
	s.load.mu.Lock()
	defer s.load.mu.Unlock()
	v, err := s.load.h.prefix(img)
	if err != nil {
		s.t.Fatalf("image at c: %v", err)
	}
	return v
}

// serving is the node that numbers hosts' writes now.
func (s *site) serving() string {
	var best string
	var epoch uint64
	for _, name := range []string{"a", "b"} {
		if st, err := s.status(name); err == nil && st.Role == control.RolePrimary && st.Epoch >= epoch {
			best, epoch = name, st.Epoch
		}
	}
	return best
}

// settle brings the pair to rest with the load stopped and wants equality.
func (s *site) settle() {
	s.t.Helper()
	s.quiet()
	primary, resumed := "", time.Time{}
	s.until(60*time.Second, "the secondary has everything", func() bool {
		primary = s.serving()
		if primary == "" {
			return false
		}
		st, err := s.status(primary)
		if err != nil {
			return false
		}
		switch st.State {
		case "failed", "split-brain":
			s.t.Fatalf("pair is %s: %s", st.State, st.BlockedOn)
		case "suspended":
			if time.Since(resumed) > 2*time.Second {
				resumed = time.Now()
				s.marked += st.ChangedBytes
				s.say("suspended (%s), %d bytes marked: resuming", st.BlockedOn, st.ChangedBytes)
				if err := s.do("POST", "/v1/groups/"+group+"/resume", control.ResumeRequest{}, nil); err != nil {
					s.say("resume: %v", err)
				}
			}
		}
		return st.State == "paired" && st.LinkUp && st.Applied == st.Appended && st.ChangedBytes == 0
	})
	s.reconcile()
	v := s.checkSecondary()
	if v.behind > 0 {
		s.t.Fatalf("secondary lacks %d answered writes at rest", v.behind)
	}
	hosts, remote := s.hostsView(), s.raw("c")
	for i := range hosts {
		if at := differs(hosts[i], remote[i]); at >= 0 {
			s.t.Fatalf("volume %d differs at byte %d between hosts' view and the secondary", i+1, at)
		}
	}
}

func differs(a, b []byte) int {
	if bytes.Equal(a, b) {
		return -1
	}
	for i := range a {
		if a[i] != b[i] {
			return i
		}
	}
	return len(a)
}

// watchdog asks a and b all the time whom they think they are: two that serve are found out.
type watchdog struct {
	s      *site
	cancel context.CancelFunc
	work   sync.WaitGroup
	err    error
}

func newWatchdog(s *site) *watchdog {
	ctx, cancel := context.WithCancel(context.Background())
	w := &watchdog{s: s, cancel: cancel}
	w.work.Go(func() { w.run(ctx) })
	return w
}

func (w *watchdog) stop() {
	if w == nil {
		return
	}
	w.cancel()
	w.work.Wait()
	if w.err != nil {
		w.s.t.Error(w.err)
	}
}

// run: whoever is asked after another was seen to serve in an epoch must not serve in that one or an earlier one.
func (w *watchdog) run(ctx context.Context) {
	highest, by := uint64(0), ""
	for ctx.Err() == nil {
		for _, name := range []string{"a", "b"} {
			st, err := w.s.status(name)
			if err != nil || st.Role != control.RolePrimary || st.Error != "" {
				continue
			}
			if st.Epoch < highest && by != name || st.Epoch == highest && by != "" && by != name {
				w.err = fmt.Errorf("node %s serves in epoch %d, after node %s had begun to serve in %d (I3)", name, st.Epoch, by, highest)
				return
			}
			highest, by = st.Epoch, name
		}
		select {
		case <-ctx.Done():
		case <-time.After(20 * time.Millisecond):
		}
	}
}
