package wire

import (
	"encoding/binary"
	"fmt"
	"net"
	"sync"

	"github.com/klauspost/compress/s2"
	"github.com/klauspost/compress/zstd"

	"gantline/internal/record"
)

// Method is how a packed frame is compressed. The numbers and names travel and never change.
type Method uint8

const (
	MethodNone Method = 0
	MethodS2   Method = 1
	MethodZstd Method = 2
)

// Methods are the names of those that this side can read, as a stream's hello offers and answers them.
func Methods() []string { return []string{"s2", "zstd"} }

// MethodOf is the method of a name; MethodNone for "off" and for names that are not known here.
func MethodOf(name string) Method {
	switch name {
	case "s2":
		return MethodS2
	case "zstd":
		return MethodZstd
	}
	return MethodNone
}

// A packed frame's body is the body of a batch, compressed:
//
//	0         4         8       9      16
//	| raw len | raw crc | method| 0 …  | compressed …
const (
	packHead  = 16
	minPack   = 512      // shorter bodies are sent as they are
	sampleLen = 32 << 10 // of data that did not shrink before, so much is tried first
	minSaving = 16       // a frame is packed where that saves one byte in so many
	maxSkip   = 64       // frames that are not tried after many in a row that did not shrink
)

// One of each serves all connections: they keep no state between frames.
var (
	zstdEncoder = sync.OnceValue(func() *zstd.Encoder {
		e, err := zstd.NewWriter(nil, zstd.WithEncoderLevel(zstd.SpeedFastest), zstd.WithEncoderConcurrency(1),
			zstd.WithWindowSize(1<<20), zstd.WithEncoderCRC(false), zstd.WithLowerEncoderMem(true))
		if err != nil {
			panic("zstd encoder: " + err.Error()) // the options are constants
		}
		return e
	})
	zstdDecoder = sync.OnceValue(func() *zstd.Decoder {
		d, err := zstd.NewReader(nil, zstd.WithDecoderConcurrency(2), zstd.WithDecoderMaxMemory(MaxBatchBody),
			zstd.WithDecoderMaxWindow(8<<20), zstd.WithDecodeAllCapLimit(true), zstd.WithDecoderLowmem(true))
		if err != nil {
			panic("zstd decoder: " + err.Error())
		}
		return d
	})
	packBuffers = sync.Pool{New: func() any { return new(packBuffer) }}
)

type packBuffer struct{ raw, out []byte }

// maxPooled is the largest buffer that is kept for the next frame; a larger record is rare.
const maxPooled = 4 << 20

func (b *packBuffer) release() {
	if cap(b.raw)+cap(b.out) <= maxPooled {
		packBuffers.Put(b)
	}
}

// compress returns src compressed, in dst where that is large enough.
func (m Method) compress(dst, src []byte) []byte {
	if m == MethodZstd {
		return zstdEncoder().EncodeAll(src, dst[:0])
	}
	if n := s2.MaxEncodedLen(len(src)); cap(dst) < n {
		dst = make([]byte, n)
	}
	return s2.Encode(dst[:cap(dst)], src)
}

// Packer compresses the frames of one stream and learns where that is of no use. Not safe for concurrent use.
type Packer struct {
	misses int // tries in a row that saved too little
	skip   int // frames that are not tried
}

// Pack returns the body of a packed frame that stands for the batch body in parts, or false: send it as it is. sums are
// the parts' checksums.
func (p *Packer) Pack(m Method, parts net.Buffers, sums []uint32) ([]byte, bool) {
	size, largest := 0, []byte(nil)
	for _, b := range parts {
		size += len(b)
		if len(b) > len(largest) {
			largest = b
		}
	}
	if size < minPack {
		return nil, false
	}
	if p.skip > 0 {
		p.skip--
		return nil, false
	}
	buf := packBuffers.Get().(*packBuffer)
	defer buf.release()
	if p.misses > 0 && len(largest) > 2*sampleLen {
		from := (len(largest) - sampleLen) / 2
		if buf.out = m.compress(buf.out, largest[from:from+sampleLen]); !saves(len(buf.out), sampleLen) {
			p.missed()
			return nil, false
		}
	}
	buf.raw = buf.raw[:0]
	sum := uint32(0)
	for i, b := range parts {
		buf.raw = append(buf.raw, b...)
		sum = record.Join(sum, sums[i], len(b))
	}
	if buf.out = m.compress(buf.out, buf.raw); !saves(packHead+len(buf.out), size) {
		p.missed()
		return nil, false
	}
	p.misses = 0
	body := make([]byte, packHead, packHead+len(buf.out))
	binary.LittleEndian.PutUint32(body, uint32(size))
	binary.LittleEndian.PutUint32(body[4:], sum)
	body[8] = byte(m)
	return append(body, buf.out...), true
}

func saves(packed, raw int) bool { return packed <= raw-raw/minSaving }

// missed: the more tries in a row were of no use, the longer the next one is put off.
func (p *Packer) missed() {
	p.misses++
	p.skip = min(1<<min(p.misses, 16), maxSkip)
}

// unpackBatch reads the batch that a packed frame stands for. What it states is checked against the limits before anything
// is allocated, and nothing longer than stated is ever made.
func unpackBatch(body []byte) (Batch, error) {
	if len(body) < packHead {
		return Batch{}, fmt.Errorf("%w: packed frame of %d bytes", ErrFrame, len(body))
	}
	n, crc := int64(binary.LittleEndian.Uint32(body)), binary.LittleEndian.Uint32(body[4:])
	m, packed := Method(body[8]), body[packHead:]
	if n > MaxBatchBody {
		return Batch{}, fmt.Errorf("%w: packed frame states %d bytes, limit %d", ErrFrame, n, MaxBatchBody)
	}
	for _, b := range body[9:packHead] {
		if b != 0 {
			return Batch{}, fmt.Errorf("%w: packed frame with unknown flags", ErrFrame)
		}
	}
	raw, err := m.expand(packed, int(n))
	if err != nil {
		return Batch{}, fmt.Errorf("%w: packed frame: %v", ErrFrame, err)
	}
	if len(raw) != int(n) {
		return Batch{}, fmt.Errorf("%w: packed frame of %d bytes states %d", ErrFrame, len(raw), n)
	}
	b, sum, err := decodeBatch(raw)
	if sum != crc {
		return Batch{}, fmt.Errorf("%w: what a packed frame holds fails its checksum", ErrFrame)
	}
	return b, err
}

// expand decompresses into n bytes at most.
func (m Method) expand(packed []byte, n int) ([]byte, error) {
	switch m {
	case MethodS2:
		stated, err := s2.DecodedLen(packed)
		if err != nil || stated != n {
			return nil, fmt.Errorf("s2 block of %d bytes, %d were stated (%v)", stated, n, err)
		}
		return s2.Decode(make([]byte, n), packed)
	case MethodZstd:
		return zstdDecoder().DecodeAll(packed, make([]byte, 0, n))
	}
	return nil, fmt.Errorf("unknown method %d", uint8(m))
}
