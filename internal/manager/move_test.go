package manager

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"gantline/internal/control"
)

// Golden histories: testdata/move/*.txt. Each line is a fact that becomes true; behind => stands what follows from it.
//
//	phase P | seen P (the target's) | run asked | run acked | vvols moved | refusal | failing S | silent S | gone |
//	refused | decided W | commit | undo N | abort | told NODE | away NODE,… | one by one | gateways N | path STATE
func TestMoveHistories(t *testing.T) {
	files, err := filepath.Glob("testdata/move/*.txt")
	if err != nil || len(files) < 5 {
		t.Fatalf("histories: %q, %v", files, err)
	}
	for _, file := range files {
		t.Run(strings.TrimSuffix(filepath.Base(file), ".txt"), func(t *testing.T) {
			body, err := os.ReadFile(file)
			if err != nil {
				t.Fatal(err)
			}
			r, f := &control.Migration{ID: "g-1", Source: "a", Target: "b"}, moveFacts{}
			for i, line := range strings.Split(strings.TrimSpace(string(body)), "\n") {
				if line = strings.TrimSpace(line); line == "" || strings.HasPrefix(line, "#") {
					continue
				}
				fact, want, ok := strings.Cut(line, "=>")
				if !ok {
					t.Fatalf("line %d: %q has no =>", i+1, line)
				}
				happens(t, r, &f, strings.TrimSpace(fact))
				if got := moveNext(r, f); string(got) != strings.TrimSpace(want) {
					t.Fatalf("line %d: %s: got %s", i+1, line, got)
				}
			}
		})
	}
}

func happens(t *testing.T, r *control.Migration, f *moveFacts, fact string) {
	t.Helper()
	word, arg, _ := strings.Cut(fact, " ")
	n, _ := strconv.Atoi(arg)
	switch {
	case fact == "begin":
	case word == "phase":
		if !r.Advance(arg) && arg != control.PhaseFailed {
			t.Fatalf("phase %s cannot follow %s", arg, r.Phase)
		}
		r.Phase = arg
		f.Refusal, f.Failing = "", 0
	case word == "seen":
		f.Target = &control.MigrationStatus{Phase: arg}
		f.Silent = 0
	case fact == "gone":
		f.Target, f.RunAcked = nil, false
	case fact == "refused":
		f.Target = &control.MigrationStatus{Phase: control.PhaseFailed, Refused: true}
	case fact == "copy-first":
		r.Strategy = control.StrategyCopyFirst
	case fact == "copied":
		r.Note(control.StepAt(control.StepCopy, time.Unix(1, 0)))
	case fact == "run asked":
		r.RunAsked = true
	case fact == "run acked":
		f.RunAcked = true
	case fact == "vvols moved":
		r.VvolsMoved = true
	case fact == "one by one":
		r.Paths = control.PathsOneByOne
	case word == "gateways":
		r.Gateways = make([]control.MovePath, n)
		for i := range r.Gateways {
			r.Gateways[i].State = control.PathWaits
		}
	case word == "path":
		r.NextPath().State = arg
	case fact == "refusal":
		f.Refusal = "no"
	case word == "failing":
		f.Failing = time.Duration(n) * time.Second
	case word == "silent":
		f.Silent = time.Duration(n) * time.Second
	case word == "decided":
		r.Decided = arg
	case fact == "commit":
		r.Commit = true
	case fact == "abort":
		abortMove(r, "c", "by the test")
	case word == "stop":
		r.StopAt = strings.TrimPrefix(arg, "at ")
	case fact == "continue":
		r.StopAt = ""
	case word == "away":
		f.Away = strings.Split(arg, ",")
	case word == "told": // all that is asked of a node was answered
		r.Undo = slices.DeleteFunc(r.Undo, func(e string) bool { return parseUndo(e).node == arg })
	case word == "undo":
		r.Undo = slices.Repeat([]string{"migrate.cancel b"}, n)
	case fact == "restart":
		*f = moveFacts{}
	default:
		t.Fatalf("unknown fact %q", fact)
	}
}

func (s *system) waitPhase(id, phase string) control.MigrationView {
	s.t.Helper()
	var v control.MigrationView
	s.eventually(id+" is "+phase, func() bool {
		return s.do("GET", "/v1/migrations/"+id, nil, &v) == nil && v.Phase == phase
	})
	return v
}

