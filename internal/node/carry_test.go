package node

import (
	"maps"
	"math/rand/v2"
	"os"
	"slices"
	"testing"
	"time"

	"gantline/internal/control"
)

// carrying is a group on the move with a backlog: the link has been down for a while.
func carrying(r *rig, with func(*control.Settings), rate int64) (s *stateMove, stop func()) {
	s = stateGroup(r, with, 2, 32<<20, 0)
	s.paired()
	s.spec.Backlog = control.BacklogCarry
	stop = keepRunning(s.t, s.load)
	if rate > 0 {
		s.g.Limit = rate
		s.g.Revision++
		s.specify(s.g)
	}
	s.cut(true)
	time.Sleep(700 * time.Millisecond)
	return s, stop
}

// cut takes the secondary away, or brings it back. One that pulls dials by itself, past the link: it is stopped.
func (s *stateMove) cut(away bool) {
	switch {
	case s.g.Transfer != control.TransferPull:
		s.link.set(away)
	case away:
		s.stop("c")
	default:
		s.start("c")
	}
}

// prefix checks the secondary's image, if it is there to be asked.
func (s *stateMove) prefix() {
	if s.nodes["c"].cancel != nil {
		s.check(s.load, "c", s.volumes, false)
	}
}

// whole waits until all that the secondary lacks is at the target, which has all data too.
func (s *stateMove) whole() {
	s.t.Helper()
	var st control.MigrationStatus
	s.waitFor("carried", func() bool {
		st = s.moveStatus("b")
		return st.Carry != nil && st.Carry.Whole && st.Carry.Done > 0 && st.Present == st.Total
	})
}

// givenBack waits until the target keeps nothing of what was carried.
func (s *stateMove) givenBack() {
	s.t.Helper()
	n := s.nodes["b"].node
	s.waitFor("given back", func() bool {
		_, err := os.Stat(n.carriedPath("g-1"))
		return os.IsNotExist(err) && n.state.group("g").Carried == nil
	})
	if c := n.group("g").log.Cursors(); c.Trimmed < n.group("g").vg.Table()[0].Last {
		s.t.Errorf("the log still reaches back to %d", c.Trimmed)
	}
}

// some leaves n variants of a test by chance, those named first; all with GANTLINE_CAMPAIGN.
func some[V any](t *testing.T, all map[string]V, n int, first ...string) map[string]V {
	if os.Getenv("GANTLINE_CAMPAIGN") != "" {
		return all
	}
	names := slices.DeleteFunc(slices.Sorted(maps.Keys(all)), func(name string) bool { return slices.Contains(first, name) })
	rand.Shuffle(len(names), func(i, j int) { names[i], names[j] = names[j], names[i] })
	left := map[string]V{}
	for _, name := range append(first, names...)[:n] {
		left[name] = all[name]
	}
	t.Logf("of %d variants: %v", len(all), slices.Sorted(maps.Keys(left)))
	return left
}

// carryRig gives away what is carried in pieces of batches.
func carryRig(t *testing.T) *rig {
	return stateRig(t, func(c *Config) { c.carryPiece = 100 << 10 })
}

// The link is down. What the secondary lacks moves to the target, and the source dies for ever. When the link is back the
// secondary gets all of it from the target: at every moment its image is a prefix of what hosts wrote, and nothing goes twice
// over the link. Dead on the way, target and secondary go on where they were. A source that comes back after all is told, or hears
// from the secondary, that it has nothing to send.
func TestCarry(t *testing.T) {
	t.Parallel()
	pull := func(g *control.Settings) { async(g); g.Transfer = control.TransferPull }
	for name, c := range some(t, map[string]struct {
		with      func(*control.Settings)
		copyFirst bool
		untold    bool
		restarts  bool
	}{
		"copy-first":   {async, true, false, false},
		"switch-first": {async, false, true, false},
		"pull":         {pull, true, true, false},
		"restarts":     {async, false, false, true},
	}, 1, "restarts") {
		t.Run(name, func(t *testing.T) {
			r := carryRig(t)
			if c.copyFirst {
				r.strategy = control.StrategyCopyFirst
			}
			s, stop := carrying(r, c.with, 512<<10)
			stop()
			nodes := []string{"c", "a", "b"}
			if c.untold {
				nodes = nodes[1:]
			}
			stop = s.move(nodes...)
			s.whole()
			s.stop("a")
			s.gone = true
			stop()
			st := s.status("b")
			if st.LagBytes == 0 || st.CarriedBytes == 0 || st.State != "paired" || st.BlockedOn == "" || s.moveStatus("b").Phase == control.PhaseFilled {
				t.Fatalf("the secondary has not got anything yet: %+v", st)
			}
			again := func() {
				if c.restarts {
					s.stop("b")
					s.start("b")
					s.load.SetDisks(s.hosts("b"))
				}
			}
			again()
			s.prefix()
			s.cut(false)
			was := s.status("c").Applied
			if c.untold {
				s.call("c", control.CallMigrateRegister, s.spec, nil)
			}
			stop = keepRunning(t, s.load)
			s.waitFor("on its way", func() bool { return s.status("c").Applied > was+20 })
			s.cut(true)
			stop()
			t.Logf("%d bytes of what was carried are still to be sent", s.status("b").CarriedBytes)
			if c.restarts {
				s.stop("c")
				s.start("c")
			}
			again()
			if c.restarts {
				s.start("a")
				s.gone = false
				s.waitFor("told that it need not send", func() bool { return s.nodes["a"].node.state.view().Moves["g-1"].Carried })
			}
			time.Sleep(300 * time.Millisecond)
			s.prefix()
			s.cut(false)
			s.filled()
			s.unlimited()
			stop = keepRunning(t, s.load)
			s.end(stop, !c.restarts && name != "pull") // else what was on its way at a death goes again
			s.givenBack()
			if s.gone {
				s.start("a")
				s.waitFor("the source hears that nothing is left to send", func() bool { return s.moveStatus("a").Drained })
				s.call("a", control.CallMigrateDeregister, control.MigrationID{ID: "g-1"}, nil)
			}
		})
	}
}

