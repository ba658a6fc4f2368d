package volume

import (
	"context"
	"math/rand/v2"
	"path/filepath"
	"testing"

	"gantline/internal/block"
	"gantline/internal/journal"
	"gantline/internal/record"
)

// benchGroup is a serving group of one volume on files.
func benchGroup(b *testing.B, volumeSize, journalSize int64, subscriber bool) (*Volume, *Group) {
	dir := b.TempDir() // TMPDIR=/dev/shm shows the cost without a disk
	dev, err := block.CreateFile(filepath.Join(dir, "v.raw"), volumeSize)
	if err != nil {
		b.Fatal(err)
	}
	jdev, err := block.CreateFile(filepath.Join(dir, "j.raw"), journalSize)
	if err != nil {
		b.Fatal(err)
	}
	if err := journal.Create([]block.Device{jdev}, journal.ID{1}); err != nil {
		b.Fatal(err)
	}
	jnl, err := journal.Open([]block.Device{jdev})
	if err != nil {
		b.Fatal(err)
	}
	v := NewVolume("v", dev, Options{})
	g, err := Open(Config{Name: "g", Log: onJournal{jnl}, Members: []Member{{1, v}}})
	if err != nil {
		b.Fatal(err)
	}
	if subscriber {
		if _, err := g.Subscribe("s", SubscriberConfig{Changed: map[record.VolumeNumber]Bitmap{1: block.NewBitmap(volumeSize / (64 << 10))}}); err != nil {
			b.Fatal(err)
		}
	}
	if err := g.Serve(record.Row{Epoch: 1, Incarnation: 1, Node: "n", First: 1}); err != nil {
		b.Fatal(err)
	}
	ctx, stop := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- g.Run(ctx) }()
	b.Cleanup(func() {
		stop()
		if err := <-ended; err != nil {
			b.Error(err)
		}
		if err := g.Close(); err != nil {
			b.Error(err)
		}
		dev.Close()
	})
	return v, g
}

type countCompleter struct{ n int }

func (c *countCompleter) Complete(r *block.Request) {
	if r.Err != nil {
		panic(r.Err)
	}
	c.n++
}

// benchSubmit submits batches of random 4 KiB writes; payloads come in chunks, as a connection's do.
func benchSubmit(b *testing.B, batch int, subscriber bool) {
	const size = 1 << 30
	v, _ := benchGroup(b, size, 1<<30, subscriber)
	rng := rand.New(rand.NewPCG(1, 2))
	done := &countCompleter{}
	reqs := make([]*block.Request, batch)
	number := uint64(0)
	b.SetBytes(int64(batch) * 4096)
	b.ReportAllocs()
	b.ResetTimer()
	for b.Loop() {
		chunk := make([]byte, batch*4096)
		store := make([]block.Request, batch)
		for i := range reqs {
			number++
			r := &store[i]
			r.Op, r.Offset, r.Length = block.OpWrite, rng.Int64N(size/4096)*4096, 4096
			r.Data = chunk[i*4096 : (i+1)*4096]
			r.Session, r.Number, r.Floor, r.Completer = 7, number, number-1, done
			reqs[i] = r
		}
		v.Submit(reqs)
	}
	b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N*batch), "ns/write")
	if done.n != b.N*batch {
		b.Fatalf("%d of %d answered", done.n, b.N*batch)
	}
}

func BenchmarkSubmit32(b *testing.B)           { benchSubmit(b, 32, false) }
func BenchmarkSubmit1(b *testing.B)            { benchSubmit(b, 1, false) }
func BenchmarkSubmit32Subscribed(b *testing.B) { benchSubmit(b, 32, true) }

// BenchmarkWriteFlush1 is a write and a flush, one after the other.
func BenchmarkWriteFlush1(b *testing.B) {
	v, _ := benchGroup(b, 64<<20, 256<<20, false)
	data := make([]byte, 4096)
	rng := rand.New(rand.NewPCG(1, 2))
	for b.Loop() {
		if err := write(v, rng.Int64N(64<<20/4096)*4096, data, 0); err != nil {
			b.Fatal(err)
		}
		if err := flush(v); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkReadCached4K(b *testing.B) {
	v, g := benchGroup(b, 64<<20, 256<<20, false)
	if err := write(v, 0, make([]byte, 16<<20), 0); err != nil {
		b.Fatal(err)
	}
	if err := g.Checkpoint(context.Background()); err != nil {
		b.Fatal(err)
	}
	rng := rand.New(rand.NewPCG(1, 2))
	r, w := newRequest(block.OpRead, 0, 4096)
	reqs := []*block.Request{r}
	b.ReportAllocs()
	for b.Loop() {
		r.Offset = rng.Int64N(16<<20/4096) * 4096
		v.Submit(reqs)
		<-w
	}
}
