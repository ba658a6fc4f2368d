package journal

import (
	"bytes"
	"errors"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"gantline/internal/block"
	"gantline/internal/record"
)

// updates are the changes that go through the superblocks; each is applied to a journal of 10 durable records.
var updates = map[string]func(*Journal) error{
	"trim": func(j *Journal) error { return j.Trim(4) },
	"meta": func(j *Journal) error { return j.SetMeta([]byte("new")) },
	"row":  func(j *Journal) error { return j.OpenRow(record.Row{Epoch: 2, Incarnation: 1, Node: "b", First: 11}) },
	"cut":  func(j *Journal) error { return j.Cut(6) },
	"reset": func(j *Journal) error {
		return j.Reset(70, record.Table{{Epoch: 7, Incarnation: 1, Node: "c", First: 1}}, nil)
	},
	"gap": func(j *Journal) error {
		return j.AppendAfterGap([]record.Record{{Seq: 40, Epoch: 1, Incarnation: 1, Op: record.OpBegin}})
	},
}

// tenRecords' superblock takes several sectors, so that it can be torn.
func tenRecords(t *testing.T, seed int64) ([]*block.Crashable, *Journal) {
	mem := memory(t, seed, 64, small)
	j := mustOpen(t, mem)
	if err := j.SetMeta(bytes.Repeat([]byte{7}, 3000)); err != nil {
		t.Fatal(err)
	}
	openRow(t, j, 1, 1)
	appendWrites(t, j, 10, 4096)
	mustSync(t, j)
	return mem, j
}

// state is what an update may change, and nothing else.
func state(j *Journal) string {
	var b bytes.Buffer
	c := j.Cursors()
	c.Durable = 0
	_, _ = io.WriteString(&b, string(j.Meta()))
	p := &printer{w: &b}
	p.line("%+v %+v %+v", c, j.Table(), j.s.gaps)
	return b.String()
}

// TestCrashInUpdate crashes at every write and sync of every update, in many ways each: the journal opens, and has the
// state of before or after.
func TestCrashInUpdate(t *testing.T) {
	for name, update := range updates {
		_, j := tenRecords(t, 40)
		before := state(j)
		if err := update(j); err != nil {
			t.Fatal(name, err)
		}
		after := state(j)
		points := 0
		for at := 1; ; at++ {
			mem, j := tenRecords(t, 40)
			n, took := 0, false
			var images []*block.Crashable
			mem[0].SetHook(func(call block.Call, _, _ int64) error {
				if call != block.CallWrite && call != block.CallFlush {
					return nil
				}
				if n++; n == at {
					took = true
					for seed := range int64(8) { // before the call takes effect
						images = append(images, mem[0].Peek(seed))
					}
					return block.ErrIO // and with a part of it done
				}
				return nil
			})
			err := update(j)
			if !took {
				break
			}
			points++
			if !errors.Is(err, ErrBroken) {
				t.Fatal(name, err)
			}
			if err := j.Append(nil); !errors.Is(err, ErrBroken) {
				t.Fatal("a broken journal takes records:", err)
			}
			for seed := range int64(8) {
				images = append(images, mem[0].Peek(seed))
			}
			images = append(images, mem[0].Kill())
			for i, image := range images {
				again, err := Open([]block.Device{image})
				if err != nil {
					t.Fatalf("%s, point %d, image %d: %v", name, at, i, err)
				}
				got := state(again)
				if name == "gap" && again.Cursors().Appended == 10 {
					got = before // the gap is forgotten with its begin
				}
				if got != before && got != after {
					t.Fatalf("%s, point %d, image %d: %s\nbefore %s\nafter %s", name, at, i, got, before, after)
				}
				if r, err := Check([]block.Device{image}); err != nil || len(r.Problems) > 0 {
					t.Fatal("not repaired:", r.Problems, err)
				}
			}
		}
		if points < 4 {
			t.Fatalf("%s: %d points of failure only", name, points)
		}
	}
}

