package migrate

import (
	"context"
	"log/slog"
	"sync/atomic"
	"testing"
	"time"

	"gantline/internal/control"
)

// slowPend is a target whose relayed requests are never answered: the source stalls.
type slowPend struct {
	Ops
	longest atomic.Int64
	stages  chan Stage
}

func (o *slowPend) Save(r *Record) error { o.stages <- r.Stage; return nil }
func (o *slowPend) Pend(ctx context.Context) error {
	start := time.Now()
	<-ctx.Done()
	o.longest.Store(max(o.longest.Load(), int64(time.Since(start))))
	return context.Cause(ctx)
}
func (o *slowPend) Near(context.Context) error   { return nil }
func (o *slowPend) Meet(context.Context) error   { return nil }
func (o *slowPend) Reopen(context.Context) error { return nil }
func (o *slowPend) Relay() error                 { return nil }

// Hosts are held from the first moment of Pend on, so its drain counts against the hold limit.
func TestPendKeepsHoldLimit(t *testing.T) {
	o := &slowPend{stages: make(chan Stage, 16)}
	rec := &Record{Spec: control.MigrationSpec{ID: "g-1", Group: control.Group{Epoch: 1}}, Role: control.RoleTarget, Stage: Ordered}
	tg := NewTarget(rec, o, slog.New(slog.DiscardHandler), nil)
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	go func() { _ = tg.Run(ctx) }()
	start := time.Now()
	for s := range o.stages {
		if s == Refused {
			break
		}
	}
	if held := time.Since(start); held > HoldLimit+time.Second {
		t.Fatalf("hosts were held for %v, the hard limit is %v", held.Round(time.Millisecond), HoldLimit)
	}
}

// lagging is a target that is behind for some time.
type lagging struct {
	Ops
	behind int // holds that it does not come in step in
	cutOff int // and seals that it has fallen out of step before
	holds  int
	sealed chan struct{}
}

func (o *lagging) Save(*Record) error         { return nil }
func (o *lagging) Near(context.Context) error { return nil }
func (o *lagging) Pend(context.Context) error { o.holds++; return nil }
func (o *lagging) Relay() error               { return nil }
func (o *lagging) Seal(ctx context.Context) (*control.Handover, error) {
	if o.holds <= o.behind+o.cutOff {
		return nil, ErrBehind
	}
	close(o.sealed)
	<-ctx.Done()
	return nil, context.Cause(ctx)
}

func (o *lagging) Meet(context.Context) error {
	if o.holds <= o.behind {
		return ErrBehind
	}
	return nil
}

// A hold in which the target does not come in step ends, and the next one has its whole time: what hosts were held for
// before does not count, and nothing is refused for it.
func TestHoldsThatAreBehindDoNotAddUp(t *testing.T) {
	o := &lagging{behind: 3, cutOff: 2, sealed: make(chan struct{})}
	rec := &Record{Spec: control.MigrationSpec{ID: "g-1", Group: control.Group{Epoch: 1}}, Role: control.RoleTarget, Stage: Ordered}
	tg := NewTarget(rec, o, slog.New(slog.DiscardHandler), nil)
	now := time.Unix(1000, 0)
	tg.now = func() time.Time { now = now.Add(HoldLimit / 4); return now } // each look at the clock takes long
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- tg.Run(ctx) }()
	select {
	case <-o.sealed:
	case <-time.After(5 * time.Second):
		t.Error("not sealed")
	}
	cancel()
	<-ended
	if r, _ := tg.View(); r.Stage != Ordered || o.holds != 6 {
		t.Errorf("stage %s after %d holds", r.Stage, o.holds)
	}
}
