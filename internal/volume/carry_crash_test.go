package volume

import (
	"errors"
	"math/rand/v2"
	"testing"

	"gantline/internal/block"
	"gantline/internal/journal"
	"gantline/internal/record"
)

// carriedSite is a target that has taken over at handedOver, and the log of what the secondary lacks up to there.
type carriedSite struct {
	*site
	t     *testing.T
	front *block.Crashable
	maps  []*block.Crashable
	noted bool // the node's own note that it has the front: durable with the call that makes it
	has   record.Seq
	sub   *Subscriber
}

const carriedFrom = record.Seq(60) // what the secondary has at the hand-over

func newCarriedSite(t *testing.T, seed uint64) *carriedSite {
	c := &carriedSite{site: newSite(t, seed, 1, testSize, 4<<20), t: t, maps: newMaps(t, seed+50)[:1], has: carriedFrom}
	c.cfg = Config{CheckpointFilled: 1}
	c.idle, c.wrap = true, c.chain
	c.front = newJournal(t, 2<<20, int64(seed)+7, journal.ID{9})
	jnl, err := journal.Open([]block.Device{c.front})
	var recs []record.Record
	for seq := carriedFrom + 1; seq <= handedOver; seq++ {
		recs = append(recs, record.Record{Seq: seq, Epoch: 1, Incarnation: 3, Op: record.OpWrite, Volume: 1,
			Offset: uint64(seq-carriedFrom) * 4096, Length: 4096, Data: stamp(int(seq), 4096)})
	}
	if err = errors.Join(err, jnl.Resume(), jnl.Reset(carriedFrom, adoption().Table, nil), jnl.Append(recs)); err != nil {
		t.Fatal(err)
	}
	if _, err := jnl.Sync(); err != nil {
		t.Fatal(err)
	}
	c.front = c.front.Kill()
	return c
}

func (c *carriedSite) openFront() (Front, error) {
	jnl, err := journal.Open([]block.Device{c.front})
	if err == nil {
		err = jnl.Resume()
	}
	return onJournal{jnl}, err
}

func (c *carriedSite) chain(log Log) Log {
	if !c.noted {
		return NewChain(log, nil, 0, 0)
	}
	front, err := c.openFront()
	if err != nil {
		c.t.Fatal(err)
	}
	return NewChain(log, front, handedOver, 40*4096)
}

// serve is what a target does when it has adopted, or comes back: its loops may do a checkpoint before it knows the secondary.
func (c *carriedSite) serve() error {
	row := record.Row{Epoch: 2, Incarnation: 1, Node: "t", First: c.g.Appended() + 1}
	if cur, _ := c.g.Table().Current(); cur.Epoch == 2 {
		row.Incarnation = cur.Incarnation + 1
	}
	if err := c.g.Serve(row); err != nil {
		return err
	}
	if err := c.g.Checkpoint(c.t.Context()); err != nil {
		return err
	}
	b, _, err := block.OpenBitmap(c.maps[0])
	if err != nil {
		return err
	}
	c.sub, err = c.g.Subscribe("far", SubscriberConfig{Changed: map[record.VolumeNumber]Bitmap{1: b}, BlockSize: markSize})
	return err
}

func (c *carriedSite) adopt() {
	c.open()
	a := adoption()
	a.Heirs = map[string]Heritage{"far": {Relied: carriedFrom - 3, Applied: carriedFrom - 5}}
	a.Next = record.Row{Epoch: 2, Incarnation: 1, Node: "t", First: handedOver + 1}
	if err := c.g.Adopt(a); err != nil {
		c.t.Fatal(err)
	}
	row, _ := c.g.Ahead()
	if err := c.g.Serve(row); err != nil {
		c.t.Fatal(err)
	}
	b, _, err := block.OpenBitmap(c.maps[0])
	if err == nil {
		c.sub, err = c.g.Subscribe("far", SubscriberConfig{Changed: map[record.VolumeNumber]Bitmap{1: b}, BlockSize: markSize})
	}
	if err != nil {
		c.t.Fatal(err)
	}
}

func (c *carriedSite) hook(h block.Hook) {
	for _, d := range []*block.Crashable{c.jdev, c.front, c.devs[0], c.maps[0]} {
		d.SetHook(h)
	}
}

func (c *carriedSite) lose() {
	c.hook(nil)
	c.front, c.maps[0] = c.front.Crash(), c.maps[0].Crash()
	c.crash()
	c.open()
}

func (c *carriedSite) write(n int) error {
	for i := range n {
		if err := write(c.vols[0], int64(i%50)*4096, stamp(1000+i, 4096), block.FlagFUA); err != nil {
			return err
		}
	}
	return nil
}

