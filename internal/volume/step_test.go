package volume

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"testing"
	"time"

	"gantline/internal/record"
)

// pumping runs the mirror's stream until the result is called.
func (m *mirror) pumping() (stop func()) {
	ctx, cancel := context.WithCancel(m.t.Context())
	over := make(chan struct{})
	go func() {
		defer close(over)
		for ctx.Err() == nil {
			c := m.jnl.Cursors() // a hello
			err := m.sub.Acked(min(c.Appended, m.sub.Durable()), min(c.Durable, m.sub.Durable()), m.g.Applied())
			if err == nil {
				err = m.pump(ctx)
			}
			if err != nil && ctx.Err() == nil && !errors.Is(err, ErrSuspended) {
				if !errors.Is(err, ErrFailed) {
					m.t.Error("stream:", err)
				}
				if m.broken != nil {
					m.broken(fmt.Errorf("the stream ended: %w", err))
				}
				return
			}
			time.Sleep(time.Millisecond)
		}
	}()
	return func() { // again: nothing
		cancel()
		<-over
	}
}

func equal(a, b [][]byte) bool { return slices.EqualFunc(a, b, bytes.Equal) }

// lose takes the primary's process or power away and brings it back.
func (m *mirror) lose(rng *rand.Rand, p *site) {
	m.t.Helper()
	if rng.IntN(2) == 0 {
		for i := range m.maps {
			m.maps[i] = m.maps[i].Crash()
		}
		p.crash()
	} else {
		for i := range m.maps {
			m.maps[i] = m.maps[i].Kill()
		}
		p.kill()
	}
	p.open()
	m.subscribe(p)
}

// TestIntervalsAreCuts: step after step, at rest in between, under load and with deaths of either side anywhere. The
// follower's image is at every moment exactly that of the last step that it has whole, and no mark is ever lost.
func TestIntervalsAreCuts(t *testing.T) {
	t.Run("journal", func(t *testing.T) {
		rng, seed := seeded(t)
		p, m := newPair(t, seed, 8<<20)
		intervalsAreCuts(t, rng, p, m, 40, load)
	})
	t.Run("queue", func(t *testing.T) {
		rng, seed := seeded(t)
		p, m := newMemPair(t, seed, 1<<20)
		p.cfg = Config{SyncDelay: time.Millisecond, SyncBytes: 128 << 10, CheckpointEvery: 5 * time.Millisecond}
		p.open()
		m.open()
		m.subscribe(p)
		intervalsAreCuts(t, rng, p, m, roundsOf(15, 40), memLoad)
	})
}

