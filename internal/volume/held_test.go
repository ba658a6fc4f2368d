package volume

import (
	"encoding/binary"
	"errors"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"gantline/internal/block"
)

// fullSoon is a site whose log is soon full.
func fullSoon(t *testing.T, patience time.Duration) (*site, *far) {
	_, seed := seeded(t)
	p := newSite(t, seed, 1, 2<<20, 2<<20)
	p.open()
	p.g.held.patience = patience
	return p, &far{t: t}
}

// A log that is full of what a lost secondary lacks, with `stop`: who waits for room stands in nobody's way, neither of a
// command nor of who only looks; once there is room all writes are taken, those of each host in its order.
func TestWhoWaitsForRoomHoldsUpNobody(t *testing.T) {
	p, f := fullSoon(t, time.Minute)
	f.follow(p, SyncConfig{On: true, Stop: true, Stall: time.Hour, Hold: time.Hour})
	f.awaitPromise()
	f.set(true, false)
	const hosts, each = 4, 4
	v := p.vols[0]
	var all [hosts][]*block.Request
	answered := make(waiter, 4096)
	var enough atomic.Bool
	var work sync.WaitGroup
	for h := range hosts {
		work.Go(func() {
			for b := 0; !enough.Load(); b++ {
				var reqs []*block.Request
				for i := range each {
					r, _ := newRequest(block.OpWrite, int64(h)*4096, 4096)
					r.Data, r.Completer = stamp(b*each+i+1, 4096), answered
					reqs = append(reqs, r)
				}
				all[h] = append(all[h], reqs...)
				v.Submit(reqs)
			}
		})
	}
	await(t, "all hosts wait", func() bool { return p.g.held.waiting.Load() == hosts })
	begin := time.Now()
	for range 10 {
		p.g.Epoch()
		f.sub.look(false)
	}
	if err := f.sub.SetSync(SyncConfig{On: true, Stop: true, Stall: time.Hour, Hold: 2 * time.Hour}); err != nil {
		t.Fatal(err)
	}
	if d := time.Since(begin); d > p.g.held.patience/2 || p.g.held.waiting.Load() != hosts {
		t.Fatalf("%d hosts wait after %v of looking", p.g.held.waiting.Load(), d)
	}
	enough.Store(true)
	f.set(false, false)
	work.Wait()
	var wrote [hosts]uint64
	for h := range all {
		wrote[h] = uint64(len(all[h]))
	}
	for range len(slices.Concat(all[:]...)) {
		if r := <-answered; r.Err != nil {
			t.Fatal(r.Err)
		}
	}
	var last [hosts]uint64
	f.mu.Lock()
	for i := range f.recs {
		if h := f.recs[i].Offset / 4096; len(f.recs[i].Data) > 0 {
			n := binary.LittleEndian.Uint64(f.recs[i].Data)
			if n != last[h]+1 {
				t.Errorf("record %d: write %d of host %d follows %d", f.recs[i].Seq, n, h, last[h])
			}
			last[h] = n
		}
	}
	f.mu.Unlock()
	if last != wrote {
		t.Errorf("the subscriber has %v of %v writes", last, wrote)
	}
	f.stop()
	p.close()
}

// Nobody comes back: each write that waits fails, before it is numbered.
func TestWaitForRoomEnds(t *testing.T) {
	const patience = 500 * time.Millisecond
	p, f := fullSoon(t, patience)
	f.follow(p, SyncConfig{On: true, Stop: true, Stall: time.Hour, Hold: time.Hour})
	f.awaitPromise()
	f.set(true, false)
	answered := make(waiter, 4096)
	var work sync.WaitGroup
	var longest [3]time.Duration
	for h := range longest {
		work.Go(func() {
			for {
				r, _ := newRequest(block.OpWrite, 0, 4096)
				r.Data, r.Completer = stamp(1, 4096), answered
				begin := time.Now()
				if p.vols[0].Submit([]*block.Request{r}); errors.Is(r.Err, ErrHeldBack) {
					longest[h] = time.Since(begin)
					return
				}
			}
		})
	}
	work.Wait()
	for _, d := range longest {
		if d < patience {
			t.Errorf("hosts have waited for %v", longest)
		}
	}
	if tip := p.g.Tip(); tip != p.g.Appended() || p.g.held.waiting.Load() != 0 {
		t.Errorf("tip %d, appended %d, %d wait", tip, p.g.Appended(), p.g.held.waiting.Load())
	}
	f.stop()
	p.close()
}
