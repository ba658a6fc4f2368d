package processes

import (
	"bytes"
	"crypto/rand"
	"encoding/json"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"gantline/internal/block"
	"gantline/internal/control"
	"gantline/test/site"
)

// picture is what must not change when something is refused: all objects, but for figures that move by themselves.
func picture(t *testing.T, s *site.Site) string {
	t.Helper()
	var groups []control.GroupView
	var volumes []control.VolumeView
	var journals []control.JournalView
	var vvols []control.VvolView
	for path, into := range map[string]any{"groups": &groups, "volumes": &volumes, "journals": &journals, "vvols": &vvols} {
		if err := s.Get("/v1/"+path, into); err != nil {
			t.Fatal(err)
		}
	}
	var b strings.Builder
	for _, g := range groups {
		fmt.Fprintf(&b, "group %s %s->%s %d %v %v %v\n", g.Name, g.Primary, g.Secondary, g.Epoch, g.Pairs, g.PrimaryJournal, g.Migration)
	}
	for _, v := range volumes {
		fmt.Fprintf(&b, "volume %s/%s %s %d %v %v %v\n", v.Node, v.Name, v.ID, v.Size, v.Group, v.Device, v.Vvols)
	}
	for _, j := range journals {
		fmt.Fprintf(&b, "journal %s/%s %d %v %v\n", j.Node, j.Name, j.Size, j.Group, j.Devices)
	}
	for _, v := range vvols {
		fmt.Fprintf(&b, "vvol %s %s %d %v\n", v.Name, v.Volume, v.Size, v.Hosts)
	}
	for _, dir := range []string{"a", "b", "c"} {
		for _, sub := range []string{"volumes", "journals", "maps"} {
			files, err := os.ReadDir(filepath.Join(s.Dir, dir, sub))
			if err != nil {
				t.Fatal(err)
			}
			for _, f := range files {
				fmt.Fprintf(&b, "file %s/%s/%s\n", dir, sub, f.Name())
			}
		}
	}
	return b.String()
}

