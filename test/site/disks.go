package site

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strconv"
	"sync"
	"testing"
	"time"

	"gantline/internal/block"
	"gantline/internal/control"
	"gantline/internal/nbd"
	"gantline/internal/proof"
)

// Seed is the test's, from GANTLINE_SEED or new; it is printed.
func Seed(t testing.TB) uint64 {
	t.Helper()
	seed := rand.Uint64()
	if v := os.Getenv("GANTLINE_SEED"); v != "" {
		var err error
		if seed, err = strconv.ParseUint(v, 10, 64); err != nil {
			t.Fatalf("GANTLINE_SEED: %v", err)
		}
	}
	t.Logf("seed %d (GANTLINE_SEED)", seed)
	return seed
}

// Campaign is how many rounds a test shall make: GANTLINE_CAMPAIGN, 0 if there is none.
func Campaign() int {
	n, _ := strconv.Atoi(os.Getenv("GANTLINE_CAMPAIGN"))
	return n
}

// Made is a group that Pair made.
type Made struct {
	Name    string
	Volumes []string // of the same names on both sides, and of the virtual volumes
	Size    int64    // of each volume
}

// Pair makes a group a → c with n volumes, each with a virtual volume, and waits until it is paired. Journals are as large
// as told: small ones are made fast and fill fast. More flags are those of `group create`.
func (s *Site) Pair(name string, n int, size int64, journal string, flags ...string) *Made {
	s.T.Helper()
	s.Do("journal", "create", "a/"+name+"-log", "--size", journal)
	return s.pair(name, n, size, journal, append(flags, "--primary-journal", "a/"+name+"-log")...)
}

// PairOnQueue is Pair with a primary whose log is in memory.
func (s *Site) PairOnQueue(name string, n int, size int64, journal string, flags ...string) *Made {
	s.T.Helper()
	return s.pair(name, n, size, journal, append(flags, "--log", "queue")...)
}

func (s *Site) pair(name string, n int, size int64, journal string, flags ...string) *Made {
	s.T.Helper()
	m := &Made{Name: name, Size: size}
	s.Do("journal", "create", "c/"+name+"-log", "--size", journal)
	s.Do(append([]string{"group", "create", name, "--primary", "a", "--secondary", "c", "--secondary-journal", "c/" + name + "-log"},
		flags...)...)
	for i := range n {
		v := fmt.Sprintf("%s-%d", name, i+1)
		m.Volumes = append(m.Volumes, v)
		for _, node := range []string{"a", "c"} {
			s.Do("volume", "create", node+"/"+v, "--size", strconv.FormatInt(size, 10))
		}
		s.Do("pair", "add", name, "a/"+v, "c/"+v)
		s.Do("vvol", "create", v, "--volume", "a/"+v)
	}
	return m
}

// Dial opens an export of a process for the rest of the test.
func (s *Site) Dial(p *Process, export string) *nbd.Client {
	s.T.Helper()
	c, err := nbd.Dial(context.Background(), "unix", p.Socket, export)
	if err != nil {
		s.T.Fatalf("open %s at %s: %v", export, p.Name, err)
	}
	s.T.Cleanup(func() { _ = c.Close() })
	return c
}

// Disks are a group's virtual volumes as a host has them. A host without them gets an error when its connection ends.
func (s *Site) Disks(p *Process, m *Made) []proof.Disk {
	s.T.Helper()
	var disks []proof.Disk
	for _, v := range m.Volumes {
		disks = append(disks, proof.Disk{Target: s.Dial(p, v), Size: m.Size})
	}
	return disks
}

// FirmDisks are the same for a host that connects again, as a kernel's multipath does, when its server was killed, and
// repeats what was not answered.
func (s *Site) FirmDisks(p *Process, m *Made) []proof.Disk {
	var disks []proof.Disk
	for _, v := range m.Volumes {
		f := &firm{network: "unix", address: p.Socket, export: v, limit: 30 * time.Second}
		s.T.Cleanup(f.close)
		disks = append(disks, proof.Disk{Target: f, Size: m.Size})
	}
	return disks
}

// firm is a connection that comes back.
type firm struct {
	network, address, export string
	limit                    time.Duration // after which it gives up

	mu     sync.Mutex
	client *nbd.Client
	closed bool
}

// Submit answers each request from a goroutine of its own: loads of tests are not that fast.
func (f *firm) Submit(reqs []*block.Request) {
	for _, r := range reqs {
		go f.serve(r)
	}
}

type once chan error

func (o once) Complete(r *block.Request) { o <- r.Err }

func (f *firm) serve(r *block.Request) {
	deadline := time.Now().Add(f.limit)
	for {
		c, err := f.connection()
		if err == nil {
			answer := make(once, 1)
			again := *r
			again.Completer = answer
			c.Submit([]*block.Request{&again})
			err = <-answer
			if !errors.Is(err, nbd.ErrConnLost) && !errors.Is(err, block.ErrShutdown) {
				r.Extents = again.Extents
				r.Finish(err)
				return
			}
			f.lost(c)
		}
		if time.Now().After(deadline) {
			r.Finish(err)
			return
		}
		time.Sleep(20 * time.Millisecond)
	}
}

