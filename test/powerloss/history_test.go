package powerloss

import (
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"sort"

	"gantline/internal/block"
)

// blockSize is the unit of the load, in bytes.
const blockSize = 4096

const never = ^uint64(0)

// write is one write of the load. Numbers start at 1 and ascend within a block, since no block has two in flight.
type write struct {
	volume, blocks int
	block          int64
	issued         uint64
	done           uint64 // tick of the answer; never: in flight, or of unknown fate
	lost           bool   // answered, and gone with a primary's power
}

// history is what hosts know: package proof's rule for prefixes, over several lives of the primary.
type history struct {
	seed    uint64
	clock   uint64
	writes  []write
	last    []map[int64][]uint64
	proven  uint64   // writes answered before it, and not lost, have been seen after a power loss: they are durable
	lives   []uint64 // ticks at which a primary was given power again
	flushes []uint64 // of each life: its writes answered before are covered by a flush that it answered
	lost    int
}

func newHistory(seed uint64, volumes int) *history {
	h := &history{seed: seed, writes: make([]write, 1)}
	for range volumes {
		h.last = append(h.last, map[int64][]uint64{})
	}
	return h
}

func (h *history) tick() uint64 { h.clock++; return h.clock }

func (h *history) issue(volume int, b int64, n int) uint64 {
	number := uint64(len(h.writes))
	h.writes = append(h.writes, write{volume: volume, block: b, blocks: n, issued: h.tick(), done: never})
	for i := b; i < b+int64(n); i++ {
		h.last[volume][i] = append(h.last[volume][i], number)
	}
	return number
}

// lifeEnd is when the life that tick t fell into was over for good.
func (h *history) lifeEnd(t uint64) uint64 {
	if i := h.lifeOf(t); i < len(h.lives) {
		return h.lives[i]
	}
	return never
}

func (h *history) lifeOf(t uint64) int {
	return sort.Search(len(h.lives), func(i int) bool { return h.lives[i] > t })
}

// flush notes an answered flush that was issued at a tick. It counts for the writes of its own life only: of what an
// earlier one has lost a host is not told (TestFlushAfterPowerLoss).
func (h *history) flush(covered uint64) {
	life := h.lifeOf(covered)
	if life != len(h.lives) {
		return // it was in flight when the power went
	}
	for len(h.flushes) <= life {
		h.flushes = append(h.flushes, 0)
	}
	h.flushes[life] = max(h.flushes[life], covered)
}

// durable: a flush covers the write, or it has survived a power loss before.
func (h *history) durable(w *write) bool {
	life := h.lifeOf(w.done)
	return w.done < h.proven || life < len(h.flushes) && w.done < h.flushes[life]
}

// least is the number that a read of a block must at least find.
func (h *history) least(volume int, b int64) uint64 {
	list := h.last[volume][b]
	for i := len(list) - 1; i >= 0; i-- {
		// What an ended life has answered under no flush may be gone: reconcile will tell.
		if w := &h.writes[list[i]]; w.done != never && !w.lost && (h.lifeEnd(w.done) == never || h.durable(w)) {
			return list[i]
		}
	}
	return 0
}

// image is which write each block holds.
type image []map[int64]uint64

// holds is the set of writes of which a block is in the image.
func (img image) holds() map[uint64]bool {
	set := map[uint64]bool{}
	for _, held := range img {
		for _, n := range held {
			set[n] = true
		}
	}
	return set
}

// there says whether write n, or what has replaced it, is in the image; partly: of its own blocks some are, others not.
func (h *history) there(img image, n uint64) (there, partly bool) {
	w := &h.writes[n]
	there = true
	for i := range int64(w.blocks) {
		held := img[w.volume][w.block+i]
		there = there && held >= n
		partly = partly || held == n
	}
	return there, partly && !there
}

// parse reads the stamps of a volume.
func (h *history) parse(volume int, raw []byte) (map[int64]uint64, error) {
	held := map[int64]uint64{}
	for b := int64(0); b < int64(len(raw))/blockSize; b++ {
		n, err := readStamp(raw[b*blockSize:], h.seed, volume, b)
		if err != nil {
			return nil, err
		}
		if n == 0 {
			continue
		}
		if n >= uint64(len(h.writes)) {
			return nil, fmt.Errorf("volume %d block %d holds write %d, which was never issued", volume, b, n)
		}
		if h.writes[n].lost {
			return nil, fmt.Errorf("volume %d block %d holds write %d, which the primary had lost with its power", volume, b, n)
		}
		held[b] = n
	}
	return held, nil
}

// verdict on an image.
type verdict struct {
	present, behind int
	flushed         bool // nothing is missing that an answered flush covers
}

// prefix checks that the image is a prefix: nothing missing was answered before anything there was issued.
func (h *history) prefix(img image) (v verdict, err error) {
	v.flushed = true
	var newest, newestWrite uint64
	oldest, oldestWrite := never, uint64(0)
	for n := uint64(1); n < uint64(len(h.writes)); n++ {
		w := &h.writes[n]
		if w.lost {
			continue
		}
		there, partly := h.there(img, n)
		switch {
		case partly:
			return v, fmt.Errorf("write %d of volume %d blocks %d+%d is there only in part", n, w.volume, w.block, w.blocks)
		case there:
			v.present++
			if w.issued > newest {
				newest, newestWrite = w.issued, n
			}
		case w.done != never:
			v.behind++
			if w.done < oldest {
				oldest, oldestWrite = w.done, n
			}
			if h.durable(w) {
				v.flushed = false
			}
		}
	}
	if oldest < newest {
		return v, fmt.Errorf("write %d was answered before write %d was issued, yet only the later one is there", oldestWrite, newestWrite)
	}
	return v, nil
}

