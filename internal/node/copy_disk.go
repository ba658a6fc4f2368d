package node

import (
	"context"

	"gantline/internal/block"
)

// copyDisk is one volume of the image. All but dev is guarded by the image's mu.
type copyDisk struct {
	image   *copyImage
	dev     block.Device
	size    int64
	present *block.Bitmap // durable
	fetch   func(ctx context.Context, off, n int64) ([]byte, error)

	regions int64
	here    []uint64           // bits of regions
	count   int64              // of here
	busy    map[int64]struct{} // being fetched
	fresh   []int64            // here, and what their fetches may have seen is not known yet
	dirty   bool               // written to since the last flush began
	brought int64              // bytes
}

func (d *copyDisk) has(region int64) bool { return d.here[region/64]&(1<<(region%64)) != 0 }

func (d *copyDisk) arrive(region int64) {
	if !d.has(region) {
		d.here[region/64] |= 1 << (region % 64)
		d.count++
	}
}

// Next, Needs and Left make a disk a copier.Set.
func (d *copyDisk) Next(from int64) (int64, bool) {
	d.image.mu.Lock()
	defer d.image.mu.Unlock()
	for r := max(from, 0); r < d.regions; r++ {
		if r%64 == 0 && d.here[r/64] == ^uint64(0) {
			r += 63
			continue
		}
		if !d.has(r) {
			return r, true
		}
	}
	return 0, false
}

func (d *copyDisk) Needs(region int64) bool {
	d.image.mu.Lock()
	defer d.image.mu.Unlock()
	return !d.has(region)
}

func (d *copyDisk) Left() int64 {
	d.image.mu.Lock()
	defer d.image.mu.Unlock()
	return d.regions - d.count
}

// begin takes the absent regions of a range for a fetch: from here on records for them wait. end must follow.
func (d *copyDisk) begin(off, n int64) (taken []int64) {
	d.image.mu.Lock()
	defer d.image.mu.Unlock()
	for r := off / regionSize; r*regionSize < off+n; r++ {
		if _, busy := d.busy[r]; busy || d.has(r) {
			continue
		}
		d.busy[r] = struct{}{}
		taken = append(taken, r)
	}
	return taken
}

// end lets records go on; the regions in arrived have their data on the device.
func (d *copyDisk) end(taken, arrived []int64) {
	d.image.mu.Lock()
	defer d.image.mu.Unlock()
	for _, r := range taken {
		delete(d.busy, r)
	}
	for _, r := range arrived {
		d.arrive(r)
		d.fresh = append(d.fresh, r)
	}
	d.dirty = d.dirty || len(arrived) > 0
	d.image.settled.Broadcast()
}

// bring fetches a range and writes what of it was absent.
func (d *copyDisk) bring(ctx context.Context, off, n int64) error {
	taken := d.begin(off, n)
	if len(taken) == 0 {
		return nil
	}
	var arrived []int64
	defer func() { d.end(taken, arrived) }()
	data, err := d.fetch(ctx, off, n)
	if err != nil {
		return err
	}
	for i := 0; i < len(taken); {
		zero := d.isZero(data, off, taken[i])
		k := i + 1
		for k < len(taken) && taken[k] == taken[k-1]+1 && d.isZero(data, off, taken[k]) == zero {
			k++
		}
		from, to := taken[i]*regionSize, min((taken[k-1]+1)*regionSize, d.size)
		if zero { // takes no space, and loses what the device held before
			err = d.dev.Trim(from, to-from)
		} else {
			_, err = d.dev.WriteAt(data[from-off:to-off], from)
		}
		if err != nil {
			return d.image.fail(err)
		}
		arrived = append(arrived, taken[i:k]...)
		i = k
	}
	d.image.mu.Lock()
	d.brought += n
	d.image.mu.Unlock()
	return nil
}

func (d *copyDisk) isZero(data []byte, off, region int64) bool {
	from := region*regionSize - off
	return block.IsZero(data[from:min(from+regionSize, int64(len(data)))])
}

// skip has regions here that the source says to be holes. They are asked about while records for them wait.
func (d *copyDisk) skip(off, n int64, ask func() ([]block.Extent, error)) error {
	taken := d.begin(off, n)
	if len(taken) == 0 {
		return nil
	}
	var arrived []int64
	defer func() { d.end(taken, arrived) }()
	extents, err := ask()
	if err != nil {
		return err
	}
	data := map[int64]struct{}{}
	for _, e := range dataIn(extents, off, n) {
		for r := e.Offset / regionSize; r*regionSize < e.Offset+e.Length; r++ {
			data[r] = struct{}{}
		}
	}
	var holes []int64
	for _, r := range taken {
		if _, ok := data[r]; !ok {
			holes = append(holes, r)
		}
	}
	for i := 0; i < len(holes); {
		k := i + 1
		for k < len(holes) && holes[k] == holes[k-1]+1 {
			k++
		}
		from, to := holes[i]*regionSize, min((holes[k-1]+1)*regionSize, d.size)
		if err := d.dev.Trim(from, to-from); err != nil {
			return d.image.fail(err)
		}
		arrived = append(arrived, holes[i:k]...)
		i = k
	}
	return nil
}
