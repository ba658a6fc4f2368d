package record

import (
	"math/rand/v2"
	"testing"
)

func TestJoinIsTheChecksumOfBoth(t *testing.T) {
	random := rand.New(rand.NewPCG(1, 2))
	data := make([]byte, 3<<20)
	for i := range data {
		data[i] = byte(random.Uint32())
	}
	lengths := []int{0, 1, 2, 3, 12, 64, 511, 4096, 4097, 65535, 128 << 10, 1<<20 + 1}
	for _, a := range lengths {
		for _, b := range lengths {
			first, second, both := data[:a], data[a:a+b], data[:a+b]
			if got, want := Join(Checksum(first), Checksum(second), b), Checksum(both); got != want {
				t.Errorf("%d and %d bytes: %08x, want %08x", a, b, got, want)
			}
		}
	}
}

func BenchmarkJoin128K(b *testing.B) {
	sum := uint32(1)
	for b.Loop() {
		sum = Join(sum, 12345, 128<<10)
	}
}
