package nbd

import (
	"encoding/binary"
	"fmt"
	"io"

	"gantline/internal/block"
)

// negotiate is the client's side of the handshake.
func (c *Client) negotiate(export string) error {
	var hello [18]byte
	if _, err := io.ReadFull(c.r, hello[:]); err != nil {
		return err
	}
	if binary.BigEndian.Uint64(hello[:]) != magicServer || binary.BigEndian.Uint64(hello[8:]) != magicOption {
		return fmt.Errorf("%w: this is no newstyle NBD server", ErrProtocol)
	}
	flags := binary.BigEndian.Uint16(hello[16:]) & (handFixedNewstyle | handNoZeroes)
	if flags&handFixedNewstyle == 0 {
		return fmt.Errorf("%w: fixed newstyle", ErrNotSupported)
	}
	if _, err := c.sock.Write(binary.BigEndian.AppendUint32(nil, uint32(flags))); err != nil {
		return err
	}
	err := c.option(optStructuredReply, nil, nil)
	if err == nil {
		c.structured = true
		err = c.setMetaContext(export)
	}
	if err != nil && !isOptionError(err) {
		return err // a server that merely declines is served with less
	}
	return c.goTo(export)
}

func (c *Client) setMetaContext(export string) error {
	data := appendString(nil, export)
	data = binary.BigEndian.AppendUint32(data, 1)
	data = appendString(data, contextAlloc)
	err := c.option(optSetMetaContext, data, func(kind uint32, p []byte) error {
		if kind != repMetaContext || len(p) < 4 {
			return fmt.Errorf("%w: malformed meta context reply", ErrProtocol)
		}
		if string(p[4:]) == contextAlloc {
			c.alloc, c.allocID = true, binary.BigEndian.Uint32(p)
		}
		return nil
	})
	if err != nil {
		c.alloc = false
	}
	return err
}

func (c *Client) goTo(export string) error {
	data := appendString(nil, export)
	data = binary.BigEndian.AppendUint16(data, 1)
	data = binary.BigEndian.AppendUint16(data, infoName)
	known := false
	c.name = export
	err := c.option(optGo, data, func(kind uint32, p []byte) error {
		if kind != repInfo || len(p) < 2 {
			return fmt.Errorf("%w: malformed information reply", ErrProtocol)
		}
		switch binary.BigEndian.Uint16(p) {
		case infoExport:
			if len(p) != 12 || binary.BigEndian.Uint64(p[2:]) > 1<<62 {
				return fmt.Errorf("%w: malformed export information", ErrProtocol)
			}
			c.size, c.flags, known = int64(binary.BigEndian.Uint64(p[2:])), binary.BigEndian.Uint16(p[10:]), true
		case infoName:
			c.name = string(p[2:])
		}
		return nil
	})
	if err != nil {
		return err
	}
	if !known {
		return fmt.Errorf("%w: server did not say the export's size", ErrProtocol)
	}
	return nil
}

// optionError is an option that the server answered with an error.
type optionError struct {
	code uint32
	text string
}

func (e *optionError) Error() string {
	return fmt.Sprintf("server answered with option error %d: %s", e.code&^repErrBit, e.text)
}

func (e *optionError) Unwrap() error {
	switch e.code {
	case repErrUnknown:
		return ErrUnknownExport
	case repErrPolicy:
		return ErrDenied
	case repErrShutdown:
		return block.ErrShutdown
	case repErrUnsup:
		return ErrNotSupported
	}
	return nil
}

func isOptionError(err error) bool {
	_, ok := err.(*optionError)
	return ok
}

// option sends an option and reads its replies up to the last; info gets those between.
func (c *Client) option(opt uint32, data []byte, info func(kind uint32, p []byte) error) error {
	out := binary.BigEndian.AppendUint64(nil, magicOption)
	out = binary.BigEndian.AppendUint32(out, opt)
	out = binary.BigEndian.AppendUint32(out, uint32(len(data)))
	if _, err := c.sock.Write(append(out, data...)); err != nil {
		return err
	}
	for range maxOptions {
		var hdr [optReplySize]byte
		if _, err := io.ReadFull(c.r, hdr[:]); err != nil {
			return err
		}
		kind, length := binary.BigEndian.Uint32(hdr[12:]), binary.BigEndian.Uint32(hdr[16:])
		if binary.BigEndian.Uint64(hdr[:]) != magicOptReply || binary.BigEndian.Uint32(hdr[8:]) != opt || length > maxOption {
			return fmt.Errorf("%w: malformed option reply", ErrProtocol)
		}
		p := make([]byte, length)
		if _, err := io.ReadFull(c.r, p); err != nil {
			return err
		}
		switch {
		case kind == repAck:
			return nil
		case kind&repErrBit != 0:
			return &optionError{kind, clip(string(p))}
		case info == nil:
			return fmt.Errorf("%w: option reply of type %d", ErrProtocol, kind)
		}
		if err := info(kind, p); err != nil {
			return err
		}
	}
	return fmt.Errorf("%w: more than %d replies to an option", ErrProtocol, maxOptions)
}

func appendString(b []byte, s string) []byte {
	return append(binary.BigEndian.AppendUint32(b, uint32(len(s))), s...)
}
