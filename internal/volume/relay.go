package volume

import (
	"errors"

	"gantline/internal/block"
)

// relayed is a batch on its way to the source of a move. The forwarded requests are ours, so that the answer `moved`
// can be caught: it says that the request was not executed there, and it must then be executed here.
type relayed struct {
	v      *Volume
	p      *period
	epoch  uint64
	ticket uint64 // of the first
	orig   []*block.Request
	fwd    []block.Request
}

func (v *Volume) relayTo(p *period, epoch uint64, reqs []*block.Request) {
	if p.relay == nil {
		for _, r := range reqs {
			r.Finish(errNoRelay)
		}
		p.leave(len(reqs))
		return
	}
	b := &relayed{v: v, p: p, epoch: epoch, orig: append([]*block.Request(nil), reqs...), fwd: make([]block.Request, len(reqs))}
	v.gate.mu.Lock()
	b.ticket = v.gate.ticket + 1
	v.gate.ticket += uint64(len(reqs))
	v.gate.mu.Unlock()
	out := make([]*block.Request, len(reqs))
	for i, r := range reqs {
		f := &b.fwd[i]
		*f = *r
		f.Completer, f.Tag = b, uint64(i)
		out[i] = f
	}
	p.relay.Submit(out)
}

// Complete answers the host with what the source said, or keeps the request here if the source has been sealed.
func (b *relayed) Complete(f *block.Request) {
	r := b.orig[f.Tag]
	var moved *block.MovedError
	if !errors.As(f.Err, &moved) {
		r.Extents = f.Extents
		r.Finish(f.Err)
	} else if !b.v.gate.takeBack(heldRequest{r: r, epoch: b.epoch, ticket: b.ticket + f.Tag}) {
		// The mode has moved on: it executes here. Not on the relay's goroutine, which must not wait for room.
		b.v.background.Add(1)
		go func() {
			defer b.v.background.Done()
			b.v.SubmitAt(b.epoch, []*block.Request{r})
			b.p.leave(1)
		}()
		return
	}
	b.p.leave(1)
}
