// Package volume is the data path of a node: what a host's request meets between the protocol's edge and the devices.
//
//	Submit ─ gate ─┬ read ──────── cache of what is not on the device yet ─ device (─ fetch, where absent)
//	   (mode)      ├ write ─ commit: number, log append, cache ─ answered
//	               └ flush ─ waits until the log is durable ─ answered
//	behind:  syncer (fdatasync, grouped) → write-back rounds → device flush → checkpoint → trim
//
// A Volume is the stable, host-facing end (block.Target). It lives through having no group (requests go straight to the
// device), membership, and the modes of a move. A Group is the set of volumes that share one log: one write order, one
// cut. The same machinery serves a primary (Submit feeds it), a secondary (Apply feeds it) and the target of a move
// (Submit feeds it while absent regions are fetched from the source).
//
// It knows nothing of frames, peers, the manager or who owns what: the node tells it the mode, the row of the epoch
// table it may number in, and which subscribers hold records back.
package volume
