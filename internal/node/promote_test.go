package node

import (
	"errors"
	"io"
	"math/rand/v2"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"gantline/internal/block"
	"gantline/internal/control"
	"gantline/internal/nbd"
	"gantline/internal/proof"
	"gantline/internal/route"
	"gantline/internal/wire"
)

func (r *rig) promote(force, dry bool) (control.PromoteStatus, error) {
	var out control.PromoteStatus
	err := r.try("c", control.CallGroupPromote, control.GroupPromote{Name: "g", Force: force, DryRun: dry}, &out)
	return out, err
}

// snapshot copies what a process that is killed now leaves in its data directory.
func snapshot(t *testing.T, from, to string) {
	t.Helper()
	err := filepath.Walk(from, func(path string, info os.FileInfo, err error) error {
		if err != nil {
			return err
		}
		rel, _ := filepath.Rel(from, path)
		switch {
		case info.IsDir():
			return os.MkdirAll(filepath.Join(to, rel), 0o700)
		case !info.Mode().IsRegular():
			return nil
		}
		in, err := os.Open(path)
		if err != nil {
			return err
		}
		defer in.Close()
		out, err := os.Create(filepath.Join(to, rel))
		if err != nil {
			return err
		}
		defer out.Close()
		_, err = io.Copy(out, in)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
}

// The secondary dies before and after every step of its promotion. What it leaves is either a secondary, which can be promoted
// again, or finishes by itself; the image is a prefix either way, with the same cut, and hosts write on.
func TestPromotionDiesAnywhere(t *testing.T) {
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	r := newRig(t, "a", "c")
	r.group(2, 4<<20)
	l := proof.New(r.disks("a", 2), proof.Options{Seed: seed, Depth: 8, FlushEvery: 30})
	runFor(t, l, 500*time.Millisecond)
	r.stop("a")

	dir := r.nodes["c"].cfg.DataDir
	type left struct {
		at, dir string
		stands  bool
	}
	var all []left
	r.stop("c")
	stands := false
	r.nodes["c"].cfg.Point = func(step, edge string) {
		stands = stands || step == control.StepPromoteOpen && edge == "after"
		to := t.TempDir()
		snapshot(t, dir, to)
		all = append(all, left{step + "." + edge, to, stands})
	}
	r.start("c")
	out, err := r.promote(true, false)
	if err != nil {
		t.Fatal(err)
	}
	if out.Epoch != 4 || out.LostWrites != nil {
		t.Fatalf("%+v", out)
	}
	r.check(l, "c", 2, false)
	r.stop("c")
	if len(all) != 2*len(control.PromoteSteps()) {
		t.Fatalf("died at %d points", len(all))
	}
	r.nodes["c"].cfg.Point = nil
	for _, one := range all {
		t.Log(one.at)
		if err := os.RemoveAll(dir); err != nil {
			t.Fatal(err)
		}
		snapshot(t, one.dir, dir) // records name devices by their paths
		r.start("c")
		st := r.status("c")
		if one.stands != (st.Role == control.RolePrimary) {
			t.Fatalf("dead at %s: %+v", one.at, st)
		}
		r.check(l, "c", 2, false)
		again, err := r.promote(true, false)
		if err != nil || again.Epoch != out.Epoch || again.Cut != out.Cut {
			t.Fatalf("dead at %s: %+v, was %+v: %v", one.at, again, out, err)
		}
		r.check(l, "c", 2, false)
		writeTo(t, r.nbd("c", "v1"), 0, 4096, 9)
		if st := r.status("c"); st.Role != control.RolePrimary || st.State != "suspended" || st.ChangedBytes != markSize || st.Epoch != 4 {
			t.Fatalf("dead at %s: %+v", one.at, st)
		}
		r.stop("c")
	}
}

// An old primary that is cut off from its peer goes on; once it hears it refuses hosts, keeps what only it has as marks, and
// stays so after a restart. What hosts write at the promoted node outlives its restarts.
func TestOldPrimaryIsSuperseded(t *testing.T) {
	r := newRig(t, "a", "c")
	oldPrimaryIsSuperseded(r, r.group)
}

func TestOldPrimaryOnQueueIsSuperseded(t *testing.T) {
	r := newRig(t, "a", "c")
	oldPrimaryIsSuperseded(r, r.queueGroup)
}

func TestOldPrimaryIsSupersededByPull(t *testing.T) {
	r := newRig(t, "a", "c")
	r.with = func(s *control.Settings) { s.Transfer = control.TransferPull }
	oldPrimaryIsSuperseded(r, r.group)
}

func oldPrimaryIsSuperseded(r *rig, group func(int, int64) control.Group) {
	t := r.t
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	toC := newCutLink(t, func() string { return r.listens("c") })
	toA := newCutLink(t, func() string { return r.listens("a") })
	r.via = map[string]string{"a": toA.addr(), "c": toC.addr()}
	g := group(2, 8<<20)
	l := proof.New(r.disks("a", 2), proof.Options{Seed: seed, Depth: 8, ReadPercent: 30, FlushEvery: 30})
	runFor(t, l, 300*time.Millisecond)
	toC.set(true)
	toA.set(true)
	runFor(t, l, 200*time.Millisecond)
	lone := r.status("a")

	if _, err := r.promote(false, false); err == nil || !strings.Contains(err.Error(), "--force is needed") {
		t.Fatalf("without force: %v", err)
	}
	dry, err := r.promote(true, true)
	if err != nil || len(dry.Plan.Refusals) > 0 || len(dry.Plan.Plan) < 3 || r.status("c").Role != control.RoleSecondary {
		t.Fatalf("dry run: %+v %v", dry, err)
	}
	out, err := r.promote(true, false)
	if err != nil || out.LostWrites != nil || out.Cut >= lone.Appended {
		t.Fatalf("%+v %v", out, err)
	}
	r.check(l, "c", 2, false)
	if err := l.Forget(r.images("c", 2)); err != nil {
		t.Fatal(err)
	}
	l.SetDisks(r.disks("c", 2))
	runFor(t, l, 200*time.Millisecond)
	writeTo(t, r.nbd("a", "v1"), 0, 4096, 1) // it cannot know
	// The manager's old word changes nothing.
	g.Revision++
	if err := r.try("c", control.CallGroupConfigure, control.GroupSpec{Group: g, Role: control.RoleSecondary, Address: r.addresses()}, nil); err == nil {
		t.Fatal("the old orientation was taken")
	}
	held := r.nbd("a", "v1")
	toC.set(false)
	toA.set(false)
	r.waitFor("superseded", func() bool { return r.status("a").Role == control.RoleSuperseded })
	if err := do(held, block.OpWrite, 0, make([]byte, 4096), time.Second); err == nil {
		t.Fatal("a superseded node has taken a write")
	}
	r.waitFor("told", func() bool { return !strings.Contains(r.status("c").BlockedOn, "not heard") })
	r.waitFor("marked", func() bool { return r.status("a").ChangedBytes > 0 })
	runFor(t, l, 200*time.Millisecond)
	for range 2 {
		r.stop("a")
		r.start("a")
		if st := r.status("a"); st.Role != control.RoleSuperseded || st.State != "superseded" || st.ChangedBytes == 0 {
			t.Fatalf("after a restart: %+v", st)
		}
		if c, err := nbd.Dial(t.Context(), "tcp", r.nodes["a"].nbd, "v1"); err == nil {
			c.Close()
			t.Fatal("a superseded node exports its volume")
		}
		r.stop("c")
		r.start("c")
		r.check(l, "c", 2, true)
		l.SetDisks(r.disks("c", 2))
		runFor(t, l, 100*time.Millisecond)
	}
	if st := r.status("c"); st.Role != control.RolePrimary || st.Promoted == nil || st.ChangedBytes == 0 || st.Appended <= out.Cut {
		t.Fatalf("%+v", st)
	}
}

// An old primary that starts asks before it serves, and finds out.
func TestRestartedPrimaryAsksFirst(t *testing.T) {
	r := newRig(t, "a", "c")
	r.group(1, 4<<20)
	writeTo(t, r.nbd("a", "v1"), 0, 4096, 1)
	r.stop("a")
	if _, err := r.promote(true, false); err != nil {
		t.Fatal(err)
	}
	r.start("a")
	if st := r.status("a"); st.Role != control.RoleSuperseded {
		t.Fatalf("%+v", st)
	}
	// A gateway that still has the old route is led on; one that was served by the old primary ends its host's connection.
	cfg := route.Config{Route: route.Route{Node: "a", Address: r.nodes["a"].listen, Volume: "v1", Group: "g", Epoch: 1}, Size: 4 << 20,
		Self: wire.Hello{Role: "gateway", Name: "gw"}}
	s := route.NewSession(cfg)
	defer s.Close()
	if err := put(s, 0, 2, 5*time.Second); err != nil {
		t.Fatal(err)
	}
}

// The promoted node has dropped what it had acknowledged behind its cut: the old primary has that marked, also when it dies before
// the marks are there; once they are, nothing more is marked at a start.
func TestMarksOfTheOldPrimaryBeginAtTheCut(t *testing.T) {
	r := newRig(t, "a", "c")
	r.group(1, 4<<20)
	for i := range int64(4) {
		writeTo(t, r.nbd("a", "v1"), i*512<<10, 4096, 1)
	}
	r.waitFor("in step", func() bool { st := r.status("a"); return st.LinkUp && st.Applied == st.Appended })
	in := control.Reign{Name: "g", Node: "c", Epoch: 2, Cut: r.status("a").Appended - 2}
	r.call("a", control.CallGroupSuperseded, in, nil)
	r.waitFor("marked", func() bool { return r.nodes["a"].node.state.view().Groups["g"].CutMarked })
	if got := r.status("a").ChangedBytes; got != 2*markSize {
		t.Fatalf("%d bytes are marked", got)
	}
	r.stop("a")
	r.start("a")
	if got := r.status("a").ChangedBytes; got != 2*markSize {
		t.Fatalf("%d bytes are marked after a restart", got)
	}
	err := r.nodes["a"].node.state.update(func(d *durable) error { d.Groups["g"].CutMarked = false; return nil })
	if err != nil {
		t.Fatal(err)
	}
	r.stop("a")
	r.start("a")
	if got := r.status("a"); got.ChangedBytes < 2*markSize || !r.nodes["a"].node.state.view().Groups["g"].CutMarked {
		t.Fatalf("%d bytes are marked after a death", got.ChangedBytes)
	}
}

// The primary is alive and connected: with --force it stops before the other serves, and says what is lost.
func TestPromoteWithLivePrimary(t *testing.T) {
	r := newRig(t, "a", "c")
	r.group(1, 4<<20)
	ended := make(chan error, 1)
	s := route.NewSession(route.Config{Route: route.Route{Node: "a", Address: r.nodes["a"].listen, Volume: "v1", Group: "g", Epoch: 1},
		Size: 4 << 20, Self: wire.Hello{Role: "gateway", Name: "gw"}, Ended: func(err error) { ended <- err }})
	defer s.Close()
	if err := put(s, 0, 1, 5*time.Second); err != nil {
		t.Fatal(err)
	}
	r.waitFor("in step", func() bool { st := r.status("a"); return st.Applied == st.Appended })
	dry, err := r.promote(true, true)
	if err != nil || !strings.Contains(strings.Join(dry.Plan.Plan, "\n"), "is connected and serves hosts now") {
		t.Fatalf("%+v %v", dry.Plan, err)
	}
	out, err := r.promote(true, false)
	if err != nil || out.LostWrites == nil || *out.LostWrites != 0 {
		t.Fatalf("%+v %v", out, err)
	}
	if st := r.status("a"); st.Role != control.RoleSuperseded {
		t.Fatalf("%+v", st)
	}
	_ = put(s, 4096, 2, 5*time.Second)
	select {
	case err := <-ended:
		t.Log(err)
	case <-time.After(5 * time.Second):
		t.Fatal("the host's connection has outlived the promotion")
	}
}

// Every write that was answered while a synchronous group was paired is there.
func TestPromoteSync(t *testing.T) {
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	r := newRig(t, "a", "c")
	r.syncGroup(2, 4<<20, control.LinkLossContinue)
	l := proof.New(r.disks("a", 2), proof.Options{Seed: seed, Depth: 8})
	runFor(t, l, 300*time.Millisecond)
	r.stop("a")
	if _, err := r.promote(true, false); err != nil {
		t.Fatal(err)
	}
	r.check(l, "c", 2, true)
}

// Inside a resync's step the image is the one before it, and that is what is served.
func TestPromoteInsideAStep(t *testing.T) {
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	r := newRig(t, "a", "c")
	g := r.group(1, 8<<20)
	l := proof.New(r.disks("a", 1), proof.Options{Seed: seed, Depth: 8})
	runFor(t, l, 200*time.Millisecond)
	r.waitFor("in step", func() bool { st := r.status("a"); return st.Applied == st.Appended })
	r.call("a", control.CallGroupSuspend, control.GroupSuspend{Name: "g"}, nil)
	before := r.status("c").Applied
	for i := range int64(8) {
		writeTo(t, r.nbd("a", "v1"), i<<20, 1<<20, 7)
	}
	r.setSettings(&g, func(s *control.Settings) { s.Limit = 1 << 20 })
	r.call("a", control.CallGroupResume, control.GroupResume{Name: "g"}, nil)
	r.waitFor("inside the step", func() bool { st := r.status("c"); return st.Durable > before+3 && st.Applied == before })
	r.stop("a")
	out, err := r.promote(true, false)
	if err != nil || out.Cut != before {
		t.Fatalf("%+v, applied before the step %d: %v", out, before, err)
	}
	r.check(l, "c", 1, false)
	r.stop("c")
	r.start("c")
	r.check(l, "c", 1, false)
}

func TestPromoteRefusals(t *testing.T) {
	r := newRig(t, "a", "c")
	r.with = func(s *control.Settings) { s.Limit = 64 << 10 }
	g := r.group(1, 1<<20)
	if err := r.try("a", control.CallGroupPromote, control.GroupPromote{Name: "g", Force: true}, nil); err == nil {
		t.Fatal("a primary was promoted")
	}
	for _, node := range []string{"a", "c"} {
		r.call(node, control.CallVolumeCreate, control.VolumeCreate{Name: "v2", Size: 8 << 20}, nil)
	}
	rnd := make([]byte, 4<<20)
	for i := range rnd {
		rnd[i] = byte(rand.Uint32())
	}
	if err := do(r.nbd("a", "v2"), block.OpWrite, 0, rnd, 5*time.Second); err != nil {
		t.Fatal(err)
	}
	g.Pairs = append(g.Pairs, control.Pair{Number: 2, Primary: "a/v2", Secondary: "c/v2", Size: 8 << 20})
	g.Revision++
	r.configure(g)
	r.stop("a")
	_, err := r.promote(true, false)
	if err == nil || !strings.Contains(err.Error(), "initial copy of volume c/v2") {
		t.Fatalf("%v", err)
	}
	if st := r.status("c"); st.Role != control.RoleSecondary || st.Error != "" {
		t.Fatalf("%+v", st)
	}
	r.start("a")
	r.waitFor("going on", func() bool { return r.status("a").LinkUp && r.status("a").State == "initial-copy" })
}

// What is found only once the stream has ended takes the promotion back: the secondary follows again.
func TestPromotionTakenBack(t *testing.T) {
	r := newRig(t, "a", "c")
	r.stop("c")
	spoil := true
	copied := func(at uint64) error {
		return r.nodes["c"].node.group("g").updateMember(1, func(m *memberRecord) { m.CopiedAt = at })
	}
	r.nodes["c"].cfg.Point = func(step, edge string) {
		if spoil && step == control.StepPromoteMaps && edge == "after" {
			if err := copied(0); err != nil {
				t.Error(err)
			}
		}
	}
	r.start("c")
	r.group(1, 4<<20)
	was := r.nodes["c"].node.state.view().Groups["g"].Members[0].CopiedAt
	if _, err := r.promote(true, false); err == nil || was == 0 {
		t.Fatalf("promoted without a copy (%d)", was)
	}
	writeTo(t, r.nbd("a", "v1"), 0, 4096, 1)
	r.waitFor("in step", func() bool { st := r.status("a"); return st.LinkUp && st.Applied == st.Appended })
	spoil = false
	if err := copied(was); err != nil {
		t.Fatal(err)
	}
	out, err := r.promote(true, false)
	if err != nil || out.LostWrites == nil || *out.LostWrites != 0 {
		t.Fatalf("%+v %v", out, err)
	}
}

// The store of the manager was put back and has learnt of the promotion since: its revision is older than the old primary's, who
// is superseded by its word all the same. Any other late word is answered with what is held.
func TestLateWordOfAPromotionCounts(t *testing.T) {
	r := newRig(t, "a", "c")
	g := r.group(1, 4<<20)
	r.waitFor("in step", func() bool { st := r.status("a"); return st.LinkUp && st.Applied == st.Appended })
	old := g
	g.Revision += 5
	r.configure(g)
	say := func(g control.Group, role string) (st control.GroupStatus) {
		r.call("a", control.CallGroupConfigure, control.GroupSpec{Group: g, Role: role, Address: r.addresses()}, &st)
		return st
	}
	if st := say(old, control.RolePrimary); st.Newer == nil || st.Role != control.RolePrimary {
		t.Fatalf("%+v", st)
	}
	old.Promoted(&control.Promotion{Epoch: 2, Cut: r.status("a").Appended, From: "a"})
	for range 2 {
		if st := say(old, control.RoleSecondary); st.Newer != nil || st.Role != control.RoleSuperseded {
			t.Fatalf("%+v", st)
		}
	}
}

// A promotion that stands and could not go on is finished by a restart, not by another one.
func TestPromotionIsNotBegunTwice(t *testing.T) {
	r := newRig(t, "a", "c")
	r.group(1, 4<<20)
	g := r.nodes["c"].node.group("g")
	g.fail(errors.New("promoted, and not serving"))
	for _, dry := range []bool{true, false} {
		if _, err := r.promote(true, dry); err == nil || !strings.Contains(err.Error(), "restart the node") {
			t.Fatalf("%v", err)
		}
	}
	if row, _ := g.vg.Table().Current(); row.Node == "c" {
		t.Fatalf("%+v", row)
	}
}

// A node that is stopped inside a promotion which its own socket has begun ends it first.
func TestStopInsideAnOwnPromotion(t *testing.T) {
	r := newRig(t, "a", "c")
	r.group(1, 4<<20)
	r.stop("a")
	r.stop("c")
	inside, stopping := make(chan struct{}), make(chan struct{})
	r.nodes["c"].cfg.Point = func(step, edge string) {
		if step == control.StepPromoteCut && edge == "before" {
			close(inside)
			<-stopping
			time.Sleep(300 * time.Millisecond)
		}
	}
	r.start("c")
	n := r.nodes["c"].node
	asked := make(chan struct{})
	go func() {
		defer close(asked)
		req := httptest.NewRequest("POST", "/v1/groups/g/promote", strings.NewReader(`{"force":true}`))
		n.ownHandler().ServeHTTP(httptest.NewRecorder(), req)
	}()
	<-inside
	close(stopping)
	r.stop("c")
	<-asked
	late := httptest.NewRecorder()
	n.ownHandler().ServeHTTP(late, httptest.NewRequest("POST", "/v1/groups/g/promote", strings.NewReader(`{"force":true}`)))
	if late.Code != http.StatusConflict {
		t.Fatalf("a stopped node answers %d: %s", late.Code, late.Body)
	}
	r.nodes["c"].cfg.Point = nil
	r.start("c")
	if st := r.status("c"); st.Role != control.RolePrimary || st.Error != "" {
		t.Fatalf("%+v", st)
	}
}
