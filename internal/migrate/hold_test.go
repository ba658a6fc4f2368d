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
