// Package nbd speaks the NBD protocol: a server for hosts and a client for ourselves. Fixed newstyle negotiation,
// structured replies, base:allocation block status; no TLS, no extended headers. It knows nothing of volumes: what a
// name means is decided by Exports, what a request does by a block.Target.
//
// One connection of the server:
//
//	         chunk (GC-owned)
//	socket ─▶ header│payload│header│payload│…      reading goroutine (conn.run): parses all that is there,
//	             └──────┬─────┘                     one Target.Submit for the batch, payloads are slices of the chunk
//	                    ▼
//	               block.Target ── Complete ─▶ outbox ─▶ sendmsg(headers, data…) ─▶ socket
//
// There is no goroutine and no channel per request. Replies gather in the outbox and whoever finds it idle writes all
// that is queued with one system call: the reading goroutine when its buffer is empty, a completing goroutine when the
// reader waits for its peer. A completing goroutine never waits for the peer: what the socket does not take at once is
// left to a goroutine of the connection. A peer that does not read its replies therefore stalls nobody but itself: its
// replies count as in flight until they are written, and at the limit its requests are no longer read.
//
// Sockets are read through the runtime's poller. Blocking reads in a thread per connection, and polling for 200 µs
// before parking, were tried at depth 1 and 32 on two busy cores: neither cost less processor time per request. Three
// quarters of depth 1 is the kernel waking and switching threads.
//
// Limits: see Options; a connection holds at most MaxBytes of data in flight and MaxRequests requests, so the server
// holds at most MaxConns times that.
//
// A goroutine that completes many requests in a row should bracket them with Cork and Uncork of their Completer (see
// Corker); otherwise each of its completions may cost one system call.
package nbd
