package volume

import (
	"fmt"
	"testing"

	"gantline/internal/block"
	"gantline/internal/record"
)

// cloneDevices copies what devices of a closed site hold: a backup.
func cloneDevices(t *testing.T, devs ...*block.Crashable) []*block.Crashable {
	t.Helper()
	var all []*block.Crashable
	for i, d := range devs {
		c := block.NewCrashable(d.Size(), int64(i)+1000)
		if _, err := c.WriteAt(deviceBytes(t, d), 0); err != nil {
			t.Fatal(err)
		}
		if err := c.Flush(); err != nil {
			t.Fatal(err)
		}
		all = append(all, c)
	}
	return all
}

// The secondary's disk is put back to an older state while it is out of the stream, at rest between two intervals, or inside a
// step, or while the primary is away. At the next hello all that it may lack is marked, durably, and a step mends it.
func TestSecondaryPutBack(t *testing.T) {
	for name, leave := range map[string]func(t *testing.T, p *site, m *mirror){
		"suspended": func(t *testing.T, p *site, m *mirror) {},
		"at rest": func(t *testing.T, p *site, m *mirror) {
			if _, err := m.sub.BeginStep(false); err != nil {
				t.Fatal(err)
			}
			stop := m.pumping()
			defer stop()
			end, err := m.sub.Rest(t.Context())
			if err == nil {
				err = m.sub.AwaitEnd(t.Context(), end)
			}
			if err != nil {
				t.Fatal(err)
			}
		},
		"in a step": func(t *testing.T, p *site, m *mirror) {
			if _, err := m.sub.BeginStep(false); err != nil {
				t.Fatal(err)
			}
		},
		"primary restarted": func(t *testing.T, p *site, m *mirror) {
			for i := range m.maps {
				m.maps[i] = m.maps[i].Kill()
			}
			p.kill()
			p.open()
			m.subscribe(p)
		},
	} {
		for _, freed := range []bool{true, false} {
			t.Run(fmt.Sprintf("%s, freed: %v", name, freed), func(t *testing.T) {
				rng, seed := seeded(t)
				p, m := newPair(t, seed, 16<<20)
				h := &history{}
				fill := func() {
					t.Helper()
					if _, err := load(rng, p, h, 60); err != nil {
						t.Fatal(err)
					}
					stop := m.pumping()
					waitFor(t, func() bool { _, _, a := m.sub.Cursor(); return a == p.g.Tip() })
					stop()
				}
				fill()
				m.close()
				m.reopenDevices()
				backup := cloneDevices(t, append([]*block.Crashable{m.jdev}, m.devs...)...)
				m.open()
				fill()
				if err := m.sub.Suspend("by command"); err != nil {
					t.Fatal(err)
				}
				if freed {
					if err := p.g.Checkpoint(t.Context()); err != nil {
						t.Fatal(err)
					}
				}
				leave(t, p, m)
				if n := m.sub.ChangedBytes(); n != 0 {
					t.Fatalf("%d bytes are marked before", n)
				}
				m.close()
				m.jdev, m.devs = backup[0], backup[1:]
				m.open()
				c := m.jnl.Cursors()
				hello := func() {
					t.Helper()
					if err := m.sub.Acked(c.Appended, c.Durable, m.g.Applied()); err != nil {
						t.Fatal(err)
					}
				}
				hello()
				if s := m.sub.State(); s != SubSuspended {
					t.Fatal("the subscriber is", s)
				}
				marked := m.sub.ChangedBytes()
				if all := int64(testVolumes * testSize); marked == 0 || freed != (marked == all) {
					t.Fatalf("%d bytes of %d are marked", marked, all)
				}
				for i := range m.maps {
					m.maps[i] = m.maps[i].Crash()
				}
				p.crash()
				p.open()
				m.subscribe(p)
				if n := m.sub.ChangedBytes(); n != marked {
					t.Fatalf("%d bytes are marked after a loss of power, %d before", n, marked)
				}
				hello() // has been heard: nothing more is marked
				if n := m.sub.ChangedBytes(); n != marked {
					t.Fatalf("%d bytes are marked after another hello, %d before", n, marked)
				}
				if err := step(p, m); err != nil {
					t.Fatal(err)
				}
				same(t, "after the step", images(t, p), images(t, m.site))
			})
		}
	}
}

