// Package queue is the log in memory (DESIGN §5, embodiment 1): the primary's light choice beside package journal.
//
//	Append:  space? ─ numbers reserved on disk? ─ intents durable? ─ write to the devices ─ into the queue
//	Sync:    flush the devices; what had been appended before is durable
//	Trim:    what the devices and all subscribers have durably is in doubt no more
//
// The devices are its only store. Records wait in memory, with their bytes, for who must have them, and are gone when the
// process dies. What makes that safe is two things on disk:
//
//   - The write-intent maps, one for each volume: a region of 1 MiB is marked, durably, before it is first written. It stays
//     marked until all that was written to it is flushed on the device and durable with every subscriber (or marked in
//     the changed map of one that is cut off). So after any death the marked regions are all that may differ between the
//     two sites: the regions in doubt (Doubt).
//   - The state: epoch table, owner's blob, and a reserved number that is always above all that are in use. The next
//     run begins above it, so no number is ever used again for other bytes.
//
// After a restart the records of the run before are gone. A subscriber therefore goes on with a step that carries the
// regions in doubt: its begin is the only record that may follow a gap.
//
//	intent.go   which regions are marked, and when they may be cleared
//	state.go    the state's bytes: two copies
//	entries.go  the records in memory
package queue
