package volume

import (
	"context"
	"testing"
	"time"

	"gantline/internal/record"
)

// TestVolumeLeavesInsideCopy: the copy goes on without it and ends, whether the subscriber has forgotten its marks yet or not.
func TestVolumeLeavesInsideCopy(t *testing.T) {
	for name, drop := range map[string]bool{"its marks are there": false, "its marks are gone": true} {
		t.Run(name, func(t *testing.T) {
			_, seed := seeded(t)
			p, m := newPair(t, seed, 8<<20)
			p.g.cfg.CopyBytes = 1 // one block on its way
			for n := range testVolumes {
				for off := int64(0); off < testSize; off += markSize {
					if err := write(p.vols[n], off, stamp(int(off)+1, 4096), 0); err != nil {
						t.Fatal(err)
					}
				}
				if err := m.sub.MarkAll(record.VolumeNumber(n + 1)); err != nil {
					t.Fatal(err)
				}
			}
			ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
			defer cancel()
			ended := make(chan error, 1)
			go func() { ended <- m.sub.RunCopy(ctx, CopyOptions{Parallel: 4, AtOnce: true}) }()
			waitFor(t, func() bool {
				m.sub.mu.Lock()
				defer m.sub.mu.Unlock()
				return len(m.sub.copies) == 1
			})
			if err := p.g.Remove(ctx, 1, []byte("{}")); err != nil {
				t.Fatal(err)
			}
			if drop {
				m.sub.DropMap(1)
			}
			tip := p.g.Tip()
			stop := m.pumping()
			if err := <-ended; err != nil {
				t.Fatal("the copy of the volumes that are left:", err)
			}
			stop()
			recs, err := p.jnl.Read(tip+1, 1<<20, 1<<30)
			if err != nil {
				t.Fatal(err)
			}
			for _, r := range recs {
				if r.Volume == 1 {
					t.Fatalf("record %d behind the removal at %d is of the removed volume", r.Seq, tip)
				}
			}
			m.sub.DropMap(1)
			if left := m.sub.ChangedBytes(); left != 0 {
				t.Fatalf("%d bytes are marked after the copy", left)
			}
		})
	}
}

// TestRemoveFinishesTheStep: a follower that has applied a part of a step lets go of a volume only behind its end.
func TestRemoveFinishesTheStep(t *testing.T) {
	_, seed := seeded(t)
	m := newSite(t, seed, 2, testSize, 4<<20)
	m.follow = true
	m.open()
	if err := m.jnl.Reset(0, record.Table{{Epoch: 1, Incarnation: 1, Node: "a", First: 1}}, nil); err != nil {
		t.Fatal(err)
	}
	recs := []record.Record{{Seq: 1, Op: record.OpBegin}, {Seq: 2, Op: record.OpWrite}, {Seq: 3, Op: record.OpWrite, Offset: 4096}, {Seq: 4, Op: record.OpEnd}}
	for i := range recs {
		r := &recs[i]
		if r.Epoch, r.Incarnation = 1, 1; r.Op == record.OpWrite {
			r.Volume, r.Length, r.Data = 1, 4096, stamp(int(r.Seq), 4096)
		}
	}
	if err := m.jnl.Append(recs); err != nil {
		t.Fatal(err)
	}
	if _, err := m.jnl.Sync(); err != nil {
		t.Fatal(err)
	}
	if err := m.g.Intend(4); err != nil {
		t.Fatal(err)
	}
	if err := m.g.Apply(recs[:2]); err != nil {
		t.Fatal(err)
	}
	if err := m.g.Remove(t.Context(), 1, nil); err != nil {
		t.Fatal(err)
	}
	if err := m.g.Apply(recs[2:]); err != nil { // whoever was applying it goes on
		t.Fatal(err)
	}
	for i, seq := range []int{2, 3} {
		if got := read(t, m.vols[0], int64(i)*4096, 4096); string(got) != string(stamp(seq, 4096)) {
			t.Errorf("record %d of the step is not on the removed volume", seq)
		}
	}
	m.close()
}
