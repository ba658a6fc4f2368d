package nbd

import (
	"encoding/binary"
	"fmt"
	"io"
	"slices"

	"gantline/internal/block"
)

// receive reads answers until the connection ends, then completes what is left.
func (c *Client) receive() {
	defer close(c.done)
	var cork Corker
	for {
		// The completions of one buffer-full go on together.
		if cork != nil && c.r.Buffered() < simpleSize {
			cork.Uncork()
			cork = nil
		}
		k, err := c.reply()
		if err != nil {
			if cork != nil {
				cork.Uncork()
			}
			c.lost(err)
			return
		}
		if k == nil {
			continue
		}
		next, _ := k.req.Completer.(Corker)
		if next != cork {
			if cork != nil {
				cork.Uncork()
			}
			if cork = next; cork != nil {
				cork.Cork()
			}
		}
		c.finish(k)
	}
}

// finish frees the call's slot and completes its request.
func (c *Client) finish(k *call) {
	r, err := k.req, k.err
	c.mu.Lock()
	c.free = append(c.free, k.id)
	c.bytes -= k.charge
	k.req = nil
	c.changed.Signal()
	c.mu.Unlock()
	r.Finish(err)
}

// lost ends the client: nobody touches a request any more when it is completed.
func (c *Client) lost(cause error) {
	c.sock.Close()
	c.mu.Lock()
	c.stopSubmits()
	c.mu.Unlock()
	c.out.drain()
	if cause == io.EOF {
		cause = io.ErrUnexpectedEOF
	}
	for i := range c.calls {
		c.mu.Lock()
		r := c.calls[i].req
		c.calls[i].req = nil
		c.mu.Unlock()
		if r != nil {
			r.Finish(fmt.Errorf("%w: %v", ErrConnLost, cause))
		}
	}
}

// reply reads one simple reply or chunk; the call is given if that was its last.
func (c *Client) reply() (*call, error) {
	var hdr [structuredSize]byte
	if _, err := io.ReadFull(c.r, hdr[:simpleSize]); err != nil {
		return nil, err
	}
	switch magic := binary.BigEndian.Uint32(hdr[:]); magic {
	case magicSimple:
		return c.simple(hdr[:])
	case magicStructured:
		if !c.structured {
			return nil, fmt.Errorf("%w: structured reply was not negotiated", ErrProtocol)
		}
		if _, err := io.ReadFull(c.r, hdr[simpleSize:]); err != nil {
			return nil, err
		}
		return c.chunk(hdr[:])
	default:
		return nil, fmt.Errorf("%w: reply magic %#x", ErrProtocol, magic)
	}
}

func (c *Client) simple(hdr []byte) (*call, error) {
	k, err := c.lookup(binary.BigEndian.Uint64(hdr[8:]))
	if err != nil {
		return nil, err
	}
	k.err = fromErrno(binary.BigEndian.Uint32(hdr[4:]), "")
	if k.err != nil {
		return k, nil
	}
	switch k.req.Op {
	case block.OpRead:
		if c.structured {
			return nil, fmt.Errorf("%w: simple reply to a read", ErrProtocol)
		}
		_, err = io.ReadFull(c.r, k.req.Data)
	case block.OpExtents:
		return nil, fmt.Errorf("%w: simple reply to a block status", ErrProtocol)
	}
	return k, err
}

func (c *Client) chunk(hdr []byte) (*call, error) {
	flags, kind := binary.BigEndian.Uint16(hdr[4:]), binary.BigEndian.Uint16(hdr[6:])
	length := binary.BigEndian.Uint32(hdr[16:])
	k, err := c.lookup(binary.BigEndian.Uint64(hdr[8:]))
	if err != nil {
		return nil, err
	}
	switch {
	case kind == replyNone:
		if length != 0 || flags&replyDone == 0 {
			err = fmt.Errorf("%w: malformed chunk", ErrProtocol)
		}
	case kind == replyOffsetData && k.req.Op == block.OpRead:
		err = c.offsetData(k, length)
	case kind == replyOffsetHole && k.req.Op == block.OpRead:
		err = c.offsetHole(k, length)
	case kind == replyBlockStatus && k.req.Op == block.OpExtents:
		err = c.blockStatus(k, length)
	case kind&replyErrBit != 0:
		err = c.errorChunk(k, length)
	default:
		err = fmt.Errorf("%w: chunk type %d", ErrProtocol, kind)
	}
	if err != nil || flags&replyDone == 0 {
		return nil, err
	}
	return k, k.complete()
}

