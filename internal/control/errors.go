package control

import (
	"errors"
	"fmt"
)

// Kind says what sort of failure an error is. It crosses processes (JSON `kind`) and decides the CLI's exit code.
type Kind string

const (
	KindOK          Kind = ""            // no error
	KindFailed      Kind = "failed"      // it was tried and went wrong
	KindUsage       Kind = "usage"       // the request itself is malformed
	KindNotFound    Kind = "not-found"   // the named object does not exist
	KindRefused     Kind = "refused"     // a condition forbids it now
	KindUnreachable Kind = "unreachable" // whom it needs does not answer
	KindTimeout     Kind = "timeout"     // it did not end in the time given
	KindDifferent   Kind = "different"   // a comparison found differences
)

// Error is a failure with its kind. Message is a full sentence for the operator: what, which object, why, what to do.
type Error struct {
	Kind    Kind   `json:"kind"`
	Message string `json:"message"`
}

func (e *Error) Error() string { return e.Message }

// Errorf makes an Error. A wrapped cause is told in the message only.
func Errorf(kind Kind, format string, args ...any) *Error {
	return &Error{Kind: kind, Message: fmt.Sprintf(format, args...)}
}

// KindOf is the kind of an error; one that carries none is KindFailed.
func KindOf(err error) Kind {
	if err == nil {
		return KindOK
	}
	var e *Error
	if errors.As(err, &e) {
		return e.Kind
	}
	return KindFailed
}

// NotBuilt refuses what a later version brings.
func NotBuilt(what string) *Error {
	return Errorf(KindRefused, "%s: not built yet", what)
}

// Sentinels of a Store.
var (
	// ErrNotFound: the key does not exist.
	ErrNotFound = errors.New("no such key")
	// ErrConflict: a key no longer has the revision that the transaction was built on; read again and retry.
	ErrConflict = errors.New("changed meanwhile")
	// ErrCompacted: the changes asked for are no longer kept; list and watch from the listed revision.
	ErrCompacted = errors.New("changes that old are no longer kept")
	// ErrClosed: the store was closed.
	ErrClosed = errors.New("store is closed")
	// ErrTooLarge: a key, a value or a transaction exceeds the store's limits.
	ErrTooLarge = errors.New("beyond the store's limits")
)

// WireKind is the kind under which the error crosses a call connection.
func (e *Error) WireKind() string {
	switch e.Kind {
	case KindUsage:
		return "invalid"
	case KindNotFound, KindRefused:
		return string(e.Kind)
	case KindUnreachable, KindTimeout:
		return "unavailable"
	}
	return "internal"
}
