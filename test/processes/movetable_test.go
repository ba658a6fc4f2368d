package processes

import (
	"fmt"
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

// cell is one kind of move.
type cell struct {
	state    string // of the group's copying, when it moves
	mode     string // how it is copied; "alone": a volume in no group
	strategy string
	backlog  string
	volumes  int
}

func (c cell) String() string {
	return fmt.Sprintf("%s-%s-%s-%s-%d", c.state, c.mode, c.strategy, c.backlog, c.volumes)
}

const (
	statePaired    = "paired"
	stateInitial   = "initial"   // the initial copy is handed on in the middle
	stateResyncing = "resyncing" // the step of a resync is
	stateSuspended = "suspended"
	stateAway      = "away"     // the secondary is, from before the move until it is decided
	statePromoted  = "promoted" // the secondary was, the old primary is gone
	stateMoved     = "moved"    // it goes back to where it came from
	modeAlone      = "alone"
)

// tableModes are the flags of the table's modes.
var tableModes = map[string][]string{
	"push": nil, "pull": {"--transfer", "pull", "--retain", "transferred"}, "sync": {"--mode", "sync"},
	"periodic": {"--mode", "periodic", "--interval", "300ms"}, "queue": {"--log", "queue"},
	"queue-pull":     {"--log", "queue", "--transfer", "pull"},
	"queue-periodic": {"--log", "queue", "--mode", "periodic", "--interval", "300ms"},
	modeAlone:        nil,
}

func (c cell) onQueue() bool  { return strings.HasPrefix(c.mode, "queue") }
func (c cell) periodic() bool { return strings.HasSuffix(c.mode, "periodic") }
func (c cell) copied() bool   { return c.mode != modeAlone && c.state != statePromoted }

// makesSense: a volume in no group has no copying, and no company.
func (c cell) makesSense() bool {
	return c.mode != modeAlone || c.volumes == 1 && (c.state == statePaired || c.state == stateMoved)
}

// refused is what the refusal of such a move says, as in guarantees.md and operations.md; "": it works.
func (c cell) refused() string {
	switch carries := c.backlog == control.BacklogCarry; {
	case carries && c.mode == modeAlone:
		return "it has no backlog"
	case carries && c.state == statePromoted:
		return "there is no backlog"
	case carries && c.onQueue():
		return "keeps its log in memory"
	case carries && c.mode == "sync", carries && c.periodic():
		return "stands in the changed map"
	case c.state == stateInitial && c.onQueue() && c.strategy == control.StrategyCopyFirst:
		return "is being copied for the first time"
	case c.state == stateAway && c.onQueue() && !c.periodic():
		return "the link to c is down"
	}
	return ""
}

func tableCells() (all []cell) {
	for _, state := range []string{statePaired, stateInitial, stateResyncing, stateSuspended, stateAway, statePromoted, stateMoved} {
		for _, mode := range []string{"push", "pull", "sync", "periodic", "queue", "queue-pull", "queue-periodic", modeAlone} {
			for _, strategy := range []string{control.StrategySwitchFirst, control.StrategyCopyFirst} {
				for _, backlog := range []string{control.BacklogDrain, control.BacklogCarry} {
					for _, volumes := range []int{1, 3} {
						if c := (cell{state, mode, strategy, backlog, volumes}); c.makesSense() {
							all = append(all, c)
						}
					}
				}
			}
		}
	}
	return all
}

// pairs of two properties that a cell has.
func (c cell) pairs() (list [][2]string) {
	p := []string{c.state, c.mode, c.strategy, c.backlog, fmt.Sprint(c.volumes)}
	for i := range p {
		for j := range i {
			list = append(list, [2]string{p[j], p[i]})
		}
	}
	return list
}

// pairwise are cells in which each two properties come together that do in any.
func pairwise(all []cell, rnd *rand.Rand) (some []cell) {
	rnd.Shuffle(len(all), func(i, j int) { all[i], all[j] = all[j], all[i] })
	have := map[[2]string]bool{}
	for {
		best, most := cell{}, 0
		for _, c := range all {
			n := 0
			for _, p := range c.pairs() {
				if !have[p] {
					n++
				}
			}
			if n > most {
				best, most = c, n
			}
		}
		if most == 0 {
			return some
		}
		some = append(some, best)
		for _, p := range best.pairs() {
			have[p] = true
		}
	}
}

// Every kind of move under load: in each state of the copying, each mode, both strategies, with what the secondary lacks sent by the source or
// carried, one volume and three. Hosts see no error; the secondary's disk holds a prefix right behind the pause; the images are equal at the end;
// over the WAN goes what hosts write and what was owed already; the pause that is told is the one that hosts see. A kind that is refused is refused
// for its reason. Four cells by chance of a set that has each two properties together, all in a campaign; GANTLINE_CELLS=PART,… those whose names have a part.
func TestMoveTable(t *testing.T) {
	t.Parallel()
	seed := site.Seed(t)
	cells := tableCells()
	if names := os.Getenv("GANTLINE_CELLS"); names != "" {
		cells = slices.DeleteFunc(cells, func(c cell) bool {
			return !slices.ContainsFunc(strings.Split(names, ","), func(n string) bool { return strings.Contains(c.String(), n) })
		})
	} else if site.Campaign() == 0 {
		works := slices.DeleteFunc(cells, func(c cell) bool { return c.refused() != "" })
		cells = pairwise(works, rand.New(rand.NewPCG(seed, 41)))
		rand.New(rand.NewPCG(seed, 42)).Shuffle(len(cells), func(i, j int) { cells[i], cells[j] = cells[j], cells[i] })
		cells = cells[:4]
	}
	for _, c := range cells {
		t.Run(c.String(), func(t *testing.T) {
			t.Parallel()
			m := &tableMove{cell: c, t: t, source: "a", target: "b"}
			m.make()
			if c.refused() != "" {
				m.isRefused()
				return
			}
			m.run(seed)
		})
	}
}

const (
	tableSpan = 8 * mib // of it used by the load; what lies behind is written before the move
)

// size of a volume. Of an initial copy from a log in memory all that is on its way, 32 MiB at most, has to be there before the cut.
func (c cell) size() int64 {
	if c.state == stateInitial && c.onQueue() {
		return 48 * mib
	}
	return 16 * mib
}

// tableMove is the move of one cell.
type tableMove struct {
	cell
	*site.Site
	t              *testing.T
	g              *site.Made
	load           *site.Running
	source, target string
	start          control.GroupView // as it was right before the move
	atStart        proof.Stats
}

// make makes the group, in the state in which it moves but for what comes with the load.
func (m *tableMove) make() {
	m.Site = site.Start(m.t, nil)
	if m.mode == modeAlone {
		m.g = alone(m.Site, "db", m.size())
		m.fill()
		return
	}
	pair, flags, journal := m.Pair, tableModes[m.mode], "128MiB"
	if m.onQueue() {
		pair, journal = m.PairOnQueue, "256MiB" // a quarter of it takes all that may be in doubt
		flags = slices.DeleteFunc(slices.Clone(flags), func(f string) bool { return f == "--log" || f == "queue" })
	}
	if m.state != stateInitial {
		m.g = pair("db", m.volumes, m.size(), journal, flags...)
		m.fill()
		m.AwaitInStep("db", 30*time.Second)
	} else {
		m.g = pair("db", 0, m.size(), journal, flags...)
		m.initial()
	}
	if m.state == statePromoted {
		m.A.Kill()
		m.Do("group", "promote", "db", "--force")
		m.source = "c"
	}
}

// initial has volumes with data join the group.
func (m *tableMove) initial() {
	for i := range m.volumes {
		v := fmt.Sprintf("db-%d", i+1)
		m.g.Volumes = append(m.g.Volumes, v)
		for _, node := range []string{"a", "c"} {
			m.Do("volume", "create", node+"/"+v, "--size", fmt.Sprint(m.size()))
		}
		m.Do("vvol", "create", v, "--volume", "a/"+v)
	}
	m.fill()
	m.Do("group", "set", "db", "--limit", m.slow())
	for _, v := range m.g.Volumes {
		m.Do("pair", "add", "db", "a/"+v, "c/"+v, "--no-wait")
	}
	m.WaitFor(10*time.Second, "the copy has begun", func() bool { return linkUp(m.Site, "db") && m.State("db") == "initial-copy" })
}

// slow is a limit at which the copies under way are not through before the move takes them over. With a log in memory it has to have sent
// those that are on their way.
func (m *tableMove) slow() string {
	if m.onQueue() {
		return "16MiB"
	}
	return "2MiB"
}

// fill writes the part of each volume that the load does not use, so that there is something to move.
func (m *tableMove) fill() {
	data := make([]byte, mib)
	for i, v := range m.g.Volumes {
		host := m.Dial(m.G, v)
		for off := tableSpan; off < m.size(); off += mib {
			for j := range data {
				data[j] = byte(int(off>>20) + 16*i + 1)
			}
			if err := site.Write(host, off, slices.Clone(data), 20*time.Second); err != nil {
				m.t.Fatal(err)
			}
		}
		_ = host.Close()
	}
}

// what is the name of what moves: the group, or the volume.
func (m *tableMove) what() string {
	if m.mode == modeAlone {
		return m.source + "/db"
	}
	return "db"
}

func (m *tableMove) startArgs() []string {
	return []string{"migrate", "start", m.what(), "--to", m.target, "--strategy", m.strategy, "--backlog", m.backlog}
}

func (m *tableMove) isRefused() {
	if m.state == stateAway {
		m.C.Kill()
		m.WaitFor(10*time.Second, "the link is down", func() bool { return !linkUp(m.Site, "db") })
	}
	r := m.CLI(m.startArgs()...)
	if r.Code != 4 && r.Code != 2 || !strings.Contains(r.Err, m.refused()) {
		m.t.Errorf("%v; want a refusal with %q", r, m.refused())
	}
}

func (m *tableMove) run(seed uint64) {
	rate := 300
	if m.state == stateInitial || m.state == stateResyncing {
		rate = 50
	}
	m.load = site.Run(proof.New(m.Disks(m.G, m.g), proof.Options{Seed: seed, Depth: 8, MaxBlocks: 4, FlushEvery: 30, ReadPercent: 10, Rate: rate, Span: tableSpan}))
	time.Sleep(200 * time.Millisecond)
	var more []string
	if m.state == stateMoved {
		more = m.there()
	}
	m.enter()
	// What is owed is known once the secondary has been heard; it is not where that is away.
	site.Poll(3*time.Second, func() bool {
		m.start, m.atStart = m.Group("db"), m.load.Stats()
		return m.state != stateMoved || !m.copied() || m.start.Lag.Bytes != nil
	})
	m.load.ResetLatency()
	m.Do(slices.Concat(m.startArgs(), more, []string{"--no-wait"})...)
	v := m.AwaitPhase(m.id(), 60*time.Second, "migrating", "filled", "failed", "aborted")
	if v.Phase == "failed" {
		m.t.Fatalf("it went back: %s", v.Error)
	}
	before := m.load.Stats().Writes // the first answer behind the pause may be on its way
	m.WaitFor(20*time.Second, "hosts go on", func() bool { return m.load.Stats().Writes > before+8 })
	gap := m.load.Stats().LongestGap
	if m.copied() {
		m.took()
		m.ordered()
	}
	m.leave()
	v = m.AwaitPhase(m.id(), 60*time.Second, "filled")
	m.pause(v, gap)
	time.Sleep(100 * time.Millisecond)
	m.leaveFilled()
	if err := m.load.Stop(); err != nil {
		m.t.Errorf("the host saw an error: %v", err)
	}
	m.check()
}

func (m *tableMove) id() string { return strings.ReplaceAll(m.what(), "/", ".") }

// there makes the first move, and says how the second one is begun, which goes back.
func (m *tableMove) there() []string {
	m.Do("migrate", "start", m.what(), "--to", "b", "--commit")
	back := []string{"--yes"}
	for _, v := range m.g.Volumes {
		back = append(back, "--map", "b/"+v+"=a/"+v)
	}
	if m.mode != modeAlone && !m.onQueue() {
		back = append(back, "--journal", "a/db-log")
	}
	m.source, m.target = "b", "a"
	return back
}

// enter brings the group into the state in which it moves.
func (m *tableMove) enter() {
	switch m.state {
	case stateSuspended, stateResyncing:
		m.Do("group", "suspend", "db")
		time.Sleep(200 * time.Millisecond)
		if m.state == stateResyncing {
			m.Do("group", "set", "db", "--limit", "512KiB")
			m.Do("group", "resume", "db", "--no-wait")
			m.WaitFor(10*time.Second, "a step", func() bool { return m.State("db") == "resyncing" })
		}
	case stateAway:
		m.C.Kill()
		m.WaitFor(10*time.Second, "the link is down", func() bool { return !linkUp(m.Site, "db") })
		if m.mode == "sync" { // hosts go on behind that
			m.WaitFor(10*time.Second, "suspended", func() bool { return m.State("db") == "suspended" })
		}
	}
}

// took checks that the group is still in that state when it has moved.
func (m *tableMove) took() {
	want := map[string][]string{stateInitial: {"initial-copy"}, stateResyncing: {"resyncing", "suspended"}, stateSuspended: {"suspended"}}[m.state]
	if is := m.State("db"); want != nil && !slices.Contains(want, is) {
		m.t.Errorf("the group is %s right behind the cut: it did not move as %s", is, m.state)
	}
}

// ordered checks what the secondary's disk holds at this moment. While the volumes are copied for the first time it is no image.
func (m *tableMove) ordered() {
	if m.state == stateInitial && m.State("db") == "initial-copy" {
		return
	}
	c := m.Snapshot(m.C, "snapshot")
	c.StartIsolated()
	time.Sleep(1200 * time.Millisecond) // until its sources count as gone
	m.Prefix(m.load.Load, "secondary right behind the pause", site.Spans(m.Exports(c, m.g), tableSpan))
	c.Kill()
}

// leave ends what the move does not end with.
func (m *tableMove) leave() {
	switch m.state {
	case stateAway:
		if m.backlog == control.BacklogCarry && !m.periodic() {
			m.WaitFor(30*time.Second, "all to be carried", func() bool {
				b := m.Move("db").Bytes
				return b.Carried != nil && b.CarryTotal != nil && *b.Carried == *b.CarryTotal
			})
		}
		m.C.Start()
	}
}

// leaveFilled resumes what has moved suspended, and lifts the limit, which is refused before.
func (m *tableMove) leaveFilled() {
	if m.state == stateInitial || m.state == stateResyncing {
		m.Do("group", "set", "db", "--limit", "0")
	}
	if m.state == stateSuspended {
		if is := m.State("db"); is != "suspended" {
			m.t.Errorf("the group is %s behind the move", is)
		}
		m.Do("group", "resume", "db")
	}
}

// pause compares what is told with what the load has seen; one answer may come long after the other on a busy machine.
func (m *tableMove) pause(v control.MigrationView, gap time.Duration) {
	if v.PauseMS == nil {
		m.t.Error("no pause is told")
		return
	}
	told := time.Duration(*v.PauseMS * float64(time.Millisecond))
	m.t.Logf("pause %v, the load's longest gap until it was over %v", told, gap)
	limited := m.mode == "sync" && m.state == stateInitial // hosts that wait for the secondary wait for the limit too
	if told > gap+50*time.Millisecond || gap > told+time.Second && !limited {
		m.t.Errorf("a pause of %v is told, the load saw %v", told, gap)
	}
}

// owed is what may go over the WAN besides what hosts write from the start of the move on: what the secondary had not got, and marked blocks.
func (m *tableMove) owed(writes int64) int64 {
	const mark = 64 << 10
	n := int64(m.volumes)
	switch {
	case m.state == stateInitial:
		return n * m.size()
	case m.state == stateResyncing:
		return 2 * n * tableSpan // the step that is open at the cut is made anew
	case m.state == stateSuspended || m.state == stateAway && m.mode == "sync":
		return n * tableSpan
	case m.periodic(): // each write costs the block or two that it touches
		return n*tableSpan + writes*mark*5/4
	}
	if b := m.start.Lag.Bytes; b != nil {
		return *b
	}
	return 0
}

func (m *tableMove) check() {
	at := map[string]*site.Process{"a": m.A, "b": m.B, "c": m.C}[m.target]
	if m.copied() {
		m.AwaitInStep("db", 30*time.Second)
		host, g := m.load.Stats(), m.Group("db")
		wrote := host.Bytes - m.atStart.Bytes
		limit := wrote*102/100 + mib + m.owed(host.Writes-m.atStart.Writes)
		if g.WANBytesSent == nil || m.start.WANBytesSent == nil || *g.WANBytesSent-*m.start.WANBytesSent > limit {
			m.t.Errorf("%v bytes over the WAN, %v before the move, for %d of hosts; wanted at most %d", deref(g.WANBytesSent),
				deref(m.start.WANBytesSent), wrote, limit)
		} else {
			m.t.Logf("%d bytes over the WAN for %d of hosts, at most %d", *g.WANBytesSent-*m.start.WANBytesSent, wrote, limit)
		}
		if g.Primary != m.target || deref(g.CopySource) != m.target {
			m.t.Errorf("primary is %s, copy source %v", g.Primary, deref(g.CopySource))
		}
		m.Equal(m.load.Load, "secondary", site.Spans(m.Exports(m.C, m.g), tableSpan))
	}
	m.Equal(m.load.Load, "target", site.Spans(m.Exports(at, m.g), tableSpan))
	m.Do("migrate", "commit", m.id())
	var v control.MigrationView
	if err := m.Get("/v1/migrations/"+m.id(), &v); err != nil || v.Check == nil || v.Phase != "committed" {
		m.t.Errorf("it was not compared: %+v, %v", v, err)
	}
	for _, p := range []*site.Process{m.G, m.A, m.B, m.C} {
		p.Stop()
	}
	other := m.C.Dir
	if !m.copied() {
		other = map[string]string{"a": m.A.Dir, "b": m.B.Dir, "c": m.C.Dir}[m.source]
	}
	for _, v := range m.g.Volumes {
		skip := "0"
		if !m.copied() { // the source has stopped at the cut
			skip = fmt.Sprint(tableSpan)
		}
		m.Tool("cmp", "-i", skip, at.Dir+"/volumes/"+v+".raw", other+"/volumes/"+v+".raw")
	}
}
