package node

import (
	"errors"
	"fmt"
	"path/filepath"

	"gantline/internal/control"
	"gantline/internal/journal"
	"gantline/internal/queue"
	"gantline/internal/record"
	"gantline/internal/volume"
)

// queueLog is a queue as a group's volumes know it.
type queueLog struct{ *queue.Queue }

func (l queueLog) Attach(b volume.Backing) { l.Queue.Attach(b) }

func (l queueLog) Cursors() volume.Cursors {
	c := l.Queue.Cursors()
	return volume.Cursors{Trimmed: c.Trimmed, Durable: c.Durable, Appended: c.Appended}
}

func (l queueLog) Append(recs []record.Record) error { return queueError(l.Queue.Append(recs)) }

func (l queueLog) Read(from record.Seq, maxRecords, maxBytes int) ([]record.Record, error) {
	recs, err := l.Queue.Read(from, maxRecords, maxBytes)
	return recs, queueError(err)
}

func queueError(err error) error {
	switch {
	case errors.Is(err, queue.ErrFull):
		return fmt.Errorf("%w: %w", volume.ErrFull, err)
	case errors.Is(err, queue.ErrTooLarge):
		return fmt.Errorf("%w: %w", volume.ErrTooLarge, err)
	case errors.Is(err, queue.ErrTrimmed):
		return fmt.Errorf("%w: %w", volume.ErrTrimmed, err)
	}
	return err
}

// onQueue says that the group's log on this node is a queue: at the primary, where the group was made so, or one
// that was superseded, and at the target of its move.
func (rec *groupRecord) onQueue() bool {
	switch rec.Role {
	case control.RolePrimary, control.RoleSuperseded, control.RoleTarget:
		return rec.Spec.Group.Log == control.LogQueue
	}
	return false
}

// queueShare bounds a queue's memory, in bytes. Such a group has no cache of what is not on its devices, and no records in
// memory beside the queue's: it gets the shares of both.
func (n *Node) queueShare() int64 { return 2 * n.cacheShare() }

func (n *Node) queuePath(group string) string {
	return filepath.Join(n.cfg.DataDir, "maps", group+".queue")
}

func (n *Node) intentPath(group string, number uint16) string {
	return filepath.Join(n.cfg.DataDir, "maps", fmt.Sprintf("%s.%d.intent", group, number))
}

// createQueue makes the state of a group that is new here, in place of one that an earlier try has left.
func (n *Node) createQueue(group string) error {
	if err := n.removeMap(n.queuePath(group)); err != nil {
		return err
	}
	dev, err := n.cfg.Devices.Create(n.queuePath(group), queue.StateSize)
	if err != nil {
		return err
	}
	return errors.Join(queue.Create(dev), dev.Close())
}

// openQueue opens the group's queue with the intent maps of its members.
func (g *group) openQueue(rec *groupRecord) error {
	dev, err := g.n.cfg.Devices.Open(g.n.queuePath(g.name))
	if err != nil {
		return fmt.Errorf("queue: %w", err)
	}
	que, err := queue.Open(dev, g.n.queueShare())
	if err != nil {
		return errors.Join(fmt.Errorf("queue: %w", err), dev.Close())
	}
	if r := que.Repaired(); r != "" {
		g.n.log.Warn("queue repaired", "group", g.name, "cause", r)
	}
	g.mu.Lock()
	g.que, g.log, g.intents = que, queueLog{que}, map[uint16]changedMap{}
	g.mu.Unlock()
	for _, m := range rec.Members {
		if err := g.openIntents(m.Number, g.n.volume(m.Volume).vol.Size()); err != nil {
			return err
		}
	}
	return nil
}

// openIntents gives the queue a volume's intent map. A page of it that is lost counts as all in doubt.
func (g *group) openIntents(number uint16, size int64) error {
	bits, dev, err := g.n.openMarks(g.n.intentPath(g.name, number), queue.Regions(size))
	if err != nil {
		return err
	}
	if err := g.que.AddVolume(record.VolumeNumber(number), bits); err != nil {
		return errors.Join(err, dev.Close())
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	g.intents[number] = changedMap{bits, dev}
	return nil
}

// makeMaps makes the maps of a volume that joins as primary.
func (g *group) makeMaps(rec *groupRecord, number uint16, size int64) error {
	err := g.n.createMap(g.n.changedPath(g.name, number), bitsFor(size, markSize))
	if err == nil && rec.onQueue() {
		err = g.n.createMap(g.n.intentPath(g.name, number), queue.Regions(size))
	}
	return err
}

// removeMaps removes what a group has had on this node besides its log and volumes.
func (g *group) removeMaps(rec *groupRecord) {
	paths := []string{g.n.queuePath(g.name)}
	for _, m := range rec.Members {
		paths = append(paths, g.n.changedPath(g.name, m.Number), g.n.intentPath(g.name, m.Number))
	}
	for _, path := range paths {
		if err := g.n.removeMap(path); err != nil {
			g.n.log.Warn("map not removed", "group", g.name, "cause", err)
		}
	}
}

// logBroken says that the log has ended on a failure of its disks, and may have lost what was answered and not durable.
func (g *group) logBroken() bool {
	g.mu.Lock()
	jnl, que := g.jnl, g.que
	g.mu.Unlock()
	return jnl != nil && errors.Is(jnl.Err(), journal.ErrBroken) || que != nil && errors.Is(que.Err(), queue.ErrBroken)
}

// closeMaps closes a group's maps.
func closeMaps(sets ...map[uint16]changedMap) (errs []error) {
	for _, set := range sets {
		for _, m := range set {
			errs = append(errs, m.dev.Close())
		}
	}
	return errs
}

var _ volume.MemoryLog = queueLog{}
