// Package apply decides which records of a group's log may go to the volumes next, and hands them over.
//
// The decision is pure (Machine): it hears what was stored, what is durable here, how far the primary could reproduce
// its own log after power loss (its mark), and answers with a range to apply or with what it waits for.
//
//	            applied          durable here        stored
//	1 ─────────────┼───────────────────┼──────────────────┼────
//	               │ may go, up to the │
//	               │ primary's mark    │
//
//	plain records  go as they come
//	a step         begin … end goes whole, once its end is durable here and below the mark; a begin behind an
//	               unfinished step drops that step's records: the new step brings all that they brought
//	a step at once goes as it comes; from its begin to its end the image is not consistent
//	a gap          only a begin may follow it; nothing behind the gap goes before that step may
//
// Loop is the dull part: it keeps the newest records in memory, reads older ones back from the log, and calls a Sink.
// It never applies a record that is not durable in the log here, so replaying the log after power loss finishes
// whatever the sink had begun, a step of many records included.
//
// The package writes to no volume itself and knows no peer.
package apply
