package processes

import (
	"encoding/json"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"gantline/internal/control"
	"gantline/internal/proof"
	"gantline/test/site"
)

// carryPoints are the kill points of the carrying of a backlog from a to b.
func carryPoints() []killPoint {
	var all []killPoint
	for _, step := range []string{"carry-make", "carry", "carry-front", "carry-free", "drained", "single"} {
		all = append(all, killPoint{"b", step, "before"}, killPoint{"b", step, "after"})
	}
	return append(all, killPoint{"a", "carried", "before"}, killPoint{"a", "carried", "after"}, killPoint{"c", "single", "after"})
}

// The secondary is away, and what it lacks moves with the primary. The source dies for ever, at a kill point or right after it;
// target and secondary die at one and come back. The secondary, back again, gets everything from the target, in order; hosts see no error. Nothing
// goes over the link twice, by the target's own figure: the whole does not know it while the source is dead. One kill point by chance; all of them in a campaign. GANTLINE_KILL_POINTS names them.
func TestCarryBacklog(t *testing.T) {
	t.Parallel()
	seed := site.Seed(t)
	points := carryPoints()
	names := os.Getenv("GANTLINE_KILL_POINTS")
	switch {
	case names != "":
		points = slices.DeleteFunc(points, func(k killPoint) bool { return !slices.Contains(strings.Split(names, ","), k.String()) })
	case site.Campaign() == 0:
		points = []killPoint{points[rand.New(rand.NewPCG(seed, 21)).IntN(len(points))]}
	}
	for _, k := range points {
		t.Run(k.String(), func(t *testing.T) {
			t.Parallel()
			carryBacklog(t, k, seed)
		})
	}
}

func carryBacklog(t *testing.T, k killPoint, seed uint64) {
	s := site.Start(t, map[string][]string{k.process: site.KillAt(k.step, k.edge)})
	m := &move{Site: s, t: t, k: k, g: s.Pair("db", 2, 64*mib, "320MiB")}
	m.load = site.Run(proof.New(s.Disks(s.G, m.g), proof.Options{Seed: seed, Depth: 16, MaxBlocks: 8, FlushEvery: 30, Rate: 500, Span: 16 * mib}))
	time.Sleep(300 * time.Millisecond)
	s.C.Stop()
	time.Sleep(2 * time.Second)
	s.Do("migrate", "start", "db", "--to", "b", "--backlog", "carry", "--strategy", "copy-first", "--no-wait")
	away := k.step != "carry-free" && (k.step != "single" || k.edge == "before") // it dies while the secondary is away
	if away && k.process == "b" {
		m.die()
	}
	if k.process == "a" {
		m.WaitFor(40*time.Second, "a kills itself", func() bool { return !s.A.Alive() })
	}
	m.carried()
	if s.A.Alive() {
		s.A.Kill()
	}
	if m.load.Stop() != nil {
		t.Error("the host saw an error")
	}
	if k.process == "c" { // it has not been at the point in its first run
		s.C.Start(site.KillAt(k.step, k.edge)...)
	} else {
		s.C.Start()
	}
	if k.process == "c" || !away {
		m.die()
	}
	s.AwaitPhase("db", 60*time.Second, "filled")
	s.AwaitInStep("db", 60*time.Second)
	var g control.GroupView
	if r := own(s, s.B, "group", "show", "db", "-o", "json"); r.Code != 0 || json.Unmarshal([]byte(r.Out), &g) != nil {
		t.Fatal(r)
	}
	sentFits(t, g.WANBytesSent, m.load.Stats().Bytes, 2) // the secondary is stopped in the midst of it, too
	if sum := s.Group("db").WANBytesSent; sum != nil {
		t.Errorf("%d bytes are said to have been sent by all, and %s is away", *sum, s.A.Name)
	}
	s.Equal(m.load.Load, "secondary", s.Exports(s.C, m.g))
	s.Equal(m.load.Load, "target", s.Exports(s.B, m.g))
	m.WaitFor(20*time.Second, "the space to be given back", func() bool { return !keepsCarried(t, s.B) })
}

// keepsCarried says whether a node has a log of what was carried there.
func keepsCarried(t *testing.T, p *site.Process) bool {
	files, err := os.ReadDir(filepath.Join(p.Dir, "journals"))
	if err != nil {
		t.Fatal(err)
	}
	return slices.ContainsFunc(files, func(f os.DirEntry) bool { return strings.Contains(f.Name(), ".carried") })
}

// carried waits until the target has all that the secondary lacks.
func (m *move) carried() {
	m.WaitFor(60*time.Second, "all to be carried", func() bool {
		b := m.Move("db").Bytes
		return b.Carried != nil && b.CarryTotal != nil && *b.Carried == *b.CarryTotal && *b.Carried > 0
	})
}

// A group moves on while what it has carried is still being sent, and the secondary is away again: that, and what has come behind it,
// moves as well. Both nodes that had it before are gone then. Long: in a campaign only.
func TestCarryTwice(t *testing.T) {
	if site.Campaign() == 0 {
		t.Skip("in a campaign only (GANTLINE_CAMPAIGN=1)")
	}
	t.Parallel()
	s := site.Start(t, nil)
	m := &move{Site: s, t: t, g: s.Pair("db", 2, 64*mib, "320MiB")}
	m.load = site.Run(proof.New(s.Disks(s.G, m.g), proof.Options{Seed: site.Seed(t), Depth: 16, MaxBlocks: 8, FlushEvery: 30, Rate: 500, Span: 16 * mib}))
	carry := func(to string, more ...string) {
		s.C.Stop()
		time.Sleep(1500 * time.Millisecond)
		s.Do(append([]string{"migrate", "start", "db", "--to", to, "--backlog", "carry", "--strategy", "copy-first", "--no-wait"}, more...)...)
		m.carried()
	}
	time.Sleep(300 * time.Millisecond)
	carry("b")
	s.Do("link", "set", "b:c", "--limit", "512KiB")
	s.C.Start()
	s.AwaitPhase("db", 60*time.Second, "filled")
	s.Do("migrate", "commit", "db")
	for _, v := range m.g.Volumes {
		s.Do("volume", "delete", "a/"+v, "--yes")
	}
	s.Do("journal", "delete", "a/db-log", "--yes")
	s.B.Stop() // and starts with what it was given
	s.B.Start()
	if !keepsCarried(t, s.B) {
		t.Fatal("the secondary has got all of it before the second move")
	}
	carry("a")
	s.B.Kill()
	if m.load.Stop() != nil {
		t.Error("the host saw an error")
	}
	s.C.Start()
	s.AwaitPhase("db", 60*time.Second, "filled")
	s.AwaitInStep("db", 60*time.Second)
	s.Equal(m.load.Load, "secondary", s.Exports(s.C, m.g))
	s.Equal(m.load.Load, "target", s.Exports(s.A, m.g))
	m.WaitFor(20*time.Second, "the space to be given back", func() bool { return !keepsCarried(t, s.A) })
	s.B.Start()
	s.Do("migrate", "commit", "db")
	if keepsCarried(t, s.B) {
		t.Error("the first target has kept what was carried there")
	}
}
