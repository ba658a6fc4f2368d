package volume

import (
	"context"
	"errors"
	"math/rand/v2"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"gantline/internal/block"
	"gantline/internal/record"
)

// far is a remote copy in its plainest form: it stores what it is sent, in order, and has it durable when it is told that
// a host waits, or after a while. While it is away it takes nothing; stubborn, it takes and says nothing.
type far struct {
	t    testing.TB
	sub  *Subscriber
	stop func()

	mu       sync.Mutex
	recs     []record.Record
	durable  record.Seq
	mark     record.Seq
	away     bool
	stubborn bool
}

var quick = SyncConfig{On: true, Patience: 200 * time.Millisecond, Stall: 400 * time.Millisecond, Hold: 400 * time.Millisecond}

// follow subscribes and begins to store. What an earlier life has stored above what the log still has is cut back.
func (f *far) follow(p *site, cfg SyncConfig) {
	f.t.Helper()
	f.mu.Lock()
	if tip := p.g.Tip(); len(f.recs) > int(tip) {
		if f.mark > tip {
			f.t.Errorf("told to apply up to %d, the log ends at %d", f.mark, tip)
		}
		f.recs = f.recs[:tip]
	}
	f.durable = min(f.durable, record.Seq(len(f.recs)))
	f.mu.Unlock()
	f.subscribe(p, cfg)
	ctx, cancel := context.WithCancel(context.Background())
	var work sync.WaitGroup
	work.Go(func() { f.sub.Watch(ctx, f.linked) })
	work.Go(func() { f.run(ctx) })
	f.stop = func() { cancel(); work.Wait() }
}

func (f *far) subscribe(p *site, cfg SyncConfig) {
	f.t.Helper()
	maps := map[record.VolumeNumber]Bitmap{}
	for i := range p.devs {
		d := block.NewCrashable(block.BitmapSize(p.size/markSize), 1)
		b, err := block.CreateBitmap(d, p.size/markSize, 1)
		if err != nil {
			f.t.Fatal(err)
		}
		maps[record.VolumeNumber(i+1)] = b
	}
	sub, err := p.g.Subscribe("far", SubscriberConfig{Changed: maps, BlockSize: markSize, Sync: cfg})
	if err != nil {
		f.t.Fatal(err)
	}
	f.sub = sub
}

func (f *far) linked() bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	return !f.away
}

func (f *far) set(away, stubborn bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.away, f.stubborn = away, stubborn
}

func (f *far) run(ctx context.Context) {
	for n := 0; ctx.Err() == nil; n++ {
		last, away := f.last(), !f.linked()
		wait, cancel := context.WithTimeout(ctx, time.Millisecond)
		_ = f.sub.Wait(wait, last, func() (record.Seq, bool) { // on the goroutine of who has written
			f.take(n)
			return f.last(), f.linked()
		})
		cancel()
		if away {
			time.Sleep(time.Millisecond)
			continue
		}
		f.take(n)
	}
}

func (f *far) take(n int) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.away {
		return
	}
	mark, urgent := f.sub.Mark(), f.sub.Urgent()
	recs, err := f.sub.Read(record.Seq(len(f.recs))+1, 7, 1<<20)
	if err != nil {
		return // cut off
	}
	f.recs = append(f.recs, recs...)
	last := record.Seq(len(f.recs))
	f.mark = min(max(f.mark, mark), last)
	if urgent > f.durable || n%20 == 0 {
		f.durable = last
	}
	if !f.stubborn {
		if err := f.sub.Acked(last, f.durable, min(f.durable, f.mark)); err != nil {
			f.t.Error(err)
		}
	}
}

func (f *far) last() record.Seq {
	f.mu.Lock()
	defer f.mu.Unlock()
	return record.Seq(len(f.recs))
}

// has says whether the remote copy has the write, durably if asked.
func (f *far) has(off int64, durably bool) bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	for i := range f.recs {
		if int64(f.recs[i].Offset) == off && (!durably || f.recs[i].Seq <= f.durable) {
			return true
		}
	}
	return false
}

func syncSite(t *testing.T) (*site, *far) {
	_, seed := seeded(t)
	p := newSite(t, seed, 1, 2<<20, 8<<20)
	p.cfg.OnFailed = func(err error) { t.Log(err) }
	p.open()
	return p, &far{t: t}
}

func await(t testing.TB, what string, ok func() bool) {
	t.Helper()
	for end := time.Now().Add(20 * time.Second); !ok(); time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("never: %s", what)
		}
	}
}

func (f *far) awaitPromise() {
	f.t.Helper()
	await(f.t, "promised", func() bool { return f.sub.Sync().Holds })
}