// A subscriber in the stream that has lost what the log still has gets that again; copied blocks, whose data the log does not
// have, are marked.
func TestStreamFallsBack(t *testing.T) {
	_, seed := seeded(t)
	p, m := newPair(t, seed, 8<<20)
	for i := range int64(4) {
		if err := write(p.vols[0], i*markSize, stamp(1, markSize), block.FlagFUA); err != nil {
			t.Fatal(err)
		}
	}
	seq, err := m.sub.Copy(t.Context(), 1, 0, markSize, record.FlagAtOnce)
	if err != nil {
		t.Fatal(err)
	}
	if err := p.g.Sync(t.Context()); err != nil {
		t.Fatal(err)
	}
	ack := func(stored, durable, applied record.Seq) {
		t.Helper()
		if err := m.sub.Acked(stored, durable, applied); err != nil {
			t.Fatal(err)
		}
	}
	ack(seq, seq, seq-1)
	ack(seq, seq, seq-1)
	if n := m.sub.ChangedBytes(); n != 0 {
		t.Fatalf("%d bytes are marked", n)
	}
	ack(2, 2, 2)
	if s, n := m.sub.State(), m.sub.ChangedBytes(); s != SubStreaming || n != markSize {
		t.Fatalf("it is %s, %d bytes are marked", s, n)
	}
	if err := p.g.Checkpoint(t.Context()); err != nil {
		t.Fatal(err)
	}
	if c := p.jnl.Cursors(); c.Trimmed > 2 {
		t.Fatalf("freed up to %d", c.Trimmed)
	}
}

// A step of which the subscriber has lost a part that was collected is begun anew; its marks are there.
func TestStepFallsBack(t *testing.T) {
	_, seed := seeded(t)
	p, m := newPair(t, seed, 8<<20)
	if err := m.sub.Suspend("by command"); err != nil {
		t.Fatal(err)
	}
	if err := write(p.vols[0], 0, stamp(1, markSize), block.FlagFUA); err != nil {
		t.Fatal(err)
	}
	begin, err := m.sub.BeginStep(false)
	if err != nil {
		t.Fatal(err)
	}
	seq, err := m.sub.Copy(t.Context(), 1, 0, markSize, 0)
	if err != nil {
		t.Fatal(err)
	}
	if err := p.g.Sync(t.Context()); err != nil {
		t.Fatal(err)
	}
	for _, has := range []record.Seq{0, begin, seq} { // a hello from before the begin loses nothing
		if err := m.sub.Acked(has, has, 0); err != nil {
			t.Fatal(err)
		}
		if s := m.sub.State(); s != SubResyncing {
			t.Fatalf("at %d it is %s", has, s)
		}
	}
	if err := m.sub.Acked(begin, begin, 0); err != nil {
		t.Fatal(err)
	}
	if s, n := m.sub.State(), m.sub.ChangedBytes(); s != SubSuspended || n != markSize {
		t.Fatalf("it is %s, %d bytes are marked", s, n)
	}
}

// A subscriber inside a step that needs what has been freed is cut off, with all marked; one that needs less is not.
func TestLostInsideStep(t *testing.T) {
	_, seed := seeded(t)
	p, m := newPair(t, seed, 8<<20)
	if err := write(p.vols[0], 0, stamp(1, markSize), block.FlagFUA); err != nil {
		t.Fatal(err)
	}
	if err := m.sub.Suspend("by command"); err != nil {
		t.Fatal(err)
	}
	if err := p.g.Checkpoint(t.Context()); err != nil {
		t.Fatal(err)
	}
	begin, err := m.sub.BeginStep(false)
	if err != nil {
		t.Fatal(err)
	}
	if err := m.sub.Lost(1, "an old read"); err != nil || m.sub.State() != SubResyncing {
		t.Fatalf("%v: it is %s", err, m.sub.State())
	}
	if err := p.g.Sync(t.Context()); err != nil {
		t.Fatal(err)
	}
	if err := p.jnl.Trim(begin); err != nil { // should never be
		t.Fatal(err)
	}
	if err := m.sub.Lost(begin, "freed"); err != nil {
		t.Fatal(err)
	}
	if s, n := m.sub.State(), m.sub.ChangedBytes(); s != SubSuspended || n != testVolumes*testSize {
		t.Fatalf("it is %s, %d bytes are marked", s, n)
	}
}

// A checkpoint that comes after a step's begin is in the log, and before its subscriber is in the stream, keeps the begin.
func TestBeginIsKept(t *testing.T) {
	_, seed := seeded(t)
	p, m := newPair(t, seed, 8<<20)
	if err := m.sub.Suspend("by command"); err != nil {
		t.Fatal(err)
	}
	p.g.mu.Lock()
	m.sub.join(true) // as BeginStep
	begin, err := p.g.controlLocked(record.Record{Op: record.OpBegin}, func(record.Seq) {
		if err := p.g.checkpoint(); err != nil {
			t.Error(err)
		}
	})
	m.sub.join(false)
	p.g.mu.Unlock()
	if err != nil {
		t.Fatal(err)
	}
	if c := p.jnl.Cursors(); c.Trimmed != begin-1 {
		t.Fatalf("freed up to %d, the begin is %d", c.Trimmed, begin)
	}
}
