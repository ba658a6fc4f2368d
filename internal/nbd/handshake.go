package nbd

import (
	"bufio"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"

	"gantline/internal/block"
)

// negotiated is the outcome of a handshake: what the transmission phase needs to know.
type negotiated struct {
	export     *Export
	structured bool
	alloc      bool   // base:allocation was chosen for this export
	early      []byte // bytes read behind the handshake
}

// handshake is the server's side of the negotiation. One goroutine.
type handshake struct {
	ctx     context.Context
	sock    net.Conn
	r       *bufio.Reader
	exports Exports
	peer    Peer

	noZeroes   bool
	structured bool
	// candidate is the export opened last by INFO or SET_META_CONTEXT: GO for the same name takes it over.
	candidate *Export
	asked     string // the name it was asked for by; Export.Name may be a proper form of it
	alloc     bool   // base:allocation is chosen
	allocFor  string // for this name only
}

// refusal is an option that is answered with an error; the handshake goes on.
type refusal struct {
	code uint32
	text string
}

func (r *refusal) Error() string { return r.text }

func refuse(code uint32, format string, args ...any) error {
	return &refusal{code, fmt.Sprintf(format, args...)}
}

func newHandshake(ctx context.Context, sock net.Conn, exports Exports, peer Peer) *handshake {
	return &handshake{ctx: ctx, sock: sock, r: bufio.NewReader(sock), exports: exports, peer: peer}
}

// run negotiates; nil without an error means that the peer has ended it in order.
func (h *handshake) run() (*negotiated, error) {
	neg, err := h.negotiate()
	if h.candidate != nil {
		h.candidate.close()
		h.candidate = nil
	}
	return neg, err
}

func (h *handshake) negotiate() (*negotiated, error) {
	hello := binary.BigEndian.AppendUint64(nil, magicServer)
	hello = binary.BigEndian.AppendUint64(hello, magicOption)
	hello = binary.BigEndian.AppendUint16(hello, handFixedNewstyle|handNoZeroes)
	if _, err := h.sock.Write(hello); err != nil {
		return nil, err
	}
	var buf [4]byte
	if _, err := io.ReadFull(h.r, buf[:]); err != nil {
		if err == io.EOF {
			return nil, nil // a port scan, or a check whether we listen
		}
		return nil, err
	}
	flags := binary.BigEndian.Uint32(buf[:])
	if unknown := flags &^ uint32(handFixedNewstyle|handNoZeroes); unknown != 0 {
		return nil, fmt.Errorf("%w: unknown client flags %#x", ErrProtocol, unknown)
	}
	h.noZeroes = flags&uint32(handNoZeroes) != 0
	for range maxOptions {
		neg, end, err := h.option()
		if err != nil || neg != nil || end {
			return neg, err
		}
	}
	return nil, fmt.Errorf("%w: more than %d options", ErrProtocol, maxOptions)
}

// option reads and answers one option; end: the peer wants no more.
func (h *handshake) option() (neg *negotiated, end bool, err error) {
	var hdr [optionHeaderSize]byte
	if _, err := io.ReadFull(h.r, hdr[:]); err != nil {
		if err == io.EOF {
			return nil, true, nil
		}
		return nil, false, err
	}
	if magic := binary.BigEndian.Uint64(hdr[:]); magic != magicOption {
		return nil, false, fmt.Errorf("%w: option magic %#x", ErrProtocol, magic)
	}
	opt, length := binary.BigEndian.Uint32(hdr[8:]), binary.BigEndian.Uint32(hdr[12:])
	if opt == optExportName {
		neg, err := h.exportName(length)
		return neg, false, err
	}
	if length > maxOption {
		if length > maxOptionSkip {
			return nil, false, fmt.Errorf("%w: option %d has %d bytes", ErrProtocol, opt, length)
		}
		if _, err := h.r.Discard(int(length)); err != nil {
			return nil, false, err
		}
		return nil, false, h.reply(opt, repErrTooBig, []byte("option is too long"))
	}
	data := make([]byte, length)
	if _, err := io.ReadFull(h.r, data); err != nil {
		return nil, false, err
	}
	neg, err = h.dispatch(opt, data)
	var no *refusal
	if errors.As(err, &no) {
		err = h.reply(opt, no.code, []byte(clip(no.text)))
	}
	return neg, opt == optAbort, err
}

