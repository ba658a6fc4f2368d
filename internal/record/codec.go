package record

import (
	"encoding/binary"
	"fmt"
)

// Bytes of an encoded table, little-endian:
//
//	+0 rows u32, then for each row:
//	+0 epoch u64 · +8 first u64 · +16 last u64 · +24 incarnation u32 · +28 closed u8 · +29 name length u8 · +30 name
const (
	rowHead = 30
	// MaxTableBytes is the longest encoding of a valid table.
	MaxTableBytes = 4 + MaxRows*(rowHead+MaxNodeName)
)

// AppendTable appends the table's bytes to b. The table must be valid.
func AppendTable(b []byte, t Table) []byte {
	le := binary.LittleEndian
	b = le.AppendUint32(b, uint32(len(t)))
	for _, r := range t {
		b = le.AppendUint64(b, r.Epoch)
		b = le.AppendUint64(b, uint64(r.First))
		b = le.AppendUint64(b, uint64(r.Last))
		b = le.AppendUint32(b, uint32(r.Incarnation))
		closed := byte(0)
		if r.Closed {
			closed = 1
		}
		b = append(b, closed, byte(len(r.Node)))
		b = append(b, r.Node...)
	}
	return b
}

// DecodeTable reads a table from the front of b, checks it, and returns what follows.
func DecodeTable(b []byte) (Table, []byte, error) {
	le := binary.LittleEndian
	if len(b) < 4 {
		return nil, nil, fmt.Errorf("%w: %d bytes are too few", ErrTable, len(b))
	}
	n := int(le.Uint32(b))
	b = b[4:]
	if n > MaxRows || n*rowHead > len(b) {
		return nil, nil, fmt.Errorf("%w: %d rows do not fit", ErrTable, n)
	}
	t := make(Table, 0, n)
	for i := range n {
		if len(b) < rowHead || len(b) < rowHead+int(b[29]) || b[28] > 1 {
			return nil, nil, fmt.Errorf("%w: row %d is damaged", ErrTable, i)
		}
		end := rowHead + int(b[29])
		t = append(t, Row{
			Epoch: le.Uint64(b), First: Seq(le.Uint64(b[8:])), Last: Seq(le.Uint64(b[16:])),
			Incarnation: Incarnation(le.Uint32(b[24:])), Closed: b[28] == 1, Node: string(b[rowHead:end]),
		})
		b = b[end:]
	}
	return t, b, t.Validate()
}
