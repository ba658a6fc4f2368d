package nbd

import (
	"sync/atomic"

	"gantline/internal/block"
)

// request is a slot of a connection: the request in it, and what the reply needs.
type request struct {
	block.Request
	conn   *conn
	cookie uint64
	charge int64   // bytes in flight
	mem    *buffer // a read's; stays with the slot if it is small
	open   atomic.Bool
}

// answer queues the reply.
func (q *request) answer(err error) {
	if !q.open.CompareAndSwap(true, false) {
		panic("nbd: request completed twice")
	}
	q.Err = err
	q.conn.out.put(q)
}

// release lets go of all memory that need not stay.
func (q *request) release() {
	if q.mem != nil {
		switch {
		case q.Err != nil:
			q.mem = nil // a target that gave up on a read may yet have somebody writing into it
		case cap(q.mem.mem) > keptBuffer:
			putBuffer(q.mem)
			q.mem = nil
		}
	}
	q.Data, q.Extents, q.Err = nil, nil, nil
}

// command says what a command may look like.
type command struct {
	op     block.Op
	flags  uint16
	writes bool
	data   bool // its length is one of data that travels
}

// FUA goes with every command, as the protocol demands; it means something for those that write.
var commands = [...]command{
	cmdRead:        {op: block.OpRead, flags: cmdFlagFUA | cmdFlagDF, data: true},
	cmdWrite:       {op: block.OpWrite, flags: cmdFlagFUA, writes: true, data: true},
	cmdFlush:       {op: block.OpFlush, flags: cmdFlagFUA},
	cmdTrim:        {op: block.OpTrim, flags: cmdFlagFUA, writes: true},
	cmdCache:       {op: block.OpCache, flags: cmdFlagFUA},
	cmdWriteZeroes: {op: block.OpZero, flags: cmdFlagFUA | cmdFlagNoHole | cmdFlagFastZero, writes: true},
	cmdBlockStatus: {op: block.OpExtents, flags: cmdFlagFUA | cmdFlagReqOne},
}

// ruleOf gives the command's rule; one without an operation is not ours.
func ruleOf(kind uint16) command {
	if int(kind) < len(commands) {
		return commands[kind]
	}
	return command{}
}

func blockFlags(h requestHeader) block.Flags {
	var f block.Flags
	if h.flags == 0 {
		return 0
	}
	if h.flags&cmdFlagFUA != 0 && ruleOf(h.kind).writes {
		f |= block.FlagFUA
	}
	if h.flags&cmdFlagNoHole != 0 {
		f |= block.FlagNoHole
	}
	if h.flags&cmdFlagFastZero != 0 {
		f |= block.FlagFastZero
	}
	if h.flags&cmdFlagReqOne != 0 {
		f |= block.FlagOne
	}
	return f
}
