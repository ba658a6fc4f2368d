package journal

import (
	"errors"
	"fmt"
	"testing"

	"gantline/internal/block"
	"gantline/internal/record"
)

// growable is a journal of one or three devices whose rings have gone around, so far that the next record stands at a place
// of its own for each turn, and that is then filled up.
func growable(t *testing.T, turn, devs int) ([]*block.Crashable, *Journal, []record.Record) {
	t.Helper()
	sizes := []int64{dataAt0 + 40*pageSize}
	if devs > 1 {
		sizes = []int64{dataAt0 + pageSize, dataAtN + 3*pageSize, dataAtN + 38*pageSize}
	}
	mem := memory(t, int64(turn), 40, sizes...)
	j := mustOpen(t, mem)
	openRow(t, j, 1, 1)
	for range turn {
		appendWrites(t, j, 1, 1)
		if err := j.Trim(mustSync(t, j)); err != nil {
			t.Fatal(err)
		}
	}
	var recs []record.Record
	for {
		next := j.Cursors().Appended + 1
		r := write(j, next, 1+int(next%2)*pageSize)
		if err := j.Append([]record.Record{r}); errors.Is(err, ErrFull) {
			mustSync(t, j)
			return mem, j, recs
		} else if err != nil {
			t.Fatal(err)
		}
		recs = append(recs, r)
	}
}

// A full journal takes records again at once when a device has joined, wherever its rings have wrapped; nothing that it
// holds is moved or lost, and what it can hold has grown by what the device has.
func TestJoin(t *testing.T) {
	for _, devs := range []int{1, 3} {
		for turn := range 81 {
			mem, j, recs := growable(t, turn, devs)
			_, before := j.Space()
			for range 2 {
				dev := block.NewCrashable(dataAtN+11*pageSize, int64(turn))
				if err := Prepare(dev, testID, len(mem)); err != nil {
					t.Fatal(err)
				}
				if err := j.Join(dev); err != nil {
					t.Fatal(err)
				}
				mem = append(mem, dev)
				more := appendWrites(t, j, 5, pageSize)
				recs = append(recs, more...)
				mustEqual(t, readAll(t, j, recs[0].Seq), recs)
			}
			if _, after := j.Space(); after != before+2*10*pageSize {
				t.Fatalf("grew from %d to %d bytes", before, after)
			}
			mustSync(t, j)
			j = mustOpen(t, crash(mem))
			mustEqual(t, readAll(t, j, recs[0].Seq), recs)
			if j.Recovery().Joined != 0 {
				t.Fatal("what had joined has joined again")
			}
			// Once around, and more, in the new rings.
			openRow(t, j, 1, 2)
			for range 100 {
				if err := j.Trim(mustSync(t, j)); err != nil {
					t.Fatal(err)
				}
				got := appendWrites(t, j, 1, 2*pageSize)
				mustEqual(t, readAll(t, j, got[0].Seq), got)
			}
		}
	}
}

// The process or the machine dies at each write and each sync of the change: the log is whole, the device has joined at the
// next opening, and the journal takes records.
func TestDeathInJoin(t *testing.T) {
	for _, turn := range []int{0, 1, 17, 39, 41} {
		for _, onNew := range []bool{false, true} {
			for n, died := 1, true; died; n++ {
				for _, power := range []bool{false, true} {
					t.Run(fmt.Sprintf("turn %d, new device %v, call %d, power %v", turn, onNew, n, power), func(t *testing.T) {
						mem, j, recs := growable(t, turn, 1)
						dev := block.NewCrashable(dataAtN+9*pageSize, int64(n))
						left := n
						hook := func(call block.Call, _, _ int64) error {
							if call == block.CallWrite || call == block.CallFlush {
								if left--; left <= 0 {
									return block.ErrIO
								}
							}
							return nil
						}
						if onNew {
							dev.SetHook(hook)
						} else {
							mem[0].SetHook(hook)
						}
						err := Prepare(dev, testID, 1)
						if err == nil { // else its owner does not note it
							mem = append(mem, dev)
							err = j.Join(dev)
						}
						died = err != nil
						again := kill
						if power {
							again = crash
						}
						j = mustOpen(t, again(mem))
						mustEqual(t, readAll(t, j, recs[0].Seq), recs)
						if len(mem) == 1 {
							return
						}
						openRow(t, j, 1, 2)
						appendWrites(t, j, 3, pageSize)
					})
				}
			}
		}
	}
}

// A device that is not prepared for this journal, or not as the next one, is refused, and nothing is changed; one that is
// missing when the journal is opened, too.
func TestJoinRefuses(t *testing.T) {
	mem, j, recs := growable(t, 3, 1)
	prepared := func(id ID, index int) *block.Crashable {
		dev := block.NewCrashable(dataAtN+9*pageSize, 1)
		if err := Prepare(dev, id, index); err != nil {
			t.Fatal(err)
		}
		return dev
	}
	for name, dev := range map[string]*block.Crashable{
		"blank": block.NewCrashable(dataAtN+9*pageSize, 1), "of another journal": prepared(ID{9}, 1), "the one after the next": prepared(testID, 2),
	} {
		if err := j.Join(dev); !errors.Is(err, ErrForeign) {
			t.Fatalf("%s: %v", name, err)
		}
	}
	if err := Prepare(block.NewCrashable(dataAtN+pageSize, 1), testID, 1); !errors.Is(err, ErrTooSmall) {
		t.Fatalf("too small: %v", err)
	}
	dev := prepared(testID, 1)
	if err := j.Join(dev); err != nil {
		t.Fatal(err)
	}
	mem = append(mem, dev)
	mustEqual(t, readAll(t, j, recs[0].Seq), recs)
	if _, err := Open(devices(kill(mem[:1]))); !errors.Is(err, ErrForeign) {
		t.Fatalf("opened without the device that has joined: %v", err)
	}
}
