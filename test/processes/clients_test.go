package processes

import (
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"testing"
	"time"

	"gantline/test/site"
)

// sparseFile has data in runs with holes between, so that clients take their paths for zeros and holes too.
func sparseFile(t *testing.T, path string, size int64, seed uint64) {
	t.Helper()
	rnd := rand.New(rand.NewPCG(seed, 1))
	f, err := os.Create(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if err := f.Truncate(size); err != nil {
		t.Fatal(err)
	}
	run := make([]byte, 256<<10)
	for range size / mib / 2 {
		for i := range run {
			run[i] = byte(rnd.Uint32())
		}
		if _, err := f.WriteAt(run, rnd.Int64N((size-int64(len(run)))/4096)*4096); err != nil {
			t.Fatal(err)
		}
	}
}

// Clients written by others use a volume through the gateway, and a volume in no group at its node.
func TestClients(t *testing.T) {
	t.Parallel()
	seed := site.Seed(t)
	s := site.Start(t, nil)
	const size = 64 * mib
	g := s.Pair("db", 1, size, "128MiB")
	v := g.Volumes[0]
	s.Do("volume", "create", "a/lone", "--size", fmt.Sprint(size))
	for name, uri := range map[string]string{
		"gateway unix": "nbd+unix:///" + v + "?socket=" + s.G.Socket,
		"gateway tcp":  "nbd://" + s.G.Ready["nbd"] + "/" + v,
		"node":         "nbd+unix:///lone?socket=" + s.A.Socket,
	} {
		t.Run(name, func(t *testing.T) {
			s := s.In(t)
			src, back := filepath.Join(s.Dir, "src"), filepath.Join(s.Dir, "back")
			sparseFile(t, src, size, seed)
			inspect(t, s, uri, size)
			s.Tool("nbdcopy", src, uri)
			s.Tool("nbdcopy", uri, back)
			s.Tool("cmp", src, back)
			s.Tool("qemu-io", "-f", "raw", "-c", "write -P 0xab 1M 64k", "-c", "read -P 0xab 1M 64k", "-c", "write -z 1028k 8k",
				"-c", "read -P 0 1028k 8k", "-c", "read -P 0xab 1036k 28k", "-c", "discard 2M 1M", "-c", "read -P 0 2M 1M",
				"-c", "flush", "-c", "write -f -P 0xcd 3M 3k", "-c", "read -P 0xcd 3M 3k", uri)
			s.Tool("qemu-img", "convert", "-n", "-f", "raw", "-O", "raw", src, uri)
			s.Tool("qemu-img", "compare", "-f", "raw", "-F", "raw", src, uri)
			s.Tool("fio", "--name=verify", "--ioengine=nbd", "--uri="+uri, "--rw=randwrite", "--bsrange=512-128k", "--bs_unaligned",
				"--size=32M", "--io_size=32M", "--iodepth=16", "--verify=crc32c", "--verify_fatal=1", "--verify_state_save=0", "--fsync=64",
				fmt.Sprintf("--randseed=%d", seed>>33))
		})
	}
	s.AwaitInStep("db", 20*time.Second)
	s.Tool("qemu-img", "compare", "-f", "raw", "-F", "raw", "nbd+unix:///"+v+"?socket="+s.G.Socket,
		"nbd+unix:///"+v+"?socket="+s.C.Socket)
	// The secondary's export refuses to be written by anybody.
	if r := s.Run("qemu-io", "-f", "raw", "-c", "write 0 4k", "nbd+unix:///"+v+"?socket="+s.C.Socket); r.Code == 0 {
		t.Errorf("a secondary let itself be written: %v", r)
	}
}

// inspect checks what an export says of itself.
func inspect(t *testing.T, s *site.Site, uri string, size int64) {
	t.Helper()
	var info struct {
		Exports []map[string]any `json:"exports"`
	}
	out := s.Tool("nbdinfo", "--json", uri)
	if err := json.Unmarshal([]byte(out), &info); err != nil || len(info.Exports) != 1 {
		t.Fatalf("nbdinfo: %v\n%s", err, out)
	}
	e := info.Exports[0]
	for key, want := range map[string]any{
		"export-size": float64(size), "is_read_only": false, "can_cache": true, "can_df": true, "can_flush": true,
		"can_fua": true, "can_multi_conn": true, "can_trim": true, "can_zero": true, "block_size_minimum": float64(1),
		"block_size_preferred": float64(4096), "block_size_maximum": float64(32 << 20),
	} {
		if e[key] != want {
			t.Errorf("%s: %s is %v, wanted %v", uri, key, e[key], want)
		}
	}
}