func intervalsAreCuts(t *testing.T, rng *rand.Rand, p *site, m *mirror, rounds int, load func(*rand.Rand, *site, *history, int) (int, error)) {
	ctx, broken := context.WithCancelCause(t.Context()) // what waits for a stream that has ended does not wait for ever
	m.broken = broken
	h := &history{}
	if testing.Short() {
		rounds = 12
	}
	cut := images(t, m.site)
	for i := range rounds {
		var next [][]byte // the image at the end, once that is appended
		check := func(when string) {
			t.Helper()
			now := images(t, m.site)
			if next != nil && equal(now, next) {
				cut = next
			}
			if !equal(now, cut) {
				t.Fatalf("round %d, %s: the follower at %d is no cut", i, when, m.g.Applied())
			}
		}
		// death may take one of the sides away; true: the primary, with the step.
		death := func(when string, stop func()) bool {
			switch rng.IntN(16) {
			case 0:
				stop()
				m.lose(rng, p)
				check(when + ", primary lost")
				return true
			case 1:
				stop()
				if rng.IntN(2) == 0 {
					m.crash()
				} else {
					m.kill()
				}
				m.open()
				check(when + ", follower lost")
				if err := m.applyStored(); err != nil {
					t.Fatal(err)
				}
				check(when + ", follower replayed")
			}
			return false
		}
		if m.sub.State() == SubSuspended {
			if _, err := load(rng, p, h, 20); err != nil {
				t.Fatal(err)
			}
			check("between two steps")
			if death("between two steps", func() {}) && m.sub.State() != SubSuspended {
				t.Fatalf("after a restart the subscriber is %s", m.sub.State())
			}
			if _, err := m.sub.BeginStep(false); err != nil {
				t.Fatal(err)
			}
		}
		streamed := m.sub.State() == SubStreaming // the first one: all came one by one
		stop := m.pumping()
		if _, err := load(rng, p, h, 20); err != nil {
			t.Fatal(err)
		}
		if err := m.sub.RunCopy(ctx, CopyOptions{Parallel: 2}); err != nil {
			t.Fatal(err)
		}
		if !streamed {
			check("inside the step")
			if death("inside the step", stop) {
				continue
			}
			stop()
			stop = m.pumping()
		}
		if err := flush(p.vols[0]); err != nil {
			t.Fatal(err)
		}
		at := images(t, p)
		end, err := m.sub.Rest(ctx)
		if err != nil {
			t.Fatal(err)
		}
		if err := p.g.Sync(ctx); err != nil {
			t.Fatal(err)
		}
		// Asked again it says the same, until the follower has applied it, which it may have by now.
		if again, err := m.sub.Rest(ctx); err != nil || again != end {
			if _, _, applied := m.sub.Cursor(); applied < end || !errors.Is(err, ErrRole) || m.sub.State() != SubSuspended {
				t.Fatalf("asked again: %d, %v", again, err)
			}
		}
		next = at
		if _, err := load(rng, p, h, 10); err != nil { // marks, and is not sent
			t.Fatal(err)
		}
		if !streamed && death("behind the end", stop) {
			continue
		}
		stop()
		stop = m.pumping()
		if err := m.sub.AwaitEnd(ctx, end); err != nil || m.sub.State() != SubSuspended {
			t.Fatalf("at the end: %s, %v", m.sub.State(), err)
		}
		stop()
		if streamed { // what came one by one is found again one by one: no step has announced it
			if err := m.g.Checkpoint(ctx); err != nil {
				t.Fatal(err)
			}
		}
		check("at rest")
		if !equal(cut, at) {
			t.Fatalf("round %d: at rest the follower is not what the primary was at %d", i, end)
		}
		if lag := m.sub.Lag(); lag.Writes != int64(p.g.Appended()-end) || lag.Writes > 0 && (lag.Bytes <= 0 || lag.Age <= 0) {
			t.Fatalf("round %d: lag %+v behind the end %d, appended %d", i, lag, end, p.g.Appended())
		}
	}
	stop := m.pumping()
	if m.sub.State() == SubSuspended {
		if _, err := m.sub.BeginStep(false); err != nil {
			t.Fatal(err)
		}
	}
	if err := m.sub.RunCopy(ctx, CopyOptions{}); err != nil {
		t.Fatal(err)
	}
	end, err := m.sub.EndStep(ctx) // and goes on with the stream
	if err != nil {
		t.Fatal(err)
	}
	if err := m.sub.AwaitEnd(ctx, end); err != nil {
		t.Fatal(err)
	}
	stop()
	if m.sub.ChangedBytes() != 0 || m.sub.State() != SubStreaming {
		t.Fatalf("%s with %d bytes marked", m.sub.State(), m.sub.ChangedBytes())
	}
	finish(t, p, m)
	p.close()
	m.close()
}

// TestStepCutAnywhere ends the primary behind each record of a step, its begin and its end among them. Short of the end the
// follower stays exactly at its last cut, with the end it is exactly at the new one; the next step makes both sides equal.
func TestStepCutAnywhere(t *testing.T) {
	rng, seed := seeded(t)
	for _, log := range []string{"journal", "queue"} {
		t.Run(log, func(t *testing.T) {
			for upTo := 1; ; upTo++ {
				if stepCutAt(t, rng, seed, log == "queue", upTo) {
					return
				}
			}
		})
	}
}

