package node

import (
	"bytes"
	"math/rand/v2"
	"testing"
	"time"

	"gantline/internal/control"
	"gantline/internal/proof"
)

// addEqual makes volume v2 on both nodes and adds it to the group as equal.
func (r *rig) addEqual(g *control.Group, size int64, fill func(node string), host func()) control.PairChecked {
	r.t.Helper()
	for _, node := range []string{"a", "c"} {
		r.call(node, control.CallVolumeCreate, control.VolumeCreate{Name: "v2", Size: size}, nil)
		fill(node)
	}
	g.Pairs = append(g.Pairs, control.Pair{Number: 2, Primary: "a/v2", Secondary: "c/v2", Size: size, AssumeEqual: true})
	g.Revision++
	r.configure(*g)
	host()
	var st control.PairChecked
	r.call("a", control.CallPairCheck, control.PairRef{Name: "g", Number: 2}, &st)
	return st
}

func (r *rig) configure(g control.Group) {
	r.t.Helper()
	r.call("c", control.CallGroupConfigure, control.GroupSpec{Group: g, Role: control.RoleSecondary, Address: r.addresses()}, nil)
	r.call("a", control.CallGroupConfigure, control.GroupSpec{Group: g, Role: control.RolePrimary, Address: r.addresses()}, nil)
}

// TestPairOfEqualVolumes: equal volumes become a pair without a copy while a host writes to the new one, and its writes
// reach the other side.
func TestPairOfEqualVolumes(t *testing.T) {
	r := newRig(t, "a", "c")
	const size = 64 << 20
	g := r.group(1, 16<<20)
	stop, ended := make(chan struct{}), make(chan struct{})
	sent, wrote := r.status("a").WANBytesSent, int64(0) // wrote is the host's, until it has ended
	fill := func(node string) {
		d := r.nbd(node, "v2")
		for off := int64(0); off < size; off += 1 << 20 {
			writeTo(t, d, off, 1<<20, byte(off>>20+1))
		}
	}
	host := func() { // from the moment in which the pair is in the group
		d := r.nbd("a", "v2")
		go func() {
			defer close(ended)
			for i := 0; ; i++ {
				select {
				case <-stop:
					return
				default:
					writeTo(t, d, rand.Int64N(size>>12)<<12, 4096, byte(i))
					wrote += 4096
				}
			}
		}()
	}
	if st := r.addEqual(&g, size, fill, host); len(st.Different) > 0 {
		t.Fatalf("equal volumes: %+v", st)
	}
	time.Sleep(200 * time.Millisecond)
	close(stop)
	<-ended
	r.waitFor("paired", func() bool { return r.status("a").State == "paired" })
	if st := r.verify(false); st.State != control.VerifyDone || len(st.Different) > 0 || st.ComparedBytes != 16<<20+size {
		t.Fatalf("both sides: %+v", st)
	}
	st := r.status("a")
	if st.ChangedBytes != 0 || !st.Consistent {
		t.Errorf("%+v", st)
	}
	// What hosts wrote, each with the head of its record and frame, and digests of the samples and of the verify: 256 KiB.
	sent = st.WANBytesSent - sent
	if most := wrote + wrote>>12*160 + 256<<10; sent > most {
		t.Errorf("%d bytes went over the link, the host wrote %d", sent, wrote)
	}
	t.Logf("%d bytes went over the link, the host wrote %d", sent, wrote)
}

// TestPairOfUnequalVolumes: a sample that differs is told, and the pair can be taken out again; the group goes on.
func TestPairOfUnequalVolumes(t *testing.T) {
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	r := newRig(t, "a", "c")
	g := r.group(1, 16<<20)
	l := proof.New(r.disks("a", 1), proof.Options{Seed: seed, Depth: 8, FlushEvery: 30, Rate: 2000})
	loaded := make(chan struct{})
	go func() { defer close(loaded); runFor(t, l, 2*time.Second) }()
	st := r.addEqual(&g, 1<<20, func(node string) {
		writeTo(t, r.nbd(node, "v2"), 1<<20-4096, 4096, map[string]byte{"a": 1, "c": 2}[node])
	}, func() {})
	if len(st.Different) != 1 || st.Different[0].Offset != 15*65536 {
		t.Fatalf("unequal volumes: %+v", st)
	}
	if s := r.status("a"); s.State == "paired" || s.Consistent {
		t.Fatalf("taken as copied: %+v", s)
	}
	r.removePair(2)
	r.waitFor("paired again", func() bool { return r.status("a").State == "paired" })
	for node, b := range map[string]byte{"a": 1, "c": 2} {
		d := r.nbd(node, "v2")
		p := make([]byte, 4096)
		if _, err := (targetReader{d}).ReadAt(p, 1<<20-4096); err != nil || !bytes.Equal(p, bytes.Repeat([]byte{b}, 4096)) {
			t.Errorf("volume at %s after the removal: %x, %v", node, p[:4], err)
		}
		writeTo(t, d, 0, 4096, 9) // a lone volume is written by hosts
	}
	<-loaded
	r.waitFor("in step", func() bool { s := r.status("a"); return s.Applied == s.Appended })
	r.check(l, "c", 1, true)
	for _, node := range []string{"a", "c"} {
		r.stop(node)
		r.start(node)
	}
	r.waitFor("paired", func() bool { return r.status("a").State == "paired" && r.status("a").LinkUp })
	g.Pairs = g.Pairs[:1]
	g.Revision++
	r.configure(g)
	// Its number is never used again.
	g.Pairs = append(g.Pairs, control.Pair{Number: 2, Primary: "a/v2", Secondary: "c/v2", Size: 1 << 20})
	g.Revision++
	if err := r.try("c", control.CallGroupConfigure, control.GroupSpec{Group: g, Role: control.RoleSecondary, Address: r.addresses()}, nil); err == nil {
		t.Error("a number was used again")
	}
}

