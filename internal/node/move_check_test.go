package node

import (
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"gantline/internal/block"
	"gantline/internal/control"
	"gantline/internal/proof"
	"gantline/internal/volume"
)

func TestCheckParts(t *testing.T) {
	t.Parallel()
	const b = markSize
	data := func(list ...int64) (out []block.Extent) {
		for i := 0; i < len(list); i += 2 {
			out = append(out, block.Extent{Offset: list[i], Length: list[i+1], Type: block.ExtentData})
		}
		return out
	}
	off := int64(zeroWindow)
	for name, c := range map[string]struct {
		n           int64
		here, there []block.Extent
		want        []int64
	}{
		"nothing":            {zeroWindow, nil, nil, nil},
		"either side":        {zeroWindow, data(off+5, 1), data(off+b+7, 1), []int64{off, 2 * b}},
		"whole blocks":       {zeroWindow, data(off+b-1, 2), nil, []int64{off, 2 * b}},
		"one answer at most": {zeroWindow, data(off+b, 2<<20), nil, []int64{off + b, 1<<20 - b, off + 1<<20, 1 << 20, off + 2<<20, b}},
		"a short end":        {3*b + 4096, data(off+3*b, 4096), nil, []int64{off + 3*b, 4096}},
		"outside":            {b, data(off-b, b, off+b, b), nil, nil},
	} {
		var want []block.Extent
		for i := 0; i < len(c.want); i += 2 {
			want = append(want, block.Extent{Offset: c.want[i], Length: c.want[i+1]})
		}
		if got := checkParts(off, c.n, c.here, c.there); !slices.Equal(got, want) {
			t.Errorf("%s: %v, want %v", name, got, want)
		}
	}
}

// compare asks for a comparison and waits for what comes out.
func (r *rig) compare(try int) control.MoveCheck {
	r.t.Helper()
	var c control.MoveCheck
	r.waitFor("compared", func() bool {
		r.call("b", control.CallMigrateCompare, control.MoveCompare{ID: "g-1", Try: try}, &c)
		return c.State != control.CheckRunning
	})
	if c.Try != try || c.State != control.CheckSkipped && c.DoneBytes != c.TotalBytes {
		r.t.Fatalf("%+v", c)
	}
	return c
}

// flip changes a byte of a volume's file behind the node's back.
func (r *rig) flip(node, volume string, off int64) {
	r.t.Helper()
	f, err := os.OpenFile(filepath.Join(r.nodes[node].cfg.DataDir, "volumes", volume+".raw"), os.O_RDWR, 0)
	if err != nil {
		r.t.Fatal(err)
	}
	defer f.Close()
	var b [1]byte
	if _, err := f.ReadAt(b[:], off); err != nil {
		r.t.Fatal(err)
	}
	b[0] ^= 0x55
	if _, err := f.WriteAt(b[:], off); err != nil {
		r.t.Fatal(err)
	}
}

// Source and target are the same at the cut, whatever hosts write since; what has changed behind their backs is listed, no more and
// no less, also behind restarts; and with the commit it is over.
func TestMoveCheck(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		with     func(*control.Settings)
		strategy string
	}{
		"journal": {async, ""}, "queue": {onQueue(async), ""}, "copy-first": {async, control.StrategyCopyFirst},
	} {
		t.Run(name, func(t *testing.T) {
			r := newRig(t, "a", "b", "c")
			r.with, r.strategy = c.with, c.strategy
			checkMove(r)
		})
	}
}

