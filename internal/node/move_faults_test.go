package node

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"gantline/internal/block"
	"gantline/internal/control"
	"gantline/internal/nbd"
	"gantline/internal/wire"
)

// try is call without failing the test.
func (r *rig) try(node, method string, in, out any) error {
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
	defer cancel()
	return r.nodes[node].caller.Call(ctx, method, in, out)
}

// do submits one request and waits at most d for its answer.
func do(t block.Target, op block.Op, off int64, data []byte, d time.Duration) error {
	done := make(waiter, 1)
	req := &block.Request{Op: op, Offset: off, Length: int64(len(data)), Data: data, Completer: done, Session: 77, Number: 1}
	t.Submit([]*block.Request{req})
	select {
	case <-done:
		return req.Err
	case <-time.After(d):
		return errors.New("no answer in " + d.String())
	}
}

func filledWith(b byte) []byte {
	p := make([]byte, 4096)
	for i := range p {
		p[i] = b
	}
	return p
}

func (r *rig) nbd(node, name string) *nbd.Client {
	r.t.Helper()
	c, err := nbd.Dial(context.Background(), "tcp", r.nodes[node].nbd, name)
	if err != nil {
		r.t.Fatal(err)
	}
	r.t.Cleanup(func() { c.Close() })
	return c
}

// goBack runs a move that the store never decides, until the target has returned it.
func (r *rig) goBack(g control.Group) {
	r.through(g)
	r.store.set(true, "")
	r.call("b", control.CallMigrateRun, control.MigrationID{ID: "g-1"}, nil)
	r.waitFor("gone back", func() bool {
		st := r.moveStatus("b")
		return st.Refused && r.moveStatus("a").Refused && st.Modes["b/v1"] == "through"
	})
	time.Sleep(300 * time.Millisecond) // "returned" is on disk
}

// A gateway's requests carry the group's epoch. Through mode must relay them.
func TestThroughTakesGateways(t *testing.T) {
	r := newRig(t, "a", "b", "c")
	g := r.group(1, 4<<20)
	r.through(g)
	c, err := wire.DialIO(context.Background(), r.nodes["b"].listen, wire.Hello{Role: "gateway", Name: "gw"},
		wire.IOParams{Volume: "v1", Session: 7, From: 1, Epoch: g.Epoch}, wire.IOClientHooks{})
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if err := do(c, block.OpWrite, 0, filledWith(1), 3*time.Second); err != nil {
		t.Fatalf("write in through mode with the group's epoch: %v", err)
	}
}

// The same target, volumes and journal are used for another try after a move that went back.
func TestSecondTryAfterReturn(t *testing.T) {
	r := newRig(t, "a", "b", "c")
	g := r.group(1, 4<<20)
	r.goBack(g)
	for _, n := range []string{"b", "a", "c"} {
		r.call(n, control.CallMigrateCancel, control.MigrationID{ID: "g-1"}, nil)
	}
	r.store.set(false, "")
	g.Epoch = 3
	sp := r.spec(g, "b")
	sp.ID = "g-2"
	for _, n := range []string{"c", "a", "b"} {
		if err := r.try(n, control.CallMigrateRegister, sp, nil); err != nil {
			t.Fatalf("register at %s: %v", n, err)
		}
	}
	r.call("b", control.CallMigrateThrough, control.MigrationID{ID: "g-2"}, nil)
	r.call("b", control.CallMigrateRun, control.MigrationID{ID: "g-2"}, nil)
	r.waitFor("filled", func() bool {
		var st control.MigrationStatus
		return r.try("b", control.CallMigrateStatus, control.MigrationID{ID: "g-2"}, &st) == nil && st.Phase == control.PhaseFilled
	})
}

