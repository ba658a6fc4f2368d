package proof

import (
	"context"
	"fmt"
	"math/rand/v2"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"gantline/internal/block"
)

// Disk is one volume under the load.
type Disk struct {
	Target block.Target
	Size   int64 // bytes
}

// Options of a load; zero values are the defaults named.
type Options struct {
	Seed        uint64
	Depth       int   // requests in flight, 8
	MaxBlocks   int   // blocks of one write at most, 4
	ReadPercent int   // of requests, 0
	FlushEvery  int   // a flush after so many writes of a worker, 0: never
	Rate        int   // writes a second in all, 0: as fast as it goes
	Span        int64 // bytes of each volume that are used, 0: all
	// Tolerate errors: the write's blocks are left alone from then on, since it may or may not be there.
	Tolerate bool
}

// never is the tick of an answer that has not come.
const never = ^uint64(0)

// write is one write of the history. Index 0 of the history is unused: number 0 means "nothing written".
type write struct {
	volume int32
	blocks int32
	block  int64
	issued uint64
	done   uint64 // never while it is in flight or its fate is unknown
	lost   bool   // forgotten: the image that the load went on from has not got it
}

// Load runs requests against a group's volumes and keeps their history. Run may be called again, one at a time.
type Load struct {
	opts  Options
	disks []Disk

	clock atomic.Uint64

	mu      sync.Mutex
	history []write
	last    []map[int64][]uint64 // volume → block → its writes in order
	busy    []map[int64]bool     // volume → block with a write in flight, or of unknown fate
	flushed uint64               // every write answered before this tick is covered by an answered flush
	stats   Stats
	lat     []time.Duration // of writes, a bounded sample
	seen    int
	lastEnd time.Time
	firstE  error
}

// Stats of a load since it was made.
type Stats struct {
	Writes, Reads, Flushes, Errors int64
	Bytes                          int64 // written and answered
	P50, P99                       time.Duration
	LongestGap                     time.Duration // between two answers while the load ran
	LongestWrite                   time.Duration
	FirstError                     error
}

// New prepares a load over disks that hold zeros.
func New(disks []Disk, opts Options) *Load {
	if opts.Depth == 0 {
		opts.Depth = 8
	}
	if opts.MaxBlocks == 0 {
		opts.MaxBlocks = 4
	}
	l := &Load{opts: opts, disks: disks, history: make([]write, 1)}
	for range disks {
		l.last = append(l.last, map[int64][]uint64{})
		l.busy = append(l.busy, map[int64]bool{})
	}
	return l
}

// SetDisks replaces the way to the volumes, for the next Run (after a reconnect).
func (l *Load) SetDisks(disks []Disk) { l.disks = disks }

// Run works until ctx ends or, without Tolerate, a request fails. What is in flight is waited for.
func (l *Load) Run(ctx context.Context) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	l.mu.Lock()
	l.lastEnd = time.Time{}
	l.mu.Unlock()
	var tick <-chan time.Time
	if l.opts.Rate > 0 {
		t := time.NewTicker(time.Second / time.Duration(l.opts.Rate))
		defer t.Stop()
		tick = t.C
	}
	var wg sync.WaitGroup
	for i := range l.opts.Depth {
		w := &worker{load: l, rnd: rand.New(rand.NewPCG(l.opts.Seed, l.clock.Load()<<8+uint64(i))), answer: make(chan struct{}, 1)}
		wg.Go(func() {
			if err := w.run(ctx, tick); err != nil {
				cancel(err)
			}
		})
	}
	wg.Wait()
	if err := context.Cause(ctx); err != nil && ctx.Err() != nil {
		l.mu.Lock()
		defer l.mu.Unlock()
		return l.firstE
	}
	return nil
}

// worker has one request in flight at a time.
type worker struct {
	load   *Load
	rnd    *rand.Rand
	answer chan struct{}
	since  int // writes since the last flush
}

// Complete is the answer to the worker's request.
func (w *worker) Complete(*block.Request) { w.answer <- struct{}{} }

func (w *worker) do(disk int, r *block.Request) error {
	r.Completer = w
	w.load.disks[disk].Target.Submit([]*block.Request{r})
	<-w.answer
	return r.Err
}

func (w *worker) run(ctx context.Context, tick <-chan time.Time) error {
	for ctx.Err() == nil {
		if tick != nil {
			select {
			case <-tick:
			case <-ctx.Done():
				return nil
			}
		}
		var err error
		switch {
		case w.load.opts.FlushEvery > 0 && w.since >= w.load.opts.FlushEvery:
			w.since = 0
			err = w.flush()
		case w.rnd.IntN(100) < w.load.opts.ReadPercent:
			err = w.read()
		default:
			w.since++
			err = w.write()
		}
		if err != nil && !w.load.opts.Tolerate {
			return err
		}
	}
	return nil
}

// claim picks blocks without a write in flight and enters a write for them into the history.
func (w *worker) claim() (number uint64, wr write) {
	l := w.load
	for {
		v := w.rnd.IntN(len(l.disks))
		size := l.disks[v].Size
		if l.opts.Span > 0 {
			size = min(size, l.opts.Span)
		}
		n := int64(1 + w.rnd.IntN(l.opts.MaxBlocks))
		b := w.rnd.Int64N(size/BlockSize - n + 1)
		l.mu.Lock()
		if !l.free(v, b, n) {
			l.mu.Unlock()
			continue
		}
		number = uint64(len(l.history))
		wr = write{volume: int32(v), block: b, blocks: int32(n), issued: l.clock.Add(1), done: never}
		l.history = append(l.history, wr)
		for i := b; i < b+n; i++ {
			l.busy[v][i] = true
			l.last[v][i] = append(l.last[v][i], number)
		}
		l.mu.Unlock()
		return number, wr
	}
}

