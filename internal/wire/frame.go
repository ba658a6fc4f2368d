package wire

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"

	"gantline/internal/block"
	"gantline/internal/record"
)

// Type says what a frame's body is. The numbers travel and never change.
type Type uint8

const (
	TypeHello     Type = 1  // JSON Hello, first frame both ways
	TypeError     Type = 2  // JSON Error; the sender closes behind it
	TypePing      Type = 3  // empty; only shows that the sender lives
	TypeBye       Type = 4  // empty; the sender ends the connection in order and expects no more answers
	TypeRequest   Type = 16 // io: one request
	TypeReply     Type = 17 // io: its answer
	TypeBatch     Type = 32 // stream: durable mark and records
	TypeAck       Type = 33 // stream: stored, durable, applied
	TypeHeartbeat Type = 34 // stream: durable mark
	TypeRange     Type = 35 // stream: a receiver that pulls asks for a range
	TypeControl   Type = 36 // stream: JSON, the two ends' own
	TypePacked    Type = 37 // stream: a batch, compressed
	TypePlace     Type = 38 // stream: u64, the position of the frame that follows on this connection
	TypeMiss      Type = 40 // stream: the answer to ranges asked for of which nothing can be sent
	TypeCall      Type = 48 // call: method and parameters
	TypeReturn    Type = 49 // call: its result or error
	TypeCancel    Type = 50 // call: the caller has given up
)

const (
	headerSize = 16
	magic      = 0x4c544e47 // "GNTL" as it stands on the wire
	version    = 1

	// MaxPayload is the most data that one request or record carries, bytes.
	MaxPayload = 32 << 20
	// MaxBatchBody bounds a batch: one record of the greatest size, or many small ones.
	MaxBatchBody = MaxPayload + 4<<20
	// MaxCallBody bounds parameters and results of a call.
	MaxCallBody = 8 << 20
)

var (
	// ErrFrame is wrapped by every error that means the peer sent something that is not a frame of ours.
	ErrFrame = errors.New("malformed frame")
	// ErrSilent ends a connection whose peer has sent nothing for too long.
	ErrSilent = errors.New("peer is silent")
	// ErrClosed ends a connection that this side has closed.
	ErrClosed = errors.New("connection closed")
	// ErrBye ends a connection that the peer has closed in order.
	ErrBye = errors.New("peer said bye")
)

// limit is the greatest body of a type, bytes; false for a type we do not know.
func (t Type) limit() (int, bool) {
	switch t {
	case TypePing, TypeBye:
		return 0, true
	case TypeHello, TypeControl:
		return 1 << 20, true
	case TypeError:
		return 64 << 10, true
	case TypeRequest:
		return requestSize + MaxPayload, true
	case TypeReply:
		return replySize + MaxPayload, true
	case TypeBatch, TypePacked:
		return MaxBatchBody, true
	case TypeAck, TypeHeartbeat, TypeRange, TypePlace, TypeMiss, TypeCancel:
		return 64, true
	case TypeCall, TypeReturn:
		return MaxCallBody, true
	}
	return 0, false
}

func (t Type) String() string {
	names := map[Type]string{TypeHello: "hello", TypeError: "error", TypePing: "ping", TypeBye: "bye",
		TypeRequest: "request", TypeReply: "reply", TypeBatch: "batch", TypeAck: "ack", TypeHeartbeat: "heartbeat",
		TypeRange: "range", TypeMiss: "miss", TypeControl: "control", TypePacked: "packed", TypePlace: "place", TypeCall: "call", TypeReturn: "return",
		TypeCancel: "cancel"}
	if n, ok := names[t]; ok {
		return n
	}
	return fmt.Sprintf("type %d", uint8(t))
}

// parseHeader checks the header at the front of h and returns the frame's type and its body's length.
func parseHeader(h []byte) (Type, int, error) {
	if got := binary.LittleEndian.Uint32(h); got != magic {
		return 0, 0, fmt.Errorf("%w: magic %#08x, want %#08x", ErrFrame, got, uint32(magic))
	}
	if h[4] != version {
		return 0, 0, fmt.Errorf("%w: version %d, this side speaks %d", ErrFrame, h[4], version)
	}
	t := Type(h[5])
	most, ok := t.limit()
	if !ok {
		return 0, 0, fmt.Errorf("%w: unknown %v", ErrFrame, t)
	}
	if flags := binary.LittleEndian.Uint16(h[6:]); flags != 0 {
		return 0, 0, fmt.Errorf("%w: %v with unknown flags %#x", ErrFrame, t, flags)
	}
	n := binary.LittleEndian.Uint32(h[8:])
	if int64(n) > int64(most) {
		return 0, 0, fmt.Errorf("%w: %v of %d bytes, limit %d", ErrFrame, t, n, most)
	}
	return t, int(n), nil
}

