package block

import (
	"errors"
	"fmt"
)

// What a request can be answered with. A protocol's edge maps them to its own numbers (NBD errno, frame code).
var (
	ErrRange       = errors.New("request lies outside the volume")
	ErrReadOnly    = errors.New("volume is read-only here")
	ErrNoSpace     = errors.New("no space left on the device below")
	ErrIO          = errors.New("input/output error")
	ErrShutdown    = errors.New("server is shutting down")
	ErrUnsupported = errors.New("operation not supported")
	ErrInvalid     = errors.New("invalid request")
	ErrHoldExpired = errors.New("no node could serve the request within the hold time")
	ErrSession     = errors.New("session was ended by the node")
)

// What opening and using a device can end in besides; these do not travel.
var (
	// ErrInUse: the file or device is open already, here or in another process, under whatever path.
	ErrInUse = errors.New("file or device is already in use")
	// ErrUnsure: the device may have grown, or may have its old size after a crash.
	ErrUnsure = errors.New("the larger size may not be durable")
	// ErrClosed: the device has been closed.
	ErrClosed = errors.New("device is closed")
	// ErrCrashed: the Crashable has been crashed or its process killed; what survived is in the device that followed.
	ErrCrashed = errors.New("device has crashed")
	// ErrNoBitmap: no page of a bitmap was found where one was expected.
	ErrNoBitmap = errors.New("device holds no bitmap")
)

// MovedError answers a request sent to a node that no longer serves the volume: it names who does.
type MovedError struct {
	Node    string // the serving node, as far as this node knows
	Address string // where it listens for frames, empty if not known
	Volume  string // its volume's name there
	Epoch   uint64
}

func (e *MovedError) Error() string {
	return fmt.Sprintf("volume moved to %s/%s at %s in epoch %d", e.Node, e.Volume, e.Address, e.Epoch)
}
