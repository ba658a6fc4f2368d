package nbd

import (
	"encoding/binary"
	"errors"
	"fmt"

	"gantline/internal/block"
)

// encoder makes replies.
type encoder struct{ structured bool }

// encode appends the reply to q.
func (e encoder) encode(v *vector, q *request) {
	err := q.Err
	var status []extent
	switch {
	case q.Op == block.OpRead && err == nil && int64(len(q.Data)) != q.Length:
		err = fmt.Errorf("%w: target answered with %d bytes instead of %d", block.ErrIO, len(q.Data), q.Length)
	case q.Op == block.OpExtents:
		status, err = blockStatus(&q.Request)
	}
	if !e.structured {
		putSimple(v, q.cookie, errno(q.Op, err))
		if err == nil && q.Op == block.OpRead {
			v.data(q.Data)
		}
		return
	}
	switch {
	case err != nil:
		putError(v, q.cookie, errno(q.Op, err), clip(err.Error()))
	case q.Op == block.OpRead && q.Length > 0:
		p := putChunk(v, q.cookie, replyOffsetData, 8, len(q.Data))
		binary.BigEndian.PutUint64(p, uint64(q.Offset))
		v.data(q.Data)
	case q.Op == block.OpRead:
		putChunk(v, q.cookie, replyNone, 0, 0)
	case q.Op == block.OpExtents:
		p := putChunk(v, q.cookie, replyBlockStatus, 4+8*len(status), 0)
		binary.BigEndian.PutUint32(p, contextAllocID)
		for i, s := range status {
			binary.BigEndian.PutUint32(p[4+8*i:], s.length)
			binary.BigEndian.PutUint32(p[8+8*i:], s.state)
		}
	default:
		putSimple(v, q.cookie, 0) // shorter, and allowed for all that carry no data
	}
}

func putSimple(v *vector, cookie uint64, no uint32) {
	p := v.head(simpleSize)
	binary.BigEndian.PutUint32(p, magicSimple)
	binary.BigEndian.PutUint32(p[4:], no)
	binary.BigEndian.PutUint64(p[8:], cookie)
}

// putChunk puts the only chunk of a structured reply; it returns the n bytes that follow its header. data more bytes
// are put by the caller.
func putChunk(v *vector, cookie uint64, kind uint16, n, data int) []byte {
	p := v.head(structuredSize + n)
	binary.BigEndian.PutUint32(p, magicStructured)
	binary.BigEndian.PutUint16(p[4:], replyDone)
	binary.BigEndian.PutUint16(p[6:], kind)
	binary.BigEndian.PutUint64(p[8:], cookie)
	binary.BigEndian.PutUint32(p[16:], uint32(n+data))
	return p[structuredSize:]
}

func putError(v *vector, cookie uint64, no uint32, text string) {
	p := putChunk(v, cookie, replyError, 6+len(text), 0)
	binary.BigEndian.PutUint32(p, no)
	binary.BigEndian.PutUint16(p[4:], uint16(len(text)))
	copy(p[6:], text)
}

// extent is a descriptor of a block status reply.
type extent struct{ length, state uint32 }

// blockStatus turns a target's extents into descriptors that begin at the request's offset and stay inside it.
// Adjacent ones of one state become one, very many are cut off: the peer asks again for the rest.
func blockStatus(r *block.Request) ([]extent, error) {
	if errors.Is(r.Err, block.ErrUnsupported) {
		return []extent{{length: uint32(r.Length)}}, nil // allocated data is always a true answer
	}
	if r.Err != nil {
		return nil, r.Err
	}
	var out []extent
	at, end := r.Offset, r.Offset+r.Length
	for _, x := range r.Extents {
		if at == end {
			break
		}
		if x.Offset > at || x.Length <= 0 || x.Offset+x.Length <= at {
			return nil, fmt.Errorf("%w: target's extents do not cover offset %d", block.ErrIO, at)
		}
		n := min(x.Offset+x.Length, end) - at
		at += n
		state := allocState(x.Type)
		if k := len(out); k > 0 && out[k-1].state == state {
			out[k-1].length += uint32(n)
			continue
		}
		if len(out) > 0 && r.Flags&block.FlagOne != 0 || len(out) == maxExtentsInReply {
			break
		}
		out = append(out, extent{uint32(n), state})
	}
	if len(out) == 0 {
		return nil, fmt.Errorf("%w: target answered with no extents", block.ErrIO)
	}
	return out, nil
}

func allocState(t block.ExtentType) uint32 {
	switch t {
	case block.ExtentHole:
		return stateHole | stateZero
	case block.ExtentZero:
		return stateZero
	}
	return 0
}
