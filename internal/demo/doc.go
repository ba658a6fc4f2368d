// Package demo is `gantline demo`: a whole two-site system in one process — manager, three nodes, gateway, real TCP on
// loopback, real files — with a load whose writes prove themselves (package proof), and a move of the primary under it.
//
// What it shows it has measured in this run. It ends well only if every check held: no host request failed, every read
// returned what was written, the secondary stopped in the middle of the move was a prefix of the hosts' writes, and at
// the end it is equal to the primary.
package demo
