package main

import (
	"encoding/binary"
	"fmt"
	"math/rand/v2"
	"os"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

const blockSize = 4096

// prepare makes the file that a side serves: every block written once, in order, by 4 KiB writes, and flushed. All
// sides' files come from here, so they lie on the disk and in the page cache alike. The same seed gives the same
// bytes, none of them zeros, so nothing can be skipped. An existing file is used up to its blocks again.
func prepare(path string, size int64, seed uint64) error {
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE|os.O_TRUNC, 0o644)
	if err != nil {
		return err
	}
	defer f.Close()
	if err := unix.Fallocate(int(f.Fd()), 0, 0, size); err != nil {
		return fmt.Errorf("%s: allocating %d bytes: %w", path, size, err)
	}
	random := rand.NewPCG(seed, 0)
	block := make([]byte, blockSize)
	for i := 0; i < len(block); i += 8 {
		binary.LittleEndian.PutUint64(block[i:], random.Uint64()|1)
	}
	for off := int64(0); off < size; off += blockSize {
		binary.LittleEndian.PutUint64(block, uint64(off)^seed|1)
		binary.LittleEndian.PutUint64(block[2048:], random.Uint64()|1)
		if _, err := f.WriteAt(block[:min(blockSize, size-off)], off); err != nil {
			return fmt.Errorf("%s: %w", path, err)
		}
	}
	return f.Sync()
}

// settle writes back everything that is dirty on the disk of dir, so that no side pays for what another left behind.
func settle(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	defer d.Close()
	return unix.Syncfs(int(d.Fd()))
}

func parseSize(s string) (int64, error) {
	units := []struct {
		name  string
		bytes float64
	}{{"KiB", 1 << 10}, {"MiB", 1 << 20}, {"GiB", 1 << 30}, {"TiB", 1 << 40}}
	number, factor := s, 1.0
	for _, u := range units {
		if n, ok := strings.CutSuffix(s, u.name); ok {
			number, factor = n, u.bytes
		}
	}
	v, err := strconv.ParseFloat(number, 64)
	if err != nil || v <= 0 || v*factor > 1<<50 {
		return 0, fmt.Errorf("%q is not a size (examples: 4096, 512MiB, 1.5GiB)", s)
	}
	n := int64(v * factor)
	if n%blockSize != 0 {
		return 0, fmt.Errorf("%q is not a multiple of %d", s, blockSize)
	}
	return n, nil
}
