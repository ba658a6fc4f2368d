package node

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"

	"gantline/internal/journal"
	"gantline/internal/record"
	"gantline/internal/wire"
)

// fetch brings all up to the cut.
func (c *carrier) fetch(ctx context.Context, cut record.Seq) (over bool, err error) {
	page, err := c.ask(ctx, 0, 0)
	if err != nil {
		return false, err
	}
	if page.Cut != uint64(cut) {
		return false, fmt.Errorf("node %s is sealed at %d, and has handed over %d", c.o.spec.Source, page.Cut, cut)
	}
	if err := c.ensure(page.Size, page.Size); err != nil {
		return false, err
	}
	c.mu.Lock()
	jnl := c.jnl
	c.mu.Unlock()
	base := min(record.Seq(page.Base), cut)
	if err := c.bring(ctx, jnl, base, cut); err != nil {
		if errors.Is(err, journal.ErrFull) || errors.Is(err, journal.ErrTooLarge) {
			return false, errors.Join(err, c.enlarge(jnl))
		}
		if jnl.Err() != nil { // nobody knows what of it is on disk: the source has all of it
			return false, errors.Join(err, c.discard(jnl))
		}
		return false, err
	}
	if at := jnl.Cursors(); at.Durable != cut || at.Appended != cut {
		return false, fmt.Errorf("what was carried is durable up to %d, not %d", at.Durable, cut)
	}
	c.progress(jnl)
	c.mu.Lock()
	c.whole, c.total = true, c.done
	c.mu.Unlock()
	return true, nil
}

// bring appends what is missing.
func (c *carrier) bring(ctx context.Context, jnl *journal.Journal, base, cut record.Seq) error {
	if err := c.begin(jnl, base, cut); err != nil {
		return err
	}
	unsynced := int64(0)
	for {
		at := jnl.Cursors()
		if at.Appended >= cut || unsynced >= carrySync {
			if _, err := jnl.Sync(); err != nil {
				return err
			}
			unsynced = 0
		}
		if at.Appended >= cut {
			return nil
		}
		recs, size, err := c.batch(ctx, at.Appended+1, cut)
		if err != nil {
			return err
		}
		if err := jnl.Append(recs); err != nil {
			return err
		}
		unsynced += size
		c.progress(jnl)
	}
}

// begin goes on behind what is here, or begins behind base: what lies up to there the secondary has got meanwhile.
func (c *carrier) begin(jnl *journal.Journal, base, cut record.Seq) error {
	var meta carryMeta
	_ = json.Unmarshal(jnl.Meta(), &meta) // of a new one there is none
	want := carryMeta{Move: c.o.spec.ID, Cut: uint64(cut)}
	if at := jnl.Cursors(); meta != want || at.Appended < base {
		b, err := json.Marshal(want)
		if err != nil {
			return err
		}
		var rows record.Table
		for _, row := range c.o.group().vg.Table() {
			if row.First <= cut {
				rows = append(rows, row)
			}
		}
		if err := jnl.Reset(base, rows, b); err != nil {
			return err
		}
	}
	records, bytes, err := jnl.Above(jnl.Cursors().Trimmed)
	if err != nil {
		return err
	}
	left, at := max(c.needed()-journal.SizeFor(0, 0), 0), jnl.Cursors()
	c.mu.Lock()
	defer c.mu.Unlock()
	c.base, c.cut, c.done = at.Trimmed, cut, bytes
	c.total = max(left, bytes, int64(records))
	return nil
}

func (c *carrier) needed() int64 {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.need
}

func (c *carrier) progress(jnl *journal.Journal) {
	if _, bytes, err := jnl.Above(jnl.Cursors().Trimmed); err == nil {
		c.mu.Lock()
		c.done, c.total = bytes, max(c.total, bytes)
		c.mu.Unlock()
	}
}

// enlarge makes a log anew that is full, though it was made for all of it.
func (c *carrier) enlarge(jnl *journal.Journal) error {
	c.mu.Lock()
	size := c.size
	c.mu.Unlock()
	if err := c.discard(jnl); err != nil {
		return err
	}
	size += size/4 + carrySlack
	larger, err := c.make(size)
	if err == nil {
		c.keep(larger, size)
	}
	return err
}

// discard removes a log with what is in it.
func (c *carrier) discard(jnl *journal.Journal) error {
	c.keep(nil, 0)
	if err := jnl.Close(); err != nil {
		c.o.n.log.Warn("closing what was carried", "id", c.o.spec.ID, "cause", err)
	}
	return c.o.n.removeMap(c.path)
}

// batch fetches records from one on. Their checksums are verified.
func (c *carrier) batch(ctx context.Context, from, cut record.Seq) ([]record.Record, int64, error) {
	var body []byte
	for {
		page, err := c.ask(ctx, from, int64(len(body)))
		if err != nil {
			return nil, 0, err
		}
		if len(page.Piece) == 0 || int64(len(body)+len(page.Piece)) > page.Total || page.Total > wire.MaxBatchBody {
			return nil, 0, fmt.Errorf("record %d: %d bytes behind %d of %d", from, len(page.Piece), len(body), page.Total)
		}
		body = append(body, page.Piece...)
		if err := c.o.pace(ctx, int64(len(page.Piece))); err != nil {
			return nil, 0, err
		}
		if int64(len(body)) == page.Total {
			break
		}
	}
	b, err := wire.DecodeBatch(body)
	if err != nil {
		return nil, 0, fmt.Errorf("records from %d on: %w", from, err)
	}
	recs := b.Records
	for i := range recs {
		if recs[i].Seq != from+record.Seq(i) {
			return nil, 0, fmt.Errorf("record %d where %d was asked for", recs[i].Seq, from+record.Seq(i))
		}
		if recs[i].Seq > cut {
			recs = recs[:i]
			break
		}
	}
	if len(recs) == 0 {
		return nil, 0, fmt.Errorf("no record from %d on", from)
	}
	return recs, int64(len(body)), nil
}
