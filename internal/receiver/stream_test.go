package receiver_test

import (
	"context"
	"encoding/json"
	"errors"
	"math/rand/v2"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"gantline/internal/receiver"
	"gantline/internal/record"
	"gantline/internal/sender"
	"gantline/internal/wire"
)

func permit(t testing.TB, life *secondary, p receiver.Permit) {
	t.Helper()
	if err := life.recv.Permit(p); err != nil {
		t.Fatal(err)
	}
}

// TestStream: a log arrives whole, is applied, and the sender knows it.
func TestStream(t *testing.T) {
	s := newSite(t)
	life := s.start(&memStore{})
	log := newLog(record.Table{openRow(1, "a", 1)}, 0)
	all := writes(1, 1, 3000, 700)
	log.add(all[:1000]...)
	var bytes atomic.Int64
	snd, _ := s.send("a", log, func(c *sender.Config) { c.Sent = func(n int64) { bytes.Add(n) } })

	eventually(t, "refused without permission", func() bool {
		st := snd.Status()
		return st.State == sender.StateRefused && st.Reason == string(receiver.ReasonNotPermitted)
	})
	if len(life.store.records()) != 0 || life.recv.Status().CopySource != "" {
		t.Fatal("a hello alone has raised an epoch")
	}
	permit(t, life, receiver.Permit{Epoch: id(1, "a")})
	eventually(t, "the first thousand is applied, and known to be", func() bool { _, _, a := log.has(); return a == 1000 })
	for i := 1000; i < 3000; i += 10 {
		log.add(all[i : i+10]...)
	}
	eventually(t, "all is applied, and known to be", func() bool { _, d, a := log.has(); return d == 3000 && a == 3000 })
	mustPrefix(t, "store", life.store.records(), all)
	mustPrefix(t, "volumes", life.vols.applied(), all)
	st := snd.Status()
	if st.State != sender.StateStreaming || st.BlockedOn != "" || st.FlightRecords != 0 || time.Since(st.LastHeard) > 5*time.Second {
		t.Fatalf("status %+v", st)
	}
	if n := bytes.Load(); n < 3000*700 || n > 3000*700*2 {
		t.Fatalf("%d bytes put on the link for %d of data", n, 3000*700)
	}
	if life.recv.Status().CopySource != "a" || life.recv.Status().Mark != 3000 {
		t.Fatalf("receiver %+v", life.recv.Status())
	}
}

// TestLinkCutAnywhere: connections break after random numbers of bytes; nothing is lost, doubled or reordered.
func TestLinkCutAnywhere(t *testing.T) {
	rnd := newRand(t, rand.Uint64())
	s := newSite(t)
	life := s.start(&memStore{})
	permit(t, life, receiver.Permit{Epoch: id(1, "a")})
	log := newLog(record.Table{openRow(1, "a", 1)}, 0)
	all := writes(1, 1, 4000, 300)
	var limits [40]int64
	for i := range limits {
		limits[i] = rnd.Int64N(80_000)
	}
	s.limit = func(conn int) int64 {
		if conn >= len(limits) {
			return -1
		}
		return limits[conn]
	}
	snd, _ := s.send("a", log)
	for i := 0; i < len(all); i += 50 {
		log.add(all[i : i+50]...)
		mustPrefix(t, "store", life.store.records(), all)
	}
	eventually(t, "all is applied", func() bool { _, _, a := log.has(); return a == 4000 })
	mustPrefix(t, "store", life.store.records(), all)
	mustPrefix(t, "volumes", life.vols.applied(), all)
	if n := snd.Status().Attempts; n < 10 {
		t.Fatalf("only %d connections: the cuts did not take hold", n)
	}
}

// TestTwoSources: a move in full flow. Source a still owes a part of its records when target b begins to send its own;
// links break on the way, and the secondary loses power at random moments.
func TestTwoSources(t *testing.T) {
	lost := 0
	for range 8 {
		seed := rand.Uint64()
		t.Run("", func(t *testing.T) { lost += twoSources(t, newRand(t, seed)) })
	}
	if lost == 0 {
		t.Fatal("no power loss took a record: the fault did not take hold")
	}
}

