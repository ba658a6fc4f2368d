package processes

import (
	"math/rand/v2"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"gantline/internal/control"
	"gantline/internal/proof"
	"gantline/test/site"
)

// goneAlways are the deaths for good of every run: one of each way out.
var goneAlways = []killPoint{{"a", "seal", "after"}, {"a", "drained", "after"}, {"b", "run", "before"}, {"c", "single", "before"},
	{"manager", "run", standing}}

// goneChosen are those, or all in a campaign. GANTLINE_KILL_POINTS names them.
func goneChosen() []killPoint {
	if os.Getenv("GANTLINE_KILL_POINTS") == "" && site.Campaign() == 0 {
		return goneAlways
	}
	return chosen(0)
}

// Each process dies at each step of a move, and never comes back. What guarantees.md says of it holds: somebody
// serves all that hosts were answered for and that the dead one has not taken with it, by the command that is named there, and no
// group is stuck: in the end it can be deleted, with the node that is gone forgotten.
func TestGoneForEver(t *testing.T) {
	t.Parallel()
	seed := site.Seed(t)
	for _, k := range goneChosen() {
		t.Run(k.String(), func(t *testing.T) {
			t.Parallel()
			goneAt(t, k, seed)
		})
	}
}

func goneAt(t *testing.T, k killPoint, seed uint64) {
	s := site.Start(t, k.env())
	m := &gone{seed: seed, move: &move{Site: s, t: t, k: k, g: s.Pair("db", 2, 16*mib, "64MiB")}}
	if k.process == "a" && k.step != "deregister" {
		m.flags = []string{"--limit", "4MiB"} // its death finds regions absent
	}
	m.load = site.Run(proof.New(s.Disks(s.G, m.g), proof.Options{Seed: seed, Depth: 8, MaxBlocks: 8, FlushEvery: 30, Rate: 1000}))
	time.Sleep(500 * time.Millisecond)
	if err := m.load.Stop(); err != nil {
		t.Fatal(err)
	}
	s.AwaitInStep("db", 20*time.Second)
	m.start()
	if k.step == "deregister" {
		s.AwaitPhase("db", 60*time.Second, "filled")
		s.CLI("migrate", "commit", "db", "--no-wait")
	}
	k.killed(s)
	map[string]func(){"a": m.source, "b": m.target, "c": m.secondary, "g": m.gateway, "manager": m.manager}[k.process]()
}

// gone is one death for good.
type gone struct {
	*move
	seed uint64
}

// decided waits until the move has got as far as it does without the dead one, and says whether the target is the primary.
func (m *gone) decided() bool {
	site.Poll(7*time.Second, func() bool {
		var v control.MigrationView
		return m.Get("/v1/migrations/db", &v) == nil && slices.Contains([]string{"migrating", "filled", "committed", "failed", "aborted"}, v.Phase)
	})
	return m.Group("db").Primary == "b"
}

// serves: hosts have all that they wrote, and write on, through the gateway or at a node.
func (m *gone) serves(p *site.Process) {
	m.t.Helper()
	m.Equal(m.load.Load, "image of "+p.Name, m.Exports(p, m.g))
	goOn(m.Site, m.load.Load, p, m.g)
	m.Equal(m.load.Load, "image of "+p.Name+" written on", m.Exports(p, m.g))
}

// until repeats a command while it is refused, as one is until a node counts as down.
func (m *gone) until(line string) {
	m.t.Helper()
	var r site.Result
	if !site.Poll(20*time.Second, func() bool { r = m.CLI(line); return r.Code == 0 }) {
		m.t.Fatal(r)
	}
}

// ended: a group that has lost a node for good can be given up, and its name is free.
func (m *gone) ended(lost string) {
	m.t.Helper()
	m.G.Kill() // with the hosts that have it open
	had := m.holds(lost)
	if r := m.CLI("group delete db"); r.Code == 0 && had {
		m.t.Errorf("deleted with %s away", lost)
	} else if r.Code != 0 && !strings.Contains(r.Err, "node remove "+lost+" --forget") {
		m.t.Errorf("the way out is not named: %v", r)
	}
	if m.CLI("node show "+lost).Code == 0 {
		m.until("node remove " + lost + " --forget --yes")
	}
	for _, v := range m.g.Volumes {
		m.until("vvol delete " + v)
	}
	if m.CLI("group show db").Code == 0 {
		m.Do("group delete db")
	}
}

// holds says whether the group's record has the node, and nobody has forgotten it yet.
func (m *gone) holds(node string) bool {
	var g control.GroupView
	return m.CLI("node show "+node).Code == 0 && m.Get("/v1/groups/db", &g) == nil && (g.Primary == node || g.Secondary == node)
}

func (m *gone) promote() {
	m.t.Helper()
	if r := m.CLI("group promote db"); r.Code != 4 {
		m.t.Errorf("without --force: %v", r)
	}
	m.Do("group promote db --force")
	if g := m.Group("db"); g.Primary != "c" {
		m.t.Errorf("%+v", g)
	}
	m.serves(m.G)
}

