package node

import (
	"context"
	"encoding/binary"
	"fmt"
	"slices"
	"sync"
	"time"

	crand "crypto/rand"

	"gantline/internal/control"
	"gantline/internal/record"
	"gantline/internal/volume"
)

// maxFindings bounds what a secondary remembers of records that differ and that nobody has asked for yet. The oldest
// are forgotten first, and said to be: the primary digests them again.
const maxFindings = 1024

// findings are what this node, as a secondary, has found at the digest records of one run. They are not kept over a
// restart: the primary sees what is missing and digests it again.
type findings struct {
	mu          sync.Mutex
	run         uint64
	first, upTo record.Seq // all records of the run from first to upTo have been compared
	different   []control.DigestFinding
}

// add notes one record; reason: it could not be compared.
func (f *findings) add(c volume.Compared, reason error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.run != c.Run || f.first == 0 {
		f.run, f.first, f.different = c.Run, c.Seq, nil
	}
	f.upTo = c.Seq
	if reason != nil {
		f.different = append(f.different, control.DigestFinding{Seq: uint64(c.Seq), Number: uint16(c.Volume), Error: reason.Error()})
	}
	for _, e := range c.Different {
		f.different = append(f.different, control.DigestFinding{Seq: uint64(c.Seq), Number: uint16(c.Volume), Offset: e.Offset, Length: e.Length})
	}
	for len(f.different) > maxFindings {
		f.first = record.Seq(f.different[0].Seq) + 1
		f.different = f.different[1:]
	}
}

// from answers with what was found above after; what lies at or below it has arrived.
func (f *findings) from(run uint64, after record.Seq) control.DigestFound {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.run != run {
		return control.DigestFound{}
	}
	f.different = slices.DeleteFunc(f.different, func(d control.DigestFinding) bool { return record.Seq(d.Seq) <= after })
	return control.DigestFound{First: uint64(f.first), UpTo: uint64(f.upTo), Different: slices.Clone(f.different)}
}

// onRecord is told of each control record that a follower has applied, before the next is.
func (g *group) onRecord(r record.Record) {
	if r.Op != record.OpDigest {
		return
	}
	g.mu.Lock()
	vg := g.vg
	g.mu.Unlock()
	if vg == nil {
		return // closing; the primary asks in vain and digests it again
	}
	c, err := vg.Compare(g.run.ctx, &r)
	if err != nil && c.Run == 0 {
		g.n.log.Warn("digest record skipped", "group", g.name, "sequence", r.Seq, "cause", err)
		return
	}
	for _, e := range c.Different {
		g.n.log.Error("the copy differs", "group", g.name, "sequence", r.Seq, "volume", c.Volume, "offset", e.Offset, "length", e.Length)
	}
	g.found.add(c, err)
}

// digestsFound tells the primary how far this secondary has compared. What it says to have applied has been compared
// before, or by an earlier run of this process, whose findings are gone.
func (n *Node) digestsFound(in control.DigestAsk) (control.DigestFound, error) {
	g := n.group(in.Name)
	if g == nil {
		return control.DigestFound{}, notFound("group %s is not on node %s", in.Name, n.cfg.Name)
	}
	g.mu.Lock()
	app := g.app
	g.mu.Unlock()
	if app == nil {
		return control.DigestFound{}, refused("group %s: node %s is not its secondary", in.Name, n.cfg.Name)
	}
	st := app.Status()
	if st.Err != nil {
		return control.DigestFound{}, refused("group %s has stopped at node %s: %v", in.Name, n.cfg.Name, st.Err)
	}
	found := g.found.from(in.Run, record.Seq(in.After))
	found.Applied = uint64(st.State.Applied)
	return found, nil
}

const (
	compareWindow   = 32                     // digest records that the secondary has not answered for
	compareAsk      = 10 * time.Millisecond  // between two questions while answers come
	comparePatience = 60 * time.Second       // without an answer
	compareAway     = 500 * time.Millisecond // between two tries while the secondary is away
	maxDifferent    = 4096                   // places that differ; with more the comparison ends
)

// extent is a part of a volume to be compared, or one that differs.
type extent struct {
	number      uint16
	off, length int64
}

