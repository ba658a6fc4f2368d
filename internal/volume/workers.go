package volume

import (
	"fmt"
	"sync"
	"sync/atomic"

	"gantline/internal/block"
)

// job is a request that waits for a disk or a fetch: a read, or the flush of a lone volume.
type job struct {
	p *period
	r *block.Request
}

// workers run jobs on a bounded number of goroutines, which end when there is nothing to do.
type workers struct {
	v       *Volume
	limit   int
	mu      sync.Mutex
	queue   []job
	running int
	group   sync.WaitGroup
}

// add queues a job; at the limit the caller does it itself.
func (w *workers) add(j job) {
	w.mu.Lock()
	if len(w.queue) >= maxQueued {
		w.mu.Unlock()
		w.do(j)
		return
	}
	w.queue = append(w.queue, j)
	if w.running < w.limit {
		w.running++
		w.group.Add(1)
		go w.loop()
	}
	w.mu.Unlock()
}

func (w *workers) loop() {
	defer w.group.Done()
	for {
		w.mu.Lock()
		if len(w.queue) == 0 {
			w.running--
			w.queue = nil
			w.mu.Unlock()
			return
		}
		j := w.queue[0]
		w.queue[0] = job{}
		w.queue = w.queue[1:]
		w.mu.Unlock()
		w.do(j)
	}
}

func (w *workers) do(j job) {
	if isFlush(j.r) {
		w.flushAll(j)
		return
	}
	w.v.finish(j.p, j.r, w.v.readWaiting(j.r))
}

// isFlush: FUA writes of a lone volume come as jobs once they are written.
func isFlush(r *block.Request) bool { return r.Op != block.OpRead && r.Op != block.OpExtents }

// flush answers r once the device of a lone volume has been flushed.
func (w *workers) flush(p *period, r *block.Request) { w.add(job{p: p, r: r}) }

// flushAll does one device flush for all who wait for one by now.
func (w *workers) flushAll(first job) {
	all := []job{first}
	w.mu.Lock()
	rest := w.queue[:0]
	for _, j := range w.queue {
		if isFlush(j.r) {
			all = append(all, j)
		} else {
			rest = append(rest, j)
		}
	}
	clear(w.queue[len(rest):])
	w.queue = rest
	w.mu.Unlock()
	err := w.v.lone.err()
	if err == nil {
		err = w.v.dev.Flush()
	}
	if err != nil {
		w.v.lone.broken.Store(true)
		err = fmt.Errorf("%w: flushing volume %s: %w", block.ErrIO, w.v.name, err)
	}
	for _, j := range all {
		w.v.finish(j.p, j.r, err)
	}
}

func (w *workers) wait() { w.group.Wait() }

// lone is the write path of a volume without a group: straight to the device. Its table of done requests lives as long
// as the process.
type lone struct {
	mu   sync.Mutex // also orders the writes of concurrent submitters, as the commit mutex does in a group
	done *doneTable
	// broken: a flush has failed, so what was written before may be gone although a later flush succeeds. Only a new
	// start helps.
	broken atomic.Bool
}

func (l *lone) err() error {
	if l.broken.Load() {
		return fmt.Errorf("%w: an earlier flush has failed", block.ErrIO)
	}
	return nil
}

func (l *lone) write(v *Volume, p *period, reqs []*block.Request) {
	for _, r := range reqs {
		err := l.writeOne(v, r)
		if err == nil && r.Flags&block.FlagFUA != 0 {
			v.workers.flush(p, r)
			continue
		}
		v.finish(p, r, err)
	}
}

func (l *lone) writeOne(v *Volume, r *block.Request) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.done.batch++
	if r.Session != 0 {
		switch l.done.look(r.Session, r.Number, r.Floor) {
		case doneYes:
			return nil
		case doneStale:
			return block.ErrSession
		}
	}
	err := l.err()
	if err != nil {
		return err
	}
	switch r.Op {
	case block.OpWrite:
		_, err = v.dev.WriteAt(r.Data, r.Offset)
	case block.OpZero:
		err = v.dev.Zero(r.Offset, r.Length, r.Flags&block.FlagNoHole != 0)
	case block.OpTrim:
		err = v.dev.Trim(r.Offset, r.Length)
	}
	if err != nil {
		return fmt.Errorf("writing volume %s: %w", v.name, err)
	}
	if r.Session != 0 {
		l.done.set(r.Session, r.Number, r.Floor)
	}
	return nil
}
