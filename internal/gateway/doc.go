// Package gateway is the gateway process: NBD in front, routes behind. A host opens a virtual volume by name; each of
// its connections gets a route.Session, which finds the node that serves the volume and follows it.
//
//	gateway.go  start order, stop order
//	table.go    the routing table, who may open what, and the table's copy on disk
//	exports.go  host connections: opened, listed, switched, ended
//	sync.go     keeps the table in step with the manager; the data path never asks it
//	listen.go   listeners whose connections can be ended from behind
//	http.go     liveness, readiness, metrics
//
// The manager may be away at any time: the table on disk is enough to start and to serve, and sessions follow moves by
// what nodes answer.
package gateway
