package copier

import (
	"context"
	"errors"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"
	"golang.org/x/time/rate"
)

// ErrStopped: the job's Run ended before the demanded region was worked.
var ErrStopped = errors.New("copying stopped")

// Set says which regions need work. It must be safe for concurrent use.
type Set interface {
	Next(from int64) (region int64, ok bool) // the lowest at or above from
	Needs(region int64) bool
	Left() int64
}

// Config of a Job.
type Config struct {
	Set    Set
	Region int64        // bytes
	Size   func() int64 // bytes of the whole, which may grow; the last region may be shorter
	// Work copies a region, or a run of them. When it returns nil, Set must not name them any more.
	Work  func(ctx context.Context, off, n int64) error
	Batch int64 // regions in a row that the sweep works at once while there is no limit; default 1
	// Hole says that a region is known to hold nothing, so that there is next to no work in it: the sweep takes up to
	// holeBatch of them at once, and no limit counts them. It must not block. Nil: nothing is known.
	Hole     func(region int64) bool
	Parallel int // workers of the sweep, and as many for demands; default 4
	// Busy says that somebody who matters more uses the same disks and processors just now; then only one worker in
	// four sweeps. Nil: nobody ever does.
	Busy     func() bool
	Limit    *rate.Limiter // bytes of the background sweep, which demands use up but never wait for; nil: none. May be changed
	RetryMin time.Duration // default 20 ms
	RetryMax time.Duration // default 2 s
	Attempts int           // failures of a demanded region before its waiters get the error; default 5
	// Patience is how long those failures must have gone on besides: a peer that restarts, or that was not reached yet,
	// is not away. Default 0.
	Patience time.Duration
}

// Job is one copy under way. Demands may come before Run and wait for it; once Run has ended they get ErrStopped.
type Job struct {
	cfg Config

	mu       sync.Mutex
	changed  *sync.Cond // on mu: a region was finished, Run is to end
	demanded *sync.Cond // on mu: a demand came, Run is to end
	regions  map[int64]*region
	queue    []int64 // demanded regions, oldest first
	cursor   int64   // where the sweep goes on
	busy     int
	steady   int // workers of the sweep that do not stand back
	running  bool
	ended    bool      // Run has ended and not begun again: demands are not kept waiting
	failures int       // in a row, over all regions
	failing  time.Time // since when; counts while failures > 0
	err      error

	total, background, demand int64
	started                   time.Time
	startedBytes              int64
}

// region is one that is being worked or has been demanded.
type region struct {
	busy, queued bool
	failures     int
	failing      time.Time // since when; counts while failures > 0
	waiters      []chan error
}

// Progress of a job.
type Progress struct {
	Total, Left        int64 // regions
	Background, Demand int64 // bytes worked
	BytesPerSecond     float64
	ETA                time.Duration // 0: not known
	Err                error         // of the last failure, nil once work succeeds again
}

// New makes a job; nothing happens before Run.
func New(cfg Config) *Job {
	if cfg.Parallel <= 0 {
		cfg.Parallel = 4
	}
	if cfg.Batch <= 0 {
		cfg.Batch = 1
	}
	if cfg.RetryMin <= 0 {
		cfg.RetryMin = 20 * time.Millisecond
	}
	if cfg.RetryMax <= 0 {
		cfg.RetryMax = 2 * time.Second
	}
	if cfg.Attempts <= 0 {
		cfg.Attempts = 5
	}
	j := &Job{cfg: cfg, regions: map[int64]*region{}, total: cfg.Set.Left()}
	j.changed, j.demanded = sync.NewCond(&j.mu), sync.NewCond(&j.mu)
	return j
}