// reconcile compares what came back after power losses of primaries with what was answered, and strikes what was lost
// from the history. Nothing may be in flight. What the last life has answered must all be there.
func (h *history) reconcile(img image) (lost int, err error) {
	var gone []uint64
	for n := uint64(1); n < uint64(len(h.writes)); n++ {
		w := &h.writes[n]
		if w.lost || w.done == never {
			continue
		}
		there, partly := h.there(img, n)
		end := h.lifeEnd(w.done)
		switch {
		case partly:
			return 0, fmt.Errorf("after power loss: write %d of volume %d blocks %d+%d is there only in part", n, w.volume, w.block, w.blocks)
		case there:
		case h.durable(w):
			return 0, fmt.Errorf("after power loss: write %d of volume %d block %d is gone, a flush answered since covers it (I1)", n, w.volume, w.block)
		case end == never:
			return 0, fmt.Errorf("write %d of volume %d block %d is gone, and no power was lost since it was answered", n, w.volume, w.block)
		default:
			gone = append(gone, n)
		}
	}
	// The image of each life is a prefix too: nothing may be there that was issued after something lost was answered,
	// unless it was answered in a later life, since hosts' requests in flight are replayed.
	// What was merely replaced since proves nothing: it may have been lost before it was.
	for n := range img.holds() {
		w := &h.writes[n]
		if w.done == never {
			continue
		}
		for _, g := range gone {
			l := &h.writes[g]
			if l.done < w.issued && w.done < h.lifeEnd(l.done) {
				return 0, fmt.Errorf("after power loss: write %d is there, write %d is gone, which was answered before that one was issued", n, g)
			}
		}
	}
	for _, g := range gone {
		h.writes[g].lost = true
	}
	h.lost += len(gone)
	h.forgetReplaced(img)
	if len(h.lives) > 0 {
		// What recovery has shown is durable: a later power loss must not take it.
		h.proven = max(h.proven, h.lives[len(h.lives)-1])
	}
	return len(gone), nil
}

// forgetReplaced: a write of an ended life that a later life has overwritten may have been lost before that. Nobody can
// tell any more, so that from now on it is a write without an answer.
func (h *history) forgetReplaced(img image) {
	held := img.holds()
	for n := uint64(1); n < uint64(len(h.writes)); n++ {
		w := &h.writes[n]
		if !w.lost && w.done != never && h.lifeEnd(w.done) != never && !h.durable(w) && !held[n] {
			w.done = never
		}
	}
}

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// A stamp: seed u64, number u64, block u64, volume u32, crc u32, then the number mixed with the position.
func stamp(p []byte, seed uint64, volume int, b int64, number uint64) {
	word := number*0x9e3779b97f4a7c15 ^ seed
	for i := 32; i < blockSize; i += 8 {
		binary.LittleEndian.PutUint64(p[i:], word+uint64(i))
	}
	binary.LittleEndian.PutUint64(p, seed)
	binary.LittleEndian.PutUint64(p[8:], number)
	binary.LittleEndian.PutUint64(p[16:], uint64(b))
	binary.LittleEndian.PutUint32(p[24:], uint32(volume))
	binary.LittleEndian.PutUint32(p[28:], stampCRC(p))
}

func stampCRC(p []byte) uint32 {
	crc := crc32.Checksum(p[:28], castagnoli)
	return crc32.Update(crc, castagnoli, p[32:blockSize])
}

var zeros [blockSize]byte

func readStamp(p []byte, seed uint64, volume int, b int64) (uint64, error) {
	if string(p[:blockSize]) == string(zeros[:]) {
		return 0, nil
	}
	if binary.LittleEndian.Uint64(p) != seed || binary.LittleEndian.Uint32(p[28:]) != stampCRC(p) {
		return 0, fmt.Errorf("volume %d block %d is torn or was never written by the load", volume, b)
	}
	if got, at := binary.LittleEndian.Uint32(p[24:]), binary.LittleEndian.Uint64(p[16:]); int(got) != volume || int64(at) != b {
		return 0, fmt.Errorf("volume %d block %d holds a block of volume %d block %d", volume, b, got, at)
	}
	return binary.LittleEndian.Uint64(p[8:]), nil
}

// readVolume reads all of a target.
func readVolume(t block.Target, size int64) ([]byte, error) {
	const chunk = 1 << 20
	raw := make([]byte, size)
	for off := int64(0); off < size; off += chunk {
		n := min(chunk, size-off)
		w := make(waiter, 1)
		r := &block.Request{Op: block.OpRead, Offset: off, Length: n, Data: raw[off:][:n], Completer: w}
		t.Submit([]*block.Request{r})
		<-w
		if r.Err != nil {
			return nil, fmt.Errorf("read at %d: %w", off, r.Err)
		}
	}
	return raw, nil
}

type waiter chan struct{}

func (w waiter) Complete(*block.Request) { w <- struct{}{} }

var errStale = errors.New("stale read")
