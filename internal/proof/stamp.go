package proof

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"hash/crc32"
)

// BlockSize is the unit that the load writes and the check reads, in bytes.
const BlockSize = 4096

// A stamp is: magic u64, seed u64, volume u32, crc u32, block u64, write u64; the rest of the block is the write's
// number mixed with the position, so that a block half from one write and half from another is noticed.
const stampMagic = 0x6761_6e74_6c69_6e65

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

func stamp(p []byte, seed uint64, volume int, block int64, write uint64) {
	word := write*0x9e3779b97f4a7c15 ^ seed
	for i := 40; i < BlockSize; i += 8 {
		binary.LittleEndian.PutUint64(p[i:], word+uint64(i))
	}
	binary.LittleEndian.PutUint64(p[0:], stampMagic)
	binary.LittleEndian.PutUint64(p[8:], seed)
	binary.LittleEndian.PutUint32(p[16:], uint32(volume))
	binary.LittleEndian.PutUint64(p[24:], uint64(block))
	binary.LittleEndian.PutUint64(p[32:], write)
	binary.LittleEndian.PutUint32(p[20:], stampCRC(p))
}

func stampCRC(p []byte) uint32 {
	crc := crc32.Checksum(p[:20], castagnoli)
	return crc32.Update(crc, castagnoli, p[24:BlockSize])
}

var zeros [BlockSize]byte

// describe says of a block that is no write's what tells where its bytes are from.
func describe(p []byte) string {
	none, first, last := bytes.Count(p, []byte{0}), len(p), 0
	for i, b := range p {
		if b != 0 {
			first, last = min(first, i), i
		}
	}
	return fmt.Sprintf("it begins with %x; %d of its %d bytes are 0, the others within %d to %d", p[:64], none, len(p), first, last)
}

// readStamp returns the number of the write that a block holds, 0 for a block of zeros.
func readStamp(p []byte, seed uint64, volume int, block int64) (uint64, error) {
	if string(p[:BlockSize]) == string(zeros[:]) {
		return 0, nil
	}
	switch {
	case binary.LittleEndian.Uint64(p) != stampMagic:
		return 0, fmt.Errorf("volume %d block %d holds bytes that the load never wrote: %s", volume, block, describe(p[:BlockSize]))
	case binary.LittleEndian.Uint32(p[20:]) != stampCRC(p):
		return 0, fmt.Errorf("volume %d block %d is torn, it mixes writes: %s", volume, block, describe(p[:BlockSize]))
	case binary.LittleEndian.Uint64(p[8:]) != seed,
		binary.LittleEndian.Uint32(p[16:]) != uint32(volume),
		binary.LittleEndian.Uint64(p[24:]) != uint64(block):
		return 0, fmt.Errorf("volume %d block %d holds a block of another place: volume %d block %d", volume, block,
			binary.LittleEndian.Uint32(p[16:]), binary.LittleEndian.Uint64(p[24:]))
	}
	return binary.LittleEndian.Uint64(p[32:]), nil
}
