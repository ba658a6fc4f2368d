package main

import (
	"context"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

func TestFioReport(t *testing.T) {
	const report = `fio: this platform does not support something
{"jobs":[{"error":0,"read":{"iops":0,"bw_bytes":0},
 "write":{"iops":1234.5,"bw_bytes":5056512,"clat_ns":{"percentile":{"99.000000":250000}}}}]}`
	r, err := parseFio([]byte(report))
	if err != nil {
		t.Fatal(err)
	}
	if r.iops != 1234.5 || r.bytes != 5056512 || r.p99 != 250*time.Microsecond {
		t.Errorf("got %+v", r)
	}
	for name, bad := range map[string]string{
		"error":   strings.Replace(report, `"error":0`, `"error":5`, 1),
		"nothing": strings.Replace(report, `1234.5`, `0`, 1),
		"no job":  `{"jobs":[]}`,
		"no JSON": `fio: failed`,
	} {
		if _, err := parseFio([]byte(bad)); err == nil {
			t.Errorf("%s: taken for a good report", name)
		}
	}
}

func TestReadyLine(t *testing.T) {
	log := "starting\n" +
		`time=2026-01-01T00:00:00Z level=INFO msg="ready node a listen=127.0.0.1:4001 nbd=/tmp/a.sock http=127.0.0.1:4002"` + "\n"
	got := readyLine(log, "node")
	if got["listen"] != "127.0.0.1:4001" || got["nbd"] != "/tmp/a.sock" || got["http"] != "127.0.0.1:4002" {
		t.Errorf("got %v", got)
	}
	if got := readyLine(log, "manager"); got != nil {
		t.Errorf("a node's line was taken for a manager's: %v", got)
	}
	if got := readyLine("ready node a listen=127.0.0.1:40", "node"); got != nil {
		t.Errorf("half a line was taken for a whole one: %v", got)
	}
}

func TestSizes(t *testing.T) {
	for text, want := range map[string]int64{"4096": 4096, "64KiB": 65536, "1.5GiB": 3 << 29} {
		if got, err := parseSize(text); err != nil || got != want {
			t.Errorf("parseSize(%q) = %d, %v", text, got, err)
		}
	}
	for _, text := range []string{"", "x", "-4KiB", "0", "100", "1e30GiB", "NaN"} {
		if got, err := parseSize(text); err == nil {
			t.Errorf("parseSize(%q) = %d, want an error", text, got)
		}
	}
}

func TestTableSaysWhatWasMissed(t *testing.T) {
	for _, c := range []struct {
		name string
		add  func(*table)
		ok   bool
	}{
		{"reached", func(x *table) { x.atLeast("a", "/s", 90, 100, "peer", 0.9) }, true},
		{"too slow", func(x *table) { x.atLeast("a", "/s", 89, 100, "peer", 0.9) }, false},
		{"no goal", func(x *table) { x.atLeast("a", "/s", 1, 100, "peer", 0) }, true},
		{"too long", func(x *table) { x.atMost("a", "ms", 30, 100, "peer", 0.25) }, false},
		{"over the limit", func(x *table) { x.below("a", "ms", 26, 25) }, false},
		{"under the limit", func(x *table) { x.below("a", "ms", 25, 25) }, true},
		{"not measured", func(x *table) { x.fail("a", os.ErrNotExist) }, false},
	} {
		var out strings.Builder
		x := newTable(&out)
		c.add(x)
		if got := x.print(); got != c.ok || strings.Contains(out.String(), "MISSED") == c.ok {
			t.Errorf("%s: print() = %v with\n%s", c.name, got, out.String())
		}
	}
}

func TestStretchFindsTheLongestGap(t *testing.T) {
	begin := time.Unix(1000, 0)
	l := &load{}
	for i := range 1000 {
		at := begin.Add(time.Duration(i) * time.Millisecond)
		if i >= 500 {
			at = at.Add(80 * time.Millisecond) // a pause, and all that comes later is late
		}
		l.samples = append(l.samples, sample{at: at, latency: time.Duration(i%100) * time.Microsecond})
	}
	s, err := l.between(begin, begin.Add(1079*time.Millisecond))
	if err != nil {
		t.Fatal(err)
	}
	if s.longest != 81*time.Millisecond || s.p99 != 99*time.Microsecond || s.perSecond < 900 || s.perSecond > 950 {
		t.Errorf("got %+v", s)
	}
	if _, err := l.between(begin.Add(510*time.Millisecond), begin.Add(570*time.Millisecond)); err == nil {
		t.Error("a stretch without any answer has no figures, and must not look like a good one")
	}
	late, err := l.between(begin, begin.Add(570*time.Millisecond))
	if err != nil || late.longest != 71*time.Millisecond {
		t.Errorf("a pause that lasts to the end of the stretch was not seen: %+v, %v", late, err)
	}
}

// The load against a real server: it must reach the export, keep to its timetable,
// and report one that goes away.
func TestLoadAgainstServer(t *testing.T) {
	if _, err := exec.LookPath("nbdkit"); err != nil {
		t.Fatal("nbdkit is not installed: make tools")
	}
	dir, err := os.MkdirTemp("", "bench-test-") // t.TempDir is too long for a socket's path
	if err != nil {
		t.Fatal(err)
	}
	defer os.RemoveAll(dir)
	file := filepath.Join(dir, "f")
	if err := prepare(file, 8<<20, 64<<10); err != nil {
		t.Fatal(err)
	}
	p, e, err := startNbdkit(context.Background(), dir, file)
	defer p.stop()
	if err != nil {
		t.Fatal(err)
	}
	l, err := startLoad(e, 8, 500)
	if err != nil {
		t.Fatal(err)
	}
	begin := time.Now()
	time.Sleep(600 * time.Millisecond)
	s, err := l.between(begin, time.Now())
	if err != nil {
		t.Fatal(err)
	}
	if s.perSecond < 100 || s.perSecond > 1000 {
		t.Errorf("%.0f writes/s at a rate of 500", s.perSecond)
	}
	p.cmd.Process.Kill()
	<-p.done
	l.ended.Wait() // both its halves end by themselves, once one has seen the connection break
	if err := l.stop(); err == nil {
		t.Error("the server died and the load saw no error")
	}
}
