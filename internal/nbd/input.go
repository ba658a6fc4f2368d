package nbd

import "gantline/internal/block"

const (
	firstChunk = 64 << 10
	largeChunk = 512 << 10
	// minRead is the least room worth a read when nothing is pending: less, and a batch is split for nothing.
	minRead = 32 << 10
	// ownPayload is the size from which a payload that does not fit in the chunk gets a buffer of its own.
	ownPayload = 32 << 10
)

// input is a connection's read buffer. Payloads handed out are slices of the chunk and may be kept for ever, so that a
// chunk of which anything was lent is never written to again where it was read from: it is left to the collector.
type input struct {
	chunk []byte
	r, w  int  // chunk[r:w] is read but not parsed
	lent  bool // a slice of chunk was handed out
	need  int  // bytes from r on that the message at r takes
	size  int  // of the next chunk
}

func newInput(early []byte) input {
	in := input{chunk: make([]byte, max(firstChunk, len(early))), size: 2 * firstChunk}
	in.w = copy(in.chunk, early)
	return in
}

func (in *input) buffered() []byte { return in.chunk[in.r:in.w] }

// lend hands out the next n bytes.
func (in *input) lend(n int) []byte {
	p := in.chunk[in.r : in.r+n : in.r+n]
	in.r += n
	in.lent = in.lent || n > 0
	return p
}

// fits says whether a message of n bytes from r on can be completed in this chunk.
func (in *input) fits(n int) bool { return n <= len(in.chunk)-in.r }

// room gives the space to read into; what is not parsed yet moves if it must.
func (in *input) room() []byte {
	if in.r == in.w && !in.lent {
		in.r, in.w = 0, 0
	}
	if in.fits(in.need) && (in.r < in.w || len(in.chunk)-in.w >= minRead) {
		return in.chunk[in.w:]
	}
	rest := in.buffered()
	if in.lent || len(in.chunk) < in.need {
		in.chunk = block.Buffer(max(in.size, in.need))
		in.size = min(2*in.size, largeChunk)
		in.lent = false
	}
	in.w = copy(in.chunk, rest)
	in.r = 0
	return in.chunk[in.w:]
}