func (h *handshake) dispatch(opt uint32, data []byte) (*negotiated, error) {
	switch opt {
	case optAbort:
		// The peer need not wait for the answer, so that it may not be there to take it.
		_ = h.reply(opt, repAck, nil)
		return nil, nil
	case optList:
		return nil, h.list(data)
	case optInfo, optGo:
		return h.info(opt, data)
	case optStructuredReply:
		if len(data) != 0 {
			return nil, refuse(repErrInvalid, "STRUCTURED_REPLY takes no data")
		}
		h.structured = true
		return nil, h.reply(opt, repAck, nil)
	case optListMetaContext, optSetMetaContext:
		return nil, h.metaContext(opt, data)
	case optStartTLS:
		return nil, refuse(repErrUnsup, "TLS is not offered on this port")
	}
	return nil, refuse(repErrUnsup, "option %d is not known here", opt)
}

// exportName answers the old way to begin; it has no way to say no but to hang up.
func (h *handshake) exportName(length uint32) (*negotiated, error) {
	if length > maxString {
		return nil, fmt.Errorf("%w: export name has %d bytes", ErrProtocol, length)
	}
	name := make([]byte, length)
	if _, err := io.ReadFull(h.r, name); err != nil {
		return nil, err
	}
	e, err := h.open(string(name))
	if err != nil {
		return nil, fmt.Errorf("export %q: %w", name, err)
	}
	out := binary.BigEndian.AppendUint64(nil, uint64(e.Size))
	out = binary.BigEndian.AppendUint16(out, transmissionFlags(e, h.structured))
	if !h.noZeroes {
		out = append(out, make([]byte, exportNameZeroes)...)
	}
	if _, err := h.sock.Write(out); err != nil {
		return nil, err
	}
	return h.done(e), nil
}

func (h *handshake) list(data []byte) error {
	if len(data) != 0 {
		return refuse(repErrInvalid, "LIST takes no data")
	}
	names := h.exports.List(h.peer)
	if len(names) > maxListed {
		return refuse(repErrTooBig, "%d exports are too many to list", len(names))
	}
	for _, name := range names {
		if name == "" || len(name) > maxString {
			continue
		}
		out := binary.BigEndian.AppendUint32(nil, uint32(len(name)))
		if err := h.reply(optList, repServer, append(out, name...)); err != nil {
			return err
		}
	}
	return h.reply(optList, repAck, nil)
}

func (h *handshake) info(opt uint32, data []byte) (*negotiated, error) {
	name, data, ok := cutString(data)
	if !ok || len(data) < 2 {
		return nil, refuse(repErrInvalid, "malformed INFO or GO")
	}
	count := int(binary.BigEndian.Uint16(data))
	data = data[2:]
	if len(data) != 2*count {
		return nil, refuse(repErrInvalid, "malformed INFO or GO")
	}
	if count > maxInfoRequests {
		return nil, refuse(repErrTooBig, "%d information requests", count)
	}
	e, err := h.open(name)
	if err != nil {
		return nil, openRefusal(name, err)
	}
	for ; len(data) > 0; data = data[2:] {
		var text string
		kind := binary.BigEndian.Uint16(data)
		switch {
		case kind == infoName:
			text = e.Name
		case kind == infoDescription && e.Description != "":
			text = clip(e.Description)
		default:
			continue
		}
		if err := h.reply(opt, repInfo, append(binary.BigEndian.AppendUint16(nil, kind), text...)); err != nil {
			return nil, err
		}
	}
	out := binary.BigEndian.AppendUint16(nil, infoBlockSize)
	for _, n := range []uint32{minBlock, preferredBlock, maxPayload} {
		out = binary.BigEndian.AppendUint32(out, n)
	}
	if err := h.reply(opt, repInfo, out); err != nil {
		return nil, err
	}
	out = binary.BigEndian.AppendUint16(nil, infoExport)
	out = binary.BigEndian.AppendUint64(out, uint64(e.Size))
	out = binary.BigEndian.AppendUint16(out, transmissionFlags(e, h.structured))
	if err := h.reply(opt, repInfo, out); err != nil {
		return nil, err
	}
	if err := h.reply(opt, repAck, nil); err != nil {
		return nil, err
	}
	if opt == optInfo {
		return nil, nil
	}
	return h.done(e), nil
}

