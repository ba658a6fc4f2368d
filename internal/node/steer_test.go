package node

import (
	"context"
	"sync"
	"testing"
	"time"

	"gantline/internal/control"
)

// TestCommandsOfAClosedGroup: a command that found the group before it was deleted is refused, whichever came first.
func TestCommandsOfAClosedGroup(t *testing.T) {
	r := newRig(t, "a", "c")
	r.group(1, 1<<20)
	r.call("a", control.CallGroupSuspend, control.GroupSuspend{Name: "g"}, nil)
	g := r.nodes["a"].node.group("g")
	r.call("a", control.CallGroupDelete, control.NameOnly{Name: "g"}, nil)
	for name, command := range map[string]func() error{
		"resume":  func() error { return g.goOn(false) },
		"suspend": g.halt,
		"compare": func() error { _, err := g.compare(t.Context(), samples(1, 1<<20), nil); return err },
		"repair":  func() error { return g.repair(t.Context(), []extent{{1, 0, 65536}}) },
	} {
		if command() == nil {
			t.Errorf("%s of a deleted group was done", name)
		}
	}
}

// TestSuspendBeforeItIsFed: the subscriber is there before what feeds it.
func TestSuspendBeforeItIsFed(t *testing.T) {
	r := newRig(t, "a", "c")
	r.with = func(s *control.Settings) { s.SendEveryMS = 60_000 }
	r.group(1, 1<<20)
	g := r.nodes["a"].node.group("g")
	g.mu.Lock()
	snd := g.snd
	g.snd = nil
	g.mu.Unlock()
	err := g.halt()
	g.mu.Lock()
	g.snd = snd
	g.mu.Unlock()
	if err != nil || r.status("a").State != "suspended" {
		t.Fatalf("%v, %+v", err, r.status("a"))
	}
}

// TestWishOnlyOfTheSuspended: a synchronous group that has come back meanwhile has no resync to wish for.
func TestWishOnlyOfTheSuspended(t *testing.T) {
	r := newRig(t, "a", "c")
	r.with = func(s *control.Settings) { s.Mode = control.ModeSync }
	r.group(1, 1<<20)
	n := r.nodes["a"].node
	if err := n.group("g").askBack(); err != nil {
		t.Fatal(err)
	}
	if n.state.view().Groups["g"].Resume {
		t.Fatal("a resync of a group in the stream was asked for")
	}
}

// TestCommandsBesideOpenAndClose: for the race detector.
func TestCommandsBesideOpenAndClose(t *testing.T) {
	r := newRig(t, "a", "c")
	ctx, cancel := context.WithCancel(t.Context())
	var wg sync.WaitGroup
	n := r.nodes["a"].node
	for _, command := range []func(){
		func() { _, _ = n.suspendGroup("g") },
		func() { _, _ = n.resumeGroup(control.GroupResume{Name: "g"}) },
		func() { _, _ = n.checkPair(ctx, control.PairRef{Name: "g", Number: 1}) },
		func() { _, _ = n.verifyGroup(control.GroupVerify{Name: "g"}) },
		func() { _ = n.status() },
	} {
		wg.Go(func() {
			for ctx.Err() == nil {
				command()
				time.Sleep(time.Millisecond)
			}
		})
	}
	for node := range r.nodes {
		r.call(node, control.CallVolumeCreate, control.VolumeCreate{Name: "v1", Size: 1 << 20}, nil)
		r.call(node, control.CallJournalCreate, control.JournalCreate{Name: "jg", Size: 16 << 20}, nil)
	}
	for i := range uint64(3) {
		g := control.Group{Name: "g", Settings: control.DefaultSettings(), Epoch: 1, Primary: "a", Secondary: "c", PrimaryJournal: "a/jg",
			SecondaryJournal: "c/jg", Revision: i + 1, Pairs: []control.Pair{{Number: 1, Primary: "a/v1", Secondary: "c/v1", Size: 1 << 20}}}
		r.configure(g)
		for _, node := range []string{"a", "c"} {
			r.call(node, control.CallGroupDelete, control.NameOnly{Name: "g"}, nil)
		}
	}
	cancel()
	wg.Wait()
}
