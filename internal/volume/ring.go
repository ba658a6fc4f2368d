package volume

import "gantline/internal/record"

// seqRing holds one item for each of a contiguous run of sequence numbers; at its limit the oldest leave.
type seqRing[T any] struct {
	first record.Seq // of the oldest item
	buf   []T        // length is 0 or a power of two
	head  int
	n     int
	limit int // a power of two
}

// next is the sequence that push must bring.
func (q *seqRing[T]) next() record.Seq { return q.first + record.Seq(q.n) }

func (q *seqRing[T]) has(seq record.Seq) bool { return q.n > 0 && seq >= q.first && seq < q.next() }

func (q *seqRing[T]) at(seq record.Seq) *T {
	return &q.buf[(q.head+int(seq-q.first))&(len(q.buf)-1)]
}

// push appends an item; one that does not continue the run begins a new one.
func (q *seqRing[T]) push(seq record.Seq, item T) {
	if q.n > 0 && seq != q.next() {
		q.reset()
	}
	if q.n == 0 {
		q.first, q.head = seq, 0
	}
	if q.n == q.limit {
		q.pop()
	}
	if q.n == len(q.buf) {
		q.grow()
	}
	q.buf[(q.head+q.n)&(len(q.buf)-1)] = item
	q.n++
}

func (q *seqRing[T]) pop() T {
	var zero T
	item := q.buf[q.head]
	q.buf[q.head] = zero
	q.head = (q.head + 1) & (len(q.buf) - 1)
	q.first++
	q.n--
	return item
}

// dropTo removes all items up to and including seq.
func (q *seqRing[T]) dropTo(seq record.Seq) {
	for q.n > 0 && q.first <= seq {
		q.pop()
	}
}

func (q *seqRing[T]) reset() {
	clear(q.buf)
	q.n, q.head = 0, 0
}

func (q *seqRing[T]) grow() {
	buf := make([]T, max(1024, 2*len(q.buf)))
	for i := range q.n {
		buf[i] = q.buf[(q.head+i)&(len(q.buf)-1)]
	}
	q.buf, q.head = buf, 0
}