func (h *handshake) metaContext(opt uint32, data []byte) error {
	if !h.structured {
		return refuse(repErrInvalid, "structured replies come before meta contexts")
	}
	h.alloc, h.allocFor = false, ""
	name, data, ok := cutString(data)
	if !ok || len(data) < 4 {
		return refuse(repErrInvalid, "malformed meta context option")
	}
	count := binary.BigEndian.Uint32(data)
	data = data[4:]
	if count > maxQueries {
		return refuse(repErrTooBig, "%d meta context queries", count)
	}
	found := count == 0 && opt == optListMetaContext
	for range count {
		var query string
		if query, data, ok = cutString(data); !ok {
			return refuse(repErrInvalid, "malformed meta context option")
		}
		found = found || query == contextAlloc || query == "base:" && opt == optListMetaContext
	}
	if len(data) != 0 {
		return refuse(repErrInvalid, "malformed meta context option")
	}
	if _, err := h.open(name); err != nil {
		return openRefusal(name, err)
	}
	if found {
		id := contextAllocID
		if opt == optListMetaContext {
			id = 0
		}
		out := append(binary.BigEndian.AppendUint32(nil, id), contextAlloc...)
		if err := h.reply(opt, repMetaContext, out); err != nil {
			return err
		}
	}
	if opt == optSetMetaContext {
		h.alloc, h.allocFor = found, name
	}
	return h.reply(opt, repAck, nil)
}

// open gives the export of this name, the one already open if it is the same.
func (h *handshake) open(name string) (*Export, error) {
	if name == "" {
		return nil, fmt.Errorf("%w: the empty name is not served, name a volume", ErrUnknownExport)
	}
	if h.candidate != nil {
		if h.asked == name {
			return h.candidate, nil
		}
		h.candidate.close()
		h.candidate = nil
	}
	e, err := h.exports.Open(h.ctx, name, h.peer)
	if err != nil {
		return nil, err
	}
	h.candidate, h.asked = e, name
	return e, nil
}

// done ends the handshake with this export, which is the candidate.
func (h *handshake) done(e *Export) *negotiated {
	h.candidate = nil
	early, _ := h.r.Peek(h.r.Buffered())
	return &negotiated{export: e, structured: h.structured, alloc: h.alloc && h.allocFor == h.asked, early: early}
}

func (h *handshake) reply(opt, kind uint32, data []byte) error {
	out := make([]byte, 0, optReplySize+len(data))
	out = binary.BigEndian.AppendUint64(out, magicOptReply)
	out = binary.BigEndian.AppendUint32(out, opt)
	out = binary.BigEndian.AppendUint32(out, kind)
	out = binary.BigEndian.AppendUint32(out, uint32(len(data)))
	_, err := h.sock.Write(append(out, data...))
	return err
}

func openRefusal(name string, err error) error {
	code := repErrUnknown
	switch {
	case errors.Is(err, ErrDenied):
		code = repErrPolicy
	case errors.Is(err, block.ErrShutdown):
		code = repErrShutdown
	}
	return refuse(code, "export %q: %v", name, err)
}

func transmissionFlags(e *Export, structured bool) uint16 {
	f := flagHasFlags | flagFlush | flagFUA | flagCanMultiConn | flagCache
	if structured {
		f |= flagDF
	}
	if e.ReadOnly {
		return f | flagReadOnly
	}
	f |= flagTrim | flagWriteZeroes
	if e.CanFastZero {
		f |= flagFastZero
	}
	return f
}

// cutString takes a string with its length in front off data.
func cutString(data []byte) (s string, rest []byte, ok bool) {
	if len(data) < 4 {
		return "", nil, false
	}
	n := binary.BigEndian.Uint32(data)
	data = data[4:]
	if n > maxString || int(n) > len(data) {
		return "", nil, false
	}
	return string(data[:n]), data[n:], true
}

// clip shortens a text to what the protocol allows.
func clip(s string) string { return s[:min(len(s), maxString)] }
