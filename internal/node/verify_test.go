package node

import (
	"context"
	"math/rand/v2"
	"os"
	"path/filepath"
	"testing"
	"time"

	"gantline/internal/control"
	"gantline/internal/proof"
)

// verify runs one to its end.
func (r *rig) verify(repair bool) control.VerifyStatus {
	r.t.Helper()
	var st control.VerifyStatus
	r.call("a", control.CallGroupVerify, control.GroupVerify{Name: "g", Repair: repair}, &st)
	r.waitFor("verified", func() bool {
		r.call("a", control.CallGroupVerified, control.NameOnly{Name: "g"}, &st)
		return st.State != control.VerifyRunning
	})
	return st
}

// spoil changes bytes of a volume's file behind the node's back.
func (r *rig) spoil(node, name string, off int64, n int) {
	r.t.Helper()
	f, err := os.OpenFile(filepath.Join(r.nodes[node].cfg.DataDir, "volumes", name+".raw"), os.O_RDWR, 0)
	if err != nil {
		r.t.Fatal(err)
	}
	defer f.Close()
	p := make([]byte, n)
	if _, err := f.ReadAt(p, off); err != nil {
		r.t.Fatal(err)
	}
	for i := range p {
		p[i] ^= 0x5a
	}
	if _, err := f.WriteAt(p, off); err != nil {
		r.t.Fatal(err)
	}
}

// TestVerifyUnderLoad: beside hosts that write everywhere a verify finds nothing; what was changed at the secondary behind
// its back is found to the block, told again after a restart, and repaired.
func TestVerifyUnderLoad(t *testing.T) {
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	r := newRig(t, "a", "c")
	r.group(2, 16<<20)
	l := proof.New(r.disks("a", 2), proof.Options{Seed: seed, Depth: 16, ReadPercent: 10, FlushEvery: 30, Rate: 4000})
	loaded := make(chan struct{})
	go func() { defer close(loaded); runFor(t, l, 3*time.Second) }()
	runs := 0
	for running := true; running; runs++ {
		st := r.verify(false)
		if st.State != control.VerifyDone || len(st.Different) > 0 || st.ComparedBytes != 32<<20 || st.Cut == 0 {
			t.Fatalf("verify beside a load: %+v", st)
		}
		select {
		case <-loaded:
			running = false
		default:
		}
	}
	t.Logf("%d verifies beside %+v", runs, l.Stats())
	r.waitFor("in step", func() bool { s := r.status("a"); return s.Applied == s.Appended })
	time.Sleep(300 * time.Millisecond) // what is applied is on its way to the file
	r.spoil("c", "v2", 5<<20+4096, 100)
	r.spoil("c", "v2", 16<<20-1, 1)
	want := []control.VerifyExtent{{Volume: "a/v2", Offset: 5 << 20, Length: 65536}, {Volume: "a/v2", Offset: 16<<20 - 65536, Length: 65536}}
	st := r.verify(false)
	if len(st.Different) != 2 || st.Different[0] != want[0] || st.Different[1] != want[1] || st.RepairedBytes != 0 {
		t.Fatalf("found %+v, wanted %+v", st, want)
	}
	r.stop("a")
	r.start("a")
	var kept control.VerifyStatus
	r.call("a", control.CallGroupVerified, control.NameOnly{Name: "g"}, &kept)
	if len(kept.Different) != 2 || kept.State != control.VerifyDone {
		t.Fatalf("after a restart: %+v", kept)
	}
	r.waitFor("paired", func() bool { return r.status("a").State == "paired" && r.status("a").LinkUp })
	if st := r.verify(true); st.State != control.VerifyDone || len(st.Different) != 2 || st.RepairedBytes != 2*65536 {
		t.Fatalf("repair: %+v", st)
	}
	if st := r.verify(false); st.State != control.VerifyDone || len(st.Different) != 0 {
		t.Fatalf("after the repair: %+v", st)
	}
	r.check(l, "c", 2, true)
}

// TestVerifyOutlivesTheSecondary: the secondary is stopped and started again and again during a verify, which goes on and
// finds exactly what differs.
func TestVerifyOutlivesTheSecondary(t *testing.T) {
	r := newRig(t, "a", "c")
	r.group(2, 64<<20)
	r.waitFor("in step", func() bool { s := r.status("a"); return s.Applied == s.Appended })
	time.Sleep(300 * time.Millisecond) // what is applied is on its way to the file
	r.spoil("c", "v1", 40<<20, 10)
	var st control.VerifyStatus
	r.call("a", control.CallGroupVerify, control.GroupVerify{Name: "g"}, &st)
	stops := 0
	for ; stops < 5; stops++ {
		time.Sleep(10 * time.Millisecond)
		r.stop("c")
		r.start("c")
		r.call("a", control.CallGroupVerified, control.NameOnly{Name: "g"}, &st)
		if st.State != control.VerifyRunning {
			break
		}
	}
	r.waitFor("verified", func() bool {
		r.call("a", control.CallGroupVerified, control.NameOnly{Name: "g"}, &st)
		return st.State != control.VerifyRunning
	})
	t.Logf("%d restarts", stops)
	if st.State != control.VerifyDone || len(st.Different) != 1 || st.Different[0].Offset != 40<<20 || st.ComparedBytes != 128<<20 || stops == 0 {
		t.Fatalf("%+v", st)
	}
}