// Run works until no region needs it. It returns nil then, or ctx's cause; failures of Work are retried for ever.
func (j *Job) Run(ctx context.Context) error {
	j.mu.Lock()
	if j.running {
		j.mu.Unlock()
		return errors.New("copy job is running already")
	}
	j.ended = false
	j.running, j.started, j.startedBytes = true, time.Now(), j.background+j.demand
	j.total = max(j.total, j.cfg.Set.Left())
	j.mu.Unlock()

	work, finished := context.WithCancel(ctx)
	defer finished()
	stop := context.AfterFunc(work, func() {
		j.mu.Lock()
		j.changed.Broadcast()
		j.demanded.Broadcast()
		j.mu.Unlock()
	})
	defer stop()
	var sweep, demands errgroup.Group
	for range j.cfg.Parallel {
		sweep.Go(func() error { return j.sweep(work) })
		demands.Go(func() error { return j.serveDemands(work) })
	}
	err := sweep.Wait()
	finished()
	_ = demands.Wait() // it only ends by the context
	j.end()
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	return err
}

// end answers the demands that nobody will work now, unless they need no work any more.
func (j *Job) end() {
	j.mu.Lock()
	defer j.mu.Unlock()
	j.running, j.ended = false, true
	for n, r := range j.regions {
		var err error
		if j.cfg.Set.Needs(n) {
			err = ErrStopped
		}
		r.answer(err)
	}
	clear(j.regions)
	j.queue = nil
}

// standBack is how long a worker that stands back waits before it looks again.
const standBack = 5 * time.Millisecond

// sweep is one background worker: paced before it picks a region, so that a demand never waits for the pace.
func (j *Job) sweep(ctx context.Context) error {
	steady := false
	defer func() { j.unsteady(steady) }()
	for {
		if !j.anyLeft() {
			return nil
		}
		steady = steady || j.beSteady()
		if !steady && j.cfg.Busy != nil && j.cfg.Busy() {
			if !sleep(ctx, standBack) {
				return ctx.Err()
			}
			continue
		}
		paid := !j.holeNext()
		if paid {
			if err := waitN(ctx, j.cfg.Limit, min(j.cfg.Region, j.cfg.Size())); err != nil {
				return err
			}
		}
		first, n, ok := j.pick(ctx, paid)
		if !ok {
			return ctx.Err()
		}
		if n == 0 {
			continue
		}
		if err := j.work(ctx, first, n, &j.background); err != nil {
			if !sleep(ctx, j.backoff()) {
				return ctx.Err()
			}
		}
	}
}

// beSteady makes the caller one of the workers that sweep however busy others are, if there are too few of them. One that
// found nothing left has ended, and the set may have grown since: another takes its place, or all would stand back.
func (j *Job) beSteady() bool {
	j.mu.Lock()
	defer j.mu.Unlock()
	if 4*j.steady >= j.cfg.Parallel {
		return false
	}
	j.steady++
	return true
}

func (j *Job) unsteady(was bool) {
	j.mu.Lock()
	defer j.mu.Unlock()
	if was {
		j.steady--
	}
}

func (j *Job) anyLeft() bool {
	j.mu.Lock()
	defer j.mu.Unlock()
	_, ok := j.cfg.Set.Next(0)
	return ok || j.busy > 0
}

// holeBatch is how many regions known to hold nothing are worked at once: a demand for one of them waits for all.
const holeBatch = 256

func (j *Job) hole(n int64) bool { return j.cfg.Hole != nil && j.cfg.Hole(n) }

// holeNext says whether the sweep is at a region that no limit counts.
func (j *Job) holeNext() bool {
	if j.cfg.Hole == nil {
		return false
	}
	j.mu.Lock()
	defer j.mu.Unlock()
	first, ok := j.nextFree()
	return ok && j.hole(first)
}

// pick reserves the next regions of the sweep, n from first on; false: none is left, or ctx has ended. Not paid for, only
// holes are taken; n is 0 if another worker was faster.
func (j *Job) pick(ctx context.Context, paid bool) (first, n int64, ok bool) {
	j.mu.Lock()
	defer j.mu.Unlock()
	for ctx.Err() == nil {
		if first, ok := j.nextFree(); ok {
			batch, hole := j.cfg.Batch, j.hole(first)
			switch {
			case hole:
				batch = holeBatch
			case !paid:
				return 0, 0, true
			case limited(j.cfg.Limit):
				batch = 1 // a run that has been picked would wait for its pace, and demands of its regions with it
			}
			j.reserve(first)
			for n = 1; n < batch && j.free(first+n) && j.hole(first+n) == hole; n++ {
				j.reserve(first + n)
			}
			j.cursor = first + n
			return first, n, true
		}
		if j.busy == 0 {
			if _, ok := j.cfg.Set.Next(0); !ok {
				return 0, 0, false
			}
		}
		j.changed.Wait()
	}
	return 0, 0, false
}