// source: before the decision only the secondary has its data; behind it the target refills what it lacks.
func (m *gone) source() {
	if !m.decided() {
		m.promote()
		m.ended("a")
		return
	}
	m.serves(m.G)
	if m.k.step != "deregister" {
		m.AwaitPhase("db", 60*time.Second, "filled")
	}
	m.AwaitInStep("db", 20*time.Second)
	m.Equal(m.load.Load, "the secondary", m.Exports(m.C, m.g))
	m.until("node remove a --forget --yes")
	if r := m.CLI("migrate commit db"); r.Code != 0 {
		m.t.Error(r)
	}
	m.AwaitPhase("db", 20*time.Second, "committed")
	m.ended("a")
}

// target: before the decision the source has all; behind it only the secondary.
func (m *gone) target() {
	if m.decided() {
		m.promote()
	} else {
		if r := m.CLI("migrate abort db"); r.Code != 0 && m.Move("db").Phase != "failed" {
			m.t.Error(r)
		}
		m.serves(m.G)
	}
	m.ended("b")
}

// secondary: whoever serves goes on; a decided move ends without it once it is forgotten.
func (m *gone) secondary() {
	if m.decided() {
		m.serves(m.G)
		m.until("node remove c --forget --yes")
		m.AwaitPhase("db", 60*time.Second, "filled", "committed")
		if r := m.CLI("migrate commit db"); r.Code != 0 {
			m.t.Error(r)
		}
		m.AwaitPhase("db", 20*time.Second, "committed")
	} else {
		m.CLI("migrate abort db")
		m.AwaitPhase("db", 20*time.Second, "aborted", "failed")
		m.serves(m.G)
	}
	m.ended("c")
}

// The secondary is gone for good with records that only the source has, behind the decision: nobody waits for them once it is forgotten.
func TestMoveEndsWithoutItsSecondary(t *testing.T) {
	t.Parallel()
	s := site.Start(t, nil)
	m := &gone{move: &move{Site: s, t: t, g: s.Pair("db", 2, 16*mib, "64MiB")}}
	load := proof.New(s.Disks(s.G, m.g), proof.Options{Seed: site.Seed(t), Depth: 8, MaxBlocks: 8, FlushEvery: 30, Rate: 1000})
	m.load = &site.Running{Load: load}
	s.Do("migrate start db --to b --stop-at switched")
	s.C.Kill()
	goOn(s, load, s.G, m.g)
	s.Do("migrate continue db --no-wait")
	s.AwaitPhase("db", 20*time.Second, "migrating")
	m.serves(s.G)
	s.WaitFor(20*time.Second, "the secondary counts as down", func() bool {
		var n control.NodeView
		return s.Get("/v1/nodes/c", &n) == nil && n.State == "down"
	})
	if v := s.Move("db"); v.Phase != "migrating" || v.BlockedOn == nil || !strings.Contains(*v.BlockedOn, "node remove c --forget") {
		t.Fatalf("without what the secondary lacks it is %s: %v", v.Phase, deref(v.BlockedOn))
	}
	s.Do("node remove c --forget --yes")
	s.AwaitPhase("db", 20*time.Second, "filled")
	s.Do("migrate commit db")
	s.AwaitPhase("db", 20*time.Second, "committed")
	m.serves(s.G)
	m.Equal(load, "the target", s.Exports(s.B, m.g))
	m.ended("c")
}

// gateway: the move ends without it; its hosts come by another way.
func (m *gone) gateway() {
	m.AwaitPhase("db", 60*time.Second, "filled")
	m.serves(m.B)
	m.until("gateway remove g")
	m.Do("migrate commit db")
	for _, v := range m.g.Volumes {
		m.until("vvol delete " + v)
	}
	m.Do("group delete db")
}

// manager: hosts are served by one side. With the primary site gone besides, the secondary is promoted by its own socket; a manager on
// a copy of the store, here the same, follows.
func (m *gone) manager() {
	m.serves(m.G)
	if rand.New(rand.NewPCG(m.seed, uint64(slices.Index(allKillPoints(), m.k)))).IntN(2) == 0 {
		m.A.Kill()
		m.B.Kill()
		if r := own(m.Site, m.C, "group", "promote", "db", "--force"); r.Code != 0 {
			m.t.Fatal(r)
		}
		m.Prefix(m.load.Load, "the promoted image", m.Exports(m.C, m.g))
		m.Manager.Start()
		m.WaitFor(20*time.Second, "adopted", func() bool { return m.Group("db").Primary == "c" })
		return
	}
	m.Manager.Start()
	m.WaitFor(60*time.Second, "the move goes on, or was not begun", func() bool {
		var v control.MigrationView
		err := m.Get("/v1/migrations/db", &v)
		return err == site.ErrNotFound || slices.Contains([]string{"filled", "committed", "failed", "aborted"}, v.Phase)
	})
	m.serves(m.G)
}
