package processes

import (
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"os"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"gantline/internal/control"
	"gantline/internal/proof"
	"gantline/test/site"
)

// alone makes a volume in no group at a, with a virtual volume.
func alone(s *site.Site, name string, size int64) *site.Made {
	s.T.Helper()
	s.Do("volume", "create", "a/"+name, "--size", fmt.Sprint(size))
	s.Do("vvol", "create", name, "--volume", "a/"+name)
	return &site.Made{Name: name, Volumes: []string{name}, Size: size}
}

func volumeOf(s *site.Site, full string) (v control.VolumeView) {
	s.T.Helper()
	if err := json.Unmarshal([]byte(s.Do("volume", "show", full, "-o", "json")), &v); err != nil {
		s.T.Fatal(err)
	}
	return v
}

// isAlone: the volume is in no group, nothing of a move is left of it, and a group is not either.
func isAlone(s *site.Site, full string) {
	s.T.Helper()
	v := volumeOf(s, full)
	if v.Role == nil || *v.Role != control.RoleLone || *v.Mode != "normal" || v.Group != "" || v.MigrationSource != nil || v.MigrationTarget != nil {
		s.T.Errorf("%s is not a volume in no group: %+v (role %v, mode %v)", full, v, deref(v.Role), deref(v.Mode))
	}
	for _, line := range []string{"group list -o json", "pair list -o json"} {
		if out := strings.TrimSpace(s.Do(line)); out != "[]" {
			s.T.Errorf("%s: %s", line, out)
		}
	}
	if r := s.CLI("group", "show", strings.ReplaceAll(full, "/", ".")); r.Code != 3 {
		s.T.Errorf("its group can be seen: %v", r)
	}
}

// refused: a command is refused, and says so.
func refused(s *site.Site, words string, line ...string) {
	s.T.Helper()
	if r := s.CLI(line...); r.Code != 4 || !strings.Contains(r.Err, words) {
		s.T.Errorf("%v: %v; want %q", line, r, words)
	}
}

// A volume in no group moves under load: turned back first, then for good, with what `migrate` has for any other move. Hosts see no
// error, and no group is ever seen. At the target it becomes part of a group, and what is left at the source stays until it is deleted.
func TestMoveLone(t *testing.T) {
	t.Parallel()
	s := site.Start(t, nil)
	g := alone(s, "db", 32*mib)
	load := site.Run(proof.New(s.Disks(s.G, g), proof.Options{Seed: site.Seed(t), Depth: 8, MaxBlocks: 8, FlushEvery: 30, ReadPercent: 20, Rate: 600}))
	if out := s.Do("migrate", "start", "a/db", "--to", "b", "--dry-run"); !strings.Contains(out, "make volume b/db") || strings.Contains(out, "journal") {
		t.Errorf("the plan:\n%s", out)
	}
	refused(s, "on a already", "migrate", "start", "a/db", "--to", "a")
	if r := s.CLI("migrate", "start", "a/none", "--to", "b"); r.Code != 3 {
		t.Errorf("a volume that does not exist: %v", r)
	}
	s.Do("migrate", "start", "a/db", "--to", "b", "--stop-at", "switched", "--limit", "64MiB")
	refused(s, "commit it first", "migrate", "start", "a/db", "--to", "c")
	refused(s, "a move that has not ended", "volume", "delete", "a/db", "--yes")
	if out := strings.TrimSpace(s.Do("group", "list", "-o", "json")); out != "[]" {
		t.Errorf("group list while it moves: %s", out)
	}
	if v := volumeOf(s, "a/db"); v.Group != "" || v.MigrationTarget == nil || v.MigrationTarget.Volume != "b/db" {
		t.Errorf("while it moves: %+v", v)
	}
	s.Do("migrate", "abort", "a/db")
	isAlone(s, "a/db")
	if r := s.CLI("volume", "show", "b/db"); r.Code != 3 {
		t.Errorf("what the move has made is still there: %v", r)
	}
	time.Sleep(200 * time.Millisecond)

	var v control.MigrationView
	if err := json.Unmarshal([]byte(s.Do("migrate", "start", "a/db", "--to", "b", "-o", "json")), &v); err != nil {
		t.Fatal(err)
	}
	if v.ID != "a.db-2" || v.Group != "a/db" || v.PauseMS == nil || v.Phase != "filled" {
		t.Errorf("%+v", v)
	}
	refused(s, "commit it first", "node", "drain", "b", "--to", "c")
	s.Do("migrate", "commit", "a/db")
	isAlone(s, "b/db")
	if out := s.Do("migrate", "show", "a/db", "-o", "json"); !strings.Contains(out, `"committed"`) {
		t.Errorf("afterwards: %s", out)
	}
	s.Do("migrate", "commit", v.ID)
	if out := s.Do("migrate", "start", "a/db", "--to", "b", "--no-wait"); strings.TrimSpace(out) != v.ID {
		t.Errorf("repeated: %s", out)
	}
	refused(s, "given up", "migrate", "start", "a/db", "--to", "c")
	time.Sleep(200 * time.Millisecond)

	s.Do("journal", "create", "b/log", "--size", "32MiB")
	s.Do("journal", "create", "c/log", "--size", "32MiB")
	s.Do("group", "create", "g", "--primary", "b", "--secondary", "c", "--primary-journal", "b/log", "--secondary-journal", "c/log")
	s.Do("volume", "create", "c/db", "--size", "32MiB")
	s.Do("pair", "add", "g", "b/db", "c/db")
	if err := load.Stop(); err != nil {
		t.Fatalf("the host saw an error: %v", err)
	}
	s.AwaitInStep("g", 20*time.Second)
	s.Equal(load.Load, "the target", s.Exports(s.B, g))
	s.Equal(load.Load, "its secondary", s.Exports(s.C, g))
	t.Logf("pause %v ms, %+v", deref(v.PauseMS), load.Stats())
	if _, err := os.Stat(s.A.Dir + "/volumes/db.raw"); err != nil {
		t.Error(err)
	}
	if role := volumeOf(s, "a/db").Role; role == nil || *role != control.RoleRetired {
		t.Errorf("what is left at the source is %v", deref(role))
	}
	s.Do("volume", "delete", "a/db", "--yes")
}

