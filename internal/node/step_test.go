package node

import (
	"fmt"
	"testing"
	"time"

	"gantline/internal/block"
	"gantline/internal/control"
)

func writeTo(t *testing.T, d block.Target, off int64, n int, b byte) {
	t.Helper()
	data := make([]byte, n)
	for i := range data {
		data[i] = b
	}
	done := make(waiter, 1)
	req := &block.Request{Op: block.OpWrite, Offset: off, Length: int64(n), Data: data, Completer: done}
	d.Submit([]*block.Request{req})
	<-done
	if req.Err != nil {
		t.Fatal(req.Err)
	}
}

// A step that does not fit the secondary's journal, both journals of one size, and the way out of it: suspend, and a
// step of a few blocks with the host at rest.
func TestStepThatDoesNotFitIsNotForEver(t *testing.T) {
	r := newRig(t, "a", "c")
	g := control.Group{Name: "g", Settings: control.DefaultSettings(), Epoch: 1, Primary: "a", Secondary: "c",
		PrimaryJournal: "a/jg", SecondaryJournal: "c/jg", Revision: 1}
	for _, node := range []string{"a", "c"} {
		r.call(node, control.CallJournalCreate, control.JournalCreate{Name: "jg", Size: 4 << 20}, nil)
		r.call(node, control.CallVolumeCreate, control.VolumeCreate{Name: "v1", Size: 16 << 20}, nil)
	}
	g.Pairs = append(g.Pairs, control.Pair{Number: 1, Primary: "a/v1", Secondary: "c/v1", Size: 16 << 20})
	r.call("c", control.CallGroupConfigure, control.GroupSpec{Group: g, Role: control.RoleSecondary, Address: r.addresses()}, nil)
	r.call("a", control.CallGroupConfigure, control.GroupSpec{Group: g, Role: control.RolePrimary, Address: r.addresses()}, nil)
	r.waitFor("paired", func() bool {
		st := r.status("a")
		return st.State == "paired" && st.LinkUp && st.ChangedBytes == 0 && st.Applied == st.Appended && st.Appended >= 2
	})
	d := r.disks("a", 1)[0].Target
	r.call("a", control.CallGroupSuspend, control.GroupSuspend{Name: "g"}, nil)
	for i := range int64(10) {
		writeTo(t, d, i*65536, 65536, byte(i+1))
	}
	r.stop("c") // a link that is slow, or away for a moment
	r.call("a", control.CallGroupResume, control.GroupResume{Name: "g"}, nil)
	r.waitFor("resyncing", func() bool { return r.status("a").State != "suspended" })
	for i := range 51 { // 3.3 MiB over one block
		writeTo(t, d, 0, 65536, byte(i))
	}
	t.Logf("before c is back: %+v", r.status("a"))
	r.start("c")
	end := time.Now().Add(4 * time.Second)
	for r.status("a").State != "paired" && time.Now().Before(end) {
		time.Sleep(50 * time.Millisecond)
	}
	st := r.status("a")
	fmt.Printf("4 s later, host at rest: a %+v\nc %+v\n", st, r.status("c"))
	if st.State == "paired" {
		return
	}
	r.call("a", control.CallGroupSuspend, control.GroupSuspend{Name: "g"}, nil)
	r.call("a", control.CallGroupResume, control.GroupResume{Name: "g"}, nil)
	end = time.Now().Add(4 * time.Second)
	for r.status("a").State != "paired" && time.Now().Before(end) {
		time.Sleep(50 * time.Millisecond)
	}
	st = r.status("a")
	fmt.Printf("after suspend, resume: a %+v\nc %+v\n", st, r.status("c"))
	if st.State != "paired" {
		r.stop("c")
		r.start("c")
		time.Sleep(3 * time.Second)
		st = r.status("a")
	}
	if st.State != "paired" {
		t.Errorf("with the host at rest and %d bytes marked: %s, %s; c: %s", st.ChangedBytes, st.State, st.BlockedOn, r.status("c").BlockedOn)
	}
}
