package processes

import (
	"bytes"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"gantline/internal/control"
	"gantline/internal/proof"
	"gantline/test/site"
)

// A volume of a live group becomes larger under a load in every form of copying, and again with a process killed at each
// point of the command, which is then repeated. Hosts see no error; clients that connect see the new size, at the gateway and
// at both nodes; what is written behind the old end arrives.
func TestResize(t *testing.T) {
	t.Parallel()
	seed := site.Seed(t)
	type row struct {
		name     string
		queue    bool
		flags    []string
		suspend  bool   // by command, while it grows
		process  string // killed
		at, edge string
	}
	rows := []row{
		{name: "async"},
		{name: "sync", flags: []string{"--mode", "sync"}},
		{name: "pull", flags: []string{"--transfer", "pull"}},
		{name: "periodic", flags: []string{"--mode", "periodic", "--interval", "300ms"}},
		{name: "queue", queue: true},
		{name: "suspended", suspend: true},
	}
	for _, process := range []string{"a", "c", "manager"} {
		for _, at := range []string{control.PointGrow, control.PointResize} {
			for _, edge := range []string{"before", "after"} {
				r := row{name: process + "-" + at + "-" + edge, process: process, at: at, edge: edge}
				rows = append(rows, r)
				if site.Campaign() > 0 {
					r.queue, r.name = true, r.name+"-queue"
					rows = append(rows, r)
				}
			}
		}
	}
	if testing.Short() {
		rows = []row{rows[0], rows[3], rows[4], rows[9], rows[12]}
	}
	for _, r := range rows {
		t.Run(r.name, func(t *testing.T) {
			t.Parallel()
			env := map[string][]string{}
			if r.process != "" {
				env[r.process] = site.KillAt(r.at, r.edge)
			}
			s := site.Start(t, env)
			const size, larger int64 = 48 * mib, 80*mib + 512
			pair := s.Pair
			if r.queue {
				pair = s.PairOnQueue
			}
			g := pair("db", 2, size, "256MiB", r.flags...)
			load := proof.New(s.FirmDisks(s.G, g), proof.Options{Seed: seed, Depth: 8, MaxBlocks: 8, FlushEvery: 30, Rate: 500, Span: 16 * mib})
			running := site.Run(load)
			time.Sleep(200 * time.Millisecond)
			if r.suspend {
				s.Do("group", "suspend", "db")
			}
			v := g.Volumes[0]
			resizeThrough(t, s, "a/"+v, larger, r.process)
			uri := func(p *site.Process) string { return "nbd+unix:///" + v + "?socket=" + p.Socket }
			if r.process == "manager" { // one that has just come back does not know its gateways yet
				s.WaitFor(20*time.Second, "the gateway has the new size", func() bool {
					return strings.TrimSpace(s.Tool("nbdinfo", "--size", uri(s.G))) == strconv.FormatInt(larger, 10)
				})
			}
			inspect(t, s, uri(s.G), larger)
			inspect(t, s, uri(s.A), larger)
			if got := strings.TrimSpace(s.Tool("nbdinfo", "--size", uri(s.C))); got != strconv.FormatInt(larger, 10) {
				t.Errorf("the secondary's export has %s bytes", got)
			}
			if out := s.Tool("qemu-img", "info", "--output=json", "-f", "raw", uri(s.G)); !strings.Contains(out, strconv.FormatInt(larger, 10)) {
				t.Errorf("qemu-img at the gateway: %s", out)
			}
			tail := bytes.Repeat([]byte{0x5a}, 1<<20+512)
			d := s.Dial(s.G, v)
			if err := site.Write(d, size-512, tail, 20*time.Second); err != nil {
				t.Fatalf("a write across the old end: %v", err)
			}
			if err := site.Write(d, larger-512, tail[:512], 20*time.Second); err != nil {
				t.Fatalf("a write at the new end: %v", err)
			}
			if err := site.Write(d, larger, tail[:512], 20*time.Second); err == nil {
				t.Error("a write behind the new end was taken")
			}
			if r.suspend {
				s.Do("group", "resume", "db")
			}
			if err := running.Stop(); err != nil {
				t.Errorf("the host saw an error: %v", err)
			}
			s.AwaitInStep("db", 60*time.Second)
			s.Tool("qemu-img", "compare", "-f", "raw", "-F", "raw", uri(s.A), uri(s.C))
			s.Equal(load, "secondary", site.Spans(s.Exports(s.C, g), 16*mib))
			sizesAre(t, s, v, larger)
			// All of it is what a start finds, too.
			s.A.Restart()
			s.C.Restart()
			s.AwaitInStep("db", 60*time.Second)
			s.Tool("qemu-img", "compare", "-f", "raw", "-F", "raw", uri(s.A), uri(s.C))
			if got, err := site.Read(s.Dial(s.C, v), size-512, int64(len(tail))); err != nil || !bytes.Equal(got, tail) {
				t.Errorf("what was written across the old end is not at the secondary: %v", err)
			}
		})
	}
}

