package proof

import (
	"bytes"
	"context"
	"io"
	"math/rand/v2"
	"strings"
	"sync"
	"testing"
	"time"

	"gantline/internal/block"
)

// logDisk is a group of volumes that remembers the order of its writes, so that a test can build the image of any
// prefix, and of things that are no prefix.
type logDisk struct {
	mu   sync.Mutex
	log  []logged
	img  [][]byte
	slow bool
}

type logged struct {
	volume int
	off    int64
	data   []byte
}

type logVolume struct {
	disk   *logDisk
	volume int
}

func (v logVolume) Submit(reqs []*block.Request) {
	for _, r := range reqs {
		v.disk.mu.Lock()
		switch r.Op {
		case block.OpWrite:
			v.disk.log = append(v.disk.log, logged{v.volume, r.Offset, bytes.Clone(r.Data)})
			copy(v.disk.img[v.volume][r.Offset:], r.Data)
		case block.OpRead:
			copy(r.Data, v.disk.img[v.volume][r.Offset:])
		}
		v.disk.mu.Unlock()
		r.Finish(nil)
	}
}

func (d *logDisk) image(keep func(i int) bool, size int64) []io.ReaderAt {
	var imgs [2][]byte
	for v := range imgs {
		imgs[v] = make([]byte, size)
	}
	for i, w := range d.log {
		if keep(i) {
			copy(imgs[w.volume][w.off:], w.data)
		}
	}
	return []io.ReaderAt{bytes.NewReader(imgs[0]), bytes.NewReader(imgs[1])}
}

const size = 64 * BlockSize

func runLoad(t *testing.T, seed uint64) (*Load, *logDisk) {
	t.Helper()
	t.Logf("seed %d", seed)
	d := &logDisk{img: [][]byte{make([]byte, size), make([]byte, size)}}
	l := New([]Disk{{logVolume{d, 0}, size}, {logVolume{d, 1}, size}}, Options{Seed: seed, ReadPercent: 20, FlushEvery: 10})
	ctx, cancel := context.WithTimeout(t.Context(), 200*time.Millisecond)
	defer cancel()
	if err := l.Run(ctx); err != nil {
		t.Fatal(err)
	}
	if s := l.Stats(); s.Writes < 50 || s.Reads == 0 || s.Flushes == 0 || s.P50 == 0 {
		t.Fatalf("the load did nothing: %+v", s)
	}
	return l, d
}

func TestEveryPrefixPassesAndNothingElse(t *testing.T) {
	l, d := runLoad(t, rand.Uint64())
	for range 50 {
		k := rand.IntN(len(d.log) + 1)
		v, err := l.CheckPrefix(d.image(func(i int) bool { return i < k }, size))
		if err != nil || !v.OK {
			t.Fatalf("prefix of %d of %d writes: %+v %v", k, len(d.log), v, err)
		}
		if v.Equal != (v.Behind == 0) || k == len(d.log) && !v.Equal {
			t.Fatalf("prefix of %d of %d writes: %+v", k, len(d.log), v)
		}
	}
	caught := 0
	for range 50 {
		hole := max(0, len(d.log)-2*64) + rand.IntN(min(len(d.log), 2*64)-16)
		v, err := l.CheckPrefix(d.image(func(i int) bool { return i != hole }, size))
		if err != nil {
			t.Fatal(err)
		}
		if !v.OK {
			caught++
		}
	}
	// A hole that later writes cover wholly is none; most are not.
	if caught == 0 {
		t.Fatal("no image with a missing write was caught")
	}
}

func TestVolumesOfAGroupAreOneCut(t *testing.T) {
	l, d := runLoad(t, 7)
	half := len(d.log) / 2
	v, err := l.CheckPrefix(d.image(func(i int) bool { return i < half || d.log[i].volume == 0 }, size))
	if err != nil || v.OK || !strings.Contains(v.Why, "answered before") {
		t.Fatalf("volume 0 ahead of volume 1 passed: %+v %v", v, err)
	}
}

func TestTornWriteIsCaught(t *testing.T) {
	l, d := runLoad(t, 9)
	imgs := d.image(func(int) bool { return true }, size)
	raw, _ := io.ReadAll(io.NewSectionReader(imgs[0], 0, size))
	for b := range int64(64) {
		if n, _ := readStamp(raw[b*BlockSize:], 9, 0, b); n != 0 {
			copy(raw[b*BlockSize+512:], make([]byte, 512))
			break
		}
	}
	v, err := l.CheckPrefix([]io.ReaderAt{bytes.NewReader(raw), imgs[1]})
	if err != nil || v.OK || !strings.Contains(v.Why, "torn") {
		t.Fatalf("%+v %v", v, err)
	}
}

func TestStaleReadIsCaught(t *testing.T) {
	d := &logDisk{img: [][]byte{make([]byte, size), make([]byte, size)}}
	l := New([]Disk{{logVolume{d, 0}, size}, {forgetful{}, size}}, Options{Seed: 3, ReadPercent: 50})
	ctx, cancel := context.WithTimeout(t.Context(), time.Second)
	defer cancel()
	if err := l.Run(ctx); err == nil || !strings.Contains(err.Error(), "stale") && !strings.Contains(err.Error(), "never") {
		t.Fatalf("got %v", err)
	}
}

// forgetful answers everything and keeps nothing.
type forgetful struct{}

func (forgetful) Submit(reqs []*block.Request) {
	for _, r := range reqs {
		r.Finish(nil)
	}
}