func twoSources(t *testing.T, rnd *rand.Rand) (lost int) {
	s := newSite(t)
	s.delay = time.Duration(1+rnd.IntN(4)) * time.Millisecond
	const cut, end = 1500, 3000
	all := append(writes(1, 1, cut-1, 200), fence(1, cut, id(2, "b")))
	all = append(all, writes(2, cut+1, end, 200)...)
	a := newLog(record.Table{openRow(1, "a", 1)}, 0)
	b := newLog(record.Table{closedRow(1, "a", 1, cut), openRow(2, "b", cut+1)}, cut)
	life := s.start(&memStore{})
	if err := life.recv.Believe(receiver.Permit{Epoch: id(1, "a")}); err != nil {
		t.Fatal(err)
	}
	if rnd.IntN(2) == 0 { // else b waits for the fence to be stored
		permit(t, life, receiver.Permit{Epoch: id(2, "b")})
	}
	limits := make([]int64, 30)
	for i := range limits {
		limits[i] = rnd.Int64N(100_000)
	}
	s.limit = func(conn int) int64 {
		if conn >= len(limits) {
			return -1
		}
		return limits[conn]
	}
	window := func(c *sender.Config) { c.WindowRecords = 200 }
	sa, _ := s.send("a", a, window)
	sa.StopAt(cut)
	sb, _ := s.send("b", b, window)
	defer func() {
		if t.Failed() {
			t.Logf("a %+v\nb %+v\nreceiver %+v", sa.Status(), sb.Status(), life.recv.Status())
		}
	}()
	for i, j := 0, cut; i < cut || j < end; {
		n := 1 + rnd.IntN(60)
		if i < cut && (j == end || rnd.IntN(2) == 0) {
			n = min(n, cut-i)
			a.add(all[i : i+n]...)
			i += n
		} else if j < end {
			n = min(n, end-j)
			b.add(all[j : j+n]...)
			j += n
		}
		if rnd.IntN(12) == 0 {
			flowing(t, life, rnd, a, b)
			life = restart(t, s, life, all, rnd, a, b)
		}
	}
	eventually(t, "the source is drained", func() bool {
		select {
		case <-sa.Drained():
			return true
		default:
			return false
		}
	})
	eventually(t, "all is applied", func() bool { _, d, ap := b.has(); return d == end && ap == end })
	mustPrefix(t, "store", life.store.records(), all)
	mustPrefix(t, "volumes", life.vols.applied(), all)
	if err := life.recv.Single(id(2, "b"), false); err != nil || life.recv.Status().CopySource != "b" {
		t.Fatalf("single: %v, copy source %q", err, life.recv.Status().CopySource)
	}
	if _, d, _ := a.has(); d != cut {
		t.Fatalf("the source was told %d durable, its cut is %d", d, cut)
	}
	return s.lost
}

// flowing waits until some of what may be stored has just been: the moment to pull the plug.
func flowing(t *testing.T, life *secondary, rnd *rand.Rand, a, b *memLog) {
	t.Helper()
	most := a.Durable()
	if most == b.trimmed { // a has sent all of its own
		most = b.Durable()
	}
	most = min(most, life.recv.Status().Stored+1+record.Seq(rnd.IntN(100)))
	eventually(t, "records are stored", func() bool { return life.recv.Status().Stored >= most })
}

// restart lets the secondary lose power: what was acknowledged as durable must be there again.
func restart(t *testing.T, s *site, life *secondary, all []record.Record, rnd *rand.Rand, logs ...*memLog) *secondary {
	t.Helper()
	store := life.store.crash(rnd)
	s.kill()
	_, stored := store.Cursors()
	if _, before := life.store.Cursors(); before > stored {
		s.lost++
	}
	for _, l := range logs {
		if _, durable, _ := l.has(); durable > stored {
			t.Fatalf("acknowledged as durable up to %d, after power loss there is %d", durable, stored)
		}
	}
	if applied := life.vols.last(); applied > stored {
		t.Fatalf("applied up to %d, after power loss the log ends at %d", applied, stored)
	}
	mustPrefix(t, "store after power loss", store.records(), all)
	return s.start(store)
}

