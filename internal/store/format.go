package store

import (
	"encoding/binary"
	"fmt"
	"hash/crc32"
)

const entryHeader = 12 // revision, crc

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

func checksum(key string, revision uint64, value []byte) uint32 {
	var rev [8]byte
	binary.BigEndian.PutUint64(rev[:], revision)
	c := crc32.Checksum([]byte(key), castagnoli)
	c = crc32.Update(c, castagnoli, rev[:])
	return crc32.Update(c, castagnoli, value)
}

func encode(key string, revision uint64, value []byte) []byte {
	b := make([]byte, entryHeader, entryHeader+len(value))
	binary.BigEndian.PutUint64(b, revision)
	binary.BigEndian.PutUint32(b[8:], checksum(key, revision, value))
	return append(b, value...)
}

// decode returns a value that aliases b.
func decode(key string, b []byte) (revision uint64, value []byte, err error) {
	if len(b) < entryHeader {
		return 0, nil, fmt.Errorf("entry %q has %d bytes, fewer than its header", key, len(b))
	}
	revision, value = binary.BigEndian.Uint64(b), b[entryHeader:]
	if checksum(key, revision, value) != binary.BigEndian.Uint32(b[8:]) {
		return 0, nil, fmt.Errorf("entry %q has a bad checksum", key)
	}
	return revision, value, nil
}
