package volume

import (
	"encoding/json"
	"fmt"
	"time"

	"gantline/internal/block"
	"gantline/internal/record"
)

// resized is the payload of the member record that says how large a volume is from there on.
type resized struct {
	Resize record.VolumeNumber `json:"resize"`
	Size   int64               `json:"size"` // bytes
}

// Extend makes a lone volume or a follower's larger: it shows more of its device, which must have the size, and zeros behind
// the old end. Hosts that are connected go on. A size that it has is no error, a smaller one is block.ErrInvalid.
func (v *Volume) Extend(size int64) error {
	m := v.member.Load()
	if m == nil {
		return v.extend(size)
	}
	m.group.mu.Lock()
	defer m.group.mu.Unlock()
	if r := m.group.Role(); r != RoleFollowing {
		return fmt.Errorf("%w: group %s is %s", ErrRole, m.group.cfg.Name, r)
	}
	return v.extend(size)
}

func (v *Volume) extend(size int64) error {
	if err := v.mayExtend(size); err != nil {
		return err
	}
	v.size.Store(size)
	return nil
}

func (v *Volume) mayExtend(size int64) error {
	switch {
	case size < v.Size():
		return fmt.Errorf("%w: volume %s has %d bytes, it cannot be made %d", block.ErrInvalid, v.name, v.Size(), size)
	case size > v.dev.Size():
		return fmt.Errorf("%w: volume %s: its device has %d bytes, not %d", block.ErrInvalid, v.name, v.dev.Size(), size)
	case v.presence.Load() != nil && size > v.Size():
		return fmt.Errorf("%w: volume %s is being filled by a move", ErrBusy, v.name)
	}
	return nil
}

// Resize makes a volume of a serving group larger, while hosts go on, by a record of the log: no write beyond the old end is
// numbered before it. The device must have the size already, and zeros behind the old end; so must those of all followers.
// The subscribers' changed maps grow with it, and nothing is marked: what is new is zeros everywhere. Repeated with the size
// that the volume has it appends the record again, which changes nothing. The record is durable on return.
func (g *Group) Resize(n record.VolumeNumber, size int64) error {
	payload, err := json.Marshal(resized{n, size})
	if err != nil {
		return err
	}
	seq, err := g.resize(n, size, payload)
	if err != nil {
		return fmt.Errorf("group %s: resizing volume %d: %w", g.cfg.Name, n, err)
	}
	return g.syncTo(seq)
}

func (g *Group) resize(n record.VolumeNumber, size int64, payload []byte) (record.Seq, error) {
	g.mu.Lock()
	defer g.mu.Unlock()
	m := g.member(n)
	if m == nil {
		return 0, ErrUnknownVolume
	}
	if err := g.mayNumber(); err != nil {
		return 0, err
	}
	if err := m.vol.mayExtend(size); err != nil {
		return 0, err
	}
	// First all that must know of a write beyond the old end. Longer maps are harmless: nothing is marked in what is new.
	for _, s := range *g.subs.Load() {
		if err := s.growMap(n, size); err != nil {
			return 0, err
		}
	}
	if g.mem != nil {
		if err := g.mem.Grow(n, size); err != nil {
			return 0, err
		}
	}
	r := record.Record{Op: record.OpMember, Volume: n, Data: payload, Length: uint32(len(payload)), CRC: record.Checksum(payload)}
	r.Time = time.Now().UnixNano()
	return g.controlLocked(r, func(record.Seq) { m.vol.size.Store(size) })
}

func (s *Subscriber) growMap(n record.VolumeNumber, size int64) error {
	b := s.volumes()[n]
	bits := (size + s.cfg.BlockSize - 1) / s.cfg.BlockSize
	if b == nil || bits <= b.marks.Bits() {
		return nil
	}
	if err := b.marks.Grow(bits); err != nil {
		return fmt.Errorf("changed map of %s: %w", s.name, err)
	}
	return nil
}

// holds stops a follower at a resize that its own volume has not been through: the next records may lie beyond its end. The
// followers' volumes grow before the primary's, so it has been given back, or was restored, smaller.
func (g *Group) holds(r *record.Record) error {
	var to resized
	if json.Unmarshal(r.Data, &to) != nil || to.Resize == 0 {
		return nil // of another kind
	}
	m := g.member(to.Resize)
	if m == nil || m.vol.Size() >= to.Size {
		return nil
	}
	return fmt.Errorf("%d: volume %s has %d bytes, the primary's has %d from there on: resize the primary's to that size again "+
		"(`gantline volume resize`), and restart this node", r.Seq, m.vol.name, m.vol.Size(), to.Size)
}
