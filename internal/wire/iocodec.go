package wire

import (
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"

	"gantline/internal/block"
)

// A request's body; behind it a write's payload.
//
//	0  op u8             16  number u64     40  epoch u64
//	1  0 u8              24  floor u64      48  offset i64
//	2  flags u16         32  session u64    56  length i64
//	4  0 u32
//	8  tag u64
//
// A reply's body; behind it a read's data, the extents, or the error's message (JSON for moved).
//
//	0  tag u64           16  code u16       20  0 u32
//	8  epoch u64         18  0 u16
const (
	requestSize = 64
	replySize   = 24
	extentSize  = 24 // offset i64, length i64, type u8, 0 × 7
)

const maxExtents = 1 << 16 // in one reply; a target's longer answer is cut there, as NBD allows

// Codes of a reply. The numbers travel and never change.
const (
	codeOK          = 0
	codeRange       = 1
	codeReadOnly    = 2
	codeNoSpace     = 3
	codeIO          = 4
	codeShutdown    = 5
	codeUnsupported = 6
	codeInvalid     = 7
	codeHoldExpired = 8
	codeSession     = 9
	codeMoved       = 10
	codeStale       = 11
)

// ErrStale answers a request of an epoch that the node has not learned of yet: it may be asked again later.
var ErrStale = errors.New("node does not know the request's epoch yet")

var codes = []struct {
	code uint16
	err  error
}{
	{codeRange, block.ErrRange}, {codeReadOnly, block.ErrReadOnly}, {codeNoSpace, block.ErrNoSpace},
	{codeShutdown, block.ErrShutdown}, {codeUnsupported, block.ErrUnsupported}, {codeInvalid, block.ErrInvalid},
	{codeHoldExpired, block.ErrHoldExpired}, {codeSession, block.ErrSession}, {codeStale, ErrStale}, {codeIO, block.ErrIO},
}

// codeOf turns an answer into its code and message; what we have no code for is an I/O error with its text.
func codeOf(err error) (uint16, []byte) {
	var moved *block.MovedError
	if errors.As(err, &moved) {
		b, _ := json.Marshal(moved)
		return codeMoved, b
	}
	msg := err.Error()
	msg = msg[:min(len(msg), 1<<10)]
	for _, c := range codes {
		if errors.Is(err, c.err) {
			return c.code, []byte(msg)
		}
	}
	return codeIO, []byte(msg)
}

// remoteError is an answer's error with the text of the node that gave it.
type remoteError struct {
	kind error
	text string
}

func (e *remoteError) Error() string { return e.text }
func (e *remoteError) Unwrap() error { return e.kind }

func errorOf(code uint16, msg []byte) error {
	if code == codeMoved {
		var moved block.MovedError
		if err := json.Unmarshal(msg, &moved); err != nil {
			return fmt.Errorf("%w: moved reply: %v", ErrFrame, err)
		}
		return &moved
	}
	for _, c := range codes {
		if c.code == code {
			if len(msg) == 0 || string(msg) == c.err.Error() {
				return c.err
			}
			return &remoteError{kind: c.err, text: string(msg)}
		}
	}
	return fmt.Errorf("%w: reply with unknown code %d", ErrFrame, code)
}

func putRequest(h []byte, r *block.Request, tag, epoch uint64) {
	le := binary.LittleEndian
	h[0], h[1] = byte(r.Op), 0
	le.PutUint16(h[2:], uint16(r.Flags))
	le.PutUint32(h[4:], 0)
	le.PutUint64(h[8:], tag)
	le.PutUint64(h[16:], r.Number)
	le.PutUint64(h[24:], r.Floor)
	le.PutUint64(h[32:], r.Session)
	le.PutUint64(h[40:], epoch)
	le.PutUint64(h[48:], uint64(r.Offset))
	le.PutUint64(h[56:], uint64(r.Length))
}

