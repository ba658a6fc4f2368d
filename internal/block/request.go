package block

// Op says what a Request asks for. The numbers travel in frames and never change.
type Op uint8

const (
	OpRead    Op = 1
	OpWrite   Op = 2
	OpFlush   Op = 3 // everything completed before it was submitted is durable when it completes
	OpTrim    Op = 4 // the range reads as zeros afterwards, on every copy
	OpZero    Op = 5
	OpCache   Op = 6 // a hint: the range will be read soon
	OpExtents Op = 7 // fills Extents
)

// Flags qualify a Request. The numbers travel in frames and never change.
type Flags uint16

const (
	FlagFUA      Flags = 1 << 0 // completes only when durable
	FlagNoHole   Flags = 1 << 1 // OpZero: keep the space allocated
	FlagFastZero Flags = 1 << 2 // OpZero: fail with ErrUnsupported rather than write zeros one by one
	FlagOne      Flags = 1 << 3 // OpExtents: one extent is enough
	FlagFetch    Flags = 1 << 4 // OpRead, OpExtents by the target of a move: a sealed source answers it
)

// Request is one request of a host against a volume, from the protocol's edge down to the log.
//
// Who fills it: the edge sets Op, Flags, Offset, Length, Data, the identity (Session, Number, Floor) and Completer.
// Who answers it: exactly one call of Complete, from any goroutine, possibly before Submit has returned.
// A write's Data must not change after Submit: log, cache and senders keep slices of it for as long as they need
// them (the garbage collector frees it). A read's Data has Length bytes and is filled by the time of completion.
type Request struct {
	Op     Op
	Flags  Flags
	Offset int64  // bytes
	Length int64  // bytes; for OpWrite len(Data)
	Data   []byte // OpWrite: payload; OpRead: to be filled

	// CRC is the CRC32C of a write's Data, if HasCRC: it was found when the data was received and checked.
	CRC    uint32
	HasCRC bool

	// Session and Number identify a request across replays and relays; Session 0 means "never replayed".
	// All requests of Session with a number at or below Floor have been answered to their host.
	Session uint64
	Number  uint64
	Floor   uint64

	// Began is when a volume took the request, in nanoseconds of its own monotonic clock; 0: none has yet. For figures only.
	Began int64

	Extents []Extent // OpExtents: the answer
	Err     error    // the answer

	Completer Completer
	Tag       uint64 // the submitter's own
}

// Completer is told of a Request's completion. It must not block on the completion of another request.
type Completer interface{ Complete(r *Request) }

// Corker is what a Completer may be too: between Cork and Uncork its answers gather, to leave in one system call. Calls
// nest; a cork holds nothing back for longer than a few milliseconds, whatever its holder does.
type Corker interface {
	Cork()
	Uncork()
}

// Answers completes requests in a row, corking their completers as far as they can be: one system call for the answers
// of one connection, not one for each. Done ends the row. The zero value is ready.
type Answers struct{ open Corker }

// Finish is r.Finish.
func (a *Answers) Finish(r *Request, err error) {
	if k, _ := r.Completer.(Corker); k != a.open {
		// In this order: different completers may stand for one connection, which is then not uncorked in between.
		if k != nil {
			k.Cork()
		}
		a.Done()
		a.open = k
	}
	r.Finish(err)
}

// Done lets all answers go.
func (a *Answers) Done() {
	if a.open != nil {
		a.open.Uncork()
		a.open = nil
	}
}

// Finish records the outcome and completes the request.
func (r *Request) Finish(err error) {
	r.Err = err
	r.Completer.Complete(r)
}

// Target takes requests: a volume, a route to one, a remote node. Submit does not keep the slice. Writes of one
// call are ordered as they stand. Submit may block for back-pressure (a full cache), never for another host's hold.
// Requests are answered in any order.
type Target interface{ Submit(reqs []*Request) }

// ExtentType says what a range of a device holds.
type ExtentType uint8

const (
	ExtentData ExtentType = 0
	ExtentHole ExtentType = 1 // reads as zeros and takes no space
	ExtentZero ExtentType = 2 // reads as zeros and takes space
)

// Extent is a run of bytes of one type.
type Extent struct {
	Offset, Length int64 // bytes
	Type           ExtentType
}
