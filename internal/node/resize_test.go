package node

import (
	"errors"
	"fmt"
	"testing"

	"gantline/internal/block"
	"gantline/internal/control"
	"gantline/internal/record"
	"gantline/internal/volume"
)

type forgotten struct{}

func (forgotten) Complete(*block.Request) {}

// fillLog submits writes to a's volume until its log is full of what the secondary, which is away, lacks.
func (r *rig) fillLog() {
	r.t.Helper()
	n := r.nodes["a"].node
	vg, vol := n.group("g").running(), n.volume("v1").vol
	for i := range 80 {
		go vol.Submit([]*block.Request{{Op: block.OpWrite, Offset: int64(i%8) << 20, Length: 1 << 20, Data: make([]byte, 1<<20),
			Completer: forgotten{}}})
	}
	r.waitFor("the log is full", func() bool {
		_, err := vg.Append(record.OpMember, 1, []byte("{}"))
		return errors.Is(err, volume.ErrHeldBack)
	})
}

func (r *rig) growing(node string) (size, growing int64) {
	v := r.nodes[node].node.state.view().Volumes["v1"]
	return v.Size, v.Growing
}

func (r *rig) resize(node, role string, size int64) error {
	return r.try(node, control.CallVolumeResize, control.VolumeResize{Name: "v1", Size: size, Group: "g", Role: role}, nil)
}

// A primary whose log is full cannot number the record of a resize. The command says so; a restart opens the group all the
// same, with the recorded size, and numbers the record when there is room.
func TestResizeMeetsAFullLog(t *testing.T) {
	r := newRig(t, "a", "c")
	const size, larger = 32 << 20, 40 << 20
	r.syncGroup(1, size, control.LinkLossStop)
	if err := r.resize("c", control.RoleSecondary, larger); err != nil {
		t.Fatal(err)
	}
	r.stop("c")
	r.fillLog()
	if err := r.resize("a", control.RolePrimary, larger); err == nil {
		t.Fatal("the log had room")
	}
	if s, g := r.growing("a"); s != larger || g != larger {
		t.Fatalf("recorded: %d, growing to %d", s, g)
	}
	r.stop("a")
	r.start("a")
	if st := r.status("a"); st.Error != "" || r.nodes["a"].node.volume("v1").vol.Size() != larger {
		t.Fatalf("after the restart: %q", st.Error)
	}
	if _, g := r.growing("a"); g != larger {
		t.Fatal("the log had room at the restart")
	}
	r.start("c")
	r.waitFor("the record is in the log", func() bool { _, g := r.growing("a"); return g == 0 })
	r.inSync()
}

// A growth that failed leaves what an earlier one has not finished, and what the device may have: a start must open the volume.
func TestResizeThatFails(t *testing.T) {
	const size, first, larger = 1 << 20, 2 << 20, 4 << 20
	for _, c := range []struct {
		fails   error
		growing int64
	}{{block.ErrNoSpace, first}, {fmt.Errorf("%w: %w", block.ErrIO, block.ErrUnsure), larger}} {
		t.Run(c.fails.Error(), func(t *testing.T) {
			r := newRig(t, "a")
			r.call("a", control.CallVolumeCreate, control.VolumeCreate{Name: "v1", Size: size}, nil)
			n := r.nodes["a"].node
			v := n.volume("v1")
			if err := v.dev.(block.Grower).Grow(first); err != nil {
				t.Fatal(err)
			}
			if err := n.state.update(func(d *durable) error { // recorded, and not in the log
				d.Volumes["v1"].Size, d.Volumes["v1"].Growing = first, first
				return nil
			}); err != nil {
				t.Fatal(err)
			}
			whole := v.dev
			v.dev = failing{whole.(block.Grower), c.fails}
			in := control.VolumeResize{Name: "v1", Size: larger, Role: control.RolePrimary}
			if err := n.growVolume(n.state.view().Volumes["v1"], v, in, cleared{}); !errors.Is(err, c.fails) {
				t.Fatal(err)
			}
			v.dev = whole
			if s, g := r.growing("a"); s != first || g != c.growing {
				t.Fatalf("recorded: %d, growing to %d", s, g)
			}
			if errors.Is(c.fails, block.ErrUnsure) { // it has grown all the same
				if err := whole.(block.Grower).Grow(larger); err != nil {
					t.Fatal(err)
				}
			}
			r.stop("a")
			r.start("a")
			if v := r.nodes["a"].node.volume("v1"); v == nil || v.vol.Size() != first {
				t.Fatalf("after a restart: %v", r.nodes["a"].node.brokenCause("v1"))
			}
		})
	}
}