// getRequest fills r from a request's body and returns tag and epoch. A write's data is a slice of the body.
func getRequest(body []byte, r *block.Request) (tag, epoch uint64, err error) {
	if len(body) < requestSize {
		return 0, 0, fmt.Errorf("%w: request of %d bytes", ErrFrame, len(body))
	}
	le := binary.LittleEndian
	r.Op, r.Flags = block.Op(body[0]), block.Flags(le.Uint16(body[2:]))
	tag, epoch = le.Uint64(body[8:]), le.Uint64(body[40:])
	r.Number, r.Floor, r.Session = le.Uint64(body[16:]), le.Uint64(body[24:]), le.Uint64(body[32:])
	r.Offset, r.Length = int64(le.Uint64(body[48:])), int64(le.Uint64(body[56:]))
	payload := body[requestSize:]
	switch r.Op {
	case block.OpWrite:
		r.Data = payload
	case block.OpRead, block.OpFlush, block.OpTrim, block.OpZero, block.OpCache, block.OpExtents:
	default:
		return 0, 0, fmt.Errorf("%w: request with unknown operation %d", ErrFrame, r.Op)
	}
	switch {
	case r.Offset < 0 || r.Length < 0 || r.Offset+r.Length < 0:
		return 0, 0, fmt.Errorf("%w: request at %d of %d bytes", ErrFrame, r.Offset, r.Length)
	case r.Op == block.OpRead && r.Length > MaxPayload:
		return 0, 0, fmt.Errorf("%w: read of %d bytes, limit %d", ErrFrame, r.Length, MaxPayload)
	case int64(len(r.Data)) != int64(len(payload)) || r.Op == block.OpWrite && r.Length != int64(len(payload)):
		return 0, 0, fmt.Errorf("%w: request of %d bytes with %d bytes of payload", ErrFrame, r.Length, len(payload))
	}
	return tag, epoch, nil
}

type reply struct {
	tag, epoch uint64
	code       uint16
	payload    []byte
}

func putReply(h []byte, tag, epoch uint64, code uint16) {
	le := binary.LittleEndian
	le.PutUint64(h[0:], tag)
	le.PutUint64(h[8:], epoch)
	le.PutUint16(h[16:], code)
	le.PutUint16(h[18:], 0)
	le.PutUint32(h[20:], 0)
}

func getReply(body []byte) (reply, error) {
	if len(body) < replySize {
		return reply{}, fmt.Errorf("%w: reply of %d bytes", ErrFrame, len(body))
	}
	le := binary.LittleEndian
	return reply{le.Uint64(body), le.Uint64(body[8:]), le.Uint16(body[16:]), body[replySize:]}, nil
}

func encodeExtents(ext []block.Extent) []byte {
	ext = ext[:min(len(ext), maxExtents)]
	b := make([]byte, 0, len(ext)*extentSize)
	for _, e := range ext {
		b = binary.LittleEndian.AppendUint64(b, uint64(e.Offset))
		b = binary.LittleEndian.AppendUint64(b, uint64(e.Length))
		b = append(b, byte(e.Type), 0, 0, 0, 0, 0, 0, 0)
	}
	return b
}

func decodeExtents(b []byte) ([]block.Extent, error) {
	if len(b)%extentSize != 0 || len(b)/extentSize > maxExtents {
		return nil, fmt.Errorf("%w: extents of %d bytes", ErrFrame, len(b))
	}
	out := make([]block.Extent, 0, len(b)/extentSize)
	for ; len(b) > 0; b = b[extentSize:] {
		e := block.Extent{Offset: int64(binary.LittleEndian.Uint64(b)), Length: int64(binary.LittleEndian.Uint64(b[8:])),
			Type: block.ExtentType(b[16])}
		if e.Length <= 0 || e.Offset < 0 || e.Type > block.ExtentZero {
			return nil, fmt.Errorf("%w: extent at %d of %d bytes, type %d", ErrFrame, e.Offset, e.Length, e.Type)
		}
		out = append(out, e)
	}
	return out, nil
}
