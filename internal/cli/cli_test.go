package cli

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/spf13/cobra"

	"gantline/internal/control"
	"gantline/internal/manager"
	"gantline/internal/manager/client"
	"gantline/internal/manager/fakenode"
)

// site is a manager with fake nodes a, b, c.
type site struct {
	url   string
	nodes map[string]*fakenode.Node
}

func newSite(t *testing.T) *site {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	s := &site{url: "http://" + l.Addr().String(), nodes: map[string]*fakenode.Node{}}
	m := manager.New(manager.Config{Store: control.NewMemory(), Logger: slog.New(slog.DiscardHandler)})
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- m.Serve(ctx, l) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Errorf("manager: %v", err)
		}
	})
	c, err := client.New(s.url)
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"a", "b", "c"} {
		n := fakenode.New(name)
		if err := n.Start(c, "run"); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(n.Stop)
		s.nodes[name] = n
		if code, _, stderr := s.run("wait node " + name + " --for state=up --timeout 10s"); code != 0 && code != 3 {
			t.Fatalf("node %s: %s", name, stderr)
		}
		for i := 0; ; i++ {
			if code, _, _ := s.run("wait node " + name + " --for state=up --timeout 10s"); code == 0 {
				break
			} else if i == 100 {
				t.Fatalf("node %s does not come up", name)
			}
			time.Sleep(20 * time.Millisecond)
		}
	}
	return s
}

// run gives a command line, split at blanks, and standard input behind ' << '.
func (s *site) run(line string) (code int, stdout, stderr string) {
	line, in, _ := strings.Cut(line, " << ")
	return runWith(map[string]string{"GANTLINE_MANAGER": s.url}, in, strings.Fields(line)...)
}

func runWith(env map[string]string, stdin string, args ...string) (code int, stdout, stderr string) {
	var out, errs bytes.Buffer
	a := &app{stdin: strings.NewReader(stdin), stdout: &out, stderr: &errs, environ: func() []string {
		var list []string
		for k, v := range env {
			list = append(list, k+"="+v)
		}
		return list
	}, env: func(k string) (string, bool) { v, ok := env[k]; return v, ok }}
	code = a.run(context.Background(), args)
	return code, out.String(), errs.String()
}