// What else may become of a backlog that is carried; one by chance, all in a campaign.
func TestCarryOtherwise(t *testing.T) {
	t.Parallel()
	for name, test := range some(t, map[string]func(*testing.T){
		"slow link":                func(t *testing.T) { carrySlowLink(t, false) },
		"slow link, suspended":     func(t *testing.T) { carrySlowLink(t, true) },
		"abandoned":                func(t *testing.T) { carryUnneeded(t, false, true) },
		"promoted":                 func(t *testing.T) { carryUnneeded(t, true, true) },
		"promoted before all came": func(t *testing.T) { carryUnneeded(t, true, false) },
		"given up":                 carryGivenUp,
	}, 1) {
		t.Run(name, test)
	}
}

// Where the source is up and the link is slow, it sends until all is at the target, which goes on: nothing goes twice. Then the
// secondary is suspended, and what was carried is marked and given back.
func carrySlowLink(t *testing.T, suspend bool) {
	s, stop := carrying(carryRig(t), async, 128<<10)
	s.link.set(false)
	s.waitFor("linked", func() bool { return s.status("a").LinkUp })
	stop()
	stop = s.move("c", "a", "b")
	s.filled()
	if st := s.moveStatus("a"); !st.Drained || s.moveStatus("b").Carry == nil {
		t.Fatalf("%+v: the source was to be told that it need not send any more", st)
	}
	if suspend {
		s.call("b", control.CallGroupSuspend, control.GroupSuspend{Name: "g"}, nil)
		s.givenBack()
		stop()
		s.check(s.load, "c", s.volumes, false)
		s.unlimited()
		stop = keepRunning(t, s.load)
		s.resume("b")
	} else {
		s.unlimited()
	}
	s.end(stop, false)
	sent, written := s.status("b").WANBytesSent-s.sent, s.load.Stats().Bytes-s.written
	if limit := s.owed + written*102/100 + 1<<20; !suspend && sent > limit { // a batch may have been on its way
		t.Errorf("sent %d bytes, of %d written and %d owed", sent, written, s.owed)
	}
	s.givenBack()
}

// Source and secondary are gone for good, or the target is superseded by the secondary: nobody waits for what was carried, and its
// room is given back, also where the target dies before that.
func carryUnneeded(t *testing.T, promoted, whole bool) {
	r := carryRig(t)
	if whole {
		r.strategy = control.StrategyCopyFirst
	} else {
		r.limit = 16 << 10 // of the carrying as well
	}
	s, stop := carrying(r, async, 0)
	stop()
	stop = s.move("c", "a", "b")
	stop()
	if whole {
		s.whole()
		s.stop("a")
	}
	was := s.status("c").Applied
	if promoted {
		s.stop("a")
		if _, err := s.promote(true, false); err != nil {
			t.Fatal(err)
		}
		s.cut(false)
		s.waitFor("superseded", func() bool { return s.status("b").Role == control.RoleSuperseded })
		s.check(s.load, "c", s.volumes, false)
	} else {
		s.stop("c")
		s.call("b", control.CallMigrateAbandon, control.MigrationID{ID: "g-1"}, nil)
		s.filled()
		s.check(s.load, "b", s.volumes, true)
	}
	path := s.nodes["b"].node.carriedPath("g-1")
	s.waitFor("given back", func() bool {
		_, err := os.Stat(path)
		return os.IsNotExist(err) && s.nodes["b"].node.state.group("g").Carried == nil
	})
	if promoted && s.status("c").Applied < was {
		t.Errorf("the secondary had %d, and has %d", was, s.status("c").Applied)
	}
	s.stop("b")
	if err := os.WriteFile(path, make([]byte, 4096), 0o600); err != nil { // died before it was removed
		t.Fatal(err)
	}
	s.start("b")
	if _, err := os.Stat(path); promoted && !os.IsNotExist(err) {
		t.Errorf("what nobody carries to is left: %v", err)
	}
}

// A move that goes back drops the room that it had made, and a group that has nothing to carry is told why.
func carryGivenUp(t *testing.T) {
	s, stop := carrying(carryRig(t), async, 0)
	stop()
	s.spec.Group = s.g
	for _, n := range []string{"c", "a", "b"} {
		s.call(n, control.CallMigrateRegister, s.spec, nil)
	}
	path := s.nodes["b"].node.carriedPath("g-1")
	s.waitFor("made", func() bool { _, err := os.Stat(path); return err == nil })
	for _, n := range []string{"b", "a", "c"} {
		s.call(n, control.CallMigrateCancel, control.MigrationID{ID: "g-1"}, nil)
	}
	if _, err := os.Stat(path); !os.IsNotExist(err) {
		t.Errorf("what was made for the move is left: %v", err)
	}
	for _, with := range []func(*control.Group){
		func(g *control.Group) { g.Log = control.LogQueue }, func(g *control.Group) { g.Mode = control.ModeSync },
		func(g *control.Group) { g.Mode = control.ModePeriodic },
	} {
		g := s.g
		if with(&g); control.CannotCarry(&g) == "" || control.CannotCarry(&s.g) != "" {
			t.Errorf("%s, %s", g.Mode, g.Log)
		}
	}
	var check control.MigrationCheck
	s.call("a", control.CallMigrateCheck, s.spec, &check)
	if len(check.Refusals) > 0 || check.CarrySize < check.Backlog {
		t.Errorf("%+v", check)
	}
}
