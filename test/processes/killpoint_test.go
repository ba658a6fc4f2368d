package processes

import (
	"fmt"
	"math/rand/v2"
	"os"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"gantline/internal/block"
	"gantline/internal/control"
	"gantline/internal/proof"
	"gantline/test/site"
)

// takesPart says which process takes part in which steps of a move, and so has kill points there. The move is from a to
// b, c has the secondary.
var takesPart = []struct {
	process string
	steps   []string
}{
	{"manager", []string{"register", "through", "switch", "decide", "deregister"}},
	{"a", []string{"register", "seal", "drained", "deregister"}},
	{"b", []string{"register", "through", "pend", "seal", "decide", "source", "run", "drained", "single", "fill", "deregister"}},
	{"c", []string{"register", "source", "single", "deregister"}},
	{"g", []string{"switch"}},
}

type killPoint struct{ process, step, edge string }

func (k killPoint) String() string { return k.process + "-" + k.step + "-" + k.edge }

// always are the kill points of every run: around the decision, and one of each process besides.
var always = []killPoint{
	{"manager", "decide", "before"}, {"manager", "decide", "after"}, {"manager", "switch", "after"},
	{"a", "seal", "before"}, {"a", "seal", "after"},
	{"b", "pend", "after"}, {"b", "decide", "after"}, {"b", "run", "before"}, {"b", "fill", "before"}, {"b", "deregister", "after"},
	{"c", "single", "before"}, {"g", "switch", "before"}, {"g", "switch", "after"}, {"c", "decide", standing},
}

// standing is the edge of a kill point at a step that the process takes no part in: it is killed while the one that does stands still there.
const standing = "meanwhile"

// standsBy are these kill points.
func standsBy() (all []killPoint) {
	for _, process := range []string{"manager", "a", "b", "c", "g"} {
		for _, step := range []string{"register", "through", "switch", "pend", "seal", "decide", "source", "run", "drained", "single", "fill", "deregister"} {
			if !takes(process, step) {
				all = append(all, killPoint{process, step, standing})
			}
		}
	}
	return all
}

func takes(process, step string) bool {
	for _, p := range takesPart {
		if p.process == process {
			return slices.Contains(p.steps, step)
		}
	}
	return false
}

// env is the environment in which the kill point takes hold.
func (k killPoint) env() map[string][]string {
	switch k.edge {
	case "":
		return nil
	case standing:
		return map[string][]string{k.stands(): site.StopAt(k.step, "before")}
	}
	return map[string][]string{k.process: site.KillAt(k.step, k.edge)}
}

// stands is who stands still at the step while another process is killed.
func (k killPoint) stands() string {
	if takes("b", k.step) {
		return "b"
	}
	return "manager"
}

// killed waits until the process is killed at the kill point.
func (k killPoint) killed(s *site.Site) {
	s.T.Helper()
	p := s.Process(k.process)
	if k.edge == standing {
		at := s.Process(k.stands())
		at.AwaitStopAt(k.step, 60*time.Second)
		p.Kill()
		at.Signal(syscall.SIGCONT)
		return
	}
	s.WaitFor(60*time.Second, fmt.Sprintf("%s kills itself at %s.%s", p.Name, k.step, k.edge), func() bool { return !p.Alive() })
	if !p.WasKilled() || !strings.Contains(p.Log(), "kill point "+k.step) {
		s.T.Fatalf("%s ended otherwise than by its kill point: %s", p.Name, p.Ended())
	}
}

func allKillPoints() []killPoint {
	var all []killPoint
	for _, p := range takesPart {
		for _, step := range p.steps {
			for _, edge := range []string{"before", "after"} {
				all = append(all, killPoint{p.process, step, edge})
			}
		}
	}
	return append(all, standsBy()...)
}

// chosen kill points: all of them in a campaign, else the fixed ones and some by chance. GANTLINE_KILL_POINTS=NAME,… names
// them (as in the names of the subtests).
func chosen(seed uint64) []killPoint {
	if names := os.Getenv("GANTLINE_KILL_POINTS"); names != "" {
		return slices.DeleteFunc(allKillPoints(), func(k killPoint) bool {
			return !slices.Contains(strings.Split(names, ","), k.String())
		})
	}
	if site.Campaign() > 0 {
		return allKillPoints()
	}
	points := slices.Clone(always)
	if testing.Short() {
		return points[:4]
	}
	all := allKillPoints()
	rnd := rand.New(rand.NewPCG(seed, 4))
	for len(points) < len(always)+3 {
		if k := all[rnd.IntN(len(all))]; !slices.Contains(points, k) {
			points = append(points, k)
		}
	}
	return points
}

