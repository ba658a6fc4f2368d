package node

import (
	"fmt"
	"math/rand/v2"
	"testing"
	"time"

	"gantline/internal/control"
	"gantline/internal/proof"
	"gantline/internal/volume"
)

// stateMove is a group on the move in a state that is not simply paired, with a load on it.
type stateMove struct {
	*rig
	g       control.Group
	link    *cutLink
	load    *proof.Load
	volumes int
	gone    bool // the source is dead

	spec control.MigrationSpec

	sent, written, owed int64 // as of the seal, or since when the rule of bytes counts
}

// stateRig has little of a copy on its way at a time: the rest is still marked at the seal.
func stateRig(t *testing.T, change ...func(*Config)) *rig {
	t.Parallel()
	return rigWith(t, func(c *Config) {
		c.copyBytes, c.linkRetry = 128<<10, 50*time.Millisecond
		c.patience = volume.SyncConfig{Patience: time.Second, Stall: 2 * time.Second, Hold: 2 * time.Second}
		for _, f := range change {
			f(c)
		}
	}, "a", "b", "c")
}

// stateGroup makes volumes with data of hosts, and a group of them that is copied at rate bytes a second, 0: no limit. It does
// not wait for anything.
func stateGroup(r *rig, with func(*control.Settings), volumes int, journal, rate int64) *stateMove {
	t := r.t
	t.Helper()
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	s := &stateMove{rig: r, volumes: volumes, link: newCutLink(t, func() string { return r.listens("c") })}
	r.via = map[string]string{"c": s.link.addr()}
	g := control.Group{Name: "g", Settings: control.DefaultSettings(), Epoch: 1, Primary: "a", Secondary: "c",
		PrimaryJournal: "a/jg", SecondaryJournal: "c/jg", Revision: 1}
	with(&g.Settings)
	g.Limit = rate
	r.call("c", control.CallJournalCreate, control.JournalCreate{Name: "jg", Size: 32 << 20}, nil)
	if g.Log == control.LogQueue {
		g.PrimaryJournal, g.SecondaryJournalSize = "", 32<<20
	} else {
		r.call("a", control.CallJournalCreate, control.JournalCreate{Name: "jg", Size: journal}, nil)
	}
	for i := range volumes {
		v := fmt.Sprintf("v%d", i+1)
		for _, node := range []string{"a", "c"} {
			r.call(node, control.CallVolumeCreate, control.VolumeCreate{Name: v, Size: volumeSize}, nil)
		}
		g.Pairs = append(g.Pairs, control.Pair{Number: uint16(i + 1), Primary: "a/" + v, Secondary: "c/" + v, Size: volumeSize})
	}
	s.g = g
	s.load = proof.New(s.hosts("a"), proof.Options{Seed: seed, Depth: 4, ReadPercent: 20, FlushEvery: 30, Rate: 800,
		Span: dataSize / int64(volumes)})
	runFor(t, s.load, 300*time.Millisecond)
	s.spec = r.spec(g, "b") // made before, since that takes its time
	r.specify(g)
	return s
}

const (
	volumeSize = 4 << 20
	dataSize   = 3 << 20 // of all volumes together
)

// hosts are the disks that the load writes.
func (s *stateMove) hosts(node string) []proof.Disk { return s.disks(node, s.volumes) }

func (s *stateMove) paired() {
	s.t.Helper()
	s.waitFor("paired", func() bool { return s.status("a").LinkUp && inStep(s.rig)() })
}

// count begins to count bytes by the rule: what is owed besides what hosts write from now on is what is marked, what the log has, and
// the volumes whose initial copy has not come to their turn, and are not marked yet.
func (s *stateMove) count(node string) {
	unmarked := int64(0)
	for _, m := range s.nodes[node].node.state.view().Groups["g"].Members { // before the marks: it may get some meanwhile
		if m.Initial && !m.Marked {
			unmarked += dataSize / int64(s.volumes)
		}
	}
	st := s.status(node)
	s.sent, s.owed, s.written = st.WANBytesSent, st.ChangedBytes+unmarked, s.load.Stats().Bytes
	if st.State == "paired" { // else the lag is of what is marked
		s.owed += st.LagBytes
	}
	s.t.Logf("%s at %s: %d marked, %d in volumes that are not yet, lag %d", st.State, node, st.ChangedBytes, unmarked, st.LagBytes)
}

// move registers and orders the move, with the load going on, until the target serves. The result stops the load.
func (s *stateMove) move(register ...string) (stop func()) {
	s.t.Helper()
	s.spec.Group = s.g
	for _, n := range register {
		s.call(n, control.CallMigrateRegister, s.spec, nil)
	}
	if s.spec.CopyFirst() {
		s.call("b", control.CallMigrateCopy, control.MigrationID{ID: "g-1"}, nil)
		s.waitFor("copied", func() bool { return s.moveStatus("b").Copied })
	}
	s.waitFor("ready", func() bool { return s.moveStatus("a").Ready })
	s.call("b", control.CallMigrateThrough, control.MigrationID{ID: "g-1"}, nil)
	s.load.SetDisks(s.hosts("b"))
	s.count("a")
	stop = keepRunning(s.t, s.load)
	time.Sleep(100 * time.Millisecond)
	s.call("b", control.CallMigrateRun, control.MigrationID{ID: "g-1"}, nil)
	s.waitFor("serving at the target", func() bool { return control.After(s.moveStatus("b").Phase, control.PhaseMigrating) })
	return stop
}

