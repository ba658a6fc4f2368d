package powerloss

import (
	"testing"
	"time"

	"gantline/internal/control"
)

// A synchronous group under load. The primary's power is cut with much that no flush has reached: the secondary's exports
// have every write that was answered, although it has applied none that the primary may have lost. Then the secondary
// loses its power too, and still has what flushes cover. Back again, the primary is the truth: what it has lost the
// secondary drops, and the pair goes on without a word of the operator.
func TestSyncPowerLoss(t *testing.T) {
	seed, rnd := seedOf(t)
	s := newSite(t, seed, rnd)
	s.must(s.do("POST", "/v1/groups/"+group+"/set", control.SettingsChange{Mode: control.ModeSync}, nil))
	inSync := func() bool {
		st, err := s.status("a")
		return err == nil && st.State == "paired" && st.LinkUp && st.BlockedOn == ""
	}
	lost, unsynced := 0, 0
	for i := range rounds(5) {
		s.until(20*time.Second, "synchronous", inSync)
		if i%2 == 1 {
			s.slow("a", 60*time.Millisecond)
		}
		s.load.resume()
		s.pause(200*time.Millisecond, 900*time.Millisecond)
		s.crash("a")
		s.load.pause()
		s.node["a"].disks.setHook(nil)
		time.Sleep(2500 * time.Millisecond) // after a second without a source its readers see all
		v := s.checkSecondary()
		if v.behind != 0 || !v.flushed {
			t.Fatalf("round %d: the secondary lacks %d answered writes, flushed ones there: %v", i, v.behind, v.flushed)
		}
		if st := s.mustStatus("c"); st.Applied > st.Durable {
			t.Fatalf("applied %d, durable %d", st.Applied, st.Durable)
		}
		if rnd.IntN(2) == 0 {
			unsynced += s.node["c"].disks.unsynced()
			s.crash("c")
			s.net.link("*", "c", false)
			s.restart("c")
			time.Sleep(2500 * time.Millisecond)
			if v := s.checkSecondary(); !v.flushed {
				t.Fatalf("round %d: the secondary lost flushed writes with its power", i)
			}
			s.net.link("*", "c", true)
		}
		s.restart("a")
		s.quiet()
		gone := s.reconcile()
		lost += gone
		s.settle()
		s.say("round %d: %d answered writes gone with the primary's power", i, gone)
	}
	n, errs, first := s.load.counts()
	t.Logf("%d writes answered, %d lost at the primary, %d errors (%v)", n, lost, errs, first)
	if errs > 0 || lost == 0 {
		t.Errorf("%d errors (%v), %d answered writes were lost: without any the test proves nothing", errs, first, lost)
	}
}