// A story from an empty site to a committed move, each line with its exit code and a word of its output.
func TestCommands(t *testing.T) {
	s := newSite(t)
	for _, c := range []struct {
		line string
		code int
		word string // on standard output if code is 0, else on standard error
	}{
		{"version", 0, "gantline"},
		{"completion bash", 0, "gantline"},
		{"completion tcsh", 2, "bash"},
		{"nonsense", 2, "nonsense"},
		{"volume", 2, "wants a verb"},
		{"volume frobnicate", 2, "frobnicate"},
		{"volume create a/v1", 2, "size"},
		{"volume create a/v1 --size 1.0001KiB", 2, "write it as"},
		{"volume create a/v1 --size 1MiB --colour blue", 2, "colour"},
		{"volume create a/v1 --size 1MiB -o xml", 2, "json"},
		{"volume create a/v1 --size 1MiB", 0, "1 MiB"},
		{"volume create a/v1 --size 1048576", 0, "a/v1"},
		{"volume create a/v1 --size 2MiB", 4, "exists"},
		{"volume create z/v1 --size 1MiB", 3, "node z"},
		{"volume create c/v1 --size 1MiB -o name", 0, "c/v1\n"},
		{"volume list", 0, "NAME"},
		{"volume show a/v1", 0, "lone"},
		{"volume show a/v9", 3, "does not exist"},
		{"volume resize a/v1", 2, "size"},
		{"volume resize a/v1 --size 512KiB", 4, "smaller"},
		{"volume resize a/v9 --size 2MiB", 3, "does not exist"},
		{"volume create c/w --size 1MiB", 0, "1 MiB"},
		{"volume resize c/w --size 2MiB --dry-run", 0, "volume.resize"},
		{"volume show c/w", 0, "1 MiB"},
		{"volume resize c/w --size 2MiB", 0, "2 MiB"},
		{"volume resize c/w --size 2MiB", 0, "2 MiB"},
		{"volume delete c/w --yes", 0, ""},
		{"journal create a/j --size 1MiB --dry-run", 0, "journal.create"},
		{"journal show a/j", 3, "does not exist"},
		{"journal add a/j", 2, "either --size"},
		{"journal add a/j --size 1MiB --device /x", 2, "either --size"},
		{"journal add a/j --size 1MiB", 3, "does not exist"},
		{"journal add a/g --size 4KiB", 2, "between"},
		{"journal dump /nonexistent", 1, "nonexistent"},
		{"group create g --primary a --secondary c --compress lz4", 2, "off or s2 or zstd"},
		{"group create g --primary a --secondary c --interval 5s", 2, "--interval belongs to --mode periodic"},
		{"group create g --primary a --secondary c --mode sync --transfer pull", 2, "use push"},
		{"group create g --primary a --secondary c --mode sync --log queue", 2, "use journal"},
		{"group create g --primary a --secondary c --limit 5", 2, "outside 4096"},
		{"group set g", 2, "nothing to change"},
		{"group create g --primary a --secondary a", 2, "same node"},
		{"group create g --primary a --secondary c --interval 30s", 0, "empty"},
		{"group set g --mode slow", 2, "async or sync or periodic"},
		{"group set g --mode async -o name", 0, "g\n"},
		{"pair add g a/v1 c/v1", 0, "paired"},
		{"pair list -o json", 0, `"primary": "a/v1"`},
		{"link list", 0, "RTT MS"},
		{"link show a:c -o json", 0, `"sent_bytes": `},
		{"link show a:b", 3, "does not exist"},
		{"link show a", 2, "FROM:TO"},
		{"link set a:c", 2, "nothing to change"},
		{"link set a:c --limit 10MiB", 0, "10 MiB"},
		{"link set a:c --connections 4 -o json", 0, `"connections": 4`},
		{"link set a:c --limit 10MiB --connections 99", 2, "outside 1 to 16"},
		{"wait link a:c --for limit=10485760", 0, "a"},
		{"wait group g --for lag.writes<=0 --timeout 5s", 0, "paired"},
		{"wait group g --for state=suspended --timeout 200ms", 5, "stopped waiting"},
		{"wait group g --for colour=blue", 2, "no such field"},
		{"wait group g --for lag.writes<=x", 2, "number"},
		{"wait frog g --for state=paired", 2, "kinds"},
		{"vvol create disk --volume a/v1", 0, "disk"},
		{"vvol create disk --pool p --size 1GiB", 4, "not built yet"},
		{"vvol create other", 2, "--volume"},
		{"vvol uri disk", 4, "no gateway"},
		{"vvol allow disk 127.0.0.1", 0, "127.0.0.1"},
		{"vvol switch disk --volume c/v1 --in-flight maybe", 2, "finish, hold or error"},
		{"group suspend g", 0, "suspended"},
		{"group resume g", 0, "paired"},
		{"group promote g", 4, "--force"},
		{"group promote g --force --dry-run", 0, "serve group g"},
		{"group failback g", 4, "not built yet"},
		{"group delete none", 3, "does not exist"},
		{"volume delete a/v1 --yes", 4, "in use"},
		{"volume create b/spare --size 1MiB --no-wait", 0, "b/spare\n"},
		{"volume delete b/spare << wrong\n", 4, "not given again"},
		{"volume delete b/spare << ", 4, "--yes"},
		{"volume delete b/spare --dry-run", 0, "volume.delete"},
		{"volume delete b/spare << b/spare\n", 0, ""},
		{"migrate start g --to b --mirror", 4, "not built yet"},
		{"migrate start g --to c", 4, "secondary"},
		{"migrate start g --to b --map a/v1", 2, "write it as"},
		{"migrate start g --to b --dry-run", 0, "seal epoch 1"},
		{"migrate start g --to c --dry-run -o json", 4, "would be refused"},
		{"migrate show g", 3, "never been moved"},
		{"migrate commit g", 3, "does not exist"},
		{"migrate start g --to b", 0, "filled"},
		{"migrate show g-1 -o json", 0, `"pause_ms": 7.5`},
		{"migrate list", 0, "g-1"},
		{"migrate abort g-1", 4, "decided"},
		{"migrate continue g", 0, "filled"},
		{"migrate set g --limit 1MiB", 4, "copies nothing"},
		{"migrate set g", 2, "limit"},
		{"migrate commit g", 0, "committed"},
		{"node drain a --to b --dry-run", 4, "a/v1"},
		{"node drain a --to a", 2, "itself"},
		{"node drain a", 2, "to"},
		{"status", 0, "healthy"},
		{"events", 0, "decided"},
		{"events -o json", 0, `"kind":"committed"`},
		{"check", 4, "not built yet"},
		{"token create x --role admin", 4, "not built yet"},
		{"--socket /nonexistent group show g", 5, "cannot be reached"},
		{"--socket /nonexistent node list", 2, "--socket goes with"},
		{"serve agent --name x", 4, "not built yet"},
		{"node remove a", 4, "is up"},
		{"gateway remove none", 3, "does not exist"},
		{"group delete g", 0, ""},
	} {
		code, stdout, stderr := s.run(c.line)
		text := stdout
		if c.code != 0 {
			text = stderr
		}
		if code != c.code || !strings.Contains(text, c.word) {
			t.Errorf("gantline %s: exit %d, want %d with %q\nstdout: %s\nstderr: %s", c.line, code, c.code, c.word, stdout, stderr)
		}
	}
	code, _, stderr := runWith(map[string]string{"GANTLINE_MANAGER": "http://127.0.0.1:1"}, "", "status")
	if code != 5 || !strings.Contains(stderr, "GANTLINE_MANAGER") {
		t.Errorf("no manager: exit %d, %s", code, stderr)
	}
}