// TestCutBack: the primary lost an unsynced tail that the secondary has stored, but not applied: it lies above the mark.
func TestCutBack(t *testing.T) {
	for _, c := range []struct {
		name string
		mark record.Seq
		want sender.State
	}{{"above the mark", 80, sender.StateStreaming}, {"applied already", 95, sender.StateRefused}} {
		t.Run(c.name, func(t *testing.T) {
			s := newSite(t)
			life := s.start(&memStore{})
			permit(t, life, receiver.Permit{Epoch: id(1, "a")})
			before := newLog(record.Table{openRow(1, "a", 1)}, 0)
			before.add(writes(1, 1, 100, 64)...)
			_, stop := s.send("a", before, func(cfg *sender.Config) { cfg.Mark = func() record.Seq { return c.mark } })
			eventually(t, "stored, and applied up to the mark", func() bool {
				st := life.recv.Status()
				return st.Durable == 100 && st.Applied == c.mark
			})
			stop()
			second := openRow(1, "a", 91)
			second.Incarnation = 2
			after := newLog(record.Table{closedRow(1, "a", 1, 90), second}, 0)
			all := append(writes(1, 1, 90, 64), writes(1, 91, 140, 80)...)
			for i := 90; i < len(all); i++ {
				all[i].Incarnation = 2
			}
			after.add(all...)
			snd, _ := s.send("a", after)
			if c.want == sender.StateRefused {
				eventually(t, "failed", func() bool { return snd.Status().Reason == string(receiver.ReasonFailed) })
				if life.recv.Err() == nil || len(life.store.records()) != 100 {
					t.Fatal("the pair goes on, or something was overwritten")
				}
				return
			}
			eventually(t, "all is applied", func() bool { _, _, a := after.has(); return a == 140 })
			mustPrefix(t, "store", life.store.records(), all)
			mustPrefix(t, "volumes", life.vols.applied(), all)
		})
	}
}

// rawStream speaks the protocol by hand.
func rawStream(t *testing.T, s *site, epoch record.EpochID, table record.Table) (*wire.Conn, error) {
	t.Helper()
	h, err := wire.Hello{Purpose: wire.PurposeStream, Name: epoch.Node, Group: "g"}.WithParams(map[string]any{"epoch": epoch, "table": table})
	if err != nil {
		t.Fatal(err)
	}
	c, _, err := wire.Dial(context.Background(), s.addr, h)
	if err == nil {
		t.Cleanup(c.Close)
	}
	return c, err
}

// reason reads frames until the receiver says why it ends the stream.
func reason(t *testing.T, c *wire.Conn) string {
	t.Helper()
	for {
		kind, body, err := c.ReadFrame()
		if err != nil {
			t.Fatalf("the stream ended without a reason: %v", err)
		}
		if kind == wire.TypeError {
			var e wire.Error
			var detail struct{ Reason string }
			if json.Unmarshal(body, &e) != nil || json.Unmarshal(e.Detail, &detail) != nil {
				t.Fatalf("error frame %s", body)
			}
			return detail.Reason
		}
	}
}

// TestOlderEpochBeyondItsCut: a source whose stream was open before the move goes on sending behind its cut.
func TestOlderEpochBeyondItsCut(t *testing.T) {
	s := newSite(t)
	life := s.start(&memStore{})
	permit(t, life, receiver.Permit{Epoch: id(1, "a")})
	c, err := rawStream(t, s, id(1, "a"), record.Table{openRow(1, "a", 1)})
	if err != nil {
		t.Fatal(err)
	}
	if err := c.WriteBatch(wire.Batch{Mark: 40, Records: writes(1, 1, 40, 64)}); err != nil {
		t.Fatal(err)
	}
	eventually(t, "stored", func() bool { return life.recv.Status().Stored == 40 })
	if err := life.recv.Believe(receiver.Permit{Epoch: id(2, "b"), First: 51}); err != nil {
		t.Fatal(err)
	}
	if got := life.recv.Status().CopySource; got != "transitional a->b" {
		t.Fatalf("copy source %q", got)
	}
	// Below the cut it is welcome, again and for the first time.
	if err := c.WriteBatch(wire.Batch{Mark: 60, Records: writes(1, 30, 50, 64)}); err != nil {
		t.Fatal(err)
	}
	eventually(t, "stored up to the cut, the mark not believed beyond", func() bool {
		st := life.recv.Status()
		return st.Applied == 50 && st.Mark == 50
	})
	if err := c.WriteBatch(wire.Batch{Mark: 60, Records: writes(1, 50, 51, 64)}); err != nil {
		t.Fatal(err)
	}
	if got := reason(t, c); got != string(receiver.ReasonSuperseded) {
		t.Fatalf("reason %q", got)
	}
	if got := life.recv.Status().Stored; got != 50 {
		t.Fatalf("stored %d", got)
	}
}

