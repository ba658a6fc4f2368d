package processes

import (
	"errors"
	"math/rand/v2"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"gantline/internal/block"
	"gantline/internal/control"
	"gantline/internal/proof"
	"gantline/test/site"
)

// stubborn is a host that sends what has failed again, as a multipath does.
type stubborn struct{ block.Target }

// Submit sends each request by itself.
func (s stubborn) Submit(reqs []*block.Request) {
	for _, r := range reqs {
		go func() {
			for end := time.Now().Add(30 * time.Second); ; time.Sleep(10 * time.Millisecond) {
				answer := make(answered, 1)
				again := *r
				again.Completer = answer
				s.Target.Submit([]*block.Request{&again})
				if err := <-answer; !errors.Is(err, block.ErrIO) || time.Now().After(end) {
					r.Finish(err)
					return
				}
			}
		}()
	}
}

type answered chan error

func (a answered) Complete(r *block.Request) { a <- r.Err }

// Two gateways, each with a volume of the group under load, are switched one after the other, under each policy; the manager and the
// second gateway die in the middle. The move ends, hosts that repeat what has failed see no other error, and all copies are right.
func TestOneByOne(t *testing.T) {
	t.Parallel()
	seed := site.Seed(t)
	rnd := rand.New(rand.NewPCG(seed, 31))
	policies := []string{"finish", "hold", "error"}
	rnd.Shuffle(len(policies), func(i, j int) { policies[i], policies[j] = policies[j], policies[i] })
	points := []killPoint{{"manager", control.PointPath, "before"}, {"manager", control.PointPath, "after"}, {"g2", "switch", "before"}, {"g2", "switch", "after"}}
	rnd.Shuffle(len(points), func(i, j int) { points[i], points[j] = points[j], points[i] })
	if site.Campaign() == 0 {
		points = points[:2]
	}
	for i, k := range points {
		t.Run(k.String()+"-"+policies[i%3], func(t *testing.T) {
			t.Parallel()
			oneByOne(t, k, policies[i%3], seed)
		})
	}
}

func oneByOne(t *testing.T, k killPoint, policy string, seed uint64) {
	s := site.Start(t, map[string][]string{k.process: site.KillAt(k.step, k.edge)})
	g2 := s.Extra("gateway", "g2", "--site", "local")
	g2.Socket = filepath.Join(s.Dir, "g2.sock")
	env := []string{}
	died := s.Manager
	if k.process == "g2" {
		env, died = site.KillAt(k.step, k.edge), g2
	}
	g2.Start(env...)
	g := s.Pair("db", 2, 64*mib, "64MiB")
	disks := []proof.Disk{s.FirmDisks(s.G, g)[0], s.FirmDisks(g2, g)[1]}
	for i := range disks {
		disks[i].Target = stubborn{disks[i].Target}
	}
	load := site.Run(proof.New(disks, proof.Options{Seed: seed, Depth: 16, MaxBlocks: 8, FlushEvery: 30, Rate: 600, Span: 32 * mib}))
	time.Sleep(200 * time.Millisecond)
	if r := s.CLI("migrate", "start", "db", "--to", "b", "--paths", "one-by-one", "--in-flight", policy, "--no-wait"); r.Code != 0 {
		t.Fatal(r)
	}
	s.WaitFor(30*time.Second, died.Name+" kills itself", func() bool { return !died.Alive() })
	if !died.WasKilled() || !strings.Contains(died.Log(), "kill point "+k.step) {
		t.Fatalf("%s ended otherwise: %s", died.Name, died.Ended())
	}
	time.Sleep(300 * time.Millisecond)
	died.Start()
	v := s.AwaitPhase("db", 60*time.Second, "filled", "failed", "aborted")
	if v.Phase != "filled" {
		t.Fatalf("the move %s: %s", v.Phase, v.Error)
	}
	for _, p := range v.Gateways {
		if p.State != control.PathConfirmed {
			t.Errorf("gateway %s: %s", p.Gateway, p.State)
		}
	}
	if len(v.Gateways) != 2 {
		t.Errorf("%d gateways", len(v.Gateways))
	}
	time.Sleep(200 * time.Millisecond)
	if err := load.Stop(); err != nil {
		t.Errorf("the host saw an error: %v", err)
	}
	st := load.Stats()
	t.Logf("%s: %d writes, longest gap %v", policy, st.Writes, st.LongestGap)
	s.AwaitInStep("db", 30*time.Second)
	s.Equal(load.Load, "secondary", s.Exports(s.C, g))
	s.Equal(load.Load, "primary", s.Exports(s.B, g))
}
