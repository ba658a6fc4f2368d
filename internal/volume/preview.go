package volume

import (
	"fmt"

	"gantline/internal/record"
)

// preview is what lies over the volumes of a group; all of them change to it at once.
type preview map[record.VolumeNumber]*cache

// previewed is what lies over a volume; nil: nothing. m may be nil.
func (m *member) previewed() *cache {
	if m == nil {
		return nil
	}
	if p := m.group.preview.Load(); p != nil {
		return (*p)[m.number]
	}
	return nil
}

// SetPreview shows readers of a follower more than has been applied: records that are stored here and that its source,
// which is gone, may have lost. Hosts have been answered for them in synchronous mode, so who reads the image must see
// them; but should the source come back without them, they must be gone again. So they lie over the image in memory, reach
// no device, and are taken away by DropPreview before anything else is applied or cut. They follow what has been applied.
func (g *Group) SetPreview(recs []record.Record) error {
	if g.Role() != RoleFollowing {
		return fmt.Errorf("%w: group is %s", ErrRole, g.Role())
	}
	over := preview{}
	for i := range recs {
		s, ok := segmentOf(&recs[i])
		m := g.member(recs[i].Volume)
		if !ok || m == nil {
			continue
		}
		if s.off < 0 || s.end < s.off || s.end > m.vol.Size() {
			return fmt.Errorf("%d lies outside volume %s", recs[i].Seq, m.vol.name)
		}
		if over[m.number] == nil {
			over[m.number] = newCache()
		}
		over[m.number].insert(s)
	}
	g.preview.Store(&over)
	return nil
}

// DropPreview shows the applied image again.
func (g *Group) DropPreview() {
	g.preview.Store(nil)
}

// overlayPreview lays the preview, if there is one, over what has been read; m may be nil.
func (m *member) overlayPreview(p []byte, off int64) {
	if top := m.previewed(); top != nil {
		overlay(p, off, top.pin(nil, off, off+int64(len(p))))
	}
}