func (f *firm) connection() (*nbd.Client, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.closed {
		return nil, nbd.ErrConnLost
	}
	if f.client != nil {
		return f.client, nil
	}
	c, err := nbd.Dial(context.Background(), f.network, f.address, f.export)
	if err == nil {
		f.client = c
	}
	return c, err
}

func (f *firm) lost(c *nbd.Client) {
	f.mu.Lock()
	if f.client == c {
		f.client = nil
	}
	f.mu.Unlock()
	_ = c.Close()
}

func (f *firm) close() {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.closed = true
	if f.client != nil {
		_ = f.client.Close()
	}
}

// Running is a load at work.
type Running struct {
	*proof.Load
	stop context.CancelFunc
	done chan error
}

// Run starts a load.
func Run(l *proof.Load) *Running {
	ctx, cancel := context.WithCancel(context.Background())
	r := &Running{Load: l, stop: cancel, done: make(chan error, 1)}
	go func() { r.done <- l.Run(ctx) }()
	return r
}

// Stop ends the load, waits for what is in flight, and returns the first error of it.
func (r *Running) Stop() error {
	r.stop()
	return <-r.done
}

// volumeReader reads an export.
type volumeReader struct{ target block.Target }

func (v volumeReader) ReadAt(p []byte, off int64) (int, error) {
	answer := make(once, 1)
	v.target.Submit([]*block.Request{{Op: block.OpRead, Offset: off, Length: int64(len(p)), Data: p, Completer: answer}})
	if err := <-answer; err != nil {
		return 0, err
	}
	return len(p), nil
}

// Exports are the images of a group's volumes as a node's own exports show them.
func (s *Site) Exports(p *Process, m *Made) []io.ReaderAt {
	s.T.Helper()
	var images []io.ReaderAt
	for _, v := range m.Volumes {
		images = append(images, volumeReader{s.Dial(p, v)})
	}
	return images
}

// Device is the path of a volume's file, as `volume show` says it.
func (s *Site) Device(volume string) string {
	s.T.Helper()
	var v control.VolumeView
	if err := s.Get("/v1/volumes/"+volume, &v); err != nil {
		s.T.Fatalf("volume show %s: %v", volume, err)
	}
	return v.Device
}

// Files are the images of a group's volumes in the files of a node, as they lie there by default.
func (s *Site) Files(p *Process, m *Made) []io.ReaderAt {
	s.T.Helper()
	var images []io.ReaderAt
	for _, v := range m.Volumes {
		f, err := os.Open(filepath.Join(p.Dir, "volumes", v+".raw"))
		if err != nil {
			s.T.Fatal(err)
		}
		s.T.Cleanup(func() { _ = f.Close() })
		images = append(images, f)
	}
	return images
}

// Prefix ends the test unless the images are a prefix of what the load wrote.
func (s *Site) Prefix(l *proof.Load, what string, images []io.ReaderAt) proof.Verdict {
	s.T.Helper()
	v, err := l.CheckPrefix(images)
	if err != nil {
		s.T.Fatalf("%s: %v", what, err)
	}
	if !v.OK {
		s.T.Fatalf("%s is not a prefix: %s", what, v.Why)
	}
	s.T.Logf("%s: a prefix, %d writes, %d answered ones behind", what, v.Present, v.Behind)
	return v
}

// Equal ends the test unless the images lack no answered write.
func (s *Site) Equal(l *proof.Load, what string, images []io.ReaderAt) {
	s.T.Helper()
	if v := s.Prefix(l, what, images); !v.Equal {
		s.T.Fatalf("%s lacks %d answered writes", what, v.Behind)
	}
}

// Write writes p at off and reports the answer; one that does not come within limit is an error too.
func Write(target block.Target, off int64, p []byte, limit time.Duration) error {
	answer := make(once, 1)
	target.Submit([]*block.Request{{Op: block.OpWrite, Offset: off, Length: int64(len(p)), Data: p, Completer: answer}})
	select {
	case err := <-answer:
		return err
	case <-time.After(limit):
		return fmt.Errorf("no answer within %v", limit)
	}
}

// Read reads n bytes at off.
func Read(target block.Target, off, n int64) ([]byte, error) {
	p := make([]byte, n)
	_, err := volumeReader{target}.ReadAt(p, off)
	return p, err
}

// TryDial opens an export for which an error may be the right answer; the caller closes it.
func (s *Site) TryDial(p *Process, export string) (*nbd.Client, error) {
	return nbd.Dial(context.Background(), "unix", p.Socket, export)
}

// Spans are images of which only the first n bytes count; behind them they read as zeros.
func Spans(images []io.ReaderAt, n int64) []io.ReaderAt {
	var out []io.ReaderAt
	for _, image := range images {
		out = append(out, span{image, n})
	}
	return out
}

type span struct {
	io.ReaderAt
	n int64
}

func (s span) ReadAt(p []byte, off int64) (int, error) {
	clear(p)
	if keep := min(int64(len(p)), s.n-off); keep > 0 {
		if n, err := s.ReaderAt.ReadAt(p[:keep], off); err != nil {
			return n, err
		}
	}
	return len(p), nil
}