func TestMoveTellsItsCost(t *testing.T) {
	s := newSite(t)
	for _, line := range []string{"volume create a/v1 --size 1MiB", "volume create c/v1 --size 1MiB",
		"group create g --primary a --secondary c", "pair add g a/v1 c/v1"} {
		if code, _, stderr := s.run(line); code != 0 {
			t.Fatalf("%s: %s", line, stderr)
		}
	}
	found := &control.MoveCheck{State: control.CheckDifferent}
	found.Add(control.VerifyExtent{Volume: "b/v1", Offset: 65536, Length: 65536}, false)
	s.nodes["b"].Lock()
	s.nodes["b"].Check = found
	s.nodes["b"].Unlock()
	for _, line := range []string{"migrate start g --to b --commit -o json", "migrate commit g"} {
		code, stdout, stderr := s.run(line)
		if code != 6 || !strings.Contains(stderr, "b/v1: 65536 bytes at 65536") || !strings.Contains(stderr, "--accept-differences") || stdout == "" {
			t.Fatalf("%s: exit %d: %s %s", line, code, stdout, stderr)
		}
	}
	code, stdout, stderr := s.run("migrate commit g --accept-differences -o json")
	var v control.MigrationView
	if err := json.Unmarshal([]byte(stdout), &v); code != 0 || err != nil || v.Phase != control.PhaseCommitted {
		t.Fatalf("exit %d, %v: %s %s", code, err, stdout, stderr)
	}
	if !strings.Contains(stderr, "pause 7.5 ms; copied 4 KiB in the background, 512 B on demand, 0 B twice") {
		t.Fatalf("summary: %s", stderr)
	}
	if v.Check == nil || !v.Check.Accepted || !strings.Contains(stderr, "accepted by command") {
		t.Fatalf("what was found: %+v, %s", v.Check, stderr)
	}
	// A failed move is exit 1.
	s.nodes["a"].Lock()
	s.nodes["a"].Refuse = true
	delete(s.nodes["a"].Groups, "g")
	s.nodes["a"].Unlock()
	for _, line := range []string{"volume delete a/v1 --yes", "journal delete a/g --yes"} {
		if code, _, stderr := s.run(line); code != 0 {
			t.Fatalf("%s: %s", line, stderr)
		}
	}
	if code, _, stderr := s.run("migrate start g --to a"); code != 1 || !strings.Contains(stderr, "refused by the test") {
		t.Fatalf("a refused move: exit %d, %s", code, stderr)
	}
}

func TestExitCodes(t *testing.T) {
	for kind, want := range map[control.Kind]int{control.KindFailed: 1, control.KindUsage: 2, control.KindNotFound: 3,
		control.KindRefused: 4, control.KindUnreachable: 5, control.KindTimeout: 5, control.KindDifferent: 6} {
		if got := exitCode(fmt.Errorf("wrapped: %w", control.Errorf(kind, "x"))); got != want {
			t.Errorf("%s: %d, want %d", kind, got, want)
		}
	}
	if got := exitCode(errors.New("plain")); got != 1 {
		t.Errorf("plain: %d", got)
	}
}

func TestSizes(t *testing.T) {
	for text, want := range map[string]int64{"4096": 4096, "64KiB": 64 << 10, "1.5GiB": 3 << 29, "10GB": 10e9, "1 MiB": 1 << 20, "0": 0,
		"": -1, "-1": -1, "1e3": -1, "KiB": -1, "1.3B": -1, "0x10": -1, "9999999PiB": -1, "1.2.3": -1, "1/2": -1} {
		got, err := parseSize(text)
		if want < 0 && control.KindOf(err) != control.KindUsage || want >= 0 && (err != nil || got != want) {
			t.Errorf("%q: %d, %v; want %d", text, got, err, want)
		}
	}
}

