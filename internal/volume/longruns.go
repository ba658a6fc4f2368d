package volume

import (
	"sync"

	"gantline/internal/block"
)

// longRuns remembers the long writes to a device that nobody has sent on to the disk yet. Left to a flush, gigabytes would
// fill the disk's queue at once, in which all who sync a few bytes wait behind them; sent on at once, they take from the
// journals' syncs what the disk can do, and a range that is overwritten soon is written twice. So they rest in the page
// cache up to a limit, and a checkpoint writes them out piece by piece before it flushes.
type longRuns struct {
	mu    sync.Mutex
	runs  []span // oldest first
	bytes int64
}

type span struct{ off, end int64 }

const (
	longRun      = 256 << 10 // length of a device write from which it is remembered
	longRunBytes = 512 << 20 // that rest at most; beyond it the oldest are sent on at once
	maxLongRuns  = 4096
	writeOutStep = 4 << 20 // bytes on their way to the disk while a checkpoint waits for as many
)

// note is told of n bytes written at off.
func (l *longRuns) note(dev block.Device, off, n int64) {
	d, ok := dev.(interface{ BeginWriteBack(off, n int64) })
	if !ok || n < longRun {
		return
	}
	l.mu.Lock()
	var send []span
	if last := len(l.runs) - 1; last >= 0 && l.runs[last].end == off && l.runs[last].end-l.runs[last].off < longRunBytes/8 {
		l.runs[last].end += n
	} else {
		l.runs = append(l.runs, span{off, off + n})
	}
	l.bytes += n
	for l.bytes > longRunBytes || len(l.runs) > maxLongRuns {
		send = append(send, l.runs[0])
		l.bytes -= l.runs[0].end - l.runs[0].off
		l.runs = l.runs[1:]
	}
	l.mu.Unlock()
	for _, s := range send {
		d.BeginWriteBack(s.off, s.end-s.off)
	}
}

// writeOut writes what is remembered to the disk, never with more than two steps on their way. An error is the device's, as
// one of a flush.
func (l *longRuns) writeOut(dev block.Device) error {
	l.mu.Lock()
	runs := l.runs
	l.runs, l.bytes = nil, 0
	l.mu.Unlock()
	d, ok := dev.(interface {
		BeginWriteBack(off, n int64)
		WriteBack(off, n int64) error
	})
	if !ok {
		return nil
	}
	var before span
	wait := func() error {
		if before.end == before.off {
			return nil
		}
		return d.WriteBack(before.off, before.end-before.off)
	}
	for _, r := range runs {
		for off := r.off; off < r.end; off += writeOutStep {
			step := span{off, min(r.end, off+writeOutStep)}
			d.BeginWriteBack(step.off, step.end-step.off)
			if err := wait(); err != nil {
				return err
			}
			before = step
		}
	}
	return wait()
}
