package manager

import (
	"fmt"
	"slices"
	"strings"
	"testing"

	"gantline/internal/control"
)

// resizes lists what a node was called with for a resize: its checks and its growths.
func (s *system) resizes(node string) (n int) {
	f := s.nodes[node]
	f.Lock()
	defer f.Unlock()
	for _, c := range f.Calls {
		if strings.HasPrefix(c, control.CallVolumeResize) {
			n++
		}
	}
	return n
}

// A pair grows as one, the secondary first, whichever end is named; each failure leaves what the repeated command goes on
// from, and a refusal by one node leaves the other alone.
func TestVolumeResize(t *testing.T) {
	const size, larger = 1 << 20, 3 << 20
	s := newSystem(t, "a", "c")
	for _, v := range []string{"a/v", "c/v", "a/lone"} {
		s.must("POST", "/v1/volumes", control.VolumeRequest{Name: v, Size: size}, nil)
	}
	s.must("POST", "/v1/groups", control.GroupRequest{Name: "g", Primary: "a", Secondary: "c"}, nil)
	s.must("POST", "/v1/groups/g/pairs", control.PairRequest{Primary: "a/v", Secondary: "c/v"}, nil)
	s.must("POST", "/v1/vvols", control.VvolRequest{Name: "vv", Volume: "a/v"}, nil)
	sizes := func(want ...int64) {
		t.Helper()
		var got []int64
		for _, v := range []string{"c/v", "a/v"} {
			var vol control.VolumeView
			s.must("GET", "/v1/volumes/"+v, nil, &vol)
			got = append(got, vol.Size)
		}
		var g control.GroupView
		s.must("GET", "/v1/groups/g", nil, &g)
		var vv control.VvolView
		s.must("GET", "/v1/vvols/vv", nil, &vv)
		if got = append(got, g.Pairs[0].Size, vv.Size); !slices.Equal(got, want) {
			t.Fatalf("secondary, primary, pair and virtual volume have %v bytes, want %v", got, want)
		}
	}
	resize := func(v string, to int64) error {
		return s.do("POST", "/v1/volumes/"+v+"/resize", control.VolumeResizeRequest{Size: to}, nil)
	}
	failing := func(node string, nth int) {
		f := s.nodes[node]
		f.Lock()
		defer f.Unlock()
		f.Fail = func(call string) error {
			if !strings.HasPrefix(call, control.CallVolumeResize) {
				return nil
			}
			if nth--; nth == 0 {
				return &control.Error{Kind: control.KindRefused, Message: "no room"}
			}
			return nil
		}
	}
	if err := resize("a/v", size/2); control.KindOf(err) != control.KindRefused {
		t.Errorf("smaller: %v", err)
	}
	if err := resize("a/v", size+1); control.KindOf(err) != control.KindUsage {
		t.Errorf("no multiple of a sector: %v", err)
	}
	for _, node := range []string{"c", "a"} { // the check
		failing(node, 1)
		if err := resize("a/v", larger); control.KindOf(err) != control.KindRefused || !strings.Contains(err.Error(), "no room") {
			t.Errorf("%s cannot: %v", node, err)
		}
		sizes(size, size, size, size)
		if n := s.nodes[node].Volumes["v"].Size; n != size {
			t.Errorf("%s has grown to %d bytes", node, n)
		}
	}
	failing("c", 0)
	failing("a", 2) // the growth, when the secondary's has grown
	if err := resize("c/v", larger); err == nil {
		t.Error("the primary has failed, and nothing was said")
	}
	sizes(larger, size, size, size)
	for range 2 {
		if err := resize("c/v", larger); err != nil {
			t.Fatal(err)
		}
		sizes(larger, larger, larger, larger)
	}
	if err := resize("a/lone", larger); err != nil {
		t.Error(err)
	}
	before := s.resizes("a")
	var plan control.PlanView
	if err := s.do("POST", "/v1/volumes/a/v/resize?dry_run=true", control.VolumeResizeRequest{Size: 2 * larger}, &plan); err != nil ||
		!strings.Contains(fmt.Sprint(plan.Plan), "volume.resize c/v") || s.resizes("a") != before+1 {
		t.Errorf("dry run: %v, %v", plan, err)
	}
	sizes(larger, larger, larger, larger)
	failing("a", 2)
	if err := resize("a/v", 9*larger); err == nil {
		t.Error("the primary cannot have that much")
	}
	sizes(9*larger, larger, larger, larger)
	if err := resize("a/v", 2*larger); err != nil {
		t.Errorf("less than what the secondary has: %v", err)
	}
	sizes(9*larger, 2*larger, 2*larger, 2*larger)
	if err := resize("a/v", larger); control.KindOf(err) != control.KindRefused {
		t.Errorf("less than what the primary has: %v", err)
	}
}
