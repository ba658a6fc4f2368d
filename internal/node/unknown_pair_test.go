package node

import (
	"bytes"
	"errors"
	"os"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"gantline/internal/control"
	"gantline/internal/record"
	"gantline/internal/volume"
)

// tell gives a node the group with its pairs.
func (r *rig) tell(node, role string, g control.Group) {
	r.t.Helper()
	r.call(node, control.CallGroupConfigure, control.GroupSpec{Group: g, Role: role, Address: r.addresses()}, nil)
}

// secondPair makes volumes v2 at a and c, and a pair of them that nobody has been told of.
func (r *rig) secondPair(g control.Group, size int64) control.Group {
	r.t.Helper()
	for _, node := range []string{"a", "c"} {
		r.call(node, control.CallVolumeCreate, control.VolumeCreate{Name: "v2", Size: size}, nil)
	}
	g.Pairs = append(g.Pairs, control.Pair{Number: 2, Primary: "a/v2", Secondary: "c/v2", Size: size})
	g.Revision++
	return g
}

// strangeStep has a resync's step stored whole at the secondary, with records of v2 inside, of which the secondary was not
// told. It returns the last record before the step, and its end.
func (r *rig) strangeStep() (g control.Group, before, end record.Seq) {
	r.t.Helper()
	g = r.group(1, 2<<20)
	writeTo(r.t, r.nbd("a", "v1"), 0, 2<<20, 1)
	r.waitFor("in step", r.inStep)
	r.setSettings(&g, func(s *control.Settings) { s.Limit = 4 << 20 })
	r.call("a", control.CallGroupSuspend, control.GroupSuspend{Name: "g"}, nil)
	before = record.Seq(r.status("c").Applied)
	writeTo(r.t, r.nbd("a", "v1"), 0, 2<<20, 5)
	g = r.secondPair(g, 64<<10)
	r.tell("a", control.RolePrimary, g)
	v2 := r.nbd("a", "v2")
	r.call("a", control.CallGroupResume, control.GroupResume{Name: "g"}, nil)
	for r.status("c").Durable == uint64(before) { // the step has begun, and far from ended, when it gets there
		writeTo(r.t, v2, 0, 4096, 9)
		time.Sleep(time.Millisecond)
	}
	c := r.nodes["c"].node.group("g")
	r.waitFor("stored whole", func() bool {
		next := c.app.Status().Next
		end = next.To
		return next.Whole && end > before
	})
	unknown, err := c.unknownUpTo(end)
	if err != nil || len(unknown) != 1 || unknown[2] <= before+2 {
		r.t.Fatalf("no record of v2 inside the step: %v %v", unknown, err)
	}
	return g, before, end
}

// checkBytes: the volume at the node begins with these many bytes of one value.
func (r *rig) checkBytes(node, name string, n int, value byte) {
	r.t.Helper()
	got := make([]byte, n)
	if _, err := (targetReader{r.nbd(node, name)}).ReadAt(got, 0); err != nil {
		r.t.Fatal(err)
	}
	if !bytes.Equal(got, bytes.Repeat([]byte{value}, n)) {
		r.t.Fatalf("volume %s/%s does not hold %d everywhere", node, name, value)
	}
}

// A step with records of a volume that the secondary was never told of is not begun. So it can be promoted, killed and
// stopped in that state: what it holds is the image before the step; and once it has been told the step is applied.
func TestStepWaitsForItsPairs(t *testing.T) {
	r := newRig(t, "a", "c")
	g, before, _ := r.strangeStep()
	time.Sleep(10 * lookForPair)
	if st := r.status("c"); record.Seq(st.Applied) != before || st.Error != "" {
		t.Fatalf("applied %d, the step begins behind %d: %+v", st.Applied, before, st)
	}
	r.stop("a")
	dir, killed := r.nodes["c"].cfg.DataDir, t.TempDir()
	snapshot(t, dir, killed)
	r.stop("c") // without an error

	again := func() {
		r.stop("c")
		if err := os.RemoveAll(dir); err != nil {
			t.Fatal(err)
		}
		snapshot(t, killed, dir)
		r.start("c")
	}
	again()
	out, err := r.promote(true, false)
	if err != nil || record.Seq(out.Cut) != before {
		t.Fatalf("%+v, the step begins behind %d: %v", out, before, err)
	}
	r.checkBytes("c", "v1", 2<<20, 1)
	r.stop("c")
	r.start("c")
	r.checkBytes("c", "v1", 2<<20, 1)

	again()
	r.tell("c", control.RoleSecondary, g)
	r.start("a")
	r.waitFor("in step", inStep(r))
	r.checkBytes("c", "v1", 2<<20, 5)
	r.checkBytes("c", "v2", 4096, 9)
}