func (s *stateMove) filled() {
	s.t.Helper()
	var st control.MigrationStatus
	defer func() {
		if s.t.Failed() {
			s.t.Logf("%+v", st)
		}
	}()
	s.waitFor("filled", func() bool { st = s.moveStatus("b"); return st.Phase == control.PhaseFilled })
}

// unlimited takes the limit from the group, at its present primary.
func (s *stateMove) unlimited() {
	s.t.Helper()
	s.g.Limit = 0
	s.g.Revision += 2
	s.g.Epoch, s.g.Primary, s.g.PrimaryJournal = 2, "b", "b/jg"
	if s.g.Log == control.LogQueue {
		s.g.PrimaryJournal = ""
	}
	for i := range s.g.Pairs {
		s.g.Pairs[i].Primary = fmt.Sprintf("b/v%d", i+1)
	}
	s.call("b", control.CallGroupConfigure, control.GroupSpec{Group: s.g, Role: control.RolePrimary, Address: s.addresses()}, nil)
}

// end waits until all is in step, and compares; what has gone over the link keeps to the rule.
func (s *stateMove) end(stop func(), rule bool) {
	s.t.Helper()
	time.Sleep(100 * time.Millisecond)
	stop()
	s.waitFor("in step at the target", func() bool {
		st, c := s.status("b"), s.status("c")
		return st.State == "paired" && c.Applied == st.Appended && st.ChangedBytes == 0 && c.Consistent
	})
	s.filled()
	s.check(s.load, "c", s.volumes, true)
	s.check(s.load, "b", s.volumes, true)
	sent, written := s.status("b").WANBytesSent-s.sent, s.load.Stats().Bytes-s.written
	s.t.Logf("sent %d, written %d, owed %d, pause %.1f ms", sent, written, s.owed, *s.moveStatus("b").PauseMS)
	if limit := s.owed + written*102/100 + 256<<10; rule && sent > limit {
		s.t.Errorf("sent %d bytes over the link, hosts wrote %d, %d were owed: more than %d", sent, written, s.owed, limit)
	}
	for _, n := range []string{"c", "b", "a"} {
		if !s.gone || n != "a" {
			s.call(n, control.CallMigrateDeregister, control.MigrationID{ID: "g-1"}, nil)
		}
	}
	if cs := s.status("c").CopySource; cs != "b" {
		s.t.Errorf("copy source %s", cs)
	}
}

func (s *stateMove) resume(node string) {
	s.t.Helper()
	s.call(node, control.CallGroupResume, control.GroupResume{Name: "g"}, nil)
}

func synced(s *control.Settings) { s.Mode, s.OnLinkLoss = control.ModeSync, control.LinkLossContinue }

// A group that is suspended by command moves, stays so, and resyncs from the target what was marked at either node.
func TestMoveSuspended(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		with      func(*control.Settings)
		volumes   int
		copyFirst bool // and the source is never back: nothing is needed of it
	}{
		"async": {async, 2, false}, "queue": {onQueue(async), 1, false}, "copy-first": {async, 1, true},
	} {
		t.Run(name, func(t *testing.T) {
			r := stateRig(t)
			if c.copyFirst {
				r.strategy = control.StrategyCopyFirst
			}
			s := stateGroup(r, c.with, c.volumes, 32<<20, 0)
			s.paired()
			s.call("a", control.CallGroupSuspend, control.GroupSuspend{Name: "g"}, nil)
			runFor(t, s.load, 100*time.Millisecond)
			stop := s.move("c", "a", "b")
			if s.gone = c.copyFirst; s.gone {
				s.stop("a")
			}
			s.filled() // also without the resync
			time.Sleep(100 * time.Millisecond)
			if st := s.status("b"); st.State != "suspended" || st.BlockedOn != byCommand || st.ChangedBytes == 0 || st.LagSeconds == 0 {
				t.Fatalf("at the target: %+v", st)
			}
			stop()
			s.check(s.load, "c", s.volumes, false)
			s.count("b")
			stop = keepRunning(t, s.load)
			s.resume("b")
			s.end(stop, true)
		})
	}
}

