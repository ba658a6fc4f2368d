package processes

import (
	"encoding/json"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"gantline/internal/control"
	"gantline/internal/proof"
	"gantline/test/site"
)

// A verify beside a load finds nothing, whoever dies meanwhile: it ends with what is true, or says that it could not. Bytes
// that were changed in the secondary's file are found exactly, and repaired.
func TestVerify(t *testing.T) {
	t.Parallel()
	seed := site.Seed(t)
	rnd := rand.New(rand.NewPCG(seed, 9))
	s := site.Start(t, nil)
	g := s.Pair("db", 2, 64*mib, "64MiB")
	load := proof.New(s.FirmDisks(s.G, g), proof.Options{Seed: seed, Depth: 16, ReadPercent: 20, FlushEvery: 30, Rate: 2000})
	running := site.Run(load)
	verify := func(flags string, codes ...int) control.VerifyView {
		t.Helper()
		r := s.CLI(strings.Fields("group verify db -o json " + flags)...)
		for _, c := range codes {
			if r.Code != c {
				continue
			}
			var v control.VerifyView
			if r.Out != "" {
				if err := json.Unmarshal([]byte(r.Out), &v); err != nil {
					t.Fatal(r, err)
				}
			}
			return v
		}
		t.Fatalf("%v, wanted exit %v", r, codes)
		return control.VerifyView{}
	}
	if v := verify("", 0); v.ComparedBytes != 128*mib || len(v.Different) != 0 || v.Cut == nil {
		t.Fatalf("%+v", v)
	}
	for _, victim := range []*site.Process{s.C, s.A, s.Manager, s.C} {
		done := make(chan control.VerifyView, 1)
		s.WaitFor(30*time.Second, "paired", func() bool { return s.State("db") == "paired" && linkUp(s, "db") })
		go func() {
			defer close(done)
			r := s.CLI("group", "verify", "db", "-o", "json")
			var v control.VerifyView
			if err := json.Unmarshal([]byte(r.Out), &v); err != nil || r.Code != 0 && r.Code != 1 || len(v.Different) > 0 {
				if r.Code != 1 && r.Code != 5 && r.Code != 4 {
					t.Errorf("%v", r)
				}
			}
			t.Logf("exit %d with %s killed, %d bytes compared %s", r.Code, victim.Name, v.ComparedBytes, r.Err)
			done <- v
		}()
		time.Sleep(time.Duration(50+rnd.IntN(200)) * time.Millisecond)
		victim.Kill()
		time.Sleep(time.Duration(rnd.IntN(500)) * time.Millisecond)
		victim.Start()
		if v := <-done; len(v.Different) > 0 {
			t.Fatalf("false alarm with %s killed: %+v", victim.Name, v)
		}
	}
	if err := running.Stop(); err != nil {
		t.Errorf("the host saw an error: %v", err)
	}
	s.AwaitInStep("db", 30*time.Second)
	time.Sleep(500 * time.Millisecond) // what is applied is on its way to the files
	f, err := os.OpenFile(filepath.Join(s.C.Dir, "volumes", g.Volumes[1]+".raw"), os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if _, err := f.WriteAt([]byte("not what the host wrote"), 33*mib+5); err != nil {
		t.Fatal(err)
	}
	v := verify("", 6)
	if want := (control.VerifyExtent{Volume: "a/" + g.Volumes[1], Offset: 33 * mib, Length: 65536}); len(v.Different) != 1 || v.Different[0] != want {
		t.Fatalf("%+v, wanted %+v", v, want)
	}
	if v := verify("--repair", 0); len(v.Different) != 1 || v.RepairedBytes != 65536 {
		t.Fatalf("%+v", v)
	}
	verify("", 0)
	s.Equal(load, "secondary", s.Exports(s.C, g))
}