func TestMove(t *testing.T) {
	s := newSystem(t, "a", "b", "c")
	s.pair()
	gw := &fakeGateway{name: "gw", client: s.client}
	gw.start(t)
	s.must("POST", "/v1/migrations", control.MoveRequest{Group: "g", To: "b"}, nil)
	s.must("POST", "/v1/migrations", control.MoveRequest{Group: "g", To: "b"}, nil) // joins
	v := s.waitPhase("g-1", control.PhaseFilled)
	if v.Cut == nil || *v.Cut != 100 || v.Epoch == nil || *v.Epoch != 2 || v.PauseMS == nil || *v.PauseMS != 7.5 || *v.Regions.Present != 10 {
		body, _ := json.Marshal(v)
		t.Fatalf("filled: %s", body)
	}
	var steps []string
	for _, st := range v.Steps {
		steps = append(steps, st.Step)
	}
	if got := strings.Join(steps, " "); got != "register through switch pend seal decide source run drained single fill" {
		t.Fatalf("steps %s", got)
	}
	g := s.group()
	if g.Primary != "b" || g.Epoch != 2 || g.Pairs[0].Primary != "b/v1" || g.PrimaryJournal != "b/g" {
		t.Fatalf("group %+v", g)
	}
	if r := gw.routes()[0]; r.Node != "b" || r.Volume != "v1" {
		t.Fatalf("route %+v", r)
	}
	s.refused(control.KindRefused, "commit it first", "POST", "/v1/migrations", control.MoveRequest{Group: "g", To: "a"})
	s.refused(control.KindRefused, "in use by migration", "DELETE", "/v1/groups/g", nil)

	order := func() []string {
		var all []string
		for _, n := range []string{"c", "b", "a"} {
			for _, c := range s.nodes[n].Called() {
				if strings.HasPrefix(c, control.CallMigrateDeregister) {
					all = append(all, n)
				}
			}
		}
		return all
	}
	s.must("POST", "/v1/migrations/g/commit", struct{}{}, nil)
	s.waitPhase("g-1", control.PhaseCommitted)
	if got := fmt.Sprint(order()); got != "[c b a]" {
		t.Fatalf("deregistered at %s", got)
	}
	s.must("POST", "/v1/migrations/g/commit", struct{}{}, nil) // done already
	s.must("DELETE", "/v1/volumes/a/v1", nil, nil)             // the source's volume is free
	var rounds []control.MigrationView
	s.must("GET", "/v1/migrations", nil, &rounds)
	if len(rounds) != 1 {
		t.Fatalf("%d migrations", len(rounds))
	}
}

func TestMoveRefusals(t *testing.T) {
	s := newSystem(t, "a", "b", "c")
	s.pair()
	start := func(in control.MoveRequest) (control.Kind, string) {
		err := s.do("POST", "/v1/migrations", in, nil)
		if err == nil {
			return "", ""
		}
		return control.KindOf(err), err.Error()
	}
	s.must("POST", "/v1/volumes", control.VolumeRequest{Name: "b/small", Size: 8192}, nil)
	for name, c := range map[string]struct {
		in   control.MoveRequest
		kind control.Kind
		word string
	}{
		"to the primary":    {control.MoveRequest{Group: "g", To: "a"}, control.KindRefused, "primary already"},
		"to the secondary":  {control.MoveRequest{Group: "g", To: "c"}, control.KindRefused, "its secondary"},
		"to nobody":         {control.MoveRequest{Group: "g", To: "z"}, control.KindNotFound, "node z"},
		"of no group":       {control.MoveRequest{Group: "h", To: "b"}, control.KindNotFound, "group h"},
		"of a volume":       {control.MoveRequest{Group: "a/v1", To: "b"}, control.KindRefused, "in group g, which moves as one"},
		"of no volume":      {control.MoveRequest{Group: "a/none", To: "b"}, control.KindNotFound, "a/none"},
		"another strategy":  {control.MoveRequest{Group: "g", To: "b", Strategy: "copy-last"}, control.KindUsage, "copy-first"},
		"backlog":           {control.MoveRequest{Group: "g", To: "b", Backlog: "dump"}, control.KindUsage, "drain or carry"},
		"paths":             {control.MoveRequest{Group: "g", To: "b", Paths: "some"}, control.KindUsage, "one-by-one"},
		"mirror":            {control.MoveRequest{Group: "g", To: "b", Mirror: true}, control.KindRefused, "not built yet"},
		"stop at":           {control.MoveRequest{Group: "g", To: "b", StopAt: "filled"}, control.KindUsage, "registered or switched"},
		"nonsense":          {control.MoveRequest{Group: "g", To: "b", InFlight: "maybe"}, control.KindUsage, "finish"},
		"another size":      {control.MoveRequest{Group: "g", To: "b", Map: map[string]string{"a/v1": "b/small"}}, control.KindRefused, "8192"},
		"of another group":  {control.MoveRequest{Group: "g", To: "b", Map: map[string]string{"a/x": "b/small"}}, control.KindUsage, "--map"},
		"onto another node": {control.MoveRequest{Group: "g", To: "b", Map: map[string]string{"a/v1": "a/v1"}}, control.KindRefused, "on node a"},
		"missing journal":   {control.MoveRequest{Group: "g", To: "b", Journal: "b/none"}, control.KindNotFound, "b/none"},
	} {
		if kind, msg := start(c.in); kind != c.kind || !strings.Contains(msg, c.word) {
			t.Errorf("%s: got %s %q", name, kind, msg)
		}
	}
	s.must("POST", "/v1/volumes", control.VolumeRequest{Name: "b/v1", Size: 1 << 20}, nil)
	if kind, msg := start(control.MoveRequest{Group: "g", To: "b"}); kind != control.KindRefused || !strings.Contains(msg, "--map a/v1=b/v1") {
		t.Errorf("an unmapped name that is there: %s %q", kind, msg)
	}
	if g := s.group(); g.Migration != "" {
		t.Errorf("a refused move left %s", g.Migration)
	}
	s.must("POST", "/v1/migrations", control.MoveRequest{Group: "g", To: "b", Map: map[string]string{"a/v1": "b/v1"}}, nil)
	s.waitPhase("g-1", control.PhaseFilled)
}

