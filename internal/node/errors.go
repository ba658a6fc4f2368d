package node

import "errors"

// What a call can be refused with; calls.go gives each its kind on the wire.
var (
	errNotFound = errors.New("not found")
	errRefused  = errors.New("refused")
	errInvalid  = errors.New("invalid")
)
