package volume

import (
	"bytes"
	"context"
	"errors"
	"testing"
	"time"

	"gantline/internal/block"
	"gantline/internal/record"
)

// TestFillOnQueue is I1 and I10 for the target of a move with its log in memory: no record is there to be replayed, so what
// was answered must not be wiped out by a region that is fetched again after a death.
func TestFillOnQueue(t *testing.T) {
	rng, seed := seeded(t)
	for range roundsOf(3, 12) {
		x := newTarget(t, rng, seed+rng.Uint64N(1<<20))
		var err error
		if x.mem, err = newMemDevs(seed, testVolumes, testSize, 1<<20); err != nil {
			t.Fatal(err)
		}
		h := &history{}
		for i := range x.sources {
			h.events = append(h.events, event{vol: i, n: testSize, data: x.sources[i].image})
		}
		for range 4 {
			x.begin()
			durable, err := load(rng, x.site, h, 20+rng.IntN(60))
			if err != nil {
				t.Fatal(err)
			}
			durable = max(durable, testVolumes)
			if rng.IntN(2) == 0 {
				durable = len(h.events) // the death of a process loses nothing
				x.stopFill()
				for i := range x.maps {
					x.maps[i] = x.maps[i].Kill()
				}
				x.kill()
			} else {
				x.stopFill()
				for i := range x.maps {
					x.maps[i] = x.maps[i].Crash()
				}
				x.crash()
			}
			x.begin()
			got := images(t, x.site)
			if err := survives(h, durable, got); err != nil {
				t.Fatal(err)
			}
			h = historyFrom(got)
			x.lose(rng)
		}
		x.begin()
		for range x.vols {
			if err := <-x.filled; err != nil {
				t.Fatal(err)
			}
		}
		x.close()
	}
}

// What comes last, when the log has nothing new, is made durable too: here one volume after the other is filled, and no host writes.
func TestFillOnQueueAtRest(t *testing.T) {
	rng, seed := seeded(t)
	x := newTarget(t, rng, seed)
	var err error
	if x.mem, err = newMemDevs(seed, testVolumes, testSize, 1<<20); err != nil {
		t.Fatal(err)
	}
	for i, s := range x.sources {
		s.delay = time.Duration(i) * 10 * time.Millisecond
	}
	x.begin()
	for range x.vols {
		if err := <-x.filled; err != nil {
			t.Fatal(err)
		}
	}
	x.close()
}

// A log in memory is sealed by one write, once the secondary has all. The power goes at each device call on the way: what
// is found is either sealed, at a cut that the secondary has, or serves on.
func TestSealQueueAnywhere(t *testing.T) {
	rng, seed := seeded(t)
	next := record.EpochID{Number: 2, Node: "b"}
	for at := 0; ; at++ {
		p, m := newMemPair(t, seed, 1<<20)
		p.cfg = Config{SyncDelay: time.Millisecond}
		p.open()
		m.open()
		m.subscribe(p)
		ctx, stop := context.WithCancel(t.Context())
		pumped := make(chan error, 1)
		go func() { pumped <- m.pump(ctx) }()
		if _, err := memLoad(rng, p, &history{}, 60); err != nil {
			t.Fatal(err)
		}
		struck := errors.New("power is about to go")
		calls := 0
		for _, d := range append(append([]*block.Crashable{p.mem.state}, p.mem.maps...), p.devs...) {
			d.SetHook(func(call block.Call, _, _ int64) error {
				if call == block.CallWrite || call == block.CallFlush {
					if calls++; calls > at {
						return struck
					}
				}
				return nil
			})
		}
		cut, err := p.g.Seal(ctx, next)
		stop()
		<-pumped
		if rng.IntN(2) == 0 {
			p.crash()
		} else {
			p.kill()
		}
		p.open()
		found, to, sealed := p.g.Sealed()
		switch {
		case err == nil && (!sealed || found != cut || to != next):
			t.Fatalf("call %d: sealed at %d, found %v at %d for %+v", at, cut, sealed, found, to)
		case sealed && (p.g.Appended() != found || m.jnl.Cursors().Durable != found):
			t.Fatalf("call %d: sealed at %d; the log ends at %d, the secondary has %d", at, found, p.g.Appended(), m.jnl.Cursors().Durable)
		case sealed:
			if row, _ := p.g.log.Table().Current(); !row.Closed || row.Last != found {
				t.Fatalf("call %d: sealed at %d, the row is %+v", at, found, row)
			}
			same(t, "sealed", images(t, p), images(t, m.site))
			if err := write(p.vols[0], 0, stamp(1, 4096), 0); err == nil {
				t.Fatal("a sealed group takes writes")
			}
			// The move goes back: another epoch begins behind the cut, and outlives a death.
			row := record.Row{Epoch: 3, Incarnation: 1, Node: "n", First: found + 1}
			if err := p.g.Serve(row); err != nil {
				t.Fatal(err)
			}
			p.epoch = 3
			p.kill()
			p.open()
			if _, _, still := p.g.Sealed(); still {
				t.Fatal("sealed again after a later epoch was opened")
			}
		default:
			m.subscribe(p)
			if err := step(p, m); err != nil {
				t.Fatal(err)
			}
			same(t, "not sealed, behind a step", images(t, p), images(t, m.site))
		}
		p.close()
		m.close()
		if err == nil {
			if at < 3 {
				t.Fatalf("a seal took only %d device calls", at)
			}
			return
		}
	}
}

// With the secondary not there the seal fails, and the volumes go on as they were.
func TestSealQueueWithoutSecondary(t *testing.T) {
	_, seed := seeded(t)
	p, m := newMemPair(t, seed, 1<<20)
	p.open()
	m.open()
	m.subscribe(p)
	if err := write(p.vols[0], 0, stamp(1, 4096), 0); err != nil {
		t.Fatal(err)
	}
	ctx, stop := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer stop()
	if cut, err := p.g.Seal(ctx, record.EpochID{Number: 2, Node: "b"}); err == nil {
		t.Fatalf("sealed at %d, which the secondary does not have", cut)
	}
	if err := write(p.vols[0], 4096, stamp(2, 4096), 0); err != nil {
		t.Fatal(err)
	}
	if got := read(t, p.vols[0], 4096, 4096); !bytes.Equal(got, stamp(2, 4096)) {
		t.Fatal("what was written is not there")
	}
	finish(t, p, m)
	p.close()
	m.close()
}