// The manager dies at each of its points, is started again on the same store, and the move ends.
func TestManagerKilledAtEachPoint(t *testing.T) {
	for _, step := range []string{control.StepRegister, control.StepThrough, control.StepSwitch, control.StepDecide, control.StepDeregister} {
		for _, edge := range []string{"before", "after"} {
			t.Run(step+"."+edge, func(t *testing.T) { killedAt(t, step, edge) })
		}
	}
}

func killedAt(t *testing.T, step, edge string) {
	s := newSystem(t, "a", "b", "c")
	s.pair()
	died := make(chan struct{})
	var once atomic.Bool
	s.point = func(st, e string) {
		if st != step || e != edge || once.Swap(true) {
			return
		}
		close(died)
		// This goroutine of the old process never goes on: neither its commit nor its answer is seen by anybody.
		runtime.Goexit()
	}
	start := func() error {
		return s.do("POST", "/v1/migrations", control.MoveRequest{Group: "g", To: "b", Commit: true}, nil)
	}
	go func() { _ = start() }()
	select {
	case <-died:
	case <-time.After(10 * time.Second):
		t.Fatal("the point was not reached: the fault did not take hold")
	}
	s.kill()
	s.start()
	s.eventually("the manager takes the command again", func() bool { return start() == nil })
	s.waitPhase("g-1", control.PhaseCommitted)
	g := s.group()
	if g.Primary != "b" || g.Epoch != 2 || g.Pairs[0].Primary != "b/v1" || g.Migration != "g-1" {
		t.Fatalf("group %+v", g)
	}
	var v control.VvolView
	s.must("GET", "/v1/vvols/disk", nil, &v)
	if v.Volume != "b/v1" {
		t.Fatalf("vvol leads to %s", v.Volume)
	}
}

// kill ends a manager of which one goroutine will never return: it is not joined, only cut off.
func (s *system) kill() {
	s.t.Helper()
	s.cut()
	s.eventually("the address is free", func() bool {
		_, err := s.client.SyncNode(context.Background(), control.NodeReport{})
		return control.KindOf(err) == control.KindUnreachable
	})
}

// The target dies while it holds, and comes back: the move goes on.
func TestTargetRestartsInThePause(t *testing.T) {
	s := newSystem(t, "a", "b", "c")
	s.pair()
	b := s.nodes["b"]
	b.Lock()
	b.Hold = make(chan struct{})
	b.Unlock()
	s.must("POST", "/v1/migrations", control.MoveRequest{Group: "g", To: "b"}, nil)
	s.waitPhase("g-1", control.PhasePending)
	b.Stop()
	b.Lock()
	b.Hold = nil
	b.Unlock()
	if err := b.Start(s.client, "run2"); err != nil {
		t.Fatal(err)
	}
	s.waitPhase("g-1", control.PhaseFilled)
}

