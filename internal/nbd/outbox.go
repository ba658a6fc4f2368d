package nbd

import (
	"sync"
	"time"

	"gantline/internal/block"
)

// Corker is block.Corker, which a Completer of this package is. Replies wait for corkLimit at most.
type Corker = block.Corker

const (
	// corkLimit bounds how long a cork holds back what is queued.
	corkLimit = 4 * time.Millisecond
	// foreignRounds bounds how many system calls a goroutine makes for what others keep adding to the queue.
	foreignRounds = 4
	// batchItems and batchBytes bound what is encoded for one system call.
	batchItems = 256
	batchBytes = 4 << 20
)

// outbox is the sending side of a connection: items are queued by any goroutine, and whoever finds nobody writing
// writes all that is queued. The lock is never held during a system call, and put never waits for the peer.
type outbox[T any] struct {
	tr      *transport
	encode  func(*vector, T) // appends an item's bytes
	written func([]T, error) // items left the queue: written, or not because of the error
	broken  func(error)      // called once, at the first failed write

	mu      sync.Mutex
	queue   []T
	spare   []T
	corks   int
	writing bool  // somebody writes, or a goroutine of ours waits for the socket
	err     error // the first failed write; nothing is written after it
	timer   *time.Timer
	armed   bool // the timer will look at the queue
	idle    *sync.Cond

	// Owned by whoever set writing.
	vec   vector
	batch []T
}

func newOutbox[T any](tr *transport, encode func(*vector, T), written func([]T, error), broken func(error)) *outbox[T] {
	o := &outbox[T]{tr: tr, encode: encode, written: written, broken: broken}
	o.idle = sync.NewCond(&o.mu)
	return o
}

// put queues an item and sends it, unless somebody else will.
func (o *outbox[T]) put(item T) {
	o.mu.Lock()
	o.queue = append(o.queue, item)
	o.kick()
}

// cork holds sending back until uncork.
func (o *outbox[T]) cork() {
	o.mu.Lock()
	o.corks++
	o.mu.Unlock()
}

func (o *outbox[T]) uncork() {
	o.mu.Lock()
	o.corks--
	if o.corks < 0 {
		panic("nbd: Uncork without Cork")
	}
	if len(o.queue) == 0 {
		o.mu.Unlock()
		return
	}
	o.kick()
}

// kick sends the queue if that is this goroutine's job. The lock is held on entry and free on return.
func (o *outbox[T]) kick() {
	switch {
	case o.writing:
		o.mu.Unlock()
	case o.corks > 0:
		o.arm()
		o.mu.Unlock()
	default:
		o.writing = true
		o.mu.Unlock()
		o.send(foreignRounds)
	}
}

// arm makes sure that the queue is looked at within corkLimit although it is corked. Needs the lock.
func (o *outbox[T]) arm() {
	if o.armed {
		return
	}
	o.armed = true
	if o.timer == nil {
		o.timer = time.AfterFunc(corkLimit, o.overdue)
		return
	}
	o.timer.Reset(corkLimit)
}

// overdue sends what a cork has held back too long.
func (o *outbox[T]) overdue() {
	o.mu.Lock()
	o.armed = false
	if len(o.queue) == 0 || o.writing {
		o.mu.Unlock()
		return
	}
	o.writing = true
	o.mu.Unlock()
	o.send(foreignRounds)
}

// send writes what is queued, for so many rounds, without waiting for the peer; what then remains is a goroutine's.
// The caller has set writing.
func (o *outbox[T]) send(rounds int) {
	for range rounds {
		if !o.next() {
			return
		}
		if err := o.tr.tryWrite(&o.vec); err == errAgain {
			go o.sendWaiting(true)
			return
		} else {
			o.done(err)
		}
	}
	go o.sendWaiting(false)
}

// sendWaiting writes all that is queued and waits for the peer where it must.
func (o *outbox[T]) sendWaiting(pending bool) {
	for pending || o.next() {
		pending = false
		o.done(o.tr.waitWrite(&o.vec))
	}
}

// next encodes a batch; false: there is none, and nobody writes any more.
func (o *outbox[T]) next() bool {
	for {
		o.mu.Lock()
		if len(o.queue) == 0 {
			o.writing = false
			o.idle.Broadcast()
			o.mu.Unlock()
			return false
		}
		o.batch, o.queue, o.spare = o.queue, o.spare[:0], nil
		err := o.err
		o.mu.Unlock()
		if err == nil {
			break
		}
		o.recycle(err)
	}
	n := 0
	for n < len(o.batch) && n < batchItems && o.vec.bytes < batchBytes {
		o.encode(&o.vec, o.batch[n])
		n++
	}
	if n < len(o.batch) {
		o.mu.Lock()
		rest := append(append(make([]T, 0, len(o.batch)-n+len(o.queue)), o.batch[n:]...), o.queue...)
		o.queue = rest
		o.mu.Unlock()
		clear(o.batch[n:])
		o.batch = o.batch[:n]
	}
	o.vec.seal()
	return true
}

// done ends a batch that was written, or failed to be.
func (o *outbox[T]) done(err error) {
	if err != nil {
		o.mu.Lock()
		first := o.err == nil
		if first {
			o.err = err
		}
		o.mu.Unlock()
		if first {
			o.broken(err)
		}
	}
	o.vec.reset()
	o.recycle(err)
}

func (o *outbox[T]) recycle(err error) {
	o.written(o.batch, err)
	clear(o.batch)
	o.mu.Lock()
	o.spare = o.batch[:0]
	o.mu.Unlock()
	o.batch = nil
}

// failure gives the first failed write.
func (o *outbox[T]) failure() error {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.err
}

// drain waits until nothing is queued and nobody writes. Nothing may be put meanwhile or later.
func (o *outbox[T]) drain() {
	o.mu.Lock()
	for len(o.queue) > 0 || o.writing {
		if !o.writing {
			o.writing = true
			o.mu.Unlock()
			o.sendWaiting(false)
			o.mu.Lock()
			continue
		}
		o.idle.Wait()
	}
	if o.timer != nil {
		o.timer.Stop()
	}
	o.mu.Unlock()
}
