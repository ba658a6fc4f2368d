package block

import (
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// loopDevice attaches a loop device to a sparse file, for as long as the test runs.
func loopDevice(t *testing.T, size int64) (device, backing string) {
	t.Helper()
	backing = filepath.Join(t.TempDir(), "backing")
	if err := errors.Join(os.WriteFile(backing, nil, 0o600), os.Truncate(backing, size)); err != nil {
		t.Fatal(err)
	}
	out, err := exec.Command("losetup", "-f", "--show", backing).CombinedOutput()
	if err != nil {
		t.Skipf("no loop device: %v: %s", err, out)
	}
	device = strings.TrimSpace(string(out))
	t.Cleanup(func() {
		if out, err := exec.Command("losetup", "-d", device).CombinedOutput(); err != nil {
			t.Errorf("detach %s: %v: %s", device, err, out)
		}
	})
	return device, backing
}

func openRaw(t *testing.T, path string) *File {
	t.Helper()
	d, err := OpenFile(path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { d.Close() })
	return d.(*File)
}

func TestRawDevice(t *testing.T) {
	device, backing := loopDevice(t, 4<<20)
	d := openRaw(t, device)
	if d.Size() != 4<<20 || !d.Raw() {
		t.Fatalf("size %d, raw %v", d.Size(), d.Raw())
	}
	checkDevice(t, d)
	if err := d.Zero(0, d.Size(), true); err != nil {
		t.Fatal(err)
	}
	mustFlush(t, d)
	full := blocks(t, backing)
	if err := d.Trim(1000, 3<<20); err != nil { // not aligned at either end
		t.Fatal(err)
	}
	mustFlush(t, d)
	if left := blocks(t, backing); full < 4<<20/512 || left >= full {
		t.Errorf("zero with keep: %d blocks; after trim: %d", full, left)
	}
}

func TestRawDeviceWithoutPunchAgainstModel(t *testing.T) {
	device, _ := loopDevice(t, 1<<20)
	d := openRaw(t, device)
	d.noPunch.Store(true)
	checkDevice(t, d)
	if d.noZeroRange.Load() {
		t.Error("BLKZEROOUT was not used")
	}
}

func TestRawDeviceIsRefusedASecondOpen(t *testing.T) {
	device, _ := loopDevice(t, 1<<20)
	d := openRaw(t, device)
	node := filepath.Join(t.TempDir(), "same")
	if err := unix.Mknod(node, unix.S_IFBLK|0o600, int(d.id.dev)); err != nil {
		t.Fatal(err)
	}
	for _, path := range []string{device, "/dev/../" + device, node} {
		if _, err := OpenFile(path); !errors.Is(err, ErrInUse) {
			t.Errorf("%s: %v", path, err)
		}
	}
	if err := d.Close(); err != nil {
		t.Fatal(err)
	}
	openRaw(t, device)
}

func TestRawDeviceThatIsMountedIsInUse(t *testing.T) {
	device, _ := loopDevice(t, 8<<20)
	if out, err := exec.Command("mkfs.ext4", "-q", device).CombinedOutput(); err != nil {
		t.Skipf("mkfs: %v: %s", err, out)
	}
	dir := t.TempDir()
	if err := unix.Mount(device, dir, "ext4", 0, ""); err != nil {
		t.Skipf("mount: %v", err)
	}
	defer unix.Unmount(dir, 0)
	if _, err := OpenFile(device); !errors.Is(err, ErrInUse) {
		t.Errorf("open while mounted: %v", err)
	}
}

func TestBitmapOnARawDevice(t *testing.T) {
	device, _ := loopDevice(t, 1<<20)
	d := openRaw(t, device)
	b, err := CreateBitmap(d, 1<<20, 9)
	if err != nil {
		t.Fatal(err)
	}
	b.SetRange(5, 100000)
	mustFlush(t, b)
	if err := d.Close(); err != nil {
		t.Fatal(err)
	}
	if b = mustOpenBitmap(t, openRaw(t, device)); b.Count() != 100000 || b.Generation() != 9 {
		t.Errorf("%d bits, generation %d", b.Count(), b.Generation())
	}
}
