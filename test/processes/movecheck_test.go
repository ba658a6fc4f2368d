package processes

import (
	"encoding/json"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"gantline/internal/control"
	"gantline/internal/proof"
	"gantline/test/site"
)

// changeByte changes a byte of a volume's file behind its node's back.
func changeByte(t *testing.T, file string, off int64) {
	t.Helper()
	f, err := os.OpenFile(file, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	var b [1]byte
	if _, err := f.ReadAt(b[:], off); err != nil {
		t.Fatal(err)
	}
	b[0] ^= 1
	if _, err := f.WriteAt(b[:], off); err != nil {
		t.Fatal(err)
	}
}

// A commit compares source and target, beside a load and with each of them dying in it: nothing differs. A byte of the source's file that
// was changed, and one of the target's, keep the source, until a host has written what is right, and the rest is accepted.
func TestCommitCompares(t *testing.T) {
	t.Parallel()
	seed := site.Seed(t)
	die := site.KillAt(control.PointCompare, "before")
	s := site.Start(t, map[string][]string{"a": die, "b": die, "manager": die})
	m := &move{Site: s, t: t, g: s.Pair("db", 2, 64*mib, "64MiB")}
	m.dirty(s.Dial(s.G, m.g.Volumes[0]))
	m.load = site.Run(proof.New(s.Disks(s.G, m.g), proof.Options{Seed: seed, Depth: 8, ReadPercent: 20, FlushEvery: 30, Rate: 400, Span: 32 * mib}))
	time.Sleep(300 * time.Millisecond)
	s.Do("migrate", "start", "db", "--to", "b")
	source, target := s.Device("a/"+m.g.Volumes[0]), s.Device("b/"+m.g.Volumes[0])
	changeByte(t, target, 50*mib+5)
	changeByte(t, target, 60*mib) // a hole
	s.Do("migrate", "commit", "db", "--no-wait")
	for _, p := range []*site.Process{s.A, s.B, s.Manager} { // each in the midst of it
		s.WaitFor(30*time.Second, p.Name+" kills itself", func() bool { return !p.Alive() })
		if !p.WasKilled() {
			t.Fatal(p.Ended())
		}
		if p == s.A {
			s.WaitFor(10*time.Second, "the commit says what it waits for", func() bool {
				v := s.Move("db")
				return v.BlockedOn != nil && strings.Contains(*v.BlockedOn, "comparing source and target: source a")
			})
		}
		if p == s.B { // a is back by now, and has written what its log has once more
			time.Sleep(500 * time.Millisecond)
			changeByte(t, source, 41*mib)
			changeByte(t, source, 45*mib+70000)
		}
		p.Start()
	}
	commit := func(flags ...string) (control.MigrationView, site.Result) {
		t.Helper()
		r := s.CLI(append([]string{"migrate", "commit", "db", "-o", "json"}, flags...)...)
		var v control.MigrationView
		if err := json.Unmarshal([]byte(r.Out), &v); err != nil || v.Check == nil {
			t.Fatal(r, err)
		}
		return v, r
	}
	differs := func(v control.MigrationView, offsets ...int64) {
		t.Helper()
		var want []control.VerifyExtent
		for _, off := range offsets {
			want = append(want, control.VerifyExtent{Volume: "b/" + m.g.Volumes[0], Offset: off, Length: 65536})
		}
		if v.Phase != "filled" || v.Check.State != control.CheckDifferent || !slices.Equal(v.Check.Different, want) {
			t.Fatalf("%s: %+v, want %+v", v.Phase, v.Check, want)
		}
	}
	s.WaitFor(30*time.Second, "a result", func() bool { v := s.Move("db"); return v.Check.Failed() })
	differs(s.Move("db"), 41*mib, 45*mib+65536, 50*mib, 60*mib)
	// What the source had is what the host wrote: it does so again, where the target is wrong.
	right := make([]byte, 65536)
	for i := range right {
		right[i] = 50
	}
	if err := site.Write(s.Dial(s.G, m.g.Volumes[0]), 50*mib, right, 10*time.Second); err != nil {
		t.Fatal(err)
	}
	if err := site.Write(s.Dial(s.G, m.g.Volumes[0]), 60*mib, make([]byte, 65536), 10*time.Second); err != nil {
		t.Fatal(err)
	}
	v, r := commit()
	if differs(v, 41*mib, 45*mib+65536); r.Code != 6 || !strings.Contains(r.Err, "65536 bytes at") || !strings.Contains(r.Err, "--accept-differences") {
		t.Fatal(r)
	}
	if err := m.load.Stop(); err != nil {
		t.Errorf("the host saw an error: %v", err)
	}
	if v, r = commit("--accept-differences"); r.Code != 0 || v.Phase != "committed" || !v.Check.Accepted || v.Check.Places != 2 {
		t.Fatalf("%v, %+v", r, v.Check)
	}
	s.AwaitInStep("db", 30*time.Second)
	m.Equal(m.load.Load, "secondary", site.Spans(s.Exports(s.C, m.g), 32*mib))
	m.Equal(m.load.Load, "primary", site.Spans(s.Exports(s.B, m.g), 32*mib))
}
