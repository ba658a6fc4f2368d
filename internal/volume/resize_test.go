package volume

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"strings"
	"testing"
	"time"

	"gantline/internal/block"
	"gantline/internal/queue"
	"gantline/internal/record"
)

// fitMaps makes maps as long as the volumes need, as a node does when it opens them.
func fitMaps(t testing.TB, maps, devs []*block.Crashable, unit int64) {
	t.Helper()
	for i, d := range maps {
		b, losses, err := block.OpenBitmap(d)
		if err != nil || len(losses) > 0 {
			t.Fatalf("map %d: %v, losses %v", i, err, losses)
		}
		if bits := (devs[i].Size() + unit - 1) / unit; b.Bits() > bits {
			t.Fatalf("map %d has %d bits, its volume needs %d", i, b.Bits(), bits)
		} else if err := b.Grow(bits); err != nil {
			t.Fatal(err)
		}
	}
}

// reopen opens a primary and its subscriber after a death.
func reopen(t testing.TB, p *site, m *mirror) {
	t.Helper()
	if p.mem != nil {
		fitMaps(t, p.mem.maps, p.devs, queue.Region)
	}
	p.open()
	fitMaps(t, m.maps, p.devs, markSize)
	m.subscribe(p)
}

// enlarge does what a node does to a follower's volume, and to a primary's before the record.
func enlarge(t testing.TB, p *site, m *mirror, v int, size int64) {
	t.Helper()
	for _, d := range []*block.Crashable{m.devs[v], p.devs[v]} {
		if err := d.Grow(size); err != nil {
			t.Fatal(err)
		}
	}
	if err := m.vols[v].Extend(size); err != nil {
		t.Fatal(err)
	}
}

// scatter writes at random over the whole of all volumes, and flushes.
func scatter(rng *rand.Rand, p *site, steps int) error {
	for range steps {
		v := p.vols[rng.IntN(len(p.vols))]
		n := (rng.Int64N(20) + 1) * 512
		off := rng.Int64N((v.Size()-n)/512+1) * 512
		if rng.IntN(3) == 0 { // at the end, which was a part of a block before it grew
			off = v.Size() - n
		}
		if err := write(v, off, stamp(rng.Int(), n), 0); err != nil {
			return err
		}
	}
	for _, v := range p.vols {
		if err := flush(v); err != nil {
			return err
		}
	}
	return nil
}

// TestResizeUnderLoad grows volumes while hosts write and a copy or the stream goes on, kills either side, and finds equal
// images of the new size; on both kinds of log.
func TestResizeUnderLoad(t *testing.T) {
	for name, pair := range map[string]func(*testing.T, uint64) (*site, *mirror){
		"journal": func(t *testing.T, seed uint64) (*site, *mirror) { return newPair(t, seed, 16<<20) },
		"queue": func(t *testing.T, seed uint64) (*site, *mirror) {
			p, m := newMemPair(t, seed, 8<<20)
			m.open()
			p.open()
			m.subscribe(p)
			return p, m
		},
	} {
		t.Run(name, func(t *testing.T) {
			rng, seed := seeded(t)
			p, m := pair(t, seed)
			for round := range roundsOf(6, 60) {
				resizeRound(t, rng, p, m, round)
			}
			p.close()
			m.close()
		})
	}
}

