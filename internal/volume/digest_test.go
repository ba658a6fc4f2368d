package volume

import (
	"context"
	"testing"
	"time"

	"gantline/internal/block"
	"gantline/internal/record"
)

// digestAll puts all volumes' digests into the log and waits until the follower has compared them.
func digestAll(t *testing.T, m *mirror, run uint64, found func() []Compared) []Compared {
	t.Helper()
	d := m.sub.NewDigests(run)
	last := record.Seq(0)
	for n := range testVolumes {
		for off := int64(0); off < testSize; off += DigestExtent {
			done, err := d.Add(t.Context(), record.VolumeNumber(n+1), off, min(DigestExtent, testSize-off))
			if err != nil {
				t.Fatal(err)
			}
			last = done[len(done)-1].Seq
		}
	}
	for end := time.Now().Add(10 * time.Second); time.Now().Before(end); time.Sleep(time.Millisecond) {
		if all := found(); len(all) > 0 && all[len(all)-1].Run == run && all[len(all)-1].Seq == last {
			return all
		}
	}
	t.Fatal("not compared in time")
	return nil
}

// TestDigestsAreExactUnderLoad: digests taken while hosts write say nothing where nothing differs, and exactly what was
// changed behind the follower's back.
func TestDigestsAreExactUnderLoad(t *testing.T) {
	rng, seed := seeded(t)
	p := newSite(t, seed, testVolumes, testSize, 8<<20)
	p.cfg = Config{RoundBytes: 64 << 10, RoundDelay: 2 * time.Millisecond, CheckpointFilled: 0.2, SyncDelay: time.Millisecond}
	p.open()
	m := &mirror{site: newSite(t, seed+100, testVolumes, testSize, 8<<20), maps: newMaps(t, seed+200)}
	var all []Compared
	m.cfg, m.follow = p.cfg, true
	m.cfg.OnRecord = func(r record.Record) {
		if r.Op != record.OpDigest {
			return
		}
		c, err := m.g.Compare(context.Background(), &r)
		if err != nil {
			t.Error(err)
		}
		all = append(all, c)
	}
	found := func() []Compared {
		m.mu.Lock() // the pump applies under it
		defer m.mu.Unlock()
		return append([]Compared(nil), all...)
	}
	m.open()
	m.subscribe(p)
	h := &history{}
	ctx, stop := context.WithTimeout(t.Context(), 30*time.Second)
	defer stop()
	ended := make(chan error, 1)
	go func() { ended <- m.pump(ctx) }()
	loaded := make(chan error, 1)
	go func() {
		_, err := load(rng, p, h, 600)
		loaded <- err
	}()
	for run := uint64(1); ; run++ {
		for _, c := range digestAll(t, m, run, found) {
			if len(c.Different) > 0 {
				t.Fatalf("false alarm: %+v", c)
			}
		}
		select {
		case err := <-loaded:
			if err != nil {
				t.Fatal(err)
			}
		default:
			continue
		}
		t.Logf("%d runs beside the load", run)
		break
	}
	if err := m.g.roundNow(); err != nil {
		t.Fatal(err)
	}
	bad := int64(testSize - 4096 + 100)
	m.mu.Lock()
	all = nil
	if _, err := m.devs[1].WriteAt([]byte{^read(t, m.vols[1], bad, 1)[0]}, bad); err != nil {
		t.Fatal(err)
	}
	m.mu.Unlock()
	from := bad / DigestBlock * DigestBlock
	want := block.Extent{Offset: from, Length: min(DigestBlock, testSize-from)}
	var got []Digested
	for _, c := range digestAll(t, m, 99, found) {
		for _, e := range c.Different {
			if e != want || c.Volume != 2 {
				t.Errorf("volume %d: %+v differs, wanted %+v of volume 2", c.Volume, e, want)
			}
			got = append(got, Digested{Volume: c.Volume, Off: e.Offset, Length: e.Length})
		}
	}
	if len(got) != 1 {
		t.Fatalf("found %+v", got)
	}
	if err := m.sub.Lacks("test", got); err != nil {
		t.Fatal(err)
	}
	if m.sub.State() != SubSuspended || m.sub.ChangedBytes() < want.Length {
		t.Errorf("%s with %d bytes marked", m.sub.State(), m.sub.ChangedBytes())
	}
	stop()
	<-ended
	p.close()
	m.close()
}
