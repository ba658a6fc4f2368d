package volume

import (
	"sync/atomic"
	"time"

	"gantline/internal/block"
	"gantline/internal/latency"
)

// Traffic counts what a volume has executed for hosts in this run.
type Traffic struct {
	Reads, Writes, Flushes, Others uint64 // requests; a write is data, zeros or a trim
	ReadBytes, WriteBytes          uint64
}

type traffic struct {
	reads, writes, flushes, others, readBytes, writeBytes atomic.Uint64
}

// add counts the requests of one Submit.
func (t *traffic) add(reqs []*block.Request) {
	var n Traffic
	for _, r := range reqs {
		if r.Flags&block.FlagFetch != 0 {
			continue // no host's
		}
		switch r.Op {
		case block.OpRead:
			n.Reads++
			n.ReadBytes += uint64(r.Length)
		case block.OpWrite, block.OpZero, block.OpTrim:
			n.Writes++
			n.WriteBytes += uint64(r.Length)
		case block.OpFlush:
			n.Flushes++
		default:
			n.Others++
		}
	}
	for _, c := range [...]struct {
		to *atomic.Uint64
		n  uint64
	}{{&t.reads, n.Reads}, {&t.writes, n.Writes}, {&t.flushes, n.Flushes}, {&t.others, n.Others},
		{&t.readBytes, n.ReadBytes}, {&t.writeBytes, n.WriteBytes}} {
		if c.n > 0 {
			c.to.Add(c.n)
		}
	}
}

// Traffic may be called at any time.
func (v *Volume) Traffic() Traffic {
	t := &v.traffic
	return Traffic{Reads: t.reads.Load(), Writes: t.writes.Load(), Flushes: t.flushes.Load(), Others: t.others.Load(),
		ReadBytes: t.readBytes.Load(), WriteBytes: t.writeBytes.Load()}
}

func (t *traffic) requests() uint64 {
	return t.reads.Load() + t.writes.Load() + t.flushes.Load() + t.others.Load()
}

// Waits is how long hosts have waited for a volume's answers in this run, from the moment in which the volume took the
// request, held times included. Each request that Traffic counts is in one of them once it has been answered.
type Waits struct{ Reads, Writes, Flushes, Others latency.Snapshot }

// waits are the histograms behind Waits.
type waits struct{ reads, writes, flushes, others latency.Histogram }

// clock is nanoseconds since began, and never 0.
func clock() int64 { return int64(time.Since(began)) | 1 }

// observe counts a request at its answer, which must come right after: once answered it is its submitter's again. One
// that the volume does not execute itself, such as a relayed one, is not counted.
func (w *waits) observe(r *block.Request, now int64) {
	if r.Flags&block.FlagFetch != 0 {
		return
	}
	w.of(r.Op).Observe(time.Duration(now-r.Began), 1)
}

func (w *waits) of(op block.Op) *latency.Histogram {
	switch op {
	case block.OpRead:
		return &w.reads
	case block.OpWrite, block.OpZero, block.OpTrim:
		return &w.writes
	case block.OpFlush:
		return &w.flushes
	}
	return &w.others
}

// Waits may be called at any time.
func (v *Volume) Waits() Waits {
	w := &v.waits
	return Waits{Reads: w.reads.Snapshot(), Writes: w.writes.Snapshot(), Flushes: w.flushes.Snapshot(), Others: w.others.Snapshot()}
}

// begin starts the requests' clocks, unless they run already: one that was held, or comes back from a relay, has
// waited since it came first.
func begin(reqs []*block.Request) {
	now := clock()
	for _, r := range reqs {
		if r.Began == 0 {
			r.Began = now
		}
	}
}
