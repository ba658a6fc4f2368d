package route

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"pgregory.net/rapid"

	"gantline/internal/block"
)

func told(acts []action) string {
	names := map[actionKind]string{doDial: "dial", doFail: "fail", doDrop: "drop", doEnd: "end", doDrain: "drain"}
	var out []string
	for _, a := range acts {
		out = append(out, fmt.Sprintf("%s %d", names[a.kind], a.link))
	}
	return strings.Join(out, ", ")
}

func place(name string, epoch uint64) Route {
	return Route{Node: name, Address: name + ":1", Volume: "v", Epoch: epoch}
}

func ofGroup(group string, r Route) Route { r.Group = group; return r }

func movedTo(name string, epoch uint64) *block.MovedError {
	return &block.MovedError{Node: name, Address: name + ":1", Volume: "v", Epoch: epoch}
}

// Each history is a list of events, each with the actions it must bring and whether the gate is open afterwards.
func TestHistories(t *testing.T) {
	const ms = time.Millisecond
	type step struct {
		name string
		do   func(c *core) []action
		acts string
		open bool
	}
	begin := []step{
		{"a request", func(c *core) []action { return c.want(0) }, "dial 1", false},
		{"connected", func(c *core) []action { return c.connected(1, 1, 0) }, "", true},
	}
	for name, steps := range map[string][]step{
		"a lost connection is dialed at once, then with pauses": {
			{"lost", func(c *core) []action { return c.lost(1, 10*ms) }, "dial 2", false},
			{"failed", func(c *core) []action { return c.failed(2, nil, 20*ms) }, "", false},
			{"too soon", func(c *core) []action { return c.tick(69*ms, 0) }, "", false},
			{"due", func(c *core) []action { return c.tick(70*ms, 0) }, "dial 3", false},
			{"connected", func(c *core) []action { return c.connected(3, 1, 80*ms) }, "", true},
		},
		"finish: the old link drains beside the new one": {
			{"switch", func(c *core) []action { return c.switchTo(place("b", 1), Finish, 0) }, "drain 1, dial 2", false},
			{"connected", func(c *core) []action { return c.connected(2, 1, 0) }, "", true},
			{"drained", func(c *core) []action { return c.drained(1, 0) }, "drop 1", true},
		},
		"hold: the gate waits for the old link": {
			{"switch", func(c *core) []action { return c.switchTo(place("b", 1), Hold, 0) }, "drain 1, dial 2", false},
			{"connected", func(c *core) []action { return c.connected(2, 1, 0) }, "", false},
			{"a minute", func(c *core) []action { return c.tick(time.Minute, 0) }, "", false},
			{"drained", func(c *core) []action { return c.drained(1, 0) }, "drop 1", true},
		},
		"hold: a lost old link lets them go": {
			{"switch", func(c *core) []action { return c.switchTo(place("b", 1), Hold, 0) }, "drain 1, dial 2", false},
			{"connected", func(c *core) []action { return c.connected(2, 1, 0) }, "", false},
			{"lost", func(c *core) []action { return c.lost(1, 0) }, "drop 1", true},
		},
		"error: what is in flight fails at once, new ones wait for the old node": {
			{"switch", func(c *core) []action { return c.switchTo(place("b", 1), Error, 0) }, "fail 0, drain 1, dial 2", false},
			{"connected", func(c *core) []action { return c.connected(2, 1, 0) }, "", false},
			{"drained", func(c *core) []action { return c.drained(1, 0) }, "drop 1", true},
		},
		"error: an old node that does not answer is waited for a second": {
			{"switch", func(c *core) []action { return c.switchTo(place("b", 1), Error, 0) }, "fail 0, drain 1, dial 2", false},
			{"connected", func(c *core) []action { return c.connected(2, 1, 0) }, "", false},
			{"a second", func(c *core) []action { return c.tick(time.Second, 0) }, "", true},
		},
		"error: what a lost connection has left fails too": {
			{"lost", func(c *core) []action { return c.lost(1, 10*ms) }, "dial 2", false},
			{"switch", func(c *core) []action { return c.switchTo(place("b", 1), Error, 0) }, "fail 0, drop 2, dial 3", false},
			{"connected", func(c *core) []action { return c.connected(3, 1, 0) }, "", true},
		},
		"error: one and the same place is no switch": {
			{"switch", func(c *core) []action { return c.switchTo(place("a", 2), Error, 0) }, "", true},
		},
		"moved: the old node's last answers come first, for a second at most": {
			{"moved", func(c *core) []action { return c.moved(1, movedTo("b", 2), 0) }, "drain 1, dial 2", false},
			{"moved again, said by the old node", func(c *core) []action { return c.moved(1, movedTo("b", 2), 0) }, "", false},
			{"connected", func(c *core) []action { return c.connected(2, 2, 0) }, "", false},
			{"a second", func(c *core) []action { return c.tick(time.Second, 0) }, "", true},
		},
		"moved to an older epoch is not followed": {
			{"learned", func(c *core) []action { c.learn(1, 5); return nil }, "", true},
			{"moved", func(c *core) []action { return c.moved(1, movedTo("b", 4), 0) }, "drain 1, dial 2", false},
			{"still a", func(c *core) []action {
				if c.route.Node != "a" {
					t.Errorf("followed to %v", c.route)
				}
				return nil
			}, "", false},
		},
		"a dial that the switch has overtaken is dropped": {
			{"lost", func(c *core) []action { return c.lost(1, 0) }, "dial 2", false},
			{"switch", func(c *core) []action { return c.switchTo(place("b", 1), Finish, 0) }, "drop 2, dial 3", false},
			{"the old dial", func(c *core) []action { return c.connected(2, 1, 0) }, "drop 2", false},
			{"the new dial", func(c *core) []action { return c.connected(3, 1, 0) }, "", true},
		},
		"another group: its epochs have nothing to do with those of the one before": {
			{"learned", func(c *core) []action { c.learn(1, 5); return nil }, "", true},
			{"switch", func(c *core) []action { return c.switchTo(ofGroup("h", place("b", 2)), Finish, 0) }, "drain 1, dial 2", false},
			{"connected", func(c *core) []action { return c.connected(2, 2, 0) }, "", true},
			{"moved, said by a node of the group before", func(c *core) []action { return c.moved(1, movedTo("z", 6), 0) }, "", true},
			{"an older table", func(c *core) []action { return c.switchTo(ofGroup("h", place("y", 1)), Finish, 0) }, "", true},
			{"moved within the group", func(c *core) []action { return c.moved(2, movedTo("d", 3), 0) }, "drain 2, dial 3", false},
			{"at d, in h", func(c *core) []action {
				if c.route != ofGroup("h", place("d", 3)) {
					t.Errorf("at %+v", c.route)
				}
				return nil
			}, "", false},
		},
		"a volume that leaves its group stays on its connection": {
			{"learned", func(c *core) []action { c.learn(1, 5); return nil }, "", true},
			{"no group", func(c *core) []action { return c.switchTo(ofGroup("", place("a", 0)), Finish, 0) }, "", true},
			{"another group", func(c *core) []action { return c.switchTo(ofGroup("h", place("a", 1)), Finish, 0) }, "", true},
		},
		"sleep ends it for good": {
			{"slept", func(c *core) []action { return c.tick(time.Hour, 6*time.Second) }, "end 0", false},
			{"lost", func(c *core) []action { return c.lost(1, time.Hour) }, "", false},
			{"switch", func(c *core) []action { return c.switchTo(place("b", 9), Finish, 0) }, "", false},
		},
	} {
		t.Run(name, func(t *testing.T) {
			c := &core{route: place("a", 1)}
			for _, s := range append(begin[:2:2], steps...) {
				if got := told(s.do(c)); got != s.acts || c.open() != s.open {
					t.Fatalf("%s: %q, open %v; want %q, open %v", s.name, got, c.open(), s.acts, s.open)
				}
			}
		})
	}
}

