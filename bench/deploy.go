package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"
)

// deployment is a whole Gantline system as real processes: manager, nodes a and b at one site, c at the other, and a
// gateway. Hosts reach nodes and gateway by unix sockets, the processes reach each other by TCP on loopback.
type deployment struct {
	binary  string
	dir     string
	manager *process
	url     string // the manager's
	nodes   map[string]*process
	gateway *process
	http    map[string]string // addresses for profiles, by process
}

// Names of the deployment's nodes.
const (
	nodeA = "a" // serves hosts
	nodeB = "b" // volumes move here
	nodeC = "c" // has the secondaries
)

// nodeMemory is what nodes are started with, beside which their memory is judged.
const nodeMemory = "512MiB"

func deploy(ctx context.Context, binary, dir string) (d *deployment, err error) {
	binary, err = filepath.Abs(binary)
	if err != nil {
		return nil, err
	}
	d = &deployment{binary: binary, dir: dir, nodes: map[string]*process{}, http: map[string]string{}}
	defer func() {
		if err != nil {
			err = errors.Join(err, d.stop())
		}
	}()
	var ready map[string]string
	d.manager, ready, err = d.serve(ctx, "manager", "manager", "--listen", "127.0.0.1:0")
	if err != nil {
		return d, err
	}
	if ready["listen"] == "" {
		return d, fmt.Errorf("the manager's ready line names no address: %v", ready)
	}
	d.url = "http://" + ready["listen"]
	for name, site := range map[string]string{nodeA: "local", nodeB: "local", nodeC: "remote"} {
		d.nodes[name], ready, err = d.serve(ctx, "node", name, "--site", site, "--listen", "127.0.0.1:0",
			"--nbd-unix", d.socket(name), "--memory", nodeMemory, "--http", "127.0.0.1:0")
		if err != nil {
			return d, err
		}
		d.http[name] = ready["http"]
	}
	d.gateway, ready, err = d.serve(ctx, "gateway", "g", "--site", "local", "--nbd", "127.0.0.1:0", "--nbd-unix", d.socket("g"),
		"--http", "127.0.0.1:0")
	d.http["g"] = ready["http"]
	return d, err
}

func (d *deployment) socket(name string) string { return filepath.Join(d.dir, name+".sock") }

// viaGateway is a virtual volume as hosts open it, direct a volume at its node.
func (d *deployment) viaGateway(vvol string) endpoint { return endpoint{d.socket("g"), vvol} }
func (d *deployment) direct(node, volume string) endpoint {
	return endpoint{d.socket(node), volume}
}

// serve starts one role and waits for its ready line, whose addresses it returns.
func (d *deployment) serve(ctx context.Context, role, name string, flags ...string) (*process, map[string]string, error) {
	args := []string{d.binary, "serve", role, "--data-dir", filepath.Join(d.dir, name)}
	if role != "manager" {
		args = append(args, "--name", name, "--manager", d.url)
	}
	p, err := start(role+" "+name, append(args, flags...)...)
	if err != nil {
		return nil, nil, err
	}
	var ready map[string]string
	err = p.waitFor(ctx, "ready line", func() bool {
		ready = readyLine(p.text(), role)
		return ready != nil
	})
	return p, ready, err
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
				addresses[key] = strings.Trim(value, `"`)
			}
		}
		return addresses
	}
	return nil
}

// stop ends all processes, those that depend on others first.
func (d *deployment) stop() error {
	if d == nil {
		return nil
	}
	err := d.gateway.stop()
	for _, name := range []string{nodeA, nodeB, nodeC} {
		err = errors.Join(err, d.nodes[name].stop())
	}
	return errors.Join(err, d.manager.stop())
}

// cli runs one command and returns its standard output.
func (d *deployment) cli(ctx context.Context, limit time.Duration, args ...string) ([]byte, error) {
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	cmd := exec.CommandContext(ctx, d.binary, args...)
	cmd.Env = append(os.Environ(), "GANTLINE_MANAGER="+d.url)
	var stdout, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	if err := cmd.Run(); err != nil {
		return nil, fmt.Errorf("gantline %s: %w\n%s", strings.Join(args, " "), err, tail(stderr.String()))
	}
	return stdout.Bytes(), nil
}

// commands runs commands one after the other, each a line of words.
func (d *deployment) commands(ctx context.Context, lines ...string) error {
	for _, line := range lines {
		if _, err := d.cli(ctx, 10*time.Minute, strings.Fields(line)...); err != nil {
			return err
		}
	}
	return nil
}

// group is what the benchmark reads of `group show`.
type group struct {
	State string `json:"state"`
	Lag   struct {
		Writes *int64 `json:"writes"`
	} `json:"lag"`
	WANBytesSent *int64 `json:"wan_bytes_sent"`
}

// maxAnswer bounds an answer of the manager.
const maxAnswer = 16 << 20

// get asks the manager by HTTP: a command's start would take longer than what is timed by it.
func (d *deployment) get(ctx context.Context, path string, into any) error {
	ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, d.url+path, nil)
	if err != nil {
		return err
	}
	response, err := http.DefaultClient.Do(request)
	if err != nil {
		return err
	}
	defer response.Body.Close()
	body, err := io.ReadAll(io.LimitReader(response.Body, maxAnswer))
	if err != nil {
		return err
	}
	if response.StatusCode != http.StatusOK {
		return fmt.Errorf("GET %s: %s: %s", path, response.Status, tail(string(body)))
	}
	return json.Unmarshal(body, into)
}

// wanBytes are those that a group has sent to its secondary since it was made.
func (d *deployment) wanBytes(ctx context.Context, name string) (int64, error) {
	var g group
	if err := d.get(ctx, "/v1/groups/"+name, &g); err != nil {
		return 0, err
	}
	if g.WANBytesSent == nil {
		return 0, fmt.Errorf("group %s: bytes sent are not known", name)
	}
	return *g.WANBytesSent, nil
}

// waitLag waits until the secondary has applied all, and tells how long that took.
func (d *deployment) waitLag(ctx context.Context, name string, limit time.Duration) (time.Duration, error) {
	begin := time.Now()
	var g group
	for {
		if err := d.get(ctx, "/v1/groups/"+name, &g); err != nil {
			return 0, err
		}
		if g.Lag.Writes != nil && *g.Lag.Writes == 0 {
			return time.Since(begin), nil
		}
		if time.Since(begin) > limit {
			return 0, fmt.Errorf("group %s is %s and its secondary did not catch up within %v", name, g.State, limit)
		}
		select {
		case <-ctx.Done():
			return 0, context.Cause(ctx)
		case <-time.After(5 * time.Millisecond):
		}
	}
}
