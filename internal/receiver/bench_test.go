package receiver_test

import (
	"context"
	"sync"
	"testing"
	"time"

	"gantline/internal/receiver"
	"gantline/internal/record"
	"gantline/internal/sender"
	"gantline/internal/wire"
)

// nullStore takes everything and keeps nothing.
type nullStore struct {
	mu     sync.Mutex
	table  record.Table
	stored record.Seq
}

func (n *nullStore) Append(recs []record.Record) error {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.stored = recs[len(recs)-1].Seq
	return nil
}
func (n *nullStore) AppendAfterGap(recs []record.Record) error { return n.Append(recs) }
func (n *nullStore) Sync() (record.Seq, error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.stored, nil
}
func (n *nullStore) Cut(record.Seq) error { return nil }

func (n *nullStore) Unfinished() (record.Seq, bool) { return 0, false }
func (n *nullStore) OpenRow(row record.Row) error {
	n.table = append(n.table, row)
	return nil
}
func (n *nullStore) Table() record.Table { return n.table }
func (n *nullStore) Cursors() (durable, stored record.Seq) {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.stored, n.stored
}

// Stored, Durable and Mark make it an Applier that does nothing.
func (n *nullStore) Stored([]record.Record) {}
func (n *nullStore) Durable(record.Seq)     {}
func (n *nullStore) Mark(record.Seq)        {}

// endless is a log of the same 4 KiB over and over.
type endless struct {
	*memLog
	data []byte
	crc  uint32
}

func (e *endless) Read(from record.Seq, maxRecords, maxBytes int) ([]record.Record, error) {
	n := min(maxRecords, maxBytes/len(e.data), int(e.Durable()-from+1))
	recs := make([]record.Record, n)
	for i := range recs {
		recs[i] = record.Record{Seq: from + record.Seq(i), Epoch: 1, Incarnation: 1, Op: record.OpWrite, Volume: 1,
			Length: uint32(len(e.data)), CRC: e.crc, Data: e.data}
	}
	return recs, nil
}

// BenchmarkStream sends 4 KiB records over loopback to a store that keeps nothing.
func BenchmarkStream(b *testing.B) {
	s := newSite(b)
	store := &nullStore{}
	recv, err := receiver.Open(receiver.Config{Group: "g", Store: store, Applier: store, Save: func([]byte) error { return nil }})
	if err != nil {
		b.Fatal(err)
	}
	if err := recv.Believe(receiver.Permit{Epoch: id(1, "a")}); err != nil {
		b.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	var wg sync.WaitGroup
	wg.Go(func() { _ = recv.Run(ctx) })
	s.life.Store(&secondary{recv: recv, stop: func() { cancel(); wg.Wait() }})
	data := make([]byte, 4096)
	log := &endless{newLog(record.Table{openRow(1, "a", 1)}, 0), data, record.Checksum(data)}
	b.SetBytes(4096)
	b.ReportAllocs()
	log.durable = record.Seq(b.N)
	start := time.Now()
	_, _ = s.send("a", log, func(c *sender.Config) { c.BatchRecords, c.Hello = 0, wire.Hello{Role: "node", Name: "a", Group: "g"} })
	for {
		if _, d, _ := log.has(); d >= record.Seq(b.N) {
			break
		}
		time.Sleep(100 * time.Microsecond)
	}
	b.ReportMetric(float64(b.N)/time.Since(start).Seconds(), "records/s")
}