// TestUpdateIsInBothSuperblocks: what an update promised does not depend on either copy.
func TestUpdateIsInBothSuperblocks(t *testing.T) {
	for name, update := range updates {
		for slot := range int64(2) {
			mem, j := tenRecords(t, 41)
			if err := update(j); err != nil {
				t.Fatal(name, err)
			}
			mustSync(t, j)
			want := state(j)
			image := mem[0].Crash()
			flip(t, image, superAt+slot*superSlot+40)
			again, err := Open([]block.Device{image})
			if err != nil {
				t.Fatal(name, err)
			}
			if got := state(again); got != want {
				t.Fatalf("%s without superblock %d: %s\nwant %s", name, slot, got, want)
			}
			told := again.Recovery().Repaired
			if len(told) != 1 || !strings.Contains(told[0], string(rune('A'+slot))) {
				t.Fatal("the repair was not told:", told)
			}
			if r, err := Check([]block.Device{image}); err != nil || len(r.Problems) > 0 {
				t.Fatal("not repaired:", r.Problems, err)
			}
		}
	}
}

// TestUnwrittenSuperblock: a sync of one superblock failed, and the copy that the page cache still shows is not on the
// disk. The journal is reopened, which writes the superblocks again, and the power goes meanwhile.
func TestUnwrittenSuperblock(t *testing.T) {
	for seed := range int64(300) {
		mem, j := tenRecords(t, seed)
		failAt, n := 1+seed%2, int64(0)
		mem[0].SetHook(func(call block.Call, _, _ int64) error {
			if call == block.CallFlush {
				if n++; n == failAt {
					return block.ErrIO
				}
			}
			return nil
		})
		if err := j.TrimWithMeta(4, bytes.Repeat([]byte{byte(seed)}, 9000)); !errors.Is(err, ErrBroken) {
			t.Fatal(err)
		}
		if seed%3 == 0 {
			mem = kill(mem)
		}
		var images []*block.Crashable
		mem[0].SetHook(func(call block.Call, _, _ int64) error {
			if call == block.CallWrite || call == block.CallFlush {
				images = append(images, mem[0].Peek(seed), mem[0].Peek(seed+1000))
			}
			return nil
		})
		mustOpen(t, mem)
		for i, image := range images {
			again, err := Open([]block.Device{image})
			if err != nil {
				t.Fatalf("seed %d, image %d: %v", seed, i, err)
			}
			if c := again.Cursors(); c.Appended != 10 || c.Trimmed != 0 && c.Trimmed != 4 {
				t.Fatal(c)
			}
		}
	}
}

func TestBothCopiesDamaged(t *testing.T) {
	mem, _ := tenRecords(t, 42)
	image := mem[0].Crash()
	flip(t, image, superAt+40)
	flip(t, image, superAt+superSlot+40)
	if _, err := Open([]block.Device{image}); !errors.Is(err, ErrSuperblock) {
		t.Fatal(err)
	}
	var out bytes.Buffer
	if err := Dump(&out, []block.Device{image}); !errors.Is(err, ErrSuperblock) {
		t.Fatal(err)
	}
	for _, part := range []string{"superblock A: superblock checksum", "superblock B: superblock checksum", "entry on device 0: 10 e1.1"} {
		if !strings.Contains(out.String(), part) {
			t.Errorf("the dump lacks %q:\n%s", part, out.String())
		}
	}

	mem, _ = tenRecords(t, 43)
	image = mem[0].Crash()
	flip(t, image, 40)
	j, err := Open([]block.Device{image})
	if err != nil || len(j.Recovery().Repaired) != 1 {
		t.Fatal(err)
	}
	flip(t, image, labelSize+40)
	if j, err = Open([]block.Device{image}); err != nil || len(j.Recovery().Repaired) != 1 {
		t.Fatal("the first copy was not repaired:", err)
	}
	flip(t, image, 40)
	flip(t, image, labelSize+40)
	if _, err := Open([]block.Device{image}); !errors.Is(err, ErrSuperblock) {
		t.Fatal(err)
	}
}

// TestOpenSyncsBeforeItReads: nothing is read, let alone believed, before every device has been synced.
func TestOpenSyncsBeforeItReads(t *testing.T) {
	mem := memory(t, 44, 64, small, small)
	synced := make([]bool, 2)
	for i, d := range mem {
		d.SetHook(func(call block.Call, _, _ int64) error {
			if call == block.CallFlush {
				synced[i] = true
			} else if !synced[0] || !synced[1] {
				t.Errorf("%s on device %d before all were synced", call, i)
			}
			return nil
		})
	}
	mustOpen(t, mem)
	mem = kill(mem)
	mem[1].SetHook(func(call block.Call, _, _ int64) error {
		if call == block.CallFlush {
			return block.ErrIO
		}
		return nil
	})
	if _, err := Open(devices(mem)); !errors.Is(err, block.ErrIO) {
		t.Fatal("opened although a sync failed:", err)
	}
}