func (l *Load) free(v int, b, n int64) bool {
	for i := b; i < b+n; i++ {
		if l.busy[v][i] {
			return false
		}
	}
	return true
}

func (w *worker) write() error {
	number, wr := w.claim()
	l := w.load
	data := make([]byte, int64(wr.blocks)*BlockSize) // a write's payload belongs to the log: never used again
	for i := range int64(wr.blocks) {
		stamp(data[i*BlockSize:], l.opts.Seed, int(wr.volume), wr.block+i, number)
	}
	begin := time.Now()
	err := w.do(int(wr.volume), &block.Request{Op: block.OpWrite, Offset: wr.block * BlockSize, Length: int64(len(data)), Data: data})
	end := time.Now()
	l.mu.Lock()
	defer l.mu.Unlock()
	l.ended(begin, end, err)
	if err != nil {
		return fmt.Errorf("write %d of volume %d block %d: %w", number, wr.volume, wr.block, err)
	}
	l.history[number].done = l.clock.Add(1)
	for i := wr.block; i < wr.block+int64(wr.blocks); i++ {
		delete(l.busy[wr.volume], i)
	}
	l.stats.Writes++
	l.stats.Bytes += int64(len(data))
	l.sample(end.Sub(begin))
	return nil
}

func (l *Load) ended(begin, end time.Time, err error) {
	if !l.lastEnd.IsZero() {
		// Depth requests answered out of one stall count as one gap.
		l.stats.LongestGap = max(l.stats.LongestGap, end.Sub(l.lastEnd))
	}
	if end.After(l.lastEnd) {
		l.lastEnd = end
	}
	l.stats.LongestWrite = max(l.stats.LongestWrite, end.Sub(begin))
	if err != nil {
		l.stats.Errors++
		if l.firstE == nil {
			l.firstE = err
		}
	}
}

// sampleSize bounds what is kept for percentiles.
const sampleSize = 1 << 16

func (l *Load) sample(d time.Duration) {
	l.seen++
	if len(l.lat) < sampleSize {
		l.lat = append(l.lat, d)
	} else if i := rand.IntN(l.seen); i < sampleSize {
		l.lat[i] = d
	}
}

// read checks that a block holds the last write answered before the read was issued, or a later one.
func (w *worker) read() error {
	l := w.load
	v := w.rnd.IntN(len(l.disks))
	size := l.disks[v].Size
	if l.opts.Span > 0 {
		size = min(size, l.opts.Span)
	}
	b := w.rnd.Int64N(size / BlockSize)
	l.mu.Lock()
	least := l.lastAnswered(v, b)
	l.mu.Unlock()
	p := make([]byte, BlockSize)
	begin := time.Now()
	err := w.do(v, &block.Request{Op: block.OpRead, Offset: b * BlockSize, Length: BlockSize, Data: p})
	l.mu.Lock()
	defer l.mu.Unlock()
	if err == nil {
		var got uint64
		got, err = readStamp(p, l.opts.Seed, v, b)
		if err == nil && got < least {
			err = fmt.Errorf("stale read: write %d, but write %d was answered before", got, least)
		}
	}
	l.ended(begin, time.Now(), err)
	if err != nil {
		return fmt.Errorf("read of volume %d block %d (writes there: %v, answered when it began: %d): %w", v, b, l.last[v][b], least, err)
	}
	l.stats.Reads++
	return nil
}

func (l *Load) lastAnswered(v int, b int64) uint64 {
	writes := l.last[v][b]
	for i := len(writes) - 1; i >= 0; i-- {
		if l.history[writes[i]].done != never {
			return writes[i]
		}
	}
	return 0
}

// flush: one volume's flush covers what was answered on any of the group's volumes, since they share one log; the
// check of durability uses it only so.
func (w *worker) flush() error {
	l := w.load
	covered := l.clock.Load()
	begin := time.Now()
	err := w.do(w.rnd.IntN(len(l.disks)), &block.Request{Op: block.OpFlush})
	l.mu.Lock()
	defer l.mu.Unlock()
	l.ended(begin, time.Now(), err)
	if err != nil {
		return fmt.Errorf("flush: %w", err)
	}
	l.flushed = max(l.flushed, covered)
	l.stats.Flushes++
	return nil
}

// Stats so far.
func (l *Load) Stats() Stats {
	l.mu.Lock()
	defer l.mu.Unlock()
	s := l.stats
	s.FirstError = l.firstE
	if len(l.lat) > 0 {
		lat := slices.Clone(l.lat)
		slices.Sort(lat)
		s.P50, s.P99 = lat[len(lat)/2], lat[len(lat)*99/100]
	}
	return s
}

// ResetLatency forgets latencies and gaps, to compare one stretch of a run with another.
func (l *Load) ResetLatency() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.lat, l.seen = l.lat[:0], 0
	l.stats.LongestGap, l.stats.LongestWrite = 0, 0
}