// What cannot be done is refused with its exit code and a sentence that names the object; nothing changes by it.
func TestBadInput(t *testing.T) {
	t.Parallel()
	s := site.Prepare(t)
	small := filepath.Join(s.Dir, "small") // a full disk
	if err := os.Mkdir(small, 0o700); err != nil {
		t.Fatal(err)
	}
	tmpfs(t, s, small, "16m")
	tmpfs(t, s, s.B.Dir, "48m")
	s.StartAll(nil)
	g := s.Pair("db", 1, 64*mib, "32MiB")
	for _, line := range []string{
		"volume create a/one --size 16MiB", "volume create a/two --size 32MiB", "volume create c/one --size 16MiB",
		"volume create c/other --size 16MiB", "volume create b/one --size 16MiB", "journal create a/j2 --size 16MiB",
		"journal create c/j2 --size 16MiB", "group create g2 --primary a --secondary c --primary-journal a/j2 --secondary-journal c/j2",
	} {
		s.Do(line)
	}
	if err := os.WriteFile(s.Dir+"/odd", make([]byte, 5000), 0o600); err != nil {
		t.Fatal(err)
	}
	host := s.Dial(s.G, g.Volumes[0])
	if err := site.Write(host, 0, bytes.Repeat([]byte{7}, int(20*mib)), 10*time.Second); err != nil {
		t.Fatal(err)
	}
	s.AwaitInStep("db", 10*time.Second)
	before := picture(t, s)
	for _, c := range []struct {
		code    int
		line    string
		mention string
	}{
		// Sizes.
		{2, "volume create a/x --size 0", "size"},
		{2, "volume create a/x --size -4096", "size"},
		{2, "volume create a/x --size 4097", "a/x"},
		{2, "volume create a/x --size 12parsecs", "size"},
		{2, "volume create a/x --size 99999999999999999999", "size"},
		{2, "volume create a/x", "size"},
		{2, "journal create a/x --size 4096", "a/x"},
		{4, "volume create a/one --size 32MiB", "a/one"},
		{4, "volume create a/x --size 16MiB --device " + s.Dir + "/odd", "5000"},
		// Names.
		{2, "volume create a/UPPER --size 16MiB", "UPPER"},
		{2, "volume create a/../x --size 16MiB", ".."},
		{2, "volume create nowhere --size 16MiB", "nowhere"},
		{3, "volume create z/x --size 16MiB", "z"},
		{3, "volume show a/x", "a/x"},
		{3, "volume delete a/x --yes", "a/x"},
		{3, "group show nogroup", "nogroup"},
		{3, "vvol show novvol", "novvol"},
		{3, "vvol create x --volume a/x", "a/x"},
		{3, "node show z", "z"},
		{3, "gateway show z", "z"},
		{3, "migrate show nogroup", "nogroup"},
		{3, "migrate start nogroup --to b", "nogroup"},
		{3, "migrate start db --to z", "z"},
		{3, "group create g3 --primary a --secondary z", "z"},
		{3, "pair add db a/x c/one", "a/x"},
		{4, "volume create a/db-log --size 16MiB", "a/db-log"}, // one namespace with journals
		// Groups and pairs.
		{4, "pair add g2 a/two c/one", "size"},
		{4, "pair add g2 " + "a/db-1 c/one", "db"}, // in two groups
		{4, "pair add g2 a/one c/db-1", "db"},
		{4, "pair add g2 b/one c/one", "b/one"},
		{4, "group create db --primary b --secondary c", "db"},
		{4, "group create g3 --primary a --secondary c --primary-journal a/j2 --secondary-journal c/j2", "g2"},
		{2, "group create g3 --primary a --secondary a", "a"},
		{4, "volume delete a/db-1 --yes", "db"},
		{4, "journal delete a/db-log --yes", "db"},
		// Devices.
		{4, "volume create a/x --size 16MiB --device " + s.A.Dir + "/volumes/one.raw", "use"},
		{4, "volume create a/x --size 16MiB --device " + s.A.Dir + "/volumes/../volumes/one.raw", "use"},
		{4, "volume create b/x --size 16MiB --device " + s.A.Dir + "/volumes/one.raw", "use"},
		{4, "journal create a/x --size 32MiB --device " + s.A.Dir + "/journals/db-log.jnl", "use"},
		{2, "volume create a/x --size 16MiB --device relative", "absolute"},
		{4, "journal create a/x --size 32MiB --device " + small + "/x", "free some"},
		// Moves.
		{4, "migrate start db --to a", "primary"},
		{4, "migrate start db --to c", "secondary"},
		{4, "migrate start db --to b", "free"}, // no space: 20 MiB of data and a journal of 32 MiB, 48 MiB there are
		{4, "migrate start db --to b --map a/db-1=b/one --yes", "bytes"},
		{2, "migrate start db --to b --map a/db-1", "map"},
		{3, "migrate commit db", "db"},
		// Not built yet, said so.
		{2, "group create g3 --primary a --secondary c --log queue --mode sync", "queue"},
		{2, "group create g3 --primary a --secondary c --log queue --primary-journal a/j", "queue"},
		{2, "migrate start db --to b --strategy copy-last", "copy-first"},
		{4, "migrate start db --to b --backlog carry", "(--backlog carry): make room"},
		{4, "migrate start db --to b --mirror", "not built yet"},
		{4, "group promote db", "--force"},
		{3, "group promote none --force", "none"},
		{4, "group failback db", "not built yet"},
		{4, "pool list", "not built yet"},
		{4, "top", "not built yet"},
		// Usage.
		{2, "group create g3 --primary a --secondary c --mode sideways", "sideways"},
		{2, "migrate start db --to b --strategy sideways", "sideways"},
		{2, "migrate start db --to b --in-flight sideways", "it is finish or hold or error"},
		{2, "group show", ""},
		{2, "group frobnicate", ""},
		{2, "group show db --frobnicate", "frobnicate"},
		{2, "group show db -o sideways", "sideways"},
		{5, "group show db --manager http://127.0.0.1:1", "127.0.0.1:1"},
		{4, "volume delete a/one", "a/one"}, // its name is not given again
	} {
		r := s.CLI(c.line)
		switch {
		case r.Code != c.code:
			t.Errorf("%q: exit %d, wanted %d: %s%s", c.line, r.Code, c.code, r.Out, r.Err)
		case !strings.Contains(r.Err, c.mention):
			t.Errorf("%q does not mention %q: %s", c.line, c.mention, r.Err)
		case r.Out != "":
			t.Errorf("%q was refused and prints: %s", c.line, r.Out)
		}
		if after := picture(t, s); after != before {
			t.Errorf("%q changed something; before:\n%safter:\n%s", c.line, before, after)
			before = after
		}
	}
	dryRun(t, s, before)
	frames(t, s)
	if p, err := site.Read(host, 0, 4096); err != nil || p[0] != 7 || p[4095] != 7 {
		t.Errorf("after all this the volume reads %v, %v", p[0], err)
	}
	s.AwaitInStep("db", 10*time.Second)
}

