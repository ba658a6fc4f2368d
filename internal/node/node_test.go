package node

import (
	"context"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"runtime"
	"sync"
	"testing"
	"time"

	"gantline/internal/block"
	"gantline/internal/control"
	"gantline/internal/nbd"
	"gantline/internal/proof"
	"gantline/internal/wire"
)

// rig is a site of nodes in this process, with real sockets and files, and a manager of a few lines: it keeps no
// state but decisions, and makes the calls that the real one makes.
type rig struct {
	t     *testing.T
	mu    sync.Mutex // over nodes and their listen: links read them while a node starts
	nodes map[string]*rigNode
	host  string            // that its nodes listen at
	via   map[string]string // addresses that nodes are told in place of the real ones
	http  *string           // gets the address of /metrics of the node started last
	store rigStore
	with  func(*control.Settings) // of the group; nil: the defaults
	span  int64                   // of a load: bytes of each volume; 0: all

	strategy string // of moves; empty: switch-first
	limit    int64  // of moves
}

type rigNode struct {
	cfg    Config
	node   *Node // of the present run
	cancel context.CancelFunc
	ended  chan error
	listen string
	nbd    string
	caller *wire.Caller
}

type rigStore struct {
	mu      sync.Mutex
	decided string
	away    bool
}

// set lets the store be away, or says what it has decided already: "" for nothing.
func (s *rigStore) set(away bool, decided string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.away, s.decided = away, decided
}

func (s *rigStore) SyncNode(context.Context, control.NodeReport) (control.NodeSyncReply, error) {
	return control.NodeSyncReply{}, nil
}

func (s *rigStore) Decide(context.Context, string, control.DecideRequest) (control.DecideReply, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.away {
		return control.DecideReply{}, fmt.Errorf("store is away")
	}
	if s.decided == "" {
		s.decided = control.DecidedTarget
	}
	return control.DecideReply{Decided: s.decided}, nil
}

// rigHost is a loopback address of a rig's own. Nodes of all rigs have the same names, groups and volumes: who goes on asking for
// a node that was stopped must not meet another rig's that has got its port.
func rigHost() string {
	return fmt.Sprintf("127.%d.%d.%d", 1+rand.IntN(254), rand.IntN(256), 1+rand.IntN(254))
}

func newRig(t *testing.T, names ...string) *rig {
	t.Parallel() // they mostly wait
	return aloneRig(t, names...)
}

// aloneRig is a rig of a test that has the machine for itself: no other of this package runs beside it.
func aloneRig(t *testing.T, names ...string) *rig { return rigWith(t, func(*Config) {}, names...) }

// rigWith is a rig whose nodes' configuration is changed before they start.
func rigWith(t *testing.T, change func(*Config), names ...string) *rig {
	r := &rig{t: t, nodes: map[string]*rigNode{}, host: rigHost()}
	log := newLog(t)
	for _, name := range names {
		r.nodes[name] = &rigNode{cfg: Config{Name: name, Site: "s", DataDir: filepath.Join(t.TempDir(), name),
			Listen: []string{r.host + ":0"}, NBD: r.host + ":0", Manager: &r.store,
			Logger: log.With("node", name)}}
		change(&r.nodes[name].cfg)
		r.start(name)
	}
	t.Cleanup(func() {
		for name := range r.nodes {
			r.stop(name)
		}
	})
	return r
}

func (r *rig) start(name string) {
	r.t.Helper()
	n := r.nodes[name]
	ready := make(chan struct{})
	n.cfg.Ready = func(listen, nbd, http string) {
		r.mu.Lock()
		n.listen, n.nbd = listen, nbd
		r.mu.Unlock()
		if r.http != nil {
			*r.http = http
		}
		close(ready)
	}
	n.cfg.started = func(node *Node) { n.node = node }
	ctx, cancel := context.WithCancel(context.Background())
	n.cancel, n.ended = cancel, make(chan error, 1)
	cfg := n.cfg
	go func() { n.ended <- Run(ctx, cfg) }()
	select {
	case <-ready:
	case err := <-n.ended:
		n.cancel = nil
		r.t.Fatalf("node %s: %v", name, err)
	case <-time.After(10 * time.Second):
		r.t.Fatalf("node %s is not ready", name)
	}
	n.cfg.Listen = []string{n.listen} // a restart keeps the address
	n.cfg.NBD = n.nbd
	n.caller = wire.NewCaller(n.listen, wire.Hello{Role: "manager", Name: "m"})
}