// compare has the secondary compare extents, each at a sequence of its own, while hosts write and records flow. It
// returns those that differ, in blocks of volume.DigestBlock. progress is told of each extent that was compared.
//
// An answer counts only if the secondary has compared the record itself in its present run. A record that it has
// applied and does not know of was lost with an earlier run of its process, and is digested again: so a death of the
// secondary costs time, and never an answer.
func (g *group) compare(ctx context.Context, todo []extent, progress func(seq record.Seq, bytes int64)) ([]extent, error) {
	rec := g.n.state.view().Groups[g.name]
	if rec == nil {
		return nil, refused("group %s is not on node %s", g.name, g.n.cfg.Name)
	}
	digests := g.sub.NewDigests(randomRun())
	var waiting []volume.Digested
	var different []extent
	ask := control.DigestAsk{Name: g.name, Run: digests.Run()}
	heard, moved := time.Now(), time.Now() // the last answer, and the last that said more than the one before
	for len(todo) > 0 || len(waiting) > 0 {
		if err := g.comparable(ctx); err != nil {
			return nil, err
		}
		for len(todo) > 0 && len(waiting) < compareWindow {
			e := todo[0]
			done, err := digests.Add(ctx, record.VolumeNumber(e.number), e.off, e.length)
			if err != nil {
				return nil, err
			}
			waiting, todo = append(waiting, done...), todo[1:]
		}
		var found control.DigestFound
		wait := compareAsk
		if err := g.n.call(ctx, rec.Spec.Group.Secondary, control.CallGroupDigests, ask, &found); err != nil {
			if time.Since(heard) > comparePatience {
				return nil, fmt.Errorf("node %s has not answered for %v: %w", rec.Spec.Group.Secondary, comparePatience, err)
			}
			wait = compareAway
		} else {
			before := len(waiting)
			heard = time.Now()
			var again []extent
			waiting, again = settle(waiting, &found, progress)
			todo = append(again, todo...)
			for _, d := range found.Different {
				if d.Error != "" {
					return nil, fmt.Errorf("node %s could not compare at sequence %d: %s", rec.Spec.Group.Secondary, d.Seq, d.Error)
				}
				different = append(different, extent{d.Number, d.Offset, d.Length})
			}
			ask.After = max(ask.After, found.UpTo)
			if len(different) > maxDifferent {
				return different, fmt.Errorf("more than %d places differ: copy the volumes anew (remove the pair and add it again)", maxDifferent)
			}
			if len(waiting) < before {
				moved = time.Now()
			} else if time.Since(moved) > comparePatience && !g.linkUp() {
				return nil, fmt.Errorf("the link to node %s has been down for %v", rec.Spec.Group.Secondary, comparePatience)
			}
		}
		select {
		case <-ctx.Done():
			return nil, context.Cause(ctx)
		case <-time.After(wait):
		}
	}
	return joined(different), nil
}

// settle takes out of waiting, which ascends, what the secondary has answered for, and gives back what it has lost.
func settle(waiting []volume.Digested, found *control.DigestFound, progress func(record.Seq, int64)) (left []volume.Digested, again []extent) {
	for i, d := range waiting {
		switch seq := uint64(d.Seq); {
		case found.First != 0 && seq >= found.First && seq <= found.UpTo:
			progress(d.Seq, d.Length)
		case seq <= found.Applied:
			again = append(again, extent{uint16(d.Volume), d.Off, d.Length})
		default:
			return waiting[i:], again
		}
	}
	return nil, again
}

// joined orders extents and joins neighbours. One that was compared twice is there once.
func joined(all []extent) []extent {
	slices.SortFunc(all, func(a, b extent) int {
		if a.number != b.number {
			return int(a.number) - int(b.number)
		}
		return int(min(max(a.off-b.off, -1), 1))
	})
	var out []extent
	for _, e := range all {
		if n := len(out); n > 0 && out[n-1].number == e.number && e.off <= out[n-1].off+out[n-1].length {
			out[n-1].length = max(out[n-1].length, e.off+e.length-out[n-1].off)
			continue
		}
		out = append(out, e)
	}
	return out
}

// comparable is nil while records reach the secondary in the stream.
func (g *group) comparable(ctx context.Context) error {
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	if err := g.serving(); err != nil {
		return err
	}
	if g.running() == nil {
		return refused("group %s is closed on node %s", g.name, g.n.cfg.Name)
	}
	if s := g.sub.State(); s != volume.SubStreaming {
		return fmt.Errorf("copying is %s: nothing can be compared", s)
	}
	return nil
}

// linkUp says whether the stream to the secondary stands.
func (g *group) linkUp() bool { return g.status().LinkUp }

func randomRun() uint64 {
	var b [8]byte
	crand.Read(b[:])
	return binary.LittleEndian.Uint64(b[:]) | 1
}

// extents cuts a whole volume into what one record covers.
func extents(number uint16, size int64) []extent {
	var all []extent
	for off := int64(0); off < size; off += volume.DigestExtent {
		all = append(all, extent{number, off, min(volume.DigestExtent, size-off)})
	}
	return all
}

// cut gives the parts of extents that one record each covers.
func cut(list []extent) []extent {
	var all []extent
	for _, e := range list {
		for off := e.off; off < e.off+e.length; off += volume.DigestExtent {
			all = append(all, extent{e.number, off, min(volume.DigestExtent, e.off+e.length-off)})
		}
	}
	return all
}

// lacking is extents as the subscriber marks them.
func lacking(list []extent) []volume.Digested {
	var all []volume.Digested
	for _, e := range list {
		all = append(all, volume.Digested{Volume: record.VolumeNumber(e.number), Off: e.off, Length: e.length})
	}
	return all
}

func sum(list []extent) (bytes int64) {
	for _, e := range list {
		bytes += e.length
	}
	return bytes
}
