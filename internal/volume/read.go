package volume

import (
	"context"
	"fmt"
	"time"

	"gantline/internal/block"
)

// fetchPatience is how long a read waits for an absent region before it is answered with an error.
const fetchPatience = 15 * time.Second

// read answers a read or an extents request: at once where that needs no waiting, else by a worker.
func (v *Volume) read(p *period, r *block.Request) {
	m := v.member.Load()
	if m != nil {
		if err := m.group.Err(); err != nil {
			v.finish(p, r, m.group.hostError(err))
			return
		}
	}
	if r.Op == block.OpRead && v.readNow(m, r.Data, r.Offset) {
		v.finish(p, r, nil)
		return
	}
	v.workers.add(job{p: p, r: r})
}

// readNow fills p with what hosts are shown, if that needs neither a disk nor a fetch.
//
// The pins are taken before the device is read: what leaves the cache in between is then still overlaid. An overlay
// that is older than what the device got meanwhile belongs to a write that this read runs beside.
func (v *Volume) readNow(m *member, p []byte, off int64) bool {
	var few [8]segment
	pins := few[:0]
	end := off + int64(len(p))
	if m != nil {
		pins = m.cache.pin(pins, off, end)
		if !covered(pins, off, end) && (m.blind.Load() || v.firstAbsent(pins, off, end) >= 0) {
			return false
		}
	}
	if !covered(pins, off, end) && !v.dev.ReadNowait(p, off) {
		return false
	}
	overlay(p, off, pins)
	m.overlayPreview(p, off)
	return true
}

// readShown is readImage as hosts are shown it: with the preview.
func (v *Volume) readShown(ctx context.Context, m *member, p []byte, off int64) error {
	if err := v.readImage(ctx, m, p, off); err != nil {
		return err
	}
	m.overlayPreview(p, off)
	return nil
}

// ReadApplied reads the image of a follower as it is applied, whatever readers are shown besides.
func (v *Volume) ReadApplied(ctx context.Context, p []byte, off int64) error {
	if off < 0 || off > v.Size()-int64(len(p)) {
		return block.ErrRange
	}
	return v.readImage(ctx, v.member.Load(), p, off)
}

// readImage fills p from the image itself, waiting for the disk and for absent regions.
func (v *Volume) readImage(ctx context.Context, m *member, p []byte, off int64) error {
	end := off + int64(len(p))
	for {
		var pins []segment
		if m != nil {
			pins = m.cache.pin(nil, off, end)
		}
		if !covered(pins, off, end) {
			if m != nil && m.blind.Load() {
				return fmt.Errorf("%w: %w", block.ErrIO, ErrSourceAway)
			}
			if region := v.firstAbsent(pins, off, end); region >= 0 {
				if err := v.presence.Load().wait(ctx, region); err != nil {
					return err
				}
				continue // pinned anew: what was written meanwhile is newer than what has been fetched
			}
			if _, err := v.dev.ReadAt(p, off); err != nil {
				return fmt.Errorf("%w: reading volume %s: %w", block.ErrIO, v.name, err)
			}
		}
		overlay(p, off, pins)
		return nil
	}
}

// covered says whether pins leave nothing of [off, end) to the device.
func covered(pins []segment, off, end int64) bool {
	for i := range pins {
		if pins[i].off != off {
			return false
		}
		off = pins[i].end
	}
	return off == end
}

func overlay(p []byte, off int64, pins []segment) {
	for i := range pins {
		part := p[pins[i].off-off : pins[i].end-off]
		if pins[i].kind == kindData {
			copy(part, pins[i].data)
		} else {
			clear(part)
		}
	}
}

// firstAbsent finds the first region that the device must be read of and that is not there; -1: none.
func (v *Volume) firstAbsent(pins []segment, off, end int64) int64 {
	p := v.presence.Load()
	if p == nil {
		return -1
	}
	for region := off / p.region; region*p.region < end; region++ {
		if p.has(region) {
			continue
		}
		if !pinnedAll(pins, max(off, region*p.region), min(end, (region+1)*p.region)) {
			return region
		}
	}
	return -1
}

func pinnedAll(pins []segment, off, end int64) bool {
	for i := range pins {
		if pins[i].off <= off && pins[i].end > off {
			off = pins[i].end
		}
	}
	return off >= end
}

// readWaiting is a worker's part of read.
func (v *Volume) readWaiting(r *block.Request) error {
	ctx, cancel := context.WithTimeout(context.Background(), fetchPatience)
	defer cancel()
	m := v.member.Load()
	if r.Op == block.OpRead {
		return v.readShown(ctx, m, r.Data, r.Offset)
	}
	ext, err := v.extents(m, r.Offset, r.Length)
	if r.Flags&block.FlagOne != 0 && len(ext) > 1 {
		ext = ext[:1]
	}
	r.Extents = ext
	return err
}

// extents of the image: the device's, overlaid by the cache; absent regions count as data. The device is asked last: what it has
// not got when it answers is pinned or absent by then, whatever arrives there meanwhile.
func (v *Volume) extents(m *member, off, n int64) ([]block.Extent, error) {
	var pins []segment
	if m != nil {
		if m.blind.Load() {
			return nil, fmt.Errorf("%w: %w", block.ErrIO, ErrSourceAway)
		}
		pins = m.cache.pin(nil, off, off+n)
	}
	var absent []block.Extent
	if p := v.presence.Load(); p != nil {
		absent = p.absentExtents(off, off+n)
	}
	ext, err := v.dev.Extents(off, n)
	if err != nil {
		return nil, fmt.Errorf("%w: extents of volume %s: %w", block.ErrIO, v.name, err)
	}
	ext = overlayExtents(overlayExtents(ext, absent), extentsOf(pins))
	if top := m.previewed(); top != nil {
		ext = overlayExtents(ext, extentsOf(top.pin(nil, off, off+n)))
	}
	return ext, nil
}

func extentsOf(pins []segment) []block.Extent {
	over := make([]block.Extent, 0, len(pins))
	for i := range pins {
		over = append(over, block.Extent{Offset: pins[i].off, Length: pins[i].end - pins[i].off, Type: pins[i].kind.extent()})
	}
	return over
}

func (k kind) extent() block.ExtentType {
	switch k {
	case kindZero:
		return block.ExtentZero
	case kindTrim:
		return block.ExtentHole
	}
	return block.ExtentData
}

// overlayExtents lays over, ordered and disjoint, on base, which covers all, and merges neighbours of one type.
func overlayExtents(base, over []block.Extent) []block.Extent {
	out := make([]block.Extent, 0, len(base)+2*len(over))
	add := func(off, end int64, t block.ExtentType) {
		if end <= off {
			return
		}
		if n := len(out); n > 0 && out[n-1].Type == t {
			out[n-1].Length += end - off
			return
		}
		out = append(out, block.Extent{Offset: off, Length: end - off, Type: t})
	}
	i := 0
	for _, b := range base {
		at, end := b.Offset, b.Offset+b.Length
		for i < len(over) && over[i].Offset < end {
			o := over[i]
			add(at, o.Offset, b.Type)
			at = max(at, o.Offset)
			add(at, min(end, o.Offset+o.Length), o.Type)
			at = max(at, min(end, o.Offset+o.Length))
			if o.Offset+o.Length > end {
				break // goes on in the next base extent
			}
			i++
		}
		add(at, end, b.Type)
	}
	return out
}
