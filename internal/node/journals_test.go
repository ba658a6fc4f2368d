package node

import (
	"os"
	"path/filepath"
	"testing"
	"time"

	"gantline/internal/control"
	"gantline/internal/proof"
)

// A journal fills up in an outage: marks are told with the cause. Grown by a file while hosts write, and by a device, it
// takes what would have suspended the group; restarted, it has all of it; emptied, the alarm is cleared.
func TestJournalAdd(t *testing.T) {
	r := newRig(t, "a", "c")
	r.group(2, 64<<20)
	l := proof.New(r.disks("a", 2), proof.Options{Seed: 31, Depth: 8, MaxBlocks: 64, Rate: 100})
	runFor(t, l, 200*time.Millisecond)
	r.stop("c")
	for r.journal("a", "jg").Alarm < 70 {
		runFor(t, l, 50*time.Millisecond)
	}
	before := r.journal("a", "jg")
	if before.Cause == "" || r.status("a").State != "paired" {
		t.Fatalf("%+v, group %+v", before, r.status("a"))
	}
	add := control.JournalAdd{Name: "jg", Size: 64 << 20, Have: before.Devices}
	done := make(chan struct{})
	go func() { defer close(done); runFor(t, l, 100*time.Millisecond) }()
	r.call("a", control.CallJournalAdd, add, nil)
	<-done
	r.call("a", control.CallJournalAdd, add, nil) // repeated
	device := filepath.Join(t.TempDir(), "more")
	if err := os.WriteFile(device, make([]byte, 8<<20), 0o600); err != nil {
		t.Fatal(err)
	}
	have := r.journal("a", "jg").Devices
	for what, bad := range map[string]control.JournalAdd{
		"of other devices": {Name: "jg", Size: 1 << 20, Have: []string{"/x"}},
		"not there":        {Name: "jg", Device: device + "x", Have: have},
		"in use":           {Name: "jg", Device: have[0], Have: have},
		"too small":        {Name: "jg", Size: 4096, Have: have},
	} {
		if err := r.try("a", control.CallJournalAdd, bad, nil); err == nil {
			t.Fatalf("a device %s has joined", what)
		}
	}
	r.call("a", control.CallJournalAdd, control.JournalAdd{Name: "jg", Device: device, Have: have}, nil)
	grown := r.journal("a", "jg")
	if len(grown.Devices) != 3 || grown.Size != before.Size+72<<20 || grown.Capacity < before.Capacity+60<<20 {
		t.Fatalf("grown from %+v to %+v", before, grown)
	}
	for r.journal("a", "jg").Used < before.Capacity+8<<20 {
		runFor(t, l, 100*time.Millisecond)
	}
	if st := r.status("a"); st.State != "paired" {
		t.Fatalf("suspended though the journal has grown: %+v", st)
	}
	r.stop("a")
	r.start("a")
	if j := r.journal("a", "jg"); len(j.Devices) != 3 || j.Capacity != grown.Capacity {
		t.Fatalf("after a restart: %+v", j)
	}
	r.start("c")
	r.call("c", control.CallJournalAdd, control.JournalAdd{Name: "jg", Size: 16 << 20, Have: r.journal("c", "jg").Devices}, nil)
	l.SetDisks(r.disks("a", 2))
	r.waitFor("in step", r.inStep)
	r.check(l, "c", 2, true)
	runFor(t, l, 300*time.Millisecond)
	r.waitFor("in step", r.inStep)
	r.waitFor("cleared", func() bool { return r.journal("a", "jg").Alarm == 0 })
	r.stop("c")
	r.start("c")
	r.waitFor("in step", r.inStep)
	r.check(l, "c", 2, true)
}

// Dead between the record and the joining, a device joins when the journal is opened; dead before the record, the file that
// is left is made anew.
func TestJournalAddCutShort(t *testing.T) {
	r := newRig(t, "a", "c")
	r.group(1, 16<<20)
	had := r.journal("a", "jg")
	left := filepath.Join(r.nodes["a"].cfg.DataDir, "journals", "jg.1.jnl")
	if err := os.WriteFile(left, make([]byte, 4096), 0o600); err != nil {
		t.Fatal(err)
	}
	r.call("a", control.CallJournalAdd, control.JournalAdd{Name: "jg", Size: 4 << 20, Have: had.Devices}, nil)
	if j := r.journal("a", "jg"); j.Size != had.Size+4<<20 {
		t.Fatalf("%+v", j)
	}
	r.call("a", control.CallJournalCreate, control.JournalCreate{Name: "idle", Size: 4 << 20}, nil)
	idle := r.journal("a", "idle")
	r.call("a", control.CallJournalAdd, control.JournalAdd{Name: "idle", Size: 4 << 20, Have: idle.Devices}, nil)
	r.call("a", control.CallJournalDelete, control.NameOnly{Name: "idle"}, nil)
	if files, _ := filepath.Glob(filepath.Join(r.nodes["a"].cfg.DataDir, "journals", "idle*")); len(files) > 0 {
		t.Fatalf("left behind: %v", files)
	}
}

func TestAlarmLevel(t *testing.T) {
	level := 0
	for i, c := range []struct {
		used int64
		want int
	}{{0, 0}, {69, 0}, {70, 70}, {66, 70}, {65, 0}, {69, 0}, {75, 70}, {90, 90}, {86, 90}, {85, 70}, {89, 70}, {95, 90}, {10, 0}} {
		if level = alarmLevel(level, c.used, 100); level != c.want {
			t.Fatalf("step %d: %d of 100 used is level %d, want %d", i, c.used, level, c.want)
		}
	}
	if alarmLevel(90, 1, 0) != 0 {
		t.Fatal("a journal of nothing is full")
	}
}
