package site

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"sync"
	"testing"
	"time"
)

// Site is a running system. Its methods end the test when what they promise does not come true.
type Site struct {
	T   testing.TB
	Bin string
	Dir string

	Manager, A, B, C, G *Process

	url string
}

// All processes, in the order in which they may be stopped.
func (s *Site) All() []*Process { return []*Process{s.G, s.A, s.B, s.C, s.Manager} }

// Process by its name.
func (s *Site) Process(name string) *Process {
	for _, p := range s.All() {
		if p.Name == name {
			return p
		}
	}
	s.T.Fatalf("no process %q", name)
	return nil
}

// Extra adds a process that StartAll does not start; flags come after those that every start has, and so beat them.
func (s *Site) Extra(role, name string, flags ...string) *Process {
	p := &Process{Role: role, Name: name, Dir: filepath.Join(s.Dir, name), site: s, flags: flags}
	s.T.Cleanup(p.Kill)
	return p
}

// In is the same site for a subtest: what goes wrong ends that one.
func (s *Site) In(t testing.TB) *Site {
	c := *s
	c.T = t
	return &c
}

// URL of the manager.
func (s *Site) URL() string { return s.url }

// Prepare makes a site of which nothing runs yet.
func Prepare(t testing.TB) *Site {
	t.Helper()
	// Not t.TempDir: the names of unix sockets are short.
	dir, err := os.MkdirTemp("", "gantline-")
	if err != nil {
		t.Fatal(err)
	}
	s := &Site{T: t, Bin: binary(t), Dir: dir}
	add := func(role, name string, flags ...string) *Process {
		p := &Process{Role: role, Name: name, Dir: filepath.Join(dir, name), site: s, flags: flags}
		if role != "manager" {
			p.Socket = filepath.Join(dir, name+".sock")
		}
		return p
	}
	s.Manager = add("manager", "manager")
	s.A = add("node", "a", "--site", "local", "--memory", "256MiB")
	s.B = add("node", "b", "--site", "local", "--memory", "256MiB")
	s.C = add("node", "c", "--site", "remote", "--memory", "256MiB")
	s.G = add("gateway", "g", "--site", "local")
	t.Cleanup(s.end)
	return s
}

// Start makes and runs a whole site.
func Start(t testing.TB, env map[string][]string) *Site {
	t.Helper()
	s := Prepare(t)
	s.StartAll(env)
	return s
}

// StartAll starts all processes of a prepared site. env, by process name, is added to their environment.
func (s *Site) StartAll(env map[string][]string) {
	s.T.Helper()
	s.Manager.start("", env["manager"])
	s.Manager.AwaitReady()
	s.url = "http://" + s.Manager.Ready["listen"]
	for _, p := range []*Process{s.A, s.B, s.C, s.G} {
		p.Launch(env[p.Name]...)
	}
	for _, p := range []*Process{s.A, s.B, s.C, s.G} {
		p.AwaitReady()
	}
}

// end kills what still runs and removes all files.
func (s *Site) end() {
	for _, p := range s.All() {
		p.Kill()
	}
	if s.T.Failed() {
		for _, p := range s.All() {
			p.dump(s.T)
		}
	}
	if os.Getenv("GANTLINE_KEEP") != "" {
		s.T.Logf("kept: %s", s.Dir)
		return
	}
	if err := os.RemoveAll(s.Dir); err != nil {
		s.T.Errorf("files of the site: %v", err)
	}
}

// WaitFor asks until the answer is yes.
func (s *Site) WaitFor(limit time.Duration, what string, ask func() bool) {
	s.T.Helper()
	if !Poll(limit, ask) {
		s.T.Fatalf("not within %v: %s", limit, what)
	}
}

// Poll asks until the answer is yes or the time is over.
func Poll(limit time.Duration, ask func() bool) bool {
	deadline := time.Now().Add(limit)
	for !ask() {
		if time.Now().After(deadline) {
			return false
		}
		time.Sleep(20 * time.Millisecond)
	}
	return true
}

var built struct {
	once sync.Once
	dir  string
	path string
	err  error
}

// binary is the program under test: GANTLINE_BIN, or built here once.
func binary(t testing.TB) string {
	t.Helper()
	if path := os.Getenv("GANTLINE_BIN"); path != "" {
		return path
	}
	built.once.Do(func() {
		if built.dir, built.err = os.MkdirTemp("", "gantline-bin-"); built.err != nil {
			return
		}
		built.path = filepath.Join(built.dir, "gantline")
		out, err := exec.Command("go", "build", "-o", built.path, "gantline/cmd/gantline").CombinedOutput()
		if err != nil {
			built.err = fmt.Errorf("build gantline: %w\n%s", err, out)
		}
	})
	if built.err != nil {
		t.Fatal(built.err)
	}
	return built.path
}

// Main runs a package's tests and removes the binary that they have built.
func Main(m *testing.M) {
	code := m.Run()
	if built.dir != "" {
		_ = os.RemoveAll(built.dir) // in the temporary directory anyway
	}
	os.Exit(code)
}
