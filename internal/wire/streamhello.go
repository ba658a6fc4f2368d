package wire

import (
	"fmt"

	"gantline/internal/record"
)

// StreamHello has the parameters by which the source of a stream shows its log.
type StreamHello struct {
	Epoch record.EpochID `json:"epoch"`
	Table record.Table   `json:"table"`
	// Compress has the methods that the source may use.
	Compress []string `json:"compress,omitempty"`
	BundleSpec
}

// StreamAnswer is what the receiver of a stream has: its answer to a StreamHello.
type StreamAnswer struct {
	Stored  record.Seq   `json:"stored"`
	Durable record.Seq   `json:"durable"`
	Applied record.Seq   `json:"applied"`
	Owed    record.Seq   `json:"owed"` // records up to here come from an older source
	Table   record.Table `json:"table"`
	// Compress has those of the offered methods that the receiver can read.
	Compress []string `json:"compress,omitempty"`
	Capacity int64    `json:"capacity,omitempty"` // bytes that the receiver's log can hold, 0: not said
}

// Check refuses what no receiver can have.
func (a *StreamAnswer) Check() error {
	if a.Applied > a.Durable || a.Durable > a.Stored || a.Stored > record.MaxSeq || a.Owed > record.MaxSeq || a.Capacity < 0 {
		return fmt.Errorf("%w: the receiver says that it has stored %d, durable %d, applied %d, is owed up to %d, and holds %d bytes", ErrFrame,
			a.Stored, a.Durable, a.Applied, a.Owed, a.Capacity)
	}
	return nil
}

// PullHello has the parameters of a hello by which a receiver dials its source; a StreamHello is the answer to it.
type PullHello struct {
	Pull bool `json:"pull"`
}

// StreamRefusal is the detail of the error by which a receiver refuses a stream or ends it.
type StreamRefusal struct {
	Reason  string       `json:"reason"`
	Table   record.Table `json:"table"` // the receiver's newest rows
	Stored  record.Seq   `json:"stored"`
	Durable record.Seq   `json:"durable"`
	Applied record.Seq   `json:"applied"`
}
