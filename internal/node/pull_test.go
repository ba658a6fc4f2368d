package node

import (
	"context"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"gantline/internal/control"
	"gantline/internal/proof"
)

func pulled(s *control.Settings) { s.Transfer = control.TransferPull }

func newPulledRig(t *testing.T, names ...string) *rig {
	r := newRig(t, names...)
	r.with = pulled
	return r
}

// The stories of push, with the secondary asking.
func TestPullFullLogSuspendsAndResumeResyncs(t *testing.T) {
	fullLogSuspends(newPulledRig(t, "a", "c"))
}
func TestPullMoveUnderLoad(t *testing.T)     { moveUnderLoad(newPulledRig(t, "a", "b", "c")) }
func TestPullStoreAwayGoesBack(t *testing.T) { storeAwayGoesBack(newPulledRig(t, "a", "b", "c")) }

// Ends are restarted, and push and pull changed for each other, under a load: the images are equal, and what the WAN
// carried is what was written.
func TestPullSwitchedLive(t *testing.T) {
	r := newPulledRig(t, "a", "c")
	g := r.group(2, 32<<20)
	l := proof.New(r.disks("a", 2), proof.Options{Seed: 21, Depth: 8, FlushEvery: 30, Rate: 1500})
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- l.Run(ctx) }()
	for i := range 6 {
		time.Sleep(200 * time.Millisecond)
		r.change(&g, func(s *control.Settings) {
			s.Transfer = []string{control.TransferPush, control.TransferPull}[i%2]
		})
		r.waitFor("the link is up", func() bool { return r.status("a").LinkUp && r.status("c").LinkUp })
	}
	r.stop("c")
	r.waitFor("told", func() bool {
		st := r.status("a")
		return !st.LinkUp && strings.Contains(st.BlockedOn, "waits for c to ask")
	})
	time.Sleep(100 * time.Millisecond)
	r.start("c")
	r.waitFor("the link is up", func() bool { return r.status("a").LinkUp })
	cancel()
	if err := <-ended; err != nil {
		t.Fatal(err)
	}
	r.stop("a")
	r.waitFor("told", func() bool { return strings.Contains(r.status("c").BlockedOn, "pull from a") })
	r.start("a")
	l.SetDisks(r.disks("a", 2))
	runFor(t, l, 300*time.Millisecond)
	r.waitFor("in step", r.inStep)
	r.check(l, "c", 2, true)
	// What was in flight at a change of ends may have gone twice.
	if sent, wrote := r.status("a").WANBytesSent, l.Stats().Bytes; sent > 2*wrote+8<<20 {
		t.Fatalf("%d bytes sent for %d written", sent, wrote)
	}
}

// A secondary that comes back as it was before lacks what has been freed since. It asks, hears that it is trimmed, and the
// group is suspended with all marked; a resync brings the images together. Push or pull, it is the same.
func TestSecondaryFromBackup(t *testing.T) {
	for _, transfer := range []string{control.TransferPush, control.TransferPull} {
		t.Run(transfer, func(t *testing.T) {
			r := newRig(t, "a", "c")
			r.with = func(s *control.Settings) { s.Transfer = transfer }
			r.group(1, 8<<20)
			l := proof.New(r.disks("a", 1), proof.Options{Seed: 41, Depth: 8, MaxBlocks: 32, Rate: 250})
			runFor(t, l, 200*time.Millisecond)
			r.waitFor("in step", r.inStep)
			r.stop("c")
			backup := filepath.Join(t.TempDir(), "backup")
			if err := os.CopyFS(backup, os.DirFS(r.nodes["c"].cfg.DataDir)); err != nil {
				t.Fatal(err)
			}
			r.start("c")
			stored := r.status("c").Durable
			for r.journal("a", "jg").Discarded <= stored {
				runFor(t, l, 200*time.Millisecond)
			}
			r.waitFor("in step", r.inStep)
			r.stop("c")
			if err := os.RemoveAll(r.nodes["c"].cfg.DataDir); err != nil {
				t.Fatal(err)
			}
			if err := os.CopyFS(r.nodes["c"].cfg.DataDir, os.DirFS(backup)); err != nil {
				t.Fatal(err)
			}
			r.start("c")
			r.waitFor("suspended", func() bool {
				st := r.status("a")
				return st.State == "suspended" && st.ChangedBytes == 8<<20 && strings.Contains(st.BlockedOn, "lacks the records")
			})
			if transfer == control.TransferPull {
				r.waitFor("told", func() bool { return strings.Contains(r.status("c").BlockedOn, "suspended") })
			}
			r.call("a", control.CallGroupResume, control.GroupResume{Name: "g", AllowInconsistent: true}, nil)
			r.waitFor("paired", func() bool { return r.status("a").State == "paired" && r.inStep() })
			r.check(l, "c", 1, true)
		})
	}
}