// listens is where a node can be dialled now, for those who run beside the test.
func (r *rig) listens(name string) string {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.nodes[name].listen
}

func (r *rig) stop(name string) {
	n := r.nodes[name]
	if n.cancel == nil {
		return
	}
	n.caller.Close()
	n.cancel()
	select {
	case err := <-n.ended:
		if err != nil {
			r.t.Errorf("node %s ended: %v", name, err)
		}
	case <-time.After(10 * time.Second):
		buf := make([]byte, 1<<20)
		fmt.Fprintln(os.Stderr, string(buf[:runtime.Stack(buf, true)]))
		r.t.Fatalf("node %s does not end", name)
	}
	n.cancel = nil
}

func (r *rig) call(node, method string, in, out any) {
	r.t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	if err := r.nodes[node].caller.Call(ctx, method, in, out); err != nil {
		r.t.Fatalf("%s at %s: %v", method, node, err)
	}
}

func (r *rig) addresses() map[string]string {
	m := map[string]string{}
	for name, n := range r.nodes {
		m[name] = n.listen
		if via := r.via[name]; via != "" {
			m[name] = via
		}
	}
	return m
}

// group makes group g of n volumes from a to c and waits until it is paired.
func (r *rig) group(n int, size int64) control.Group {
	r.t.Helper()
	g := control.Group{Name: "g", Settings: control.DefaultSettings(), Epoch: 1, Primary: "a", Secondary: "c",
		PrimaryJournal: "a/jg", SecondaryJournal: "c/jg"}
	if r.with != nil {
		r.with(&g.Settings)
	}
	for _, node := range []string{"a", "c"} {
		r.call(node, control.CallJournalCreate, control.JournalCreate{Name: "jg", Size: 64 << 20}, nil)
	}
	if g.Log == control.LogQueue {
		g.PrimaryJournal, g.SecondaryJournalSize = "", 64<<20
	}
	for i := range n {
		v := fmt.Sprintf("v%d", i+1)
		for _, node := range []string{"a", "c"} {
			r.call(node, control.CallVolumeCreate, control.VolumeCreate{Name: v, Size: size}, nil)
		}
		g.Pairs = append(g.Pairs, control.Pair{Number: uint16(i + 1), Primary: "a/" + v, Secondary: "c/" + v, Size: size})
	}
	g.Revision = 1
	r.call("c", control.CallGroupConfigure, control.GroupSpec{Group: g, Role: control.RoleSecondary, Address: r.addresses()}, nil)
	r.call("a", control.CallGroupConfigure, control.GroupSpec{Group: g, Role: control.RolePrimary, Address: r.addresses()}, nil)
	r.waitFor("paired", func() bool { return r.status("a").State == "paired" && r.status("a").LinkUp })
	return g
}

func (r *rig) status(node string) control.GroupStatus {
	r.t.Helper()
	var st control.NodeStatus
	r.call(node, control.CallNodeStatus, struct{}{}, &st)
	for _, g := range st.Groups {
		if g.Name == "g" {
			return g
		}
	}
	return control.GroupStatus{}
}

func (r *rig) waitFor(what string, ok func() bool) {
	r.t.Helper()
	for end := time.Now().Add(20 * time.Second); !ok(); time.Sleep(20 * time.Millisecond) {
		if time.Now().After(end) {
			for name := range r.nodes {
				r.t.Logf("%s: %+v", name, r.status(name))
			}
			r.t.Fatalf("not %s in time", what)
		}
	}
}

// disks opens the volumes at a node's own exports.
func (r *rig) disks(node string, n int) []proof.Disk {
	r.t.Helper()
	var disks []proof.Disk
	for i := range n {
		c, err := nbd.Dial(context.Background(), "tcp", r.nodes[node].nbd, fmt.Sprintf("v%d", i+1))
		if err != nil {
			r.t.Fatal(err)
		}
		r.t.Cleanup(func() { c.Close() })
		disks = append(disks, proof.Disk{Target: c, Size: c.Size()})
	}
	return disks
}

// images reads whole exports.
func (r *rig) images(node string, n int) []io.ReaderAt {
	r.t.Helper()
	var images []io.ReaderAt
	for _, d := range r.disks(node, n) {
		images = append(images, targetReader{d.Target})
	}
	return images
}

type targetReader struct{ t block.Target }

