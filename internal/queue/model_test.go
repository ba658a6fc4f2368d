package queue

import (
	"bytes"
	"errors"
	"flag"
	"math/rand/v2"
	"testing"

	"gantline/internal/block"
	"gantline/internal/record"
)

var seedFlag = flag.Uint64("seed", 0, "replay this seed")

const (
	modelSize  = 8 << 20
	modelLimit = 64 << 10
)

// rig is a queue on devices that crash, and what must be true of it.
type rig struct {
	t     *testing.T
	rng   *rand.Rand
	state *block.Crashable
	bits  *block.Crashable
	disk  *block.Crashable
	q     *Queue
	m     *block.Bitmap

	queued  map[record.Seq][]byte // bytes of records that may still be read
	regions map[record.Seq]int64  // region of each record that is not settled
	highest record.Seq            // ever used
	inc     record.Incarnation
}

// Write and Flush make it the queue's backing. A region must be durably marked before it is written.
func (r *rig) Write(recs []record.Record) error {
	there, _, err := block.OpenBitmap(r.bits.Peek(1).Crash()) // what a loss of power now would leave
	if err != nil {
		return err
	}
	for _, rec := range recs {
		if !there.Test(int64(rec.Offset) / Region) {
			r.t.Errorf("record %d is written, its region is not marked on the disk", rec.Seq)
		}
		if _, err := r.disk.WriteAt(rec.Data, int64(rec.Offset)); err != nil {
			return err
		}
	}
	return nil
}

func (r *rig) Flush() error { return r.disk.Flush() }

func newRig(t *testing.T) *rig {
	seed := *seedFlag
	if seed == 0 {
		seed = rand.Uint64()
	}
	t.Logf("seed %d", seed)
	r := &rig{t: t, rng: rand.New(rand.NewPCG(seed, 1)), regions: map[record.Seq]int64{}}
	r.state = block.NewCrashable(StateSize, int64(seed))
	r.bits = block.NewCrashable(block.BitmapSize(Regions(modelSize)), int64(seed)+1)
	r.disk = block.NewCrashable(modelSize, int64(seed)+2)
	if err := Create(r.state); err != nil {
		t.Fatal(err)
	}
	if _, err := block.CreateBitmap(r.bits, Regions(modelSize), 1); err != nil {
		t.Fatal(err)
	}
	return r
}

func (r *rig) open() {
	r.t.Helper()
	var err error
	if r.q, err = Open(r.state, modelLimit); err != nil {
		r.t.Fatal(err)
	}
	m, lost, err := block.OpenBitmap(r.bits)
	if err != nil || len(lost) > 0 {
		r.t.Fatal(err, lost)
	}
	if err := r.q.AddVolume(1, m); err != nil {
		r.t.Fatal(err)
	}
	r.q.Attach(r)
	r.m, r.queued = m, map[record.Seq][]byte{}
	c := r.q.Cursors()
	if c.Appended < r.highest || c.Trimmed != c.Appended || c.Durable != c.Appended {
		r.t.Fatalf("opened at %+v, %d was used", c, r.highest)
	}
	for seq, region := range r.regions {
		if !m.Test(region) {
			r.t.Fatalf("region %d of record %d is not in doubt after the death", region, seq)
		}
	}
	r.inc++
	row := record.Row{Epoch: 1, Incarnation: r.inc, Node: "n", First: c.Appended + 1}
	if err := r.q.OpenRow(row); err != nil {
		r.t.Fatal(err)
	}
}