// TestBadInput: what is malformed ends the stream and changes nothing; the receiver itself goes on.
func TestBadInput(t *testing.T) {
	bad := map[string]func(c *wire.Conn) error{
		"a gap":            func(c *wire.Conn) error { return c.WriteBatch(wire.Batch{Records: writes(1, 5, 6, 64)}) },
		"another epoch":    func(c *wire.Conn) error { return c.WriteBatch(wire.Batch{Records: writes(2, 1, 2, 64)}) },
		"a frame of calls": func(c *wire.Conn) error { return c.WriteFrame(wire.TypeCall, []byte("x")) },
		"half a batch":     func(c *wire.Conn) error { return c.WriteFrame(wire.TypeBatch, make([]byte, 20)) },
		"a mad number":     func(c *wire.Conn) error { return c.WriteBatch(wire.Batch{Records: writes(1, 1<<62, 1<<62, 64)}) },
		"a fence to nobody": func(c *wire.Conn) error {
			return c.WriteBatch(wire.Batch{Records: []record.Record{fence(1, 1, id(1, "a"))}})
		},
		"a checksum": func(c *wire.Conn) error {
			r := write(1, 1, 64)
			r.CRC++
			return c.WriteBatch(wire.Batch{Records: []record.Record{r}})
		},
	}
	s := newSite(t)
	life := s.start(&memStore{})
	permit(t, life, receiver.Permit{Epoch: id(1, "a")})
	for name, send := range bad {
		t.Run(name, func(t *testing.T) {
			c, err := rawStream(t, s, id(1, "a"), record.Table{openRow(1, "a", 1)})
			if err != nil {
				t.Fatal(err)
			}
			if err := send(c); err != nil {
				t.Fatal(err)
			}
			if got := reason(t, c); got != string(receiver.ReasonProtocol) {
				t.Fatalf("reason %q", got)
			}
			if st := life.recv.Status(); st.Stored != 0 || st.Err != nil || st.CopySource != "a" {
				t.Fatalf("changed: %+v", st)
			}
		})
	}
}

// TestStoreFails: the first error of the log stops the pair; nothing is acknowledged after it.
func TestStoreFails(t *testing.T) {
	for _, op := range []string{"append", "sync"} {
		t.Run(op, func(t *testing.T) {
			s := newSite(t)
			var broken atomic.Bool
			store := &memStore{hook: func(o string) error {
				if o == op && broken.Load() {
					return errors.New("disk is gone")
				}
				return nil
			}}
			life := s.start(store)
			permit(t, life, receiver.Permit{Epoch: id(1, "a")})
			log := newLog(record.Table{openRow(1, "a", 1)}, 0)
			log.add(writes(1, 1, 100, 64)...)
			snd, _ := s.send("a", log)
			eventually(t, "durable", func() bool { _, d, _ := log.has(); return d == 100 })
			broken.Store(true)
			log.add(writes(1, 101, 200, 64)...)
			eventually(t, "the sender hears why", func() bool {
				st := snd.Status()
				return st.Reason == string(receiver.ReasonFailed) && strings.Contains(st.BlockedOn, "disk is gone")
			})
			broken.Store(false)
			time.Sleep(20 * time.Millisecond)
			if _, d, a := log.has(); d != 100 || a > 100 {
				t.Fatalf("acknowledged %d durable, %d applied after the failure", d, a)
			}
		})
	}
}

// TestFullLog: a log without room makes the stream wait, not fail.
func TestFullLog(t *testing.T) {
	s := newSite(t)
	var room atomic.Int64
	room.Store(10)
	store := &memStore{}
	store.hook = func(op string) error {
		if op == "append" && int64(len(store.recs)) >= room.Load() {
			return receiver.ErrFull
		}
		return nil
	}
	life := s.start(store)
	permit(t, life, receiver.Permit{Epoch: id(1, "a")})
	log := newLog(record.Table{openRow(1, "a", 1)}, 0)
	log.add(writes(1, 1, 10, 64)...)
	_, _ = s.send("a", log)
	// By themselves: what comes together is appended together, and there is room for the first append.
	eventually(t, "the room is used up", func() bool { return life.recv.Status().Stored == 10 })
	log.add(writes(1, 11, 500, 64)...)
	eventually(t, "it waits and says so", func() bool { return strings.Contains(life.recv.Status().BlockedOn, "full") })
	room.Store(1 << 30)
	eventually(t, "it goes on", func() bool { _, d, _ := log.has(); return d == 500 })
	if st := life.recv.Status(); st.BlockedOn != "" || st.Err != nil {
		t.Fatalf("status %+v", st)
	}
}

