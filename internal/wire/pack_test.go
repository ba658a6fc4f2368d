package wire

import (
	"bytes"
	"encoding/binary"
	"errors"
	"math/rand/v2"
	"net"
	"runtime"
	"testing"

	"github.com/klauspost/compress/s2"

	"gantline/internal/record"
)

func randomBytes(n int) []byte {
	b := make([]byte, n)
	r := rand.NewChaCha8([32]byte{1})
	r.Read(b)
	return b
}

func textBytes(n int) []byte { return bytes.Repeat([]byte("what a host writes, again. "), n/27+1)[:n] }

// TestPackAndUnpack: what comes back is what was packed, whatever its parts, and it has become smaller.
func TestPackAndUnpack(t *testing.T) {
	for _, m := range []Method{MethodS2, MethodZstd} {
		var p Packer
		for _, parts := range []net.Buffers{{textBytes(600)}, {randomBytes(80), textBytes(4096), textBytes(4096)},
			{textBytes(80), textBytes(8 << 20)}, {make([]byte, MaxBatchBody)}} {
			raw := bytes.Join(parts, nil)
			body, ok := p.Pack(m, parts, sumsOf(parts))
			if !ok || len(body) >= len(raw) {
				t.Fatalf("method %d: %d bytes not packed", m, len(raw))
			}
			got, err := m.expand(body[packHead:], len(raw))
			if err != nil || !bytes.Equal(got, raw) || binary.LittleEndian.Uint32(body[4:]) != record.Checksum(raw) {
				t.Fatalf("method %d: %d bytes: %v", m, len(raw), err)
			}
		}
	}
}

// TestPackLearns: data that does not shrink goes as it is and is tried ever more rarely; data that does is found again.
func TestPackLearns(t *testing.T) {
	for _, m := range []Method{MethodS2, MethodZstd} {
		var p Packer
		noise := net.Buffers{randomBytes(80), randomBytes(256 << 10)}
		tries := 0
		for range 1000 {
			before := p.misses
			if _, ok := p.Pack(m, noise, sumsOf(noise)); ok {
				t.Fatalf("method %d: noise was packed", m)
			}
			tries += p.misses - before
		}
		if tries > 30 {
			t.Errorf("method %d: tried %d of 1000 times", m, tries)
		}
		waited, text := 0, net.Buffers{textBytes(256 << 10)}
		for ok := false; !ok; waited++ {
			_, ok = p.Pack(m, text, sumsOf(text))
		}
		if waited > maxSkip+1 {
			t.Errorf("method %d: %d frames until data that shrinks was packed", m, waited)
		}
		if _, ok := p.Pack(m, text, sumsOf(text)); !ok {
			t.Errorf("method %d: the next was not", m)
		}
	}
	var p Packer
	short := net.Buffers{textBytes(100)}
	if _, ok := p.Pack(MethodS2, short, sumsOf(short)); ok {
		t.Error("a short frame was packed")
	}
}

// packed makes a frame that states n bytes and crc.
func packed(m Method, n uint32, crc uint32, data []byte) []byte {
	b := make([]byte, packHead, packHead+len(data))
	binary.LittleEndian.PutUint32(b, n)
	binary.LittleEndian.PutUint32(b[4:], crc)
	b[8] = byte(m)
	return append(b, data...)
}

