package processes

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"gantline/test/site"
)

// A SQLite database on ext4 on a loop device on nbdfuse on the gateway is written all along a move, and sees no error.
// Then the whole source site dies; the file of the remote volume, copied away, mounts, and the database on it is whole and
// has every transaction up to some point.
func TestDatabaseAcrossMove(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("mounting needs root")
	}
	t.Parallel()
	s := site.Start(t, nil)
	g := s.Pair("db", 1, 128*mib, "128MiB")
	host := mountFuse(t, s, g.Volumes[0])
	db := filepath.Join(host.mount, "app.db")
	s.Tool("sqlite3", db, "PRAGMA journal_mode=DELETE; PRAGMA synchronous=FULL; CREATE TABLE entry(id INTEGER PRIMARY KEY, body TEXT);")

	w := writeRows(db)
	time.Sleep(time.Second)
	before := w.rows.Load()
	s.Do("migrate", "start", "db", "--to", "b")
	filled := w.rows.Load()
	s.Do("migrate", "commit", "db")
	time.Sleep(500 * time.Millisecond)
	if err := w.err(); err != nil {
		t.Fatalf("the database saw an error across the move: %v", err)
	}
	after := w.rows.Load()
	if before == 0 || filled == before && after == before {
		t.Fatalf("the database was not written all along: %d rows before the move, %d at its end, %d after it", before, filled, after)
	}
	s.AwaitInStep("db", 30*time.Second)
	reached := w.rows.Load() // answered, and 0 behind was seen no earlier than this
	for s.Group("db").SecondarySequence.Applied == nil {
		time.Sleep(10 * time.Millisecond)
	}
	s.AwaitInStep("db", 30*time.Second)
	time.Sleep(300 * time.Millisecond)

	device := s.Device("c/" + g.Volumes[0])
	for _, p := range []*site.Process{s.Manager, s.A, s.B, s.G} {
		p.Kill()
	}
	killed := w.stop()
	time.Sleep(2 * time.Second)
	live := filepath.Join(s.Dir, "live.img")
	s.Tool("cp", "--sparse=always", device, live)
	host.end()
	for _, c := range []struct{ what, image string }{{"file while its node runs", live}, {"file of the stopped node", device}} {
		if c.image == device {
			s.C.Stop()
		}
		rows := checkDatabase(t, s, c.image)
		t.Logf("%s: %d rows; the database had %d before the move, %d after it, %d when the site died", c.what, rows, before, after, killed)
		if rows < reached || rows > killed+1 {
			t.Errorf("%s has %d rows; %d had reached the remote site, %d were begun", c.what, rows, reached, killed+1)
		}
	}
}

// checkDatabase mounts a copy of an image, which replays the file system's journal, and has the database check itself.
func checkDatabase(t *testing.T, s *site.Site, image string) int64 {
	t.Helper()
	copied, dir := filepath.Join(s.Dir, "check.img"), filepath.Join(s.Dir, "check")
	s.Tool("cp", "--sparse=always", image, copied)
	if err := os.MkdirAll(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	loop := strings.TrimSpace(s.Tool("losetup", "--find", "--show", copied))
	defer s.Run("losetup", "-d", loop)
	s.Tool("mount", loop, dir)
	defer s.Tool("umount", dir)
	db := filepath.Join(dir, "app.db")
	if out := s.Tool("sqlite3", db, "PRAGMA integrity_check;"); strings.TrimSpace(out) != "ok" {
		t.Fatalf("integrity check of the remote database: %s", out)
	}
	var rows, last int64
	out := s.Tool("sqlite3", "-separator", " ", db, "SELECT count(*), coalesce(max(id), 0) FROM entry;")
	if _, err := fmt.Sscan(out, &rows, &last); err != nil || rows != last {
		t.Fatalf("the remote database has %d rows, the last is %d: some are missing in between (%v)", rows, last, err)
	}
	return rows
}

// fuse is a file system of a host on a virtual volume.
type fuse struct {
	t           *testing.T
	s           *site.Site
	cmd         *exec.Cmd
	loop, mount string
	dir         string
	ended       bool
}

func mountFuse(t *testing.T, s *site.Site, vvol string) *fuse {
	t.Helper()
	h := &fuse{t: t, s: s, dir: filepath.Join(s.Dir, "fuse"), mount: filepath.Join(s.Dir, "mnt")}
	for _, d := range []string{h.dir, h.mount} {
		if err := os.Mkdir(d, 0o700); err != nil {
			t.Fatal(err)
		}
	}
	file := filepath.Join(h.dir, "disk")
	if err := os.WriteFile(file, nil, 0o600); err != nil { // nbdfuse mounts itself over a file
		t.Fatal(err)
	}
	h.cmd = exec.Command("nbdfuse", file, "nbd+unix:///"+vvol+"?socket="+s.G.Socket)
	h.cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGKILL}
	if err := h.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(h.end)
	s.WaitFor(10*time.Second, "nbdfuse shows the volume", func() bool {
		info, err := os.Stat(file)
		return err == nil && info.Size() == 128*mib
	})
	h.loop = strings.TrimSpace(s.Tool("losetup", "--find", "--show", "--direct-io=off", file))
	s.Tool("mkfs.ext4", "-q", "-E", "lazy_itable_init=0,lazy_journal_init=0", h.loop)
	s.Tool("mount", h.loop, h.mount)
	return h
}

// end takes the file system away, also when what is below it is dead.
func (h *fuse) end() {
	if h.ended {
		return
	}
	h.ended = true
	if h.loop != "" {
		h.s.Run("umount", "-l", h.mount)
		h.s.Run("losetup", "-d", h.loop)
	}
	h.s.Run("fusermount3", "-u", "-z", filepath.Join(h.dir, "disk"))
	if h.cmd.Process != nil {
		_ = h.cmd.Process.Kill()
		_ = h.cmd.Wait()
	}
}

// rowWriter inserts one row a transaction, with the sqlite3 command.
type rowWriter struct {
	rows   atomic.Int64 // committed
	cancel context.CancelFunc
	done   chan struct{}
	failed atomic.Pointer[error]
}

func writeRows(db string) *rowWriter {
	ctx, cancel := context.WithCancel(context.Background())
	w := &rowWriter{cancel: cancel, done: make(chan struct{})}
	go func() {
		defer close(w.done)
		for ctx.Err() == nil {
			id := w.rows.Load() + 1
			sql := fmt.Sprintf("BEGIN; INSERT INTO entry VALUES(%d, hex(randomblob(700))); UPDATE entry SET body = hex(randomblob(300)) "+
				"WHERE id = %d; COMMIT;", id, id/2)
			// Not killed when the test stops it: a transaction that was begun ends by itself.
			cmd := exec.Command("sqlite3", "-bail", db, sql)
			cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
			if out, err := cmd.CombinedOutput(); err != nil {
				err = errors.Join(fmt.Errorf("row %d: %s", id, out), err)
				w.failed.Store(&err)
				return
			}
			w.rows.Store(id)
		}
	}()
	return w
}

func (w *rowWriter) err() error {
	if p := w.failed.Load(); p != nil {
		return *p
	}
	return nil
}

// stop ends the writer and returns how many rows were committed.
func (w *rowWriter) stop() int64 {
	w.cancel()
	select {
	case <-w.done:
	case <-time.After(20 * time.Second): // its file system is dead
	}
	return w.rows.Load()
}