// A target that has returned the move and restarts must go on relaying: hosts are still routed to it.
func TestReturnedTargetRelaysAfterRestart(t *testing.T) {
	r := newRig(t, "a", "b", "c")
	g := r.group(1, 4<<20)
	r.goBack(g)
	if err := do(r.nbd("b", "v1"), block.OpWrite, 0, filledWith(1), 5*time.Second); err != nil {
		t.Fatalf("before the restart: %v", err)
	}
	r.stop("b")
	r.start("b")
	if err := do(r.nbd("b", "v1"), block.OpWrite, 4096, filledWith(2), 5*time.Second); err != nil {
		t.Errorf("after the restart: %v; modes %v", err, r.moveStatus("b").Modes)
	}
	_ = r.try("b", control.CallMigrateCancel, control.MigrationID{ID: "g-1"}, nil)
}

// A host that has the target's volume open when the move is cancelled must not have its writes acknowledged by a volume
// that nobody will ever read.
func TestCancelDoesNotAcknowledgeLostWrites(t *testing.T) {
	r := newRig(t, "a", "b", "c")
	g := r.group(1, 4<<20)
	r.through(g)
	host := r.nbd("b", "v1")
	if err := do(host, block.OpWrite, 0, filledWith(1), 5*time.Second); err != nil {
		t.Fatal(err)
	}
	r.call("b", control.CallMigrateCancel, control.MigrationID{ID: "g-1"}, nil)
	got := make([]byte, 4096)
	if err := do(host, block.OpRead, 0, got, 5*time.Second); err == nil && got[0] != 1 {
		t.Errorf("the host reads %d where it wrote 1, without an error", got[0])
	}
	err := do(host, block.OpWrite, 4096, filledWith(2), 5*time.Second)
	if err == nil {
		if e := do(r.nbd("a", "v1"), block.OpRead, 4096, got, 5*time.Second); e != nil || got[0] != 2 {
			t.Errorf("acknowledged write is not at the owner: byte %d, %v", got[0], e)
		}
	}
}

// A write held at a restarted target must not be released onto the target's own, forgotten volume by the cancel.
func TestHeldWriteIsNotAcknowledgedByCancel(t *testing.T) {
	r := newRig(t, "a", "b", "c")
	g := r.group(1, 4<<20)
	r.goBack(g)
	r.stop("b")
	r.start("b") // pending now
	host := r.nbd("b", "v1")
	ended := make(chan error, 1)
	go func() { ended <- do(host, block.OpWrite, 8192, filledWith(3), 10*time.Second) }()
	time.Sleep(300 * time.Millisecond)
	r.call("b", control.CallMigrateCancel, control.MigrationID{ID: "g-1"}, nil)
	got := make([]byte, 4096)
	if err := <-ended; err == nil {
		if e := do(r.nbd("a", "v1"), block.OpRead, 8192, got, 5*time.Second); e != nil || got[0] != 3 {
			t.Errorf("acknowledged write is not at the owner: byte %d, %v", got[0], e)
		}
	}
}

// filled makes a move up to its end but for the removal.
func (r *rig) filled(g control.Group) {
	r.through(g)
	r.call("b", control.CallMigrateRun, control.MigrationID{ID: "g-1"}, nil)
	r.waitFor("filled", func() bool { return r.moveStatus("b").Phase == control.PhaseFilled })
}

// moveDeregister at the target removes the present maps before it records that it has; dead in between, the node must
// start: it is the primary.
func TestTargetDeadBetweenMapsAndRecord(t *testing.T) {
	r := newRig(t, "a", "b", "c")
	g := r.group(1, 4<<20)
	r.filled(g)
	r.call("c", control.CallMigrateDeregister, control.MigrationID{ID: "g-1"}, nil)
	r.stop("b")
	if err := os.Remove(filepath.Join(r.nodes["b"].cfg.DataDir, "maps", "g-1.1.present")); err != nil {
		t.Fatal(err)
	}
	r.start("b")
}