// Each process dies at each step of a move, and comes back: by itself at one that it takes part in, else it is killed while who does
// stands still there. The move ends, or goes back to the
// source and succeeds at the second try; hosts see no error; the copy is complete and nothing was copied in full again.
func TestKillPoints(t *testing.T) {
	t.Parallel()
	seed := site.Seed(t)
	for round := range max(1, site.Campaign()) {
		for _, k := range chosen(seed) {
			t.Run(fmt.Sprintf("%v#%d", k, round), func(t *testing.T) {
				t.Parallel()
				killAt(t, k, seed+uint64(round))
			})
		}
	}
}

// move is one test of a kill point.
type move struct {
	*site.Site
	t    *testing.T
	k    killPoint
	g    *site.Made
	load *site.Running
	wan  func(hosts proof.Stats) // bounds what went over the WAN
	// enter puts the group into the state in which it moves, leave out of it; nil: it is paired. back ends what the move does not
	// end with.
	enter, back, leave func()

	flags []string // of migrate start
}

func killAt(t *testing.T, k killPoint, seed uint64) {
	s := site.Start(t, k.env())
	m := &move{Site: s, t: t, k: k, g: s.Pair("db", 2, 64*mib, "64MiB")}
	m.wan = func(hosts proof.Stats) { wanFits(t, s, hosts.Bytes+16*mib, 1) }
	m.run(seed)
}

// run makes the move with the death in it, under load.
func (m *move) run(seed uint64) {
	s, t, k := m.Site, m.t, m.k
	m.dirty(s.Dial(s.G, m.g.Volumes[0]))
	disks := s.Disks
	if k.process == "g" {
		disks = s.FirmDisks // a host's connection dies with the gateway
	}
	m.load = site.Run(proof.New(disks(s.G, m.g), proof.Options{Seed: seed, Depth: 16, MaxBlocks: 8, FlushEvery: 30, Rate: 800, Span: 32 * mib}))
	time.Sleep(300 * time.Millisecond)
	if m.enter != nil {
		m.enter()
	}
	m.start()
	if k.step != "deregister" && k.process != "" {
		m.die()
	}
	if m.back != nil {
		m.back()
	}
	first := m.settle()
	if m.leave != nil {
		m.leave()
	}
	if k.step == "deregister" {
		s.CLI("migrate", "commit", "db", "--no-wait") // its manager may die under it
		m.die()
		m.commit()
	}
	time.Sleep(200 * time.Millisecond)
	if err := m.load.Stop(); err != nil {
		t.Errorf("the host saw an error: %v", err)
	}
	st := m.load.Stats()
	t.Logf("first try %s; %d writes, longest gap %v", first, st.Writes, st.LongestGap)
	if st.LongestGap > 30*time.Second {
		t.Errorf("hosts waited for %v", st.LongestGap)
	}
	m.check()
}

// dirty fills a part that the load does not use, so that there is something to move.
func (m *move) dirty(d block.Target) {
	data := make([]byte, mib)
	for off := 40 * mib; off < 56*mib; off += mib {
		for i := range data {
			data[i] = byte(off >> 20)
		}
		if err := site.Write(d, off, slices.Clone(data), 10*time.Second); err != nil {
			m.t.Fatal(err)
		}
	}
}

// start asks for the move. A manager that dies at it has perhaps not heard of it.
func (m *move) start() {
	r := m.CLI(append([]string{"migrate", "start", "db", "--to", "b", "--no-wait"}, m.flags...)...)
	if r.Code != 0 && m.k.process != "manager" {
		m.t.Fatal(r)
	}
}

// die waits for the process to kill itself where it was told to, and starts it again.
func (m *move) die() {
	p := m.Process(m.k.process)
	if m.k.edge == "" { // it takes no part in the step
		m.AwaitPhase("db", 40*time.Second, m.k.step, "filled")
		p.Kill()
		p.Start()
		return
	}
	m.k.killed(m.Site)
	time.Sleep(300 * time.Millisecond)
	if p == m.C {
		// Nobody can reach it now: what it has is a prefix.
		p.StartIsolated()
		time.Sleep(time.Second)
		m.prefix("secondary that died")
		p.Stop()
	}
	p.Start()
}

// prefix checks the secondary's image; the first volume also holds what dirty wrote, which the load does not know.
func (m *move) prefix(what string) {
	m.Prefix(m.load.Load, what, site.Spans(m.Exports(m.C, m.g), 32*mib))
}