func resizeRound(t *testing.T, rng *rand.Rand, p *site, m *mirror, round int) {
	t.Helper()
	ctx, stop := context.WithTimeout(t.Context(), 20*time.Second)
	defer stop()
	inStep := rng.IntN(2) == 0
	if inStep && m.sub.State() == SubStreaming {
		if err := m.sub.Suspend("test"); err != nil {
			t.Fatal(err)
		}
	}
	if err := scatter(rng, p, 30); err != nil {
		t.Fatal(err)
	}
	copied := make(chan error, 1)
	if m.sub.State() == SubSuspended && inStep {
		if _, err := m.sub.BeginStep(false); err != nil {
			t.Fatal(err)
		}
		go func() { copied <- m.sub.RunCopy(ctx, CopyOptions{Parallel: 2}) }()
	} else {
		copied <- nil
	}
	pumping, end := context.WithCancel(ctx)
	pumped := make(chan error, 1)
	go func() { pumped <- m.pump(pumping) }()
	v := rng.IntN(len(p.vols))
	size := p.vols[v].Size() + (rng.Int64N(400)+1)*512
	resized := make(chan error, 1)
	go func() {
		enlarge(t, p, m, v, size)
		resized <- p.g.Resize(record.VolumeNumber(v+1), size)
	}()
	if err := scatter(rng, p, 60); err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(<-resized, <-copied); err != nil {
		t.Fatalf("round %d: %v", round, err)
	}
	if err := scatter(rng, p, 30); err != nil {
		t.Fatal(err)
	}
	end()
	<-pumped
	switch rng.IntN(4) {
	case 0:
		for i := range m.maps {
			m.maps[i] = m.maps[i].Crash()
		}
		p.crash()
		reopen(t, p, m)
	case 1:
		for i := range m.maps {
			m.maps[i] = m.maps[i].Kill()
		}
		p.kill()
		reopen(t, p, m)
	case 2:
		m.crash()
		m.open()
	}
	if p.vols[v].Size() != size || m.vols[v].Size() != size {
		t.Fatalf("round %d: %d and %d bytes, want %d", round, p.vols[v].Size(), m.vols[v].Size(), size)
	}
	if m.sub.State() == SubResyncing {
		if err := m.sub.Suspend("test"); err != nil {
			t.Fatal(err)
		}
	}
	if err := step(p, m); err != nil {
		t.Fatalf("round %d: step: %v", round, err)
	}
	catchUp(t, p, m)
}

// catchUp is finish for a follower that may have applied what it has not acknowledged, or stored what it has not applied.
func catchUp(t *testing.T, p *site, m *mirror) {
	t.Helper()
	if err := m.applyStored(); err != nil {
		t.Fatal(err)
	}
	c := m.jnl.Cursors()
	if err := m.sub.Acked(c.Appended, c.Durable, m.g.Applied()); err != nil {
		t.Fatal(err)
	}
	finish(t, p, m)
}

// TestResizeCrashAtEveryCall cuts the primary's power at each call that a resize makes to the log and the maps, while the
// subscriber is out of the stream: no mark is lost, and what is written behind the old end afterwards arrives.
func TestResizeCrashAtEveryCall(t *testing.T) {
	for _, mem := range []bool{false, true} {
		t.Run(fmt.Sprintf("queue %v", mem), func(t *testing.T) {
			_, seed := seeded(t)
			for at := 1; ; at++ {
				if !resizeCrashAt(t, seed+uint64(at), at, mem) {
					if at < 8 {
						t.Fatalf("a resize made only %d calls", at-1)
					}
					return
				}
			}
		})
	}
}

func resizeCrashAt(t *testing.T, seed uint64, at int, mem bool) bool {
	rng := rand.New(rand.NewPCG(seed, 4))
	var p *site
	var m *mirror
	if mem {
		p, m = newMemPair(t, seed, 8<<20)
		m.open()
		p.open()
		m.subscribe(p)
	} else {
		p, m = newPair(t, seed, 16<<20)
	}
	if err := m.sub.Suspend("test"); err != nil {
		t.Fatal(err)
	}
	if err := scatter(rng, p, 20); err != nil {
		t.Fatal(err)
	}
	if err := p.g.Checkpoint(t.Context()); err != nil { // what is marked is durable, and the records may be gone
		t.Fatal(err)
	}
	size := p.vols[0].Size() + 8<<20 // regions of a queue too; maps of several pages are package block's to test
	enlarge(t, p, m, 0, size)
	devs := append([]*block.Crashable{}, m.maps...)
	if mem {
		devs = append(append(devs, p.mem.state), p.mem.maps...)
	} else {
		devs = append(devs, p.jdev)
	}
	struck := errors.New("power is about to go")
	calls := make(chan struct{}, 1<<12)
	for _, d := range devs {
		d.SetHook(func(call block.Call, _, _ int64) error {
			if call == block.CallRead || call == block.CallReadNowait || call == block.CallExtents {
				return nil
			}
			select {
			case calls <- struct{}{}:
			default:
			}
			if len(calls) >= at {
				return struck
			}
			return nil
		})
	}
	err := p.g.Resize(1, size)
	for i := range m.maps {
		m.maps[i] = m.maps[i].Crash()
	}
	p.crash()
	reopen(t, p, m)
	if err := scatter(rng, p, 10); err != nil {
		t.Fatal(err)
	}
	if err := write(p.vols[0], size-4096, stamp(at, 4096), 0); err != nil {
		t.Fatalf("call %d: %v", at, err)
	}
	if err := step(p, m); err != nil {
		t.Fatalf("call %d: step: %v", at, err)
	}
	same(t, fmt.Sprintf("call %d, behind the step", at), images(t, p), images(t, m.site))
	p.close()
	m.close()
	return err != nil
}