// Whatever happens in whatever order: one link at most is current, an ended session does nothing more, the epoch never
// falls unless the volume has left its group, the gate is open on a connected link only, and while requests wait something is always under way or due.
func TestNoHistoryGetsStuckOrGoesBack(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		c := &core{route: place("a", 1)}
		dialing, up := map[linkID]bool{}, map[linkID]bool{}
		now, ended := time.Duration(0), false
		links := func() linkID { return linkID(rapid.Uint64Range(1, uint64(c.lastID)+1).Draw(t, "link")) }
		carry := func(acts []action) {
			for _, a := range acts {
				if ended && a.kind != doDrop {
					t.Fatalf("%s after the end", told(acts))
				}
				switch a.kind {
				case doDial:
					dialing[a.link] = true
				case doDrop, doFail:
					delete(dialing, a.link)
					delete(up, a.link)
				case doEnd:
					ended = true
				}
			}
		}
		carry(c.want(now))
		for range rapid.IntRange(1, 60).Draw(t, "n") {
			before, alone := c.route.Epoch, false
			now += time.Duration(rapid.IntRange(0, 300).Draw(t, "ms")) * time.Millisecond
			to := rapid.SampledFrom([]string{"a", "b", "c"}).Draw(t, "to")
			epoch := rapid.Uint64Range(0, 4).Draw(t, "epoch")
			id := links()
			switch rapid.IntRange(0, 8).Draw(t, "event") {
			case 0:
				if dialing[id] {
					delete(dialing, id)
					up[id] = true
					carry(c.connected(id, epoch, now))
				}
			case 1:
				if dialing[id] {
					delete(dialing, id)
					carry(c.failed(id, nil, now))
				}
			case 2:
				if dialing[id] {
					delete(dialing, id)
					carry(c.failed(id, movedTo(to, epoch), now))
				}
			case 3:
				if up[id] {
					delete(up, id)
					carry(c.lost(id, now))
				}
			case 4:
				if up[id] {
					carry(c.moved(id, movedTo(to, epoch), now))
				}
			case 5:
				if up[id] {
					carry(c.unavailable(id, now))
				}
			case 6:
				carry(c.drained(id, now))
			case 7:
				p := rapid.SampledFrom([]Policy{Finish, Hold, Error}).Draw(t, "policy")
				alone = epoch == 0 && !c.ended // a volume in no group, which has none
				carry(c.switchTo(place(to, epoch), p, now))
			case 8:
				carry(c.tick(now, time.Duration(rapid.IntRange(0, 5100).Draw(t, "pause"))*time.Millisecond))
			}
			if c.route.Epoch < before && !alone {
				t.Fatalf("epoch fell from %d to %d", before, c.route.Epoch)
			}
			if c.open() && (ended || !up[c.cur]) {
				t.Fatalf("open on link %d, which is not connected", c.cur)
			}
			if !ended && c.cur == 0 && c.nextTick(now) > time.Second {
				t.Fatal("nothing is under way and nothing is due")
			}
			if !ended && c.cur != 0 && !dialing[c.cur] && !up[c.cur] {
				t.Fatalf("current link %d is neither being dialed nor connected", c.cur)
			}
		}
	})
}
