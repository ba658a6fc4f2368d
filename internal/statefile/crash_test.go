package statefile

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"strconv"
	"strings"
	"testing"

	"gantline/internal/block"
)

// memory is a copy on a device that forgets what was not synced.
type memory struct {
	name string
	dev  *block.Crashable
}

func (m *memory) String() string { return m.name }
func (m *memory) Make() error    { return m.dev.Flush() }

func (m *memory) Read() ([]byte, error) {
	raw := make([]byte, m.dev.Size())
	_, err := m.dev.ReadAt(raw, 0)
	return raw, err
}

func (m *memory) Write(raw []byte) error {
	if _, err := m.dev.WriteAt(raw, 0); err != nil {
		return err
	}
	return m.dev.Flush()
}

// disks are the two copies in a test that dies again and again. What is behind a call that kills never happens.
type disks struct {
	rnd    *rand.Rand
	devs   [2]*block.Crashable
	until  int  // calls that are still let through
	failed bool // the next flush fails first, then everything does: the disk had an error before the end
}

var errDead = errors.New("the process is dead")

func newDisks(rnd *rand.Rand) *disks {
	d := &disks{rnd: rnd}
	for i := range d.devs {
		d.devs[i] = block.NewCrashable(16<<10, rnd.Int64())
	}
	return d
}

// open is a process that dies after so many calls of its disks.
func (d *disks) open(calls int) (*File, []byte, string, error) {
	d.until, d.failed = calls, d.rnd.IntN(4) == 0
	var copies [2]media
	for i, dev := range d.devs {
		dev.SetHook(func(call block.Call, _, _ int64) error {
			if call == block.CallRead {
				return nil
			}
			if d.until == 0 && !(d.failed && call == block.CallFlush) {
				return errDead
			}
			if d.until == 0 {
				d.failed = false
				return errors.New("input/output error")
			}
			d.until--
			return nil
		})
		copies[i] = &memory{name: string(rune('a' + i)), dev: dev}
	}
	return open("state", copies)
}

// end is the death of the process, or of the machine under it.
func (d *disks) end() {
	power := d.rnd.IntN(2) == 0
	for i, dev := range d.devs {
		if power {
			d.devs[i] = dev.Crash()
		} else {
			d.devs[i] = dev.Kill()
		}
	}
}

// body of record n: of another length than its neighbours', and other bytes in every sector.
func body(n int) []byte {
	return []byte(fmt.Sprintf("%d %s", n, strings.Repeat(string(rune('a'+n%26)), 1000+n%5*2500)))
}

func number(t *testing.T, body []byte) int {
	t.Helper()
	if body == nil {
		return 0
	}
	n, err := strconv.Atoi(strings.SplitN(string(body), " ", 2)[0])
	if err != nil {
		t.Fatal(err)
	}
	return n
}

// TestDeathAtEveryCall: whatever dies at whatever call of the disks, in a save, in the repair after it, with power or without,
// once or again and again, and though a sync had failed before: the record that is found is the last one that was promised
// or found, or the one that was being saved.
func TestDeathAtEveryCall(t *testing.T) {
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	lives, torn := 0, 0
	for run := range 150 {
		rnd := rand.New(rand.NewPCG(seed, uint64(run)))
		d := newDisks(rnd)
		promised, tried := 0, 0
		for range 25 {
			lives++
			f, got, repaired, err := d.open(rnd.IntN(14))
			if err == nil {
				if n := number(t, got); n < promised || n > tried {
					t.Fatalf("run %d: found record %d; %d was promised, %d tried", run, n, promised, tried)
				} else {
					promised, tried = n, n // whoever has read it may act on it
				}
				if repaired != "" {
					torn++
				}
			} else if errors.Is(err, ErrDamaged) {
				t.Fatalf("run %d: %v", run, err)
			}
			for err == nil {
				tried++
				save := f.Save
				if rnd.IntN(2) == 0 {
					save = f.SaveOne
				}
				if err = save(body(tried)); err == nil {
					promised = tried
				}
			}
			d.end()
		}
	}
	if torn == 0 {
		t.Errorf("in %d lives no copy was torn", lives)
	}
}