// A follower whose volume is smaller than the primary's stops at the record that says so, whatever came to be of the order in
// which both grow; and it goes on from there once it has the size.
func TestFollowerStopsAtASizeThatItLacks(t *testing.T) {
	_, seed := seeded(t)
	p, m := newPair(t, seed, 16<<20)
	const size = testSize + 100<<10
	if err := p.devs[0].Grow(size); err != nil {
		t.Fatal(err)
	}
	if err := p.g.Resize(1, size); err != nil {
		t.Fatal(err)
	}
	if err := write(p.vols[0], size-4096, stamp(1, 4096), block.FlagFUA); err != nil {
		t.Fatal(err)
	}
	err := m.pump(t.Context())
	if err == nil || !strings.Contains(err.Error(), "gantline volume resize") || m.g.Applied() != 0 {
		t.Fatalf("applied %d: %v", m.g.Applied(), err)
	}
	if err := m.devs[0].Grow(size); err != nil {
		t.Fatal(err)
	}
	if err := m.vols[0].Extend(size); err != nil {
		t.Fatal(err)
	}
	catchUp(t, p, m)
	p.close()
	m.close()
}

func TestResizeRefuses(t *testing.T) {
	_, seed := seeded(t)
	p, m := newPair(t, seed, 16<<20)
	v := p.vols[0]
	for _, c := range []struct {
		what string
		err  error
		want error
	}{
		{"smaller", p.g.Resize(1, testSize-512), block.ErrInvalid},
		{"larger than the device", p.g.Resize(1, testSize+512), block.ErrInvalid},
		{"no such volume", p.g.Resize(9, testSize), ErrUnknownVolume},
		{"a follower numbers nothing", m.g.Resize(1, testSize), ErrRole},
		{"a primary's needs a record", v.Extend(testSize), ErrRole},
		{"a follower's cannot shrink", m.vols[0].Extend(testSize - 512), block.ErrInvalid},
	} {
		if !errors.Is(c.err, c.want) {
			t.Errorf("%s: %v", c.what, c.err)
		}
	}
	if err := p.g.Resize(1, testSize); err != nil || v.Size() != testSize {
		t.Errorf("the size it has: %v", err)
	}
	finish(t, p, m)
	p.close()
	m.close()
	lone := NewVolume("l", block.NewCrashable(1<<20, 1), Options{Size: 4096})
	if err := write(lone, 4096, stamp(1, 512), 0); !errors.Is(err, block.ErrRange) {
		t.Errorf("behind the end of a volume that is shorter than its device: %v", err)
	}
	if err := lone.Extend(8192); err != nil || !bytes.Equal(read(t, lone, 4096, 4096), make([]byte, 4096)) {
		t.Errorf("lone: %v", err)
	}
	if err := write(lone, 4096, stamp(1, 512), 0); err != nil {
		t.Error(err)
	}
	if err := lone.Close(); err != nil {
		t.Error(err)
	}
}