func checkMove(r *rig) {
	t := r.t
	const size, written = 8 << 20, 1 << 20 // of each volume, and what the load writes of it
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	g := r.group(2, size)
	base := r.nbd("a", "v2")
	for off := int64(2 << 20); off < 5<<20; off += 4096 { // hosts do not write there again
		if err := do(base, block.OpWrite, off, filledWith(byte(off>>12)|1), 5*time.Second); err != nil {
			t.Fatal(err)
		}
	}
	l := proof.New(r.disks("a", 2), proof.Options{Seed: seed, Depth: 4, ReadPercent: 20, FlushEvery: 30, Span: written, Rate: 500})
	runFor(t, l, 300*time.Millisecond)
	r.through(g)
	l.SetDisks(r.disks("b", 2))
	stop := keepRunning(t, l)
	r.call("b", control.CallMigrateRun, control.MigrationID{ID: "g-1"}, nil)
	r.waitFor("filled", func() bool { return r.moveStatus("b").Phase == control.PhaseFilled })
	for try := range 3 {
		if c := r.compare(try); c.State != control.CheckSame || c.Places != 0 {
			t.Fatalf("false alarm under load: %+v", c)
		}
	}
	stop()
	l.SetDisks(r.disks("b", 2))
	r.waitFor("drained", func() bool { return r.moveStatus("a").Drained })
	r.stop("b")
	r.start("b")
	last := r.compare(3)
	if last.State != control.CheckSame || last.WrittenBytes == 0 || last.WrittenBytes > 2*written && g.Log != control.LogQueue {
		t.Fatalf("%+v", last)
	}

	r.flip("b", "v2", 2<<20+5)
	r.flip("b", "v2", 7<<20) // a hole
	r.flip("a", "v2", 4<<20+1<<16)
	r.flip("a", "v2", 4<<20+2<<16)
	want := []control.VerifyExtent{{Volume: "b/v2", Offset: 2 << 20, Length: 1 << 16}, {Volume: "b/v2", Offset: 4<<20 + 1<<16, Length: 2 << 16},
		{Volume: "b/v2", Offset: 7 << 20, Length: 1 << 16}}
	c := r.compare(4)
	if c.State != control.CheckDifferent || c.Places != 3 || c.DifferentBytes != 4<<16 || !slices.Equal(c.Different, want) {
		t.Fatalf("%+v, want %+v", c, want)
	}
	r.stop("a")
	r.start("a")
	if c = r.compare(5); !slices.Equal(c.Different, want) {
		t.Fatalf("behind a restart of the source: %+v", c)
	}
	for _, off := range []int64{2<<20 + 8192, 4<<20 + 1<<16} { // a host has decided what is there
		if err := do(r.nbd("b", "v2"), block.OpWrite, off, filledWith(9), 5*time.Second); err != nil {
			t.Fatal(err)
		}
	}
	want = []control.VerifyExtent{{Volume: "b/v2", Offset: 4<<20 + 2<<16, Length: 1 << 16}, want[2]}
	if c = r.compare(6); !slices.Equal(c.Different, want) {
		t.Fatalf("behind writes of hosts: %+v, want %+v", c, want)
	}

	for _, n := range []string{"c", "b", "a"} {
		r.call(n, control.CallMigrateDeregister, control.MigrationID{ID: "g-1"}, nil)
	}
	if left, err := filepath.Glob(filepath.Join(r.nodes["b"].cfg.DataDir, "maps", "g-1.*")); err != nil || len(left) > 0 {
		t.Errorf("maps left: %v, %v", left, err)
	}
	if r.nodes["b"].node.group("g").running().Remembers(cutName) {
		t.Error("the log still remembers the cut")
	}
	r.stop("b")
	r.start("b")
	l.SetDisks(r.disks("b", 2))
	runFor(t, l, 100*time.Millisecond)
}

// The check waits for its source, says so, and is begun anew by a target that was restarted meanwhile. A target that is told to end the
// move does so though the check waits.
func TestMoveCheckWaitsForTheSource(t *testing.T) {
	r := newRig(t, "a", "b", "c")
	g := r.group(1, 4<<20)
	if err := do(r.nbd("a", "v1"), block.OpWrite, 0, filledWith(3), 5*time.Second); err != nil {
		t.Fatal(err)
	}
	r.filled(g)
	r.waitFor("drained", func() bool { return r.moveStatus("a").Drained })
	r.stop("a")
	ask := func() (c control.MoveCheck) {
		r.call("b", control.CallMigrateCompare, control.MoveCompare{ID: "g-1"}, &c)
		return c
	}
	for range 2 {
		ask()
		r.waitFor("blocked", func() bool {
			return ask().State == control.CheckRunning && strings.Contains(r.moveStatus("b").BlockedOn, "the source a/v1")
		})
		r.stop("b")
		r.start("b")
	}
	ask()
	r.start("a")
	if c := r.compare(0); c.State != control.CheckSame {
		t.Fatalf("%+v", c)
	}
	if waits := r.moveStatus("b").BlockedOn; waits != "" {
		t.Errorf("blocked on %q at the end", waits)
	}
	r.stop("a")
	var c control.MoveCheck
	r.call("b", control.CallMigrateCompare, control.MoveCompare{ID: "g-1", Try: 1}, &c)
	for _, n := range []string{"c", "b"} {
		r.call(n, control.CallMigrateDeregister, control.MigrationID{ID: "g-1"}, nil)
	}
	if err := r.try("b", control.CallMigrateCompare, control.MoveCompare{ID: "g-1", Try: 1}, nil); err == nil {
		t.Error("compared when the move is over")
	}
}

// A target that does not know what was written since the cut compares nothing, and says so.
func TestMoveCheckWithoutMap(t *testing.T) {
	r := newRig(t, "a", "b", "c")
	g := r.group(1, 4<<20)
	r.filled(g)
	if err := r.try("a", control.CallMigrateDigests, control.DigestsAsked{ID: "g-1", Number: 1, Offset: 0, Length: volume.DigestExtent + 1},
		nil); err == nil {
		t.Error("a source answers for more than it may")
	}
	if err := r.try("b", control.CallMigrateDigests, control.DigestsAsked{ID: "g-1", Number: 1, Offset: 0, Length: 4096}, nil); err == nil {
		t.Error("who is not the source answers")
	}
	r.stop("b")
	if err := os.Remove(r.nodes["b"].node.writtenPath("g-1", 1)); err != nil {
		t.Fatal(err)
	}
	r.start("b")
	if c := r.compare(0); c.State != control.CheckSkipped || c.Reason == "" || c.WrittenBytes != 4<<20 {
		t.Fatalf("%+v", c)
	}
	if r.nodes["b"].node.group("g").running().Remembers(cutName) {
		t.Error("the log still keeps what the map would need")
	}
}
