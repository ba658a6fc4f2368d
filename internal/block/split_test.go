package block

import (
	"bytes"
	"errors"
	"math/rand/v2"
	"path/filepath"
	"sync"
	"testing"
)

// Splitting is invisible but for time: whatever is written, by sizes that make and break large folios, reads back.
func TestSplittingChangesNothing(t *testing.T) {
	const size = 3*splitLength + 12345
	dev, err := CreateFile(filepath.Join(t.TempDir(), "f"), size)
	if err != nil {
		t.Fatal(err)
	}
	defer dev.Close()
	f := dev.(*File)
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	random := rand.New(rand.NewPCG(seed, 0))
	want := make([]byte, size)
	lengths := []int{1, 512, 4096, 16 << 10, 64 << 10, 1 << 20, splitLength + 4096}
	noise := make([]byte, 2*lengths[6]) // a write is a part of it: byte by byte they would take seconds
	rand.NewChaCha8([32]byte{byte(seed), byte(seed >> 8)}).Read(noise)
	done := 0
	for i := range 4000 {
		n := lengths[2]
		if i%50 == 0 {
			n = lengths[random.IntN(len(lengths))]
		}
		off := random.IntN(size - n + 1)
		p := want[off : off+n]
		copy(p, noise[random.IntN(len(noise)-n):])
		if i%3 == 0 {
			err = f.WritevAt([][]byte{p[:n/2], p[n/2:]}, int64(off))
		} else {
			_, err = f.WriteAt(p, int64(off))
		}
		if err != nil {
			t.Fatal(err)
		}
		if i%100 == 0 {
			if err := f.Flush(); err != nil {
				t.Fatal(err)
			}
		}
		for _, r := range f.splits.regions {
			if r.state == splitDone {
				done++
			}
		}
	}
	if done == 0 && !f.splits.off.Load() {
		t.Error("no region was ever split")
	}
	got := make([]byte, size)
	if _, err := f.ReadAt(got, 0); err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(got, want) {
		t.Error("the file does not read as it was written")
	}
}

func TestSplitterCounts(t *testing.T) {
	s := newSplitter(2*splitLength + 1)
	if len(s.regions) != 3 {
		t.Fatalf("%d regions", len(s.regions))
	}
	if s.due(0, splitSmall+1) || !s.due(0, splitSmall) {
		t.Error("only small writes split, and the first does")
	}
	s.tried(0, false)
	if s.due(0, 4096) {
		t.Error("a region found dirty is tried again at once")
	}
	for i := range splitAfter * 2 {
		if begin := s.moved(0, 4096); begin != (i == splitAfter*2-1) {
			t.Fatalf("write-back begins after %d writes: %v", i+1, begin)
		}
	}
	if !s.due(0, 4096) {
		t.Error("it is not tried again")
	}
	s.tried(0, true)
	s.tried(splitLength, true)
	s.tried(2*splitLength, true)
	if s.due(0, 4096) || s.moved(0, 4096) {
		t.Error("a split region is not left alone")
	}
	s.moved(splitLength-1, splitLarge)
	if !s.due(0, 1) || !s.due(splitLength, 1) || s.due(2*splitLength, 1) {
		t.Error("a large write concerns the regions that it touches, and no others")
	}
	if none := newSplitter(splitMaxBytes + 1); none.due(0, 1) || none.moved(0, 1) {
		t.Error("a file without counters splits")
	}
}

func TestSplitterConcurrently(t *testing.T) {
	dev, err := CreateFile(filepath.Join(t.TempDir(), "f"), 2*splitLength)
	if err != nil {
		t.Fatal(err)
	}
	defer dev.Close()
	var all sync.WaitGroup
	for w := range 4 {
		all.Go(func() {
			p := bytes.Repeat([]byte{byte(w + 1)}, 4096)
			for i := range 500 {
				if _, err := dev.WriteAt(p, int64((i*4+w)%1024)*4096); err != nil {
					t.Error(err)
				}
				if i%100 == 0 {
					_, _ = dev.ReadAt(make([]byte, splitLarge), 0)
				}
			}
		})
	}
	all.Wait()
}

// A failure that WriteBack is told of reaches those who flush meanwhile, since the system tells it once.
func TestWriteBackFailsFlushes(t *testing.T) {
	begun, goOn := make(chan struct{}), make(chan struct{})
	f := newFlusher(func() error { close(begun); <-goOn; return nil })
	flushed := make(chan error)
	go func() { flushed <- f.Flush() }()
	<-begun
	f.lost(ErrIO)
	close(goOn)
	if err := <-flushed; !errors.Is(err, ErrIO) {
		t.Errorf("a flush beside the loss returned %v", err)
	}
	if !errors.Is(f.Failed(), ErrIO) {
		t.Error("the failure is forgotten")
	}
}

func TestWriteBack(t *testing.T) {
	dev, err := CreateFile(filepath.Join(t.TempDir(), "f"), 1<<20)
	if err != nil {
		t.Fatal(err)
	}
	f := dev.(*File)
	if _, err := f.WriteAt(make([]byte, 1<<20), 0); err != nil {
		t.Fatal(err)
	}
	f.BeginWriteBack(0, 1<<19)
	if err := f.WriteBack(0, 1<<20); err != nil {
		t.Error(err)
	}
	if err := f.WriteBack(1<<20, 1); !errors.Is(err, ErrRange) {
		t.Errorf("beyond the end: %v", err)
	}
	f.Close()
	f.BeginWriteBack(0, 1) // nothing to write back, and no panic
	if err := f.WriteBack(0, 1); !errors.Is(err, ErrClosed) {
		t.Errorf("closed: %v", err)
	}
}
