package volume

import (
	"errors"
	"fmt"

	"gantline/internal/block"
	"gantline/internal/queue"
	"gantline/internal/record"
)

// onQueue is a queue as a MemoryLog.
type onQueue struct{ *queue.Queue }

func (q onQueue) Append(recs []record.Record) error { return queueError(q.Queue.Append(recs)) }

func (q onQueue) Read(from record.Seq, maxRecords, maxBytes int) ([]record.Record, error) {
	recs, err := q.Queue.Read(from, maxRecords, maxBytes)
	return recs, queueError(err)
}

func (q onQueue) Attach(b Backing) { q.Queue.Attach(b) }

func (q onQueue) Cursors() Cursors {
	c := q.Queue.Cursors()
	return Cursors{Trimmed: c.Trimmed, Durable: c.Durable, Appended: c.Appended}
}

func queueError(err error) error {
	for _, e := range [...][2]error{
		{queue.ErrFull, ErrFull}, {queue.ErrTooLarge, ErrTooLarge}, {queue.ErrTrimmed, ErrTrimmed},
	} {
		if errors.Is(err, e[0]) {
			return fmt.Errorf("%w: %w", e[1], err)
		}
	}
	return err
}

var _ MemoryLog = onQueue{}

// memDevs are the devices of a queue.
type memDevs struct {
	limit int64
	state *block.Crashable
	maps  []*block.Crashable
	q     *queue.Queue
}

func newMemDevs(seed uint64, volumes int, size, limit int64) (*memDevs, error) {
	d := &memDevs{limit: limit, state: block.NewCrashable(queue.StateSize, int64(seed)+100)}
	if err := queue.Create(d.state); err != nil {
		return nil, err
	}
	bits := queue.Regions(size)
	for i := range volumes {
		m := block.NewCrashable(block.BitmapSize(bits), int64(seed)+200+int64(i))
		if _, err := block.CreateBitmap(m, bits, 1); err != nil {
			return nil, err
		}
		d.maps = append(d.maps, m)
	}
	return d, nil
}

func (d *memDevs) open() (Log, error) {
	q, err := queue.Open(d.state, d.limit)
	if err != nil {
		return nil, err
	}
	for i, dev := range d.maps {
		m, lost, err := block.OpenBitmap(dev)
		if err != nil || len(lost) > 0 {
			return nil, fmt.Errorf("map %d: %v, %v", i, lost, err)
		}
		if err := q.AddVolume(record.VolumeNumber(i+1), m); err != nil {
			return nil, err
		}
	}
	d.q = q
	return onQueue{q}, nil
}

// each replaces the devices by what is left of them.
func (d *memDevs) each(end func(*block.Crashable) *block.Crashable) {
	d.state = end(d.state)
	for i := range d.maps {
		d.maps[i] = end(d.maps[i])
	}
}