// lonePoints are the kill points of the move of a volume in no group, from a to b, and of one that is turned back.
func lonePoints() (ahead, back []killPoint) {
	add := func(list *[]killPoint, process string, steps ...string) {
		for _, step := range steps {
			*list = append(*list, killPoint{process, step, "before"}, killPoint{process, step, "after"})
		}
	}
	add(&ahead, "manager", "register", "through", "switch", "decide", "deregister", control.PointUngroup)
	add(&ahead, "a", "register", "seal", "deregister")
	add(&ahead, "b", "register", "through", "pend", "seal", "decide", "run", "fill", "deregister")
	add(&ahead, "g", "switch")
	add(&back, "manager", control.PointAbort, control.PointAborted, control.PointUngroup)
	add(&back, "a", control.PointReopen, control.PointCancel)
	add(&back, "b", control.PointRefuse, control.PointCancel)
	return ahead, back
}

// Each process dies at each step of the move of a volume in no group, and comes back, on the way there and on the way back. The move
// ends, or goes back and succeeds at the second try; hosts see no error and find all that they wrote; the volume is in no group again.
func TestLoneKillPoints(t *testing.T) {
	t.Parallel()
	seed := site.Seed(t)
	type row struct {
		killPoint
		back bool
	}
	var rows []row
	ahead, back := lonePoints()
	for _, k := range ahead {
		rows = append(rows, row{k, false})
	}
	for _, k := range back {
		rows = append(rows, row{k, true})
	}
	name := func(r row) string { return map[bool]string{true: "back-"}[r.back] + r.killPoint.String() }
	rnd := rand.New(rand.NewPCG(seed, 31))
	if names := os.Getenv("GANTLINE_KILL_POINTS"); names != "" {
		rows = slices.DeleteFunc(rows, func(r row) bool { return !slices.Contains(strings.Split(names, ","), name(r)) })
	} else if site.Campaign() == 0 {
		rnd.Shuffle(len(rows), func(i, j int) { rows[i], rows[j] = rows[j], rows[i] })
		rows = rows[:2]
	}
	for _, r := range rows {
		first := rnd.IntN(3) == 0
		t.Run(name(r), func(t *testing.T) {
			t.Parallel()
			m := &loneMove{move: &move{t: t, k: r.killPoint}}
			if first && !r.back {
				m.flags = []string{"--strategy", "copy-first"}
			}
			t.Log("flags", m.flags)
			m.begin(seed)
			if r.back {
				m.turnedBack()
			} else {
				m.there()
			}
			m.ends()
		})
	}
}

