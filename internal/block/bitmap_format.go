package block

import (
	"encoding/binary"
	"hash/crc32"
)

// A bitmap on a device is an array of pages, stored twice:
//
//	byte 0                          pages × 4096                     2 × pages × 4096
//	├ page 0 │ page 1 │ … │ page n-1 ┼ page 0 │ page 1 │ … │ page n-1 ┤
//	└────────── copy 0 ──────────────┴────────── copy 1 ──────────────┘
//
// One page, little-endian:
//
//	 0  magic       4  "GLBM"
//	 4  version     2  1
//	 6  reserved    2  0
//	 8  generation  8  which bitmap it belongs to: the creator's number
//	16  page        8  its number
//	24  bits        8  length of the whole bitmap, so that any page tells the layout
//	32  write       8  how often the page has been written: of two good copies the higher one is the newer
//	40  reserved   20  0
//	60  crc         4  CRC32C of the page without these four bytes
//	64  bits     4032  32256 bits, in 64-bit words, lowest bit first
//
// How one good copy is kept. A page is written to one place, that is flushed, then it is written to the other, that is
// flushed too, and only then Flush returns:
//
//	crash during            first place      second place    Open takes
//	first write             torn, old, new   old             the first if it is good and newer, else the second
//	second write            new              torn, old, new  the first; the second is written anew
//
// The first place is copy 0, unless the page's last write failed in its second half: then copy 0 is the only one known
// to be good, and the write begins with copy 1 (Bitmap.lead).
const (
	bitmapMagic   = 0x4d424c47 // "GLBM"
	bitmapVersion = 1
	bitmapPage    = 4096
	bitmapHeader  = 64
	pageWords     = (bitmapPage - bitmapHeader) / 8
	pageBits      = pageWords * 64

	// MaxBits is the longest bitmap: 256 TiB in regions of 64 KiB, half a GiB of memory.
	MaxBits = int64(1) << 32
)

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// pageHeader is what a page says of itself.
type pageHeader struct {
	generation uint64
	page       int64
	bits       int64
	write      uint64
}

// sealPage completes a page whose words stand in it.
func sealPage(p []byte, h pageHeader) {
	clear(p[:bitmapHeader])
	binary.LittleEndian.PutUint32(p[0:], bitmapMagic)
	binary.LittleEndian.PutUint16(p[4:], bitmapVersion)
	binary.LittleEndian.PutUint64(p[8:], h.generation)
	binary.LittleEndian.PutUint64(p[16:], uint64(h.page))
	binary.LittleEndian.PutUint64(p[24:], uint64(h.bits))
	binary.LittleEndian.PutUint64(p[32:], h.write)
	binary.LittleEndian.PutUint32(p[60:], pageSum(p))
}

// parsePage returns a page's header, false if the page is not whole or not one of ours.
func parsePage(p []byte) (pageHeader, bool) {
	h := pageHeader{
		generation: binary.LittleEndian.Uint64(p[8:]),
		page:       int64(binary.LittleEndian.Uint64(p[16:])),
		bits:       int64(binary.LittleEndian.Uint64(p[24:])),
		write:      binary.LittleEndian.Uint64(p[32:]),
	}
	good := binary.LittleEndian.Uint32(p[0:]) == bitmapMagic &&
		binary.LittleEndian.Uint16(p[4:]) == bitmapVersion &&
		binary.LittleEndian.Uint32(p[60:]) == pageSum(p) &&
		h.bits > 0 && h.bits <= MaxBits && h.page >= 0 && h.page < bitmapPages(h.bits)
	return h, good
}

func pageSum(p []byte) uint32 {
	return crc32.Update(crc32.Checksum(p[:60], castagnoli), castagnoli, p[bitmapHeader:bitmapPage])
}

func bitmapPages(bits int64) int64 { return (bits + pageBits - 1) / pageBits }

// BitmapSize is how many bytes a bitmap takes on its device.
func BitmapSize(bits int64) int64 { return 2 * bitmapPages(bits) * bitmapPage }