// resizeThrough gives the command, starts what it has killed, and repeats it.
func resizeThrough(t *testing.T, s *site.Site, volume string, size int64, process string) {
	t.Helper()
	words := []string{"volume", "resize", volume, "--size", fmt.Sprint(size)}
	if process != "" {
		p := s.Process(process)
		r := s.CLI(words...)
		s.WaitFor(20*time.Second, process+" kills itself", func() bool { return !p.Alive() })
		if !p.WasKilled() {
			t.Fatalf("%s was not killed: %s", process, p.Ended())
		}
		t.Logf("first try: %v", r)
		p.Start()
	}
	for try := 0; ; try++ {
		r := s.CLI(words...)
		if r.Code == 0 {
			break
		}
		if try > 100 || r.Code != 5 && process == "" {
			t.Fatal(r)
		}
		time.Sleep(200 * time.Millisecond)
	}
	s.Do(words...) // repeated, it changes nothing
}

// sizesAre looks at all that names the size.
func sizesAre(t *testing.T, s *site.Site, v string, size int64) {
	t.Helper()
	for _, node := range []string{"a", "c"} {
		var vol control.VolumeView
		if err := json.Unmarshal([]byte(s.Do("volume", "show", node+"/"+v, "-o", "json")), &vol); err != nil || vol.Size != size {
			t.Errorf("volume show %s/%s: %d bytes, %v", node, v, vol.Size, err)
		}
		if st, err := os.Stat(filepath.Join(s.Process(node).Dir, "volumes", v+".raw")); err != nil || st.Size() != size {
			t.Errorf("the file at %s: %v, %v", node, st, err)
		}
	}
	var vv control.VvolView
	if err := s.Get("/v1/vvols/"+v, &vv); err != nil || vv.Size != size {
		t.Errorf("vvol show: %d bytes, %v", vv.Size, err)
	}
	for _, p := range s.Group("db").Pairs {
		if p.Primary == "a/"+v && p.Size != size {
			t.Errorf("group show: the pair has %d bytes", p.Size)
		}
	}
}

// A lone volume and its file grow too. What cannot be is refused, and changes nothing.
func TestResizeRefusedAndLone(t *testing.T) {
	t.Parallel()
	s := site.Start(t, nil)
	g := s.Pair("db", 1, 32*mib, "64MiB")
	v := g.Volumes[0]
	s.Do("volume", "create", "a/lone", "--size", "32MiB")
	for _, r := range []struct {
		words string
		code  int
		says  string
	}{
		{"volume resize a/" + v + " --size 16MiB", 4, "cannot be made smaller"},
		{"volume resize a/" + v + " --size 33554433", 2, "multiple"},
		{"volume resize a/" + v, 2, "size"},
		{"volume resize a/none --size 64MiB", 3, "does not exist"},
		{"volume resize c/" + v + " --size 64MiB --dry-run", 0, "volume.resize"},
		{"volume resize a/lone --size 1MiB", 4, "cannot be made smaller"},
		{"volume resize a/lone --size 64MiB", 0, "64 MiB"},
	} {
		if got := s.CLI(r.words); got.Code != r.code || !strings.Contains(got.Out+got.Err, r.says) {
			t.Errorf("want exit %d with %q: %v", r.code, r.says, got)
		}
	}
	uri := "nbd+unix:///lone?socket=" + s.A.Socket
	inspect(t, s, uri, 64*mib)
	s.Tool("qemu-io", "-f", "raw", "-c", "read -P 0 32M 32M", "-c", "write -P 7 63M 1M", "-c", "flush", "-c", "read -P 7 63M 1M", uri)
	s.A.Restart()
	s.Tool("qemu-io", "-f", "raw", "-c", "read -P 7 63M 1M", uri)

	// With its secondary away a volume does not grow at all.
	s.C.Kill()
	if r := s.CLI("volume", "resize", "a/"+v, "--size", "64MiB"); r.Code != 5 {
		t.Errorf("with the secondary away: %v", r)
	}
	inspect(t, s, "nbd+unix:///"+v+"?socket="+s.A.Socket, 32*mib)
	s.C.Start()
	s.Do("volume", "resize", "c/"+v, "--size", "64MiB") // either end names the pair
	sizesAre(t, s, v, 64*mib)
	if out := s.Do("events"); !strings.Contains(out, "grown from 33554432 to 67108864 bytes") {
		t.Errorf("events do not tell of it: %s", out)
	}

	// While a migration has it in hand, and until that is committed.
	s.AwaitInStep("db", 30*time.Second)
	s.Do("migrate", "start", "db", "--to", "b")
	if r := s.CLI("volume", "resize", "a/"+v, "--size", "96MiB"); r.Code != 4 || !strings.Contains(r.Err, "migrat") {
		t.Errorf("a volume of a migration: %v", r)
	}
	s.Do("migrate", "commit", "db", "--yes")
	s.Do("volume", "resize", "b/"+v, "--size", "96MiB")
	inspect(t, s, "nbd+unix:///"+v+"?socket="+s.G.Socket, 96*mib)
	s.AwaitInStep("db", 30*time.Second)
}