// TestResyncBehindGap: the log has trimmed what the secondary lacks; the stream goes on with a step.
func TestResyncBehindGap(t *testing.T) {
	s := newSite(t)
	life := s.start(&memStore{})
	permit(t, life, receiver.Permit{Epoch: id(1, "a")})
	log := newLog(record.Table{openRow(1, "a", 1)}, 0)
	log.add(writes(1, 1, 50, 64)...)
	snd, stop := s.send("a", log)
	eventually(t, "paired", func() bool { _, _, a := log.has(); return a == 50 })
	stop()
	begin := record.Record{Seq: 101, Epoch: 1, Incarnation: 1, Op: record.OpBegin}
	log.mu.Lock()
	log.recs, log.durable, log.trimmed = nil, 100, 100
	log.mu.Unlock()
	snd, _ = s.send("a", log)
	eventually(t, "a resync is asked for", func() bool { return snd.Status().State == sender.StateResync })
	log.mu.Lock()
	log.trimmed = 0 // the subscriber is in the stream again, from the begin on
	log.recs = []record.Record{begin}
	log.mu.Unlock()
	snd.Wake()
	eventually(t, "the begin is not sent before it is durable", func() bool { return snd.Status().State == sender.StateResync })
	if got := life.recv.Status().Stored; got != 50 {
		t.Fatalf("stored %d", got)
	}
	log.add(writes(1, 102, 149, 64)...)
	eventually(t, "the step is stored", func() bool { _, d, _ := log.has(); return d == 149 })
	if got := life.vols.last(); got != 50 {
		t.Fatalf("applied %d of a step that has not ended", got)
	}
	log.add(record.Record{Seq: 150, Epoch: 1, Incarnation: 1, Op: record.OpEnd})
	eventually(t, "the step is applied", func() bool { _, _, a := log.has(); return a == 150 })
	if snd.Status().State != sender.StateStreaming {
		t.Fatalf("state %v", snd.Status().State)
	}
}

// TestRestartWithSourcesGone: what came with a mark is applied after a restart, although nobody repeats the mark.
func TestRestartWithSourcesGone(t *testing.T) {
	s := newSite(t)
	life := s.start(&memStore{})
	permit(t, life, receiver.Permit{Epoch: id(1, "a")})
	log := newLog(record.Table{openRow(1, "a", 1)}, 0)
	log.add(writes(1, 1, 100, 64)...)
	_, stop := s.send("a", log, func(c *sender.Config) { c.Mark = func() record.Seq { return 70 } })
	eventually(t, "stored", func() bool { return life.recv.Status().Durable == 100 })
	stop()
	life = restart(t, s, life, writes(1, 1, 100, 64), newRand(t, 1), log)
	eventually(t, "applied up to the mark", func() bool { return life.vols.last() == 70 })
	state, err := life.loop.Finish(context.Background())
	if err != nil || state.Applied != 100 {
		t.Fatalf("takeover at %d: %v", state.Applied, err)
	}
}

// TestNewerStreamReplaces: a source that comes back on another connection ends its old one.
func TestNewerStreamReplaces(t *testing.T) {
	s := newSite(t)
	life := s.start(&memStore{})
	permit(t, life, receiver.Permit{Epoch: id(1, "a")})
	table := record.Table{openRow(1, "a", 1)}
	old, err := rawStream(t, s, id(1, "a"), table)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := rawStream(t, s, id(1, "a"), table); err != nil {
		t.Fatal(err)
	}
	if got := reason(t, old); got != string(receiver.ReasonReplaced) {
		t.Fatalf("reason %q", got)
	}
	if got := life.recv.Status().Connected; len(got) != 1 {
		t.Fatalf("connected %v", got)
	}
}