// dryRun: a plan is printed, its exit code says whether it would be refused, and nothing is done.
func dryRun(t *testing.T, s *site.Site, before string) {
	t.Helper()
	for line, code := range map[string]int{
		"volume create a/x --size 16MiB --dry-run": 0, "migrate start db --to b --dry-run": 4, "pair add g2 a/one c/one --dry-run": 0,
		"pair add g2 a/two c/one --dry-run": 4,
	} {
		r := s.CLI(line + " -o json")
		var plan control.PlanView
		if err := json.Unmarshal([]byte(r.Out), &plan); r.Code != code || err != nil || (code == 4) != (len(plan.Refusals) > 0) {
			t.Errorf("dry run: %v (%v)", r, err)
		}
	}
	if after := picture(t, s); after != before {
		t.Errorf("a dry run changed something; before:\n%safter:\n%s", before, after)
	}
}

// frames sends what no peer of ours would to a node's ports: it stays up, its state stays as it is.
func frames(t *testing.T, s *site.Site) {
	t.Helper()
	noise := make([]byte, 64<<10)
	_, _ = rand.Read(noise) // never fails
	huge := []byte{0x67, 0x6e, 0x74, 0x6c, 1, 1, 0, 0, 0xff, 0xff, 0xff, 0x7f, 0, 0, 0, 0}
	for _, p := range []*site.Process{s.A, s.C} {
		for _, junk := range [][]byte{noise, huge, {}, []byte("GET / HTTP/1.1\r\n\r\n"), make([]byte, 4096)} {
			conn, err := net.Dial("tcp", p.Ready["listen"])
			if err != nil {
				t.Fatal(err)
			}
			_, _ = conn.Write(junk) // the node may have hung up already
			_ = conn.Close()
			unix, err := net.Dial("unix", p.Socket)
			if err != nil {
				t.Fatal(err)
			}
			_, _ = unix.Write(junk)
			_ = unix.Close()
		}
		if !p.Alive() {
			t.Fatalf("%s died of malformed frames: %s", p.Name, p.Ended())
		}
	}
	s.AwaitInStep("db", 10*time.Second)
}

