package apply

import "gantline/internal/record"

// recordOverhead is what a record without data counts in the window, bytes.
const recordOverhead = 128

// window keeps a run of consecutive records in memory so that applying need not read them back from the log. It keeps
// the oldest run: what does not fit, or does not follow, is left to the log.
type window struct {
	batches [][]record.Record // as they were stored; consecutive; never changed, only cut
	bytes   int
	limit   int
}

func size(recs []record.Record) int {
	n := 0
	for i := range recs {
		n += recordOverhead + len(recs[i].Data)
	}
	return n
}

func last(recs []record.Record) record.Seq { return recs[len(recs)-1].Seq }

// add keeps the records if there is room and no hole in front of them.
func (w *window) add(recs []record.Record) {
	n := size(recs)
	if w.bytes+n > w.limit {
		return
	}
	if len(w.batches) > 0 && last(w.batches[len(w.batches)-1])+1 != recs[0].Seq {
		return
	}
	w.batches = append(w.batches, recs)
	w.bytes += n
}

// take appends to into the records from..to as far as they are here, at most maxRecords and about maxBytes.
func (w *window) take(into []record.Record, from, to record.Seq, maxRecords, maxBytes int) []record.Record {
	for _, batch := range w.batches {
		if last(batch) < from {
			continue
		}
		if batch[0].Seq > from {
			return into
		}
		for _, r := range batch[from-batch[0].Seq:] {
			if r.Seq > to || len(into) >= maxRecords || maxBytes <= 0 {
				return into
			}
			into = append(into, r)
			maxBytes -= recordOverhead + len(r.Data)
			from++
		}
	}
	return into
}

// drop forgets what lies at or below upTo.
func (w *window) drop(upTo record.Seq) {
	for len(w.batches) > 0 && last(w.batches[0]) <= upTo {
		w.bytes -= size(w.batches[0])
		w.batches[0] = nil
		w.batches = w.batches[1:]
	}
}

// cut forgets what lies above upTo.
func (w *window) cut(upTo record.Seq) {
	for n := len(w.batches); n > 0 && last(w.batches[n-1]) > upTo; n = len(w.batches) {
		batch := w.batches[n-1]
		w.bytes -= size(batch)
		w.batches = w.batches[:n-1]
		if batch[0].Seq <= upTo {
			keep := batch[: upTo-batch[0].Seq+1 : upTo-batch[0].Seq+1]
			w.batches = append(w.batches, keep)
			w.bytes += size(keep)
		}
	}
}