// removePair takes a pair out on both sides, twice each.
func (r *rig) removePair(number uint16) {
	r.t.Helper()
	for range 2 {
		var done control.PairRemoved
		ref := control.PairRef{Name: "g", Number: number}
		r.call("a", control.CallPairRemove, ref, &done)
		ref.At = done.At
		r.call("c", control.CallPairRemove, ref, &done)
	}
}

// TestDeadInsideRemoval: the process dies after the log's blob says that the volume has left, and before its own record
// does. The group opens without it, and the volume is a lone one.
func TestDeadInsideRemoval(t *testing.T) {
	r := newRig(t, "c")
	n, stop := startHandle(t, r, "a")
	g := r.group(2, 1<<20)
	if err := n.group("g").updateMember(2, func(m *memberRecord) { m.Leaving = true }); err != nil {
		t.Fatal(err)
	}
	if err := n.group("g").vg.Remove(t.Context(), 2, []byte("{}")); err != nil {
		t.Fatal(err)
	}
	stop()
	r.start("a")
	defer r.stop("a")
	r.waitFor("paired", func() bool { return r.status("a").State == "paired" && r.status("a").LinkUp })
	writeTo(t, r.nbd("a", "v2"), 0, 4096, 1)
	writeTo(t, r.nbd("a", "v1"), 0, 4096, 2)
	r.removePair(2) // as the manager repeats it
	writeTo(t, r.nbd("c", "v2"), 0, 4096, 3)
	g.Pairs = g.Pairs[:1]
	g.Revision++
	r.configure(g)
	r.waitFor("in step", func() bool { s := r.status("a"); return s.Applied == s.Appended })
	if st := r.verify(false); st.State != control.VerifyDone || len(st.Different) > 0 || st.ComparedBytes != 1<<20 {
		t.Errorf("%+v", st)
	}
}

// TestRemovalWaitsForTheLink: where a pair was removed is known for good. A secondary that is behind, for the link is down,
// keeps its volume until it has got there; the command is repeated, before and after a restart of the primary, and the copy
// then has all that hosts wrote. Once the group is suspended it will not get there, and lets go as it is.
func TestRemovalWaitsForTheLink(t *testing.T) {
	r := newRig(t, "a", "c")
	g, link := r.pair(async, 3, 1<<20, 16<<20, 16<<20)
	remove := func(node string, ref control.PairRef) (done control.PairRemoved, err error) {
		err = r.try(node, control.CallPairRemove, ref, &done)
		return done, err
	}
	link.set(true)
	writeTo(t, r.nbd("a", "v2"), 0, 4096, 7)
	first, err := remove("a", control.PairRef{Name: "g", Number: 2})
	if err != nil || first.At == 0 {
		t.Fatalf("removed at %d, %v", first.At, err)
	}
	writeTo(t, r.nbd("a", "v1"), 0, 4096, 8)
	writeTo(t, r.nbd("a", "v2"), 0, 4096, 9) // of a lone volume
	if _, err := remove("c", control.PairRef{Name: "g", Number: 2, At: first.At}); err == nil {
		t.Fatal("the secondary has let go of a volume that is behind")
	}
	for range 2 {
		if again, err := remove("a", control.PairRef{Name: "g", Number: 2}); err != nil || again != first {
			t.Fatalf("removed at %d, repeated at %d, %v", first.At, again.At, err)
		}
		r.stop("a")
		r.start("a")
	}
	link.set(false)
	r.waitFor("removed at the secondary too", func() bool {
		_, err := remove("c", control.PairRef{Name: "g", Number: 2, At: first.At})
		return err == nil
	})
	p := make([]byte, 4096)
	if _, err := (targetReader{r.nbd("c", "v2")}).ReadAt(p, 0); err != nil || !bytes.Equal(p, bytes.Repeat([]byte{7}, 4096)) {
		t.Errorf("the removed copy: %x, %v", p[:4], err)
	}
	link.set(true)
	writeTo(t, r.nbd("a", "v3"), 0, 4096, 1)
	if third, err := remove("a", control.PairRef{Name: "g", Number: 3}); err != nil || third.At == 0 {
		t.Fatalf("removed at %d, %v", third.At, err)
	}
	r.call("a", control.CallGroupSuspend, control.GroupSuspend{Name: "g"}, nil)
	if third, err := remove("a", control.PairRef{Name: "g", Number: 3}); err != nil || third.At != 0 {
		t.Fatalf("suspended, removed at %d, %v", third.At, err)
	}
	if _, err := remove("c", control.PairRef{Name: "g", Number: 3}); err != nil {
		t.Fatal(err)
	}
	g.Pairs, g.Revision = g.Pairs[:1], g.Revision+1
	r.configure(g)
	if kept := r.nodes["a"].node.state.view().Groups["g"].RemovedAt; len(kept) > 0 {
		t.Errorf("kept for good: %v", kept)
	}
}
