// Package site runs a whole Gantline system as real processes on this machine, for tests that look at it from outside:
// a manager, nodes a and b at one site, c at the other, and a gateway g.
//
//	host ─unix─ g ─┬─ a ──┐
//	               └─ b ──┴── c          manager
//
// Every process listens on loopback, at a port that it chose at its first start and keeps for later ones, as a service
// does. All data lies in one temporary directory. A test kills, stops and restarts processes by their ids; whatever it
// has started is gone when it ends, and the end of each log is printed if it failed.
package site
