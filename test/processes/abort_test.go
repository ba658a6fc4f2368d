package processes

import (
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

// abortPoints are the kill points of a move that is aborted while its target holds. The move is from a to b.
func abortPoints() []killPoint {
	var all []killPoint
	for _, p := range []struct {
		process string
		points  []string
	}{
		{"manager", []string{control.PointAbort, control.PointAborted}},
		{"a", []string{control.PointReopen, control.PointCancel}},
		{"b", []string{control.PointRefuse, control.PointCancel}},
		{"c", []string{control.PointCancel}},
	} {
		for _, point := range p.points {
			all = append(all, killPoint{p.process, point, "before"}, killPoint{p.process, point, "after"})
		}
	}
	return all
}

// Each process dies at each step of an abort that it takes part in, and comes back. The abort ends, the source serves, hosts see
// no error; a second move succeeds.
func TestAbortKillPoints(t *testing.T) {
	t.Parallel()
	seed := site.Seed(t)
	points, forms := abortPoints(), abortForms()
	rnd := rand.New(rand.NewPCG(seed, 21))
	if names := os.Getenv("GANTLINE_KILL_POINTS"); names != "" {
		points = slices.DeleteFunc(points, func(k killPoint) bool { return !slices.Contains(strings.Split(names, ","), k.String()) })
	} else if site.Campaign() == 0 {
		rnd.Shuffle(len(points), func(i, j int) { points[i], points[j] = points[j], points[i] })
		points = points[:2]
	}
	for _, k := range append([]killPoint{{process: "g"}}, points...) {
		t.Run(k.String(), func(t *testing.T) {
			form := forms[rnd.IntN(len(forms))]
			t.Parallel()
			m := abortSite(t, k, 3, seed, form)
			m.pause()
			if r := m.CLI("migrate", "abort", "db", "--no-wait"); r.Code != 0 && k.process != "manager" {
				t.Fatal(r)
			}
			m.A.Signal(syscall.SIGCONT)
			if k.process == "g" {
				m.G.Kill()
				m.G.Start()
			} else {
				m.die()
			}
			if k == (killPoint{"manager", control.PointAbort, "before"}) { // nothing was stored: the source has come back to the move
				m.AwaitPhase("db", 20*time.Second, "failed", "filled")
			} else {
				m.AwaitPhase("db", 20*time.Second, "aborted")
			}
			m.again()
			m.ends()
		})
	}
}

// abortForms are the forms of groups that are moved and turned back; GANTLINE_FORM names one.
func abortForms() [][]string {
	all := [][]string{nil, {"--mode", "sync"}, {"--mode", "periodic", "--interval", "300ms"}, {"--log", "queue"}, {"--transfer", "pull"}}
	if name := os.Getenv("GANTLINE_FORM"); name != "" {
		return slices.DeleteFunc(all, func(form []string) bool { return !slices.Contains(form, name) })
	}
	return all
}

func abortSite(t *testing.T, k killPoint, volumes int, seed uint64, form []string) *move {
	t.Helper()
	env := map[string][]string{}
	if k.step != "" {
		env[k.process] = site.KillAt(k.step, k.edge)
	}
	s := site.Start(t, env)
	pair, journal := s.Pair, "64MiB"
	switch {
	case slices.Contains(form, "queue"):
		pair, journal, form = s.PairOnQueue, "640MiB", nil // a quarter of it takes all that may be in doubt
	case slices.Contains(form, "periodic"):
		journal = "256MiB"
	}
	m := &move{Site: s, t: t, k: k, g: pair("db", volumes, 64*mib, journal, form...)}
	t.Logf("form %q, journals of %s", form, journal)
	disks := s.Disks
	if k.process == "g" {
		disks = s.FirmDisks // a host's connection dies with the gateway
	}
	m.load = site.Run(proof.New(disks(s.G, m.g), proof.Options{Seed: seed, Depth: 8, MaxBlocks: 8, FlushEvery: 30, Rate: 600, Span: 32 * mib}))
	time.Sleep(200 * time.Millisecond)
	return m
}

// pause has the target hold while its source, which is stopped, says nothing.
func (m *move) pause() {
	m.t.Helper()
	m.Do("migrate", "start", "db", "--to", "b", "--stop-at", "switched")
	m.A.Signal(syscall.SIGSTOP)
	m.Do("migrate", "continue", "db", "--no-wait")
	m.WaitFor(4*time.Second, "the target holds", func() bool {
		mode := m.Move("db").Modes["b/"+m.g.Volumes[0]]
		return mode != nil && *mode == "pending"
	})
}

// again moves to b once everybody knows of the abort, unless the move has ended there.
func (m *move) again() {
	m.t.Helper()
	if m.Move("db").Phase != "filled" {
		var r site.Result
		start := []string{"migrate", "start", "db", "--to", "b", "--no-wait"}
		if m.Move("db").Phase == "failed" {
			start = append(start, "--yes")
			if m.CLI("journal", "show", "b/db-log").Code == 0 {
				start = append(start, "--journal", "b/db-log")
			}
			for _, v := range m.g.Volumes {
				start = append(start, "--map", "a/"+v+"=b/"+v)
			}
		}
		if !site.Poll(30*time.Second, func() bool { r = m.CLI(start...); return r.Code == 0 }) {
			m.t.Fatalf("the second try is refused: %v", r)
		}
	}
	m.AwaitPhase("db", 60*time.Second, "filled")
}

// ends stops the load and compares: hosts saw no error, all copies are equal.
func (m *move) ends() {
	m.t.Helper()
	time.Sleep(100 * time.Millisecond)
	if err := m.load.Stop(); err != nil {
		m.t.Errorf("the host saw an error: %v", err)
	}
	m.AwaitInStep("db", 30*time.Second)
	m.Equal(m.load.Load, "secondary", m.Exports(m.C, m.g))
	m.Equal(m.load.Load, "primary", m.Exports(m.Process(m.Group("db").Primary), m.g))
	st := m.load.Stats()
	m.t.Logf("%d writes, longest gap %v", st.Writes, st.LongestGap)
}

// A move is aborted at each of its steps under load, with one volume and with three: the source goes on, what was made is gone, the
// secondary is a prefix whenever it is killed; and at last a move succeeds.
func TestAbortAtEachStep(t *testing.T) {
	t.Parallel()
	seed := site.Seed(t)
	for name, volumes := range map[string]int{"one": 1, "three": 3} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			rnd := rand.New(rand.NewPCG(seed, uint64(volumes)))
			m := abortSite(t, killPoint{}, volumes, seed, nil)
			for _, step := range []struct {
				name  string
				reach func()
				after func()
			}{
				{"registered", func() { m.Do("migrate", "start", "db", "--to", "b", "--stop-at", "registered") }, nil},
				{"switched", func() { m.Do("migrate", "start", "db", "--to", "b", "--stop-at", "switched") }, nil},
				{"pending", m.pause, func() { m.A.Signal(syscall.SIGCONT) }},
				{"pending, target dead", func() { m.pause(); m.B.Kill(); m.A.Signal(syscall.SIGCONT) }, nil},
			} {
				if site.Campaign() == 0 && (step.name == "registered") != (volumes == 1) && step.name != "pending" {
					continue // each step once
				}
				step.reach()
				if step.after == nil {
					m.Do("migrate", "abort", "db")
				} else {
					m.Do("migrate", "abort", "db", "--no-wait")
					step.after()
				}
				m.aborted(step.name)
			}
			m.C.Kill()
			m.C.StartIsolated()
			time.Sleep(500 * time.Millisecond)
			m.Prefix(m.load.Load, "secondary killed after aborts", m.Exports(m.C, m.g))
			m.C.Stop()
			m.C.Start()
			m.race(rnd, max(2, site.Campaign()))
			m.again()
			if r := m.CLI("migrate", "abort", "db"); r.Code != 4 || !strings.Contains(r.Err, "decided") {
				t.Errorf("an abort behind the decision: %v", r)
			}
			m.ends()
			wanFits(t, m.Site, m.load.Stats().Bytes, 1)
		})
	}
}