// TestFailedSyncEndsTheJournal: once, and for everybody.
func TestFailedSyncEndsTheJournal(t *testing.T) {
	for seed := range int64(40) {
		failOnce(t, seed, block.CallFlush)
		failOnce(t, seed, block.CallWrite)
	}
}

func failOnce(t *testing.T, seed int64, bad block.Call) {
	mem, j := tenRecords(t, seed)
	more := []record.Record{write(j, 11, 4096)}
	if seed%4 > 0 { // an entry alone
		more[0].Op, more[0].Data, more[0].CRC = record.OpTrim, nil, 0
	}
	if bad == block.CallFlush {
		if err := j.Append(more); err != nil {
			t.Fatal(err)
		}
	}
	once := false
	mem[0].SetHook(func(call block.Call, _, _ int64) error {
		if call == bad && !once {
			once = true
			return block.ErrIO
		}
		return nil
	})
	var err error
	if bad == block.CallFlush {
		_, err = j.Sync()
	} else {
		err = j.Append(more)
	}
	if !errors.Is(err, ErrBroken) || !errors.Is(err, block.ErrIO) {
		t.Fatal(err)
	}
	for name, err := range map[string]error{
		"append": j.Append([]record.Record{write(j, 12, 1)}), "trim": j.Trim(2), "meta": j.SetMeta(nil), "cut": j.Cut(2),
		"reset": j.Reset(0, nil, nil), "row": j.OpenRow(record.Row{Epoch: 9, Incarnation: 1, Node: "n", First: j.Cursors().Appended + 1}),
		"resume": j.Resume(), "adopt": j.AdoptTable(nil), "err": j.Err(),
	} {
		if !errors.Is(err, ErrBroken) {
			t.Errorf("%s after a failed %s: %v", name, bad, err)
		}
	}
	if _, err := j.Sync(); !errors.Is(err, ErrBroken) || j.Cursors().Durable != 10 {
		t.Fatal(err, j.Cursors())
	}
	if seed%3 == 0 {
		mem = kill(mem)
	} else {
		mem[0].SetHook(nil) // reopened by the same process: the page cache may still show what never reached the disk
	}
	again := mustOpen(t, mem)
	if c := again.Cursors(); c.Appended < 10 || c.Appended > 11 || c.Durable != c.Appended {
		t.Fatal(c)
	}
	// What recovery believed is on the disk now, though the sync before had failed.
	k := again.Cursors().Appended
	if got := mustOpen(t, crash(mem)).Cursors().Appended; got != k {
		t.Fatalf("recovered to %d, after a power loss to %d", k, got)
	}
}

func TestForeignAndTruncatedDevices(t *testing.T) {
	dir := t.TempDir()
	file := func(name string, size int64) block.Device {
		d, err := block.CreateFile(filepath.Join(dir, name), size)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = d.Close() })
		return d
	}
	a, b, c := file("a", 1<<20), file("b", 1<<20), file("c", 1<<20)
	two := []block.Device{a, b}
	if err := Create(two, testID); err != nil {
		t.Fatal(err)
	}
	if id, ok := Probe(b); !ok || id != testID {
		t.Fatal("probe", id, ok)
	}
	if _, ok := Probe(c); ok {
		t.Fatal("probe found a journal on an empty file")
	}
	for name, devs := range map[string][]block.Device{
		"none": nil, "one missing": {a}, "foreign": {a, c}, "twice": {a, a}, "too many": {a, b, c},
	} {
		if _, err := Open(devs); !errors.Is(err, ErrForeign) {
			t.Errorf("%s: %v", name, err)
		}
	}
	if err := Create([]block.Device{c}, ID{9}); err != nil {
		t.Fatal(err)
	}
	if _, err := Open([]block.Device{a, c}); !errors.Is(err, ErrForeign) {
		t.Error(err)
	}
	for _, d := range two {
		if err := d.Close(); err != nil {
			t.Fatal(err)
		}
	}
	open := func(name string) block.Device {
		d, err := block.OpenFile(filepath.Join(dir, name))
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = d.Close() })
		return d
	}
	j, err := Open([]block.Device{open("b"), open("a")}) // in any order
	if err != nil {
		t.Fatal(err)
	}
	openRow(t, j, 1, 1)
	appendWrites(t, j, 20, 8192)
	if err := j.Close(); err != nil {
		t.Fatal(err)
	}
	if err := os.Truncate(filepath.Join(dir, "b"), 1<<19); err != nil {
		t.Fatal(err)
	}
	if _, err := Open([]block.Device{open("a"), open("b")}); !errors.Is(err, ErrTruncated) {
		t.Fatal(err)
	}
}