// loneMove is a move of a/db with a death in it.
type loneMove struct{ *move }

func (m *loneMove) begin(seed uint64) {
	m.Site = site.Start(m.t, map[string][]string{m.k.process: site.KillAt(m.k.step, m.k.edge)})
	m.g = alone(m.Site, "db", 64*mib)
	m.dirty(m.Dial(m.G, "db"))
	disks := m.Disks
	if m.k.process == "g" {
		disks = m.FirmDisks // a host's connection dies with the gateway
	}
	m.load = site.Run(proof.New(disks(m.G, m.g), proof.Options{Seed: seed, Depth: 8, MaxBlocks: 8, FlushEvery: 30, Rate: 600, Span: 32 * mib}))
	time.Sleep(200 * time.Millisecond)
}

func (m *loneMove) start(more ...string) site.Result {
	args := append([]string{"migrate", "start", "a/db", "--to", "b", "--no-wait"}, m.flags...)
	return m.CLI(append(args, more...)...)
}

// there has the process die on the way to the target, or behind it.
func (m *loneMove) there() {
	r := m.start()
	if r.Code != 0 && m.k.process != "manager" {
		m.t.Fatal(r)
	}
	late := m.k.step == "deregister" || m.k.step == control.PointUngroup
	if !late {
		m.die()
	}
	m.filled()
	if late {
		m.CLI("migrate", "commit", "a/db", "--no-wait") // its manager may die under it
		m.die()
	}
}

// turnedBack has the process die while a move goes back whose target holds.
func (m *loneMove) turnedBack() {
	m.Do("migrate", "start", "a/db", "--to", "b", "--stop-at", "switched")
	m.A.Signal(syscall.SIGSTOP)
	m.Do("migrate", "continue", "a/db", "--no-wait")
	m.WaitFor(4*time.Second, "the target holds", func() bool {
		mode := m.Move("a.db").Modes["b/db"]
		return mode != nil && *mode == "pending"
	})
	if r := m.CLI("migrate", "abort", "a/db", "--no-wait"); r.Code != 0 && m.k.process != "manager" {
		m.t.Fatal(r)
	}
	m.A.Signal(syscall.SIGCONT)
	m.die()
	if m.k == (killPoint{"manager", control.PointAbort, "before"}) { // nothing was stored: the source has come back to the move
		if m.AwaitPhase("a.db", 20*time.Second, "failed", "filled").Phase == "filled" {
			return
		}
	} else {
		m.AwaitPhase("a.db", 20*time.Second, "aborted")
	}
	m.WaitFor(10*time.Second, "the volume is in no group at a", func() bool {
		return !strings.Contains(m.Do("volume", "show", "a/db", "-o", "json"), `"migration_target": {`) && *volumeOf(m.Site, "a/db").Role == control.RoleLone
	})
	isAlone(m.Site, "a/db")
	m.again()
}

// filled waits until the move is, with a second try if it goes back.
func (m *loneMove) filled() {
	if m.Get("/v1/migrations/a.db", &control.MigrationView{}) == site.ErrNotFound {
		if r := m.start(); r.Code != 0 { // it died before it had noted the move
			m.t.Fatal(r)
		}
	}
	v := m.AwaitPhase("a.db", 60*time.Second, "filled", "failed", "committed")
	if v.Phase != "failed" {
		return
	}
	if slices.Contains([]string{"run", "fill"}, m.k.step) {
		m.t.Errorf("the move went back although it had been decided: %s", v.Error)
	}
	m.t.Logf("the first try: %s", v.Error)
	m.again()
}

func (m *loneMove) again() {
	var r site.Result
	ok := site.Poll(30*time.Second, func() bool {
		var more []string
		if m.CLI("volume", "show", "b/db").Code == 0 {
			more = []string{"--yes", "--map", "a/db=b/db"}
		}
		r = m.start(more...)
		return r.Code == 0
	})
	if !ok {
		m.t.Fatalf("the second try is refused: %v", r)
	}
	m.AwaitPhase("a.db", 60*time.Second, "filled")
}

