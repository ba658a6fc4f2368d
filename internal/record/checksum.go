package record

import "hash/crc32"

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// Checksum is the CRC32C of a record's data; 0 for none. It uses the processor's own instruction where there is one.
func Checksum(data []byte) uint32 { return crc32.Update(0, castagnoli, data) }

// Extend is the checksum of what sum stands for with data behind it.
func Extend(sum uint32, data []byte) uint32 { return crc32.Update(sum, castagnoli, data) }

// Join is the checksum of two runs of bytes behind one another, from the checksum of each and the length of the second: so
// that bytes which have been summed need not be read again. It costs about as much as summing 500 bytes.
//
// A checksum is a remainder modulo the polynomial; n bytes that follow multiply it by x^(8n). The inversions that CRC32C
// begins and ends with cancel out.
func Join(first, second uint32, n int) uint32 {
	for bit := 3; n > 0; bit, n = bit+1, n>>1 {
		if n&1 != 0 {
			first = times(first, powers[bit])
		}
	}
	return first ^ second
}

// powers has x^(2^i), for all bits that a length has, times 8.
var powers = func() (p [66]uint32) {
	p[0] = 1 << 30
	for i := 1; i < len(p); i++ {
		p[i] = times(p[i-1], p[i-1])
	}
	return p
}()

// times is the product of two remainders. As in all of CRC32C the highest bit stands for x^0.
func times(a, b uint32) uint32 {
	product := uint32(0)
	for range 32 {
		product ^= b & -(a >> 31)
		a <<= 1
		b = b>>1 ^ crc32.Castagnoli&-(b&1)
	}
	return product
}
