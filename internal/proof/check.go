package proof

import (
	"fmt"
	"io"
)

// Verdict is what CheckPrefix found.
type Verdict struct {
	OK      bool   // the image is a prefix
	Why     string // if not
	Present int    // writes that the image holds, or that a later one it holds covers
	Behind  int    // answered writes that it lacks
	Equal   bool   // it lacks no answered write
	// Flushed: it lacks no write that an answered flush covers.
	Flushed bool
}

// CheckPrefix reads the images of all volumes and compares them with the history. The load must not be running on the
// images while it reads; the history may be longer than the images.
func (l *Load) CheckPrefix(images []io.ReaderAt) (Verdict, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	held := make([]map[int64]uint64, len(images))
	for v, image := range images {
		h, bad, err := l.readImage(v, image)
		if err != nil {
			return Verdict{}, err
		}
		if bad != "" {
			return Verdict{Why: bad}, nil
		}
		held[v] = h
	}
	return l.judge(held), nil
}

// readImage returns which write each written block holds. bad says what no prefix can hold.
func (l *Load) readImage(v int, image io.ReaderAt) (held map[int64]uint64, bad string, err error) {
	const chunk = 256
	held = make(map[int64]uint64, len(l.last[v]))
	buf := make([]byte, chunk*BlockSize)
	for b := int64(0); b < l.disks[v].Size/BlockSize; b += chunk {
		p := buf[:min(chunk, l.disks[v].Size/BlockSize-b)*BlockSize]
		if n, err := image.ReadAt(p, b*BlockSize); err != nil && (err != io.EOF || n < len(p)) {
			return nil, "", fmt.Errorf("image of volume %d at block %d: %w", v, b, err)
		}
		for i := int64(0); i < int64(len(p))/BlockSize; i++ {
			w, err := readStamp(p[i*BlockSize:], l.opts.Seed, v, b+i)
			if err != nil {
				return nil, err.Error(), nil
			}
			if w == 0 {
				continue
			}
			if w >= uint64(len(l.history)) {
				return nil, fmt.Sprintf("volume %d block %d holds write %d, which was never issued", v, b+i, w), nil
			}
			held[b+i] = w
		}
	}
	return held, "", nil
}

// judge applies the rule of the package's comment. A write of a block is there if the image holds it or a later one of
// the same block; numbers ascend within a block.
func (l *Load) judge(held []map[int64]uint64) Verdict {
	var lastIssued, lastWrite uint64 // of the writes that are there
	firstDone, firstMissing := never, uint64(0)
	verdict := Verdict{OK: true, Equal: true, Flushed: true}
	for n := uint64(1); n < uint64(len(l.history)); n++ {
		w := l.history[n]
		if w.lost {
			continue
		}
		there := held[w.volume][w.block] >= n
		for i := range int64(w.blocks) {
			if (held[w.volume][w.block+i] >= n) != there {
				return Verdict{Why: fmt.Sprintf("write %d of volume %d blocks %d+%d is there only in part", n, w.volume, w.block, w.blocks)}
			}
		}
		switch {
		case there:
			verdict.Present++
			if w.issued > lastIssued {
				lastIssued, lastWrite = w.issued, n
			}
		case w.done != never:
			verdict.Behind++
			verdict.Equal = false
			if w.done < firstDone {
				firstDone, firstMissing = w.done, n
			}
			if w.done < l.flushed {
				verdict.Flushed = false
			}
		}
	}
	if firstDone < lastIssued {
		verdict.OK = false
		verdict.Why = fmt.Sprintf("write %d was answered before write %d was issued, yet only the later one is there", firstMissing, lastWrite)
	}
	return verdict
}

// Forget drops from the history what an image lacks: the load may go on from that image (after a takeover), and later checks
// ask for none of it.
func (l *Load) Forget(images []io.ReaderAt) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	for v, image := range images {
		held, bad, err := l.readImage(v, image)
		if err != nil || bad != "" {
			return fmt.Errorf("%s: %w", bad, err)
		}
		for b, writes := range l.last[v] {
			kept := writes[:0]
			for _, n := range writes {
				if n <= held[b] {
					kept = append(kept, n)
				}
			}
			l.last[v][b] = kept
		}
		for n := range l.history {
			if w := &l.history[n]; n > 0 && int(w.volume) == v && held[w.block] < uint64(n) {
				w.lost = true
			}
		}
	}
	return nil
}
