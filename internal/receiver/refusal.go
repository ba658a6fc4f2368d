package receiver

import (
	"fmt"

	"gantline/internal/record"
	"gantline/internal/wire"
)

// Reason says why a stream is not served. The strings travel.
type Reason string

const (
	// ReasonSplitBrain: the histories cannot be joined. Nothing is overwritten; an operator chooses.
	ReasonSplitBrain Reason = "split-brain"
	// ReasonNotPermitted: nobody has made the sender's epoch valid here yet. Try again later.
	ReasonNotPermitted Reason = "not-permitted"
	// ReasonSuperseded: a later epoch is known here, and the sender has records beyond its own epoch's cut.
	ReasonSuperseded Reason = "superseded"
	// ReasonFailed: this side has stopped on an error and acknowledges nothing.
	ReasonFailed Reason = "failed"
	// ReasonProtocol: the sender has sent what no sender may. It says hello again.
	ReasonProtocol Reason = "protocol"
	// ReasonStep: a step that has not ended fills the log here, and nothing else in it could go. The sender must give
	// the step up.
	ReasonStep Reason = "step-too-large"
	// ReasonReplaced: a newer stream of the same source has taken over.
	ReasonReplaced Reason = "replaced"
)

// Refusal is the error that a sender hears.
type Refusal struct {
	Reason Reason
	Detail string
	table  record.Table
	ack    wire.Ack
}

func refuse(reason Reason, format string, args ...any) *Refusal {
	return &Refusal{Reason: reason, Detail: fmt.Sprintf(format, args...)}
}

func (r *Refusal) Error() string { return string(r.Reason) + ": " + r.Detail }

// Superseded is the refusal of a source whose secondary has been promoted: table says by whom and since when.
func Superseded(table record.Table, format string, args ...any) *Refusal {
	ref := refuse(ReasonSuperseded, format, args...)
	ref.table = table
	return ref
}

// HelloEpoch is the epoch in which a source that pushes says to send.
func HelloEpoch(in *wire.Incoming) (record.EpochID, error) {
	var h wire.StreamHello
	err := in.Peer.Decode(&h)
	return h.Epoch, err
}

// WireKind keeps the kind across the wire.
func (r *Refusal) WireKind() string { return string(wire.KindRefused) }

// maxDetailRows keeps a refusal inside its frame; the newest rows are those that matter.
const maxDetailRows = 64

// WireDetail tells the sender what this side knows.
func (r *Refusal) WireDetail() any {
	table := r.table
	if len(table) > maxDetailRows {
		table = table[len(table)-maxDetailRows:]
	}
	return wire.StreamRefusal{Reason: string(r.Reason), Table: table,
		Stored: r.ack.Stored, Durable: r.ack.Durable, Applied: r.ack.Applied}
}
