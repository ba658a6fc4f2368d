package powerloss

import (
	"fmt"
	"math/rand/v2"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"gantline/internal/block"
)

// failCalls has calls of one kind to some devices fail until stopped, and counts them.
func (s *site) failCalls(name string, which func(path string) bool, call block.Call, err error) *atomic.Int64 {
	n := &atomic.Int64{}
	s.node[name].disks.setHook(func(path string, c block.Call, _, _ int64) error {
		if c == call && which(path) {
			n.Add(1)
			return fmt.Errorf("%s of %s: %w", c, path, err)
		}
		return nil
	})
	return n
}

func (s *site) failedState(name string) bool {
	st, err := s.status(name)
	return err == nil && st.State == "failed" && st.Error != ""
}

// A failed sync of the primary's journal ends the use of that log: hosts get errors, nothing more is acknowledged, and
// what was stays, also when the machine loses its power then and comes back with a disk that works.
func TestPrimaryJournalSyncFails(t *testing.T) {
	seed, rnd := seedOf(t)
	s := newSite(t, seed, rnd)
	for i := range rounds(2) {
		s.load.resume()
		s.pause(200*time.Millisecond, 500*time.Millisecond)
		calls := s.failCalls("a", isJournal, block.CallFlush, block.ErrIO)
		s.until(10*time.Second, "the group says that it has failed", func() bool { return s.failedState("a") })
		s.quiet()
		answered, _, _ := s.load.counts()
		s.load.resume()
		time.Sleep(150 * time.Millisecond)
		s.quiet()
		if again, _, _ := s.load.counts(); again != answered {
			t.Errorf("%d writes were answered by a log whose sync had failed", again-answered)
		}
		s.crash("a")
		s.net.link("*", "c", false)
		s.node["a"].disks.setHook(nil)
		s.restart("a")
		s.reopen()
		s.quiet()
		lost := s.reconcile()
		v := s.checkSecondary()
		s.net.link("*", "c", true)
		s.say("round %d: %d failed syncs, %d writes lost, secondary %d behind", i, calls.Load(), lost, v.behind)
		s.settle()
	}
	if _, errs, _ := s.load.counts(); errs == 0 {
		t.Error("hosts met no error: the fault did not take hold")
	}
}

// A volume's device that cannot be flushed moves no checkpoint: the log keeps all that the device may have forgotten.
// A power loss then costs nothing that was under a flush.
func TestVolumeSyncFails(t *testing.T) {
	seed, rnd := seedOf(t)
	s := newSite(t, seed, rnd)
	calls := int64(0)
	for i := range rounds(2) {
		node := []string{"a", "c"}[i%2]
		s.load.resume()
		s.pause(100*time.Millisecond, 300*time.Millisecond)
		n := s.failCalls(node, isVolume, block.CallFlush, block.ErrIO)
		s.until(30*time.Second, "a checkpoint tries to flush a volume of "+node, func() bool { return n.Load() > 0 })
		time.Sleep(200 * time.Millisecond)
		calls += n.Load()
		used := s.mustStatus(node).JournalUsed
		s.crash(node)
		s.node[node].disks.setHook(nil)
		s.load.pause()
		s.restart(node)
		s.settle()
		s.say("round %d: %d failed flushes of %s's volumes, %d bytes in its log; equal after its power loss", i, n.Load(), node, used)
	}
	if calls == 0 {
		t.Error("no flush failed: the fault did not take hold")
	}
}

// A volume's device is full, or broken: its group stops with an error that says so. Space made and power cycled, nothing
// is missing.
func TestVolumeDeviceFull(t *testing.T) {
	seed, rnd := seedOf(t)
	s := newSite(t, seed, rnd)
	for i := range rounds(2) {
		node := []string{"a", "c"}[i%2]
		s.load.resume()
		s.pause(100*time.Millisecond, 300*time.Millisecond)
		n := s.failCalls(node, isVolume, block.CallWrite, block.ErrNoSpace)
		s.until(20*time.Second, "node "+node+" says that its group has failed", func() bool { return s.failedState(node) })
		if st := s.mustStatus(node); !strings.Contains(st.Error, block.ErrNoSpace.Error()) {
			t.Errorf("node %s does not say why: %s", node, st.Error)
		}
		time.Sleep(200 * time.Millisecond)
		s.crash(node)
		s.load.pause()
		s.node[node].disks.setHook(nil)
		s.restart(node)
		s.settle()
		s.say("round %d: %d writes of %s's volumes failed; equal after its power loss", i, n.Load(), node)
	}
}

// The secondary's disks are slow and fail now and then; whatever it says while it does, its image is a prefix whenever
// it is looked at, and it catches up when its disks are well again.
func TestSecondaryOnBadDisks(t *testing.T) {
	seed, rnd := seedOf(t)
	s := newSite(t, seed, rnd)
	s.load.resume()
	failures := &atomic.Int64{}
	for i := range rounds(3) {
		deadly := i%2 == 1
		s.node["c"].disks.setHook(func(path string, call block.Call, _, _ int64) error {
			switch p := rand.IntN(1000); {
			case p < 50:
				time.Sleep(rand.N(40 * time.Millisecond))
			case deadly && p < 55 && (call == block.CallFlush || call == block.CallWrite):
				failures.Add(1)
				return block.ErrIO
			}
			return nil
		})
		s.pause(800*time.Millisecond, 1500*time.Millisecond)
		before := s.mustStatus("a").Acked
		s.crash("c")
		acked := max(before, s.mustStatus("a").Acked)
		s.net.link("*", "c", false)
		s.node["c"].disks.setHook(nil)
		s.restart("c")
		s.until(10*time.Second, "the secondary has applied what it holds", func() bool {
			st, err := s.status("c")
			return err == nil && st.Applied == st.Appended
		})
		if st := s.mustStatus("c"); st.Applied < acked {
			t.Fatalf("secondary came back with records up to %d; it had acknowledged %d as durable", st.Applied, acked)
		}
		v := s.checkSecondary()
		s.say("round %d: a prefix of %d writes, %d behind", i, v.present, v.behind)
		s.net.link("*", "c", true)
		if rnd.IntN(2) == 0 {
			s.settle()
			s.load.resume()
		}
	}
	s.settle()
	if _, errs, first := s.load.counts(); errs > 0 {
		t.Errorf("hosts met %d errors: %v", errs, first)
	}
	if failures.Load() == 0 && campaign() > 0 {
		t.Error("no call failed: the fault did not take hold")
	}
}
