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

// prepare makes the file that a side serves: all of it written once, in order, by writes of the length given, and
// flushed. All sides' files come from here, so they lie on the disk and in the page cache alike. The bytes are the same
// each time, and no block is zeros, so nothing can be skipped.
func prepare(path string, size, length int64) error {
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE|os.O_TRUNC, 0o644)
	if err != nil {
		return err
	}
	defer f.Close()
	if err := unix.Fallocate(int(f.Fd()), 0, 0, size); err != nil {
		return fmt.Errorf("%s: allocating %d bytes: %w", path, size, err)
	}
	random := rand.NewPCG(1, 0)
	chunk := make([]byte, length)
	for i := 0; i < len(chunk); i += 8 {
		binary.LittleEndian.PutUint64(chunk[i:], random.Uint64())
	}
	for off := int64(0); off < size; off += length {
		for i := int64(0); i < length; i += blockSize {
			binary.LittleEndian.PutUint64(chunk[i:], uint64(off+i)|1) // every block is another
			binary.LittleEndian.PutUint64(chunk[i+blockSize/2:], random.Uint64())
		}
		if _, err := f.WriteAt(chunk[:min(length, size-off)], off); err != nil {
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
	if err != nil || !(v > 0 && v*factor <= 1<<50) { // NaN compares false
		return 0, fmt.Errorf("%q is not a size (examples: 4096, 512MiB, 1.5GiB)", s)
	}
	n := int64(v * factor)
	if n%blockSize != 0 {
		return 0, fmt.Errorf("%q is not a multiple of %d", s, blockSize)
	}
	return n, nil
}
