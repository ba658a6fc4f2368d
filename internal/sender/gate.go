package sender

import (
	"fmt"
	"time"

	"gantline/internal/record"
)

// Gather says when a stream transfers what waits (document Figs. 13, 14): at once, at intervals, or by quantity; with
// both, whichever comes first. The zero value: at once.
type Gather struct {
	Every time.Duration // at least so long between two transfers; 0: no interval
	Bytes int64         // a transfer begins when so many bytes wait; 0: no quantity
}

// gate holds a stream back until a transfer is due. A transfer is all that was durable when it began; records that come
// meanwhile wait for the next one. Pure: times and quantities come from outside.
type gate struct {
	gather Gather
	upTo   record.Seq // the present transfer, or the one before
	last   time.Time  // its begin
}

// look returns the last sequence that may be sent now. Where that is below next though more is durable, something waits;
// again says after what time an interval ends, 0: none does. hurry opens the gate.
func (g *gate) look(now time.Time, next, durable record.Seq, waiting func() int64, hurry bool) (limit record.Seq, again time.Duration) {
	switch {
	case next > durable:
		return durable, 0
	case g.gather == Gather{} || hurry:
	case next <= g.upTo:
		return min(g.upTo, durable), 0
	default:
		rest := g.gather.Every - now.Sub(g.last)
		byTime := g.gather.Every > 0 && rest <= 0
		if !byTime && (g.gather.Bytes == 0 || waiting() < g.gather.Bytes) {
			return g.upTo, max(rest, 0)
		}
	}
	g.upTo, g.last = durable, now
	return durable, 0
}

// held says for people what the records wait for.
func (p Gather) held(again time.Duration, records record.Seq) string {
	when := ""
	switch {
	case p.Every > 0 && p.Bytes > 0:
		when = fmt.Sprintf("after %v, in %v, or when %d bytes wait", p.Every, again.Round(time.Second/10), p.Bytes)
	case p.Every > 0:
		when = fmt.Sprintf("after %v, in %v", p.Every, again.Round(time.Second/10))
	default:
		when = fmt.Sprintf("when %d bytes wait", p.Bytes)
	}
	return fmt.Sprintf("%d records wait for the next transfer: %s", records, when)
}
