// Package sender follows a group's log for one subscriber at the other end of a link.
//
//	Source ── Read ──▶ batch ──▶ window ──▶ link ──▶ receiver
//	   ▲                            │
//	   └───────── Acked ◀───────────┴──────── acks: stored, durable, applied
//
// It dials, or is dialled, shows the log's epoch table in its hello, hears what the receiver has, and goes on from there: batches of
// records as far as its source lets them go, the log's durable mark or, in a synchronous group, its end, one writev each, as many in flight as the window allows. The
// receiver's acks are cumulative. What it lost is sent again after the next hello, so a sender keeps nothing on disk.
//
// Push and pull. A sender that pushes dials, and sends what the window allows. One that is pulled is dialled, and sends what
// it is asked for; Handle answers (pull.go). What has to wait for an interval or a quantity waits in either (gate.go).
//
// While the link is down it is tried once a second. Whatever stops the stream is a state with a reason: link down, not
// permitted there yet, split-brain, the receiver has failed, the records it needs have been trimmed and a resync must
// begin. It decides none of these; its owner reads Status.
//
// A sealed source's sender is told where to stop; it reports when the receiver has everything up to there durable.
package sender
