// Package node is the storage node: it owns volumes and journals, builds a group's runtime from its durable state, and
// starts, stops and reports it.
//
//	state.go      what is on disk: volumes, journals, groups, moves (stored twice)
//	node.go       start order, stop order
//	volumes.go    volumes and journals: create, open, delete
//	journaladd.go journals: grow by a device
//	group.go      a group's runtime: log, volumes, and what its role adds
//	primary.go    role primary: feeds the secondary
//	secondary.go  role secondary: believes, stores, applies
//	move*.go      this node's part in a move: source, target, secondary
//	calls.go      what the manager and other nodes may ask
//	serve.go      exports and sessions for hosts and gateways
//	scope.go      goroutines of a group, and what of it changes while it runs
//	status.go     what it says of itself
//
// A role is taken from the manager once, when a group is made; afterwards it changes only by a move, and what this node
// has durably recorded of epochs wins over what anybody says later.
package node
