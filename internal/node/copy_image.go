package node

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"

	"gantline/internal/record"
)

// copyImage is what the target of a copy-first move makes of the source's log and of the regions that it fetches, on its
// volumes' devices. Nobody reads it before the move is decided.
//
// A region is absent, being fetched, or here. Records for an absent region are dropped: what is fetched later has them.
// Those for one that is being fetched wait for it: the fetch reads what hosts keep writing, and may have the records, or
// parts of them, or not; written over it, in their order, they make it whole. Those for a region that is here are
// written.
//
// A region counts as here durably, in the present map, only when the stream has passed what its fetch may have seen, and
// the device has been flushed since: the stream carries nothing that the source could lose, and a fetch may have seen
// more. A process that dies knows the present map alone. The source then sends all records again that were not
// acknowledged as durable; written in their order over a device that has some of them, they end at the same image.
//
// It is the store of a receiver, which keeps order and epochs. There is no log here: the source's is kept for as long as
// this side may need it.
type copyImage struct {
	disks map[record.VolumeNumber]*copyDisk

	mu       sync.Mutex
	settled  *sync.Cond // a fetch has ended
	table    record.Table
	stored   record.Seq // written to the devices
	durable  record.Seq
	fetched  []fetched
	closed   bool
	flushing sync.Mutex
}

// fetched are regions that may count as durably here once the stream has passed at.
type fetched struct {
	at      record.Seq
	regions map[*copyDisk][]int64
}

// newCopyImage begins behind base, with what the present maps have.
func newCopyImage(base record.Seq, table record.Table, disks map[record.VolumeNumber]*copyDisk) *copyImage {
	im := &copyImage{disks: disks, table: table, stored: base, durable: base}
	im.settled = sync.NewCond(&im.mu)
	for _, d := range disks {
		d.image, d.busy, d.regions = im, map[int64]struct{}{}, bitsFor(d.size, regionSize)
		d.here = make([]uint64, (d.regions+63)/64)
		for bit, ok := d.present.NextSet(0); ok && bit < d.regions; bit, ok = d.present.NextSet(bit + 1) {
			d.arrive(bit)
		}
	}
	return im
}

var errImageClosed = errors.New("the copy has ended")

// fail is for errors of a device: the copying begins anew, from what is durable.
func (im *copyImage) fail(err error) error {
	im.close()
	return fmt.Errorf("writing to the target's volume: %w", err)
}

// close lets nobody wait any more; records are refused from now on.
func (im *copyImage) close() {
	im.mu.Lock()
	defer im.mu.Unlock()
	im.closed = true
	im.settled.Broadcast()
}

// Append writes records to the devices.
func (im *copyImage) Append(recs []record.Record) error {
	for i := range recs {
		if err := im.write(&recs[i]); err != nil {
			return err
		}
	}
	im.mu.Lock()
	defer im.mu.Unlock()
	if im.closed {
		return errImageClosed
	}
	for i := range recs { // only now: a flush that has begun before does not have them
		if d := im.disks[recs[i].Volume]; d != nil {
			d.dirty = true
		}
	}
	im.stored = recs[len(recs)-1].Seq
	return nil
}

// write does what a record says to the regions that are here. Copied blocks change nothing: they are what the volume
// holds.
func (im *copyImage) write(r *record.Record) error {
	switch r.Op {
	case record.OpWrite, record.OpZero, record.OpTrim:
	default:
		return nil
	}
	d := im.disks[r.Volume]
	if d == nil || r.Length == 0 || r.Flags&record.FlagCopied != 0 {
		return nil
	}
	off, end := int64(r.Offset), int64(r.Offset)+int64(r.Length)
	if off < 0 || end > d.size {
		return fmt.Errorf("record %d lies outside a volume of %d bytes", r.Seq, d.size)
	}
	for at := off; at < end; {
		to, here, err := im.next(d, at, end)
		if err != nil {
			return err
		}
		if here {
			switch r.Op {
			case record.OpWrite:
				_, err = d.dev.WriteAt(r.Data[at-off:to-off], at)
			case record.OpZero:
				err = d.dev.Zero(at, to-at, true)
			case record.OpTrim:
				err = d.dev.Trim(at, to-at)
			}
			if err != nil {
				return im.fail(err)
			}
		}
		at = to
	}
	return nil
}

// next is the longest piece of a range from its beginning on that is here as a whole, or absent as a whole.
func (im *copyImage) next(d *copyDisk, at, end int64) (to int64, here bool, err error) {
	im.mu.Lock()
	defer im.mu.Unlock()
	first := at / regionSize
	for {
		if im.closed {
			return 0, false, errImageClosed
		}
		if _, busy := d.busy[first]; !busy {
			break
		}
		im.settled.Wait()
	}
	here = d.has(first)
	last := first + 1
	for last*regionSize < end && d.has(last) == here {
		if _, busy := d.busy[last]; busy {
			break
		}
		last++
	}
	return min(last*regionSize, end), here, nil
}

