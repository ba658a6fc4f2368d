package node

import (
	"context"
	"errors"
	"fmt"
	"time"

	"gantline/internal/control"
	"gantline/internal/record"
)

func (c *copyFirst) current() (*copyRun, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	switch {
	case c.run != nil:
		return c.run, nil
	case c.blocked != nil:
		return nil, c.blocked
	}
	return nil, errors.New("the source has not been joined yet")
}

// back notes that hosts go on at the source; tell: it is worth an event.
func (c *copyFirst) back(err error) (tell bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.behind, c.backAt = err, time.Now()
	if tell = time.Since(c.toldAt) > copyTold; tell {
		c.toldAt = time.Now()
	}
	return tell
}

// near: the target is filled, and as far as the source is, but for a moment's writes. Those are made durable, so that
// little is left to be written while hosts are held. sealed: the source has ended its epoch, so there is no way but to go
// on. heard: it has answered.
func (c *copyFirst) near(ctx context.Context) (sealed, heard bool, err error) {
	var tip control.CopyTip
	if err := c.ask(ctx, control.CallMigrateTip, control.CopyAsk{ID: c.o.spec.ID, Hasten: true}, &tip); err != nil {
		return false, false, err
	}
	if tip.Sealed {
		return true, true, nil
	}
	c.mu.Lock()
	patience := copyPatience - time.Since(c.backAt)
	c.mu.Unlock()
	if patience > 0 {
		return false, true, errors.New("it was not when hosts were held the last time")
	}
	run, err := c.current()
	if err != nil {
		return false, true, err
	}
	wait, cancel := context.WithTimeout(ctx, copyClose)
	defer cancel()
	if err := run.image.await(wait, record.Seq(tip.Tip)); err != nil {
		return false, true, err
	}
	_, err = run.image.Sync()
	return false, true, err
}

// meet waits, with hosts held, until the target has written all that the source has numbered.
func (c *copyFirst) meet(ctx context.Context) error {
	run, err := c.current()
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, copyBudget)
	defer cancel()
	tip, err := c.tip(ctx, run, true)
	if err != nil {
		return err
	}
	return run.image.await(ctx, record.Seq(tip.Tip))
}

// reach returns once all up to the cut is here durably.
func (c *copyFirst) reach(ctx context.Context, cut uint64) error {
	c.mu.Lock()
	done := c.reached >= cut
	c.mu.Unlock()
	if done {
		return nil
	}
	run, err := c.current()
	if err != nil {
		return err
	}
	if err := run.image.await(ctx, record.Seq(cut)); err != nil {
		return err
	}
	durable, err := run.image.Sync()
	if err == nil && durable < record.Seq(cut) {
		err = fmt.Errorf("the target has the records up to %d of %d durably", durable, cut)
	}
	if err != nil {
		return err
	}
	c.mu.Lock()
	c.reached = cut
	c.mu.Unlock()
	return nil
}

// sealed asks the source whether it has ended its epoch.
func (c *copyFirst) sealed(ctx context.Context) (bool, error) {
	var tip control.CopyTip
	err := c.ask(ctx, control.CallMigrateTip, control.CopyAsk{ID: c.o.spec.ID}, &tip)
	return tip.Sealed, err
}

// bytes that this process has fetched.
func (c *copyFirst) bytes() int64 {
	if c == nil {
		return 0
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	sum := c.brought
	if c.run != nil {
		for _, d := range c.run.image.disks {
			sum += d.bytes()
		}
	}
	return sum
}

// status is what `migrate show` tells of the copy.
func (c *copyFirst) status(st *control.MigrationStatus) {
	st.Background += c.bytes()
	c.mu.Lock()
	run, blocked, behind := c.run, c.blocked, c.behind
	c.mu.Unlock()
	if run == nil {
		if blocked != nil {
			st.BlockedOn = "copy: " + blocked.Error()
		}
		return
	}
	st.Copied, _ = run.image.whole()
	switch {
	case blocked != nil:
		st.BlockedOn = "copy: " + blocked.Error()
	case behind != nil && st.BlockedOn == "":
		st.BlockedOn = behind.Error()
	}
}