// TestVerifyEndsClearly: one that cannot be exact fails and says why.
func TestVerifyEndsClearly(t *testing.T) {
	r := newRig(t, "a", "c")
	r.group(1, 64<<20)
	r.waitFor("in step", func() bool { s := r.status("a"); return s.Applied == s.Appended })
	r.stop("c")
	var st control.VerifyStatus
	r.call("a", control.CallGroupVerify, control.GroupVerify{Name: "g"}, &st)
	r.call("a", control.CallGroupSuspend, control.GroupSuspend{Name: "g"}, nil)
	r.waitFor("verified", func() bool {
		r.call("a", control.CallGroupVerified, control.NameOnly{Name: "g"}, &st)
		return st.State != control.VerifyRunning
	})
	if st.State != control.VerifyFailed || st.Error == "" {
		t.Fatalf("suspended meanwhile: %+v", st)
	}
	t.Log(st.Error)
	if err := r.try("a", control.CallGroupVerify, control.GroupVerify{Name: "g"}, nil); err == nil {
		t.Fatal("a suspended group was verified")
	}
	r.call("a", control.CallGroupResume, control.GroupResume{Name: "g"}, nil)
	r.start("c")
	r.waitFor("paired", func() bool { return r.status("a").State == "paired" && r.status("a").LinkUp })
	r.stop("c")
	r.call("a", control.CallGroupVerify, control.GroupVerify{Name: "g"}, &st)
	r.stop("a")
	r.start("a")
	r.call("a", control.CallGroupVerified, control.NameOnly{Name: "g"}, &st)
	if st.State != control.VerifyFailed || st.Error == "" {
		t.Fatalf("the primary stopped meanwhile: %+v", st)
	}
	t.Log(st.Error)
}

// TestRepairOfSuspendedGroup: the group was suspended by command after the comparison and before the repair: what differs
// is marked, the repair ends and says so, and the command stands until the next one.
func TestRepairOfSuspendedGroup(t *testing.T) {
	r := newRig(t, "a", "c")
	r.group(1, 16<<20)
	r.waitFor("in step", func() bool { s := r.status("a"); return s.Applied == s.Appended })
	r.call("a", control.CallGroupSuspend, control.GroupSuspend{Name: "g"}, nil)
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	if err := r.nodes["a"].node.group("g").repair(ctx, []extent{{1, 65536, 65536}}); err == nil || ctx.Err() != nil {
		t.Fatalf("repair: %v", err)
	}
	if st := r.status("a"); st.State != "suspended" || st.ChangedBytes != 65536 || st.BlockedOn != byCommand {
		t.Fatalf("%+v", st)
	}
	r.call("a", control.CallGroupResume, control.GroupResume{Name: "g"}, nil)
	r.waitFor("paired", func() bool { s := r.status("a"); return s.State == "paired" && s.ChangedBytes == 0 })
}

// TestVerifyBesideSampling: a secondary keeps what it has found of one run, so a verify does not begin while samples of a
// pair are compared.
func TestVerifyBesideSampling(t *testing.T) {
	r := newRig(t, "a", "c")
	r.group(1, 1<<20)
	g := r.nodes["a"].node.group("g")
	g.sampling.Lock()
	err := r.try("a", control.CallGroupVerify, control.GroupVerify{Name: "g"}, nil)
	g.sampling.Unlock()
	if err == nil {
		t.Fatal("a verify has begun beside samples")
	}
	if st := r.verify(false); st.State != control.VerifyDone {
		t.Fatalf("%+v", st)
	}
}

// TestDeleteInsideVerify: a group may be deleted while it is verified; the node goes on without it.
func TestDeleteInsideVerify(t *testing.T) {
	r := newRig(t, "a", "c")
	r.group(1, 64<<20)
	r.waitFor("in step", r.inStep)
	var st control.VerifyStatus
	r.call("a", control.CallGroupVerify, control.GroupVerify{Name: "g"}, &st)
	if st.State != control.VerifyRunning {
		t.Fatalf("%+v", st)
	}
	r.call("a", control.CallGroupDelete, control.NameOnly{Name: "g"}, nil)
	writeTo(t, r.nbd("a", "v1"), 0, 4096, 1)
}