func (r targetReader) ReadAt(p []byte, off int64) (int, error) {
	done := make(waiter, 1)
	req := &block.Request{Op: block.OpRead, Offset: off, Length: int64(len(p)), Data: make([]byte, len(p)), Completer: done}
	r.t.Submit([]*block.Request{req})
	<-done
	return copy(p, req.Data), req.Err
}

func (r *rig) check(l *proof.Load, node string, n int, equal bool) {
	r.t.Helper()
	v, err := l.CheckPrefix(r.images(node, n))
	if err != nil {
		r.t.Fatal(err)
	}
	if !v.OK || equal && !v.Equal {
		r.t.Fatalf("image at %s: %+v", node, v)
	}
	r.t.Logf("image at %s: %+v", node, v)
}

func runFor(t *testing.T, l *proof.Load, d time.Duration) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), d)
	defer cancel()
	if err := l.Run(ctx); err != nil {
		t.Fatal(err)
	}
}

func TestCopyAndRestart(t *testing.T) {
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	r := newRig(t, "a", "c")
	r.group(3, 16<<20)
	// So slow that the journal is not full in the time without a secondary: that is another test.
	l := proof.New(r.disks("a", 3), proof.Options{Seed: seed, Depth: 8, ReadPercent: 20, FlushEvery: 30, Rate: 2000})
	runFor(t, l, time.Second)
	r.waitFor("in step", func() bool { st := r.status("a"); return st.Applied == st.Appended })
	r.check(l, "c", 3, true)
	r.stop("a")
	r.start("a")
	r.check(l, "a", 3, true)
	l.SetDisks(r.disks("a", 3))
	r.stop("c")
	runFor(t, l, 300*time.Millisecond)
	r.start("c")
	r.waitFor("in step", func() bool { st := r.status("a"); return st.Applied == st.Appended && st.LinkUp })
	r.check(l, "c", 3, true)
	t.Logf("%+v", l.Stats())
}

// A secondary that is away until the log is full is cut off; the host goes on. A resync then sends what is marked, and
// nothing else, and the images are equal.
func TestFullLogSuspendsAndResumeResyncs(t *testing.T) { fullLogSuspends(newRig(t, "a", "c")) }

func fullLogSuspends(r *rig) {
	t := r.t
	r.group(1, 32<<20)
	l := proof.New(r.disks("a", 1), proof.Options{Seed: 3, Depth: 8, Span: 8 << 20})
	runFor(t, l, 200*time.Millisecond)
	r.stop("c")
	for r.status("a").State == "paired" {
		runFor(t, l, 300*time.Millisecond)
	}
	r.start("c")
	before := r.status("a")
	if before.ChangedBytes == 0 || before.ChangedBytes > 9<<20 {
		t.Fatalf("marked %d bytes, the host wrote within 8 MiB", before.ChangedBytes)
	}
	r.waitFor("at rest", func() bool { st := r.status("c"); return st.Applied == st.Appended })
	r.check(l, "c", 1, false)
	r.call("a", control.CallGroupResume, control.GroupResume{Name: "g"}, nil)
	r.waitFor("paired again", func() bool {
		st := r.status("a")
		return st.State == "paired" && st.Applied == st.Appended && st.ChangedBytes == 0
	})
	r.check(l, "c", 1, true)
	if sent := r.status("a").WANBytesSent - before.WANBytesSent; sent > before.ChangedBytes+1<<20 {
		t.Fatalf("sent %d bytes for %d marked", sent, before.ChangedBytes)
	}
	runFor(t, l, 200*time.Millisecond)
	r.waitFor("in step", func() bool { st := r.status("a"); return st.Applied == st.Appended })
	r.check(l, "c", 1, true)
}

func (r *rig) spec(g control.Group, target string) control.MigrationSpec {
	sp := control.MigrationSpec{ID: "g-1", Group: g, Source: "a", Target: target, Secondary: "c",
		SourceJournal: "a/jg", TargetJournal: target + "/jg", Address: r.addresses(), Strategy: r.strategy, Limit: r.limit}
	if g.Log == control.LogQueue {
		sp.SourceJournal, sp.TargetJournal = "", ""
	} else {
		r.call(target, control.CallJournalCreate, control.JournalCreate{Name: "jg", Size: 64 << 20}, nil)
	}
	for _, p := range g.Pairs {
		_, v := splitName(p.Primary)
		r.call(target, control.CallVolumeCreate, control.VolumeCreate{Name: v, Size: p.Size}, nil)
		sp.Volumes = append(sp.Volumes, control.MovedVolume{Number: p.Number, Source: p.Primary, Target: target + "/" + v, Size: p.Size})
	}
	return sp
}