// free says that a region exists, needs work, and nobody has it or waits for it: what is demanded goes by itself, ahead.
func (j *Job) free(n int64) bool {
	return n*j.cfg.Region < j.cfg.Size() && j.regions[n] == nil && j.cfg.Set.Needs(n)
}

// nextFree finds a region that needs work and that nobody has, from the cursor on and around.
func (j *Job) nextFree() (int64, bool) {
	for _, from := range [2]int64{j.cursor, 0} {
		for {
			n, ok := j.cfg.Set.Next(from)
			if !ok {
				break
			}
			if r := j.regions[n]; r == nil || !r.busy {
				return n, true
			}
			from = n + 1
		}
	}
	return 0, false
}

func (j *Job) reserve(n int64) {
	r := j.regions[n]
	if r == nil {
		r = &region{}
		j.regions[n] = r
	}
	r.busy = true
	j.busy++
}

// work copies n reserved regions from first on and answers who waits for them, on success, or after too many failures.
func (j *Job) work(ctx context.Context, first, n int64, bytes *int64) error {
	off := first * j.cfg.Region
	length := min(n*j.cfg.Region, j.cfg.Size()-off)
	err := j.cfg.Work(ctx, off, length)

	j.mu.Lock()
	defer j.mu.Unlock()
	j.changed.Broadcast()
	if j.err = err; err == nil {
		*bytes += length
		j.failures = 0
	} else if j.failures++; j.failures == 1 {
		j.failing = time.Now()
	}
	for i := range n {
		if err != nil && !j.cfg.Set.Needs(first+i) {
			j.worked(first+i, nil) // the run failed behind it
		} else {
			j.worked(first+i, err)
		}
	}
	return err
}

// worked ends the work on one reserved region.
func (j *Job) worked(n int64, err error) {
	r := j.regions[n]
	r.busy = false
	j.busy--
	if err == nil {
		r.answer(nil)
		delete(j.regions, n)
		return
	}
	if r.failures++; r.failures == 1 {
		r.failing = time.Now()
	}
	// While the other side is known to be away one attempt is enough to tell the host so.
	if r.failures >= j.cfg.Attempts && time.Since(r.failing) >= j.cfg.Patience ||
		j.failures > 2*j.cfg.Attempts && time.Since(j.failing) >= j.cfg.Patience {
		r.answer(err)
		delete(j.regions, n)
	} else if len(r.waiters) > 0 || r.queued {
		j.enqueue(n, r)
	} else {
		delete(j.regions, n)
	}
}

func (r *region) answer(err error) {
	for _, w := range r.waiters {
		w <- err
	}
	r.waiters = nil
}

// serveDemands is one worker for demanded regions.
func (j *Job) serveDemands(ctx context.Context) error {
	for {
		n, ok := j.pickDemand(ctx)
		if !ok {
			return nil
		}
		if j.cfg.Limit != nil {
			j.cfg.Limit.AllowN(time.Now(), int(min(j.cfg.Region, int64(j.cfg.Limit.Burst()))))
		}
		if err := j.work(ctx, n, 1, &j.demand); err != nil && !sleep(ctx, min(j.backoff(), 10*j.cfg.RetryMin)) {
			return nil
		}
	}
}

func (j *Job) pickDemand(ctx context.Context) (int64, bool) {
	j.mu.Lock()
	defer j.mu.Unlock()
	for ctx.Err() == nil {
		for len(j.queue) > 0 {
			n := j.queue[0]
			j.queue = j.queue[1:]
			r := j.regions[n]
			if r == nil {
				continue
			}
			r.queued = false
			if r.busy {
				continue // its worker answers
			}
			if !j.cfg.Set.Needs(n) {
				r.answer(nil)
				delete(j.regions, n)
				continue
			}
			j.reserve(n)
			return n, true
		}
		j.demanded.Wait()
	}
	return 0, false
}

