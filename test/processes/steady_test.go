package processes

import (
	"math/rand/v2"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"gantline/internal/proof"
	"gantline/test/site"
)

// Every process is killed in steady state, alone and together with others, and they come back in any order. Hosts see no
// error but that of their own gateway's death.
func TestKilledInSteadyState(t *testing.T) {
	t.Parallel()
	seed := site.Seed(t)
	rnd := rand.New(rand.NewPCG(seed, 5))
	s := site.Start(t, nil)
	g := s.Pair("db", 2, 64*mib, "64MiB")
	load := proof.New(s.FirmDisks(s.G, g), proof.Options{Seed: seed, Depth: 16, ReadPercent: 20, FlushEvery: 30, Rate: 1000, Span: 32 * mib})
	running := site.Run(load)
	groups := [][]*site.Process{{s.C}, {s.A}, {s.G}, {s.Manager}, {s.A, s.G}, {s.A, s.C}, {s.Manager, s.G, s.A, s.C, s.B}}
	if testing.Short() {
		groups = groups[4:]
	}
	deaths := 0 // of an end of the link
	for range max(1, site.Campaign()) {
		for _, procs := range groups {
			names := ""
			for _, p := range procs {
				names += " " + p.Name
				p.Kill()
				if p == s.A || p == s.C {
					deaths++
				}
			}
			rnd.Shuffle(len(procs), func(i, j int) { procs[i], procs[j] = procs[j], procs[i] })
			for _, p := range procs {
				time.Sleep(time.Duration(rnd.IntN(200)) * time.Millisecond)
				p.Start()
			}
			writes := load.Stats().Writes
			s.WaitFor(20*time.Second, "hosts go on after the death of"+names, func() bool { return load.Stats().Writes > writes+200 })
			s.WaitFor(20*time.Second, "group paired after the death of"+names, func() bool { return s.State("db") == "paired" && linkUp(s, "db") })
		}
	}
	if err := running.Stop(); err != nil {
		t.Errorf("the host saw an error: %v", err)
	}
	s.AwaitInStep("db", 30*time.Second)
	s.Equal(load, "secondary", s.Exports(s.C, g))
	s.Equal(load, "primary", s.Exports(s.A, g))
	st := load.Stats()
	wanFits(t, s, st.Bytes, deaths)
	t.Logf("%+v", st)
	// In any order, all stop as they should.
	for _, i := range rnd.Perm(len(s.All())) {
		s.All()[i].Stop()
	}
	s.Equal(load, "files of the stopped primary", s.Files(s.A, g))
	s.Equal(load, "files of the stopped secondary", s.Files(s.C, g))
}

// With the manager away hosts are served, copying goes on, and nodes and gateway restart from their own disks. A process
// that was never registered waits and says so.
func TestManagerAway(t *testing.T) {
	t.Parallel()
	seed := site.Seed(t)
	s := site.Start(t, nil)
	g := s.Pair("db", 2, 64*mib, "64MiB")
	load := proof.New(s.FirmDisks(s.G, g), proof.Options{Seed: seed, Depth: 8, FlushEvery: 30, Rate: 500, Span: 32 * mib})
	running := site.Run(load)
	s.Manager.Stop()
	if r := s.CLI("group", "show", "db"); r.Code != 5 {
		t.Errorf("with the manager away: %v, wanted exit 5", r)
	}
	for _, node := range []*site.Process{s.A, s.C} { // nodes answer for themselves
		r := s.CLI("--socket", filepath.Join(node.Dir, "control.sock"), "group", "show", "db", "-o", "json")
		if r.Code != 0 || !strings.Contains(r.Out, `"primary": "a"`) || !strings.Contains(r.Out, `"link": "up"`) {
			t.Errorf("own socket of %s: %v", node.Name, r)
		}
	}
	for _, p := range []*site.Process{s.G, s.A, s.C, s.B} {
		writes := load.Stats().Writes
		p.Restart()
		s.WaitFor(20*time.Second, "hosts go on after the restart of "+p.Name, func() bool { return load.Stats().Writes > writes+100 })
	}
	s.G.Stop()
	s.A.Stop()
	s.G.Start()
	s.A.Start()
	writes := load.Stats().Writes
	s.WaitFor(20*time.Second, "hosts go on after orderly restarts", func() bool { return load.Stats().Writes > writes+100 })
	if err := running.Stop(); err != nil {
		t.Errorf("the host saw an error: %v", err)
	}
	s.WaitFor(10*time.Second, "copying goes on without the manager", func() bool {
		v, err := load.CheckPrefix(s.Exports(s.C, g))
		return err == nil && v.OK && v.Equal
	})
	s.Manager.Start()
	s.WaitFor(10*time.Second, "the manager knows all again", func() bool { return s.InStep("db") })
	// Whoever was up is up, without having been restarted.
	s.WaitFor(10*time.Second, "gateway known as up", func() bool {
		var v struct{ State string }
		return s.Get("/v1/gateways/g", &v) == nil && v.State == "up"
	})
}