// asks submits a write or a flush and says whether it has been answered.
func asks(v *Volume, op block.Op, off int64) (*atomic.Bool, *block.Request, waiter) {
	r, w := newRequest(op, off, 4096)
	if op == block.OpWrite {
		r.Data = stamp(int(off), 4096)
	} else {
		r.Offset, r.Length = 0, 0
	}
	answered := &atomic.Bool{}
	then := make(waiter, 1)
	go func() { x := <-w; answered.Store(true); then <- x }()
	v.Submit([]*block.Request{r})
	return answered, r, then
}

func TestSyncAnswersWaitForTheSubscriber(t *testing.T) {
	p, f := syncSite(t)
	f.follow(p, SyncConfig{On: true})
	f.awaitPromise()
	v := p.vols[0]
	for i := range 50 {
		off := int64(i) * 4096
		flags := block.Flags(0)
		if i%5 == 0 {
			flags = block.FlagFUA
		}
		if err := write(v, off, stamp(i, 4096), flags); err != nil {
			t.Fatal(err)
		}
		if !f.has(off, i%5 == 0) {
			t.Fatalf("write %d was answered, and the remote copy does not have it", i)
		}
		if i%7 == 0 {
			if err := flush(v); err != nil {
				t.Fatal(err)
			}
			if !f.has(off, true) || p.jnl.Cursors().Durable < f.last() {
				t.Fatalf("flush %d was answered, and write %d is not durable on both sides", i, i)
			}
		}
	}
	f.set(true, false)
	wrote, r, w := asks(v, block.OpWrite, 1<<20)
	flushed, fr, fw := asks(v, block.OpFlush, 0)
	time.Sleep(300 * time.Millisecond)
	if wrote.Load() || flushed.Load() {
		t.Fatal("answered without the remote copy")
	}
	if got := read(t, v, 1<<20, 8); string(got) != string(stamp(1<<20, 8)) {
		t.Fatal("a read does not see the write that waits")
	}
	f.set(false, false)
	<-w
	<-fw
	if r.Err != nil || fr.Err != nil || !f.has(1<<20, true) {
		t.Fatalf("write: %v, flush: %v", r.Err, fr.Err)
	}
	f.stop()
	p.close()
}

// A lost subscriber: that it is stale is on disk when the first host is answered without it, and a loss of power right
// then forgets neither that nor what it lacks.
func TestSyncContinueIsStaleBeforeItAnswers(t *testing.T) {
	for _, how := range []string{"away", "silent"} {
		t.Run(how, func(t *testing.T) {
			p, f := syncSite(t)
			f.follow(p, quick)
			f.awaitPromise()
			v := p.vols[0]
			for i := range 20 {
				if err := write(v, int64(i)*4096, stamp(i, 4096), 0); err != nil {
					t.Fatal(err)
				}
			}
			if err := flush(v); err != nil {
				t.Fatal(err)
			}
			f.set(how == "away", how == "silent")
			r, w := newRequest(block.OpWrite, 40*4096, 4096)
			r.Data, r.Flags = stamp(1, 4096), block.FlagFUA
			v.Submit([]*block.Request{r})
			<-w
			m, err := decodeMeta(p.jnl.Meta())
			if s := m.Subs["far"]; r.Err != nil || err != nil || !s.Suspended || s.Sync || s.Stale == 0 {
				t.Fatalf("answered with %v while the blob says %+v", r.Err, s)
			}
			p.crash()
			f.stop()
			p.open()
			f.set(false, false)
			f.follow(p, quick)
			if st := f.sub.Sync(); f.sub.State() != SubSuspended || st.Stale == 0 || st.Waits {
				t.Fatalf("after the loss of power: %v, %+v", f.sub.State(), st)
			}
			if !f.sub.volumes()[1].marks.Test(40 * 4096 / markSize) {
				t.Fatal("what the subscriber lacks is not marked")
			}
			f.stop()
			p.close()
		})
	}
}

// With stop nothing is answered: hosts wait, then get an error; reads go on. When the subscriber is back, all that is in
// the log goes to it, the writes that got an error included, and hosts go on.
func TestSyncStop(t *testing.T) {
	p, f := syncSite(t)
	cfg := quick
	cfg.Stop = true
	f.follow(p, cfg)
	f.awaitPromise()
	v := p.vols[0]
	if err := write(v, 0, stamp(1, 4096), 0); err != nil {
		t.Fatal(err)
	}
	f.set(true, false)
	begin := time.Now()
	_, r1, w1 := asks(v, block.OpWrite, 4096)
	_, r2, w2 := asks(v, block.OpFlush, 0)
	<-w1
	<-w2
	if r1.Err == nil || r2.Err == nil || !strings.Contains(r1.Err.Error(), "on-link-loss stop") {
		t.Fatalf("write: %v, flush: %v", r1.Err, r2.Err)
	}
	if d := time.Since(begin); d < cfg.Hold {
		t.Fatalf("failed after %v", d)
	}
	tip := p.g.Tip()
	if err := write(v, 8192, stamp(3, 4096), 0); !errors.Is(err, block.ErrIO) || p.g.Tip() != tip {
		t.Fatalf("a write while the subscriber is lost: %v, numbered %d", err, p.g.Tip()-tip)
	}
	if got := read(t, v, 0, 8); string(got) != string(stamp(1, 8)) {
		t.Fatal("reads do not go on")
	}
	if f.sub.State() != SubStreaming {
		t.Fatal("it was cut off")
	}
	f.set(false, false)
	f.awaitPromise()
	if err := write(v, 8192, stamp(4, 4096), 0); err != nil {
		t.Fatal(err)
	}
	for _, off := range []int64{0, 4096, 8192} {
		if !f.has(off, false) {
			t.Fatalf("the subscriber lacks the write at %d", off)
		}
	}
	// The operator's own word lets hosts go on.
	f.set(true, false)
	done, r, w := asks(v, block.OpWrite, 12288)
	time.Sleep(50 * time.Millisecond)
	if done.Load() {
		t.Fatal("answered without the remote copy")
	}
	if err := f.sub.Suspend("by command"); err != nil {
		t.Fatal(err)
	}
	if <-w; r.Err != nil {
		t.Fatal(r.Err)
	}
	f.stop()
	p.close()
}

