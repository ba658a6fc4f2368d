package volume

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"flag"
	"math/rand/v2"
	"os"
	"sync"
	"testing"
	"time"

	"gantline/internal/block"
	"gantline/internal/journal"
	"gantline/internal/record"
)

var seedFlag = flag.Uint64("seed", 0, "replay this seed")

// seeded returns a random source whose seed is printed when the test fails.
func seeded(t testing.TB) (*rand.Rand, uint64) {
	seed := *seedFlag
	if seed == 0 {
		seed = rand.Uint64()
	}
	t.Cleanup(func() {
		if t.Failed() {
			t.Logf("replay with -seed %d", seed)
		}
	})
	return rand.New(rand.NewPCG(seed, 1)), seed
}

// roundsOf is how many rounds of random histories a test makes: a few, all with GANTLINE_CAMPAIGN.
func roundsOf(few, all int) int {
	if os.Getenv("GANTLINE_CAMPAIGN") != "" {
		return all
	}
	return few
}

// nextCall is the device call at which the next round cuts the power: after the first ones every stride-th or so, others
// with each seed; every single one with GANTLINE_CAMPAIGN.
func nextCall(rng *rand.Rand, at, stride int) int {
	if at < 30 || os.Getenv("GANTLINE_CAMPAIGN") != "" {
		return at + 1
	}
	return at + 1 + rng.IntN(2*stride-1)
}

// site is one node's storage: a journal and devices that forget what was not flushed, and the group on them.
type site struct {
	t      testing.TB
	jdev   *block.Crashable
	mem    *memDevs // the log is a queue; jdev is not used
	devs   []*block.Crashable
	size   int64
	cfg    Config
	opt    Options
	mend   func(s *site) // before Open: presence
	wrap   func(Log) Log // around the log, if set
	jnl    *journal.Journal
	g      *Group
	vols   []*Volume
	stop   context.CancelFunc
	ended  chan error
	inc    record.Incarnation
	epoch  uint64
	follow bool
	idle   bool // as a move's target: no role yet
}

func newSite(t testing.TB, seed uint64, volumes int, size, journalSize int64) *site {
	s := &site{t: t, size: size, epoch: 1}
	s.jdev = newJournal(t, journalSize, int64(seed), journal.ID{1})
	for i := range volumes {
		s.devs = append(s.devs, block.NewCrashable(size, int64(seed)+int64(i)+1))
	}
	return s
}

// fresh journals by size and name: formatting one takes the race detector longer than most histories on it.
var fresh sync.Map

type freshKey struct {
	size int64
	id   journal.ID
}

// newJournal is a device with a journal just made, all of it durable.
func newJournal(t testing.TB, size, seed int64, id journal.ID) *block.Crashable {
	t.Helper()
	made, ok := fresh.Load(freshKey{size, id})
	if !ok {
		d := block.NewCrashable(size, 1)
		if err := journal.Create([]block.Device{d}, id); err != nil {
			t.Fatal(err)
		}
		if d.Unsynced() != 0 {
			t.Fatal("a new journal is not durable")
		}
		made, _ = fresh.LoadOrStore(freshKey{size, id}, d)
	}
	return made.(*block.Crashable).Peek(seed)
}

// open recovers and serves, or follows, and runs the loops.
func (s *site) open() {
	s.t.Helper()
	if err := s.tryOpen(); err != nil {
		s.t.Fatal(err)
	}
}

func (s *site) tryOpen() error {
	cfg := s.cfg
	cfg.Name = "g"
	var err error
	if s.mem != nil {
		cfg.Log, err = s.mem.open()
	} else if s.jnl, err = journal.Open([]block.Device{s.jdev}); err == nil {
		cfg.Log = onJournal{s.jnl}
	}
	if err != nil {
		return err
	}
	if s.wrap != nil {
		cfg.Log = s.wrap(cfg.Log)
	}
	s.vols = nil
	for i, d := range s.devs {
		v := NewVolume(string(rune('a'+i)), d, s.opt)
		s.vols = append(s.vols, v)
		cfg.Members = append(cfg.Members, Member{Number: record.VolumeNumber(i + 1), Volume: v})
	}
	if s.mend != nil {
		s.mend(s)
	}
	if s.g, err = Open(cfg); err != nil {
		return err
	}
	if s.follow {
		if err := s.jnl.Resume(); err != nil {
			return err
		}
		if err := s.g.Follow(); err != nil {
			return err
		}
	} else if s.g.Role() != RoleSealed && !s.idle {
		s.inc++
		row := record.Row{Epoch: s.epoch, Incarnation: s.inc, Node: "n", First: s.g.Appended() + 1}
		if err := s.g.Serve(row); err != nil {
			return err
		}
	}
	s.run()
	return nil
}

func (s *site) run() {
	ctx, stop := context.WithCancel(context.Background())
	s.stop, s.ended = stop, make(chan error, 1)
	g, ended := s.g, s.ended
	go func() { ended <- g.Run(ctx) }()
}