// Flag beats variable beats file beats default, for plain keys and lists.
func TestPrecedence(t *testing.T) {
	file := filepath.Join(t.TempDir(), "node.yaml")
	write := func(body string) {
		if err := os.WriteFile(file, []byte(body), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	read := func(env map[string]string, args ...string) (*settings, error) {
		a := &app{env: func(k string) (string, bool) { v, ok := env[k]; return v, ok }, environ: func() []string {
			var list []string
			for k := range env {
				list = append(list, k+"=")
			}
			return list
		}}
		c := &cobra.Command{}
		c.Flags().String("manager", "", "")
		addSettings(c, "node")
		if err := c.ParseFlags(append([]string{"--config", file}, args...)); err != nil {
			t.Fatal(err)
		}
		return a.readSettings("node", c.Flags())
	}
	write("name: file\nsite: file\nmemory: 1GiB\nlisten: [127.0.0.1:1, 127.0.0.1:2]\nmanager: [http://a, http://b]\n")
	s, err := read(map[string]string{"GANTLINE_SITE": "variable", "GANTLINE_NAME": "variable"}, "--name", "flag")
	if err != nil {
		t.Fatal(err)
	}
	for key, want := range map[string]string{"name": "flag", "site": "variable", "memory": "1GiB", "listen": "127.0.0.1:1",
		"manager": "http://a,http://b", "log-level": "info", "http": ""} {
		if got := s.get(key); got != want {
			t.Errorf("%s is %q, want %q", key, got, want)
		}
	}
	if got := s.list("listen"); len(got) != 2 {
		t.Errorf("listen %q", got)
	}
	if s, err = read(map[string]string{"GANTLINE_LISTEN": "x,y,z"}); err != nil || len(s.list("listen")) != 3 {
		t.Errorf("list in a variable: %v", err)
	}
	if s, err = read(nil, "--listen", "p", "--listen", "q"); err != nil || fmt.Sprint(s.list("listen")) != "[p q]" {
		t.Errorf("list of flags: %v", err)
	}
	for name, c := range map[string]struct {
		body string
		env  map[string]string
		word string
	}{
		"unknown key":       {"nmae: a\n", nil, `"nmae"`},
		"key of other role": {"hold: 60s\n", nil, `"hold"`},
		"unknown variable":  {"", map[string]string{"GANTLINE_NMAE": "a"}, "GANTLINE_NMAE"},
		"list for a value":  {"name: [a, b]\n", nil, `"name"`},
		"not YAML":          {"name: [a\n", nil, "configuration"},
	} {
		write(c.body)
		if _, err := read(c.env); control.KindOf(err) != control.KindUsage || !strings.Contains(err.Error(), c.word) {
			t.Errorf("%s: %v", name, err)
		}
	}
	file = filepath.Join(t.TempDir(), "none.yaml")
	if _, err := read(nil); control.KindOf(err) != control.KindUsage {
		t.Errorf("a file that was asked for and is not there: %v", err)
	}
}

func TestServeRefusals(t *testing.T) {
	dir := t.TempDir()
	unlock, err := lockDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	defer unlock()
	other := t.TempDir()
	for line, code := range map[string]int{
		"serve manager --listen 127.0.0.1:0 --data-dir " + dir:                         4,
		"serve manager --listen 0.0.0.0:0 --data-dir " + other:                         4,
		"serve manager --listen nonsense --data-dir " + other:                          2,
		"serve manager --store etcd://x:1 --data-dir " + other:                         4,
		"serve manager --store paper --data-dir " + other:                              2,
		"serve manager --log-level loud --data-dir " + other:                           2,
		"serve manager --tls-ca x --data-dir " + other:                                 4,
		"serve node --data-dir " + other:                                               2,
		"serve node --name A --data-dir " + other:                                      2,
		"serve node --name a --nbd 10.0.0.1:10809 --data-dir " + other:                 4,
		"serve node --name a --memory lots --data-dir " + other:                        2,
		"serve node --name a --cluster c --data-dir " + other:                          4,
		"serve gateway --name g --hold soon --nbd 127.0.0.1:0 --data-dir " + other:     2,
		"serve gateway --name g --manager ftp://x --nbd 127.0.0.1:0 --data-dir " + dir: 4,
	} {
		got, _, stderr := runWith(nil, "", strings.Fields(line)...)
		if got != code {
			t.Errorf("gantline %s: exit %d, want %d: %s", line, got, code, stderr)
		}
	}
	code, _, stderr := runWith(map[string]string{"GANTLINE_TEST_HOOKS": "1", "GANTLINE_KILL_AT": "lunch.before"}, "",
		"serve", "manager", "--listen", "127.0.0.1:0", "--data-dir", other)
	if code != 2 || !strings.Contains(stderr, "lunch") {
		t.Errorf("unknown kill point: exit %d, %s", code, stderr)
	}
}

func TestYAMLKeepsOrder(t *testing.T) {
	var b bytes.Buffer
	if err := printYAML(&b, json.RawMessage(`{"z":1,"a":[{"y":null,"b":"x: y"}]}`)); err != nil {
		t.Fatal(err)
	}
	if want := "z: 1\na:\n  - y: null\n    b: 'x: y'\n"; b.String() != want {
		t.Fatalf("got %q, want %q", b.String(), want)
	}
}
