package nbd

import (
	"math/bits"
	"sync"
)

const (
	// keptBuffer is the largest read buffer that stays with its slot.
	keptBuffer = 16 << 10
	// pooledBuffer is the largest that is kept for others; reads beyond it are rare and left to the collector.
	pooledBuffer = 1 << 20
)

// pools has read buffers by size, a power of two.
var pools [32]sync.Pool

// buffer is a read's memory. It is the server's before the request is submitted and after its reply is written.
type buffer struct{ mem []byte }

// getBuffer gives n bytes whose content is undefined.
func getBuffer(old *buffer, n int) *buffer {
	if old != nil {
		if cap(old.mem) >= n {
			return old
		}
		putBuffer(old)
	}
	class := bits.Len(uint(max(n, 4096) - 1))
	if n > pooledBuffer {
		return &buffer{make([]byte, n)}
	}
	if b, ok := pools[class].Get().(*buffer); ok {
		return b
	}
	return &buffer{make([]byte, 1<<class)}
}

func putBuffer(b *buffer) {
	if n := cap(b.mem); n <= pooledBuffer {
		pools[bits.Len(uint(n)-1)].Put(b)
	}
}