// TestBombs: a frame that would become larger than it states, or states more than is allowed, is refused, and no memory
// is taken for it.
func TestBombs(t *testing.T) {
	zeros := make([]byte, 64<<20)
	flat := make([]byte, 1000)
	sum := record.Checksum
	zs2, zz := s2.Encode(nil, zeros), zstdEncoder().EncodeAll(zeros, nil)
	z1000 := zstdEncoder().EncodeAll(flat, nil)
	frames := map[string][]byte{
		"s2 of 64 MiB that states it":          packed(MethodS2, 64<<20, sum(zeros), zs2),
		"zstd of 64 MiB that states it":        packed(MethodZstd, 64<<20, sum(zeros), zz),
		"s2 of 64 MiB that states 1000":        packed(MethodS2, 1000, sum(flat), zs2),
		"zstd of 64 MiB that states 1000":      packed(MethodZstd, 1000, sum(flat), zz),
		"zstd of many frames, 1000 stated":     packed(MethodZstd, 1000, sum(flat), bytes.Repeat(z1000, 100)),
		"s2 of 1000 that states 1 GiB":         packed(MethodS2, 1<<30, sum(flat), s2.Encode(nil, flat)),
		"zstd of 1000 that states 2000":        packed(MethodZstd, 2000, sum(flat), z1000),
		"s2 with another checksum":             packed(MethodS2, 1000, 7, s2.Encode(nil, flat)),
		"zstd with another checksum":           packed(MethodZstd, 1000, 7, z1000),
		"an unknown method":                    packed(9, 1000, sum(flat), flat),
		"nothing":                              {},
		"s2 whose block states 1 TiB":          packed(MethodS2, 1000, 0, binary.AppendUvarint(nil, 1<<40)),
		"a head without data":                  packed(MethodZstd, 1000, 0, nil),
		"a head with flags that are not known": append(packed(MethodS2, 1000, sum(flat), nil)[:15], append([]byte{1}, s2.Encode(nil, flat)...)...),
	}
	zeros = nil
	runtime.GC()
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	for what, f := range frames {
		if _, err := unpackBatch(f); !errors.Is(err, ErrFrame) {
			t.Errorf("%s: %v", what, err)
		}
	}
	runtime.ReadMemStats(&after)
	if grown := after.TotalAlloc - before.TotalAlloc; grown > 24<<20 {
		t.Errorf("%d bytes were taken for frames that are wrong", grown)
	}
}

// FuzzUnpack: whatever comes is refused, or is a batch with the stated length and checksum.
func FuzzUnpack(f *testing.F) {
	var p Packer
	data := textBytes(5000)
	parts, _ := EncodeBatch(Batch{Mark: 1, Records: []record.Record{{Seq: 1, Data: data, CRC: record.Checksum(data)}, {Seq: 2}}})
	for _, m := range []Method{MethodS2, MethodZstd} {
		body, _ := p.Pack(m, parts, sumsOf(parts))
		if _, err := unpackBatch(body); err != nil {
			f.Fatal(err)
		}
		f.Add(body)
		f.Add(body[:len(body)/2])
	}
	f.Add(packed(MethodZstd, MaxBatchBody, 0, []byte{0x28, 0xb5, 0x2f, 0xfd}))
	f.Fuzz(func(t *testing.T, body []byte) {
		b, err := unpackBatch(body)
		if err != nil {
			if !errors.Is(err, ErrFrame) {
				t.Fatal(err)
			}
			return
		}
		parts, err := EncodeBatch(b)
		if err != nil {
			t.Fatalf("decoded, but not encoded: %v", err)
		}
		if n := len(bytes.Join(parts, nil)); n != int(binary.LittleEndian.Uint32(body)) {
			t.Fatalf("%d bytes accepted that are not what was stated", n)
		}
	})
}

func sumsOf(parts net.Buffers) (sums []uint32) {
	for _, b := range parts {
		sums = append(sums, record.Checksum(b))
	}
	return sums
}

func BenchmarkPack(b *testing.B) {
	for _, c := range []struct {
		name string
		m    Method
		data []byte
	}{{"s2-noise", MethodS2, randomBytes(128 << 10)}, {"zstd-noise", MethodZstd, randomBytes(128 << 10)},
		{"s2-text", MethodS2, textBytes(128 << 10)}, {"zstd-text", MethodZstd, textBytes(128 << 10)}} {
		b.Run(c.name, func(b *testing.B) {
			b.SetBytes(int64(len(c.data)))
			var p Packer
			parts := net.Buffers{c.data[:80]}
			for i := 80; i < len(c.data); i += 4096 {
				parts = append(parts, c.data[i:min(i+4096, len(c.data))])
			}
			sums := sumsOf(parts)
			for b.Loop() {
				p.Pack(c.m, parts, sums)
			}
		})
	}
}
