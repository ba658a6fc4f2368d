package block

import (
	"math/rand/v2"
	"slices"
)

// Crash is a power loss. It returns a device with what survived: what was durable, and of the sectors written since
// any selection. The old device fails every call from now on, those that are running too.
func (d *Crashable) Crash() *Crashable {
	d.mu.Lock()
	defer d.mu.Unlock()
	next := d.survivor(d.rng.Int64())
	d.die()
	return next
}

// Kill is the death of the process that held the device, with the machine living on: the new device has all that was
// written, and what was not flushed still is not. What a failed Flush forgot is read from the disk, as OpenFile does.
func (d *Crashable) Kill() *Crashable {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.mustLive()
	next := NewCrashable(d.Size(), d.rng.Int64())
	next.disk, next.dirty = d.disk, d.dirty
	copy(next.cache, d.disk)
	for _, w := range d.dirty {
		next.cache[w.page] = d.cache[w.page] // a dirty page is in the cache as a whole
	}
	d.die()
	return next
}

// Peek returns what Crash might, chosen by seed, and leaves the device as it is: for trying many crashes at one point.
// Hooks may call it.
func (d *Crashable) Peek(seed int64) *Crashable {
	d.mu.RLock()
	defer d.mu.RUnlock()
	return d.survivor(seed)
}

// Unsynced returns how many sectors written to are not durable yet, each as often as it was written.
func (d *Crashable) Unsynced() int {
	d.mu.RLock()
	defer d.mu.RUnlock()
	n := 0
	for _, w := range d.dirty {
		for m := w.mask; m != 0; m &= m - 1 {
			n++
		}
	}
	return n
}

// mustLive stops a test that crashes a device twice: the second image would be an empty one.
func (d *Crashable) mustLive() {
	if d.dead == ErrCrashed {
		panic("block.Crashable: crashed before")
	}
}

func (d *Crashable) die() {
	d.dead = ErrCrashed
	d.cache, d.disk, d.dirty = nil, nil, nil
}

// survivor builds the image after a crash. Each unsynced write of a sector is a coin: heads, it reached the disk; the
// last heads wins. How the coin is loaded is drawn first, so that "nothing survived", "all did" and "all but a few"
// are as likely as the middle.
func (d *Crashable) survivor(seed int64) *Crashable {
	d.mustLive()
	rng := newRand(seed)
	next := NewCrashable(d.Size(), rng.Int64())
	copy(next.disk, d.disk)
	dirty, chance := d.dirty, rng.Float64()
	switch rng.IntN(8) {
	case 0:
		chance = 0
	case 1:
		chance = 1
	case 2:
		chance = 0.02
	case 3:
		chance = 0.98
	case 4: // in order, up to a write that is torn
		if len(dirty) > 0 {
			whole := rng.IntN(len(dirty))
			for _, w := range dirty[:whole] {
				apply(next.disk, w)
			}
			dirty = dirty[whole : whole+1]
		}
	}
	toss := coin(rng, chance)
	for _, w := range dirty {
		apply(next.disk, toss(w))
	}
	copy(next.cache, next.disk)
	return next
}

func (d *Crashable) coin(chance float64) func(sectors) sectors { return coin(d.rng, chance) }

// coin keeps each sector of a write with the given chance.
func coin(rng *rand.Rand, chance float64) func(sectors) sectors {
	return func(w sectors) sectors {
		if chance >= 1 {
			return w
		}
		for s := range pageSectors {
			if rng.Float64() >= chance {
				w.mask &^= 1 << s
			}
		}
		return w
	}
}

func sortedKeys(set map[int]bool) []int {
	keys := make([]int, 0, len(set))
	for k := range set {
		keys = append(keys, k)
	}
	slices.Sort(keys)
	return keys
}
