package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"
)

// startTimeout bounds every wait for a process to be ready, stopTimeout every wait for its end.
const (
	startTimeout = 30 * time.Second
	stopTimeout  = 30 * time.Second
)

// process is a child with its output collected, stopped by its own id only.
type process struct {
	name string
	cmd  *exec.Cmd
	done chan struct{} // closed when it has ended

	mu     sync.Mutex
	output bytes.Buffer // all that it wrote
}

func start(name string, args ...string) (*process, error) {
	p := &process{name: name, cmd: exec.Command(args[0], args[1:]...), done: make(chan struct{})}
	p.cmd.Stdout, p.cmd.Stderr = p, p
	// Children die with us, even if we are killed: a benchmark must not leave servers behind.
	p.cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL, Setpgid: true}
	if err := p.cmd.Start(); err != nil {
		return nil, fmt.Errorf("%s: %w", name, err)
	}
	go func() {
		p.cmd.Wait()
		close(p.done)
	}()
	return p, nil
}

// maxOutput bounds what is kept of a child's output; what comes later is dropped.
const maxOutput = 4 << 20

// Write collects the child's output.
func (p *process) Write(b []byte) (int, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.output.Len() < maxOutput {
		p.output.Write(b)
	}
	return len(b), nil
}

func (p *process) text() string {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.output.String()
}

// waitFor calls probe until it says yes; the process must stay alive meanwhile.
func (p *process) waitFor(ctx context.Context, what string, probe func() bool) error {
	ctx, cancel := context.WithTimeout(ctx, startTimeout)
	defer cancel()
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for {
		if probe() {
			return nil
		}
		select {
		case <-p.done:
			return fmt.Errorf("%s ended while waiting for %s:\n%s", p.name, what, tail(p.text()))
		case <-ctx.Done():
			return fmt.Errorf("%s: no %s within %v:\n%s", p.name, what, startTimeout, tail(p.text()))
		case <-tick.C:
		}
	}
}

// waitSocket waits until somebody accepts connections at the unix socket.
func (p *process) waitSocket(ctx context.Context, path string) error {
	return p.waitFor(ctx, "socket "+path, func() bool {
		c, err := net.Dial("unix", path)
		if err != nil {
			return false
		}
		// Some servers handle one client at a time and count it: leave politely, after the greeting.
		c.SetReadDeadline(time.Now().Add(time.Second))
		io.ReadFull(c, make([]byte, 1))
		c.Close()
		return true
	})
}

// stop asks the process to end and waits for it; one that does not listen is killed, which is an error.
func (p *process) stop() error {
	if p == nil {
		return nil
	}
	select {
	case <-p.done:
		return nil
	default:
	}
	p.cmd.Process.Signal(syscall.SIGTERM)
	p.cmd.Process.Signal(syscall.SIGCONT) // one that was stopped to play dead
	select {
	case <-p.done:
		return nil
	case <-time.After(stopTimeout):
		p.cmd.Process.Kill()
		<-p.done
		return fmt.Errorf("%s did not end within %v of SIGTERM and was killed", p.name, stopTimeout)
	}
}

func (p *process) signal(s syscall.Signal) error { return p.cmd.Process.Signal(s) }

// memory reads the memory that only this process uses, in bytes: page cache of files that it maps does not count.
func (p *process) memory() (int64, error) {
	data, err := os.ReadFile("/proc/" + strconv.Itoa(p.cmd.Process.Pid) + "/status")
	if err != nil {
		return 0, err
	}
	for line := range strings.Lines(string(data)) {
		if rest, ok := strings.CutPrefix(line, "RssAnon:"); ok {
			kb, err := strconv.ParseInt(strings.TrimSuffix(strings.TrimSpace(rest), " kB"), 10, 64)
			return kb << 10, err
		}
	}
	return 0, errors.New("no RssAnon in /proc/PID/status")
}

// cpu reads how long the process has kept processors busy so far, in itself and in the kernel.
func (p *process) cpu() (time.Duration, error) {
	data, err := os.ReadFile("/proc/" + strconv.Itoa(p.cmd.Process.Pid) + "/stat")
	if err != nil {
		return 0, err
	}
	_, rest, _ := strings.Cut(string(data), ") ") // the name before may hold anything
	fields := strings.Fields(rest)
	if len(fields) < 13 {
		return 0, errors.New("/proc/PID/stat is short")
	}
	user, err1 := strconv.ParseInt(fields[11], 10, 64)
	system, err2 := strconv.ParseInt(fields[12], 10, 64)
	const tick = 10 * time.Millisecond // USER_HZ is 100 on every Linux that Go runs on
	return time.Duration(user+system) * tick, errors.Join(err1, err2)
}

// tail is the end of a text, for error messages.
func tail(s string) string {
	const most = 2000
	if len(s) > most {
		s = "…" + s[len(s)-most:]
	}
	return strings.TrimSpace(s)
}
