package processes

import (
	"bytes"
	"math/rand/v2"
	"strings"
	"testing"
	"time"

	"gantline/internal/proof"
	"gantline/test/site"
)

// The link is down until the journal is full: the group is suspended, hosts notice nothing, the secondary keeps its image.
// A resume sends what was marked and no more.
func TestJournalFull(t *testing.T) {
	t.Parallel()
	seed := site.Seed(t)
	s := site.Start(t, nil)
	g := s.Pair("db", 2, 64*mib, "48MiB")
	load := proof.New(s.Disks(s.G, g), proof.Options{Seed: seed, Depth: 16, FlushEvery: 50, Rate: 2000, Span: 4 * mib})
	running := site.Run(load)
	time.Sleep(500 * time.Millisecond)
	cutOff(s)
	if err := running.Stop(); err != nil { // at rest, so that the bytes can be told apart
		t.Fatalf("the host saw an error: %v", err)
	}
	s.C.Start()
	s.Prefix(load, "secondary of a suspended group", s.Exports(s.C, g))
	if st := s.State("db"); st != "suspended" {
		t.Errorf("the group resumed by itself: %s", st)
	}
	before := s.Group("db")
	if before.ChangedBytes == nil || *before.ChangedBytes == 0 || before.WANBytesSent == nil {
		t.Fatalf("nothing is marked: %v", deref(before.ChangedBytes))
	}
	s.Do("group resume db")
	if st := s.State("db"); st != "paired" {
		t.Errorf("resumed, but %s", st)
	}
	s.AwaitInStep("db", 20*time.Second)
	sent, marked := *s.Group("db").WANBytesSent-*before.WANBytesSent, *before.ChangedBytes
	t.Logf("resume: %d bytes sent for %d bytes marked", sent, marked)
	if sent > marked*102/100+mib || sent < marked/2 {
		t.Errorf("resume sent %d bytes, marked were %d", sent, marked)
	}
	s.Equal(load, "secondary after the resume", s.Exports(s.C, g))
	running = site.Run(load)

	// Once more, with more changes than a step can take.
	cutOff(s)
	d := s.Dial(s.G, g.Volumes[0])
	for off := 16 * mib; off < 48*mib; off += mib {
		if err := site.Write(d, off, bytes.Repeat([]byte{byte(off >> 20)}, int(mib)), 10*time.Second); err != nil {
			t.Fatal(err)
		}
	}
	s.C.Start()
	renew(t, s, running, g)
}

// cutOff kills the secondary and waits until the journal is full.
func cutOff(s *site.Site) {
	s.T.Helper()
	s.C.Kill()
	s.WaitFor(40*time.Second, "the group is suspended", func() bool { return s.State("db") == "suspended" })
	time.Sleep(500 * time.Millisecond)
}

// renew is the way on when more has changed than one step can take: a resume is refused and changes nothing; a new group
// on the same volumes copies all, while hosts go on.
func renew(t *testing.T, s *site.Site, running *site.Running, g *site.Made) {
	t.Helper()
	if r := s.CLI("group resume db"); r.Code != 4 || !strings.Contains(r.Err, "quarter of the secondary's journal") {
		t.Errorf("a step that cannot fit: %v", r)
	}
	if st := s.State("db"); st != "suspended" {
		t.Errorf("a refused resume leaves the group %s", st)
	}
	s.Prefix(running.Load, "secondary after a refused resume", site.Spans(s.Exports(s.C, g), 4*mib))
	s.Do("group delete db --yes")
	s.Do("group create db --primary a --secondary c --primary-journal a/db-log --secondary-journal c/db-log")
	for _, v := range g.Volumes {
		s.Do("pair", "add", "db", "a/"+v, "c/"+v)
	}
	if err := running.Stop(); err != nil {
		t.Fatalf("the host saw an error: %v", err)
	}
	s.AwaitInStep("db", 20*time.Second)
	s.Equal(running.Load, "secondary at the end", site.Spans(s.Exports(s.C, g), 4*mib))
	s.Tool("qemu-img", "compare", "-f", "raw", "-F", "raw", "nbd+unix:///db-1?socket="+s.A.Socket, "nbd+unix:///db-1?socket="+s.C.Socket)
	if e := running.Stats().Errors; e != 0 {
		t.Errorf("%d errors at the host", e)
	}
}

// A volume that holds data when it is paired is copied: its data, not its holes. It may be written meanwhile.
func TestInitialCopy(t *testing.T) {
	t.Parallel()
	seed := site.Seed(t)
	rnd := rand.New(rand.NewPCG(seed, 6))
	s := site.Start(t, nil)
	for _, node := range []string{"a", "c"} {
		s.Do("volume", "create", node+"/big", "--size", "1GiB")
		s.Do("journal", "create", node+"/log", "--size", "64MiB")
	}
	host := s.Dial(s.A, "big")
	for _, place := range rnd.Perm(1023)[:20] {
		p := make([]byte, mib)
		for i := range p {
			p[i] = byte(rnd.Uint32())
		}
		if err := site.Write(host, int64(place)*mib, p, 10*time.Second); err != nil {
			t.Fatal(err)
		}
	}
	// A copy target that holds something else is made equal.
	s.Tool("qemu-io", "-f", "raw", "-c", "write -P 0x77 100M 3M", "nbd+unix:///big?socket="+s.C.Socket)
	s.Do("group", "create", "db", "--primary", "a", "--secondary", "c", "--primary-journal", "a/log", "--secondary-journal", "c/log")
	if st := s.State("db"); st != "empty" {
		t.Errorf("a group without a pair is %q", st)
	}
	begin := time.Now()
	s.Do("pair", "add", "db", "a/big", "c/big")
	s.AwaitInStep("db", 10*time.Second)
	g := s.Group("db")
	if g.WANBytesSent == nil || *g.WANBytesSent < 18*mib || *g.WANBytesSent > 20*mib*102/100+mib {
		t.Errorf("initial copy of 20 MiB in 1 GiB sent %v bytes", deref(g.WANBytesSent))
	}
	t.Logf("initial copy took %v, sent %v bytes", time.Since(begin), deref(g.WANBytesSent))
	s.Tool("qemu-img", "compare", "-f", "raw", "-F", "raw", "nbd+unix:///big?socket="+s.A.Socket, "nbd+unix:///big?socket="+s.C.Socket)
	p := make([]byte, 4096)
	p[0] = 1
	if err := site.Write(host, 5*mib, p, 10*time.Second); err != nil {
		t.Errorf("the connection opened before the pair is of no use after it: %v", err)
	}
	s.AwaitInStep("db", 10*time.Second)
	s.Tool("qemu-img", "compare", "-f", "raw", "-F", "raw", "nbd+unix:///big?socket="+s.A.Socket, "nbd+unix:///big?socket="+s.C.Socket)
	if r := s.CLI("pair", "add", "db", "a/big", "c/big"); r.Code != 0 {
		t.Errorf("the same pair again: %v", r)
	}
}