// TestFailedCopyIsNotTheOneToKeep: a process lives on after a save that failed. Whichever copy it was, the next save begins
// with it, and a death in that one finds the record of the other.
func TestFailedCopyIsNotTheOneToKeep(t *testing.T) {
	for fail := range 2 { // the first or the second copy of a save
		for seed := range uint64(200) {
			rnd := rand.New(rand.NewPCG(seed, 7))
			d := newDisks(rnd)
			f, _, _, err := d.open(1 << 30)
			if err != nil {
				t.Fatal(err)
			}
			for n := 1; n <= 3; n++ {
				if err := f.Save(body(n)); err != nil {
					t.Fatal(err)
				}
			}
			d.until, d.failed = 2*fail+1, true // its write goes through, its flush does not
			if err := f.Save(body(4)); err == nil {
				t.Fatal("the fault did not take hold")
			}
			d.until, d.failed = 1, false
			if err := f.Save(body(5)); err == nil {
				t.Fatal("the fault did not take hold")
			}
			for i, dev := range d.devs {
				d.devs[i] = dev.Crash()
			}
			_, got, _, err := d.open(1 << 30)
			if err != nil {
				t.Fatalf("copy %d failed, seed %d: %v", fail, seed, err)
			}
			if n := number(t, got); n < 3+fail {
				t.Fatalf("copy %d failed, seed %d: found record %d", fail, seed, n)
			}
		}
	}
}

// TestSaveOneCostsOneSync, and the save behind it brings both copies up to date.
func TestSaveOneCostsOneSync(t *testing.T) {
	d := newDisks(rand.New(rand.NewPCG(1, 1)))
	f, _, _, err := d.open(1 << 30)
	if err != nil {
		t.Fatal(err)
	}
	if err := f.Save(body(1)); err != nil {
		t.Fatal(err)
	}
	for n := 2; n < 6; n++ {
		before := d.until
		if err := f.SaveOne(body(n)); err != nil {
			t.Fatal(err)
		}
		if calls := before - d.until; calls != 2 { // one write, one flush
			t.Fatalf("%d calls", calls)
		}
	}
	if err := f.Save(body(6)); err != nil {
		t.Fatal(err)
	}
	for i := range 2 { // either copy alone has it
		if _, err := d.devs[i].WriteAt(make([]byte, 100), 0); err != nil {
			t.Fatal(err)
		}
		_, got, _, err := d.open(1 << 30)
		if err != nil || number(t, got) != 6 {
			t.Fatalf("without copy %d: %q, %v", i, got, err)
		}
	}
}

// cached is a copy of which the page cache may hold what the disk has not.
type cached struct {
	name        string
	cache, disk []byte
	writes      *int // that are left
}

func (c *cached) String() string        { return c.name }
func (c *cached) Read() ([]byte, error) { return c.cache, nil }
func (c *cached) Make() error           { return nil }

// Write tears the copy if the machine goes down in it.
func (c *cached) Write(raw []byte) error {
	if *c.writes--; *c.writes < 0 {
		c.disk = append(append([]byte(nil), raw[:len(raw)/2]...), c.disk[len(raw)/2:]...)
		return errDead
	}
	c.cache, c.disk = raw, raw
	return nil
}

// TestCacheThatIsNotTheDisk: a save failed in the sync of its first copy, or was killed before it; the page cache shows the
// copy as good. The machine goes down in the repair.
func TestCacheThatIsNotTheDisk(t *testing.T) {
	for newest := range 2 {
		for writes := range 3 {
			old, young := encode(6+uint64(newest), body(1)), encode(7+uint64(newest), body(6))
			c := [2]*cached{{name: "a", cache: old, disk: old, writes: &writes}, {name: "b", cache: old, disk: old, writes: &writes}}
			c[newest].cache = young // the disk has some of it
			c[newest].disk = append(append([]byte(nil), young[:len(old)/3]...), old[len(old)/3:]...)
			left := writes
			_, _, _, err := open("state", [2]media{c[0], c[1]})
			if (err != nil) != (left < 2) {
				t.Fatal(err)
			}
			writes = 2
			for _, c := range c {
				c.cache = c.disk
			}
			_, got, _, err := open("state", [2]media{c[0], c[1]})
			if err != nil {
				t.Fatalf("newest %d, dead in write %d of the repair: %v", newest, left+1, err)
			}
			if n := number(t, got); left > 0 && n != 6 {
				t.Fatalf("newest %d, dead in write %d of the repair: found record %d", newest, left+1, n)
			}
		}
	}
}
