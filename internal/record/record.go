// Package record has the vocabulary of a group's log: sequence numbers, epochs, records and the epoch table. Pure
// values and rules; it does no input or output and imports nothing of ours.
package record

// Seq numbers the records of a group from 1 on. Never skipped, never reused for other bytes. 0: none.
type Seq uint64

// Incarnation counts the runs of one epoch's log: every recovery begins a new one.
type Incarnation uint32

// EpochID names one reign of one primary. The same Number with another Node is split-brain.
type EpochID struct {
	Number uint64 `json:"number"`
	Node   string `json:"node"`
}

// Op says what a record does. The numbers stand on disk and on the wire and never change.
type Op uint8

const (
	OpWrite  Op = 1
	OpZero   Op = 2
	OpTrim   Op = 3
	OpCopy   Op = 4 // a block copied by the copier; without data it is an empty record: it only takes its number
	OpBegin  Op = 5 // begins a step; the only record that may follow a gap at a receiver
	OpEnd    Op = 6 // ends it
	OpMember Op = 7 // add, remove, resize a volume (payload JSON)
	OpDigest Op = 8 // payload: extent and digest
	OpFence  Op = 9 // ends an epoch; payload: the next EpochID (JSON)
)

// VolumeNumber is a volume's number inside its group; numbers are never used again. 0: the group itself.
type VolumeNumber uint16

// Record is one entry of the log with its data. Data is nil for OpZero, OpTrim, OpBegin, OpEnd and empty copies; its
// length is Length for OpWrite and OpCopy with data. A Record and its Data never change once appended.
type Record struct {
	Seq         Seq
	Epoch       uint64
	Incarnation Incarnation
	Op          Op
	Flags       uint8 // see Flag…
	Volume      VolumeNumber
	Offset      uint64 // bytes
	Length      uint32 // bytes
	Time        int64  // nanoseconds since 1970 at the primary; for display, never for decisions
	Session     uint64 // of the host request; 0: none
	Request     uint64
	Mark        Seq    // the primary's durable mark when the record was written
	CRC         uint32 // CRC32C (Castagnoli) of Data; 0 if there is none
	Data        []byte
}

const (
	// FlagAtOnce on OpBegin: what follows is applied at once, not kept until OpEnd (--allow-inconsistent).
	// On OpCopy: an initial copy's block, outside any step.
	FlagAtOnce uint8 = 1 << 0
	// FlagEmpty on OpCopy: the record carries no data.
	FlagEmpty uint8 = 1 << 1
	// FlagCopied on OpTrim: a copied block of zeros, or a hole. The primary's own volume is so already.
	FlagCopied uint8 = 1 << 2
)

// Row is one (epoch, incarnation) of the epoch table: who numbered, from which sequence on, and, once known, to which.
type Row struct {
	Epoch       uint64      `json:"epoch"`
	Incarnation Incarnation `json:"incarnation"`
	Node        string      `json:"node"`
	First       Seq         `json:"first"`
	Last        Seq         `json:"last"`   // meaningful if Closed
	Closed      bool        `json:"closed"` // an empty closed row has Last == First-1
}

// Table is the epoch table of a log, ascending by (epoch, incarnation), with adjoining ranges.
type Table []Row
