// Package powerloss takes the power from whole nodes, in one process and on purpose, and looks what is left.
//
// The manager, the gateway, three nodes and their sockets are real. Only what lies below a node is not: volumes,
// journals and maps are devices that forget any selection of what was not flushed (block.Crashable), and every
// connection of a node goes through a switch that can cut it. A power loss is, in this order and without waiting:
//
//	the node's connections are cut      nothing that it says from now on is heard
//	its devices crash                   every later call fails; what survives is drawn from the seed
//	its directory is taken away         no state record can be written any more
//	its context ends                    so that its goroutines go
//
// and a start gives what survived to a new node. Cutting one device after the other instead of all in one instant shows
// nothing that one instant could not: a later one has at most flushed more, on no newer word from one that had died.
//
// State records (node.state, beliefs) are real files. They are written with an fdatasync each, so there is never a
// completed Save to be forgotten: rolling back to the last completed Save is what taking the directory away does. What
// a power loss can do besides is tear the copy that is being written; some starts find one copy torn for that.
//
// The load keeps its own history: which writes were answered in which life of the primary, and what a flush covered.
// After a power loss of a primary the history is reconciled with the image that came back: what is missing must be the
// newest of that life and under no answered flush, and must never again be seen anywhere, the secondary included (I5).
//
// A test prints its seed; GANTLINE_SEED repeats its choices (not the goroutines' schedule). GANTLINE_CAMPAIGN=n makes n
// times as many rounds, over all steps of a move.
package powerloss