// A secondary that stands inside a step which it cannot finish is not promoted, and nothing of the step is cut off.
func TestNoPromotionInsideAStepOfAnUnknownVolume(t *testing.T) {
	r := newRig(t, "a", "c")
	r.stop("c")
	var half atomic.Pointer[func()] // runs once
	r.nodes["c"].cfg.Point = func(step, edge string) {
		if step == control.StepPromoteMaps && edge == "after" {
			if run := half.Swap(nil); run != nil {
				(*run)()
			}
		}
	}
	r.start("c")
	g, before, end := r.strangeStep()
	r.stop("a")
	apply := func() {
		c := r.nodes["c"].node.group("g")
		if err := c.vg.Intend(end); err != nil {
			t.Error(err)
			return
		}
		recs, err := groupLog{c.jnl}.Read(before+1, 2, 1<<20)
		if err == nil {
			err = c.vg.Apply(recs) // as far as it goes
		}
		if err != nil && !errors.Is(err, volume.ErrUnknownVolume) {
			t.Error(err)
		}
	}
	half.Store(&apply)
	for range 2 { // found once the stream has ended, then at once
		_, err := r.promote(true, false)
		if err == nil || !strings.Contains(err.Error(), "inside a step") {
			t.Fatalf("%v", err)
		}
		if st := r.status("c"); record.Seq(st.Applied) <= before || record.Seq(st.Durable) < end || st.Role != control.RoleSecondary {
			t.Fatalf("step from %d to %d: %+v", before, end, st)
		}
	}
	r.tell("c", control.RoleSecondary, g)
	r.start("a")
	r.waitFor("in step", inStep(r))
	r.checkBytes("c", "v1", 2<<20, 5)
	r.checkBytes("c", "v2", 4096, 9)
}

// The note that a copy is complete waits for its pair, whether there are copies before it or none: the group can be promoted.
func TestCopiedNoteWaitsForItsPair(t *testing.T) {
	for name, value := range map[string]byte{"zeros": 0, "data": 7} {
		t.Run(name, func(t *testing.T) {
			r := newRig(t, "a", "c")
			g := r.secondPair(r.group(1, 1<<20), 1<<20)
			writeTo(t, r.nbd("a", "v2"), 0, 4096, value)
			r.tell("a", control.RolePrimary, g)
			r.waitFor("copied", func() (found bool) {
				c := r.nodes["c"].node.group("g")
				err := c.eachStored(c.vg.Applied()+1, c.jnl.Cursors().Durable, func(rec *record.Record) bool {
					found = copiedOf(rec) == 2
					return !found
				})
				return err == nil && found
			})
			r.stop("c") // so that it reads the copies and the note at once
			r.start("c")
			time.Sleep(10 * lookForPair)
			r.tell("c", control.RoleSecondary, g)
			r.waitFor("in step", inStep(r))
			r.stop("a")
			if out, err := r.promote(true, false); err != nil {
				t.Fatalf("%+v %v", out, err)
			}
			r.checkBytes("c", "v2", 4096, value)
		})
	}
}

// A pair that was removed before the secondary was ever told of it holds nothing up: its records are passed over, for good, in the
// stream and in a step.
func TestRemovedPairIsPassedOver(t *testing.T) {
	for name, step := range map[string]bool{"stream": false, "step": true} {
		t.Run(name, func(t *testing.T) {
			r := newRig(t, "a", "c")
			if step {
				r.strangeStep()
			} else {
				g := r.secondPair(r.group(1, 1<<20), 1<<20)
				writeTo(t, r.nbd("a", "v2"), 0, 4096, 7)
				r.tell("a", control.RolePrimary, g)
				r.waitFor("records of v2", func() bool {
					c := r.nodes["c"].node.group("g")
					unknown, err := c.unknownUpTo(c.jnl.Cursors().Appended)
					return err == nil && unknown[2] != 0
				})
				r.call("a", control.CallGroupSuspend, control.GroupSuspend{Name: "g"}, nil) // no pair leaves inside its copy
			}
			if step {
				r.call("a", control.CallGroupSuspend, control.GroupSuspend{Name: "g"}, nil)
			}
			for range 2 {
				r.call("a", control.CallPairRemove, control.PairRef{Name: "g", Number: 2, Gone: true}, nil)
			}
			r.call("c", control.CallPairRemove, control.PairRef{Name: "g", Number: 2}, nil) // it was not taken out for good
			time.Sleep(3 * lookForPair)
			if st := r.status("c"); st.Applied == st.Durable {
				t.Fatalf("not held up: %+v", st)
			}
			for range 2 {
				r.call("c", control.CallPairRemove, control.PairRef{Name: "g", Number: 2, Gone: true}, nil)
			}
			writeTo(t, r.nbd("a", "v1"), 0, 4096, 3)
			r.call("a", control.CallGroupResume, control.GroupResume{Name: "g"}, nil)
			r.waitFor("in step", inStep(r))
			r.stop("c")
			r.start("c")
			r.waitFor("in step", inStep(r))
			r.checkBytes("c", "v1", 4096, 3)
			writeTo(t, r.nbd("c", "v2"), 0, 4096, 1) // a lone volume
			r.stop("a")
			if out, err := r.promote(true, false); err != nil {
				t.Fatalf("%+v %v", out, err)
			}
		})
	}
}
