package wire

import "fmt"

// piece is a frame as it was read, with what checking it has found.
type piece struct {
	kind      Type
	body      []byte
	batch     Batch
	malformed error
}

const (
	// maxEarly bounds what a bundle holds of frames that have come before their turn, in bytes. A connection whose next
	// frame does not fit is not read until it does, or until that frame's turn has come.
	maxEarly = 8 << 20
	// pieceOverhead is what a held frame counts besides its bytes, so that a flood of empty ones is bounded too.
	pieceOverhead = 512
)

// weight is what a held piece takes, in bytes: a packed batch has been unpacked.
func (p *piece) weight() int {
	n := 0
	for i := range p.batch.Records {
		n += len(p.batch.Records[i].Data)
	}
	return max(n, len(p.body)) + pieceOverhead
}

// order puts frames that come by several connections into the order in which they were written: each has a position, from
// 0 on without a gap, and the positions on one connection ascend. It is pure; the zero value is ready.
//
// It cannot get stuck: the frame whose turn it is always has room, and no frame stands before it on its connection but such
// as have been taken.
type order struct {
	next  uint64 // whose turn it is
	held  map[uint64]piece
	bytes int // weight of held
}

// room says whether a frame may be put in now.
func (o *order) room(at uint64, weight int) bool { return at <= o.next || o.bytes+weight <= maxEarly }

// put takes a frame in. A position that has been there before is an error.
func (o *order) put(at uint64, p piece) error {
	if _, twice := o.held[at]; twice || at < o.next {
		return fmt.Errorf("%w: place %d of a stream a second time", ErrFrame, at)
	}
	if o.held == nil {
		o.held = map[uint64]piece{}
	}
	o.held[at] = p
	o.bytes += p.weight()
	return nil
}

// ready says whether the frame is here whose turn it is.
func (o *order) ready() bool {
	_, ok := o.held[o.next]
	return ok
}

// take gives it out.
func (o *order) take() (piece, bool) {
	p, ok := o.held[o.next]
	if ok {
		delete(o.held, o.next)
		o.bytes -= p.weight()
		o.next++
	}
	return p, ok
}