func (r *rig) moveStatus(node string) control.MigrationStatus {
	var st control.MigrationStatus
	r.call(node, control.CallMigrateStatus, control.MigrationID{ID: "g-1"}, &st)
	return st
}

// through registers a move and switches to the target's volumes.
func (r *rig) through(g control.Group) {
	sp := r.spec(g, "b")
	for _, n := range []string{"c", "a", "b"} {
		r.call(n, control.CallMigrateRegister, sp, nil)
	}
	r.waitFor("ready", func() bool { return r.moveStatus("a").Ready })
	if sp.CopyFirst() {
		r.call("b", control.CallMigrateCopy, control.MigrationID{ID: "g-1"}, nil)
		r.waitFor("copied", func() bool { return r.moveStatus("b").Copied })
	}
	r.call("b", control.CallMigrateThrough, control.MigrationID{ID: "g-1"}, nil)
}

func TestMoveUnderLoad(t *testing.T) { moveUnderLoad(newRig(t, "a", "b", "c")) }

func moveUnderLoad(r *rig) {
	t := r.t
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	g := r.group(3, 16<<20)
	l := proof.New(r.disks("a", 3), proof.Options{Seed: seed, Depth: 8, ReadPercent: 20, FlushEvery: 30, Span: r.span})
	runFor(t, l, 500*time.Millisecond)
	r.through(g)
	l.SetDisks(r.disks("b", 3))
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- l.Run(ctx) }()
	time.Sleep(200 * time.Millisecond)
	r.call("b", control.CallMigrateRun, control.MigrationID{ID: "g-1"}, nil)
	r.waitFor("filled", func() bool { return r.moveStatus("b").Phase == control.PhaseFilled })
	time.Sleep(200 * time.Millisecond)
	cancel()
	if err := <-ended; err != nil {
		t.Fatal(err)
	}
	st := r.moveStatus("b")
	t.Logf("%+v pause %v", st, *st.PauseMS)
	r.waitFor("in step", func() bool { st := r.status("b"); return st.Applied == st.Appended })
	r.check(l, "c", 3, true)
	r.check(l, "b", 3, true)
	for _, n := range []string{"c", "b", "a"} {
		r.call(n, control.CallMigrateDeregister, control.MigrationID{ID: "g-1"}, nil)
	}
	if cs := r.status("c").CopySource; cs != "b" {
		t.Fatalf("copy source %s", cs)
	}
	for _, n := range []string{"a", "b", "c"} {
		r.stop(n)
		r.start(n)
	}
	l.SetDisks(r.disks("b", 3))
	runFor(t, l, 300*time.Millisecond)
	r.waitFor("in step", func() bool { st := r.status("b"); return st.Applied == st.Appended && st.LinkUp })
	r.check(l, "c", 3, true)
	t.Logf("%+v", l.Stats())
}

// The store does not answer within the hold: the move goes back, the source serves in e+2, hosts see no error.
func TestStoreAwayGoesBack(t *testing.T) { storeAwayGoesBack(newRig(t, "a", "b", "c")) }

func storeAwayGoesBack(r *rig) {
	t := r.t
	g := r.group(1, 8<<20)
	r.through(g)
	l := proof.New(r.disks("b", 1), proof.Options{Seed: 5, Depth: 4})
	r.store.set(true, "")
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- l.Run(ctx) }()
	r.call("b", control.CallMigrateRun, control.MigrationID{ID: "g-1"}, nil)
	r.waitFor("gone back", func() bool { return r.moveStatus("b").Refused && r.moveStatus("a").Refused })
	time.Sleep(500 * time.Millisecond)
	cancel()
	if err := <-ended; err != nil {
		t.Fatal(err)
	}
	r.waitFor("in step", func() bool { st := r.status("a"); return st.Applied == st.Appended && st.LinkUp })
	r.check(l, "c", 1, true)
	r.check(l, "a", 1, true)
	if st := r.status("a"); st.Epoch != 3 {
		t.Fatalf("source in epoch %d", st.Epoch)
	}
	for _, n := range []string{"b", "a", "c"} {
		r.call(n, control.CallMigrateCancel, control.MigrationID{ID: "g-1"}, nil)
	}
	t.Logf("%+v", l.Stats())
}