func (c *carriedSite) acked(upTo record.Seq) error {
	c.has = max(c.has, upTo)
	return c.sub.Acked(upTo, upTo, upTo)
}

// give is a secondary's whole life with what was carried, from the note on.
func (c *carriedSite) give(suspended bool) error {
	f, err := c.openFront()
	if err != nil {
		return err
	}
	c.noted = true
	if err := c.g.PutFront("far", f, handedOver, 40*4096, 0); err != nil {
		return err
	}
	if err := c.write(4); err != nil {
		return err
	}
	if !suspended {
		for _, upTo := range []record.Seq{carriedFrom + 15, handedOver, c.g.Tip()} {
			if err := c.acked(upTo); err != nil {
				return err
			}
			if err := c.g.Checkpoint(c.t.Context()); err != nil {
				return err
			}
		}
	}
	return c.drop()
}

// drop gives the front back, as the node does.
func (c *carriedSite) drop() error {
	if done, err := c.g.FreeFront(c.t.Context(), "far"); err != nil || !done {
		return errors.Join(err, errors.New("what was carried is still needed"))
	}
	c.noted = false
	if err := c.g.TakeFront(); err != nil {
		return err
	}
	return c.write(2)
}

// whole checks that all that the secondary has not got is there for it: in the log, one behind the other, or marked.
func (c *carriedSite) whole(at int, suspended bool) {
	c.t.Helper()
	if suspended {
		if c.sub.State() != SubSuspended {
			c.t.Fatalf("call %d: %v", at, c.sub.State())
		}
		marks := c.sub.volumes()[1].marks
		for blk := int64(1); blk <= int64(handedOver-carriedFrom); blk++ {
			if first, ok := marks.NextSet(blk * 4096 / markSize); c.noted && (!ok || first != blk*4096/markSize) {
				c.t.Fatalf("call %d: block %d was carried here, and is not marked", at, blk)
			}
		}
		return
	}
	if c.sub.State() != SubStreaming {
		c.t.Fatalf("call %d: %v, %s", at, c.sub.State(), c.sub.Reason())
	}
	if !c.noted && c.has < handedOver {
		return // the source still sends
	}
	for next := c.has + 1; next <= c.g.Durable(); {
		recs, err := c.sub.Read(next, 7, 1<<20)
		if err != nil || recs[0].Seq != next {
			c.t.Fatalf("call %d: the secondary has %d, and gets %d next: %v", at, c.has, next, err)
		}
		for _, r := range recs {
			if r.Seq <= handedOver && string(r.Data) != string(stamp(int(r.Seq), 4096)) {
				c.t.Fatalf("call %d: record %d is another", at, r.Seq)
			}
		}
		next = recs[len(recs)-1].Seq + 1
	}
}

// TestCarriedLogDiesAtEveryDeviceCall: the power goes at each call from the note of the target that it has what the secondary lacks
// until the space of that is given back. A secondary in the stream gets all that it has not got, in order; for one that is out of
// it, and behind whose back the target's own log has been trimmed, all is marked. Then it goes on to the end.
func TestCarriedLogDiesAtEveryDeviceCall(t *testing.T) {
	for name, suspended := range map[string]bool{"streaming": false, "suspended": true} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			rng, seed := seeded(t)
			for at := 1; !carriedDies(t, seed, at, suspended); at = nextCarried(rng, at) {
			}
		})
	}
}

func nextCarried(rng *rand.Rand, at int) int { return at + 1 + rng.IntN(roundsOf(4, 1)) }

func carriedDies(t *testing.T, seed uint64, at int, suspended bool) (over bool) {
	c := newCarriedSite(t, seed+uint64(at))
	c.adopt()
	if suspended {
		if err := errors.Join(c.sub.Suspend("by command"), c.write(20), c.g.Checkpoint(t.Context())); err != nil {
			t.Fatal(err)
		}
		if c.jnl.Cursors().Trimmed <= handedOver {
			t.Fatal("nothing was trimmed of the target's own log")
		}
	}
	calls, struck := 0, errors.New("power is about to go")
	c.hook(func(call block.Call, _, _ int64) error {
		if call == block.CallRead || call == block.CallReadNowait {
			return nil
		}
		if calls++; calls >= at {
			return struck
		}
		return nil
	})
	over = c.give(suspended) == nil
	c.lose()
	if err := c.serve(); err != nil {
		t.Fatalf("call %d: %v", at, err)
	}
	c.whole(at, suspended)
	if c.noted { // and now to the end
		if !suspended {
			if err := c.acked(c.g.Tip()); err != nil {
				t.Fatal(err)
			}
		}
		if err := c.drop(); err != nil {
			t.Fatalf("call %d: %v", at, err)
		}
	}
	c.crash()
	return over
}
