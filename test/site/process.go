package site

import (
	"bytes"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"
)

const (
	readyTimeout = 20 * time.Second
	stopTimeout  = 10 * time.Second // as the manual promises for SIGTERM
	killTimeout  = 10 * time.Second
	maxLog       = 8 << 20 // kept of a process's output; what comes later is dropped
)

// Process is one role of the system. It may be started, killed and started again.
type Process struct {
	Role, Name string
	Dir        string            // its data directory
	Socket     string            // unix socket of its NBD exports; "" for the manager
	Ready      map[string]string // addresses of its latest ready line

	site  *Site
	flags []string // besides those that every start has
	fixed map[string]string

	mu   sync.Mutex
	log  bytes.Buffer
	cmd  *exec.Cmd
	done chan struct{}
	mark int // where the latest start's output begins
}

// Write collects output. It is not for the tests.
func (p *Process) Write(b []byte) (int, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.log.Len() < maxLog {
		p.log.Write(b)
	}
	return len(b), nil
}

// MemoryBytes is what the running process alone uses (RssAnon).
func (p *Process) MemoryBytes() int64 {
	p.site.T.Helper()
	p.mu.Lock()
	pid := p.cmd.Process.Pid
	p.mu.Unlock()
	raw, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		p.site.T.Fatal(err)
	}
	for line := range strings.Lines(string(raw)) {
		var kib int64
		if n, _ := fmt.Sscanf(line, "RssAnon: %d kB", &kib); n == 1 {
			return kib << 10
		}
	}
	p.site.T.Fatalf("memory of %s is not told", p.Name)
	return 0
}

// Log is all that the process wrote, over all its starts.
func (p *Process) Log() string {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.log.String()
}

// LatestLog is what it wrote since its latest start.
func (p *Process) LatestLog() string {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.log.String()[p.mark:]
}

// Start starts the process and waits until it serves. env is added to its environment.
func (p *Process) Start(env ...string) {
	p.site.T.Helper()
	p.start(p.site.url, env)
	p.AwaitReady()
}

// StartIsolated starts it at a new port and with no manager, so that no other process can reach it: what it serves then
// comes from its own disk alone.
func (p *Process) StartIsolated() {
	p.site.T.Helper()
	keep := p.fixed
	p.fixed = nil
	p.start("http://127.0.0.1:1", nil)
	p.AwaitReady()
	p.fixed = keep
}

// Launch starts the process and does not wait for it.
func (p *Process) Launch(env ...string) {
	p.site.T.Helper()
	p.start(p.site.url, env)
}

func (p *Process) start(manager string, env []string) {
	t := p.site.T
	t.Helper()
	if p.Alive() {
		t.Fatalf("%s runs already", p.Name)
	}
	args := []string{"serve", p.Role, "--data-dir", p.Dir}
	if p.Role != "manager" {
		args = append(args, "--name", p.Name, "--manager", manager)
	}
	if p.Role != "gateway" {
		args = append(args, "--listen", p.address("listen"))
	} else {
		args = append(args, "--nbd", p.address("nbd"))
	}
	if p.Socket != "" {
		args = append(args, "--nbd-unix", p.Socket)
	}
	p.spawn(append(args, p.flags...), env)
}

// address is the one of the first start, or a free port.
func (p *Process) address(key string) string {
	if a := p.fixed[key]; a != "" {
		return a
	}
	return "127.0.0.1:0"
}

func (p *Process) spawn(args, env []string) {
	t := p.site.T
	t.Helper()
	cmd := exec.Command(p.site.Bin, args...)
	cmd.Env = append(environment(), env...)
	cmd.Stdout, cmd.Stderr = p, p
	// Children die with us, even if we are killed; and a terminal's Ctrl-C reaches us alone.
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL, Setpgid: true}
	p.mu.Lock()
	defer p.mu.Unlock()
	fmt.Fprintf(&p.log, "--- %s: start %s %s\n", time.Now().Format("15:04:05.000"), strings.Join(args, " "), strings.Join(env, " "))
	p.mark = p.log.Len()
	if err := cmd.Start(); err != nil {
		t.Fatalf("start %s: %v", p.Name, err)
	}
	done := make(chan struct{})
	p.cmd, p.done = cmd, done
	go func() {
		_ = cmd.Wait() // its state is read from the command
		close(done)
	}()
}

// environment is ours without what configures Gantline, or these tests.
func environment() []string {
	return slices.DeleteFunc(os.Environ(), func(v string) bool { return strings.HasPrefix(v, "GANTLINE_") })
}

// AwaitReady waits for the ready line of the latest start.
func (p *Process) AwaitReady() {
	t := p.site.T
	t.Helper()
	deadline := time.Now().Add(readyTimeout)
	for {
		if ready := readyLine(p.LatestLog(), p.Role); ready != nil {
			p.Ready = ready
			if p.fixed == nil {
				p.fixed = ready
			}
			return
		}
		if !p.Alive() {
			t.Fatalf("%s %s ended before it was ready (%s):\n%s", p.Role, p.Name, p.Ended(), tail(p.LatestLog()))
		}
		if time.Now().After(deadline) {
			t.Fatalf("%s %s was not ready within %v:\n%s", p.Role, p.Name, readyTimeout, tail(p.LatestLog()))
		}
		time.Sleep(5 * time.Millisecond)
	}
}

