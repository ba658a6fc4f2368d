package copier

import (
	"context"
	"errors"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/time/rate"
)

// regions is a Set in memory.
type regions struct {
	mu    sync.Mutex
	needs map[int64]bool
	total int64
}

func newRegions(n int64) *regions {
	s := &regions{needs: map[int64]bool{}, total: n}
	for i := range n {
		s.needs[i] = true
	}
	return s
}

func (s *regions) Next(from int64) (int64, bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for ; from < s.total; from++ {
		if s.needs[from] {
			return from, true
		}
	}
	return 0, false
}

func (s *regions) Needs(n int64) bool { s.mu.Lock(); defer s.mu.Unlock(); return s.needs[n] }
func (s *regions) Left() int64        { s.mu.Lock(); defer s.mu.Unlock(); return int64(len(s.needs)) }
func (s *regions) done(n int64)       { s.mu.Lock(); defer s.mu.Unlock(); delete(s.needs, n) }

// TestEachRegionIsWorkedOnceWhateverDemands: sweep, many demands and random failures together.
func TestEachRegionIsWorkedOnceWhateverDemands(t *testing.T) {
	const n = 200
	set := newRegions(n)
	var busy [n]atomic.Int32
	var worked [n]atomic.Int32
	j := New(Config{Set: set, Region: 1000, Size: bytes(n*1000 - 300), RetryMin: time.Microsecond, RetryMax: time.Millisecond, Attempts: 1000,
		Work: func(_ context.Context, off, length int64) error {
			r := off / 1000
			if length != 1000 && (r != n-1 || length != 700) {
				t.Errorf("region %d has %d bytes", r, length)
			}
			if busy[r].Add(1) != 1 {
				t.Errorf("region %d is worked twice at once", r)
			}
			defer busy[r].Add(-1)
			time.Sleep(time.Duration(rand.IntN(100)) * time.Microsecond)
			if rand.IntN(3) == 0 {
				return errors.New("no luck")
			}
			worked[r].Add(1)
			set.done(r)
			return nil
		}})
	var demands sync.WaitGroup
	for range 8 {
		demands.Go(func() {
			for range 100 {
				r := rand.Int64N(n)
				if err := <-j.Demand(r); err != nil || set.Needs(r) {
					t.Errorf("demand of %d: %v, still needed %v", r, err, set.Needs(r))
				}
			}
		})
	}
	if err := j.Run(t.Context()); err != nil {
		t.Fatal(err)
	}
	demands.Wait()
	for r := range worked {
		if worked[r].Load() != 1 {
			t.Fatalf("region %d was worked %d times", r, worked[r].Load())
		}
	}
	if p := j.Progress(); p.Left != 0 || p.Background+p.Demand != n*1000-300 || p.Total != n {
		t.Fatalf("progress %+v", p)
	}
}

// TestDemandIsNotPaced: the sweep waits for its rate, a demand does not.
func TestDemandIsNotPaced(t *testing.T) {
	set := newRegions(50)
	j := New(Config{Set: set, Region: 1 << 20, Size: bytes(50 << 20), Limit: rate.NewLimiter(1<<20, 256<<10), Parallel: 1,
		Work: func(_ context.Context, off, _ int64) error { set.done(off >> 20); return nil }})
	ctx, stop := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() { ended <- j.Run(ctx) }()
	start := time.Now()
	for r := int64(49); r >= 30; r-- {
		if err := <-j.Demand(r); err != nil {
			t.Fatal(err)
		}
	}
	if d := time.Since(start); d > 700*time.Millisecond {
		t.Fatalf("20 demands took %v", d)
	}
	if left := set.Left(); left < 25 {
		t.Fatalf("the sweep was not paced: %d left", left)
	}
	stop()
	if err := <-ended; !errors.Is(err, context.Canceled) {
		t.Fatal(err)
	}
}

