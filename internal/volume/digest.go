package volume

import (
	"context"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"time"

	"gantline/internal/block"
	"gantline/internal/record"
)

const (
	// DigestBlock is what one digest stands for, bytes: differences are told to this precision.
	DigestBlock = 64 << 10
	// DigestExtent is the most that one digest record covers, bytes.
	DigestExtent = 1 << 20

	digestHead = 24
	digestSize = 16 // of SHA-256: the first half
)

// digestRecord is the payload of a digest record: what an extent holds at the record's sequence.
//
//	+0 run u64 · +8 offset u64 · +16 length u32 · +20 block u32 · +24 one digest of 16 bytes for each block
type digestRecord struct {
	run         uint64
	off, length int64
	sums        []byte
}

func sumBlocks(sums, data []byte) []byte {
	for len(data) > 0 {
		n := min(len(data), DigestBlock)
		sum := sha256.Sum256(data[:n])
		sums, data = append(sums, sum[:digestSize]...), data[n:]
	}
	return sums
}

func (d *digestRecord) encode() []byte {
	le := binary.LittleEndian
	b := le.AppendUint64(make([]byte, 0, digestHead+len(d.sums)), d.run)
	b = le.AppendUint64(b, uint64(d.off))
	b = le.AppendUint32(b, uint32(d.length))
	return append(le.AppendUint32(b, DigestBlock), d.sums...)
}

func decodeDigest(b []byte) (digestRecord, error) {
	if len(b) < digestHead {
		return digestRecord{}, fmt.Errorf("%w: %d bytes", ErrDigest, len(b))
	}
	le := binary.LittleEndian
	d := digestRecord{run: le.Uint64(b), off: int64(le.Uint64(b[8:])), length: int64(le.Uint32(b[16:])), sums: b[digestHead:]}
	blocks := (d.length + DigestBlock - 1) / DigestBlock
	if size := le.Uint32(b[20:]); size != DigestBlock || d.off < 0 || d.length <= 0 || d.length > DigestExtent ||
		int64(len(d.sums)) != blocks*digestSize {
		return digestRecord{}, fmt.Errorf("%w: %d bytes from %d on in blocks of %d, %d bytes of digests", ErrDigest, d.length, d.off, size, len(d.sums))
	}
	return d, nil
}

// ErrDigest: a digest record that no primary of this version has written.
var ErrDigest = errors.New("digest record is not readable")

// Digests puts digests of what the volumes hold into the log, for the subscriber to compare. Not for concurrent use.
type Digests struct {
	s     *Subscriber
	run   uint64
	hosts calm
	data  []byte
}

// Digested is an extent whose digests stand in the record Seq.
type Digested struct {
	Seq         record.Seq
	Volume      record.VolumeNumber
	Off, Length int64
}

// NewDigests begins a run; its number tells its records from those of others.
func (s *Subscriber) NewDigests(run uint64) *Digests {
	return &Digests{s: s, run: run, data: make([]byte, DigestExtent)}
}

// Run is the number of the run.
func (d *Digests) Run() uint64 { return d.run }

const (
	digestAttempts = 3                     // reads of an extent that hosts write, before it goes block by block
	digestRest     = 3                     // while hosts are at work: times as long as the last extent took
	maxDigestRest  = 50 * time.Millisecond // a disk that stalls does not stop the run
)

// Add digests one extent of at most DigestExtent: exactly the bytes at the record's sequence, since no write to it is
// numbered between their reading and the record. An extent that hosts keep writing goes in smaller ones. It stands back
// while hosts are at work. ErrBusy: the subscriber lacks some of it (marked blocks); ErrSuspended: it may lack more,
// suspended or in a step.
func (d *Digests) Add(ctx context.Context, n record.VolumeNumber, off, length int64) ([]Digested, error) {
	m := d.s.g.member(n)
	if m == nil {
		return nil, fmt.Errorf("%w: %d", ErrUnknownVolume, n)
	}
	if off < 0 || length <= 0 || length > DigestExtent || off+length > m.vol.Size() {
		return nil, block.ErrRange
	}
	start := time.Now()
	out, err := d.add(ctx, m, off, length)
	if err == nil && d.hosts.busy(d.s.g.HostOps()) {
		select {
		case <-time.After(min(digestRest*time.Since(start), maxDigestRest)):
		case <-ctx.Done():
			return nil, context.Cause(ctx)
		}
	}
	return out, err
}

