package volume

import (
	"sync"
	"testing"

	"gantline/internal/block"
	"gantline/internal/record"
)

// TestDoneTableAgainstModel compares window, floor and encoding with a set of numbers.
func TestDoneTableAgainstModel(t *testing.T) {
	rng, _ := seeded(t)
	table := newDoneTable()
	done, floor, newest := map[uint64]bool{}, uint64(0), uint64(0)
	for range 30000 {
		n := newest + uint64(rng.IntN(300))
		if n > 250 {
			n -= 250
		}
		if n == 0 {
			continue
		}
		if rng.IntN(50) == 0 && newest > 400 {
			floor = max(floor, newest-400)
		}
		table.batch++
		got, low := table.look(9, n, floor), floor
		if newest > sessionWindow {
			low = max(low, newest-sessionWindow)
		}
		switch want := done[n] || n <= floor; {
		case n <= low && n > floor:
			if got != doneStale {
				t.Fatalf("number %d below the window is %d", n, got)
			}
		case newest > 0 && want != (got == doneYes):
			t.Fatalf("number %d: done %v, the table says %d (floor %d, newest %d)", n, want, got, floor, newest)
		}
		if got == doneNot {
			table.set(9, n, floor)
			done[n], newest = true, max(newest, n)
		}
		if rng.IntN(500) == 0 {
			copied := newDoneTable()
			if err := copied.decode(table.encode(1 << 20)); err != nil {
				t.Fatal(err)
			}
			if a, b := table.sessions[9], copied.sessions[9]; a.count() != b.count() && a.low() != b.low() {
				t.Fatalf("%d numbers came back as %d", a.count(), b.count())
			}
			table = copied
		}
	}
}

func TestDoneTableRefusesDamage(t *testing.T) {
	rng, _ := seeded(t)
	table := newDoneTable()
	for i := range uint64(500) {
		table.set(i%7, i*uint64(1+rng.IntN(3)), 0)
	}
	good := table.encode(1 << 20)
	for range 3000 {
		bad := append([]byte(nil), good[:rng.IntN(len(good)+1)]...)
		for range rng.IntN(4) {
			if len(bad) > 0 {
				bad[rng.IntN(len(bad))] ^= byte(1 << rng.IntN(8))
			}
		}
		_ = newDoneTable().decode(bad) // must neither panic nor run away
	}
}

func TestDoneTableForgetsTheSilentOne(t *testing.T) {
	table := newDoneTable()
	for id := range uint64(maxSessions + 10) {
		table.set(id+1, 1, 0)
		table.set(1, id+2, 0) // session 1 is never silent
	}
	if len(table.sessions) != maxSessions || table.sessions[1] == nil || table.sessions[2] != nil {
		t.Fatalf("%d sessions, first kept %v, second kept %v", len(table.sessions), table.sessions[1] != nil, table.sessions[2] != nil)
	}
}

