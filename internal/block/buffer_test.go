package block

import (
	"runtime"
	"testing"
)

func TestBuffersAreTheirOwnersAlone(t *testing.T) {
	var all [][]byte
	for i, n := range []int{0, 1, 4095, 4096, 4097, 64 << 10, 256<<10 + 3, 1 << 20} {
		b := Buffer(n)
		if len(b) != n || cap(b) != n {
			t.Fatalf("%d bytes asked for, length %d, capacity %d", n, len(b), cap(b))
		}
		for j := range b {
			b[j] = byte(i + 1)
		}
		all = append(all, b)
	}
	for range 3 {
		runtime.GC()
		for range 100 {
			b := Buffer(64 << 10)
			for j := range b {
				b[j] = 0xff
			}
		}
	}
	for i, b := range all {
		for j := range b {
			if b[j] != byte(i+1) {
				t.Fatalf("buffer %d of %d bytes changed at %d", i, len(b), j)
			}
		}
	}
}

func BenchmarkBuffer(b *testing.B) {
	for range b.N {
		sink = Buffer(256 << 10)
	}
}

func BenchmarkMake(b *testing.B) {
	for range b.N {
		sink = make([]byte, 256<<10)
	}
}

var sink []byte