// complete checks that an answer that claims success has all that was asked for.
func (k *call) complete() error {
	if k.err != nil {
		return nil
	}
	switch k.req.Op {
	case block.OpRead:
		slices.SortFunc(k.parts, func(a, b part) int { return int(a.off - b.off) })
		at := int64(0)
		for _, p := range k.parts {
			if p.off != at {
				return fmt.Errorf("%w: read answered with chunks that overlap or leave a gap", ErrProtocol)
			}
			at += p.n
		}
		if at != k.req.Length {
			return fmt.Errorf("%w: read of %d bytes answered with %d", ErrProtocol, k.req.Length, at)
		}
	case block.OpExtents:
		if !k.status {
			return fmt.Errorf("%w: no block status in the answer", ErrProtocol)
		}
	}
	return nil
}

// maxParts bounds the chunks of one read: every 512 bytes of the largest.
const maxParts = maxPayload / 512

// piece notes a content chunk and gives its place in the request's data.
func (k *call) piece(offset uint64, n int64) ([]byte, error) {
	off := int64(offset) - k.req.Offset
	if offset > 1<<62 || n <= 0 || off < 0 || off+n > k.req.Length || len(k.parts) >= maxParts {
		return nil, fmt.Errorf("%w: content chunk outside the request", ErrProtocol)
	}
	k.parts = append(k.parts, part{off, n})
	return k.req.Data[off : off+n], nil
}

func (c *Client) offsetData(k *call, length uint32) error {
	var hdr [8]byte
	if length <= 8 {
		return fmt.Errorf("%w: data chunk of %d bytes", ErrProtocol, length)
	}
	if _, err := io.ReadFull(c.r, hdr[:]); err != nil {
		return err
	}
	p, err := k.piece(binary.BigEndian.Uint64(hdr[:]), int64(length)-8)
	if err == nil {
		_, err = io.ReadFull(c.r, p)
	}
	return err
}

func (c *Client) offsetHole(k *call, length uint32) error {
	var hdr [12]byte
	if length != 12 {
		return fmt.Errorf("%w: hole chunk of %d bytes", ErrProtocol, length)
	}
	if _, err := io.ReadFull(c.r, hdr[:]); err != nil {
		return err
	}
	p, err := k.piece(binary.BigEndian.Uint64(hdr[:]), int64(binary.BigEndian.Uint32(hdr[8:])))
	clear(p)
	return err
}

// blockStatus takes the descriptors. They may cover less than was asked for, never more.
func (c *Client) blockStatus(k *call, length uint32) error {
	if length < 12 || length%8 != 4 || length > 4+8*clientExtents || k.status {
		return fmt.Errorf("%w: block status chunk of %d bytes", ErrProtocol, length)
	}
	buf := make([]byte, length)
	if _, err := io.ReadFull(c.r, buf); err != nil {
		return err
	}
	if id := binary.BigEndian.Uint32(buf); id != c.allocID {
		return fmt.Errorf("%w: block status of context %d", ErrProtocol, id)
	}
	k.status = true
	k.req.Extents = nil
	at, end := k.req.Offset, k.req.Offset+k.req.Length
	for buf = buf[4:]; len(buf) > 0 && at < end; buf = buf[8:] {
		// Servers of an older protocol let the last descriptor reach beyond the request.
		n := min(int64(binary.BigEndian.Uint32(buf)), end-at)
		if n == 0 {
			return fmt.Errorf("%w: block status of no length", ErrProtocol)
		}
		k.req.Extents = append(k.req.Extents, block.Extent{Offset: at, Length: n, Type: extentType(binary.BigEndian.Uint32(buf[4:]))})
		at += n
	}
	return nil
}

// clientExtents bounds the descriptors of one answer.
const clientExtents = 1 << 20

func extentType(state uint32) block.ExtentType {
	switch {
	case state&stateZero == 0:
		return block.ExtentData
	case state&stateHole != 0:
		return block.ExtentHole
	}
	return block.ExtentZero
}

func (c *Client) errorChunk(k *call, length uint32) error {
	if length < 6 || length > 6+maxString+8 {
		return fmt.Errorf("%w: error chunk of %d bytes", ErrProtocol, length)
	}
	buf := make([]byte, length)
	if _, err := io.ReadFull(c.r, buf); err != nil {
		return err
	}
	no, n := binary.BigEndian.Uint32(buf), int(binary.BigEndian.Uint16(buf[4:]))
	if no == 0 || n > len(buf)-6 {
		return fmt.Errorf("%w: malformed error chunk", ErrProtocol)
	}
	if k.err == nil {
		k.err = fromErrno(no, string(buf[6:6+n]))
	}
	return nil
}

// lookup finds the call that an answer is for.
func (c *Client) lookup(cookie uint64) (*call, error) {
	id, gen := uint32(cookie), uint32(cookie>>32)
	c.mu.Lock()
	defer c.mu.Unlock()
	if int(id) >= len(c.calls) || c.calls[id].gen != gen || c.calls[id].req == nil {
		return nil, fmt.Errorf("%w: answer to no request (cookie %#x)", ErrProtocol, cookie)
	}
	return &c.calls[id], nil
}