// TestDemandFailsAfterItsAttempts, and the region is still worked later; Away says so meanwhile.
func TestDemandFailsAfterItsAttempts(t *testing.T) {
	set := newRegions(3)
	broken := errors.New("source is away")
	var away atomic.Bool
	away.Store(true)
	j := New(Config{Set: set, Region: 1, Size: bytes(3), RetryMin: time.Millisecond, RetryMax: 5 * time.Millisecond, Attempts: 3,
		Work: func(_ context.Context, off, _ int64) error {
			if away.Load() {
				return broken
			}
			set.done(off)
			return nil
		}})
	ended := make(chan error, 1)
	go func() { ended <- j.Run(t.Context()) }()
	if err := j.Wait(t.Context(), 0, 2); !errors.Is(err, broken) {
		t.Fatalf("demand: %v", err)
	}
	for !j.Away() {
		time.Sleep(time.Millisecond)
	}
	away.Store(false)
	if err := <-ended; err != nil || set.Left() != 0 || j.Away() {
		t.Fatalf("%v, %d left, away %v", err, set.Left(), j.Away())
	}
}

// TestShortAbsenceIsWaitedFor: a peer that is back within the patience costs a demand its wait, not an error, however
// often it was tried meanwhile, and is never called away.
func TestShortAbsenceIsWaitedFor(t *testing.T) {
	set := newRegions(64)
	var away atomic.Bool
	away.Store(true)
	var tries atomic.Int64
	j := New(Config{Set: set, Region: 1, Size: bytes(64), RetryMin: time.Microsecond, RetryMax: time.Millisecond, Attempts: 2, Parallel: 8,
		Patience: time.Minute,
		Work: func(_ context.Context, off, _ int64) error {
			if away.Load() {
				tries.Add(1)
				return errors.New("not connected yet")
			}
			set.done(off)
			return nil
		}})
	ended := make(chan error, 1)
	go func() { ended <- j.Run(t.Context()) }()
	demand := j.Demand(63)
	for tries.Load() < 100 {
		if j.Away() {
			t.Fatal("called away within the patience")
		}
		time.Sleep(time.Millisecond)
	}
	away.Store(false)
	if err := <-demand; err != nil {
		t.Fatal(err)
	}
	if err := <-ended; err != nil || set.Left() != 0 {
		t.Fatalf("%v, %d left", err, set.Left())
	}
}

func TestEndedRunAnswersItsDemands(t *testing.T) {
	set := newRegions(1)
	j := New(Config{Set: set, Region: 1, Size: bytes(1), Work: func(ctx context.Context, _, _ int64) error {
		<-ctx.Done()
		return ctx.Err()
	}})
	ctx, stop := context.WithCancel(t.Context())
	answer := j.Demand(0)
	ended := make(chan error, 1)
	go func() { ended <- j.Run(ctx) }()
	time.Sleep(5 * time.Millisecond)
	stop()
	<-ended
	if err := <-answer; err == nil {
		t.Fatal("an unworked demand was answered with success")
	}
	if err := <-j.Demand(0); !errors.Is(err, ErrStopped) {
		t.Fatalf("a demand after the end: %v", err)
	}
}

// A sweep by runs works each region once too, takes no demanded region into a run, and fails region by region.
func TestTheSweepWorksRunsOfRegions(t *testing.T) {
	const n = 203
	set := newRegions(n)
	for i := int64(0); i < n; i += 17 {
		set.done(i) // holes end runs
	}
	var worked [n]atomic.Int32
	var longest, failed atomic.Int64
	j := New(Config{Set: set, Region: 1000, Size: bytes(n*1000 - 300), Batch: 8, Parallel: 3, RetryMin: time.Microsecond, RetryMax: time.Millisecond,
		Work: func(_ context.Context, off, length int64) error {
			if failed.CompareAndSwap(0, 1) || rand.IntN(10) == 0 {
				failed.Add(1)
				return errors.New("the first one, and now and then")
			}
			for old := longest.Load(); length > old && !longest.CompareAndSwap(old, length); old = longest.Load() {
			}
			for r := off / 1000; r*1000 < off+length; r++ {
				worked[r].Add(1)
				set.done(r)
			}
			return nil
		}})
	done := j.Demand(100)
	if err := j.Run(context.Background()); err != nil {
		t.Fatal(err)
	}
	if err := <-done; err != nil {
		t.Error(err)
	}
	for r := range worked {
		want := int32(1)
		if r%17 == 0 {
			want = 0
		}
		if got := worked[r].Load(); got != want {
			t.Errorf("region %d was worked %d times, not %d", r, got, want)
		}
	}
	if longest.Load() != 8000 || failed.Load() == 0 {
		t.Errorf("the longest run had %d bytes, %d failed", longest.Load(), failed.Load())
	}
	p := j.Progress()
	if p.Background+p.Demand != n*1000-300-int64((n+16)/17)*1000 {
		t.Errorf("progress counts %d and %d bytes", p.Background, p.Demand)
	}
}