func TestVersionAndSize(t *testing.T) {
	mem, _ := tenRecords(t, 46)
	image := mem[0].Crash()
	l := label{id: testID, count: 1, size: small}.encode()
	le.PutUint32(l[12:], 2)
	le.PutUint32(l[8:], record.Checksum(l[12:]))
	for at := range int64(2) {
		if _, err := image.WriteAt(l, at*labelSize); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := Open([]block.Device{image}); !errors.Is(err, ErrVersion) {
		t.Fatal(err)
	}
	for _, devs := range [][]block.Device{nil, {block.NewCrashable(4096, 1)}, {block.NewCrashable(SmallestSize()-1, 1)},
		{block.NewCrashable(1<<20, 1), block.NewCrashable(dataAtN, 1)}} {
		if err := Create(devs, testID); !errors.Is(err, ErrTooSmall) {
			t.Error(err)
		}
	}
	if err := Create([]block.Device{block.NewCrashable(SmallestSize(), 1)}, testID); err != nil {
		t.Error(err)
	}
}

func TestDump(t *testing.T) {
	mem, j := tenRecords(t, 47)
	if err := j.Trim(2); err != nil {
		t.Fatal(err)
	}
	if err := j.AppendAfterGap([]record.Record{{Seq: 40, Epoch: 1, Incarnation: 1, Op: record.OpBegin}}); err != nil {
		t.Fatal(err)
	}
	mustSync(t, j)
	var out bytes.Buffer
	if err := Dump(&out, devices(mem)); err != nil {
		t.Fatal(err)
	}
	for _, part := range []string{"superblock B: generation", "row: epoch 1 incarnation 1 of a, sequence 1 to open", "gap: between sequence 10 and 40",
		"\n  3 e1.1 run 2 write volume 3 offset 1536 length 4096", "40 e1.1 run 2 begin", "log ends at sequence 40"} {
		if !strings.Contains(out.String(), part) {
			t.Errorf("the dump lacks %q:\n%s", part, out.String())
		}
	}
	damage(t, mem[0], j, 5)
	out.Reset()
	if err := Dump(&out, devices(mem)); err != nil || !strings.Contains(out.String(), "PROBLEM: rot: sequence 5 was durable") {
		t.Errorf("%v\n%s", err, out.String())
	}
	if err := Dump(failing{}, devices(mem)); !errors.Is(err, io.ErrShortWrite) {
		t.Error(err)
	}
}

type failing struct{}

func (failing) Write([]byte) (int, error) { return 0, io.ErrShortWrite }

func FuzzDecodeSuper(f *testing.F) {
	mem := block.NewCrashable(small, 1)
	s, err := layout([]block.Device{mem}, testID, 64, pageSize)
	if err != nil {
		f.Fatal(err)
	}
	s.table = record.Table{{Epoch: 1, Incarnation: 1, Node: "a", First: 1}}
	s.gaps, s.meta = []gap{{5, 9}}, []byte("meta")
	f.Add(s.encode()[16:])
	f.Fuzz(func(t *testing.T, tail []byte) {
		if len(tail) > superSlot-16 {
			return
		}
		// The checksum is made right, so that what lies behind it is reached.
		b := append([]byte(superMagic+"\x00\x00\x00\x00\x00\x00\x00\x00"), tail...)
		le.PutUint32(b[12:], uint32(len(b)))
		le.PutUint32(b[8:], record.Checksum(b[12:]))
		if s, err := decodeSuper(b); err == nil {
			s.index(s.trimmed)
			s.slot(s.following(s.trimmed))
			if got, err := decodeSuper(s.encode()); err != nil || got.run != s.run {
				t.Fatal("does not survive another writing:", err)
			}
		}
	})
}
