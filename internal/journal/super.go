package journal

import (
	"fmt"
	"hash/crc32"

	"gantline/internal/block"
	"gantline/internal/record"
)

// gap is a hole in the numbers that a begin record left behind at a receiver: after, then begin, nothing between.
type gap struct{ after, begin record.Seq }

// super is the management record of a journal: all that is not in the rings. A change makes a copy, writes it to both
// slots one after the other, each followed by a sync, and only then puts it in force.
type super struct {
	id         ID
	generation uint64 // of the copy; the higher one counts
	run        uint32 // openings of this journal; entries from runFirst on count only if this run wrote them
	runFirst   record.Seq
	trimmed    record.Seq // freed up to here
	trimmedPos uint64     // data position of the first record behind it
	durable    record.Seq // a lower bound of what is durable, at least runFirst-1
	entries    uint64     // slots of the management ring
	shift      uint64     // numbers that were skipped by gaps now trimmed: the slot of seq is seq-shift modulo entries
	tableRev   uint32     // revision of the address table; grows when devices are added
	management []extent
	data       []extent
	gaps       []gap
	meta       []byte
	table      record.Table

	// The rings by the address table, on the open devices; see rings. Not stored.
	entryRing area
	dataRing  area
}

// rings makes the rings of the address table usable.
func (s *super) rings(devs []block.Device) {
	s.entryRing, s.dataRing = newArea(devs, s.management), newArea(devs, s.data)
	s.entryRing.size = int64(s.entries) * entrySize
}

func (s *super) clone() super {
	c := *s
	c.gaps = append([]gap(nil), s.gaps...)
	c.table = s.table.Clone()
	return c // extents and meta are replaced, never changed
}

// index is the count of records up to seq, apart from a constant: neighbours in the management ring differ by one,
// whatever gap lies between their numbers. A number inside a gap has the index of the record before the gap.
func (s *super) index(seq record.Seq) uint64 {
	i := uint64(seq) - s.shift
	for _, g := range s.gaps {
		if seq > g.after {
			i -= uint64(min(seq-g.after, g.begin-g.after-1))
		}
	}
	return i
}

// following is the number of the record behind seq.
func (s *super) following(seq record.Seq) record.Seq {
	for _, g := range s.gaps {
		if seq >= g.after && seq < g.begin {
			return g.begin
		}
	}
	return seq + 1
}

// trimTo frees up to seq, whose successor's data begins at pos, and folds gaps that lie wholly below into shift.
func (s *super) trimTo(seq record.Seq, pos uint64) {
	s.trimmed, s.trimmedPos = seq, pos
	kept := s.gaps[:0]
	for _, g := range s.gaps {
		if g.begin <= seq {
			s.shift += uint64(g.begin - g.after - 1)
			continue
		}
		kept = append(kept, g)
	}
	s.gaps = kept
}

// dropGaps forgets gaps whose begin lies above last.
func (s *super) dropGaps(last record.Seq) {
	kept := s.gaps[:0]
	for _, g := range s.gaps {
		if g.begin <= last {
			kept = append(kept, g)
		}
	}
	s.gaps = kept
}

// Bytes of a superblock:
//
//	+0 magic 8 · +8 crc u32 · +12 length u32 (all of it) · +16 version u32 · +20 run u32 · +24 generation u64
//	+32 id 16 · +48 runFirst u64 · +56 trimmed u64 · +64 trimmed position u64 · +72 durable u64
//	+80 entries u64 · +88 shift u64 · +96 address table revision u32 · +100 management extents u16 · +102 data extents u16
//	+104 gaps u32 · +108 meta length u32 · +112 extents, each {device u32, 0 u32, offset u64, length u64}
//	gaps, each {after u64, begin u64} · meta · epoch table
//
// crc covers all behind it up to length.
const (
	superHead  = 112
	extentSize = 24
	gapSize    = 16
)

func (s *super) encode() []byte {
	b := make([]byte, superHead, 8192)
	copy(b, superMagic)
	le.PutUint32(b[16:], version)
	le.PutUint32(b[20:], s.run)
	le.PutUint64(b[24:], s.generation)
	copy(b[32:], s.id[:])
	le.PutUint64(b[48:], uint64(s.runFirst))
	le.PutUint64(b[56:], uint64(s.trimmed))
	le.PutUint64(b[64:], s.trimmedPos)
	le.PutUint64(b[72:], uint64(s.durable))
	le.PutUint64(b[80:], s.entries)
	le.PutUint64(b[88:], s.shift)
	le.PutUint32(b[96:], s.tableRev)
	le.PutUint16(b[100:], uint16(len(s.management)))
	le.PutUint16(b[102:], uint16(len(s.data)))
	le.PutUint32(b[104:], uint32(len(s.gaps)))
	le.PutUint32(b[108:], uint32(len(s.meta)))
	for _, list := range [][]extent{s.management, s.data} {
		for _, e := range list {
			b = le.AppendUint32(b, uint32(e.device))
			b = le.AppendUint32(b, 0)
			b = le.AppendUint64(b, uint64(e.off))
			b = le.AppendUint64(b, uint64(e.length))
		}
	}
	for _, g := range s.gaps {
		b = le.AppendUint64(b, uint64(g.after))
		b = le.AppendUint64(b, uint64(g.begin))
	}
	b = append(b, s.meta...)
	b = record.AppendTable(b, s.table)
	if len(b) > superSlot {
		panic(fmt.Sprintf("journal: superblock of %d bytes", len(b))) // the limits of its parts add up to less
	}
	le.PutUint32(b[12:], uint32(len(b)))
	le.PutUint32(b[8:], crc32.Update(0, castagnoli, b[12:]))
	return b
}