// A group whose log was full is suspended, and moves so, with nobody to resume it before.
func TestMoveFull(t *testing.T) {
	s := stateGroup(stateRig(t), async, 1, 2<<20, 0)
	s.paired()
	s.link.set(true)
	for end := time.Now().Add(15 * time.Second); s.status("a").State == "paired" && time.Now().Before(end); {
		runFor(t, s.load, 300*time.Millisecond)
	}
	stop := s.move("c", "a", "b")
	if st := s.status("b"); st.State != "suspended" {
		t.Fatalf("at the target: %+v", st)
	}
	s.link.set(false)
	s.filled()
	s.count("b")
	s.resume("b")
	s.end(stop, true)
}

// The link is down, and the secondary has not even heard of the move. It is made all the same. When the link is back the
// secondary is told, and gets what it lacks: from the source what its journal has, or from the target what is marked.
func TestMoveLinkDown(t *testing.T) {
	t.Parallel()
	for name, with := range map[string]func(*control.Settings){
		"journal": async, "sync": synced, "periodic": every(100 * time.Millisecond),
	} {
		t.Run(name, func(t *testing.T) {
			s := stateGroup(stateRig(t, func(c *Config) { c.patience.Patience = 300 * time.Millisecond }), with, 1, 32<<20, 0)
			s.paired()
			stop := keepRunning(t, s.load)
			s.link.set(true)
			if s.g.Mode == control.ModeSync {
				s.waitFor("stale", func() bool { return s.status("a").State == "suspended" })
			}
			time.Sleep(100 * time.Millisecond)
			stop()
			stop = s.move("a", "b")
			s.waitFor("all present", func() bool { st := s.moveStatus("b"); return st.Present == st.Total })
			if st := s.moveStatus("b"); st.Phase == control.PhaseFilled {
				t.Fatalf("%+v: the secondary does not know its source yet", st)
			}
			s.link.set(false)
			s.call("c", control.CallMigrateRegister, s.spec, nil)
			s.filled()
			s.end(stop, s.g.Mode == control.ModeAsync)
		})
	}
}

// A secondary that was not told of the move is promoted in an epoch that lies above the move's: the target is superseded when it hears of it.
func TestPromotionOfAnUntoldSecondary(t *testing.T) {
	s := stateGroup(stateRig(t), async, 1, 32<<20, 0)
	s.paired()
	s.link.set(true)
	s.spec.Group = s.g
	for _, n := range []string{"a", "b"} {
		s.call(n, control.CallMigrateRegister, s.spec, nil)
	}
	s.call("b", control.CallMigrateThrough, control.MigrationID{ID: "g-1"}, nil)
	s.call("b", control.CallMigrateRun, control.MigrationID{ID: "g-1"}, nil)
	s.waitFor("serving at the target", func() bool { return control.After(s.moveStatus("b").Phase, control.PhaseMigrating) })
	if out, err := s.promote(true, false); err != nil || out.Epoch <= s.spec.Group.Epoch+2 {
		t.Fatalf("%+v %v", out, err)
	}
	s.link.set(false)
	s.waitFor("superseded", func() bool { return s.status("b").Role == control.RoleSuperseded })
}

// An initial copy goes on at the target where the source has stopped: nothing that has been stored is sent again.
func TestMoveInitialCopy(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		with      func(*control.Settings)
		volumes   int
		copyFirst bool
	}{
		"async": {async, 3, false}, "queue": {onQueue(async), 1, false}, "copy-first": {async, 2, true},
	} {
		t.Run(name, func(t *testing.T) {
			r := stateRig(t)
			if c.copyFirst {
				r.strategy = control.StrategyCopyFirst
			}
			s := stateGroup(r, c.with, c.volumes, 32<<20, 512<<10)
			s.waitFor("under way", func() bool {
				st := s.status("a")
				return st.State == "initial-copy" && st.Copy != nil && st.Copy.BytesDone > 128<<10
			})
			stop := s.move("c", "a", "b")
			if s.owed == 0 {
				t.Fatal("nothing was left to copy at the seal")
			}
			s.unlimited()
			s.end(stop, true)
		})
	}
}

// A step that is open at the seal is made anew by the target, as one: the secondary has the image before it until then.
func TestMoveInStep(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		with    func(*control.Settings)
		volumes int
	}{
		"async": {async, 2}, "sync": {synced, 1},
	} {
		t.Run(name, func(t *testing.T) {
			s := stateGroup(stateRig(t), c.with, c.volumes, 32<<20, 0)
			s.paired()
			s.call("a", control.CallGroupSuspend, control.GroupSuspend{Name: "g"}, nil)
			runFor(t, s.load, 200*time.Millisecond)
			s.g.Limit = 512 << 10
			s.g.Revision++
			s.specify(s.g)
			s.resume("a")
			s.waitFor("in the step", func() bool {
				st := s.status("a")
				return st.State == "resyncing" && st.Copy != nil && st.Copy.BytesDone > 128<<10
			})
			stop := s.move("c", "a", "b")
			if st := s.status("b"); st.State != "resyncing" {
				t.Fatalf("at the target: %+v", st)
			}
			if !s.status("c").Consistent {
				t.Fatal("the secondary's image is not the one before the step")
			}
			s.unlimited()
			s.end(stop, false)
		})
	}
}