// A restart with the subscriber away answers nobody without it, as long as it was promised; switched off it does at once.
func TestSyncPromiseOutlivesARestart(t *testing.T) {
	p, f := syncSite(t)
	f.follow(p, SyncConfig{On: true})
	f.awaitPromise()
	if err := write(p.vols[0], 0, stamp(1, 4096), 0); err != nil {
		t.Fatal(err)
	}
	p.kill()
	f.stop()
	p.open()
	f.set(true, false)
	f.follow(p, SyncConfig{On: true})
	done, r, w := asks(p.vols[0], block.OpWrite, 4096)
	time.Sleep(200 * time.Millisecond)
	if done.Load() {
		t.Fatal("answered without the remote copy")
	}
	if err := f.sub.SetSync(SyncConfig{}); err != nil {
		t.Fatal(err)
	}
	if <-w; r.Err != nil || f.sub.Sync().Waits {
		t.Fatal(r.Err)
	}
	if err := write(p.vols[0], 8192, stamp(2, 4096), 0); err != nil {
		t.Fatal(err)
	}
	if err := f.sub.SetSync(SyncConfig{On: true}); err != nil {
		t.Fatal(err)
	}
	if f.sub.Sync().Holds {
		t.Fatal("promised while the remote copy lacks writes that were answered")
	}
	f.set(false, false)
	f.awaitPromise()
	f.stop()
	// Who waits when this side stops is told so.
	_, r, w = asks(p.vols[0], block.OpWrite, 12288)
	if <-w; !errors.Is(r.Err, block.ErrShutdown) {
		t.Fatalf("a write behind the end of copying: %v", r.Err)
	}
	p.close()
}

// The primary loses power at any moment, again and again: every answered write is stored remotely, every answered flush
// is durable on both sides, and what the remote copy was told to apply was never lost here.
func TestSyncCrashes(t *testing.T) {
	rnd, seed := seeded(t)
	p := newSite(t, seed, 1, 2<<20, 8<<20)
	f := &far{t: t}
	next := 1
	for range 12 {
		p.open()
		f.follow(p, SyncConfig{On: true})
		f.awaitPromise()
		crash := time.After(time.Duration(5+rnd.IntN(60)) * time.Millisecond)
		var hosts sync.WaitGroup
		var over atomic.Bool
		for h := range 4 {
			from := next + h*1000
			r := rand.New(rand.NewPCG(seed, uint64(from)))
			hosts.Go(func() { syncHost(t, p.vols[0], f, h, from, r, &over) })
		}
		next += 4000
		<-crash
		over.Store(true)
		p.crash()
		f.stop()
		hosts.Wait()
	}
}

// syncHost writes its own blocks and looks at each answer whether it is true.
func syncHost(t *testing.T, v *Volume, f *far, host, from int, rnd *rand.Rand, over *atomic.Bool) {
	for i := from; !over.Load() && i < from+1000; i++ {
		off := int64(host*16+rnd.IntN(16)) * 4096
		if write(v, off, stamp(i, 4096), 0) != nil {
			return
		}
		f.mu.Lock()
		found := record.Seq(0)
		for j := len(f.recs) - 1; j >= 0 && found == 0; j-- {
			if int64(f.recs[j].Offset) == off && string(f.recs[j].Data) == string(stamp(i, 4096)) {
				found = f.recs[j].Seq
			}
		}
		f.mu.Unlock()
		if found == 0 {
			t.Errorf("write %d was answered, the remote copy does not have it", i)
			return
		}
		if rnd.IntN(4) > 0 {
			continue
		}
		if flush(v) != nil {
			return
		}
		f.mu.Lock()
		if f.durable < found && !over.Load() {
			t.Errorf("flush behind write %d was answered, durable there is %d", found, f.durable)
		}
		f.mu.Unlock()
	}
}