func (r *rig) append() {
	c, n := r.q.Cursors(), 1+r.rng.IntN(4)
	var recs []record.Record
	for i := range n {
		data := make([]byte, (1+r.rng.IntN(8))*512)
		for j := range data {
			data[j] = byte(r.rng.Uint32())
		}
		rec := record.Record{Seq: c.Appended + 1 + record.Seq(i), Epoch: 1, Incarnation: r.inc, Op: record.OpWrite, Volume: 1,
			Offset: uint64(r.rng.Int64N((modelSize-8192)/512)) * 512, Length: uint32(len(data)), Data: data}
		rec.Offset -= rec.Offset % Region / 2 &^ 511
		if rec.Offset/Region != (rec.Offset+uint64(rec.Length)-1)/Region {
			rec.Offset = rec.Offset / Region * Region
		}
		recs = append(recs, rec)
	}
	if r.rng.IntN(2) == 0 {
		r.q.Prepare(recs)
	}
	err := r.q.Append(recs)
	if errors.Is(err, ErrFull) {
		if got := r.q.Cursors(); got != c {
			r.t.Fatalf("a refused append has changed %+v to %+v", c, got)
		}
		return
	}
	if err != nil {
		r.t.Fatal(err)
	}
	for i := range recs {
		r.queued[recs[i].Seq] = bytes.Clone(recs[i].Data)
		r.regions[recs[i].Seq] = int64(recs[i].Offset) / Region
		clear(recs[i].Data) // the host's buffer is its own again
		r.highest = recs[i].Seq
	}
	if used, capacity := r.q.Space(); used > capacity {
		r.t.Fatalf("%d bytes of %d used", used, capacity)
	}
}

// read checks that every record that is there has the bytes that it came with.
func (r *rig) read() {
	c := r.q.Cursors()
	for from := c.Trimmed + 1; from <= c.Appended; {
		recs, err := r.q.Read(from, 3, 4096)
		if err != nil || len(recs) == 0 {
			r.t.Fatalf("read at %d of %+v: %v", from, c, err)
		}
		for _, rec := range recs {
			if rec.Seq != from || !bytes.Equal(rec.Data, r.queued[rec.Seq]) || rec.CRC != record.Checksum(rec.Data) {
				r.t.Fatalf("record %d came back as %d, with other bytes", from, rec.Seq)
			}
			from++
		}
	}
	if _, err := r.q.Read(c.Trimmed, 1, 1); c.Trimmed > 0 && !errors.Is(err, ErrTrimmed) {
		r.t.Fatalf("reading what was freed: %v", err)
	}
	if _, err := r.q.Read(c.Appended+1, 1, 1); !errors.Is(err, ErrNotStored) {
		r.t.Fatalf("reading what is not there: %v", err)
	}
}

// settle is what an owner does once all subscribers have everything up to seq, and the device too.
func (r *rig) settle() {
	c := r.q.Cursors()
	upTo := c.Appended - record.Seq(r.rng.IntN(4))
	r.q.Forget(upTo)
	if got := r.q.Cursors(); got.Trimmed > got.Durable {
		r.t.Fatalf("%+v", got)
	}
	if r.rng.IntN(2) == 0 {
		return
	}
	if err := r.q.Trim(upTo); err != nil {
		r.t.Fatal(err)
	}
	for seq := range r.regions {
		if seq <= min(upTo, c.Durable) {
			delete(r.regions, seq)
		}
	}
	r.marked("after a trim")
}

// marked: what is not settled is marked, in memory and on the disk.
func (r *rig) marked(when string) {
	there, _, err := block.OpenBitmap(r.bits.Peek(2).Crash())
	if err != nil {
		r.t.Fatal(err)
	}
	for seq, region := range r.regions {
		if !r.m.Test(region) || !there.Test(region) {
			r.t.Fatalf("%s: record %d is not settled, its region %d is not marked", when, seq, region)
		}
	}
}

func (r *rig) die(end func(*block.Crashable) *block.Crashable) {
	r.state, r.bits, r.disk = end(r.state), end(r.bits), end(r.disk)
}

