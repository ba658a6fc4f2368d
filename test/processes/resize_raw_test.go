package processes

import (
	"bytes"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"gantline/test/site"
)

// rawDevice attaches a loop device to a file of size bytes.
func rawDevice(t *testing.T, path string, size int64) string {
	t.Helper()
	if err := os.WriteFile(path, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Truncate(path, size); err != nil {
		t.Fatal(err)
	}
	out, err := exec.Command("losetup", "-f", "--show", path).CombinedOutput()
	if err != nil {
		t.Skipf("no loop device: %v: %s", err, out)
	}
	loop := strings.TrimSpace(string(out))
	t.Cleanup(func() {
		if out, err := exec.Command("losetup", "-d", loop).CombinedOutput(); err != nil {
			t.Errorf("losetup -d: %v: %s", err, out)
		}
	})
	return loop
}

// A pair on raw devices grows with them, with a file system on it. What the devices had in their new part is gone on both sides; the file
// system grows into it, and both sides have it whole.
func TestResizeOfARawDeviceWithAFileSystem(t *testing.T) {
	t.Parallel()
	const size, larger = 16 * mib, 40 * mib
	dir := t.TempDir()
	backing := map[string]string{"a": filepath.Join(dir, "a.img"), "c": filepath.Join(dir, "c.img")}
	loops := map[string]string{}
	for node, path := range backing { // detached once the site has stopped
		loops[node] = rawDevice(t, path, size)
	}
	s := site.Start(t, nil)
	s.Do("group create db --primary a --secondary c")
	for node, loop := range loops {
		s.Do("volume", "create", node+"/disk", "--size", "16MiB", "--device", loop)
	}
	s.Do("pair add db a/disk c/disk")
	s.Do("vvol create disk --volume a/disk")
	host, image := filepath.Join(dir, "host.ext4"), filepath.Join(dir, "image")
	if err := os.WriteFile(filepath.Join(dir, "file"), bytes.Repeat([]byte("what was written before it grew\n"), 9000), 0o600); err != nil {
		t.Fatal(err)
	}
	s.Tool("truncate", "-s", "16M", host)
	s.Tool("mkfs.ext4", "-q", "-F", host)
	s.Tool("debugfs", "-w", "-R", "write "+filepath.Join(dir, "file")+" file", host)
	uri := func(p *site.Process) string { return "nbd+unix:///disk?socket=" + p.Socket }
	put := func() { s.Tool("qemu-img", "convert", "-n", "-f", "raw", "-O", "raw", host, uri(s.G)) }
	get := func(p *site.Process) []byte {
		s.Tool("qemu-img", "convert", "-f", "raw", "-O", "raw", uri(p), image)
		b, err := os.ReadFile(image)
		if err != nil {
			t.Fatal(err)
		}
		return b
	}
	put()
	for node, path := range backing {
		f, err := os.OpenFile(path, os.O_WRONLY, 0)
		if err == nil {
			_, err = f.WriteAt(bytes.Repeat([]byte(node), int(larger-size)), size)
			err = errors.Join(err, f.Close())
		}
		if err != nil {
			t.Fatal(err)
		}
		s.Tool("losetup", "-c", loops[node])
	}
	s.Do("volume resize a/disk --size 40MiB")
	s.AwaitInStep("db", 20*time.Second)
	before, err := os.ReadFile(host)
	if err != nil {
		t.Fatal(err)
	}
	for _, p := range []*site.Process{s.A, s.C} {
		b := get(p)
		if int64(len(b)) != larger || !bytes.Equal(b[:size], before) || bytes.Count(b[size:], []byte{0}) != int(larger-size) {
			t.Fatalf("%s has %d bytes, with something else behind the old end", p.Name, len(b))
		}
	}
	s.Tool("truncate", "-s", "40M", host)
	s.Tool("resize2fs", "-f", host)
	put()
	s.AwaitInStep("db", 20*time.Second)
	want, err := os.ReadFile(host)
	if err != nil {
		t.Fatal(err)
	}
	for _, p := range []*site.Process{s.A, s.C} {
		if !bytes.Equal(get(p), want) {
			t.Fatalf("%s has another image", p.Name)
		}
		s.Tool("e2fsck", "-fn", image)
	}
}
