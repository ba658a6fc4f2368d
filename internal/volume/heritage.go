package volume

import (
	"fmt"

	"gantline/internal/record"
)

// Heritage is what the log of a sealed group hands over of a subscriber besides its changed map.
type Heritage struct {
	// Suspended: it is out of the stream, and what it lacks up to the cut stands in its map. Else it has the rest up to the
	// cut from the sealed log, and its marks are of blocks that are still to be copied.
	Suspended bool
	Sync      bool       // it was promised all that hosts were answered for
	Stale     record.Seq // 0: it was not cut off while it was promised all
	Relied    record.Seq // how far it has said to have all
	Applied   record.Seq // what it has applied, as far as is known
}

// Heritage of the subscriber of a sealed group. One that a restart has taken out of the stream of a log in memory was in it
// when that was sealed, which waits until it has all.
func (s *Subscriber) Heritage() Heritage {
	m := s.forMeta()
	return Heritage{Suspended: m.Suspended, Sync: m.Sync && !m.Suspended, Stale: m.Stale, Relied: m.Relied, Applied: m.Applied}
}

// inherited is what a log that begins behind base remembers of subscribers that another log has handed over.
func inherited(heirs map[string]Heritage, base record.Seq) map[string]metaSub {
	subs := map[string]metaSub{}
	for name, h := range heirs {
		if !h.Suspended {
			h.Applied = base // what it has applied it will say
		}
		subs[name] = metaSub{Acked: base, Suspended: h.Suspended, Sync: h.Sync, Stale: h.Stale, Relied: min(h.Relied, base),
			Applied: h.Applied, Inherited: true}
	}
	return subs
}

// cutSteps takes subscribers out of the stream that are inside a step, or about to leave it, at the end of an epoch, under the
// commit mutex: all that they lack is marked. What they have stored of the step is dropped by the begin of the next one.
func (g *Group) cutSteps() {
	for _, s := range *g.subs.Load() {
		switch {
		case s.State() == SubResyncing || s.State() == SubStreaming && s.Resting():
			s.cutOff(sealedInStep)
		case s.Lapsed():
			s.setState(SubSuspended, sealedInStep)
		}
	}
}

const sealedInStep = "the group moves; the next node begins the step anew"

// inheritMarks notes all marks as the source's, which may have sent their blocks up to the cut. It is for the process that has
// adopted them alone: after a restart nobody knows which marks were set here since, and all count as those.
func (s *Subscriber) inheritMarks() {
	for _, b := range s.volumes() {
		b.mu.Lock()
		for bit, ok := b.marks.NextSet(0); ok; bit, ok = b.marks.NextSet(bit + 1) {
			b.inherited.set(bit)
		}
		b.mu.Unlock()
	}
}

// Settle tells which blocks, of 8*len(bits) from first on, the source of a move still knows to be lacking, now that the
// subscriber has all up to the cut: bit i of byte j is block first+8j+i. An inherited mark that is not among them is
// cleared: the source's own copy of the block has arrived, and all later writes are in the stream. One that a record has
// set here since is kept. Settled makes it durable.
func (s *Subscriber) Settle(n record.VolumeNumber, first int64, bits []byte) error {
	b := s.volumes()[n]
	if b == nil {
		return fmt.Errorf("%w: %d at subscriber %s", ErrUnknownVolume, n, s.name)
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	for i := range min(int64(len(bits))*8, b.marks.Bits()-first) {
		lacks, bit := bits[i/8]&(1<<(i%8)) != 0, first+i
		switch {
		case lacks:
			b.marks.Set(bit)
		case b.inherited.has(bit):
			b.marks.Clear(bit)
		}
		b.inherited.clear(bit)
	}
	return nil
}

// Settled makes durable what Settle has cleared.
func (s *Subscriber) Settled() error { return s.flushMaps() }
