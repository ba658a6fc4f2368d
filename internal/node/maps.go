package node

import (
	"errors"
	"fmt"
	"path/filepath"

	"gantline/internal/block"
	"gantline/internal/control"
)

const (
	// markSize is what one bit of a changed map stands for, in bytes.
	markSize = 64 << 10
	// regionSize is what one bit of a present map stands for, in bytes: the unit of a move's fetches.
	regionSize = 64 << 10
)

func bitsFor(size, unit int64) int64 { return (size + unit - 1) / unit }

func (n *Node) changedPath(group string, number uint16) string {
	return filepath.Join(n.cfg.DataDir, "maps", fmt.Sprintf("%s.%d.changed", group, number))
}

func (n *Node) presentPath(move string, number uint16) string {
	return filepath.Join(n.cfg.DataDir, "maps", fmt.Sprintf("%s.%d.present", move, number))
}

// createMap makes a bitmap of clear bits, in place of one that an earlier try has left.
func (n *Node) createMap(path string, bits int64) error {
	if err := n.removeMap(path); err != nil {
		return err
	}
	dev, err := n.cfg.Devices.Create(path, block.BitmapSize(bits))
	if err != nil {
		return err
	}
	_, err = block.CreateBitmap(dev, bits, 1)
	return errors.Join(err, dev.Close())
}

func (n *Node) removeMap(path string) error {
	if exists, err := n.cfg.Devices.Exists(path); err != nil || !exists {
		return err
	}
	return n.cfg.Devices.Remove(path)
}

// openMap opens a bitmap. A page of which both copies are bad is what the caller's lost says: an error, or all marked.
func (n *Node) openMap(path string, lost func(m *block.Bitmap, l block.PageLoss) error) (*block.Bitmap, block.Device, error) {
	dev, err := n.cfg.Devices.Open(path)
	if err != nil {
		return nil, nil, err
	}
	m, losses, err := block.OpenBitmap(dev)
	if err != nil {
		return nil, nil, errors.Join(fmt.Errorf("map %s: %w", path, err), dev.Close())
	}
	for _, r := range m.Repairs() {
		n.log.Warn("map repaired", "map", path, "cause", r.String())
	}
	for _, l := range losses {
		n.log.Error("map page lost", "map", path, "cause", l.String())
		if err := lost(m, l); err != nil {
			return nil, nil, errors.Join(err, dev.Close())
		}
	}
	return m, dev, nil
}

func (n *Node) openChangedMap(group string, number uint16, bits int64) (*block.Bitmap, block.Device, error) {
	return n.openMarks(n.changedPath(group, number), bits)
}

// openMarks opens a changed map or an intent map, and makes it as long as it has to be. A lost page counts as all marked: more is copied than needed, nothing is
// forgotten.
func (n *Node) openMarks(path string, bits int64) (*block.Bitmap, block.Device, error) {
	m, dev, err := n.openMap(path, func(m *block.Bitmap, l block.PageLoss) error {
		m.SetRange(l.First, l.Bits)
		return m.Flush()
	})
	if err == nil && m.Bits() < bits { // the volume has grown since
		if err := m.Grow(bits); err != nil {
			return nil, nil, errors.Join(fmt.Errorf("map %s: %w", path, err), dev.Close())
		}
	}
	if !errors.Is(err, block.ErrNoBitmap) {
		return m, dev, err
	}
	n.log.Error("map lost, all counts as marked", "map", path, "cause", err)
	if err := n.createMap(path, bits); err != nil {
		return nil, nil, err
	}
	m, dev, err = n.openMap(path, func(*block.Bitmap, block.PageLoss) error { return block.ErrNoBitmap })
	if err != nil {
		return nil, nil, err
	}
	m.SetAll()
	return m, dev, m.Flush()
}

// openPresentMap: a lost page stops the move: whether a region is here decides whether it may be overwritten.
func (n *Node) openPresentMap(move string, number uint16) (*block.Bitmap, block.Device, error) {
	path := n.presentPath(move, number)
	return n.openMap(path, func(_ *block.Bitmap, l block.PageLoss) error {
		return fmt.Errorf("present map %s is damaged in both copies (%s): the move cannot go on", path, l)
	})
}

// makeMoveMaps makes the two maps of a moved volume at the target: what is present, nothing, and what has been written since the cut.
func (n *Node) makeMoveMaps(move string, mv control.MovedVolume) error {
	return errors.Join(n.createMap(n.presentPath(move, mv.Number), bitsFor(mv.Size, regionSize)),
		n.createMap(n.writtenPath(move, mv.Number), bitsFor(mv.Size, markSize)))
}

func (n *Node) makeChangedMaps(group string, rec *groupRecord) error {
	for _, m := range rec.Members {
		v := n.volume(m.Volume)
		if v == nil {
			return notFound("volume %s/%s does not exist", n.cfg.Name, m.Volume)
		}
		if err := n.createMap(n.changedPath(group, m.Number), bitsFor(v.vol.Size(), markSize)); err != nil {
			return err
		}
	}
	return nil
}

// dataBytes counts what is not a hole or zeros.
func dataBytes(dev block.Device) (int64, error) {
	ext, err := dev.Extents(0, dev.Size())
	if err != nil {
		return 0, err
	}
	var sum int64
	for _, e := range ext {
		if e.Type == block.ExtentData {
			sum += e.Length
		}
	}
	return sum, nil
}
