package store

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	bolt "go.etcd.io/bbolt"

	"gantline/internal/control"
)

// stores are all implementations of control.Store; the suite is the same for each.
var stores = map[string]func(t *testing.T) control.Store{
	"memory": func(*testing.T) control.Store { return control.NewMemory() },
	"bbolt":  func(t *testing.T) control.Store { return open(t, filepath.Join(t.TempDir(), "state.db")) },
}

var quiet = slog.New(slog.DiscardHandler)

func open(t *testing.T, path string) *Bolt {
	t.Helper()
	s, err := Open(path, quiet)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func each(t *testing.T, f func(t *testing.T, s control.Store)) {
	for _, name := range slices.Sorted(maps.Keys(stores)) {
		t.Run(name, func(t *testing.T) {
			s := stores[name](t)
			t.Cleanup(func() { _ = s.Close() })
			f(t, s)
		})
	}
}

func putTxn(key, value string) control.Txn {
	return control.Txn{Puts: []control.Put{{Key: key, Value: []byte(value)}}}
}

func commit(t *testing.T, s control.Store, txn control.Txn) uint64 {
	t.Helper()
	rev, err := s.Commit(t.Context(), txn)
	if err != nil {
		t.Fatal(err)
	}
	return rev
}

func TestGetListDelete(t *testing.T) {
	each(t, func(t *testing.T, s control.Store) {
		if _, err := s.Get(t.Context(), "a/1"); !errors.Is(err, control.ErrNotFound) {
			t.Fatalf("empty store: %v", err)
		}
		r1 := commit(t, s, putTxn("a/2", "two"))
		r2 := commit(t, s, putTxn("a/1", "one"))
		commit(t, s, putTxn("ab", "other"))
		if r2 != r1+1 {
			t.Fatalf("revisions %d, %d", r1, r2)
		}
		list, rev, err := s.List(t.Context(), "a/")
		if err != nil || rev != r2+1 || len(list) != 2 || list[0].Key != "a/1" || list[0].Revision != r2 || string(list[1].Value) != "two" {
			t.Fatalf("list %+v at %d, %v", list, rev, err)
		}
		commit(t, s, control.Txn{Deletes: []string{"a/1", "never"}})
		if _, err := s.Get(t.Context(), "a/1"); !errors.Is(err, control.ErrNotFound) {
			t.Fatalf("deleted key: %v", err)
		}
	})
}

func TestCompareAndSwap(t *testing.T) {
	each(t, func(t *testing.T, s control.Store) {
		rev := commit(t, s, putTxn("k", "v"))
		for name, c := range map[string]struct {
			checks []control.Check
			ok     bool
		}{
			"as it was":          {[]control.Check{{Key: "k", Revision: rev}}, true},
			"older":              {[]control.Check{{Key: "k", Revision: rev - 1}}, false},
			"must not exist":     {[]control.Check{{Key: "k"}}, false},
			"absent, and is":     {[]control.Check{{Key: "z"}}, true},
			"absent, but wanted": {[]control.Check{{Key: "z", Revision: 1}}, false},
			"one of two":         {[]control.Check{{Key: "k", Revision: rev}, {Key: "z", Revision: 9}}, false},
		} {
			txn := putTxn("result/"+strings.ReplaceAll(name, " ", "-"), "x")
			txn.Checks = c.checks
			_, before, _ := s.List(t.Context(), "")
			_, err := s.Commit(t.Context(), txn)
			if c.ok != (err == nil) || !c.ok && !errors.Is(err, control.ErrConflict) {
				t.Errorf("%s: %v", name, err)
			}
			if _, after, _ := s.List(t.Context(), ""); !c.ok && after != before {
				t.Errorf("%s: a refused transaction raised the revision", name)
			}
		}
	})
}

// Many writers raise one counter by compare-and-swap; nothing may be lost.
func TestSwapsAreAtomic(t *testing.T) {
	each(t, func(t *testing.T, s control.Store) {
		commit(t, s, putTxn("n", ""))
		var wg sync.WaitGroup
		for range 4 {
			wg.Go(func() {
				for range 10 {
					for {
						e, err := s.Get(t.Context(), "n")
						if err != nil {
							t.Error(err)
							return
						}
						txn := control.Txn{Checks: []control.Check{{Key: "n", Revision: e.Revision}},
							Puts: []control.Put{{Key: "n", Value: append(e.Value, 'x')}}}
						if _, err = s.Commit(t.Context(), txn); err == nil {
							break
						}
						if !errors.Is(err, control.ErrConflict) {
							t.Error(err)
							return
						}
					}
				}
			})
		}
		wg.Wait()
		if e, _ := s.Get(t.Context(), "n"); len(e.Value) != 40 {
			t.Fatalf("%d of 40 swaps are left", len(e.Value))
		}
	})
}

func TestWatch(t *testing.T) {
	each(t, func(t *testing.T, s control.Store) {
		first := commit(t, s, putTxn("a", "1"))
		commit(t, s, putTxn("a", "2"))
		ctx, cancel := context.WithCancel(t.Context())
		defer cancel()
		changes, err := s.Watch(ctx, first)
		if err != nil {
			t.Fatal(err)
		}
		go func() {
			for i := range 100 {
				_, _ = s.Commit(context.Background(), putTxn("b", fmt.Sprint(i)))
			}
			_, _ = s.Commit(context.Background(), control.Txn{Deletes: []string{"a"}})
		}()
		last := first
		for c := range changes {
			if c.Revision != last+1 {
				t.Fatalf("revision %d after %d", c.Revision, last)
			}
			if last = c.Revision; c.Deleted {
				break
			}
		}
		if last != first+102 {
			t.Fatalf("ended at %d, not %d", last, first+102)
		}
		cancel()
		for range changes { // closed with its context
		}
		if _, err := s.Watch(t.Context(), 0); err != nil {
			t.Fatalf("from the beginning: %v", err)
		}
	})
}

func TestWatchTooOldIsTold(t *testing.T) {
	s := control.NewMemory()
	for range control.MaxHistory + 10 {
		commit(t, s, putTxn("a", "x"))
	}
	if _, err := s.Watch(t.Context(), 1); !errors.Is(err, control.ErrCompacted) {
		t.Fatalf("a revision that is not kept: %v", err)
	}
}

func TestEventsAreBounded(t *testing.T) {
	each(t, func(t *testing.T, s control.Store) {
		const batch = 500
		total := 0
		for total <= control.MaxEvents+batch {
			var txn control.Txn
			for range batch {
				txn.Events = append(txn.Events, control.Event{Object: "o", Message: fmt.Sprint(total)})
				total++
			}
			commit(t, s, txn)
		}
		list, _, err := s.List(t.Context(), control.KindEvent+"/")
		if err != nil || len(list) > control.MaxEvents || len(list) < control.MaxEvents*8/10 {
			t.Fatalf("%d events are kept, %v", len(list), err)
		}
		if !bytes.Contains(list[len(list)-1].Value, []byte(fmt.Sprintf(`"%d"`, total-1))) {
			t.Fatalf("the latest event is not the last: %s", list[len(list)-1].Value)
		}
	})
}

func TestLimits(t *testing.T) {
	each(t, func(t *testing.T, s control.Store) {
		for name, txn := range map[string]control.Txn{
			"no key":    putTxn("", "x"),
			"long key":  putTxn(strings.Repeat("k", control.MaxKey+1), "x"),
			"big value": putTxn("k", strings.Repeat("v", control.MaxValue+1)),
			"many":      {Deletes: make([]string, control.MaxTxn+1)},
		} {
			if _, err := s.Commit(t.Context(), txn); !errors.Is(err, control.ErrTooLarge) {
				t.Errorf("%s: %v", name, err)
			}
		}
		if err := s.Close(); err != nil {
			t.Fatal(err)
		}
		if _, err := s.Get(t.Context(), "k"); !errors.Is(err, control.ErrClosed) {
			t.Errorf("closed: %v", err)
		}
	})
}

// Both stores do the same under the same random history.
func TestSameHistorySameState(t *testing.T) {
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	rng := rand.New(rand.NewPCG(seed, 1))
	mem, disk := control.NewMemory(), open(t, filepath.Join(t.TempDir(), "state.db"))
	defer disk.Close()
	for i := range 150 {
		var txn control.Txn
		for range 1 + rng.IntN(3) {
			key := fmt.Sprintf("k/%d", rng.IntN(6))
			switch rng.IntN(4) {
			case 0:
				txn.Deletes = append(txn.Deletes, key)
			case 1:
				txn.Checks = append(txn.Checks, control.Check{Key: key, Revision: uint64(rng.IntN(i + 1))})
			default:
				txn.Puts = append(txn.Puts, control.Put{Key: key, Value: []byte(fmt.Sprint(rng.IntN(100)))})
			}
		}
		r1, e1 := mem.Commit(t.Context(), txn)
		r2, e2 := disk.Commit(t.Context(), txn)
		if r1 != r2 || errors.Is(e1, control.ErrConflict) != errors.Is(e2, control.ErrConflict) {
			t.Fatalf("step %d: %d %v against %d %v", i, r1, e1, r2, e2)
		}
	}
	l1, _, _ := mem.List(t.Context(), "")
	l2, _, _ := disk.List(t.Context(), "")
	if fmt.Sprint(l1) != fmt.Sprint(l2) {
		t.Fatalf("memory %v\nbbolt  %v", l1, l2)
	}
}

func TestReopen(t *testing.T) {
	path := filepath.Join(t.TempDir(), "state.db")
	s := open(t, path)
	rev := commit(t, s, putTxn("k", "v"))
	if _, err := Open(path, quiet); !errors.Is(err, ErrLocked) {
		t.Fatalf("a second opener: %v", err)
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	s = open(t, path)
	defer s.Close()
	e, err := s.Get(t.Context(), "k")
	if err != nil || string(e.Value) != "v" || e.Revision != rev {
		t.Fatalf("%+v, %v", e, err)
	}
	if next := commit(t, s, putTxn("k", "w")); next != rev+1 {
		t.Fatalf("revision %d after %d", next, rev)
	}
	if _, err := s.Watch(t.Context(), rev-1); !errors.Is(err, control.ErrCompacted) {
		t.Fatalf("changes of a run that is over: %v", err)
	}
}

// A process that is killed while it commits has lost nothing that was acknowledged.
func TestKill(t *testing.T) {
	if path := os.Getenv("GANTLINE_TEST_STORE"); path != "" {
		s := open(t, path)
		for i := 0; ; i++ {
			commit(t, s, putTxn("n", fmt.Sprint(i)))
			fmt.Printf("done %d\n", i)
		}
	}
	path := filepath.Join(t.TempDir(), "state.db")
	cmd := exec.Command(os.Args[0], "-test.run=^TestKill$")
	cmd.Env = append(os.Environ(), "GANTLINE_TEST_STORE="+path)
	var out bytes.Buffer
	cmd.Stdout = &out
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	time.Sleep(300 * time.Millisecond)
	_ = cmd.Process.Kill()
	_ = cmd.Wait()
	lines := strings.Split(strings.TrimSpace(out.String()), "\n")
	var acked int
	if _, err := fmt.Sscanf(lines[len(lines)-1], "done %d", &acked); err != nil {
		t.Skipf("killed before the first commit: %q", lines[len(lines)-1])
	}
	s := open(t, path)
	defer s.Close()
	e, err := s.Get(t.Context(), "n")
	var kept int
	fmt.Sscan(string(e.Value), &kept)
	if err != nil || kept < acked {
		t.Fatalf("acknowledged %d, kept %q, %v", acked, e.Value, err)
	}
}

// One bad copy is repaired from the other; two are an error, not a guess.
func TestRot(t *testing.T) {
	path := filepath.Join(t.TempDir(), "state.db")
	s := open(t, path)
	rev := commit(t, s, putTxn("k", "value"))
	rot := func(bucket []byte) {
		err := s.db.Update(func(tx *bolt.Tx) error {
			b := bytes.Clone(tx.Bucket(bucket).Get([]byte("k")))
			b[len(b)-1] ^= 1
			return tx.Bucket(bucket).Put([]byte("k"), b)
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	for _, bucket := range [][]byte{bucketState, bucketTwin} {
		rot(bucket)
		e, err := s.Get(t.Context(), "k")
		if err != nil || string(e.Value) != "value" || e.Revision != rev {
			t.Fatalf("%s rotten: %+v, %v", bucket, e, err)
		}
		commit(t, s, putTxn("other", "x")) // repairs
		err = s.db.View(func(tx *bolt.Tx) error {
			if !bytes.Equal(tx.Bucket(bucketState).Get([]byte("k")), tx.Bucket(bucketTwin).Get([]byte("k"))) {
				return errors.New("not repaired")
			}
			return nil
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	rot(bucketState)
	rot(bucketTwin)
	if _, err := s.Get(t.Context(), "k"); err == nil || errors.Is(err, control.ErrNotFound) {
		t.Fatalf("both copies rotten: %v", err)
	}
	_ = s.Close()
}
