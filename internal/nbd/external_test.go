package nbd

import (
	"bytes"
	"encoding/json"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// tool runs an outside client; a missing one fails the test, since these clients are what the server is for.
func tool(t *testing.T, name string, args ...string) string {
	t.Helper()
	path, err := exec.LookPath(name)
	if err != nil {
		t.Fatalf("%s is missing: apt-get install libnbd-bin qemu-utils fio (%v)", name, err)
	}
	cmd := exec.Command(path, args...)
	cmd.Dir = t.TempDir() // fio leaves its state behind
	cmd.WaitDelay = time.Second
	timer := time.AfterFunc(90*time.Second, func() { cmd.Process.Kill() })
	defer timer.Stop()
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("%s %s: %v\n%s", name, strings.Join(args, " "), err, out)
	}
	return string(out)
}

func (r *rig) uri(export string) string {
	if r.network == "unix" {
		return fmt.Sprintf("nbd+unix:///%s?socket=%s", export, r.addr)
	}
	return fmt.Sprintf("nbd://%s/%s", r.addr, export)
}

func eachNetwork(t *testing.T, f func(t *testing.T, network string)) {
	for _, network := range []string{"unix", "tcp"} {
		t.Run(network, func(t *testing.T) { f(t, network) })
	}
}

func TestNbdinfo(t *testing.T) {
	m := newMemory(1 << 20)
	m.mark(8192, 16384, true)
	all := oneExport(1<<20, m)
	all["ro"] = Export{Size: 8192, Target: m, ReadOnly: true}
	r := newRig(t, "tcp", Options{}, all)
	var info struct {
		Exports []struct {
			Name        string `json:"export-name"`
			Description string
			Size        int64    `json:"export-size"`
			ReadOnly    bool     `json:"is_read_only"`
			Contexts    []string `json:"contexts"`
			MultiConn   bool     `json:"can_multi_conn"`
			Cache       bool     `json:"can_cache"`
			DF          bool     `json:"can_df"`
			FUA         bool     `json:"can_fua"`
			Flush       bool     `json:"can_flush"`
			Trim        bool     `json:"can_trim"`
			Zero        bool     `json:"can_zero"`
			Min         int      `json:"block_size_minimum"`
			Preferred   int      `json:"block_size_preferred"`
			Max         int      `json:"block_size_maximum"`
		}
	}
	out := tool(t, "nbdinfo", "--json", "--no-content", r.uri("a"))
	if err := json.Unmarshal([]byte(out), &info); err != nil || len(info.Exports) != 1 {
		t.Fatalf("%v\n%s", err, out)
	}
	e := info.Exports[0]
	if e.Name != "a" || e.Description != "an export" || e.Size != 1<<20 || e.ReadOnly || e.Min != 1 || e.Preferred != 4096 || e.Max != 32<<20 ||
		!e.MultiConn || !e.Cache || !e.DF || !e.FUA || !e.Flush || !e.Trim || !e.Zero || fmt.Sprint(e.Contexts) != "[base:allocation]" {
		t.Errorf("nbdinfo says\n%s", out)
	}
	out = tool(t, "nbdinfo", "--list", "--json", "--no-content", strings.TrimSuffix(r.uri("a"), "a"))
	info.Exports = nil
	if err := json.Unmarshal([]byte(out), &info); err != nil || len(info.Exports) != 2 {
		t.Errorf("list: %v\n%s", err, out)
	}
	out = strings.Join(strings.Fields(tool(t, "nbdinfo", "--map", r.uri("a"))), " ")
	if out != "0 8192 3 hole,zero 8192 8192 0 data 16384 1032192 3 hole,zero" {
		t.Errorf("map: %s", out)
	}
	if out := tool(t, "nbdinfo", "--is", "read-only", r.uri("ro")); out != "" {
		t.Errorf("read-only: %s", out)
	}
	if err := exec.Command("nbdinfo", strings.TrimSuffix(r.uri("a"), "a")).Run(); err == nil {
		t.Error("the empty name was served")
	}
}

