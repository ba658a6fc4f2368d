package node

import (
	"fmt"
	"path/filepath"

	"gantline/internal/control"
	"gantline/internal/record"
	"gantline/internal/volume"
)

// The target of a move keeps a map of what is written to each volume behind the cut, from the cut until the move is committed.

// cutName is what the target's log calls the subscriber that nobody feeds: it was cut off at the cut of the move, and its map has what
// has been written since.
const cutName = "cut"

func (n *Node) writtenPath(move string, number uint16) string {
	return filepath.Join(n.cfg.DataDir, "maps", fmt.Sprintf("%s.%d.written", move, number))
}

// openWritten opens the map of what has been written to a volume since the cut. Nothing is open where there is none, as in a
// move that was begun without.
func (o *targetOps) openWritten(d *targetDisk) error {
	path := o.n.writtenPath(o.spec.ID, d.mv.Number)
	if exists, err := o.n.cfg.Devices.Exists(path); err != nil || !exists {
		return err
	}
	var err error
	d.written, d.writtenDev, err = o.n.openMarks(path, bitsFor(d.mv.Size, markSize))
	return err
}

// written are the maps of all volumes of a move; nil: they are not all here.
func (o *targetOps) written() map[record.VolumeNumber]volume.Bitmap {
	all := map[record.VolumeNumber]volume.Bitmap{}
	for _, d := range o.disk {
		if d.written == nil {
			return nil
		}
		all[record.VolumeNumber(d.mv.Number)] = d.written
	}
	return all
}

// running is the move's group as it is open; nil: it is not.
func (o *targetOps) running() *volume.Group {
	if g := o.group(); g != nil {
		return g.running()
	}
	return nil
}

// heirs are the subscribers that the log here takes over with a hand-over, or begins with. It costs no write of its own.
func (o *targetOps) heirs(h *control.Handover) map[string]volume.Heritage {
	heirs := map[string]volume.Heritage{}
	if o.spec.Secondary != "" || h.Copy.Promoted != nil { // the latter: what the old primary lacks
		heirs[secondaryName] = heritageOf(&h.Copy)
	}
	if o.written() != nil {
		heirs[cutName] = volume.Heritage{Suspended: true}
	}
	return heirs
}

// subscribeCut goes on with the map of what is written since the cut of a move that has not been committed here. The log
// frees nothing before that.
func (g *group) subscribeCut() error {
	if !g.vg.Remembers(cutName) || g.vg.Subscriber(cutName) != nil {
		return nil
	}
	if maps := g.n.writtenIn(g.name); maps != nil {
		_, err := g.vg.Subscribe(cutName, volume.SubscriberConfig{Changed: maps, BlockSize: markSize, Images: true})
		return err
	}
	return g.vg.Unsubscribe(cutName) // that an ended move has left
}

// writtenIn are the maps of the move that has this node as the target of a group; nil: none has, or they are not here.
func (n *Node) writtenIn(group string) map[record.VolumeNumber]volume.Bitmap {
	n.mu.Lock()
	defer n.mu.Unlock()
	for id, m := range n.moves {
		if rec := n.state.move(id); rec != nil && m.ops != nil && runsTarget(rec) && rec.Spec.Group.Name == group {
			return m.ops.written()
		}
	}
	return nil
}
