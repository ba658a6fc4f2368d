// Package wire has the frames between our processes: the frame codec, the connection with its hello, pings and
// combining writer, the server that hands connections to their purpose, and the three purposes themselves.
//
//	io      host requests to one volume, pipelined, answered in any order (IOClient, ServeIO, Sessions)
//	stream  records of a group's log to a subscriber, and its acknowledgements (Batch, Ack, Heartbeat)
//	        by one connection, or a Bundle of several that look like one
//	call    JSON method calls, many in flight, each with its own deadline (Caller)
//
// A frame, little endian:
//
//	0        4        5      6        8         12       16
//	| magic  | version| type | flags  | length  | crc32c | body …
//
// The CRC covers the twelve bytes before it and the body. The length is checked against the type's limit before
// anything is allocated. A frame that is wrong in any way ends the connection and changes nothing else.
//
// The hot path has no goroutine and no channel per request: a connection's reading goroutine parses what its buffer
// holds, submits it at once and flushes when the buffer is empty; a completion from elsewhere is written by whoever
// finds the writer idle. Nobody blocks on a peer that does not read: what the socket does not take at once is left to
// the connection's own writer.
package wire
