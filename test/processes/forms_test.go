package processes

import (
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"os"
	"strings"
	"testing"
	"time"

	"gantline/internal/control"
	"gantline/internal/proof"
	"gantline/test/site"
)

// form is one way to copy a group.
type form struct{ mode, log, transfer, retain string }

func (f form) String() string {
	return strings.Join([]string{f.mode, f.log, f.transfer, f.retain}, "-")
}

// refused is what the refusal of a form says; "" if it works.
func (f form) refused() string {
	switch {
	case f.mode == control.ModeSync && f.log == control.LogQueue:
		return "use journal" // what is sent ahead of a flush must outlive the primary's process
	case f.mode == control.ModeSync && f.transfer == control.TransferPull:
		return "use push" // hosts would wait for the secondary to ask
	}
	return ""
}

func (f form) flags() []string {
	flags := []string{"--mode", f.mode, "--transfer", f.transfer, "--retain", f.retain}
	if f.mode == control.ModePeriodic {
		flags = append(flags, "--interval", "1s")
	}
	return flags
}

func allForms() (list []form) {
	for _, mode := range []string{control.ModeAsync, control.ModeSync, control.ModePeriodic} {
		for _, log := range []string{control.LogJournal, control.LogQueue} {
			for _, transfer := range []string{control.TransferPush, control.TransferPull} {
				for _, retain := range []string{control.RetainApplied, control.RetainTransferred} {
					list = append(list, form{mode, log, transfer, retain})
				}
			}
		}
	}
	return list
}

// formGroup is a group of one form under its own load.
type formGroup struct {
	form
	made    *site.Made
	load    *proof.Load
	running *site.Running
}

// Every form of remote copy at once, one group of each in one system: under load each one outlives an outage and a
// kill -9 of either side, its secondary is a prefix when both sides are gone, and it comes back to paired with equal
// images, having sent nothing twice but what was on its way or in doubt. Forms that make no sense are refused. GANTLINE_FORM picks those that contain it.
func TestAllForms(t *testing.T) {
	t.Parallel()
	seed := site.Seed(t)
	rnd := rand.New(rand.NewPCG(seed, 9))
	s := site.Start(t, nil)
	var groups []*formGroup
	for i, f := range allForms() {
		if !strings.Contains(f.String(), os.Getenv("GANTLINE_FORM")) {
			continue
		}
		if why := f.refused(); why != "" {
			r := s.CLI(append([]string{"group", "create", "refused", "--primary", "a", "--secondary", "c", "--log", f.log}, f.flags()...)...)
			if r.Code != 2 && r.Code != 4 || !strings.Contains(r.Err, why) {
				t.Errorf("%s: %v, wanted exit 2 and %q", f, r, why)
			}
			continue
		}
		g := &formGroup{form: f}
		pair, journal := s.Pair, "24MiB"
		if f.log == control.LogQueue {
			pair, journal = s.PairOnQueue, "80MiB" // whatever is in doubt after a death is one step
		}
		g.made = pair(fmt.Sprintf("f%d", i), 2, 8*mib, journal, f.flags()...)
		g.load = proof.New(s.FirmDisks(s.G, g.made), proof.Options{Seed: seed + uint64(i), Depth: 4, ReadPercent: 10, FlushEvery: 10,
			Rate: 30, Span: 2 * mib})
		g.running = site.Run(g.load)
		groups = append(groups, g)
	}
	all := func(when string) {
		t.Helper()
		before := map[*formGroup]int64{}
		for _, g := range groups {
			before[g] = g.load.Stats().Writes
		}
		for _, g := range groups {
			s.WaitFor(40*time.Second, fmt.Sprintf("%s: hosts go on %s", g, when), func() bool { return g.load.Stats().Writes > before[g]+20 })
			paired := func() bool { return s.State(g.made.Name) == "paired" && linkUp(s, g.made.Name) }
			if !site.Poll(60*time.Second, paired) {
				is, _ := json.Marshal(s.Group(g.made.Name))
				t.Fatalf("%s: not paired %s: %s", g, when, is)
			}
		}
	}
	pause := func() { time.Sleep(time.Duration(200+rnd.IntN(1000)) * time.Millisecond) }

	all("at the start")
	pause()
	s.C.Kill() // an outage of the secondary
	time.Sleep(4 * time.Second)
	s.C.Start()
	all("after an outage of the secondary")
	s.Do("link", "set", "a:c", "--connections", "3") // of every stream, from now on
	all("over three connections each")
	pause()
	s.C.Kill()
	s.C.Start()
	all("after the secondary's death")
	pause()
	s.A.Kill()
	s.A.Start()
	all("after the primary's death")
	pause()
	s.A.Kill() // the source site is gone
	time.Sleep(time.Duration(rnd.IntN(100)) * time.Millisecond)
	s.C.Kill()
	s.C.StartIsolated()
	time.Sleep(2 * time.Second)
	for _, g := range groups {
		v := s.Prefix(g.load, g.String()+": exports with both sides killed", s.Exports(s.C, g.made))
		if g.mode == control.ModeSync && !v.Equal {
			t.Errorf("%s: the secondary lacks %d answered writes", g, v.Behind)
		}
	}
	s.C.Stop()
	for _, g := range groups {
		s.Prefix(g.load, g.String()+": files with both sides stopped", s.Files(s.C, g.made))
	}
	s.C.Start()
	s.A.Start()
	all("after an outage of the primary")

	for _, g := range groups {
		if err := g.running.Stop(); err != nil {
			t.Errorf("%s: the host saw an error: %v", g, err)
		}
	}
	for _, g := range groups {
		s.AwaitInStep(g.made.Name, 30*time.Second)
		s.Equal(g.load, g.String()+": secondary", s.Exports(s.C, g.made))
		s.Equal(g.load, g.String()+": primary", s.Exports(s.A, g.made))
		g.wanFits(t, s, 5)
	}
}

// wanFits bounds what went over the WAN (I4): every write once, what was on its way at the death of an end again, and of
// what is sent by marks, each marked block. A step that a death has cut short is sent again whole, as are the regions in doubt of a
// queue whose primary died: at most the part of the volumes that the load uses, for each death.
func (g *formGroup) wanFits(t *testing.T, s *site.Site, deaths int64) {
	t.Helper()
	const mark = 64 << 10
	used := int64(2 * 2 * mib)
	if g.log == control.LogQueue {
		used = 2 * 8 * mib // its intents are coarse, and run ahead of a sequential writer
	}
	st, sent := g.load.Stats(), s.Group(g.made.Name).WANBytesSent
	limit := st.Bytes*102/100 + mib + deaths*st.Bytes/16
	if g.mode == control.ModePeriodic {
		limit += st.Writes * 2 * mark
	}
	if g.mode != control.ModeAsync || g.log == control.LogQueue {
		limit += deaths * used
	}
	if sent == nil || *sent > limit {
		t.Errorf("%s: %v bytes over the WAN for %d bytes of hosts, wanted at most %d", g, deref(sent), st.Bytes, limit)
	} else {
		t.Logf("%s: %d bytes over the WAN for %d bytes of hosts", g, *sent, st.Bytes)
	}
}
