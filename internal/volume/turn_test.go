package volume

import (
	"context"
	"errors"
	"sync"
	"testing"
	"time"

	"gantline/internal/record"
)

// Who waits for records lends its turn: a write has been sent when it is answered, by the goroutine that wrote it, one at a
// time, in order and without a gap, until the one who waits is told to look itself. Nothing is sent once Wait has returned.
func TestWaitLendsItsTurn(t *testing.T) {
	_, seed := seeded(t)
	p := newSite(t, seed, 1, 2<<20, 8<<20)
	p.cfg.SyncDelay, p.cfg.RoundDelay = time.Hour, time.Hour // a sync that ends is news, for which Wait returns
	p.open()
	f := &far{t: t}
	f.subscribe(p, SyncConfig{On: true})
	var mu sync.Mutex // who sends has it
	got, more := p.g.Tip(), true
	send := func() (record.Seq, bool) {
		if !mu.TryLock() {
			t.Error("two turns at once")
			return got, false
		}
		defer mu.Unlock()
		recs, err := f.sub.Read(got+1, 3, 1<<20)
		if err != nil || len(recs) == 0 || recs[0].Seq != got+1 {
			t.Errorf("read from %d: %d records, %v", got+1, len(recs), err)
			return got, false
		}
		got = recs[len(recs)-1].Seq
		return got, more
	}
	sent := func() record.Seq {
		mu.Lock()
		defer mu.Unlock()
		return got
	}
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	wait := func() chan error {
		done := make(chan error, 1)
		after := sent()
		go func() { done <- f.sub.Wait(ctx, after, send) }()
		await(t, "somebody waits", func() bool {
			f.sub.mu.Lock()
			defer f.sub.mu.Unlock()
			return f.sub.waits == 1
		})
		return done
	}
	put := func(i int) {
		if err := write(p.vols[0], int64(i)*4096, stamp(i, 4096), 0); err != nil {
			t.Error(err)
		}
	}

	done := wait()
	for i := range 20 {
		if put(i); sent() != p.g.Tip() {
			t.Fatalf("write %d was answered, sent is %d of %d", i, sent(), p.g.Tip())
		}
	}
	var writers sync.WaitGroup
	for w := range 4 {
		writers.Go(func() {
			for i := range 50 {
				put(w*50 + i)
			}
		})
	}
	writers.Wait()
	if at := sent(); at != p.g.Tip() {
		// One has sent as often as it may for the others. Who waits has been woken.
		if err := <-done; err != nil {
			t.Fatal(err)
		}
		for sent() < p.g.Tip() {
			send()
		}
		done = wait()
	}

	mu.Lock()
	more = false
	mu.Unlock()
	put(0)
	if err := <-done; err != nil || sent() != p.g.Tip() {
		t.Fatalf("Wait returned %v, sent is %d of %d", err, sent(), p.g.Tip())
	}
	done = wait()
	cancel()
	if err := <-done; !errors.Is(err, context.Canceled) {
		t.Fatal(err)
	}
	last := sent()
	if put(1); sent() != last {
		t.Fatal("sent though nobody waits any more")
	}
}
