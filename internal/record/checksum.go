package record

import "hash/crc32"

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// Checksum is the CRC32C of a record's data; 0 for none. It uses the processor's own instruction where there is one.
func Checksum(data []byte) uint32 { return crc32.Update(0, castagnoli, data) }