// stepCutAt lets upTo records of a step through, then takes the primary away; true: they were all.
func stepCutAt(t *testing.T, rng *rand.Rand, seed uint64, queue bool, upTo int) (whole bool) {
	t.Helper()
	var p *site
	var m *mirror
	write := load
	if queue {
		p, m = newMemPair(t, seed, 1<<20)
		p.cfg = Config{SyncDelay: time.Millisecond}
		p.open()
		m.open()
		m.subscribe(p)
		write = memLoad
	} else {
		p, m = newPair(t, seed, 8<<20)
	}
	h := &history{}
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatalf("%d records of the step: %v", upTo, err)
		}
	}
	step := func() {
		t.Helper()
		if m.sub.State() == SubSuspended {
			_, err := m.sub.BeginStep(false)
			must(err)
		}
		stop := m.pumping()
		must(m.sub.RunCopy(t.Context(), CopyOptions{}))
		must(p.g.Sync(t.Context()))
		end, err := m.sub.Rest(t.Context())
		must(err)
		must(p.g.Sync(t.Context()))
		must(m.sub.AwaitEnd(t.Context(), end))
		stop()
		must(m.g.Checkpoint(t.Context()))
	}
	_, err := write(rng, p, h, 10)
	must(err)
	step()
	cut := images(t, p)
	same(t, "at rest", cut, images(t, m.site))

	_, err = write(rng, p, h, 8) // marked, and copied in the step
	must(err)
	begin, err := m.sub.BeginStep(false)
	must(err)
	copied := make(chan error, 1)
	ctx, stop := context.WithCancel(t.Context())
	defer stop()
	first := m.sub
	go func() { copied <- first.RunCopy(ctx, CopyOptions{}) }()
	sent, end, got := 0, record.Seq(0), 0
	var next [][]byte
	pass := func() { // takes and acknowledges one more record, if one is there
		t.Helper()
		must(p.g.Sync(t.Context()))
		recs, err := m.sub.Read(begin+record.Seq(sent), 1, 1)
		must(err)
		if len(recs) == 0 {
			return
		}
		must(m.take(recs))
		sent++
		c := m.jnl.Cursors()
		must(m.sub.Acked(c.Appended, c.Durable, m.g.Applied()))
	}
	for sent < upTo && !whole {
		select {
		case err := <-copied:
			must(err)
			if got++; got > 1 {
				t.Fatal("copied twice")
			}
			_, err = write(rng, p, h, 3) // in the step, one by one
			must(err)
			must(p.g.Sync(t.Context()))
			next = images(t, p)
			end, err = m.sub.Rest(t.Context())
			must(err)
			_, err = write(rng, p, h, 3) // behind it
			must(err)
		default:
			pass()
			time.Sleep(50 * time.Microsecond)
		}
		whole = end != 0 && m.g.Applied() >= end
	}
	if whole {
		cut = next
	}
	stop()
	if got == 0 {
		<-copied
	}
	m.lose(rng, p)
	same(t, "after the primary's death", cut, images(t, m.site))
	if rng.IntN(2) == 0 {
		m.crash()
		m.open()
		same(t, "after the follower's death too", cut, images(t, m.site))
		must(m.applyStored())
		same(t, "and with its log applied", cut, images(t, m.site))
	}
	step()
	same(t, "behind the next step", images(t, p), images(t, m.site))
	p.close()
	m.close()
	return whole
}

