package main

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"
)

// What the case of sparse volumes moves: so much data, in a volume that is full of it, and scattered over a larger one.
const (
	sparseData  = 1 << 30
	sparseSize  = 100 << 30
	sparsePiece = 1 << 20
)

// sparseMoved is what one move has cost.
type sparseMoved struct {
	seconds   float64
	memory    int64 // the most that source or target used more than before, bytes
	passed    int64 // bytes that both have read and written, of files and sockets
	allocated int64 // what the target's volume takes on the disk, bytes
	maps      int64 // length of the target's maps, bytes
}

// sparseMove moves both, by turns. Nobody writes: what is compared is the walk.
func sparseMove(ctx context.Context, b *bench) error {
	all := map[int64][][]float64{}
	for turn := range b.runs {
		for _, size := range []int64{sparseData, sparseSize} {
			s, err := b.moveScattered(ctx, size)
			if err != nil {
				return fmt.Errorf("%d GiB: %w", size>>30, err)
			}
			progress("  move-sparse %d/%d  %3d GiB: %.2f s, %d MB passed, %d MB of memory, %d MB at the target, maps of %d KB", turn+1, b.runs,
				size>>30, s.seconds, s.passed/1e6, s.memory/1e6, s.allocated/1e6, s.maps/1e3)
			all[size] = append(all[size], []float64{s.seconds, float64(s.passed) / 1e6, float64(s.memory) / 1e6, float64(s.allocated) / 1e6,
				float64(s.maps) / 1e6})
		}
	}
	m := map[int64][]float64{}
	for size, turns := range all {
		m[size] = medians(map[string][][]float64{"": turns})[""]
	}
	sparse, full := m[sparseSize], m[sparseData]
	const beside = "1 GiB, full"
	b.table.atMost("move-sparse, time", "s", sparse[0], full[0], beside, 1.5)
	b.table.atMost("move-sparse, bytes read and written", "MB", sparse[1], full[1], beside, 1.5)
	b.table.atMost("move-sparse, space at the target", "MB", sparse[3], full[3], beside, 1.1)
	b.table.below("move-sparse, memory more than before", "MB", sparse[2], 128)
	b.table.below("move-sparse, maps at the target", "MB", sparse[4], 4)
	return nil
}

// moveScattered moves a volume of a size with sparseData in it.
func (b *bench) moveScattered(ctx context.Context, size int64) (s sparseMoved, err error) {
	d, err := b.system(ctx)
	if err != nil {
		return s, err
	}
	b.moves++
	m := &migration{b: b, name: fmt.Sprintf("move%d", b.moves)}
	defer func() { err = errors.Join(err, m.remove(ctx)) }()
	file := filepath.Join(b.dir, nodeA+"-"+m.name+".raw")
	if err := scatter(file, size); err != nil {
		return s, err
	}
	if err := d.commands(ctx, fmt.Sprintf("volume create %s/%s --size %d --device %s", nodeA, m.name, size, file)); err != nil {
		return s, err
	}
	begin := time.Now()
	if err := b.copies(ctx, m.name, size); err != nil {
		return s, err
	}
	progress("  the initial copy of %d GiB took %.2f s", size>>30, time.Since(begin).Seconds())
	if err := d.commands(ctx, fmt.Sprintf("vvol create %[1]s --volume %[2]s/%[1]s", m.name, nodeA)); err != nil {
		return s, err
	}
	if err := settle(b.dir); err != nil {
		return s, err
	}
	before, err := b.passed()
	if err != nil {
		return s, err
	}
	stop := b.watchMemory()
	begin = time.Now()
	err = m.fill(ctx)
	s.seconds = time.Since(begin).Seconds()
	if s.memory = stop(); err != nil {
		return s, err
	}
	after, err := b.passed()
	s.passed = after - before
	s.allocated = allocated(filepath.Join(d.dir, nodeB, "volumes", m.name+".raw"))
	maps, _ := filepath.Glob(filepath.Join(d.dir, nodeB, "maps", groupOf(m.name)+"[.-]*"))
	for _, path := range maps {
		if f, err := os.Stat(path); err == nil {
			s.maps += f.Size()
		}
	}
	return s, err
}

// scatter makes a file with sparseData in it, in pieces that lie evenly, and holes between them.
func scatter(path string, size int64) error {
	f, err := os.Create(path)
	if err != nil {
		return err
	}
	defer f.Close()
	if err := f.Truncate(size); err != nil {
		return err
	}
	random := rand.NewChaCha8([32]byte{1})
	piece := make([]byte, sparsePiece)
	const pieces = sparseData / sparsePiece
	for i := range int64(pieces) {
		random.Read(piece)
		if _, err := f.WriteAt(piece, size/pieces/sparsePiece*sparsePiece*i); err != nil {
			return err
		}
	}
	return f.Sync()
}

func allocated(path string) int64 {
	var st syscall.Stat_t
	if syscall.Stat(path, &st) != nil {
		return 0
	}
	return st.Blocks * 512
}

// passed counts what source and target have read and written so far, of files above all.
func (b *bench) passed() (sum int64, err error) {
	for _, name := range []string{nodeA, nodeB} {
		data, err := os.ReadFile("/proc/" + strconv.Itoa(b.deployment.nodes[name].cmd.Process.Pid) + "/io")
		if err != nil {
			return 0, err
		}
		for line := range strings.Lines(string(data)) {
			key, value, _ := strings.Cut(strings.TrimSpace(line), ": ")
			if key == "rchar" || key == "wchar" {
				n, err := strconv.ParseInt(value, 10, 64)
				if err != nil {
					return 0, err
				}
				sum += n
			}
		}
	}
	return sum, nil
}

// watchMemory samples the memory of source and target. What it returns ends that and tells by how much one has grown at most.
func (b *bench) watchMemory() (stop func() int64) {
	nodes := []*process{b.deployment.nodes[nodeA], b.deployment.nodes[nodeB]}
	first, peak := make([]int64, len(nodes)), make([]int64, len(nodes))
	for i, p := range nodes {
		first[i], _ = p.memory()
	}
	end, done := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(done)
		tick := time.NewTicker(20 * time.Millisecond)
		defer tick.Stop()
		for {
			for i, p := range nodes {
				now, _ := p.memory()
				peak[i] = max(peak[i], now)
			}
			select {
			case <-end:
				return
			case <-tick.C:
			}
		}
	}()
	return func() (most int64) {
		close(end)
		<-done
		for i := range nodes {
			most = max(most, peak[i]-first[i])
		}
		return most
	}
}
