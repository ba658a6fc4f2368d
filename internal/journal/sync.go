package journal

import (
	"errors"
	"fmt"
	"math/bits"
	"sync"
	"time"

	"gantline/internal/block"
	"gantline/internal/latency"
	"gantline/internal/record"
)

// Sync makes durable all that was appended before it was called and returns the durable sequence. Callers that come
// while a sync runs wait for it to end and share the next one.
func (j *Journal) Sync() (record.Seq, error) {
	j.mu.Lock()
	defer j.mu.Unlock()
	want, lives := j.appended, j.lives
	for {
		if err := j.usable(); err != nil {
			return j.durable, err
		}
		if lives != j.lives {
			return j.durable, ErrCut
		}
		if j.durable >= want {
			return j.durable, nil
		}
		if j.syncing {
			j.wake.Wait()
			continue
		}
		j.syncOnce()
	}
}

// syncOnce is called and returns with mu held. What it confirms is what had been written when it began.
func (j *Journal) syncOnce() {
	j.syncing = true
	goal, dirty, lives := j.appended, j.dirty, j.lives
	j.dirty = 0
	j.mu.Unlock()
	began := time.Now()
	err := j.flush(dirty)
	j.syncs.Observe(time.Since(began), 1)
	j.mu.Lock()
	j.syncing = false
	if err == nil && lives == j.lives && goal > j.durable {
		j.synced += uint64(goal - j.durable)
		j.durable = goal
	}
	j.wake.Broadcast()
}

// Syncs says how long syncs for records have taken in this run, and how many records they have made durable. A sync of a
// journal on several devices counts once.
func (j *Journal) Syncs() (syncs latency.Snapshot, records uint64) {
	j.mu.Lock()
	defer j.mu.Unlock()
	return j.syncs.Snapshot(), j.synced
}

// flush syncs the devices in mask, several at once. Nothing counts as durable before all of them are: an entry on one
// device may stand for data on another.
func (j *Journal) flush(mask uint64) error {
	j.flushMu.Lock()
	defer j.flushMu.Unlock()
	if err := j.Err(); err != nil {
		return err
	}
	devs := j.devices()
	if bits.OnesCount64(mask) == 1 {
		if err := flushDevice(devs, bits.TrailingZeros64(mask)); err != nil {
			return j.fail(err)
		}
		return nil
	}
	errs := make([]error, len(devs))
	var all sync.WaitGroup
	for i := range devs {
		if mask&(1<<i) != 0 {
			all.Go(func() { errs[i] = flushDevice(devs, i) })
		}
	}
	all.Wait()
	if err := errors.Join(errs...); err != nil {
		return j.fail(err)
	}
	return nil
}

func flushDevice(devs []block.Device, i int) error {
	if err := devs[i].Flush(); err != nil {
		return fmt.Errorf("sync journal device %d: %w", i, err)
	}
	return nil
}