func tmpfs(t *testing.T, s *site.Site, dir, size string) {
	t.Helper()
	if os.Getuid() != 0 {
		t.Skip("a small disk needs root")
	}
	if err := os.MkdirAll(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	s.Tool("mount", "-t", "tmpfs", "-o", "size="+size, "tmpfs", dir)
	t.Cleanup(func() {
		for _, p := range s.All() {
			p.Kill()
		}
		s.Tool("umount", dir)
	})
}

// A process that cannot start says why and ends with the right code; whoever has the place keeps it.
func TestStartRefused(t *testing.T) {
	t.Parallel()
	s := site.Start(t, nil)
	config := filepath.Join(s.Dir, "config.yaml")
	if err := os.WriteFile(config, []byte("name: x\nfrobnicate: 1\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		what    string
		role    string
		flags   []string
		code    int
		mention string
	}{
		{"listen on all addresses", "node", []string{"--listen", "0.0.0.0:0"}, 4, "loopback"},
		{"listen on another address", "node", []string{"--listen", "192.0.2.1:7000"}, 4, "loopback"},
		{"exports on all addresses", "node", []string{"--nbd", "0.0.0.0:0"}, 4, "loopback"},
		{"gateway on all addresses", "gateway", []string{"--nbd", "0.0.0.0:0"}, 4, "loopback"},
		{"manager on all addresses", "manager", []string{"--listen", "0.0.0.0:0"}, 4, "loopback"},
		{"http on all addresses", "node", []string{"--http", "0.0.0.0:0"}, 4, "loopback"},
		{"unknown flag", "node", []string{"--frobnicate"}, 2, "frobnicate"},
		{"unknown key", "node", []string{"--config", config}, 2, "frobnicate"},
		{"no such file", "node", []string{"--config", config + "x"}, 2, "config"},
		{"bad memory", "node", []string{"--memory", "lots"}, 2, "memory"},
		{"bad name", "node", []string{"--name", "Not A Name"}, 2, "name"},
		{"manager's data directory", "manager", []string{"--data-dir", s.Manager.Dir}, 4, s.Manager.Dir},
		{"node's data directory", "node", []string{"--name", "a", "--data-dir", s.A.Dir}, 4, s.A.Dir},
		{"gateway's data directory", "gateway", []string{"--name", "g", "--data-dir", s.G.Dir}, 4, s.G.Dir},
		{"node's name, elsewhere", "node", []string{"--name", "a"}, 4, "a"},
		{"gateway's name, elsewhere", "gateway", []string{"--name", "g"}, 4, "g"},
		{"other name in a data directory", "node", []string{"--name", "x", "--data-dir", s.A.Dir}, 4, s.A.Dir},
		{"address in use", "node", []string{"--listen", s.A.Ready["listen"]}, 1, "in use"},
		{"certificates", "node", []string{"--tls-ca", "/x", "--tls-cert", "/x", "--tls-key", "/x"}, 4, "not built yet"},
		{"clusters", "node", []string{"--cluster", "x"}, 4, "not built yet"},
		{"etcd", "manager", []string{"--store", "etcd://127.0.0.1:2379"}, 4, "not built yet"},
		{"agent", "agent", []string{"--nbd-unix", s.Dir + "/agent.sock"}, 4, "not built yet"},
	} {
		t.Run(c.what, func(t *testing.T) {
			flags := c.flags
			if c.role == "node" && !strings.Contains(strings.Join(flags, " "), "--site") {
				flags = append([]string{"--site", "local"}, flags...)
			}
			p := s.In(t).Extra(c.role, strings.Map(letters, c.what), flags...)
			p.Launch()
			if code := p.AwaitEnd(15 * time.Second); code != c.code {
				t.Errorf("exit %d, wanted %d: %s", code, c.code, p.Log())
			}
			if !strings.Contains(p.LatestLog(), c.mention) {
				t.Errorf("%q is not mentioned: %s", c.mention, p.LatestLog())
			}
		})
	}
	for _, p := range s.All() {
		if !p.Alive() {
			t.Errorf("%s did not survive the others' attempts: %s", p.Name, p.Ended())
		}
	}
	s.Do("volume create a/v --size 1MiB") // the old a is still the one that is reached
}

func letters(r rune) rune {
	if r >= 'a' && r <= 'z' {
		return r
	}
	return -1
}

// A journal file that is cut short, foreign or not one at all is told apart, by the dump and by its node.
func TestBadJournalFiles(t *testing.T) {
	t.Parallel()
	s := site.Start(t, nil)
	g := s.Pair("db", 1, 64*mib, "16MiB")
	if err := site.Write(s.Dial(s.G, g.Volumes[0]), 0, bytes.Repeat([]byte{9}, 1<<16), 10*time.Second); err != nil {
		t.Fatal(err)
	}
	s.AwaitInStep("db", 10*time.Second)
	s.G.Stop()
	s.A.Kill()
	path := filepath.Join(s.A.Dir, "journals", "db-log.jnl")
	if out := s.Do("journal", "dump", path); !strings.Contains(out, "write") {
		t.Errorf("the dump shows no write:\n%s", out)
	}
	whole, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		what    string
		content []byte
		mention string
	}{
		{"truncated", whole[:len(whole)/2], "truncated"},
		{"empty", nil, ""},
		{"foreign", bytes.Repeat([]byte("not a journal "), 1<<16), "journal"},
		{"zeros", make([]byte, len(whole)), "journal"},
	} {
		t.Run(c.what, func(t *testing.T) {
			s := s.In(t)
			file := filepath.Join(s.Dir, c.what)
			if err := os.WriteFile(file, c.content, 0o600); err != nil {
				t.Fatal(err)
			}
			if r := s.CLI("journal", "dump", file); r.Code != 1 && r.Code != 4 || !strings.Contains(r.Err, c.mention) {
				t.Errorf("dump: %v", r)
			}
			// The node comes up, its group does not, and says why; the file is left as it is.
			if err := os.WriteFile(path, c.content, 0o600); err != nil {
				t.Fatal(err)
			}
			s.A.Start()
			s.WaitFor(10*time.Second, "the group says that it failed", func() bool { return s.State("db") == "failed" })
			s.A.Kill()
			if now, err := os.ReadFile(path); err != nil || !bytes.Equal(now, c.content) {
				t.Errorf("the node changed the file (%v)", err)
			}
		})
	}
	if r := s.CLI("journal", "dump", s.Dir+"/missing"); r.Code != 3 && r.Code != 1 {
		t.Errorf("dump of a missing file: %v", r)
	}
	if err := os.WriteFile(path, whole, 0o600); err != nil {
		t.Fatal(err)
	}
	s.A.Start()
	s.G.Start()
	s.AwaitInStep("db", 20*time.Second)
	if p, err := site.Read(s.Dial(s.G, g.Volumes[0]), 0, 4096); err != nil || p[0] != 9 {
		t.Errorf("with its journal back the volume reads %v, %v", p[0], err)
	}
}

// The disk under a volume is full: what needs space is refused with "no space", what was acknowledged stays, and with
// space again all goes on.
func TestDiskFull(t *testing.T) {
	t.Parallel()
	s := site.Prepare(t)
	disk := filepath.Join(s.Dir, "disk")
	tmpfs(t, s, disk, "24m")
	s.StartAll(nil)
	s.Do("volume create a/lone --size 64MiB --device " + disk + "/lone")
	host := s.Dial(s.A, "lone")
	written := map[int64]byte{}
	var failed error
	for off := int64(0); off < 64*mib && failed == nil; off += mib {
		fill := byte(1 + off/mib)
		if failed = site.Write(host, off, bytes.Repeat([]byte{fill}, int(mib)), 10*time.Second); failed == nil {
			written[off] = fill
		}
	}
	if failed == nil || !strings.Contains(failed.Error(), block.ErrNoSpace.Error()) {
		t.Fatalf("a full disk answers %v after %d MiB", failed, len(written))
	}
	check := func() {
		t.Helper()
		for off, fill := range written {
			p, err := site.Read(host, off, mib)
			if err != nil || !bytes.Equal(p, bytes.Repeat([]byte{fill}, int(mib))) {
				t.Fatalf("what was written at %d before the disk was full is lost (%v)", off, err)
			}
		}
	}
	check()
	s.Tool("mount", "-o", "remount,size=80m", disk)
	if err := site.Write(host, 60*mib, bytes.Repeat([]byte{0xee}, int(mib)), 10*time.Second); err != nil {
		t.Errorf("with space again: %v", err)
	}
	written[60*mib] = 0xee
	check()
	s.A.Stop()
	s.A.Start()
	host = s.Dial(s.A, "lone")
	check()
}

// The same under a primary's volume: its journal has what was answered, whatever becomes of the volume's own file.
func TestDiskFullUnderPrimary(t *testing.T) {
	t.Parallel()
	s := site.Prepare(t)
	disk := filepath.Join(s.Dir, "disk")
	tmpfs(t, s, disk, "24m")
	s.StartAll(nil)
	s.Do("volume create a/v --size 64MiB --device " + disk + "/v")
	for _, line := range []string{"volume create c/v --size 64MiB", "journal create a/log --size 64MiB", "journal create c/log --size 64MiB",
		"group create db --primary a --secondary c --primary-journal a/log --secondary-journal c/log", "pair add db a/v c/v"} {
		s.Do(line)
	}
	host := s.Dial(s.A, "v")
	answered := map[int64]byte{}
	for off := int64(0); off < 40*mib; off += mib {
		fill := byte(1 + off/mib)
		if err := site.Write(host, off, bytes.Repeat([]byte{fill}, int(mib)), 5*time.Second); err != nil {
			t.Logf("answer at %d MiB: %v", off/mib, err)
			break
		}
		answered[off] = fill
	}
	if len(answered) < 16 {
		t.Errorf("only %d MiB were taken", len(answered))
	}
	time.Sleep(time.Second)
	s.Tool("mount", "-o", "remount,size=80m", disk)
	s.A.Kill()
	s.A.Start()
	host = s.Dial(s.A, "v")
	for off, fill := range answered {
		p, err := site.Read(host, off, mib)
		if err != nil || !bytes.Equal(p, bytes.Repeat([]byte{fill}, int(mib))) {
			t.Fatalf("what was answered at %d before the disk was full is lost (%v)", off, err)
		}
	}
	if err := site.Write(host, 50*mib, bytes.Repeat([]byte{0xee}, int(mib)), 10*time.Second); err != nil {
		t.Errorf("with space again: %v", err)
	}
	s.AwaitInStep("db", 20*time.Second)
	s.Tool("qemu-img", "compare", "-f", "raw", "-F", "raw", "nbd+unix:///v?socket="+s.A.Socket, "nbd+unix:///v?socket="+s.C.Socket)
}
