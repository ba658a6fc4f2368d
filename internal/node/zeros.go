package node

import (
	"context"
	"sync"

	"gantline/internal/block"
)

const (
	zeroWindow  = 64 << 20 // bytes that one question about extents covers
	zeroWindows = 1 << 16  // answers kept, 128 bytes each; at the limit all are forgotten and asked for again
)

// zeroMap is what a sealed source has said about its zeros, region by region. Its image does not change any more, so an
// answer holds for as long as the move. The zero value knows nothing. Safe for concurrent use.
type zeroMap struct {
	mu      sync.Mutex
	windows map[int64]*zeroAnswer
}

// zeroAnswer has a bit for each region of a window that may hold data.
type zeroAnswer [zeroWindow / regionSize / 64]uint64

// known says whether there is an answer about a window.
func (z *zeroMap) known(window int64) bool {
	z.mu.Lock()
	defer z.mu.Unlock()
	return z.windows[window] != nil
}

// hole says whether a range is known to be zeros alone.
func (z *zeroMap) hole(off, n int64) bool {
	z.mu.Lock()
	defer z.mu.Unlock()
	for r := off / regionSize; r*regionSize < off+n; r++ {
		a := z.windows[r*regionSize/zeroWindow]
		if i := r % (zeroWindow / regionSize); a == nil || a[i/64]&(1<<(i%64)) != 0 {
			return false
		}
	}
	return true
}

// add keeps an answer about a window.
func (z *zeroMap) add(window int64, data []block.Extent) {
	a := &zeroAnswer{}
	for _, e := range data {
		for r := e.Offset / regionSize; r*regionSize < e.Offset+e.Length; r++ {
			i := r % (zeroWindow / regionSize)
			a[i/64] |= 1 << (i % 64)
		}
	}
	z.mu.Lock()
	defer z.mu.Unlock()
	if z.windows == nil || len(z.windows) >= zeroWindows {
		z.windows = map[int64]*zeroAnswer{}
	}
	z.windows[window] = a
}

// Hole implements volume.Fetcher.
func (p *peerVolume) Hole(off, n int64) bool { return p.zeros.hole(off, n) }

// learnZeros asks a sealed source about the windows of a range that are not known.
func (p *peerVolume) learnZeros(ctx context.Context, off, n int64) error {
	for w := off / zeroWindow; w*zeroWindow < off+n; w++ {
		start := w * zeroWindow
		if p.zeros.known(w) {
			continue
		}
		r := &block.Request{Op: block.OpExtents, Flags: block.FlagFetch, Offset: start, Length: min(zeroWindow, p.size-start)}
		if err := p.ask(ctx, r); err != nil {
			return err
		}
		p.zeros.add(w, dataIn(r.Extents, start, r.Length))
	}
	return nil
}

// dataIn lists what may hold data in a range, by the answer to a question about its extents. An answer may end early, for
// it is limited in number: what it says nothing of counts as data.
func dataIn(answer []block.Extent, off, n int64) (data []block.Extent) {
	add := func(from, to int64) {
		if from < to {
			data = append(data, block.Extent{Offset: from, Length: to - from, Type: block.ExtentData})
		}
	}
	at, end := off, off+n
	for _, e := range answer {
		from, to := max(e.Offset, at), min(e.Offset+e.Length, end)
		if from >= to {
			continue
		}
		add(at, from)
		if e.Type == block.ExtentData {
			add(from, to)
		}
		at = to
	}
	add(at, end)
	return data
}
