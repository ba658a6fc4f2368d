package powerloss

import (
	"math/rand/v2"
	"testing"
	"time"

	"gantline/internal/block"
)

// rounds of a test: few in a plain run.
func rounds(plain int) int { return plain * max(1, campaign()) }

func (s *site) pause(from, to time.Duration) {
	time.Sleep(from + time.Duration(s.rnd.Int64N(int64(to-from))))
}

// The primary loses its power under load: what a flush covers is there, what is there is a prefix, the secondary is not
// ahead of it, and copying goes on with what is owed.
func TestPrimaryLosesPower(t *testing.T) {
	seed, rnd := seedOf(t)
	s := newSite(t, seed, rnd)
	unsynced, lost := 0, 0
	for i := range rounds(6) {
		if i%2 == 1 {
			s.slow("a", 60*time.Millisecond) // much is answered that no flush has reached
		}
		s.load.resume()
		s.pause(200*time.Millisecond, 1200*time.Millisecond)
		unsynced += s.node["a"].disks.unsynced()
		s.crash("a")
		s.load.pause()
		s.node["a"].disks.setHook(nil)
		s.net.link("*", "c", false)
		s.pause(0, 300*time.Millisecond)
		s.restart("a")
		if rnd.IntN(3) == 0 { // and again while it recovers, or just after
			s.pause(0, 50*time.Millisecond)
			s.crash("a")
			s.restart("a")
		}
		s.quiet()
		gone := s.reconcile()
		lost += gone
		v := s.checkSecondary()
		s.say("round %d: %d answered writes gone with the power; secondary a prefix, %d behind", i, gone, v.behind)
		sent := s.net.sent("a", "c")
		s.net.link("*", "c", true)
		s.settle()
		s.checkOwed(s.net.sent("a", "c")-sent, v.behind)
	}
	n, errs, first := s.load.counts()
	t.Logf("%d writes answered, %d lost, %d errors (%v), %d unsynced sectors at the crashes, %d state copies torn, longest wait %v",
		n, lost, errs, first, unsynced, s.node["a"].torn, s.load.longest)
	if errs > 0 {
		t.Errorf("hosts met %d errors through the gateway: %v", errs, first)
	}
	if unsynced == 0 || lost == 0 {
		t.Errorf("%d sectors were unsynced at the crashes, %d answered writes were lost: the test proved nothing", unsynced, lost)
	}
}

// slow has every flush of a node's devices take up to limit.
func (s *site) slow(name string, limit time.Duration) {
	s.node[name].disks.setHook(func(_ string, call block.Call, _, _ int64) error {
		if call == block.CallFlush {
			time.Sleep(rand.N(limit))
		}
		return nil
	})
}

// checkOwed wants what was sent over the WAN to be no more than the writes that the secondary lacked.
func (s *site) checkOwed(sent int64, writes int) {
	s.t.Helper()
	owed := int64(writes)*(3*blockSize+256) + 64<<10
	if sent > owed {
		s.t.Fatalf("%d bytes were sent to the secondary for %d writes that it lacked: at most %d were owed (I4)", sent, writes, owed)
	}
}

// The secondary loses its power under load: with its source out of reach it comes back to a prefix that holds all that
// it had acknowledged as durable, then catches up.
func TestSecondaryLosesPower(t *testing.T) {
	seed, rnd := seedOf(t)
	s := newSite(t, seed, rnd)
	s.load.resume()
	unsynced := 0
	for i := range rounds(6) {
		s.pause(100*time.Millisecond, 900*time.Millisecond)
		before := s.mustStatus("a")
		unsynced += s.node["c"].disks.unsynced()
		s.crash("c")
		acked := s.mustStatus("a").Acked // as heard before the cut, at least `before`
		s.net.link("*", "c", false)
		s.restart("c")
		if rnd.IntN(3) == 0 {
			s.pause(0, 50*time.Millisecond)
			s.crash("c")
			s.restart("c")
		}
		var applied uint64
		s.until(10*time.Second, "the secondary has applied what it holds", func() bool {
			st, err := s.status("c")
			applied = st.Applied
			return err == nil && st.Applied == st.Appended
		})
		if acked = max(acked, before.Acked); applied < acked {
			t.Fatalf("secondary came back with records up to %d; it had acknowledged %d as durable", applied, acked)
		}
		v := s.checkSecondary()
		if !v.flushed && applied >= acked {
			s.say("round %d: flushed writes not at the secondary yet (asynchronous copy)", i)
		}
		s.say("round %d: secondary back at %d (acknowledged %d), a prefix of %d writes, %d behind", i, applied, acked, v.present, v.behind)
		s.net.link("*", "c", true)
		if rnd.IntN(2) == 0 {
			s.settle()
			s.load.resume()
		}
	}
	s.settle()
	n, errs, first := s.load.counts()
	t.Logf("%d writes answered, %d errors (%v), %d unsynced sectors at the crashes", n, errs, first, unsynced)
	if errs > 0 || unsynced == 0 {
		t.Errorf("%d errors, %d unsynced", errs, unsynced)
	}
}

// Both sites lose their power, one after the other or at once.
func TestBothLosePower(t *testing.T) {
	seed, rnd := seedOf(t)
	s := newSite(t, seed, rnd)
	for i := range rounds(3) {
		s.load.resume()
		s.pause(200*time.Millisecond, 800*time.Millisecond)
		first, second := "a", "c"
		if rnd.IntN(2) == 0 {
			first, second = second, first
		}
		s.crash(first)
		if rnd.IntN(2) == 0 {
			s.pause(0, 30*time.Millisecond)
		}
		s.crash(second)
		s.load.pause()
		s.restart(second)
		s.pause(0, 300*time.Millisecond)
		s.restart(first)
		s.settle()
		s.say("round %d: both back, equal", i)
	}
	if _, errs, first := s.load.counts(); errs > 0 {
		t.Errorf("%d errors: %v", errs, first)
	}
}