// The retired source dies after its volumes have left the group and before the record says retired.
func TestSourceDeadInsideRetire(t *testing.T) {
	r := newRig(t, "a", "b", "c")
	g := r.group(1, 4<<20)
	r.filled(g)
	r.waitFor("drained", func() bool { return r.moveStatus("a").Drained })
	r.call("c", control.CallMigrateDeregister, control.MigrationID{ID: "g-1"}, nil)
	r.call("b", control.CallMigrateDeregister, control.MigrationID{ID: "g-1"}, nil)
	files, err := filepath.Glob(filepath.Join(r.nodes["a"].cfg.DataDir, "node.state*"))
	if err != nil || len(files) == 0 {
		t.Fatal(err, files)
	}
	old := map[string][]byte{}
	for _, f := range files {
		if old[f], err = os.ReadFile(f); err != nil {
			t.Fatal(err)
		}
	}
	r.call("a", control.CallMigrateDeregister, control.MigrationID{ID: "g-1"}, nil)
	r.stop("a")
	for f, b := range old {
		if err := os.WriteFile(f, b, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	r.start("a")
	if c, err := nbd.Dial(context.Background(), "tcp", r.nodes["a"].nbd, "v1"); err == nil {
		defer c.Close()
		if err := do(c, block.OpWrite, 0, filledWith(9), 5*time.Second); err == nil {
			t.Errorf("the old source takes hosts' writes again while %s is the primary", "b")
		}
	}
}

// breakJournal destroys both superblocks of a node's journal.
func (r *rig) breakJournal(node string) {
	r.t.Helper()
	f, err := os.OpenFile(filepath.Join(r.nodes[node].cfg.DataDir, "journals", "jg.jnl"), os.O_RDWR, 0)
	if err != nil {
		r.t.Fatal(err)
	}
	defer f.Close()
	if _, err := f.WriteAt(make([]byte, 1<<20), 0); err != nil {
		r.t.Fatal(err)
	}
}

// A primary whose log cannot be opened must not serve its volumes past the log.
func TestFailedGroupIsNotServedAsLone(t *testing.T) {
	r := newRig(t, "a", "c")
	r.group(1, 4<<20)
	r.stop("a")
	r.breakJournal("a")
	r.start("a")
	t.Logf("%+v", r.status("a"))
	c, err := nbd.Dial(context.Background(), "tcp", r.nodes["a"].nbd, "v1")
	if err != nil {
		return // not exported: right
	}
	defer c.Close()
	if err := do(c, block.OpWrite, 0, filledWith(9), 5*time.Second); err == nil {
		t.Errorf("a write was acknowledged that is in no log and will never reach the secondary")
	}
}

func TestFailedSecondaryIsNotWritable(t *testing.T) {
	r := newRig(t, "a", "c")
	r.group(1, 4<<20)
	r.stop("c")
	r.breakJournal("c")
	r.start("c")
	c, err := nbd.Dial(context.Background(), "tcp", r.nodes["c"].nbd, "v1")
	if err != nil {
		return
	}
	defer c.Close()
	if err := do(c, block.OpWrite, 0, filledWith(9), 5*time.Second); err == nil {
		t.Errorf("a secondary's volume took a host's write")
	}
}

// Status must answer, whatever a group's state. (A panic ends the whole test binary: run it alone.)
func TestStatusOfSourceWithBrokenLog(t *testing.T) {
	r := newRig(t, "a", "b", "c")
	g := r.group(1, 4<<20)
	r.through(g)
	r.stop("a")
	r.breakJournal("a")
	r.start("a")
	r.status("a")
}

// SIGTERM while requests are held.
func TestStopWithHeldRequests(t *testing.T) {
	r := newRig(t, "a", "b", "c")
	g := r.group(1, 4<<20)
	r.through(g)
	r.stop("a") // requests wait in the relay
	c, err := wire.DialIO(context.Background(), r.nodes["b"].listen, wire.Hello{Role: "gateway", Name: "gw"},
		wire.IOParams{Volume: "v1", Session: 7, From: 1}, wire.IOClientHooks{})
	if err != nil {
		t.Fatal(err)
	}
	go func() { _ = do(c, block.OpWrite, 0, filledWith(1), 30*time.Second) }()
	time.Sleep(300 * time.Millisecond)
	n := r.nodes["b"]
	n.caller.Close()
	n.cancel()
	select {
	case <-n.ended:
		n.cancel = nil
	case <-time.After(12 * time.Second):
		n.cancel = nil
		t.Fatalf("node b does not end within 12 s while it holds a request")
	}
}

// The manager opposes while the target is dead, and tells source and secondary that it is over. The target comes back.
func TestTargetBackAfterSourceForgot(t *testing.T) {
	r := newRig(t, "a", "b", "c")
	g := r.group(1, 4<<20)
	r.through(g)
	r.store.set(true, "")
	r.call("b", control.CallMigrateRun, control.MigrationID{ID: "g-1"}, nil)
	r.waitFor("sealed", func() bool { return r.moveStatus("a").Sealed })
	time.Sleep(200 * time.Millisecond)
	r.stop("b")
	r.store.set(false, control.DecidedSource)
	r.call("a", control.CallMigrateReopen, control.MigrationID{ID: "g-1"}, nil)
	r.call("a", control.CallMigrateCancel, control.MigrationID{ID: "g-1"}, nil)
	r.call("c", control.CallMigrateCancel, control.MigrationID{ID: "g-1"}, nil)
	r.start("b")
	var err error
	for end := time.Now().Add(10 * time.Second); time.Now().Before(end); time.Sleep(200 * time.Millisecond) {
		if err = r.try("b", control.CallMigrateCancel, control.MigrationID{ID: "g-1"}, nil); err == nil {
			return
		}
	}
	t.Fatalf("the target never lets go of the move: %v; %+v", err, r.moveStatus("b"))
}

// A journal that a retired source has left is free for another group (its name is in no group any more).
func TestRetiredJournalServesNewGroup(t *testing.T) {
	r := newRig(t, "a", "b", "c")
	g := r.group(1, 4<<20)
	r.filled(g)
	r.waitFor("drained", func() bool { return r.moveStatus("a").Drained })
	for _, n := range []string{"c", "b", "a"} {
		r.call(n, control.CallMigrateDeregister, control.MigrationID{ID: "g-1"}, nil)
	}
	r.call("c", control.CallJournalCreate, control.JournalCreate{Name: "jh", Size: 64 << 20}, nil)
	for _, n := range []string{"a", "c"} {
		r.call(n, control.CallVolumeCreate, control.VolumeCreate{Name: "w1", Size: 4 << 20}, nil)
	}
	h := control.Group{Name: "h", Settings: control.DefaultSettings(), Epoch: 1, Revision: 1, Primary: "a", Secondary: "c",
		PrimaryJournal: "a/jg", SecondaryJournal: "c/jh",
		Pairs: []control.Pair{{Number: 1, Primary: "a/w1", Secondary: "c/w1", Size: 4 << 20}}}
	r.call("c", control.CallGroupConfigure, control.GroupSpec{Group: h, Role: control.RoleSecondary, Address: r.addresses()}, nil)
	var st control.GroupStatus
	if err := r.try("a", control.CallGroupConfigure, control.GroupSpec{Group: h, Role: control.RolePrimary, Address: r.addresses()}, &st); err != nil {
		t.Fatalf("group on the journal of a retired source: %v", err)
	}
	if st.Role != control.RolePrimary {
		t.Fatalf("the new group is %+v", st)
	}
}

// flaky devices fail one flush on demand.
type flaky struct {
	machine
	mu   sync.Mutex
	fail map[string]bool
}

type flakyDevice struct {
	block.Device
	f    *flaky
	path string
}

func (f *flaky) Open(path string) (block.Device, error) {
	d, err := f.machine.Open(path)
	if err != nil {
		return nil, err
	}
	return &flakyDevice{d, f, path}, nil
}

func (f *flaky) Create(path string, size int64) (block.Device, error) {
	d, err := f.machine.Create(path, size)
	if err != nil {
		return nil, err
	}
	return &flakyDevice{d, f, path}, nil
}

func (d *flakyDevice) Flush() error {
	d.f.mu.Lock()
	defer d.f.mu.Unlock()
	if d.f.fail[filepath.Base(d.path)] {
		delete(d.f.fail, filepath.Base(d.path))
		return errors.New("injected: flush failed")
	}
	return d.Device.Flush()
}

// Taking a pair fails once after its record; the repeated call must really take it, or refuse.
func TestPairAddFailsOnceIsRepeated(t *testing.T) {
	f := &flaky{fail: map[string]bool{}}
	r := newRig(t, "a", "c")
	r.stop("a")
	r.nodes["a"].cfg.Devices = f
	r.start("a")
	g := r.group(1, 4<<20)
	for _, n := range []string{"a", "c"} {
		r.call(n, control.CallVolumeCreate, control.VolumeCreate{Name: "v2", Size: 4 << 20}, nil)
	}
	g.Pairs = append(g.Pairs, control.Pair{Number: 2, Primary: "a/v2", Secondary: "c/v2", Size: 4 << 20})
	g.Revision = 2
	r.call("c", control.CallGroupConfigure, control.GroupSpec{Group: g, Role: control.RoleSecondary, Address: r.addresses()}, nil)
	f.mu.Lock()
	f.fail["v2.raw"] = true
	f.mu.Unlock()
	spec := control.GroupSpec{Group: g, Role: control.RolePrimary, Address: r.addresses()}
	if err := r.try("a", control.CallGroupConfigure, spec, nil); err == nil {
		t.Fatal("the injected failure was not met")
	} else {
		t.Log(err)
	}
	if err := r.try("a", control.CallGroupConfigure, spec, nil); err != nil {
		t.Fatalf("the repeated call: %v", err)
	}
	before := r.status("a").Appended
	if err := do(r.nbd("a", "v2"), block.OpWrite, 0, filledWith(5), 5*time.Second); err != nil {
		t.Fatal(err)
	}
	if after := r.status("a").Appended; after == before {
		t.Errorf("the repeated call succeeded, a write to the pair's primary was acknowledged and is in no log (appended %d)", after)
	}
}

// A region whose fetch timed out must not be written with what arrives for another one. The buffer of a timed-out fetch
// is used again while its request is still in flight.
func TestFetchGivesBufferUp(t *testing.T) {
	stuck := make(chan *block.Request, 1)
	src := targetFunc(func(reqs []*block.Request) {
		for _, q := range reqs {
			if q.Op == block.OpExtents {
				q.Extents = []block.Extent{{Length: q.Length, Type: block.ExtentData}}
				q.Finish(nil)
				continue
			}
			if q.Offset == 0 {
				stuck <- q
				continue
			}
			copy(q.Data, filledWith(2))
			q.Finish(nil)
		}
	})
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	addr := serveTarget(t, ctx, src, 128<<10)
	p := newPeerVolume(ctx, wire.Hello{Role: "node", Name: "b"}, "v1", 128<<10, func() string { return addr }, newLog(t))
	defer p.Close()
	for end := time.Now().Add(5 * time.Second); p.Err() != nil && time.Now().Before(end); time.Sleep(10 * time.Millisecond) {
	}
	buf := make([]byte, 4096) // presence.fetch takes it from a pool and puts it back, on an error too
	short, stop := context.WithTimeout(ctx, 200*time.Millisecond)
	defer stop()
	if err := p.Fetch(short, 0, buf); err == nil {
		t.Fatal("the stuck fetch was answered")
	}
	if err := p.Fetch(ctx, 64<<10, buf); err != nil {
		t.Fatal(err)
	}
	q := <-stuck
	copy(q.Data, filledWith(1))
	q.Finish(nil)
	time.Sleep(300 * time.Millisecond)
	if buf[0] != 2 {
		t.Fatalf("the buffer that holds region 1 (%d) now holds %d: the late answer for region 0", 2, buf[0])
	}
}

type targetFunc func([]*block.Request)

func (f targetFunc) Submit(reqs []*block.Request) { f(reqs) }