// readyLine finds `ready ROLE NAME key=value…` in a process's output, in whatever form of log it stands.
func readyLine(output, role string) map[string]string {
	for line := range strings.Lines(output) {
		_, rest, found := strings.Cut(line, "ready "+role+" ")
		if !found || !strings.HasSuffix(line, "\n") {
			continue
		}
		addresses := map[string]string{}
		for _, word := range strings.Fields(rest) {
			if key, value, ok := strings.Cut(word, "="); ok {
				value, _, _ = strings.Cut(strings.Trim(value, `"`), ",") // of several, the first: TCP before unix
				addresses[key] = value
			}
		}
		return addresses
	}
	return nil
}

// Alive says whether it runs.
func (p *Process) Alive() bool {
	p.mu.Lock()
	done := p.done
	p.mu.Unlock()
	if done == nil {
		return false
	}
	select {
	case <-done:
		return false
	default:
		return true
	}
}

// Ended says how the latest run ended.
func (p *Process) Ended() string {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.cmd == nil || p.cmd.ProcessState == nil {
		return "it has not ended"
	}
	return p.cmd.ProcessState.String()
}

// AwaitEnd waits for the process to end by itself and returns its exit code, -1 for a signal.
func (p *Process) AwaitEnd(limit time.Duration) int {
	p.site.T.Helper()
	select {
	case <-p.done:
		return p.cmd.ProcessState.ExitCode()
	case <-time.After(limit):
		p.site.T.Fatalf("%s %s did not end within %v:\n%s", p.Role, p.Name, limit, tail(p.LatestLog()))
		return 0
	}
}

// WasKilled says whether the latest run was ended by SIGKILL.
func (p *Process) WasKilled() bool {
	if p.Alive() {
		return false
	}
	ws, ok := p.cmd.ProcessState.Sys().(syscall.WaitStatus)
	return ok && ws.Signaled() && ws.Signal() == syscall.SIGKILL
}

// Kill ends the process at once, with SIGKILL.
func (p *Process) Kill() {
	if !p.Alive() {
		return
	}
	_ = p.cmd.Process.Kill()
	select {
	case <-p.done:
	case <-time.After(killTimeout):
		p.site.T.Errorf("%s does not end after SIGKILL", p.Name)
	}
}

// Signal sends a signal. A process that is sent SIGSTOP does nothing more when it returns: on a busy machine one of its
// threads takes a while to hear of it, and the others run until then.
func (p *Process) Signal(sig syscall.Signal) {
	p.site.T.Helper()
	if err := p.cmd.Process.Signal(sig); err != nil {
		p.site.T.Fatalf("signal %s: %v", p.Name, err)
	}
	if sig == syscall.SIGSTOP {
		p.site.WaitFor(10*time.Second, p.Name+" stands still", p.standsStill)
	}
}

func (p *Process) standsStill() bool {
	threads, err := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/stat", p.cmd.Process.Pid))
	if err != nil || len(threads) == 0 {
		return false
	}
	for _, path := range threads {
		stat, err := os.ReadFile(path)
		if _, state, _ := strings.Cut(string(stat), ") "); err != nil || !strings.HasPrefix(state, "T") {
			return false
		}
	}
	return true
}

// Stop ends the process with SIGTERM, which must take it at most ten seconds and end in 0.
func (p *Process) Stop() {
	t := p.site.T
	t.Helper()
	if !p.Alive() {
		return
	}
	p.Signal(syscall.SIGTERM)
	select {
	case <-p.done:
	case <-time.After(stopTimeout):
		_ = p.cmd.Process.Signal(syscall.SIGQUIT) // its goroutines go to the log
		time.Sleep(300 * time.Millisecond)
		p.Kill()
		t.Fatalf("%s %s did not end within %v of SIGTERM:\n%s", p.Role, p.Name, stopTimeout, tail(p.LatestLog()))
	}
	if code := p.cmd.ProcessState.ExitCode(); code != 0 {
		t.Fatalf("%s %s after SIGTERM: %s, wanted exit 0:\n%s", p.Role, p.Name, p.Ended(), tail(p.LatestLog()))
	}
}

// Restart is Kill and Start.
func (p *Process) Restart(env ...string) {
	p.site.T.Helper()
	p.Kill()
	p.Start(env...)
}

// KillAt is the environment that has a process kill itself at a step of a move; edge is "before" or "after".
func KillAt(step, edge string) []string {
	return []string{"GANTLINE_TEST_HOOKS=1", "GANTLINE_KILL_AT=" + step + "." + edge}
}

// StopAt is the environment that has a process stand still at a step of a move until it gets SIGCONT.
func StopAt(step, edge string) []string {
	return []string{"GANTLINE_TEST_HOOKS=1", "GANTLINE_STOP_AT=" + step + "." + edge}
}

// AwaitStopAt waits until the process stands still at the step.
func (p *Process) AwaitStopAt(step string, limit time.Duration) {
	p.site.T.Helper()
	p.site.WaitFor(limit, p.Name+" stands still at "+step, func() bool {
		return strings.Contains(p.Log(), "stop point "+step) && p.standsStill()
	})
}

// dump prints the end of the log.
func (p *Process) dump(t testing.TB) {
	t.Logf("===== %s %s (%s)\n%s", p.Role, p.Name, p.Ended(), tail(p.Log()))
	if dir := os.Getenv("GANTLINE_LOGS"); dir != "" {
		name := strings.ReplaceAll(t.Name(), "/", "_") + "-" + p.Name + ".log"
		if err := os.WriteFile(filepath.Join(dir, name), []byte(p.Log()), 0o600); err != nil {
			t.Log(err)
		}
	}
}

// tail is the end of a log.
func tail(s string) string {
	const most = 6000
	if len(s) > most {
		s = "…" + s[len(s)-most:]
	}
	return strings.TrimSpace(s)
}

var _ io.Writer = (*Process)(nil)
