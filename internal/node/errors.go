package node

import (
	"fmt"

	"gantline/internal/wire"
)

// Errors of calls carry their kind to the caller: see wire.Kind.
func notFound(format string, args ...any) error {
	return &wire.Error{Kind: wire.KindNotFound, Message: fmt.Sprintf(format, args...)}
}

func refused(format string, args ...any) error {
	return &wire.Error{Kind: wire.KindRefused, Message: fmt.Sprintf(format, args...)}
}

func invalid(format string, args ...any) error {
	return &wire.Error{Kind: wire.KindInvalid, Message: fmt.Sprintf(format, args...)}
}