// While somebody who matters more is busy, one worker in four sweeps; demands are served all the same.
func TestTheSweepStandsBack(t *testing.T) {
	var busy atomic.Bool
	busy.Store(true)
	var now, most atomic.Int32
	set := newRegions(400)
	j := New(Config{Set: set, Region: 10, Size: bytes(4000), Parallel: 8, Busy: busy.Load,
		Work: func(_ context.Context, off, _ int64) error {
			if n := now.Add(1); busy.Load() && n > most.Load() {
				most.Store(n)
			}
			time.Sleep(200 * time.Microsecond)
			now.Add(-1)
			set.done(off / 10)
			return nil
		}})
	go func() {
		for set.Left() > 200 {
			time.Sleep(time.Millisecond)
		}
		busy.Store(false)
	}()
	if err := j.Run(context.Background()); err != nil {
		t.Fatal(err)
	}
	if most.Load() != 2 {
		t.Errorf("%d of 8 workers swept while others were busy", most.Load())
	}
}

// emptied is a set that tells when it was found empty.
type emptied struct {
	*regions
	once  sync.Once
	found chan struct{}
}

func (s *emptied) Next(from int64) (int64, bool) {
	n, ok := s.regions.Next(from)
	if !ok && from == 0 {
		s.once.Do(func() { close(s.found) })
	}
	return n, ok
}

// The worker that sweeps however busy others are finds nothing left and ends; then the set grows again. Who stood back
// until then works it, though others never come to rest.
func TestAStandingBackSweepWorksWhatComesLate(t *testing.T) {
	set := &emptied{regions: newRegions(1), found: make(chan struct{})}
	set.total = 2
	asked := make(chan struct{})
	var once sync.Once
	j := New(Config{Set: set, Region: 10, Size: bytes(20), Parallel: 2,
		Busy: func() bool {
			once.Do(func() {
				close(asked)
				<-set.found
				set.mu.Lock()
				set.needs[1] = true
				set.mu.Unlock()
			})
			return true
		},
		Work: func(_ context.Context, off, _ int64) error {
			<-asked
			set.done(off / 10)
			return nil
		}})
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	if err := j.Run(ctx); err != nil || set.Left() != 0 {
		t.Fatalf("%v with %d regions left", err, set.Left())
	}
}

// bytes is a size that stays as it is.
func bytes(n int64) func() int64 { return func() int64 { return n } }

// Regions that are known to hold nothing go by in long runs and unpaid, however low the limit; they end runs of others.
func TestHolesGoByInLongRuns(t *testing.T) {
	const n = 4000
	data := func(r int64) bool { return r%1000 == 999 }
	set := newRegions(n)
	var runs atomic.Int64
	j := New(Config{Set: set, Region: 1000, Size: bytes(n * 1000), Batch: 8, Parallel: 3, Limit: rate.NewLimiter(50_000, 1000),
		Hole: func(r int64) bool { return !data(r) },
		Work: func(_ context.Context, off, length int64) error {
			runs.Add(1)
			for r := off / 1000; r*1000 < off+length; r++ {
				if data(r) && length != 1000 {
					t.Errorf("a run of %d bytes at %d has data in it", length, off)
				}
				set.done(r)
			}
			return nil
		}})
	begin := time.Now()
	if err := j.Run(t.Context()); err != nil {
		t.Fatal(err)
	}
	if most := int64(4 * (1 + (999+holeBatch-1)/holeBatch)); runs.Load() > most {
		t.Errorf("%d runs, %d would do", runs.Load(), most)
	}
	if took := time.Since(begin); took > 10*time.Second {
		t.Errorf("it took %v: holes have been paid for", took)
	}
}
