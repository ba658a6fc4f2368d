// Package route takes a host's requests to the node that serves its virtual volume now, across lost connections,
// restarts and moves, without the host noticing more than a pause.
//
//	core.go     decides: events in, actions out; no goroutine, clock or socket
//	session.go  a host connection: numbers its requests, sends them, knows which have no answer
//	loop.go     does what the core decides: dials, replays, expires, ends
//
// A request that has an open route costs one lock and no hop: Submit hands it to the connection, the answer goes from
// the connection's reading goroutine straight to the host. Everything else, a lost connection, a moved volume, a
// switched path, closes the gate first; then requests wait, in order, and are sent again with the number they had.
package route
