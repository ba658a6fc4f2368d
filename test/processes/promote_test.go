package processes

import (
	"context"
	"encoding/json"
	"math/rand/v2"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"gantline/internal/control"
	"gantline/internal/proof"
	"gantline/test/site"
)

// own runs a command on a node's own socket.
func own(s *site.Site, p *site.Process, words ...string) site.Result {
	s.T.Helper()
	return s.CLI(append([]string{"--socket", filepath.Join(p.Dir, "control.sock")}, words...)...)
}

// disaster runs the load until the primary's node and the manager are killed in the midst of it.
func disaster(s *site.Site, load *proof.Load, after time.Duration) {
	s.T.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- load.Run(ctx) }()
	time.Sleep(after)
	s.A.Kill()
	s.Manager.Kill()
	cancel()
	<-done
}

// goOn runs the load on for a while; a host sees no error.
func goOn(s *site.Site, load *proof.Load, p *site.Process, g *site.Made) {
	s.T.Helper()
	before := load.Stats()
	load.SetDisks(s.Disks(p, g))
	running := site.Run(load)
	time.Sleep(400 * time.Millisecond)
	err := running.Stop() // the first of the load's life
	if after := load.Stats(); after.Errors != before.Errors || after.Writes == before.Writes {
		s.T.Fatalf("at %s: %+v, before %+v: %v", p.Name, after, before, err)
	}
}

// The primary's node and the manager are killed under a load on three volumes. The secondary is promoted on its own socket: it
// serves a prefix, hosts write on; the old primary refuses hosts when it is back, gateways lead to the new one, and the
// manager adopts it all.
func TestPromoteAfterDisaster(t *testing.T) {
	t.Parallel()
	seed := site.Seed(t)
	s := site.Start(t, nil)
	g := s.Pair("db", 3, 64*mib, "256MiB")
	load := proof.New(s.Disks(s.A, g), proof.Options{Seed: seed, Depth: 32, MaxBlocks: 8, ReadPercent: 20, FlushEvery: 30, Tolerate: true, Span: 48 * mib})
	disaster(s, load, time.Second)

	if r := own(s, s.C, "group", "promote", "db"); r.Code != 4 || !strings.Contains(r.Err, "--force is needed") {
		t.Fatal(r)
	}
	if r := own(s, s.C, "group", "promote", "db", "--force", "--dry-run", "-o", "json"); r.Code != 0 || !strings.Contains(r.Out, "are lost") {
		t.Fatal(r)
	}
	var out control.PromoteView
	r := own(s, s.C, "group", "promote", "db", "--force", "-o", "json")
	if r.Code != 0 || json.Unmarshal([]byte(r.Out), &out) != nil || out.Epoch != 4 || out.LostWrites != nil {
		t.Fatal(r)
	}
	v := s.Prefix(load, "the promoted image", s.Exports(s.C, g))
	t.Logf("%+v; of the load: %+v", out, v)
	if err := load.Forget(s.Exports(s.C, g)); err != nil {
		t.Fatal(err)
	}
	onWith := func(p *site.Process, what string) {
		t.Helper()
		goOn(s, load, p, g)
		s.Equal(load, what, s.Exports(s.C, g))
	}
	onWith(s.C, "written at the promoted node")

	s.A.Start()
	if r := own(s, s.A, "group", "show", "db", "-o", "json"); r.Code != 0 || !strings.Contains(r.Out, `"superseded"`) {
		t.Fatal(r)
	}
	if r := s.Run("qemu-io", "-f", "raw", "-c", "read 0 4k", "nbd+unix:///"+g.Volumes[0]+"?socket="+s.A.Socket); r.Code == 0 {
		t.Fatal("the old primary serves hosts")
	}
	onWith(s.G, "written through the gateway, which the old primary has led on")
	s.C.Kill()
	s.C.Start()
	s.Equal(load, "promoted node after its death", s.Exports(s.C, g))

	s.Manager.Start()
	s.WaitFor(20*time.Second, "adopted", func() bool { v := s.Group("db"); return v.Primary == "c" && v.State != nil })
	if v := s.Group("db"); v.Secondary != "a" || v.Epoch != 4 || *v.State != "suspended" || v.Promoted == nil || v.Pairs[0].Primary != "c/"+g.Volumes[0] {
		t.Fatalf("%+v", v)
	}
	if text := s.Do("vvol", "show", g.Volumes[0], "-o", "json"); !strings.Contains(text, `"c/`+g.Volumes[0]) {
		t.Fatal(text)
	}
	if text := s.Do("events"); !strings.Contains(text, "promoted") {
		t.Fatal(text)
	}
	if text := s.Do("status"); !strings.Contains(text, "promoted in epoch 4") {
		t.Fatal(text)
	}
	for _, refused := range []string{"group resume db", "group verify db", "pair remove db c/" + g.Volumes[0]} {
		if r := s.CLI(refused); r.Code != 4 {
			t.Error(r)
		}
	}
	s.Do("group", "promote", "db", "--force") // repeated: done
	s.A.Kill()
	s.A.Start()
	time.Sleep(time.Second)
	if r := own(s, s.A, "group", "show", "db", "-o", "json"); !strings.Contains(r.Out, `"superseded"`) {
		t.Fatal(r)
	}
	onWith(s.G, "written when the manager was back")
}

