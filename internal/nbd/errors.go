package nbd

import (
	"errors"
	"fmt"

	"gantline/internal/block"
)

var (
	// ErrUnknownExport is what Exports.Open returns for a name that it does not have.
	ErrUnknownExport = errors.New("no export of this name")
	// ErrDenied is what Exports.Open returns when this peer may not open the export.
	ErrDenied = errors.New("this host may not open the export")
	// ErrConnLost completes the client's requests whose answers can no longer come. It is also a block.ErrIO.
	ErrConnLost = fmt.Errorf("connection to the NBD server was lost: %w", block.ErrIO)
	// ErrProtocol is returned for bytes that are not NBD, or not allowed where they stand.
	ErrProtocol = errors.New("NBD protocol violated")
	// ErrTooManyConns is reported for a connection beyond the cap; it is closed without a word.
	ErrTooManyConns = errors.New("too many NBD connections")
	// ErrNotSupported is returned by Dial when the server lacks what the client needs.
	ErrNotSupported = errors.New("NBD server does not support what is needed")
)

// errno maps an answer to its number on the wire.
func errno(op block.Op, err error) uint32 {
	switch {
	case err == nil:
		return 0
	case errors.Is(err, block.ErrReadOnly):
		return errnoPerm
	case errors.Is(err, block.ErrRange):
		if op == block.OpWrite || op == block.OpZero {
			return errnoNoSpc
		}
		return errnoInval
	case errors.Is(err, block.ErrNoSpace):
		return errnoNoSpc
	case errors.Is(err, block.ErrShutdown):
		return errnoShutdown
	case errors.Is(err, block.ErrUnsupported):
		return errnoNotSup
	case errors.Is(err, block.ErrInvalid):
		return errnoInval
	}
	return errnoIO
}

// fromErrno maps a number on the wire to an answer; text is what the server said about it.
func fromErrno(no uint32, text string) error {
	if no == 0 {
		return nil
	}
	err := block.ErrIO
	switch no {
	case errnoPerm:
		err = block.ErrReadOnly
	case errnoInval:
		err = block.ErrInvalid
	case errnoNoSpc:
		err = block.ErrNoSpace
	case errnoNotSup:
		err = block.ErrUnsupported
	case errnoShutdown:
		err = block.ErrShutdown
	}
	if text == "" {
		return fmt.Errorf("%w (NBD error %d)", err, no)
	}
	return fmt.Errorf("%w (NBD error %d): %s", err, no, text)
}