// A target that refuses durably: the store follows it, everything leads to the source again, in e+2.
func TestTargetRefuses(t *testing.T) {
	s := newSystem(t, "a", "b", "c")
	s.pair()
	b := s.nodes["b"]
	b.Lock()
	b.Refuse = true
	b.Unlock()
	s.must("POST", "/v1/migrations", control.MoveRequest{Group: "g", To: "b"}, nil)
	v := s.waitPhase("g-1", control.PhaseFailed)
	if !strings.Contains(v.Error, "refused by the test") || !strings.Contains(v.Error, "volume b/v1") || v.Decided != control.DecidedSource {
		t.Fatalf("failed with %q, decided %q", v.Error, v.Decided)
	}
	g := s.group()
	if g.Primary != "a" || g.Epoch != 3 || g.Pairs[0].Primary != "a/v1" || g.PrimaryJournal != "a/g" {
		t.Fatalf("group %+v", g)
	}
	for _, n := range []string{"a", "b", "c"} {
		s.eventually("node "+n+" was told", func() bool {
			return slices.Contains(s.nodes[n].Called(), control.CallMigrateCancel+" g-1")
		})
	}
	calls := s.nodes["a"].Called()
	if slices.Index(calls, control.CallMigrateReopen+" g-1") > slices.Index(calls, control.CallMigrateCancel+" g-1") {
		t.Fatalf("the source was told to forget before it was told to go on: %q", calls)
	}
	// A late question gets the same answer for ever.
	reply, err := s.client.Decide(t.Context(), "g-1", control.DecideRequest{Node: "b", Epoch: 1, Cut: 100})
	if err != nil || reply.Decided != control.DecidedSource {
		t.Fatalf("decide: %+v, %v", reply, err)
	}
	s.must("DELETE", "/v1/volumes/b/v1", nil, nil)
	s.must("DELETE", "/v1/journals/b/g", nil, nil)
	b.Lock()
	b.Refuse = false
	b.Unlock()
	s.eventually("the next move begins", func() bool {
		return s.do("POST", "/v1/migrations", control.MoveRequest{Group: "g", To: "b"}, nil) == nil
	})
	s.waitPhase("g-2", control.PhaseFilled)
}

// A node that says no before the run sends the move back at once, with nothing sealed.
func TestNodeRefusesThrough(t *testing.T) {
	s := newSystem(t, "a", "b", "c")
	s.pair()
	b := s.nodes["b"]
	b.Lock()
	b.Fail = func(call string) error {
		if strings.HasPrefix(call, control.CallMigrateThrough) {
			return control.Errorf(control.KindRefused, "no relay")
		}
		return nil
	}
	b.Unlock()
	s.must("POST", "/v1/migrations", control.MoveRequest{Group: "g", To: "b"}, nil)
	v := s.waitPhase("g-1", control.PhaseFailed)
	if !strings.Contains(v.Error, "no relay") {
		t.Fatalf("error %q", v.Error)
	}
	if g := s.group(); g.Primary != "a" || g.Epoch != 1 {
		t.Fatalf("group %+v", g)
	}
	if slices.Contains(s.nodes["a"].Called(), control.CallMigrateReopen+" g-1") {
		t.Fatal("a source that was never sealed was told to reopen")
	}
}

func TestDecideIsOneSwap(t *testing.T) {
	s := newSystem(t, "a", "b", "c")
	s.pair()
	b := s.nodes["b"]
	b.Lock()
	b.Hold = make(chan struct{})
	hold := b.Hold
	b.Unlock()
	s.must("POST", "/v1/migrations", control.MoveRequest{Group: "g", To: "b"}, nil)
	s.waitPhase("g-1", control.PhasePending)
	for name, in := range map[string]control.DecideRequest{
		"another node":  {Node: "a", Epoch: 1, Cut: 100},
		"another epoch": {Node: "b", Epoch: 2, Cut: 100},
	} {
		if _, err := s.client.Decide(t.Context(), "g-1", in); control.KindOf(err) != control.KindRefused {
			t.Errorf("%s: %v", name, err)
		}
	}
	// The opposite swap and the target's race; whoever is second hears who was first.
	done := make(chan error, 1)
	go func() { done <- s.m.endMove(context.Background(), "g-1", "by the test", true) }()
	reply, err := s.client.Decide(t.Context(), "g-1", control.DecideRequest{Node: "b", Epoch: 1, Cut: 100})
	if err != nil {
		t.Fatal(err)
	}
	if err := <-done; err != nil {
		t.Fatal(err)
	}
	again, err := s.client.Decide(t.Context(), "g-1", control.DecideRequest{Node: "b", Epoch: 1, Cut: 100})
	if err != nil || again.Decided != reply.Decided {
		t.Fatalf("decided %q, then %q, %v", reply.Decided, again.Decided, err)
	}
	g := s.group()
	if want := map[string]string{control.DecidedTarget: "b", control.DecidedSource: "a"}[reply.Decided]; g.Primary != want {
		t.Fatalf("decided %s, primary %s", reply.Decided, g.Primary)
	}
	close(hold)
}
