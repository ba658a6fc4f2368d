package volume

import (
	"sync/atomic"

	"gantline/internal/block"
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