// putHeader writes a header for a body of n bytes into h; the CRC is left to sealHeader.
func putHeader(h []byte, t Type, n int) {
	binary.LittleEndian.PutUint32(h, magic)
	h[4], h[5], h[6], h[7] = version, byte(t), 0, 0
	binary.LittleEndian.PutUint32(h[8:], uint32(n))
}

// checkFrame reads all bytes of a frame once: what its checksum is found from is kept for those who need the checksums of
// the parts.
func (f *frameReader) checkFrame(t Type, frame []byte) error {
	body := frame[headerSize:]
	var sum uint32
	switch {
	case t == TypeBatch:
		f.batch, sum, f.malformed = decodeBatch(body)
	case t == TypeRequest && len(body) > requestSize:
		f.payload = record.Checksum(body[requestSize:])
		sum = record.Join(record.Checksum(body[:requestSize]), f.payload, len(body)-requestSize)
	default:
		sum = record.Checksum(body)
	}
	sum = record.Join(record.Checksum(frame[:12]), sum, len(body))
	// A frame whose sender has joined the checksums of records fails with the record that does: the peer is told which.
	if want := binary.LittleEndian.Uint32(frame[12:]); sum != want && !(t == TypeBatch && errors.Is(f.malformed, errRecordSum)) {
		f.batch = Batch{}
		return fmt.Errorf("%w: %v fails its checksum", ErrFrame, t)
	}
	if t == TypePacked {
		f.batch, f.malformed = unpackBatch(body)
	}
	return nil
}

const (
	chunkSize = 256 << 10 // bytes read into one allocation, shared by the frames it holds
	// largeChunk takes its place while frames are large: what is left of one at the end of a chunk has to be moved.
	largeChunk = 1 << 20
	ownSize    = 64 << 10 // a frame from this size on gets its own allocation if the chunk's rest is too small
)

// frameReader cuts frames out of a stream. Bodies are slices of chunks that are never written again, so they may be
// kept for as long as anybody needs them.
type frameReader struct {
	src   io.Reader
	buf   []byte // the chunk
	r, w  int    // buf[r:w] is read but not yet parsed
	large bool   // the last frame that did not fit was a large one
	only  Type   // if not 0: no other type is accepted, so that a stranger makes us allocate little
	err   error  // sticky

	// Of the last frame, found by checking it.
	batch     Batch  // of a batch
	malformed error  // why it is none
	payload   uint32 // checksum of what follows the head of a request
}

// have reports whether a whole frame, or the proof of a broken one, is in the buffer.
func (f *frameReader) have() bool {
	if f.err != nil {
		return true
	}
	if f.w-f.r < headerSize {
		return false
	}
	_, n, err := parseHeader(f.buf[f.r:])
	return err != nil || f.w-f.r >= headerSize+n
}

// next returns the next frame; its body is the caller's to keep and not to change.
func (f *frameReader) next() (Type, []byte, error) {
	if f.err != nil {
		return 0, nil, f.err
	}
	t, body, err := f.parse()
	if err != nil {
		f.err = err
	}
	return t, body, err
}

func (f *frameReader) parse() (Type, []byte, error) {
	if err := f.fill(headerSize); err != nil {
		return 0, nil, err
	}
	t, n, err := parseHeader(f.buf[f.r:])
	if err != nil {
		return 0, nil, err
	}
	if f.only != 0 && t != f.only && t != TypeError {
		return 0, nil, fmt.Errorf("%w: %v where %v is due", ErrFrame, t, f.only)
	}
	total := headerSize + n
	if err := f.fill(total); err != nil {
		if errors.Is(err, io.EOF) {
			err = io.ErrUnexpectedEOF
		}
		return 0, nil, err
	}
	frame := f.buf[f.r : f.r+total : f.r+total]
	f.r += total
	if err := f.checkFrame(t, frame); err != nil {
		return 0, nil, err
	}
	return t, frame[headerSize:], nil
}

// fill makes at least n unparsed bytes available, reading as much as fits.
func (f *frameReader) fill(n int) error {
	if f.w-f.r >= n {
		return nil
	}
	if len(f.buf)-f.r < n || f.w == len(f.buf) {
		size := chunkSize
		if f.large {
			size = largeChunk
		}
		if n >= ownSize && !f.large || n > size {
			size = n
		}
		if n > headerSize {
			f.large = n >= ownSize
		}
		// What is left is at most one incomplete frame. The old chunk stays as it is: bodies point into it.
		chunk := block.Buffer(size)
		f.w = copy(chunk, f.buf[f.r:f.w])
		f.buf, f.r = chunk, 0
	}
	for f.w-f.r < n {
		m, err := f.src.Read(f.buf[f.w:])
		f.w += m
		if f.w-f.r >= n {
			return nil
		}
		if err != nil {
			if errors.Is(err, io.EOF) && f.w > f.r {
				return io.ErrUnexpectedEOF
			}
			return err
		}
	}
	return nil
}
