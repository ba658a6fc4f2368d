package volume

import (
	"context"
	"errors"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"gantline/internal/block"
	"gantline/internal/record"
)

// A group in whose place another was promoted, as the node ends it: gates, numbering, waiting, copying.
func supersede(t *testing.T, p *site, f *far) {
	t.Helper()
	for _, v := range p.vols {
		v.SetSuccessor(&block.MovedError{Node: "c", Volume: v.name, Epoch: 2})
		if err := v.SetMode(context.Background(), ModeMoved, false); err != nil {
			t.Fatal(err)
		}
	}
	p.g.Supersede()
	f.sub.StopWaiting()
}

// Writes that passed the gate and wait for room in the log are not numbered any more, and those that wait for the secondary
// are not answered with success once it is cut off: nobody else has them.
func TestSupersededNumbersAndAnswersNothing(t *testing.T) {
	p, f := fullSoon(t, time.Minute)
	f.follow(p, SyncConfig{On: true, Stop: true, Stall: time.Hour, Hold: time.Hour})
	f.awaitPromise()
	f.set(true, false)
	const hosts = 3
	answered := make(waiter, 1<<16)
	var work sync.WaitGroup
	var enough atomic.Bool
	for h := range hosts {
		work.Go(func() {
			for !enough.Load() {
				r, _ := newRequest(block.OpWrite, int64(h)*4096, 4096)
				if r.Data, r.Completer = stamp(1, 4096), answered; h == 0 {
					r.Flags = block.FlagFUA
				}
				p.vols[0].Submit([]*block.Request{r})
			}
		})
	}
	await(t, "all hosts wait", func() bool { return p.g.held.waiting.Load() == hosts })
	enough.Store(true)
	supersede(t, p, f)
	appended := p.g.Appended()
	f.stop()
	if err := f.sub.Suspend("superseded"); err != nil {
		t.Fatal(err)
	}
	work.Wait()
	if got := p.g.Appended(); got != appended {
		t.Errorf("%d records were numbered afterwards", got-appended)
	}
	close(answered)
	moved := 0
	for r := range answered {
		if r.Err == nil {
			t.Fatal("a write that only this side has was answered with success")
		}
		if _, ok := errors.AsType[*block.MovedError](r.Err); ok {
			moved++
		}
	}
	if moved != hosts {
		t.Fatalf("%d of %d hosts that waited were sent to the other node", moved, hosts)
	}
	if _, err := p.g.Append(record.OpMember, 1, nil); err == nil {
		t.Error("a record was numbered")
	}
	p.close()
}

// What comes to waiting only after the subscriber is cut off is refused too: a host would take the answer for a promise.
func TestSupersededKeepsItsRefusal(t *testing.T) {
	p, f := syncSite(t)
	cfg := quick
	cfg.Stall, cfg.Hold = time.Hour, time.Hour
	f.follow(p, cfg)
	f.awaitPromise()
	f.set(true, false)
	done, r, w := asks(p.vols[0], block.OpWrite, 0)
	await(t, "numbered", func() bool { return p.g.Tip() == 1 })
	if done.Load() {
		t.Fatal("answered")
	}
	supersede(t, p, f)
	f.stop()
	if err := f.sub.Suspend("superseded"); err != nil {
		t.Fatal(err)
	}
	if <-w; r.Err == nil {
		t.Fatal("answered with success")
	}
	if err := f.sub.SetSync(SyncConfig{}); err != nil {
		t.Fatal(err)
	}
	if _, _, refusal := p.g.replicated(); refusal == nil {
		t.Fatal("a late one would be answered")
	}
	p.close()
}

// A promoted node has let go what it had acknowledged behind the cut: that is marked all the same, all of it if it was freed.
func TestMarksBeginAtTheCut(t *testing.T) {
	_, seed := seeded(t)
	p, m := newPair(t, seed, 8<<20)
	for i := range int64(6) {
		if err := write(p.vols[1], i*4*markSize, stamp(1, 512), 0); err != nil {
			t.Fatal(err)
		}
	}
	pumpAll(t, p, m, 5*time.Second)
	tip := p.g.Tip()
	if _, _, applied := m.sub.Cursor(); applied != tip {
		t.Fatalf("applied %d of %d", applied, tip)
	}
	marked := func(cut record.Seq, want int64) {
		t.Helper()
		if err := m.sub.CutBack(cut); err != nil {
			t.Fatal(err)
		}
		if got := m.sub.ChangedBytes(); got != want*markSize {
			t.Fatalf("cut at %d of %d: %d bytes are marked, want %d", cut, tip, got, want*markSize)
		}
	}
	marked(tip, 0)
	marked(tip-2, 2)
	if err := m.sub.Suspend("superseded"); err != nil {
		t.Fatal(err)
	}
	marked(tip-2, 2)
	if err := p.g.Checkpoint(t.Context()); err != nil {
		t.Fatal(err)
	}
	marked(tip, 2)
	marked(tip-2, int64(len(p.vols))*p.size/markSize)
	p.close()
	m.close()
}

// Who was fed before a group follows is nobody's subscriber afterwards: one of the same name begins anew.
func TestAFollowerHasNoSubscribers(t *testing.T) {
	_, seed := seeded(t)
	p, m := newPair(t, seed, 8<<20)
	if err := m.sub.Suspend("by command"); err != nil {
		t.Fatal(err)
	}
	p.kill()
	p.follow = true
	p.open()
	if got, err := decodeMeta(p.g.log.Meta()); err != nil || len(got.Subs) != 0 || !got.Following {
		t.Fatalf("%+v %v", got, err)
	}
	p.close()
	m.close()
}