func (d *Digests) add(ctx context.Context, m *member, off, length int64) ([]Digested, error) {
	attempts := digestAttempts
	if length <= DigestBlock {
		attempts = copyAttempts
	}
	rec := digestRecord{run: d.run, off: off, length: length}
	data := d.data[:length]
	done := Digested{Volume: m.number, Off: off, Length: length}
	read := func() error {
		err := m.vol.readImage(ctx, m, data, off)
		rec.sums = sumBlocks(rec.sums[:0], data)
		return err
	}
	number := func() (err error) {
		done.Seq, err = d.s.numberDigest(m.number, &rec)
		return err
	}
	err := d.s.g.atRest(m, off, length, attempts, read, number)
	switch {
	case errors.Is(err, errHit) && length > DigestBlock:
		var all []Digested
		for end := off + length; off < end; off += DigestBlock {
			some, err := d.add(ctx, m, off, min(DigestBlock, end-off))
			if err != nil {
				return nil, err
			}
			all = append(all, some...)
		}
		return all, nil
	case errors.Is(err, errHit):
		err = d.s.copyHeld(m, off, data, func() error {
			rec.sums = sumBlocks(rec.sums[:0], data)
			return number()
		})
	}
	if err != nil {
		return nil, err
	}
	return []Digested{done}, nil
}

// numberDigest appends the record, under the commit mutex.
func (s *Subscriber) numberDigest(n record.VolumeNumber, d *digestRecord) (record.Seq, error) {
	if s.State() != SubStreaming {
		return 0, ErrSuspended
	}
	if b := s.volumes()[n]; b == nil || b.marksIn(d.off/s.cfg.BlockSize, (d.off+d.length-1)/s.cfg.BlockSize) {
		return 0, fmt.Errorf("%w: volume %d is still being copied to %s", ErrBusy, n, s.name)
	}
	payload := d.encode()
	return s.g.controlLocked(record.Record{Op: record.OpDigest, Volume: n, Time: time.Now().UnixNano(),
		Data: payload, Length: uint32(len(payload)), CRC: record.Checksum(payload)}, nil)
}

func (b *blocks) marksIn(first, last int64) bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	bit, ok := b.marks.NextSet(first)
	return ok && bit <= last
}

// Compared is what a follower found at a digest record.
type Compared struct {
	Run       uint64
	Seq       record.Seq
	Volume    record.VolumeNumber
	Different []block.Extent // neighbours joined
}

// Compare reads what a digest record covers and says what differs. Only for OnRecord: there the image is exactly the
// records up to this one.
func (g *Group) Compare(ctx context.Context, r *record.Record) (Compared, error) {
	d, err := decodeDigest(r.Data)
	if err != nil {
		return Compared{}, err
	}
	c := Compared{Run: d.run, Seq: r.Seq, Volume: r.Volume}
	m := g.member(r.Volume)
	if m == nil {
		return c, fmt.Errorf("%w: %d", ErrUnknownVolume, r.Volume)
	}
	if d.off+d.length > m.vol.Size() {
		return c, fmt.Errorf("%w: it lies outside volume %s", ErrDigest, m.vol.name)
	}
	data := make([]byte, d.length)
	if err := m.vol.readImage(ctx, m, data, d.off); err != nil {
		return c, err
	}
	c.Different = unlike(d.off, d.length, d.sums, sumBlocks(nil, data))
	return c, nil
}

// unlike lists the blocks of an extent whose digests differ, neighbours joined.
func unlike(off, length int64, one, other []byte) (different []block.Extent) {
	for i := 0; i*digestSize < len(other); i++ {
		if [digestSize]byte(one[i*digestSize:]) == [digestSize]byte(other[i*digestSize:]) {
			continue
		}
		from := off + int64(i)*DigestBlock
		to := min(from+DigestBlock, off+length)
		if n := len(different); n > 0 && different[n-1].Offset+different[n-1].Length == from {
			different[n-1].Length += to - from
			continue
		}
		different = append(different, block.Extent{Offset: from, Length: to - from})
	}
	return different
}

// Lacks marks extents that a digest has shown to differ, durably, and takes the subscriber out of the stream, so that
// the next step brings them.
func (s *Subscriber) Lacks(reason string, extents []Digested) error {
	s.g.mu.Lock()
	defer s.g.mu.Unlock()
	if s.State() != SubSuspended {
		s.cutOff(reason)
	}
	for _, e := range extents {
		s.markExtent(record.OpCopy, e.Volume, e.Off, e.Length)
	}
	if err := s.flushMaps(); err != nil {
		return fmt.Errorf("subscriber %s: %w", s.name, err)
	}
	return s.g.saveMeta(func(*meta) {})
}
