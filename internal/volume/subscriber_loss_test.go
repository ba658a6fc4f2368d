package volume

import (
	"context"
	"errors"
	"testing"
	"time"

	"gantline/internal/block"
	"gantline/internal/record"
)

// A node that restarts runs the group's loops before it has registered the secondary again (startPrimaryRole: goRun,
// then startPrimary, then Subscribe). In between the log must not be trimmed beyond what the secondary has.
func TestTrimBeforeSubscribe(t *testing.T) {
	_, seed := seeded(t)
	p, m := newPair(t, seed, 4<<20)
	_ = m
	// The link is down: the subscriber acknowledges nothing. The log fills to over 40 %, but not to its end.
	for i := range int64(300) {
		if err := write(p.vols[0], (i%60)*4096, stamp(int(i)+1, 4096), 0); err != nil {
			t.Fatal(err)
		}
	}
	if err := p.g.Checkpoint(t.Context()); err != nil {
		t.Fatal(err)
	}
	// Some writes above the checkpoint, so that recovery has something to write back.
	for i := range int64(40) {
		if err := write(p.vols[0], (i%60)*4096, stamp(int(i)+1000, 4096), 0); err != nil {
			t.Fatal(err)
		}
	}
	if m.sub.State() != SubStreaming {
		t.Fatal("the subscriber is", m.sub.State())
	}
	_, _, applied := m.sub.Cursor()
	t.Logf("before: acked %d, cursors %+v", applied, p.jnl.Cursors())
	p.kill()
	p.open() // Serve and Run, as the node's goRun; the subscriber comes a moment later
	end := time.Now().Add(2 * time.Second)
	for p.jnl.Cursors().Trimmed == 0 && time.Now().Before(end) {
		time.Sleep(time.Millisecond)
	}
	m.subscribe(p)
	c := p.jnl.Cursors()
	t.Logf("after: cursors %+v, state %s, marked %d", c, m.sub.State(), m.sub.ChangedBytes())
	if c.Trimmed > applied && m.sub.ChangedBytes() == 0 {
		t.Errorf("records up to %d are freed, the secondary has %d, nothing is marked, state %s", c.Trimmed, applied, m.sub.State())
	}
	// What follows: cut off, resynced, and yet different.
	if err := m.sub.Suspend("the log is full"); err != nil {
		t.Fatal(err)
	}
	rng, _ := seeded(t)
	h := &history{}
	resync(t, rng, p, m, h, images(t, m.site))
	pumpAll(t, p, m, 5*time.Second)
	got, want := images(t, m.site), images(t, p)
	for v := range got {
		diff := 0
		for b := 0; b < len(got[v]); b += 4096 {
			if string(got[v][b:b+4096]) != string(want[v][b:b+4096]) {
				diff++
			}
		}
		if diff > 0 {
			t.Errorf("after a whole resync (state %s, lag %+v, marked %d) volume %d differs in %d blocks", m.sub.State(), m.sub.Lag(), m.sub.ChangedBytes(), v, diff)
		}
	}
}