// aborted looks at a site whose move was turned back.
func (m *move) aborted(when string) {
	m.t.Helper()
	if v := m.AwaitPhase("db", 20*time.Second, "aborted"); v.Phase != "aborted" {
		m.t.Fatalf("%s: the move is %s: %s", when, v.Phase, v.Error)
	}
	m.Do("migrate", "abort", "db") // repeated
	if !m.B.Alive() {
		m.B.Start()
	}
	if g := m.Group("db"); g.Primary != "a" {
		m.t.Fatalf("%s: the primary is %s", when, g.Primary)
	}
	before := m.load.Stats().Writes
	m.WaitFor(10*time.Second, when+": hosts go on", func() bool { return m.load.Stats().Writes > before+50 })
	m.WaitFor(20*time.Second, when+": what was made is gone", func() bool {
		files, err := os.ReadDir(m.B.Dir + "/volumes")
		return err == nil && len(files) == 0 && m.CLI("volume", "show", "b/"+m.g.Volumes[0]).Code == 3 &&
			m.CLI("journal", "show", "b/db-log").Code == 3
	})
	m.WaitFor(10*time.Second, when+": paired", func() bool { return m.State("db") == "paired" })
	m.t.Logf("%s: longest gap until now %v", when, m.load.Stats().LongestGap)
}

