package volume

import (
	"context"
	"fmt"
	"sync"

	"gantline/internal/block"
	"gantline/internal/record"
)

// What a group has written since a record of its log is the changed map of a subscriber that is cut off there and never
// comes back: its marks are set under the commit mutex, are durable before a checkpoint passes the records that set them, and
// are set anew from the log at a restart. So no block is unmarked that a record behind the cut has changed, on the device or
// in a cache, once that record's commit is over.
//
// The target of a move adopts such a subscriber with its log, and compares by its map what hosts have left as it was: see
// Differ.

// Remembers says whether the log knows a subscriber, be it that this process has not subscribed it yet.
func (g *Group) Remembers(name string) bool {
	g.metaMu.Lock()
	defer g.metaMu.Unlock()
	_, known := g.meta.Subs[name]
	return known
}

var sumBuffers = sync.Pool{New: func() any { b := make([]byte, DigestExtent); return &b }}

// Sums are the digests of what the image has in an extent of at most DigestExtent, 16 bytes for each DigestBlock. What hosts
// write meanwhile may be in them, in part, or not.
func (g *Group) Sums(ctx context.Context, n record.VolumeNumber, off, length int64) ([]byte, error) {
	m := g.member(n)
	if m == nil {
		return nil, fmt.Errorf("%w: %d", ErrUnknownVolume, n)
	}
	if off < 0 || length <= 0 || length > DigestExtent || off > m.vol.Size()-length {
		return nil, block.ErrRange
	}
	if err := g.Err(); err != nil {
		return nil, err
	}
	held := sumBuffers.Get().(*[]byte)
	defer sumBuffers.Put(held)
	data := (*held)[:length]
	if err := m.vol.readImage(ctx, m, data, off); err != nil {
		return nil, err
	}
	return sumBlocks(nil, data), nil
}

// Data lists what may be other than zeros in an extent of the image.
func (g *Group) Data(n record.VolumeNumber, off, length int64) ([]block.Extent, error) {
	m := g.member(n)
	if m == nil {
		return nil, fmt.Errorf("%w: %d", ErrUnknownVolume, n)
	}
	all, err := m.vol.extents(m, off, length)
	data := all[:0]
	for _, e := range all {
		if e.Type == block.ExtentData {
			data = append(data, e)
		}
	}
	return data, err
}

// Differ lists the blocks of an extent that no record has marked and whose digests differ, neighbours joined: then is what
// they were when the subscriber was cut off, now what Sums has read here before this call. It waits for whoever numbers
// records: what that read has seen of them is marked by then.
func (s *Subscriber) Differ(n record.VolumeNumber, off, length int64, then, now []byte) ([]block.Extent, error) {
	b := s.volumes()[n]
	if b == nil {
		return nil, fmt.Errorf("%w: %d at subscriber %s", ErrUnknownVolume, n, s.name)
	}
	if blocks := (length + DigestBlock - 1) / DigestBlock; int64(len(then)) != blocks*digestSize || len(then) != len(now) {
		return nil, fmt.Errorf("%w: %d and %d bytes of digests for %d blocks", ErrDigest, len(then), len(now), blocks)
	}
	found := unlike(off, length, then, now)
	if len(found) == 0 {
		return nil, nil
	}
	s.g.mu.Lock()
	defer s.g.mu.Unlock()
	if err := s.g.Err(); err != nil {
		return nil, err // what is on the device may be of a record that was not numbered
	}
	var left []block.Extent
	for _, e := range found {
		left = b.unmarked(e, s.cfg.BlockSize, left)
	}
	return left, nil
}

// unmarked appends what of an extent lies in blocks without a mark.
func (b *blocks) unmarked(e block.Extent, size int64, out []block.Extent) []block.Extent {
	for at, end := e.Offset, e.Offset+e.Length; at < end; {
		next := min((at/size+1)*size, end)
		if last := len(out) - 1; b.marks.Test(at / size) {
			// written since
		} else if last >= 0 && out[last].Offset+out[last].Length == at {
			out[last].Length += next - at
		} else {
			out = append(out, block.Extent{Offset: at, Length: next - at})
		}
		at = next
	}
	return out
}

// AllMarked says whether there is nothing to compare in an extent.
func (s *Subscriber) AllMarked(n record.VolumeNumber, off, length int64) bool {
	b := s.volumes()[n]
	if b == nil {
		return false
	}
	bit, ok := b.marks.NextClear(off / s.cfg.BlockSize)
	return !ok || bit*s.cfg.BlockSize >= off+length
}