func (s *site) close() {
	s.t.Helper()
	s.stop()
	<-s.ended
	if err := s.g.Close(); err != nil {
		s.t.Fatal("close:", err)
	}
}

// crash cuts the power: loops end, devices keep a part of what was not flushed.
func (s *site) crash() {
	j := s.jdev
	if s.mem != nil {
		s.mem.each((*block.Crashable).Crash)
	} else {
		j = s.jdev.Crash()
	}
	var devs []*block.Crashable
	for _, d := range s.devs {
		devs = append(devs, d.Crash())
	}
	s.die(j, devs)
}

// kill is the death of the process alone.
func (s *site) kill() {
	j := s.jdev
	if s.mem != nil {
		s.mem.each((*block.Crashable).Kill)
	} else {
		j = s.jdev.Kill()
	}
	var devs []*block.Crashable
	for _, d := range s.devs {
		devs = append(devs, d.Kill())
	}
	s.die(j, devs)
}

func (s *site) die(j *block.Crashable, devs []*block.Crashable) {
	s.stop()
	<-s.ended
	_ = s.g.fail(errors.New("power lost")) // lets go of whoever waits
	s.jdev, s.devs = j, devs
}

// waiter is a Completer that is waited for.
type waiter chan *block.Request

func (w waiter) Complete(r *block.Request) { w <- r }

func newRequest(op block.Op, off, n int64) (*block.Request, waiter) {
	w := make(waiter, 1)
	r := &block.Request{Op: op, Offset: off, Length: n, Completer: w}
	if op == block.OpRead {
		r.Data = make([]byte, n)
	}
	return r, w
}

func submit(v block.Target, r *block.Request, w waiter) error {
	v.Submit([]*block.Request{r})
	select {
	case <-w:
		return r.Err
	case <-time.After(30 * time.Second):
		panic("request is never answered")
	}
}

func write(v block.Target, off int64, data []byte, flags block.Flags) error {
	r, w := newRequest(block.OpWrite, off, int64(len(data)))
	r.Data, r.Flags = data, flags
	return submit(v, r, w)
}

func flush(v block.Target) error {
	r, w := newRequest(block.OpFlush, 0, 0)
	return submit(v, r, w)
}

func read(t testing.TB, v block.Target, off, n int64) []byte {
	t.Helper()
	r, w := newRequest(block.OpRead, off, n)
	if err := submit(v, r, w); err != nil {
		t.Fatal("read:", err)
	}
	return r.Data
}

// stamp fills a block with a number that tells writes apart.
func stamp(n int, size int64) []byte {
	b := make([]byte, size)
	for i := int64(0); i+8 <= size; i += 8 {
		binary.LittleEndian.PutUint64(b[i:], uint64(n))
	}
	return b
}

// image reads a whole volume. It reads into what it returns: copies of images take the race detector most of its time.
func image(t testing.TB, v *Volume) []byte {
	t.Helper()
	all := make([]byte, v.Size())
	for off := int64(0); off < v.Size(); off += 1 << 20 {
		n := min(1<<20, v.Size()-off)
		w := make(waiter, 1)
		r := &block.Request{Op: block.OpRead, Offset: off, Length: n, Data: all[off : off+n : off+n], Completer: w}
		if err := submit(v, r, w); err != nil {
			t.Fatal("read:", err)
		}
		if &r.Data[0] != &all[off] { // answered from a buffer of the volume's own
			copy(all[off:], r.Data)
		}
	}
	return all
}

func deviceBytes(t testing.TB, d block.Device) []byte {
	t.Helper()
	p := make([]byte, d.Size())
	if _, err := d.ReadAt(p, 0); err != nil {
		t.Fatal(err)
	}
	return p
}

// event is a write of the history, in the order of the log.
type event struct {
	vol      int
	off, n   int64
	data     []byte // nil: zeros
	flushed  bool
	answered bool
}

// history replays events on an empty image.
type history struct {
	mu     sync.Mutex
	events []event
}

func (h *history) images(volumes int, size int64, upTo int) [][]byte {
	img := make([][]byte, volumes)
	for i := range img {
		img[i] = make([]byte, size)
	}
	for _, e := range h.events[:upTo] {
		part := img[e.vol][e.off : e.off+e.n]
		if e.data == nil {
			clear(part)
		} else {
			copy(part, e.data)
		}
	}
	return img
}

// isPrefix finds the k for which the images are exactly the first k events; -1: none.
func (h *history) isPrefix(got [][]byte, from int) int {
	img := h.images(len(got), int64(len(got[0])), from)
	for k := from; ; k++ {
		same := true
		for i := range got {
			same = same && bytes.Equal(img[i], got[i])
		}
		if same {
			return k
		}
		if k == len(h.events) {
			return -1
		}
		e := h.events[k]
		part := img[e.vol][e.off : e.off+e.n]
		if e.data == nil {
			clear(part)
		} else {
			copy(part, e.data)
		}
	}
}