// race aborts moves at any moment: each is turned back, or was decided before; the store's one word counts.
func (m *move) race(rnd *rand.Rand, rounds int) {
	m.t.Helper()
	for range rounds {
		m.WaitFor(20*time.Second, "a move begins", func() bool {
			return m.CLI("migrate", "start", "db", "--to", "b", "--stop-at", "registered").Code == 0
		})
		m.Do("migrate", "continue", "db", "--no-wait")
		time.Sleep(time.Duration(rnd.IntN(60)) * time.Millisecond)
		r := m.CLI("migrate", "abort", "db")
		m.t.Logf("at random: exit %d %s", r.Code, r.Err)
		if r.Code == 4 {
			return // decided
		}
		m.aborted("at random")
	}
}

// The source has sealed its epoch and handed over, the target dies before it has asked for the decision: an abort has the source go
// on in the next epoch without it. The target learns of it when it is back.
func TestAbortOfASealedMove(t *testing.T) {
	t.Parallel()
	seed := site.Seed(t)
	forms := abortForms()
	m := abortSite(t, killPoint{"b", control.StepDecide, "before"}, 3, seed, forms[rand.New(rand.NewPCG(seed, 22)).IntN(len(forms))])
	m.start()
	m.WaitFor(30*time.Second, "the target kills itself", func() bool { return !m.B.Alive() })
	if !m.B.WasKilled() {
		t.Fatalf("b ended otherwise: %s", m.B.Ended())
	}
	m.Do("migrate", "abort", "db")
	before := m.load.Stats().Writes
	m.WaitFor(10*time.Second, "hosts go on", func() bool { return m.load.Stats().Writes > before+50 })
	if g, v := m.Group("db"), m.Move("db"); g.Primary != "a" || g.Epoch != 3 || v.Phase != "aborted" || v.BlockedOn == nil || *v.BlockedOn == "" {
		t.Errorf("primary %s in epoch %v; %s, left: %v", g.Primary, g.Epoch, v.Phase, deref(v.BlockedOn))
	}
	if r := m.CLI("migrate", "start", "db", "--to", "b"); r.Code != 4 && r.Code != 5 {
		t.Errorf("a move to a target that is dead: %v", r)
	}
	m.B.Start()
	m.aborted("the target is back")
	m.again()
	m.ends()
}
