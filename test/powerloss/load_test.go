package powerloss

import (
	"context"
	"fmt"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"time"

	"gantline/internal/block"
)

// load is a number of hosts that write, flush and read without end, as fast as rate allows, until stopped.
type load struct {
	size    int64
	targets atomic.Pointer[[]block.Target]

	mu      sync.Mutex
	idle    *sync.Cond
	h       *history
	busy    []map[int64]bool // in flight, or of unknown fate
	paused  bool
	flying  int
	life    int // power losses of primaries begun
	broken  error
	errors  int
	firstE  error
	answers int
	flushes int
	reads   int
	bytes   int64
	longest time.Duration

	cancel context.CancelFunc
	work   sync.WaitGroup
}

const (
	hosts = 8
	pace  = 12 * time.Millisecond // between requests of one host, in the mean
)

func newLoad(seed uint64, targets []block.Target, size int64) *load {
	l := &load{size: size, h: newHistory(seed, len(targets)), paused: true}
	l.idle = sync.NewCond(&l.mu)
	l.targets.Store(&targets)
	for range targets {
		l.busy = append(l.busy, map[int64]bool{})
	}
	ctx, cancel := context.WithCancel(context.Background())
	l.cancel = cancel
	for i := range hosts {
		rnd := rand.New(rand.NewPCG(seed, uint64(i)))
		l.work.Go(func() { l.run(ctx, rnd) })
	}
	return l
}

func (l *load) stop() {
	l.cancel()
	l.mu.Lock()
	l.paused = false
	l.idle.Broadcast()
	l.mu.Unlock()
	l.work.Wait()
}

func (l *load) resume() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.paused = false
	l.idle.Broadcast()
}

// pause lets no further request begin.
func (l *load) pause() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.paused = true
}

// quiet pauses and waits until everything in flight is answered.
func (l *load) quiet(limit time.Duration) error {
	l.pause()
	end := time.Now().Add(limit)
	for {
		l.mu.Lock()
		flying, broken := l.flying, l.broken
		l.mu.Unlock()
		switch {
		case broken != nil:
			return broken
		case flying == 0:
			return nil
		case time.Now().After(end):
			return fmt.Errorf("%d requests are not answered after %v", flying, limit)
		}
		time.Sleep(5 * time.Millisecond)
	}
}

func (l *load) run(ctx context.Context, rnd *rand.Rand) {
	since := 0
	for ctx.Err() == nil {
		time.Sleep(time.Duration(rnd.Int64N(int64(2 * pace))))
		l.mu.Lock()
		for l.paused && ctx.Err() == nil {
			l.idle.Wait()
		}
		l.flying++
		l.mu.Unlock()
		if ctx.Err() == nil {
			since = l.one(rnd, since)
		}
		l.mu.Lock()
		l.flying--
		l.mu.Unlock()
	}
}

func (l *load) one(rnd *rand.Rand, since int) int {
	switch p := rnd.IntN(100); {
	case since > 10 && p < 20:
		l.flush(rnd)
		return 0
	case p < 10:
		l.read(rnd)
		return since
	}
	l.write(rnd)
	return since + 1
}

func (l *load) do(volume int, r *block.Request) error {
	w := make(waiter, 1)
	r.Completer = w
	begin := time.Now()
	(*l.targets.Load())[volume].Submit([]*block.Request{r})
	<-w
	l.mu.Lock()
	defer l.mu.Unlock()
	l.longest = max(l.longest, time.Since(begin))
	if r.Err != nil {
		l.errors++
		if l.firstE == nil {
			l.firstE = r.Err
		}
	}
	return r.Err
}

func (l *load) write(rnd *rand.Rand) {
	v, n := rnd.IntN(len(l.busy)), 1+rnd.IntN(3)
	b := l.pick(rnd, n)
	l.mu.Lock()
	for i := b; i < b+int64(n); i++ {
		if l.busy[v][i] {
			l.mu.Unlock()
			return
		}
	}
	for i := b; i < b+int64(n); i++ {
		l.busy[v][i] = true
	}
	number := l.h.issue(v, b, n)
	l.mu.Unlock()
	data := make([]byte, n*blockSize)
	for i := range n {
		stamp(data[i*blockSize:], l.h.seed, v, b+int64(i), number)
	}
	req := &block.Request{Op: block.OpWrite, Offset: b * blockSize, Length: int64(len(data)), Data: data}
	fua := rnd.IntN(50) == 0
	if fua {
		req.Flags = block.FlagFUA
	}
	if l.do(v, req) != nil {
		return // it may be there or not: its blocks are left alone from now on
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	l.h.writes[number].done = l.h.tick()
	l.answers++
	l.bytes += int64(len(data))
	for i := b; i < b+int64(n); i++ {
		delete(l.busy[v], i)
	}
}

// pick prefers some blocks, so that writes overlap what is still on its way.
func (l *load) pick(rnd *rand.Rand, n int) int64 {
	blocks := l.size/blockSize - int64(n) + 1
	if rnd.IntN(2) == 0 {
		blocks = min(blocks, 64)
	}
	return rnd.Int64N(blocks)
}

func (l *load) flush(rnd *rand.Rand) {
	l.mu.Lock()
	covered := l.h.tick()
	l.mu.Unlock()
	if l.do(rnd.IntN(len(l.busy)), &block.Request{Op: block.OpFlush}) != nil {
		return
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	l.h.flush(covered)
	l.flushes++
}

func (l *load) read(rnd *rand.Rand) {
	v, b := rnd.IntN(len(l.busy)), l.pick(rnd, 1)
	l.mu.Lock()
	least, life := l.h.least(v, b), l.life
	l.mu.Unlock()
	p := make([]byte, blockSize)
	if l.do(v, &block.Request{Op: block.OpRead, Offset: b * blockSize, Length: blockSize, Data: p}) != nil {
		return
	}
	got, err := readStamp(p, l.h.seed, v, b)
	l.mu.Lock()
	defer l.mu.Unlock()
	l.reads++
	if err == nil && got < least && life == l.life {
		err = fmt.Errorf("%w of volume %d block %d: write %d, but write %d was answered before", errStale, v, b, got, least)
	}
	if err != nil && l.broken == nil {
		l.broken = err
	}
}

// primaryDies: from now on reads prove nothing until the history is reconciled.
func (l *load) primaryDies() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.life++
}

// primaryBegins marks the beginning of a new life: what is answered before it was answered by an older one.
func (l *load) primaryBegins() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.h.lives = append(l.h.lives, l.h.tick())
}

func (l *load) counts() (answers, errors int, first error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.answers, l.errors, l.firstE
}
