package queue

import "gantline/internal/record"

const (
	// entryWeight is what a record counts in memory besides its data, in bytes.
	entryWeight = 160
	slabBytes   = 256 << 10
	ownBytes    = 64 << 10 // data of this length has memory of its own
)

// entries are the records in memory: a run of contiguous numbers, oldest first. Data is copied in, so that no queued byte
// shares memory with a request; it never changes afterwards. Slabs go back to the garbage collector when the last of
// their records is freed and read.
type entries struct {
	recs []record.Record // recs[head:] count
	head int
	used int64
	slab []byte // free rest
}

func weight(recs []record.Record) int64 {
	total := int64(0)
	for i := range recs {
		total += int64(len(recs[i].Data)) + entryWeight
	}
	return total
}

func (e *entries) len() int { return len(e.recs) - e.head }

func (e *entries) first() record.Seq { return e.recs[e.head].Seq }

// push appends records with copies of their data.
func (e *entries) push(recs []record.Record) {
	for i := range recs {
		r := recs[i]
		r.Data = e.keep(r.Data)
		if len(r.Data) > 0 && r.CRC == 0 {
			r.CRC = record.Checksum(r.Data)
		}
		e.recs = append(e.recs, r)
	}
	e.used += weight(recs)
}

func (e *entries) keep(data []byte) []byte {
	n := len(data)
	switch {
	case n == 0:
		return nil
	case n >= ownBytes:
		return append(make([]byte, 0, n), data...)
	case n > len(e.slab):
		e.slab = make([]byte, slabBytes)
	}
	kept := e.slab[:n:n]
	e.slab = e.slab[n:]
	copy(kept, data)
	return kept
}

// drop frees the records up to and including upTo.
func (e *entries) drop(upTo record.Seq) {
	for e.len() > 0 && e.first() <= upTo {
		r := &e.recs[e.head]
		e.used -= int64(len(r.Data)) + entryWeight
		*r = record.Record{}
		e.head++
	}
	if e.head == len(e.recs) {
		if e.recs, e.head = e.recs[:0], 0; cap(e.recs) > 1<<16 {
			e.recs = nil
		}
		e.slab = nil
	} else if e.head > 1024 && e.head > len(e.recs)/2 {
		n := copy(e.recs, e.recs[e.head:])
		clear(e.recs[n:])
		e.recs, e.head = e.recs[:n], 0
	}
}

// read copies out what of the records from `from` on keeps within the bounds, one at least.
func (e *entries) read(from record.Seq, maxRecords, maxBytes int) []record.Record {
	at := e.head + int(from-e.first())
	n, bytes := 0, 0
	for at+n < len(e.recs) && n < max(1, maxRecords) {
		if bytes += len(e.recs[at+n].Data); n > 0 && bytes > maxBytes {
			break
		}
		n++
	}
	return append(make([]record.Record, 0, n), e.recs[at:at+n]...)
}