// A subscriber at rest keeps nothing in the log, and what is written behind the end is marked once, whatever was
// collected in the step.
func TestRestHoldsNothingBack(t *testing.T) {
	_, seed := seeded(t)
	p, m := newPair(t, seed, 4<<20)
	stop := m.pumping()
	rest := func() {
		t.Helper()
		if err := p.g.Sync(t.Context()); err != nil {
			t.Fatal(err)
		}
		end, err := m.sub.Rest(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		if err := write(p.vols[0], 0, stamp(7, 4096), 0); err != nil { // behind the end, before that is applied
			t.Fatal(err)
		}
		if err := p.g.Sync(t.Context()); err != nil {
			t.Fatal(err)
		}
		if err := m.sub.AwaitEnd(t.Context(), end); err != nil {
			t.Fatal(err)
		}
	}
	rest()
	for range 2 {
		if _, err := m.sub.BeginStep(false); err != nil {
			t.Fatal(err)
		}
		if err := m.sub.RunCopy(t.Context(), CopyOptions{}); err != nil {
			t.Fatal(err)
		}
		rest()
		if n := m.sub.ChangedBytes(); n != markSize {
			t.Fatalf("%d bytes are marked, one block of %d was written behind the end", n, markSize)
		}
	}
	_, capacity := p.jnl.Space()
	for n := int64(0); n < 10*capacity; n += 64 << 10 {
		if err := write(p.vols[0], n%(4*markSize), stamp(int(n), 64<<10), 0); err != nil {
			t.Fatal(err)
		}
	}
	if n := m.sub.ChangedBytes(); m.sub.State() != SubSuspended || n > 16*markSize {
		t.Fatalf("%s, %d bytes marked", m.sub.State(), n)
	}
	if lag := m.sub.Lag(); lag.Bytes < 10*capacity {
		t.Fatalf("lag %+v after %d bytes", lag, 10*capacity)
	}
	if p.g.recent.n > 0 || p.g.extents.n > 0 {
		t.Fatalf("%d records and %d extents are kept for nobody", p.g.recent.n, p.g.extents.n)
	}
	stop()
	p.close()
	m.close()
}

// A follower acknowledges each record once, and the end of a step before who has appended it knows it as the end: the step is over
// all the same.
func TestEndIsAcknowledgedAtOnce(t *testing.T) {
	_, seed := seeded(t)
	p, m := newPair(t, seed, 8<<20)
	ctx, stop := context.WithTimeout(t.Context(), 20*time.Second)
	defer stop()
	acks := make(chan error, 1)
	go func() {
		var last record.Seq
		for ctx.Err() == nil {
			if tip := p.g.Tip(); tip != last {
				if err := m.sub.Acked(tip, tip, tip); err != nil {
					acks <- err
					return
				}
				last = tip
			}
		}
		acks <- nil
	}()
	for n := range 200 {
		if m.sub.State() == SubSuspended {
			if _, err := m.sub.BeginStep(false); err != nil {
				t.Fatal(err)
			}
		}
		over, want := m.sub.EndStep, SubStreaming
		if n%2 == 0 {
			over, want = m.sub.Rest, SubSuspended
		} else if m.sub.State() == SubStreaming {
			continue
		}
		end, err := over(ctx)
		if err == nil {
			err = m.sub.AwaitEnd(ctx, end)
		}
		if err != nil || m.sub.State() != want {
			t.Fatalf("end %d: %s, %v", n, m.sub.State(), err)
		}
	}
	stop()
	if err := <-acks; err != nil {
		t.Fatal(err)
	}
	p.close()
	m.close()
}

// The log fills while the end of a step is on its way: the step is dropped, its blocks are marked again.
func TestFullLogBehindTheEnd(t *testing.T) {
	rng, seed := seeded(t)
	p, m := newPair(t, seed, 2<<20)
	if err := m.sub.Suspend("by command"); err != nil {
		t.Fatal(err)
	}
	h := &history{}
	if _, err := load(rng, p, h, 20); err != nil {
		t.Fatal(err)
	}
	if err := p.g.Sync(t.Context()); err != nil {
		t.Fatal(err)
	}
	changed := m.sub.ChangedBytes()
	if _, err := m.sub.BeginStep(false); err != nil {
		t.Fatal(err)
	}
	stop := m.pumping()
	if err := m.sub.RunCopy(t.Context(), CopyOptions{}); err != nil {
		t.Fatal(err)
	}
	stop()
	end, err := m.sub.Rest(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	for n := 0; m.sub.State() != SubSuspended; n++ {
		if err := write(p.vols[0], 0, stamp(n, 4096), 0); err != nil {
			t.Fatal(err)
		}
		if n > 2000 {
			t.Fatal("the log never filled up")
		}
	}
	if err := m.sub.AwaitEnd(t.Context(), end); !errors.Is(err, ErrSuspended) {
		t.Fatal(err)
	}
	if m.sub.ChangedBytes() < changed {
		t.Fatalf("%d bytes marked, the dropped step had %d", m.sub.ChangedBytes(), changed)
	}
	if _, err := m.sub.BeginStep(false); err != nil {
		t.Fatal(err)
	}
	stop = m.pumping()
	if err := m.sub.RunCopy(t.Context(), CopyOptions{}); err != nil {
		t.Fatal(err)
	}
	if end, err = m.sub.EndStep(t.Context()); err != nil {
		t.Fatal(err)
	}
	if err := p.g.Sync(t.Context()); err != nil {
		t.Fatal(err)
	}
	if err := m.sub.AwaitEnd(t.Context(), end); err != nil {
		t.Fatal(err)
	}
	stop()
	finish(t, p, m)
	p.close()
	m.close()
}

func TestBitset(t *testing.T) {
	rng, _ := seeded(t)
	var s bitset
	want := map[int64]bool{}
	for range 5000 {
		i := rng.Int64N(4 * bitsetPage)
		switch rng.IntN(4) {
		case 0:
			s.clear(i)
			delete(want, i)
		case 1:
			n := rng.Int64N(300)
			s.clearRange(i, n)
			for j := i; j < i+n; j++ {
				delete(want, j)
			}
		default:
			s.set(i)
			want[i] = true
		}
		if s.n != int64(len(want)) || s.has(i) != want[i] {
			t.Fatalf("%d members, want %d", s.n, len(want))
		}
	}
	s.each(func(i int64) {
		if !want[i] {
			t.Fatalf("%d is no member", i)
		}
		delete(want, i)
	})
	if len(want) > 0 {
		t.Fatalf("%d members were not listed", len(want))
	}
}