func TestNbdcopyInAndOut(t *testing.T) {
	eachNetwork(t, func(t *testing.T, network string) {
		m := newMemory(32 << 20)
		m.scatter = scattered(2)
		r := newRig(t, network, Options{}, oneExport(32<<20, m))
		dir := t.TempDir()
		in, out := filepath.Join(dir, "in"), filepath.Join(dir, "out")
		image := fill(seeded(t), 32<<20)
		clear(image[5<<20 : 20<<20])
		if err := os.WriteFile(in, image, 0o600); err != nil {
			t.Fatal(err)
		}
		tool(t, "nbdcopy", "--flush", in, r.uri("a"))
		tool(t, "nbdcopy", r.uri("a"), out)
		got, err := os.ReadFile(out)
		if err != nil || !bytes.Equal(got, image) || !bytes.Equal(m.data, image) {
			t.Errorf("copies differ (%v)", err)
		}
	})
}

func TestQemu(t *testing.T) {
	eachNetwork(t, func(t *testing.T, network string) {
		m := newMemory(16 << 20)
		r := newRig(t, network, Options{}, map[string]Export{"a": {Size: 16 << 20, Target: m, CanFastZero: true}})
		out := tool(t, "qemu-io", "-f", "raw", "-c", "write -P 0x5a 0 1M", "-c", "write -f -P 0x5b 1M 64k", "-c", "write -z 64k 64k",
			"-c", "write -zu 256k 64k", "-c", "discard 512k 64k", "-c", "flush", "-c", "read -P 0x5a 0 64k", "-c", "read -P 0 64k 64k",
			"-c", "read -P 0 512k 64k", "-c", "read -P 0x5b 1M 64k", r.uri("a"))
		if strings.Contains(out, "failed") || strings.Contains(out, "error") {
			t.Errorf("qemu-io:\n%s", out)
		}
		image := filepath.Join(t.TempDir(), "image")
		data := fill(seeded(t), 16<<20)
		clear(data[1<<20 : 9<<20])
		if err := os.WriteFile(image, data, 0o600); err != nil {
			t.Fatal(err)
		}
		tool(t, "qemu-img", "convert", "-n", "-f", "raw", "-O", "raw", image, r.uri("a"))
		tool(t, "qemu-img", "compare", "-f", "raw", "-F", "raw", image, r.uri("a"))
		out = tool(t, "qemu-img", "map", "--output=json", "-f", "raw", r.uri("a"))
		if !strings.Contains(out, `"zero": true`) {
			t.Errorf("map shows no hole:\n%s", out)
		}
		m.mu.Lock()
		same := bytes.Equal(m.data, data)
		m.mu.Unlock()
		if !same {
			t.Error("the converted image differs")
		}
	})
}

func TestFioVerifies(t *testing.T) {
	eachNetwork(t, func(t *testing.T, network string) {
		m := newMemory(16 << 20)
		m.scatter = scattered(2)
		r := newRig(t, network, Options{}, oneExport(16<<20, m))
		tool(t, "fio", "--name=v", "--ioengine=nbd", "--uri="+r.uri("a"), "--rw=randwrite", "--bsrange=512-128k", "--iodepth=32",
			"--size=16M", "--verify=crc32c", "--verify_fatal=1", "--serialize_overlap=1", "--fsync=64", "--output-format=terse")
	})
}

// The client against an outside server.
func TestClientAgainstNbdkit(t *testing.T) {
	path, err := exec.LookPath("nbdkit")
	if err != nil {
		t.Fatalf("nbdkit is missing: apt-get install nbdkit (%v)", err)
	}
	dir, err := os.MkdirTemp("", "nbd")
	if err != nil {
		t.Fatal(err)
	}
	defer os.RemoveAll(dir)
	sock := filepath.Join(dir, "s")
	cmd := exec.Command(path, "-f", "-U", sock, "memory", "16M")
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	defer func() {
		cmd.Process.Kill()
		cmd.Wait()
	}()
	for deadline := time.Now().Add(5 * time.Second); ; time.Sleep(5 * time.Millisecond) {
		if s, err := net.Dial("unix", sock); err == nil {
			s.Close()
			break
		}
		if time.Now().After(deadline) {
			t.Fatal("nbdkit does not start")
		}
	}
	c, err := Dial(t.Context(), "unix", sock, "any")
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if c.Size() != 16<<20 || !c.alloc || !c.structured {
		t.Errorf("size %d, block status %v, structured %v", c.Size(), c.alloc, c.structured)
	}
	rng := seeded(t)
	for w := range 4 {
		worker(t, c, int64(w)<<20, rng)
	}
}
