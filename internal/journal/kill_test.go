package journal

import (
	"bufio"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"gantline/internal/block"
	"gantline/internal/record"
)

const childDir = "GANTLINE_JOURNAL_TEST_DIR"

// TestKilledProcess kills a real process while it appends, again and again: each record that it has said to be
// appended is there, byte for byte, and the next process goes on behind.
func TestKilledProcess(t *testing.T) {
	if dir := os.Getenv(childDir); dir != "" {
		child(t, dir)
		return
	}
	dir := t.TempDir()
	for i := range 2 {
		d, err := block.CreateFile(filepath.Join(dir, fmt.Sprint(i)), 1<<20)
		if err != nil {
			t.Fatal(err)
		}
		if err := d.Close(); err != nil {
			t.Fatal(err)
		}
	}
	devs := childDevices(t, dir)
	if err := Create(devs, testID); err != nil {
		t.Fatal(err)
	}
	for _, d := range devs {
		if err := d.Close(); err != nil {
			t.Fatal(err)
		}
	}
	seed := uint64(time.Now().UnixNano())
	t.Log("seed", seed)
	rng := rand.New(rand.NewPCG(seed, 0))
	var acked uint64
	rounds := 12
	if testing.Short() {
		rounds = 3
	}
	for range rounds {
		before := acked
		acked = max(acked, runAndKill(t, dir, time.Duration(10+rng.IntN(60))*time.Millisecond))
		j, err := Open(childDevices(t, dir))
		if err != nil {
			t.Fatal(err)
		}
		if got := uint64(j.Cursors().Appended); got < acked || acked == before {
			t.Fatalf("%d acknowledged, %d before, recovered to %d", acked, before, got)
		}
		for _, r := range readAll(t, j, j.Cursors().Trimmed+1) {
			if want := write(j, r.Seq, len(r.Data)); !same(r, want) {
				t.Fatalf("record %d differs", r.Seq)
			}
		}
		acked = uint64(j.Cursors().Appended)
		if err := j.Close(); err != nil {
			t.Fatal(err)
		}
	}
	t.Logf("%d records through %d killed processes", acked, rounds)
}

func childDevices(t *testing.T, dir string) (devs []block.Device) {
	for i := range 2 {
		d, err := block.OpenFile(filepath.Join(dir, fmt.Sprint(i)))
		if err != nil {
			t.Fatal(err)
		}
		devs = append(devs, d)
	}
	return devs
}

// runAndKill returns the last record that the process said to be appended before SIGKILL met it.
func runAndKill(t *testing.T, dir string, after time.Duration) (acked uint64) {
	cmd := exec.Command(os.Args[0], "-test.run=^TestKilledProcess$")
	cmd.Env = append(os.Environ(), childDir+"="+dir)
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	lines := bufio.NewScanner(out)
	armed := false
	for lines.Scan() {
		text, ok := strings.CutPrefix(lines.Text(), "appended ")
		if !ok {
			t.Error("child:", lines.Text())
			continue
		}
		n, err := strconv.ParseUint(text, 10, 64)
		if err != nil {
			t.Fatal(err)
		}
		acked = n
		if !armed {
			armed = true
			time.AfterFunc(after, func() { _ = cmd.Process.Kill() })
		}
	}
	var exit *exec.ExitError
	if err := cmd.Wait(); !errors.As(err, &exit) || exit.Success() || exit.Exited() {
		t.Fatalf("the child was not killed: %v", err)
	}
	return acked
}

// child appends, syncs and trims until it is killed.
func child(t *testing.T, dir string) {
	j, err := Open(childDevices(t, dir))
	if err != nil {
		t.Fatal(err)
	}
	cur, _ := j.Table().Current()
	openRow(t, j, 1, cur.Incarnation+1)
	rng := rand.New(rand.NewPCG(uint64(cur.Incarnation), 2))
	for {
		var batch []record.Record
		for range 1 + rng.IntN(8) {
			batch = append(batch, write(j, j.Cursors().Appended+record.Seq(len(batch))+1, 1+rng.IntN(9000)))
		}
		err := j.Append(batch)
		if errors.Is(err, ErrFull) {
			if err := j.Trim(mustSync(t, j) - 5); err != nil {
				t.Fatal(err)
			}
			continue
		}
		if err != nil {
			t.Fatal(err)
		}
		fmt.Println("appended", j.Cursors().Appended)
	}
}