// ends commits, and looks at what there is.
func (m *loneMove) ends() {
	var r site.Result
	if !site.Poll(30*time.Second, func() bool { r = m.CLI("migrate", "commit", "a/db"); return r.Code == 0 }) {
		m.t.Fatal(r)
	}
	time.Sleep(200 * time.Millisecond)
	if err := m.load.Stop(); err != nil {
		m.t.Errorf("the host saw an error: %v", err)
	}
	isAlone(m.Site, "b/db")
	if st := m.load.Stats(); st.LongestGap > 30*time.Second {
		m.t.Errorf("hosts waited for %v", st.LongestGap)
	} else {
		m.t.Logf("%d writes, longest gap %v", st.Writes, st.LongestGap)
	}
	m.Equal(m.load.Load, "the gateway's view", site.Spans(m.Exports(m.G, m.g), 32*mib))
	m.Equal(m.load.Load, "the target", site.Spans(m.Exports(m.B, m.g), 32*mib))
	data, err := site.Read(m.Dial(m.B, "db"), 40*mib, 16*mib)
	if err != nil {
		m.t.Fatal(err)
	}
	for i, b := range data {
		if b != byte(40+i/int(mib)) {
			m.t.Fatalf("byte %d of what lay there before is %d", 40*int(mib)+i, b)
		}
	}
	if c, err := m.TryDial(m.A, "db"); err == nil {
		_ = c.Close()
		m.t.Error("the source still serves it")
	}
	m.Manager.Kill() // nothing of it is begun anew
	m.Manager.Start()
	m.B.Kill()
	m.B.Start()
	m.Equal(m.load.Load, "the target, killed and started", site.Spans(m.Exports(m.B, m.g), 32*mib))
	m.WaitFor(20*time.Second, "the target is up", func() bool { return m.CLI("node", "show", "b", "-o", "json").Code == 0 })
	isAlone(m.Site, "b/db")
}

// The source of a volume in no group dies before the target has all: nobody else has what is absent. Hosts get errors there, and
// there alone, what is missing is named, and so is the way out; with the source back the move ends and nothing is lost.
func TestLoneSourceAway(t *testing.T) {
	t.Parallel()
	s := site.Start(t, nil)
	g := alone(s, "db", 16*mib)
	running := site.Run(proof.New(s.Disks(s.G, g), proof.Options{Seed: site.Seed(t), Depth: 8, MaxBlocks: 8, FlushEvery: 30, Rate: 1500}))
	time.Sleep(700 * time.Millisecond)
	if err := running.Stop(); err != nil {
		t.Fatal(err)
	}
	s.Do("migrate", "start", "a/db", "--to", "b", "--limit", "1MiB", "--no-wait")
	s.AwaitPhase("a.db", 20*time.Second, "migrating")
	s.A.Kill()
	if r := own(s, s.B, "migrate", "show", "a/db"); r.Code != 0 || !strings.Contains(r.Out, "a.db-1") {
		t.Errorf("at the target's own socket: %v", r)
	}
	s.WaitFor(20*time.Second, "what is at risk is told", func() bool {
		v := s.Move("a.db")
		return len(v.AtRisk) > 0 && v.BlockedOn != nil && strings.Contains(*v.BlockedOn, "start it")
	})
	v := s.Move("a.db")
	var off, n int64
	if _, err := fmt.Sscanf(v.AtRisk[0], "b/db: %d bytes at %d", &n, &off); err != nil {
		t.Fatalf("%v: %v", v.AtRisk, err)
	}
	host := s.Dial(s.G, "db")
	if _, err := site.Read(host, off, 4096); err == nil {
		t.Errorf("what is at the source alone (%d bytes at %d) is read", n, off)
	}
	if off > 0 {
		if _, err := site.Read(host, 0, 4096); err != nil {
			t.Errorf("what is at the target: %v", err)
		}
	}
	if r := s.CLI("node remove a --forget --yes"); r.Code != 4 {
		t.Errorf("the only one that has it is forgotten: %v", r)
	}
	s.A.Start()
	s.Do("migrate set a/db --limit 0")
	s.AwaitPhase("a.db", 30*time.Second, "filled")
	s.Do("migrate commit a/db")
	s.Equal(running.Load, "the target", s.Exports(s.B, g))
}

