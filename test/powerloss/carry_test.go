package powerloss

import (
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"gantline/internal/block"
	"gantline/internal/control"
)

func isCarried(path string) bool { return strings.HasSuffix(path, ".carried.jnl") }

// trapCall takes the power of a node at the nth call to devices that are so; the call itself is lost.
func (s *site) trapCall(name string, which func(path string) bool, nth int) (took <-chan struct{}) {
	struck, n := make(chan struct{}), atomic.Int64{}
	s.node[name].disks.setHook(func(path string, _ block.Call, _, _ int64) error {
		if which(path) && n.Add(1) == int64(nth) {
			s.crash(name)
			close(struck)
		}
		return nil
	})
	return struck
}

// loseUntil takes the target's power at one call after the other to what is carried, the nth of each life, until one life comes to
// the end without; at most max times.
func (s *site) loseUntil(what string, max, stride int, end func() bool) (losses int) {
	s.t.Helper()
	for nth := 1 + s.rnd.IntN(stride); losses < max; nth += 1 + s.rnd.IntN(stride) {
		took := s.trapCall("b", isCarried, nth)
		struck := false
		s.until(40*time.Second, what, func() bool {
			select {
			case <-took:
				struck = true
			default:
			}
			return struck || end()
		})
		s.node["b"].disks.setHook(nil)
		if !struck {
			return losses
		}
		losses++
		s.say("power of b goes at call %d to what is carried", nth)
		s.restart("b")
	}
	s.until(40*time.Second, what, end)
	return losses
}

// The target of a move that carries its backlog loses its power at one device call after the other, from the making of the log for
// it until its space is given back. Once all is there the source is away. The secondary, cut off until then, is a prefix and in the
// end equal. A plain run has a few calls by chance; GANTLINE_CAMPAIGN=n all of them, n times.
func TestCarrySurvivesPowerLossAtEachCall(t *testing.T) {
	t.Parallel()
	for range max(1, campaign()) {
		carryLosses(t)
	}
}

func carryLosses(t *testing.T) {
	seed, rnd := seedOf(t)
	s := newSite(t, seed, rnd)
	most, stride, few := 2, 12, 4 // sending takes fewer calls
	if campaign() > 0 {
		most, stride, few = 1000, 1, 1
	}
	behind := s.backlog()
	id := s.startCarry()
	bringing := s.loseUntil("all is at the target", most, stride, func() bool { return s.whole(id) })
	if st := s.mustStatus("b"); st.CarriedBytes == 0 || st.State != "paired" {
		t.Fatalf("%+v: nothing waits for the secondary", st)
	}
	s.crash("a")
	v := s.checkSecondary()
	s.say("%d bytes were carried, with %d losses of power; the secondary is a prefix, %d behind", behind, bringing, v.behind)
	s.load.resume()
	s.pause(0, 100*time.Millisecond)
	s.quiet()
	s.wan(true)
	sending := s.loseUntil("the space is given back", most, few, func() bool {
		return s.carriedOf("b") == ""
	})
	s.restart("a")
	s.afterMove(moment{"b", "carry", ""}, id, s.ended(id))
	n, errs, first := s.load.counts()
	if errs > 0 {
		t.Errorf("hosts met %d errors: %v", errs, first)
	}
	t.Logf("%d writes, %d bytes carried, %d losses while it came, %d while it was sent", n, behind, bringing, sending)
}

// wan connects the secondary, or cuts it off.
func (s *site) wan(up bool) {
	s.setLink(cutLink{"a", "c", "both"}, !up)
	s.setLink(cutLink{"b", "c", "both"}, !up)
}

// backlog cuts the secondary off and has hosts write. It returns with them at rest, and how much the secondary lacks.
func (s *site) backlog() int64 {
	s.t.Helper()
	s.load.resume()
	s.pause(100*time.Millisecond, 200*time.Millisecond)
	s.wan(false)
	s.pause(100*time.Millisecond, 200*time.Millisecond)
	s.quiet()
	return s.mustStatus("a").LagBytes
}

func (s *site) startCarry() (id string) {
	s.t.Helper()
	var m control.MigrationView
	s.must(s.do("POST", "/v1/migrations", control.MoveRequest{Group: group, To: "b", Backlog: control.BacklogCarry}, &m))
	return m.ID
}

// whole says whether all that the secondary lacks, and all else, is at the target.
func (s *site) whole(id string) bool {
	var st control.MigrationStatus
	return s.call("b", control.CallMigrateStatus, control.MigrationID{ID: id}, &st) == nil && st.Carry != nil && st.Carry.Whole &&
		st.Present == st.Total
}

// carriedOf is the path of what is carried to a node, empty if there is none.
func (s *site) carriedOf(name string) string {
	ds := s.node[name].disks
	ds.mu.Lock()
	defer ds.mu.Unlock()
	for path := range ds.disks {
		if isCarried(path) {
			return path
		}
	}
	return ""
}

// The device of what is carried fails, for a while: what is on it counts for nothing any more, the source has it, and it is brought
// anew. Hosts notice nothing.
func TestCarriedLogFails(t *testing.T) {
	t.Parallel()
	seed, rnd := seedOf(t)
	s := newSite(t, seed, rnd)
	s.backlog()
	from, calls, failed := int64(1+rnd.IntN(12)), atomic.Int64{}, atomic.Int64{}
	s.node["b"].disks.setHook(func(path string, call block.Call, _, _ int64) error {
		if !isCarried(path) || call == block.CallRead || call == block.CallReadNowait || calls.Add(1) < from || failed.Load() >= 3 {
			return nil
		}
		failed.Add(1)
		return block.ErrIO
	})
	id := s.startCarry()
	s.until(30*time.Second, "all is at the target", func() bool { return s.whole(id) })
	if failed.Load() != 3 {
		t.Fatalf("%d calls failed", failed.Load())
	}
	s.crash("a")
	s.wan(true)
	s.until(30*time.Second, "the space is given back", func() bool { return s.carriedOf("b") == "" })
	s.restart("a")
	s.afterMove(moment{"b", "carry", ""}, id, s.ended(id))
	if _, errs, first := s.load.counts(); errs > 0 {
		t.Errorf("hosts met %d errors: %v", errs, first)
	}
}