// TestAgainstModel plays appends, reads, syncs, trims, clean stops, kills and losses of power.
func TestAgainstModel(t *testing.T) {
	r := newRig(t)
	r.open()
	for range 4000 {
		switch k := r.rng.IntN(100); {
		case k < 55:
			r.append()
		case k < 70:
			r.read()
		case k < 82:
			want := r.q.Cursors().Appended
			if got, err := r.q.Sync(); err != nil || got < want {
				t.Fatalf("sync to %d: %d, %v", want, got, err)
			}
		case k < 96:
			r.settle()
		case k < 97:
			if err := r.q.SetMeta([]byte{byte(k)}); err != nil {
				t.Fatal(err)
			}
		case k < 98:
			if err := r.q.Close(); err != nil {
				t.Fatal(err)
			}
			r.die((*block.Crashable).Kill)
			r.open()
		default:
			end := (*block.Crashable).Crash
			if r.rng.IntN(2) == 0 {
				end = (*block.Crashable).Kill
			}
			r.die(end)
			r.open()
		}
	}
}

// A stop with all settled leaves no mark, and no number unused.
func TestCleanStop(t *testing.T) {
	r := newRig(t)
	r.open()
	for range 20 {
		r.append()
		if _, err := r.q.Sync(); err != nil {
			t.Fatal(err)
		}
		if err := r.q.Trim(r.q.Cursors().Appended); err != nil {
			t.Fatal(err)
		}
	}
	clear(r.regions)
	if err := r.q.Close(); err != nil {
		t.Fatal(err)
	}
	r.die((*block.Crashable).Kill)
	r.open()
	if r.q.Base() != r.highest || r.q.InDoubt() || r.q.Suspect() {
		t.Errorf("begins behind %d, %d was the last number; in doubt %v", r.q.Base(), r.highest, r.q.InDoubt())
	}
}

// Whatever call fails: the queue is broken, says so, and the next run is told that the disk may have dropped something,
// unless it was the state's own.
func TestFailureBreaks(t *testing.T) {
	for name, dev := range map[string]func(*rig) *block.Crashable{
		"device": func(r *rig) *block.Crashable { return r.disk },
		"map":    func(r *rig) *block.Crashable { return r.bits },
	} {
		r := newRig(t)
		r.open()
		r.append()
		dev(r).SetHook(func(c block.Call, _, _ int64) error {
			if c == block.CallFlush {
				return errors.New("no")
			}
			return nil
		})
		for range 40 { // a region that is not marked yet comes up, and the device is flushed
			_ = r.q.Append([]record.Record{{Seq: r.q.Cursors().Appended + 1, Epoch: 1, Incarnation: r.inc, Op: record.OpZero, Volume: 1,
				Offset: uint64(r.rng.Int64N(8)) * Region, Length: 512}})
			_, _ = r.q.Sync()
		}
		if !errors.Is(r.q.Err(), ErrBroken) {
			t.Fatalf("%s: %v", name, r.q.Err())
		}
		if _, err := r.q.Sync(); !errors.Is(err, ErrBroken) {
			t.Errorf("%s: a sync of a broken queue: %v", name, err)
		}
		r.die((*block.Crashable).Kill)
		q, err := Open(r.state, modelLimit)
		if err != nil || !q.Suspect() {
			t.Errorf("%s: the next run is not told: %v", name, err)
		}
	}
}

// One bad copy of the state is repaired; with both bad nothing is guessed.
func TestDamagedState(t *testing.T) {
	for _, bad := range [][]int64{{0}, {slotSize}, {0, slotSize}} {
		r := newRig(t)
		r.open()
		for range 5 {
			r.append()
		}
		r.die((*block.Crashable).Kill)
		for _, at := range bad {
			if _, err := r.state.WriteAt([]byte("rubbish"), at+20); err != nil {
				t.Fatal(err)
			}
		}
		q, err := Open(r.state, modelLimit)
		switch {
		case len(bad) == 2:
			if !errors.Is(err, ErrDamaged) {
				t.Errorf("both copies bad: %v", err)
			}
		case err != nil || q.Repaired() == "" || q.Base() < r.highest:
			t.Errorf("copy at %d bad: %v", bad[0], err)
		}
	}
}