// confirm: whatever the fetches so far have seen lies at or below at. fresh was taken before the source was asked for
// that.
func (im *copyImage) confirm(fresh map[*copyDisk][]int64, at record.Seq) {
	if len(fresh) == 0 {
		return
	}
	im.mu.Lock()
	defer im.mu.Unlock()
	im.fetched = append(im.fetched, fetched{at, fresh})
}

// takeFresh returns the regions that have been fetched since it was called last.
func (im *copyImage) takeFresh() map[*copyDisk][]int64 {
	im.mu.Lock()
	defer im.mu.Unlock()
	out := map[*copyDisk][]int64{}
	for _, d := range im.disks {
		if len(d.fresh) > 0 {
			out[d] = d.fresh
			d.fresh = nil
		}
	}
	return out
}

// putBack undoes takeFresh: the source could not be asked.
func (im *copyImage) putBack(fresh map[*copyDisk][]int64) {
	im.mu.Lock()
	defer im.mu.Unlock()
	for d, regions := range fresh {
		d.fresh = append(d.fresh, regions...)
	}
}

// Sync makes durable what has been written, then notes which regions are durably here. After a flush that has failed there
// is no other: it would succeed, and what the failed one was for would be gone.
func (im *copyImage) Sync() (record.Seq, error) {
	im.flushing.Lock()
	defer im.flushing.Unlock()
	im.mu.Lock()
	if im.closed {
		im.mu.Unlock()
		return 0, errImageClosed
	}
	upTo := im.stored
	ready, rest := map[*copyDisk][]int64{}, im.fetched[:0:0]
	for _, f := range im.fetched {
		if f.at > upTo {
			rest = append(rest, f)
			continue
		}
		for d, regions := range f.regions {
			ready[d] = append(ready[d], regions...)
		}
	}
	im.fetched = rest
	var dirty []*copyDisk
	for _, d := range im.disks {
		if d.dirty {
			d.dirty = false
			dirty = append(dirty, d)
		}
	}
	im.mu.Unlock()
	var all errgroup.Group
	for _, d := range dirty {
		all.Go(d.dev.Flush)
	}
	if err := all.Wait(); err != nil {
		return 0, im.fail(err)
	}
	for d, regions := range ready {
		for _, r := range regions {
			d.present.Set(r)
		}
		all.Go(d.present.Flush)
	}
	if err := all.Wait(); err != nil {
		return 0, im.fail(err)
	}
	im.mu.Lock()
	defer im.mu.Unlock()
	im.durable = max(im.durable, upTo)
	return im.durable, nil
}

// owes says whether there is something for Sync to do that no record brings about.
func (im *copyImage) owes() bool {
	im.mu.Lock()
	defer im.mu.Unlock()
	for _, f := range im.fetched {
		if f.at <= im.stored {
			return true
		}
	}
	return false
}

// whole says that every region is here durably; written is how far records have been written.
func (im *copyImage) whole() (whole bool, written record.Seq) {
	im.mu.Lock()
	defer im.mu.Unlock()
	whole = !im.closed
	for _, d := range im.disks {
		whole = whole && d.present.Count() == d.regions
	}
	return whole, im.stored
}

// await returns once every region is here durably, and all records up to seq are written.
func (im *copyImage) await(ctx context.Context, seq record.Seq) error {
	tick := time.NewTicker(time.Millisecond)
	defer tick.Stop()
	for {
		whole, written := im.whole()
		if whole && written >= seq {
			return nil
		}
		select {
		case <-ctx.Done():
			if !whole {
				return errors.New("the target is not filled yet")
			}
			return errors.New("the target has not written all that the source has")
		case <-tick.C:
		}
	}
}

// AppendAfterGap never comes: after a restart with a log in memory the target joins anew.
func (im *copyImage) AppendAfterGap([]record.Record) error {
	return errors.New("the source's log has a gap: the target joins anew")
}

// Cut never comes: what is not durable at the source is not sent.
func (im *copyImage) Cut(upTo record.Seq) error {
	return fmt.Errorf("the source's log ends at %d now: the target joins anew", upTo)
}

// OpenRow ends the image: a source that has begun anew may have lost what fetches have seen.
func (im *copyImage) OpenRow(row record.Row) error {
	return fmt.Errorf("the source has begun anew in epoch %d.%d: the target joins anew", row.Epoch, row.Incarnation)
}

func (im *copyImage) Table() record.Table {
	im.mu.Lock()
	defer im.mu.Unlock()
	return im.table
}

func (im *copyImage) Cursors() (durable, stored record.Seq) {
	im.mu.Lock()
	defer im.mu.Unlock()
	return im.durable, im.stored
}

// copyApplier: what is stored is applied, there is nothing between the two here.
type copyApplier struct{}

func (copyApplier) Stored([]record.Record) {}
func (copyApplier) Durable(record.Seq)     {}
func (copyApplier) Mark(record.Seq)        {}
func (copyApplier) Cut(upTo record.Seq) error {
	return fmt.Errorf("records above %d are on the devices", upTo)
}
func (copyApplier) Unfinished() (record.Seq, bool) { return 0, false }
