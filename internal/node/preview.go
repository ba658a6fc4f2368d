package node

import (
	"context"
	"sync"
	"time"

	"gantline/internal/apply"
	"gantline/internal/receiver"
	"gantline/internal/record"
)

const (
	// previewAfter is how long no source must have been heard of before a secondary's readers are shown all that is stored.
	previewAfter = time.Second
	previewLook  = 200 * time.Millisecond
	// previewBytes bounds what is shown so, in memory. Of more only the beginning is: still a prefix.
	previewBytes = 256 << 20
)

// previewer shows the readers of a secondary whose sources are gone what is stored above the source's durable mark. With
// a synchronous source hosts have been answered for it; it is not applied, since the source may come back without it.
type previewer struct {
	g *group

	mu    sync.Mutex
	shown bool
	tries int // how often something has changed
}

// previewed is the applier as the receiver knows it: whatever it hears takes the preview away in the same step, so that none is
// shown that was taken before and holds what is cut, or less than is applied from now on.
type previewed struct {
	*apply.Loop
	p *previewer
}

var _ receiver.Applier = previewed{}

func (a previewed) Stored(recs []record.Record) {
	a.p.drop(func() { a.Loop.Stored(recs) })
}

func (a previewed) Mark(seq record.Seq) {
	a.p.drop(func() { a.Loop.Mark(seq) })
}

func (a previewed) Cut(upTo record.Seq) error {
	var err error
	a.p.drop(func() { err = a.Loop.Cut(upTo) })
	return err
}

// drop takes the preview away and runs then before another can be shown.
func (p *previewer) drop(then func()) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.tries++
	if p.shown {
		p.shown = false
		p.g.vg.DropPreview()
	}
	then()
}

// run shows the preview once no source has been connected for a while.
func (p *previewer) run(ctx context.Context) {
	tick := time.NewTicker(previewLook)
	defer tick.Stop()
	alone := time.Now()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		if st := p.g.rcv.Status(); st.Err != nil {
			return
		} else if len(st.Connected) > 0 || st.Durable < st.Stored {
			alone = time.Now()
		}
		if time.Since(alone) < previewAfter {
			continue
		}
		if err := p.show(); err != nil {
			p.g.n.log.Warn("what is stored is not shown", "group", p.g.name, "cause", err)
			alone = time.Now() // again in a while
		}
	}
}

func (p *previewer) show() error {
	p.mu.Lock()
	shown, tries := p.shown, p.tries
	p.mu.Unlock()
	if shown {
		return nil
	}
	recs, whole, err := p.g.app.Takeover(previewBytes)
	if err != nil || len(recs) == 0 {
		return err
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.tries != tries {
		return nil // a source is there again
	}
	if err := p.g.vg.SetPreview(recs); err != nil {
		return err
	}
	p.shown = true
	p.g.n.log.Info("sources are gone: readers see all that is stored", "group", p.g.name, "from", recs[0].Seq,
		"to", recs[len(recs)-1].Seq, "whole", whole)
	return nil
}