// suspended → hosts write → resume (begin) → suspend by command → the process is killed: the marks of what hosts wrote
// while it was suspended must be there afterwards.
func TestMarksLostBySuspendInsideStep(t *testing.T) {
	_, seed := seeded(t)
	p, m := newPair(t, seed, 8<<20)
	if err := m.sub.Suspend("by command"); err != nil {
		t.Fatal(err)
	}
	for i := range int64(5) {
		if err := write(p.vols[1], i*4*markSize, stamp(1, 512), block.FlagFUA); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := m.sub.BeginStep(false); err != nil {
		t.Fatal(err)
	}
	if err := m.sub.Suspend("by command"); err != nil {
		t.Fatal(err)
	}
	if n := m.sub.ChangedBytes(); n != 5*markSize {
		t.Fatalf("%d bytes are marked before the kill", n)
	}
	for i := range m.maps {
		m.maps[i] = m.maps[i].Kill()
	}
	p.kill()
	p.open()
	m.subscribe(p)
	if m.sub.State() != SubSuspended || m.sub.ChangedBytes() != 5*markSize {
		t.Errorf("after a kill: %s, %d bytes marked, want %d", m.sub.State(), m.sub.ChangedBytes(), 5*markSize)
	}
}

// Two writes, each larger than half of the log, one after the other, with nobody holding the log back.
func TestTwoLargeWrites(t *testing.T) {
	_, seed := seeded(t)
	s := newSite(t, seed, 1, 4<<20, 3<<20)
	s.open()
	_, capacity := s.jnl.Space()
	n := capacity * 6 / 10 / 4096 * 4096
	for i := range 3 {
		if err := write(s.vols[0], 0, stamp(i+1, n), 0); err != nil {
			t.Errorf("write %d of %d bytes, the log has %d: %v", i+1, n, capacity, err)
		}
	}
	s.close()
}

// The secondary's node ends the group's loops and its applier under one context. Whoever waits for room must not wait
// for ever then.
func TestApplyIsNotLeftWaitingForRoom(t *testing.T) {
	_, seed := seeded(t)
	for trial := range 3 {
		m := newSite(t, seed, 1, 16<<20, 16<<20)
		m.cfg = Config{CacheBytes: 1 << 20, RoundBytes: 512 << 10}
		m.follow = true
		m.open()
		if err := m.jnl.Reset(0, record.Table{{Epoch: 1, Incarnation: 1, Node: "a", First: 1}}, nil); err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithCancel(t.Context())
		stopped := make(chan struct{})
		m.devs[0].SetHook(func(c block.Call, off, n int64) error {
			time.Sleep(100 * time.Microsecond)
			if c == block.CallFlush && ctx.Err() == nil { // a checkpoint: a disk's flush takes its time, and the node is stopped
				time.Sleep(20 * time.Millisecond)
				if m.g.CachedBytes() >= m.cfg.CacheBytes {
					cancel()
					m.stop() // group.close: run.stop cancels both together and waits for both
					close(stopped)
				}
			}
			return nil
		})
		const n, batch = 1800, 200
		var recs []record.Record
		for seq := record.Seq(1); seq <= n; seq++ {
			recs = append(recs, record.Record{Seq: seq, Epoch: 1, Incarnation: 1, Op: record.OpWrite, Volume: 1,
				Offset: uint64(seq) * 8192, Length: 4096, Data: stamp(int(seq), 4096)})
		}
		if err := m.jnl.Append(recs); err != nil {
			t.Fatal(err)
		}
		if _, err := m.jnl.Sync(); err != nil {
			t.Fatal(err)
		}
		applied := make(chan struct{})
		go func() { // as apply.Loop.Run, which looks at its context between two batches
			defer close(applied)
			for i := 0; i < n && ctx.Err() == nil; i += batch {
				if err := m.g.Apply(recs[i:min(n, i+batch)]); err != nil {
					return
				}
			}
		}()
		select {
		case <-stopped:
		case <-applied:
			t.Log("no checkpoint met a full cache")
			m.stop()
		}
		<-m.ended
		select {
		case <-applied:
		case <-time.After(2 * time.Second):
			t.Errorf("trial %d: Apply waits for room for ever: cached %d of %d, applied %d", trial, m.g.CachedBytes(), m.cfg.CacheBytes, m.g.Applied())
			_ = m.g.fail(errors.New("end"))
			<-applied
			return
		}
		_ = m.g.fail(errors.New("end"))
	}
}

// A step has been applied whole and acknowledged, the subscriber is streaming: that must outlive a kill.
func TestStreamingAgainOutlivesKill(t *testing.T) {
	rng, seed := seeded(t)
	p, m := newPair(t, seed, 8<<20)
	if err := m.sub.Suspend("by command"); err != nil {
		t.Fatal(err)
	}
	if err := write(p.vols[1], 0, stamp(1, 512), block.FlagFUA); err != nil {
		t.Fatal(err)
	}
	resync(t, rng, p, m, &history{}, images(t, m.site))
	p.kill()
	p.open()
	m.subscribe(p)
	if m.sub.State() != SubStreaming {
		t.Errorf("after a kill the subscriber is %s with %d bytes marked", m.sub.State(), m.sub.ChangedBytes())
	}
}

// A start that fails between Open and Subscribe closes the group again: that must not free what the secondary lacks.
func TestCloseBeforeSubscribe(t *testing.T) {
	_, seed := seeded(t)
	p, m := newPair(t, seed, 4<<20)
	for i := range int64(50) {
		if err := write(p.vols[0], i*4096, stamp(int(i)+1, 4096), block.FlagFUA); err != nil {
			t.Fatal(err)
		}
	}
	p.kill()
	p.open()
	p.close()
	p.reopenDevices()
	p.open()
	m.subscribe(p)
	if c := p.jnl.Cursors(); c.Trimmed > 0 && m.sub.ChangedBytes() == 0 {
		t.Errorf("records up to %d are freed, the secondary has none, nothing is marked, state %s", c.Trimmed, m.sub.State())
	}
}

// The same of a subscriber that was cut off: what was written since is marked in memory only until a checkpoint, and the
// log is what the marks are made from again.
func TestCloseBeforeSubscribeSuspended(t *testing.T) {
	_, seed := seeded(t)
	p, m := newPair(t, seed, 4<<20)
	if err := m.sub.Suspend("by command"); err != nil {
		t.Fatal(err)
	}
	if err := p.g.Checkpoint(t.Context()); err != nil {
		t.Fatal(err)
	}
	const blocks = testSize / markSize
	for i := range int64(blocks) {
		if err := write(p.vols[0], i*markSize, stamp(int(i)+1, 512), block.FlagFUA); err != nil {
			t.Fatal(err)
		}
	}
	p.kill()
	p.open()
	p.close()
	p.reopenDevices()
	p.open()
	m.subscribe(p)
	if marked := m.sub.ChangedBytes(); marked < testSize {
		t.Errorf("%d bytes are marked of the %d written while the subscriber was cut off", marked, testSize)
	}
}