// TestReplayIsNotExecutedAgain: also across a power loss, after the records were trimmed, and inside one batch.
func TestReplayIsNotExecutedAgain(t *testing.T) {
	_, seed := seeded(t)
	s := newSite(t, seed, 1, testSize, 4<<20)
	s.open()
	send := func(number uint64, n int) {
		t.Helper()
		r, w := newRequest(block.OpWrite, 0, 4096)
		r.Data, r.Session, r.Number, r.Flags = stamp(n, 4096), 5, number, block.FlagFUA
		if err := submit(s.vols[0], r, w); err != nil {
			t.Fatal(err)
		}
	}
	check := func(when string, n int) {
		t.Helper()
		if got := read(t, s.vols[0], 0, 4096); string(got) != string(stamp(n, 4096)) {
			t.Fatalf("%s: block holds %d, want %d", when, got[0], n)
		}
	}
	send(1, 11)
	send(2, 12)
	send(1, 11)
	check("replayed at once", 12)
	appended := s.g.Appended()
	s.crash()
	s.open()
	send(1, 11)
	check("replayed after a crash", 12)
	if s.g.Appended() != appended {
		t.Fatalf("the replay took number %d", s.g.Appended())
	}
	for range 3 {
		if err := write(s.vols[0], 8192, stamp(1, 4096), 0); err != nil {
			t.Fatal(err)
		}
		if err := s.g.Checkpoint(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	if trimmed := s.jnl.Cursors().Trimmed; trimmed < 2 {
		t.Fatalf("only %d trimmed, the test tests nothing", trimmed)
	}
	s.crash()
	s.open()
	send(1, 11)
	check("replayed after its record was freed", 12)

	other := newDoneTable()
	if err := other.decode(s.g.DoneTable()); err != nil || other.look(5, 2, 0) != doneYes || other.look(5, 3, 0) != doneNot {
		t.Fatalf("hand-over lost the table: %v", err)
	}
	a, wa := newRequest(block.OpWrite, 0, 4096)
	b, wb := newRequest(block.OpWrite, 0, 4096)
	a.Data, a.Session, a.Number = stamp(20, 4096), 5, 9
	b.Data, b.Session, b.Number = stamp(21, 4096), 5, 9
	s.vols[0].Submit([]*block.Request{a, b})
	<-wa
	<-wb
	check("twice in one batch", 20)
	s.close()
}

// TestReplayOfWriteBesideCheckpoint: a write that is numbered while a checkpoint is under way is on the device when the
// checkpoint ends and not in its snapshot of done requests. It must be known as done after a crash all the same.
func TestReplayOfWriteBesideCheckpoint(t *testing.T) {
	_, seed := seeded(t)
	s := newSite(t, seed, 1, testSize, 4<<20)
	during := &hookedLog{}
	s.wrap = func(l Log) Log { during.Log = l; return during }
	s.open()
	send := func(number uint64, n int) {
		r, w := newRequest(block.OpWrite, 0, 4096)
		r.Data, r.Session, r.Number = stamp(n, 4096), 5, number
		if err := submit(s.vols[0], r, w); err != nil {
			t.Error(err)
		}
	}
	send(1, 11)
	// The sync behind the snapshot is the moment: the next write is numbered before the round begins.
	during.set(func() { send(2, 12) })
	if err := s.g.Checkpoint(t.Context()); err != nil {
		t.Fatal(err)
	}
	during.set(nil)
	appended := s.g.Appended()
	s.kill()
	s.open()
	send(3, 13)
	send(2, 12)
	if got := read(t, s.vols[0], 0, 4096); string(got) != string(stamp(13, 4096)) {
		t.Fatalf("block holds %d: the replay was executed over a later write", got[0])
	}
	if got := s.g.Appended(); got != appended+1 {
		t.Fatalf("%d records appended, want one", got-appended)
	}
	s.close()
}

// hookedLog calls a function once in front of a sync.
type hookedLog struct {
	Log
	mu   sync.Mutex
	hook func()
}

func (l *hookedLog) set(f func()) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.hook = f
}

func (l *hookedLog) Sync() (record.Seq, error) {
	l.mu.Lock()
	f := l.hook
	l.hook = nil
	l.mu.Unlock()
	if f != nil {
		f()
	}
	return l.Log.Sync()
}

// A write that its host was told is over, an error of a switched path for one, comes late, behind a newer one of the same session:
// it changes nothing.
func TestLateWriteBelowTheFloor(t *testing.T) {
	_, seed := seeded(t)
	s := newSite(t, seed, 1, testSize, 4<<20)
	s.open()
	for _, w := range []struct {
		number, floor uint64
		n             int
	}{{1, 0, 11}, {4, 3, 14}, {2, 1, 12}, {3, 1, 13}} {
		r, done := newRequest(block.OpWrite, 0, 4096)
		r.Data, r.Session, r.Number, r.Floor = stamp(w.n, 4096), 5, w.number, w.floor
		if err := submit(s.vols[0], r, done); err != nil {
			t.Fatal(err)
		}
	}
	if got := read(t, s.vols[0], 0, 4096); string(got) != string(stamp(14, 4096)) {
		t.Fatalf("block holds %d, want 14", got[0])
	}
}
