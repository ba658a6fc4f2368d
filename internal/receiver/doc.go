// Package receiver takes in the streams of a group's log at a subscriber: it knows whom to believe, stores records
// strictly by sequence, and acknowledges what it has.
//
//	source a ──batches──▶ right ─▶ sift ─▶ Store.Append ─▶ stored ┐
//	                       ▲                                      ├─▶ acks, cumulative, to every stream
//	source b ──batches─────┘      one syncer: Store.Sync ─▶ durable ┤
//	(transitional: a ≤ cut < b)   told by its owner:        applied ┘
//
// Whom it believes (belief, pure). A source is an epoch: a number and a node. A higher one becomes valid only by the
// manager's permission or by a fence that the present source has sent; a hello alone raises nothing. While two sources
// are valid the older one speaks up to the cut, the newer one above it. The set is saved before it counts.
//
// What it stores. Records follow one another without a gap (only a step's begin may leave one), each inside a row of
// the epoch table that the stream's hello has shown and that agrees with the rows here. Duplicates are acknowledged
// and change nothing. What comes early, because an older source still owes what precedes it, waits in its stream's
// goroutine with the one batch at hand; the socket fills up and the sender's log absorbs the rest.
//
// Push and pull. A source that pushes has dialled, and Handle serves its stream. A Puller dials a source and asks for ranges
// (pull.go); what comes is judged and stored the same way.
//
// What it does not do: apply records, know senders' code, decide who owns the group. It never acknowledges more than
// its Store has said, and after the first error of the Store it acknowledges nothing at all.
package receiver