// decodeSuper reads a slot. The checksum is tested before any number in it is used.
func decodeSuper(b []byte) (*super, error) {
	if string(b[:8]) != superMagic {
		return nil, fmt.Errorf("no superblock")
	}
	n := int(le.Uint32(b[12:]))
	if n < superHead || n > len(b) {
		return nil, fmt.Errorf("superblock length %d is out of range", n)
	}
	b = b[:n]
	if crc32.Update(0, castagnoli, b[12:]) != le.Uint32(b[8:]) {
		return nil, fmt.Errorf("superblock checksum does not match")
	}
	if v := le.Uint32(b[16:]); v != version {
		return nil, fmt.Errorf("%w: superblock version %d, known is %d", ErrVersion, v, version)
	}
	s := &super{
		run: le.Uint32(b[20:]), generation: le.Uint64(b[24:]), runFirst: record.Seq(le.Uint64(b[48:])),
		trimmed: record.Seq(le.Uint64(b[56:])), trimmedPos: le.Uint64(b[64:]), durable: record.Seq(le.Uint64(b[72:])),
		entries: le.Uint64(b[80:]), shift: le.Uint64(b[88:]), tableRev: le.Uint32(b[96:]),
	}
	copy(s.id[:], b[32:48])
	nm, nd := int(le.Uint16(b[100:])), int(le.Uint16(b[102:]))
	ng, nb := int(le.Uint32(b[104:])), int(le.Uint32(b[108:]))
	if nm == 0 || nd == 0 || nm+nd > maxExtents || ng > maxGaps || nb > MaxMeta ||
		superHead+(nm+nd)*extentSize+ng*gapSize+nb > n {
		return nil, fmt.Errorf("superblock's counts are out of range")
	}
	at := b[superHead:]
	list := make([]extent, nm+nd)
	for i := range list {
		list[i] = extent{device: int(le.Uint32(at)), off: int64(le.Uint64(at[8:])), length: int64(le.Uint64(at[16:]))}
		at = at[extentSize:]
	}
	s.management, s.data = list[:nm:nm], list[nm:]
	for range ng {
		s.gaps = append(s.gaps, gap{record.Seq(le.Uint64(at)), record.Seq(le.Uint64(at[8:]))})
		at = at[gapSize:]
	}
	s.meta = append([]byte(nil), at[:nb]...)
	table, _, err := record.DecodeTable(at[nb:])
	if err != nil {
		return nil, err
	}
	s.table = table
	return s, s.check()
}

// check tests what the code relies on, so that a wrong number ends in an error and not in a wrong address.
func (s *super) check() error {
	switch {
	case s.generation == 0 || s.run == 0 || s.runFirst == 0:
		return fmt.Errorf("superblock has never been completed")
	case s.trimmed > s.durable || s.durable+1 < s.runFirst || s.durable > record.MaxSeq:
		return fmt.Errorf("superblock cursors contradict each other: trimmed %d, durable %d, run begins at %d",
			s.trimmed, s.durable, s.runFirst)
	case uint64(s.trimmed) < s.shift:
		return fmt.Errorf("superblock slot shift %d lies above trimmed %d", s.shift, s.trimmed)
	}
	var mgmt int64
	for i, list := range [][]extent{s.management, s.data} {
		for _, e := range list {
			unit := [2]int64{entrySize, pageSize}[i] // a device that joined may have split the ring of entries anywhere
			if e.device >= MaxDevices || e.off < dataAtN || e.length <= 0 || e.off%unit != 0 || e.length%unit != 0 ||
				e.off > 1<<60 || e.length > 1<<60 {
				return fmt.Errorf("address table has an extent out of range")
			}
			if i == 0 {
				mgmt += e.length
			}
		}
	}
	if s.entries == 0 || s.entries > uint64(mgmt/entrySize) {
		return fmt.Errorf("management area of %d bytes cannot have %d entries", mgmt, s.entries)
	}
	last := s.trimmed
	for _, g := range s.gaps {
		if g.begin <= g.after+1 || g.begin <= last || g.begin > record.MaxSeq {
			return fmt.Errorf("gap %d to %d is out of order", g.after, g.begin)
		}
		last = g.begin
	}
	return nil
}
