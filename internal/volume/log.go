package volume

import (
	"gantline/internal/block"
	"gantline/internal/record"
)

// Cursors of a log: Trimmed ≤ Durable ≤ Appended. Records in (Trimmed, Appended] are there.
type Cursors struct{ Trimmed, Durable, Appended record.Seq }

// Log is the ordered log of a group, as package journal keeps it on disk. Its methods may be called concurrently.
//
// A failed Append (but for ErrFull) or Sync ends the use of the log: all later calls fail until it is opened anew.
type Log interface {
	// Append adds records numbered Appended()+1 on, inside the open row. Data is not needed after the return. An error
	// that is ErrFull or ErrTooLarge has changed nothing.
	Append(recs []record.Record) error
	// AppendAfterGap is Append for a receiver: a leading OpBegin may leave a gap.
	AppendAfterGap(recs []record.Record) error
	// Sync makes durable all that was appended before the call and returns the durable cursor. Callers that come while
	// one runs share the next.
	Sync() (record.Seq, error)
	// Read returns records from `from` on in order, at least one, at most maxRecords and, beyond the first, maxBytes of
	// data; beginning in a gap it begins behind it. ErrTrimmed: `from` has been freed.
	Read(from record.Seq, maxRecords, maxBytes int) ([]record.Record, error)
	// Trim frees all records up to and including upTo; durable when it returns.
	Trim(upTo record.Seq) error
	// OpenRow durably begins a row of the epoch table at Appended()+1.
	OpenRow(row record.Row) error
	// Cut durably drops everything above upTo.
	Cut(upTo record.Seq) error
	// Reset forgets all records; the next is base+1. The owner's blob becomes meta in the same durable step.
	Reset(base record.Seq, table record.Table, meta []byte) error
	// SetMeta durably replaces the owner's blob of at most 16 KiB.
	SetMeta([]byte) error
	Meta() []byte
	Cursors() Cursors
	Table() record.Table
	// Space in bytes.
	Space() (used, capacity int64)
	Close() error
}

// MemoryLog is a Log that keeps its records in memory only, as package queue does: the devices are its store. Append
// durably marks the regions that the records will write, then writes the devices, then queues; Sync flushes the devices.
// A group on such a log caches nothing and writes nothing back; all else is the same.
//
// At a restart the records are gone. What of them a subscriber lacks lies in the regions in doubt.
type MemoryLog interface {
	Log
	// Attach gives it the devices, before any other use.
	Attach(Backing)
	// Prepare marks the regions of records that are about to be appended, outside the commit mutex.
	Prepare(recs []record.Record)
	// Forget frees the memory of records that nobody will read any more. Trim besides lets go of their regions.
	Forget(upTo record.Seq)
	// Base is the last number of earlier runs, 0 if there were none.
	Base() record.Seq
	// Doubt lists the marked regions of a volume; InDoubt says whether there are any at all.
	Doubt(n record.VolumeNumber) []block.Extent
	InDoubt() bool
	// Grow has it take writes to a volume that becomes size bytes long.
	Grow(n record.VolumeNumber, size int64) error
	// Flush flushes the devices even if nothing was appended since the last Sync.
	Flush() error
	// Seal durably ends the open row at its newest record, which is durable, and replaces the owner's blob in the same step.
	Seal(last record.Seq, meta []byte) error
	// Suspect: the run before has ended on a failed disk, which may have dropped what it had not flushed.
	Suspect() bool
}

// Backing is a group's devices to its MemoryLog: see package queue.
type Backing interface {
	Write(recs []record.Record) error
	Flush() error
}
