package node

import (
	"strings"
	"testing"
	"time"

	"gantline/internal/control"
	"gantline/internal/proof"
)

// change changes the group's settings live at both ends.
func (r *rig) change(g *control.Group, how func(*control.Settings)) {
	r.t.Helper()
	how(&g.Settings)
	g.Revision++
	r.call("c", control.CallGroupConfigure, control.GroupSpec{Group: *g, Role: control.RoleSecondary, Address: r.addresses()}, nil)
	r.call("a", control.CallGroupConfigure, control.GroupSpec{Group: *g, Role: control.RolePrimary, Address: r.addresses()}, nil)
}

func (r *rig) inStep() bool {
	st := r.status("a")
	return st.Applied == st.Appended && st.LinkUp
}

func (r *rig) journal(node, name string) control.JournalStatus {
	r.t.Helper()
	var st control.NodeStatus
	r.call(node, control.CallNodeStatus, struct{}{}, &st)
	for _, j := range st.Journals {
		if j.Name == name {
			return j
		}
	}
	r.t.Fatalf("journal %s/%s is not there", node, name)
	return control.JournalStatus{}
}

// Records wait for a quantity, honestly shown; a suspension sends them, so that nothing is marked; the interval, set
// live and kept over a restart, ends by itself; a half-full journal does not wait.
func TestSendPace(t *testing.T) {
	r := aloneRig(t, "a", "c") // it says what must come in how long
	g := r.group(2, 32<<20)
	l := proof.New(r.disks("a", 1), proof.Options{Seed: 11, Depth: 8, Rate: 200})
	r.change(&g, func(s *control.Settings) { s.SendBytes = 1 << 30 })
	runFor(t, l, 300*time.Millisecond)
	st := r.status("a")
	if st.Applied >= st.Appended || st.LagBytes == 0 || !strings.Contains(st.BlockedOn, "1073741824 bytes") || st.State != "paired" {
		t.Fatalf("while records wait: %+v", st)
	}
	r.call("a", control.CallGroupSuspend, control.GroupSuspend{Name: "g"}, nil)
	if st := r.status("a"); st.State != "suspended" || st.ChangedBytes != 0 {
		t.Fatalf("suspended with %d bytes marked that only waited: %+v", st.ChangedBytes, st)
	}
	r.call("a", control.CallGroupResume, control.GroupResume{Name: "g"}, nil)
	r.waitFor("paired", func() bool { return r.status("a").State == "paired" }) // the step does not wait
	r.change(&g, func(s *control.Settings) { s.SendBytes, s.SendEveryMS = 0, 700 })
	runFor(t, l, 300*time.Millisecond)
	r.waitFor("in step by the interval", r.inStep)
	r.stop("a")
	r.start("a")
	l.SetDisks(r.disks("a", 1))
	r.waitFor("in step", r.inStep)
	runFor(t, l, 2*time.Second)
	r.waitFor("in step", r.inStep)
	r.check(l, "c", 1, true)
	r.change(&g, func(s *control.Settings) { s.SendEveryMS = time.Hour.Milliseconds() })
	fill := proof.New(r.disks("a", 2)[1:], proof.Options{Seed: 12, Depth: 8, MaxBlocks: 64, Span: 16 << 20})
	before := r.status("a")
	for end := time.Now().Add(20 * time.Second); ; {
		runFor(t, fill, 100*time.Millisecond)
		if now := r.status("a"); now.Applied > before.Applied+100 {
			if used := float64(now.JournalUsed) / float64(now.JournalCapacity); used < 0.2 {
				t.Logf("went on at %.2f of the journal", used)
			}
			break
		}
		if time.Now().After(end) {
			t.Fatalf("a full journal waits for its interval: %+v", r.status("a"))
		}
	}
	if st := r.status("a"); st.State != "paired" {
		t.Fatalf("%+v", st)
	}
}

// Retention by transfer frees the primary's journal while the secondary does not apply. It is set live, and kept.
func TestRetainTransferred(t *testing.T) {
	r := newRig(t, "a", "c")
	g := r.group(2, 32<<20)
	r.change(&g, func(s *control.Settings) { s.Retain = control.RetainTransferred })
	l := proof.New(r.disks("a", 2), proof.Options{Seed: 13, Depth: 8, FlushEvery: 20})
	for range 3 {
		runFor(t, l, 300*time.Millisecond)
		r.stop("c")
		runFor(t, l, 200*time.Millisecond)
		r.start("c")
		runFor(t, l, 200*time.Millisecond)
		r.stop("a")
		r.start("a")
		l.SetDisks(r.disks("a", 2))
	}
	r.waitFor("in step", r.inStep)
	r.check(l, "c", 2, true)
	r.change(&g, func(s *control.Settings) { s.Retain = control.RetainApplied })
	runFor(t, l, 200*time.Millisecond)
	r.waitFor("in step", r.inStep)
	r.check(l, "c", 2, true)
}

// A verify does not wait for a quantity, which its own records would never make up.
func TestVerifyDoesNotWait(t *testing.T) {
	r := newPulledRig(t, "a", "c")
	g := r.group(1, 8<<20)
	r.change(&g, func(s *control.Settings) { s.SendBytes = 1 << 30 })
	l := proof.New(r.disks("a", 1), proof.Options{Seed: 14, Depth: 4, Rate: 200})
	runFor(t, l, 200*time.Millisecond)
	if st := r.verify(false); st.State != control.VerifyDone || len(st.Different) > 0 || st.ComparedBytes != 8<<20 {
		t.Fatalf("%+v", st)
	}
}
