package volume

import (
	"sync"
	"time"

	"gantline/internal/block"
	"gantline/internal/record"
)

// batch is the scratch of one Submit: the writes on their way through the commit, in submit order, and the rest.
type batch struct {
	reqs    []*block.Request // writes, zeros, trims
	recs    []record.Record  // the same, as records
	redone  []*block.Request // replays of writes that have been done
	rest    []*block.Request // flushes, reads, …
	want    []int64          // absent regions that the writes touch
	waits   int              // FUA writes and flushes of the batch
	total   int              // requests of the batch
	waiting int              // those of waits that the log was not durable for
}

var batches = sync.Pool{New: func() any { return new(batch) }}

// release gives the scratch back without keeping payloads alive.
func (b *batch) release() {
	clear(b.reqs[:cap(b.reqs)])
	clear(b.recs[:cap(b.recs)])
	clear(b.redone[:cap(b.redone)])
	clear(b.rest[:cap(b.rest)])
	if cap(b.reqs) > 1024 {
		return
	}
	*b = batch{reqs: b.reqs[:0], recs: b.recs[:0], redone: b.redone[:0], rest: b.rest[:0], want: b.want[:0]}
	batches.Put(b)
}

// run executes the requests of one Submit in a serving mode: first the writes, as one commit, then the rest. Requests
// of one Submit are all in flight together, so only the writes among each other have an order to keep.
func (b *batch) run(v *Volume, p *period, epoch uint64, reqs []*block.Request) {
	m := v.member.Load()
	b.total = len(reqs)
	for _, r := range reqs {
		if err := v.check(r); err != nil {
			v.finish(p, r, err)
			continue
		}
		switch r.Op {
		case block.OpWrite, block.OpZero, block.OpTrim:
			switch {
			case p.mode == ModeReadOnly:
				v.finish(p, r, block.ErrReadOnly)
			case r.Length == 0:
				v.finish(p, r, nil)
			default:
				b.reqs = append(b.reqs, r)
				if r.Flags&block.FlagFUA != 0 {
					b.waits++
				}
			}
		default:
			if r.Op == block.OpFlush {
				b.waits++
			}
			b.rest = append(b.rest, r)
		}
	}
	if len(b.reqs) > 0 {
		switch {
		case m == nil:
			v.lone.write(v, p, b.reqs)
		case m.group.mem != nil && m.mustBringIn(b.reqs):
			m.commitLater(p, epoch, b)
		default:
			m.group.commit(m, p, epoch, b)
		}
	}
	for _, r := range b.rest {
		v.serve(p, r, m, b)
	}
	if b.waiting > 0 {
		m.group.wantSync(p, b)
	}
}

// serve executes what is no write.
func (v *Volume) serve(p *period, r *block.Request, m *member, b *batch) {
	switch r.Op {
	case block.OpFlush:
		if m == nil {
			v.workers.flush(p, r)
		} else {
			m.group.waitDurable(p, r, m.group.Tip(), b)
		}
	case block.OpRead, block.OpExtents:
		if r.Length == 0 {
			v.finish(p, r, nil)
			return
		}
		v.read(p, r)
	case block.OpCache:
		v.finish(p, r, nil)
	default:
		v.finish(p, r, block.ErrUnsupported)
	}
}

// opOf maps a host's request to what the log calls it.
func opOf(r *block.Request) record.Op {
	switch r.Op {
	case block.OpZero:
		return record.OpZero
	case block.OpTrim:
		return record.OpTrim
	}
	return record.OpWrite
}

// build makes records of the writes, all but their sequence. It runs before the commit mutex is taken: the checksums
// of what has none yet are most of it.
func (b *batch) build(m *member) {
	now := time.Now().UnixNano()
	for _, r := range b.reqs {
		rec := record.Record{
			Op: opOf(r), Volume: m.number, Offset: uint64(r.Offset), Length: uint32(r.Length),
			Time: now, Session: r.Session, Request: r.Number,
		}
		if r.Op == block.OpWrite {
			rec.Data = r.Data
			if rec.CRC = r.CRC; !r.HasCRC {
				rec.CRC = record.Checksum(r.Data)
			}
		}
		if r.Op == block.OpZero && r.Flags&block.FlagNoHole == 0 {
			rec.Op = record.OpTrim // the host does not mind a hole
		}
		b.recs = append(b.recs, rec)
	}
}