// Of a synchronous group everything is there that was answered.
func TestPromoteSync(t *testing.T) {
	t.Parallel()
	seed := site.Seed(t)
	s := site.Start(t, nil)
	g := syncPair(s, "continue")
	load := proof.New(s.Disks(s.A, g), proof.Options{Seed: seed, Depth: 16, MaxBlocks: 8, FlushEvery: 20, Tolerate: true, Span: 48 * mib})
	disaster(s, load, 700*time.Millisecond)
	if r := own(s, s.C, "group", "promote", "db", "--force"); r.Code != 0 {
		t.Fatal(r)
	}
	v, err := load.CheckPrefix(s.Exports(s.C, g))
	if err != nil || !v.OK || v.Behind != 0 || !v.Flushed || load.Stats().Writes == 0 {
		t.Fatalf("%+v %v", v, err)
	}
	if err := load.Forget(s.Exports(s.C, g)); err != nil {
		t.Fatal(err)
	}
	goOn(s, load, s.C, g)
	s.C.Kill()
	s.C.Start()
	s.Equal(load, "after the death of the promoted node", s.Exports(s.C, g))
}

// The secondary is killed at each point of its promotion before that stands, one after the other, and at one behind it: the
// command is given again, or not needed any more.
func TestPromoteKillPoints(t *testing.T) {
	t.Parallel()
	seed := site.Seed(t)
	rnd := rand.New(rand.NewPCG(seed, 9))
	s := site.Start(t, nil)
	g := s.Pair("db", 2, 32*mib, "64MiB")
	load := proof.New(s.Disks(s.A, g), proof.Options{Seed: seed, Depth: 16, MaxBlocks: 8, FlushEvery: 20, Tolerate: true, Span: 16 * mib})
	disaster(s, load, 500*time.Millisecond)
	type point struct{ step, edge string }
	var before, behind []point
	for _, step := range control.PromoteSteps() {
		for _, edge := range []string{"before", "after"} {
			stands := len(behind) > 0 || step == control.StepPromoteOpen && edge == "after"
			if stands {
				behind = append(behind, point{step, edge})
			} else {
				before = append(before, point{step, edge})
			}
		}
	}
	s.C.Stop()
	for _, at := range append(before, behind[rnd.IntN(len(behind))]) {
		s.C.Start(site.KillAt(at.step, at.edge)...)
		if r := own(s, s.C, "group", "promote", "db", "--force"); r.Code == 0 {
			t.Fatalf("not killed at %v: %v", at, r)
		}
		s.WaitFor(10*time.Second, "killed", func() bool { return !s.C.Alive() })
		if !strings.Contains(s.C.LatestLog(), "kill point "+at.step) {
			t.Fatalf("not killed at %v", at)
		}
		t.Log(at)
	}
	s.C.Start()
	if r := own(s, s.C, "group", "show", "db", "-o", "json"); !strings.Contains(r.Out, `"promoted": {`) {
		t.Fatal(r)
	}
	if r := own(s, s.C, "group", "promote", "db", "--force"); r.Code != 0 {
		t.Fatal(r)
	}
	s.Prefix(load, "the promoted image", s.Exports(s.C, g))
	if err := load.Forget(s.Exports(s.C, g)); err != nil {
		t.Fatal(err)
	}
	goOn(s, load, s.C, g)
	s.Equal(load, "written at the promoted node", s.Exports(s.C, g))
}
