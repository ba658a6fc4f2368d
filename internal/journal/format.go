package journal

import (
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"

	"gantline/internal/record"
)

// The format, little-endian throughout. docs/formats.md has the diagrams and the recovery cases.
const (
	version = 1

	pageSize  = 4096 // alignment of everything but entries
	labelSize = pageSize
	superAt   = 2 * labelSize // on device 0, behind the label's two copies
	superSlot = 192 << 10     // bytes; bounds header + address table + gaps + meta + epoch table
	dataAt0   = superAt + 2*superSlot
	dataAtN   = 2 * labelSize // areas begin here on all other devices

	entrySize = 128

	// MaxDevices, MaxMeta, MaxPayload bound what one journal takes.
	MaxDevices = 64
	MaxMeta    = 16 << 10
	MaxPayload = 64 << 20
	maxGaps    = 64
	maxExtents = 8 * MaxDevices // of both rings; a device that joins adds three to each

	minEntries = 1024
	minData    = 256 << 10
)

const (
	labelMagic = "GANTJRNL"
	superMagic = "GANTSUPR"
	entryMagic = 0x456c7447 // "GtlE"
)

var (
	le         = binary.LittleEndian
	castagnoli = crc32.MakeTable(crc32.Castagnoli)
	zeros      [pageSize]byte
)

// ID names a journal; random.
type ID [16]byte

func (id ID) String() string { return fmt.Sprintf("%x", id[:]) }

// seed starts every checksum of a journal, so that another journal's bytes on the same disk never pass for its own.
func (id ID) seed() uint32 { return crc32.Update(0, castagnoli, id[:]) }

// label identifies one device of a journal. It is written when the device joins, twice, and never changes.
type label struct {
	id    ID
	index int
	count int   // devices of the journal once it had joined
	size  int64 // of the device, in bytes
}

// Bytes: +0 magic 8 · +8 crc u32 · +12 version u32 · +16 id 16 · +32 index u32 · +36 count u32 · +40 size u64 · zeros.
// crc covers all behind it.
func (l label) encode() []byte {
	b := make([]byte, labelSize)
	copy(b, labelMagic)
	le.PutUint32(b[12:], version)
	copy(b[16:], l.id[:])
	le.PutUint32(b[32:], uint32(l.index))
	le.PutUint32(b[36:], uint32(l.count))
	le.PutUint64(b[40:], uint64(l.size))
	le.PutUint32(b[8:], crc32.Update(0, castagnoli, b[12:]))
	return b
}

func decodeLabel(b []byte) (label, error) {
	if string(b[:8]) != labelMagic {
		return label{}, fmt.Errorf("%w: no journal label", ErrForeign)
	}
	if crc32.Update(0, castagnoli, b[12:labelSize]) != le.Uint32(b[8:]) {
		return label{}, errors.New("label checksum does not match")
	}
	if v := le.Uint32(b[12:]); v != version {
		return label{}, fmt.Errorf("%w: version %d, known is %d", ErrVersion, v, version)
	}
	l := label{index: int(le.Uint32(b[32:])), count: int(le.Uint32(b[36:])), size: int64(le.Uint64(b[40:]))}
	copy(l.id[:], b[16:32])
	if l.count < 1 || l.count > MaxDevices || l.index >= l.count || l.size < 0 {
		return label{}, errors.New("label's numbers are out of range")
	}
	return l, nil
}

// entry is one slot of the management ring.
type entry struct {
	rec     record.Record // without Data
	run     uint32        // the opening of the journal that wrote it
	durable record.Seq    // this journal's own durable mark when it was written
	pos     uint64        // where its data begins, or would: position in the data area, counted on without wrapping
	length  uint32        // bytes of data
}

// end is the position behind the entry's data.
func (e *entry) end() uint64 { return e.pos + aligned(uint64(e.length)) }

// encode writes the entry's 128 bytes to b:
//
//	+0 magic u32 · +4 crc u32 · +8 seq u64 · +16 epoch u64 · +24 incarnation u32 · +28 run u32
//	+32 op u8 · +33 flags u8 · +34 volume u16 · +36 length u32 · +40 offset u64 · +48 data position u64
//	+56 time i64 · +64 session u64 · +72 request u64 · +80 mark u64 · +88 durable u64
//	+96 data crc u32 · +100 data length u32 · +104 zeros
//
// crc covers all behind it, seeded with the journal's id.
func (e *entry) encode(b []byte, seed uint32) {
	b = b[:entrySize]
	r := &e.rec
	le.PutUint32(b, entryMagic)
	le.PutUint64(b[8:], uint64(r.Seq))
	le.PutUint64(b[16:], r.Epoch)
	le.PutUint32(b[24:], uint32(r.Incarnation))
	le.PutUint32(b[28:], e.run)
	b[32], b[33] = byte(r.Op), r.Flags
	le.PutUint16(b[34:], uint16(r.Volume))
	le.PutUint32(b[36:], r.Length)
	le.PutUint64(b[40:], r.Offset)
	le.PutUint64(b[48:], e.pos)
	le.PutUint64(b[56:], uint64(r.Time))
	le.PutUint64(b[64:], r.Session)
	le.PutUint64(b[72:], r.Request)
	le.PutUint64(b[80:], uint64(r.Mark))
	le.PutUint64(b[88:], uint64(e.durable))
	le.PutUint32(b[96:], r.CRC)
	le.PutUint32(b[100:], e.length)
	clear(b[104:])
	le.PutUint32(b[4:], crc32.Update(seed, castagnoli, b[8:]))
}

// decodeEntry reads a slot. It says nothing about whether the entry is the right one for its place.
func decodeEntry(b []byte, seed uint32) (e entry, why string) {
	b = b[:entrySize]
	if le.Uint32(b) != entryMagic {
		return e, "no entry in its slot"
	}
	if crc32.Update(seed, castagnoli, b[8:]) != le.Uint32(b[4:]) {
		return e, "entry checksum does not match"
	}
	e.rec = record.Record{
		Seq: record.Seq(le.Uint64(b[8:])), Epoch: le.Uint64(b[16:]), Incarnation: record.Incarnation(le.Uint32(b[24:])),
		Op: record.Op(b[32]), Flags: b[33], Volume: record.VolumeNumber(le.Uint16(b[34:])),
		Length: le.Uint32(b[36:]), Offset: le.Uint64(b[40:]),
		Time: int64(le.Uint64(b[56:])), Session: le.Uint64(b[64:]), Request: le.Uint64(b[72:]),
		Mark: record.Seq(le.Uint64(b[80:])), CRC: le.Uint32(b[96:]),
	}
	e.run, e.pos = le.Uint32(b[28:]), le.Uint64(b[48:])
	e.durable, e.length = record.Seq(le.Uint64(b[88:])), le.Uint32(b[100:])
	return e, ""
}

// aligned rounds n up to whole pages.
func aligned(n uint64) uint64 { return (n + pageSize - 1) &^ (pageSize - 1) }