func (j *Job) enqueue(n int64, r *region) {
	if !r.queued {
		r.queued = true
		j.queue = append(j.queue, n)
		j.demanded.Signal()
	}
}

// Want puts a region ahead of the sweep without waiting for it.
func (j *Job) Want(n int64) { j.demandRegion(n, nil) }

// Demand puts a region ahead of the sweep. The channel gets exactly one answer: nil once the region needs no work, or
// the error of the last attempt.
func (j *Job) Demand(n int64) <-chan error {
	done := make(chan error, 1)
	j.demandRegion(n, done)
	return done
}

func (j *Job) demandRegion(n int64, done chan error) {
	j.mu.Lock()
	defer j.mu.Unlock()
	if !j.cfg.Set.Needs(n) {
		if done != nil {
			done <- nil
		}
		return
	}
	if j.ended {
		if done != nil {
			done <- ErrStopped
		}
		return
	}
	r := j.regions[n]
	if r == nil {
		r = &region{}
		j.regions[n] = r
	}
	if done != nil {
		r.waiters = append(r.waiters, done)
	}
	if !r.busy {
		j.enqueue(n, r)
	}
}

// Wait demands regions and waits for all of them; the first error ends it.
func (j *Job) Wait(ctx context.Context, regions ...int64) error {
	answers := make([]<-chan error, 0, len(regions))
	for _, n := range regions {
		answers = append(answers, j.Demand(n))
	}
	for _, a := range answers {
		select {
		case err := <-a:
			if err != nil {
				return err
			}
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
	return nil
}

// Away says that the last attempts, over all regions, have failed, and for longer than there is patience.
func (j *Job) Away() bool {
	j.mu.Lock()
	defer j.mu.Unlock()
	return j.failures >= j.cfg.Attempts && time.Since(j.failing) >= j.cfg.Patience
}

// Progress may be called at any time.
func (j *Job) Progress() Progress {
	j.mu.Lock()
	defer j.mu.Unlock()
	p := Progress{Total: j.total, Left: j.cfg.Set.Left(), Background: j.background, Demand: j.demand, Err: j.err}
	worked := p.Background + p.Demand - j.startedBytes
	if elapsed := time.Since(j.started).Seconds(); j.running && worked > 0 && elapsed > 0 {
		p.BytesPerSecond = float64(worked) / elapsed
		p.ETA = time.Duration(float64(p.Left*j.cfg.Region) / p.BytesPerSecond * float64(time.Second))
	}
	return p
}

func (j *Job) backoff() time.Duration {
	j.mu.Lock()
	defer j.mu.Unlock()
	d := j.cfg.RetryMin << min(j.failures, 16)
	if d <= 0 || d > j.cfg.RetryMax {
		d = j.cfg.RetryMax
	}
	return d
}

func limited(limit *rate.Limiter) bool { return limit != nil && limit.Limit() != rate.Inf }

// Waits for a limit are short, so that a change of it is felt at once.
const (
	minPace = time.Millisecond
	maxPace = 100 * time.Millisecond
)

// waitN takes n bytes from the limiter, in parts of at most its burst.
func waitN(ctx context.Context, limit *rate.Limiter, n int64) error {
	for n > 0 && limited(limit) && ctx.Err() == nil {
		part := min(n, int64(max(limit.Burst(), 1)))
		if limit.AllowN(time.Now(), int(part)) {
			n -= part
			continue
		}
		need := time.Duration(float64(part) / float64(limit.Limit()) * float64(time.Second))
		sleep(ctx, min(max(need, minPace), maxPace))
	}
	return ctx.Err()
}

// sleep returns false if ctx ended first.
func sleep(ctx context.Context, d time.Duration) bool {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return true
	case <-ctx.Done():
		return false
	}
}
