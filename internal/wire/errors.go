package wire

import (
	"context"
	"encoding/json"
	"errors"

	"gantline/internal/block"
)

// Kind sorts an error for whoever must act on it. The strings travel.
type Kind string

const (
	KindNotFound    Kind = "not-found"   // the named object does not exist
	KindRefused     Kind = "refused"     // a condition is not met; the message says which
	KindInvalid     Kind = "invalid"     // the request itself is wrong
	KindUnavailable Kind = "unavailable" // not now: unreachable, shutting down, over a limit
	KindInternal    Kind = "internal"    // anything else
	KindNotBuilt    Kind = "not-built"   // a later version does it
	KindSession     Kind = "session"     // the io session was ended; it is never accepted again
	KindMoved       Kind = "moved"       // the volume is served elsewhere; the detail is a block.MovedError
)

// Error is an error that keeps its kind across the wire.
type Error struct {
	Kind    Kind            `json:"kind"`
	Message string          `json:"message"`
	Detail  json.RawMessage `json:"detail,omitempty"`
}

func (e *Error) Error() string { return e.Message }

// KindOf is the kind of err: that of the first Error in its chain, or of the first error with a method
// WireKind() string; KindInternal if there is neither.
func KindOf(err error) Kind { return toError(err).Kind }

// kinded lets packages that do not know wire give their errors a kind.
type kinded interface{ WireKind() string }

// detailed adds the detail.
type detailed interface{ WireDetail() any }

func toError(err error) *Error {
	var e *Error
	if errors.As(err, &e) {
		if e.Message == err.Error() {
			return e
		}
		return &Error{Kind: e.Kind, Message: err.Error(), Detail: e.Detail}
	}
	out := &Error{Kind: KindInternal, Message: err.Error()}
	var moved *block.MovedError
	switch {
	case errors.As(err, &moved):
		out.Kind = KindMoved
		out.Detail, _ = json.Marshal(moved)
	case errors.Is(err, block.ErrSession):
		out.Kind = KindSession
	case errors.Is(err, context.DeadlineExceeded), errors.Is(err, context.Canceled), errors.Is(err, block.ErrShutdown):
		out.Kind = KindUnavailable
	}
	var k kinded
	if errors.As(err, &k) {
		out.Kind = Kind(k.WireKind())
	}
	var d detailed
	if errors.As(err, &d) {
		if raw, err := json.Marshal(d.WireDetail()); err == nil {
			out.Detail = raw
		}
	}
	return out
}

// AsMoved is the MovedError that err, a refused hello, carries; nil if it carries none.
func AsMoved(err error) *block.MovedError {
	var e *Error
	if !errors.As(err, &e) || e.Kind != KindMoved {
		return nil
	}
	var moved block.MovedError
	if json.Unmarshal(e.Detail, &moved) != nil {
		return nil
	}
	return &moved
}

// marshalError is the body of a TypeError frame, within its limit.
func marshalError(err error) []byte {
	e := *toError(err)
	if len(e.Message) > 4<<10 {
		e.Message = e.Message[:4<<10]
	}
	if len(e.Detail) > 32<<10 {
		e.Detail = nil
	}
	b, merr := json.Marshal(&e)
	if merr != nil { // Detail that is not JSON
		e.Detail = nil
		b, _ = json.Marshal(&e)
	}
	return b
}

func unmarshalError(b []byte) *Error {
	var e Error
	if err := json.Unmarshal(b, &e); err != nil || e.Kind == "" {
		return &Error{Kind: KindInternal, Message: "peer sent an error that is not one of ours"}
	}
	return &e
}
