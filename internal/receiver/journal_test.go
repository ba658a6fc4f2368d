package receiver_test

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"sync"
	"testing"
	"time"

	"gantline/internal/block"
	"gantline/internal/journal"
	"gantline/internal/receiver"
	"gantline/internal/record"
)

// journalStore is a real journal on a device that loses power, as a node adapts it.
type journalStore struct {
	*journal.Journal
	dev   *block.Crashable
	mu    sync.Mutex
	saved []byte
}

func (j *journalStore) Append(recs []record.Record) error { return full(j.Journal.Append(recs)) }
func (j *journalStore) AppendAfterGap(recs []record.Record) error {
	return full(j.Journal.AppendAfterGap(recs))
}

func full(err error) error {
	if errors.Is(err, journal.ErrFull) || errors.Is(err, journal.ErrTooLarge) {
		return fmt.Errorf("%w: %w", receiver.ErrFull, err)
	}
	return err
}

func (j *journalStore) Cursors() (durable, stored record.Seq) {
	c := j.Journal.Cursors()
	return c.Durable, c.Appended
}

func (j *journalStore) state() []byte { return j.saved }
func (j *journalStore) save(b []byte) error {
	j.mu.Lock()
	defer j.mu.Unlock()
	j.saved = append([]byte(nil), b...)
	return nil
}

func openJournal(t testing.TB, dev *block.Crashable, saved []byte) *journalStore {
	t.Helper()
	j, err := journal.Open([]block.Device{dev})
	if err != nil {
		t.Fatal(err)
	}
	if err := j.Resume(); err != nil {
		t.Fatal(err)
	}
	return &journalStore{Journal: j, dev: dev, saved: saved}
}

// everything reads the journal back.
func (j *journalStore) everything(t testing.TB) []record.Record {
	t.Helper()
	var all []record.Record
	c := j.Journal.Cursors()
	for next := c.Trimmed + 1; next <= c.Appended; {
		recs, err := j.Read(next, 500, 1<<20)
		if err != nil {
			t.Fatal(err)
		}
		all = append(all, recs...)
		next = recs[len(recs)-1].Seq + 1
	}
	return all
}

// TestTwoSourcesOnAJournal: a move in full flow into a real journal, with power losses that tear sectors.
func TestTwoSourcesOnAJournal(t *testing.T) {
	seed := rand.Uint64()
	rnd := newRand(t, seed)
	const cut, end = 400, 900
	all := append(writes(1, 1, cut-1, 3000), fence(1, cut, id(2, "b")))
	all = append(all, writes(2, cut+1, end, 1000)...)
	a := newLog(record.Table{openRow(1, "a", 1)}, 0)
	b := newLog(record.Table{closedRow(1, "a", 1, cut), openRow(2, "b", cut+1)}, cut)

	dev := block.NewCrashable(16<<20, int64(seed>>1))
	if err := journal.Create([]block.Device{dev}, journal.ID{1}); err != nil {
		t.Fatal(err)
	}
	s := newSite(t)
	s.delay = 3 * time.Millisecond
	store := openJournal(t, dev, nil)
	life := s.start(store)
	if err := life.recv.Believe(receiver.Permit{Epoch: id(1, "a")}); err != nil {
		t.Fatal(err)
	}
	sa, _ := s.send("a", a)
	sa.StopAt(cut)
	_, _ = s.send("b", b)
	lost := 0
	for i, j := 0, cut; i < cut || j < end; {
		if i < cut {
			n := min(1+rnd.IntN(40), cut-i)
			a.add(all[i : i+n]...)
			i += n
		}
		if j < end {
			n := min(1+rnd.IntN(40), end-j)
			b.add(all[j : j+n]...)
			j += n
		}
		if rnd.IntN(4) > 0 {
			continue
		}
		flowing(t, life, rnd, a, b)
		survivor := store.dev.Crash()
		_, before := store.Cursors()
		s.kill()
		store = openJournal(t, survivor, store.saved)
		_, stored := store.Cursors()
		if stored < before {
			lost++
		}
		for _, l := range []*memLog{a, b} {
			if _, durable, _ := l.has(); durable > stored {
				t.Fatalf("acknowledged as durable up to %d, after power loss there is %d", durable, stored)
			}
		}
		mustPrefix(t, "journal after power loss", store.everything(t), all)
		life = s.start(store)
	}
	eventually(t, "all is applied", func() bool { _, d, ap := b.has(); return d == end && ap == end })
	<-sa.Drained()
	mustPrefix(t, "journal", store.everything(t), all)
	mustPrefix(t, "volumes", life.vols.applied(), all)
	if got := store.Table(); len(got) != 2 || got[0].Last != cut || got[1].Node != "b" {
		t.Fatalf("table %+v", got)
	}
	t.Logf("%d power losses took records", lost)
	if lost == 0 {
		t.Fatal("the fault did not take hold")
	}
}