// loseMoving moves a/db, with little of it at b yet, and kills a node for good. It returns the load, at rest.
func loseMoving(t *testing.T, dies string) (*site.Site, *site.Made, *proof.Load) {
	t.Helper()
	s := site.Start(t, nil)
	g := alone(s, "db", 16*mib)
	load := proof.New(s.Disks(s.G, g), proof.Options{Seed: site.Seed(t), Depth: 8, MaxBlocks: 8, FlushEvery: 30, Rate: 1500})
	running := site.Run(load)
	time.Sleep(700 * time.Millisecond)
	if err := running.Stop(); err != nil {
		t.Fatal(err)
	}
	s.Do("migrate", "start", "a/db", "--to", "b", "--limit", "512KiB", "--no-wait")
	s.AwaitPhase("a.db", 20*time.Second, "migrating")
	if dies == "b" {
		goOn(s, load, s.G, g)
	}
	s.Process(dies).Kill()
	s.WaitFor(20*time.Second, "it counts as down", func() bool { return strings.Contains(s.Do("node", "show", dies, "-o", "json"), `"down"`) })
	return s, g, load
}

// The source of a volume in no group is gone for good before the target has all. By the operator's word what is absent reads as zeros, what
// that is stays told, and the move ends.
func TestLoneSourceLost(t *testing.T) {
	t.Parallel()
	s, _, _ := loseMoving(t, "a")
	s.WaitFor(20*time.Second, "what is at risk is told", func() bool { return len(s.Move("a.db").AtRisk) > 0 })
	refused(s, "--accept-loss", "node", "remove", "a", "--forget", "--yes")
	there := s.Move("a.db")
	var off, n int64
	if _, err := fmt.Sscanf(there.AtRisk[0], "b/db: %d bytes at %d", &n, &off); err != nil {
		t.Fatalf("%v: %v", there.AtRisk, err)
	}
	s.Do("node", "remove", "a", "--forget", "--accept-loss", "--yes")
	s.Manager.Kill()
	s.B.Kill()
	s.Manager.Start()
	s.B.Start()
	v := s.AwaitPhase("a.db", 30*time.Second, "filled")
	if len(v.AtRisk) != len(there.AtRisk) || !strings.Contains(v.AtRisk[0], "lost, reads as zeros: "+there.AtRisk[0]) {
		t.Errorf("told as lost: %v", v.AtRisk)
	}
	s.Do("migrate", "commit", "a/db")
	isAlone(s, "b/db")
	host := s.Dial(s.G, "db")
	data, err := site.Read(host, off, n)
	if err != nil || slices.ContainsFunc(data, func(b byte) bool { return b != 0 }) {
		t.Errorf("what is lost, %d bytes at %d: %v", n, off, err)
	}
	if err := site.Write(host, off+4096, []byte(strings.Repeat("x", 4096)), 10*time.Second); err != nil {
		t.Error(err)
	}
	if r := s.CLI("node", "show", "a"); r.Code != 3 {
		t.Error(r)
	}
}

// The target is gone for good before it has all: by the operator's word the source serves again, as of the cut; a host that was told of
// writes behind it loses its connection.
func TestLoneTargetLost(t *testing.T) {
	t.Parallel()
	s, g, load := loseMoving(t, "b")
	refused(s, "nowhere else", "node", "remove", "b", "--forget", "--yes")
	s.Do("node", "remove", "b", "--forget", "--accept-loss", "--yes")
	s.AwaitPhase("a.db", 20*time.Second, "failed")
	s.WaitFor(20*time.Second, "the volume is in no group at a", func() bool {
		v := volumeOf(s, "a/db")
		return v.Role != nil && *v.Role == control.RoleLone && *v.Mode == "normal"
	})
	isAlone(s, "a/db")
	if v := s.Prefix(load, "the source, as of the cut", s.Exports(s.A, g)); v.Behind == 0 {
		t.Error("nothing was lost: the target has served nothing")
	}
	before := load.Stats().Errors
	stale := site.Run(load) // its connections have been told of writes that are gone
	time.Sleep(300 * time.Millisecond)
	if err := stale.Stop(); err == nil || load.Stats().Errors == before {
		t.Error("a host goes on over the loss as if nothing had been")
	}
	if err := load.Forget(s.Exports(s.A, g)); err != nil {
		t.Fatal(err)
	}
	goOn(s, load, s.G, g)
	s.A.Kill()
	s.A.Start()
	s.Equal(load, "written on at the source", s.Exports(s.A, g))
}