// settle waits until the move has ended, and repeats one that went back; it returns how the first try ended.
func (m *move) settle() string {
	var first control.MigrationView
	if m.Get("/v1/migrations/db", &first) == site.ErrNotFound {
		m.Do(append([]string{"migrate", "start", "db", "--to", "b", "--no-wait"}, m.flags...)...) // it died before it had noted the move
	}
	first = m.AwaitPhase("db", 60*time.Second, "filled", "failed", "aborted")
	if first.Phase == "filled" {
		return first.Phase
	}
	if slices.Contains([]string{"source", "run", "drained", "single", "fill", "deregister"}, m.k.step) {
		m.t.Errorf("the move went back although it had been decided: %s", first.Error)
	}
	if g := m.Group("db"); g.Primary != "a" {
		m.t.Errorf("the move %s, but the primary is %s", first.Phase, g.Primary)
	}
	again := []string{"migrate", "start", "db", "--to", "b", "--yes", "--no-wait"}
	again = append(again, m.flags...)
	for _, v := range m.g.Volumes {
		if m.CLI("volume", "show", "b/"+v).Code == 0 {
			again = append(again, "--map", "a/"+v+"=b/"+v)
		}
	}
	if m.CLI("journal", "show", "b/db-log").Code == 0 {
		again = append(again, "--journal", "b/db-log")
	}
	var r site.Result
	if !site.Poll(30*time.Second, func() bool { r = m.CLI(again...); return r.Code == 0 }) {
		m.t.Fatalf("the second try is refused: %v", r)
	}
	if second := m.AwaitPhase("db", 60*time.Second, "filled", "failed", "aborted"); second.Phase != "filled" {
		m.t.Fatalf("the second try %s: %s", second.Phase, second.Error)
	}
	return first.Phase + " (" + first.Error + ")"
}

func (m *move) commit() {
	var r site.Result
	if !site.Poll(30*time.Second, func() bool { r = m.CLI("migrate", "commit", "db"); return r.Code == 0 }) {
		m.t.Fatal(r)
	}
	m.AwaitPhase("db", 10*time.Second, "committed")
}

// check looks at the whole after the move, with the load at rest.
func (m *move) check() {
	m.AwaitInStep("db", 30*time.Second)
	g := m.Group("db")
	if g.Primary != "b" || g.CopySource == nil || *g.CopySource != "b" {
		m.t.Errorf("primary is %s, copy source %v", g.Primary, deref(g.CopySource))
	}
	m.wan(m.load.Stats())
	m.Equal(m.load.Load, "secondary", site.Spans(m.Exports(m.C, m.g), 32*mib))
	m.Equal(m.load.Load, "primary", site.Spans(m.Exports(m.B, m.g), 32*mib))
	m.Tool("qemu-img", "compare", "-f", "raw", "-F", "raw", m.uri(m.G, 0), m.uri(m.C, 0))
	m.single()
	m.commit()
	m.single()
	for _, p := range m.All() {
		p.Stop()
	}
	for _, v := range m.g.Volumes {
		m.Tool("cmp", m.B.Dir+"/volumes/"+v+".raw", m.C.Dir+"/volumes/"+v+".raw")
	}
}

// wanFits checks that the group's WAN bytes fit what hosts wrote: nothing went twice but what was on its way when one of
// the two ends died. Each such death may cost what the load writes while the secondary stands still in a sync.
func wanFits(t *testing.T, s *site.Site, host int64, deaths int) {
	t.Helper()
	sentFits(t, s.Group("db").WANBytesSent, host, deaths)
}

func sentFits(t *testing.T, sent *int64, host int64, deaths int) {
	t.Helper()
	if sent == nil || *sent > host*102/100+2*mib+int64(deaths)*host/16 || *sent < host*98/100-mib {
		t.Errorf("%v bytes went over the WAN for %d bytes of hosts, with %d deaths of an end", deref(sent), host, deaths)
	} else {
		t.Logf("%d bytes over the WAN for %d bytes of hosts", *sent, host)
	}
}

func (m *move) uri(p *site.Process, v int) string {
	return "nbd+unix:///" + m.g.Volumes[v] + "?socket=" + p.Socket
}

// single checks that the old primary acknowledges no write: the bytes offered are those that are there.
func (m *move) single() {
	for _, v := range m.g.Volumes {
		old, err := m.TryDial(m.A, v)
		if err != nil {
			continue // not exported: even better
		}
		data, err := site.Read(m.Dial(m.B, v), 63*mib, 4096)
		if err != nil {
			m.t.Fatal(err)
		}
		if err := site.Write(old, 63*mib, data, time.Second); err == nil {
			m.t.Errorf("both a and b acknowledge writes of %s", v)
		}
		_ = old.Close()
	}
}

func deref[T any](p *T) any {
	if p == nil {
		return nil
	}
	return *p
}