// A secondary that is larger than its primary can become stays so, and lets the primary grow to less.
func TestResizeToLessThanTheSecondary(t *testing.T) {
	r := newRig(t, "a", "c")
	const size, less, larger = 1 << 20, 2 << 20, 4 << 20
	r.group(1, size)
	for _, c := range []struct {
		node, role  string
		size, makes int64
	}{{"c", control.RoleSecondary, larger, larger}, {"c", control.RoleSecondary, less, larger}, {"a", control.RolePrimary, less, less}} {
		var st control.VolumeStatus
		r.call(c.node, control.CallVolumeResize, control.VolumeResize{Name: "v1", Size: c.size, Group: "g", Role: c.role}, &st)
		if now := r.nodes[c.node].node.volume("v1").vol.Size(); st.Size != c.makes || now != c.makes {
			t.Fatalf("%s: recorded %d, in force %d, want %d", c.node, st.Size, now, c.makes)
		}
	}
	if err := r.resize("a", control.RolePrimary, size); err == nil {
		t.Fatal("a primary became smaller")
	}
	r.stop("c")
	r.start("c")
	r.inSync()
	if v := r.verify(false); v.Error != "" || len(v.Different) > 0 {
		t.Fatalf("%+v", v)
	}
}

type failing struct {
	block.Grower
	err error
}

func (f failing) Grow(int64) error { return f.err }

// slowRaw is a raw device whose clearing takes until it is let go.
type slowRaw struct {
	block.Grower
	begun, goOn chan struct{}
}

func (s *slowRaw) Raw() bool { return true }
func (s *slowRaw) Trim(off, n int64) error {
	close(s.begun) // once: a second clearing would be a fault
	<-s.goOn
	return s.Grower.Trim(off, n)
}

// A raw device that is cleared for a long time holds up no other change of the node; its volume is neither deleted nor grown twice.
func TestRawGrowsBesideOtherChanges(t *testing.T) {
	r := newRig(t, "a")
	r.call("a", control.CallVolumeCreate, control.VolumeCreate{Name: "v1", Size: 1 << 20}, nil)
	v := r.nodes["a"].node.volume("v1")
	slow := &slowRaw{v.dev.(block.Grower), make(chan struct{}), make(chan struct{})}
	v.dev = slow
	in := control.VolumeResize{Name: "v1", Size: 2 << 20, Role: control.RoleLone}
	ended := make(chan error, 1)
	go func() { ended <- r.try("a", control.CallVolumeResize, in, nil) }()
	<-slow.begun
	r.call("a", control.CallVolumeCreate, control.VolumeCreate{Name: "v2", Size: 1 << 20}, nil)
	if err := r.try("a", control.CallVolumeResize, in, nil); err == nil {
		t.Error("grown twice")
	}
	if err := r.try("a", control.CallVolumeDelete, control.NameOnly{Name: "v1"}, nil); err == nil {
		t.Error("deleted while it grows")
	}
	close(slow.goOn)
	if err := <-ended; err != nil || v.vol.Size() != 2<<20 {
		t.Errorf("%d bytes, %v", v.vol.Size(), err)
	}
}
