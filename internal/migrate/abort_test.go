package migrate

import (
	"context"
	"log/slog"
	"sync/atomic"
	"testing"
	"time"

	"gantline/internal/control"
)

// An abort ends the hold at once, whatever the target waits for; nothing of what comes later makes it take over.
func TestAbortEndsTheHold(t *testing.T) {
	o := &slowPend{stages: make(chan Stage, 16)}
	rec := &Record{Spec: control.MigrationSpec{ID: "g-1", Group: control.Group{Epoch: 1}}, Role: control.RoleTarget, Stage: Through}
	var points atomic.Int32
	tg := NewTarget(rec, o, slog.New(slog.DiscardHandler), func(step, _ string) {
		if step == control.PointRefuse {
			points.Add(1)
		}
	})
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	go func() { _ = tg.Run(ctx) }()
	if err := tg.Abort(); err != nil { // not ordered yet: nothing to promise
		t.Fatal(err)
	}
	if err := tg.Order(); err != nil || <-o.stages != Ordered {
		t.Fatal(err)
	}
	time.Sleep(20 * time.Millisecond) // it holds, and waits for an answer that never comes
	begun := time.Now()
	if err := tg.Abort(); err != nil {
		t.Fatal(err)
	}
	for s := range o.stages {
		if s == Returned {
			break
		}
	}
	if took := time.Since(begun); took > HoldLimit/2 {
		t.Errorf("the hold ended after %v", took)
	}
	if err := tg.Abort(); err != nil {
		t.Errorf("repeated: %v", err)
	}
	if r, _ := tg.View(); !r.Aborted || r.Phase() != control.PhaseAborted || points.Load() != 2 {
		t.Errorf("record %+v, %d points", r, points.Load())
	}
}

// Once the target has recorded that it serves, it refuses the abort.
func TestAbortBehindThePromise(t *testing.T) {
	for _, stage := range []Stage{Opened, Drained, Single, Filled} {
		rec := &Record{Spec: control.MigrationSpec{ID: "g-1"}, Role: control.RoleTarget, Stage: stage}
		tg := NewTarget(rec, &slowPend{stages: make(chan Stage, 1)}, slog.New(slog.DiscardHandler), nil)
		if err := tg.Abort(); err == nil {
			t.Errorf("%s: aborted", stage)
		}
		if r, _ := tg.View(); r.Stage != stage {
			t.Errorf("%s became %s", stage, r.Stage)
		}
	}
}

// abortedInAdopt is a target that is aborted while it adopts.
type abortedInAdopt struct {
	Ops
	tg    *Target
	saved []Stage
	asked bool
}

func (o *abortedInAdopt) Save(r *Record) error       { o.saved = append(o.saved, r.Stage); return nil }
func (o *abortedInAdopt) Near(context.Context) error { return nil }
func (o *abortedInAdopt) Meet(context.Context) error { return nil }
func (o *abortedInAdopt) Pend(context.Context) error { return nil }
func (o *abortedInAdopt) Seal(context.Context) (*control.Handover, error) {
	return &control.Handover{ID: "g-1", Epoch: 1, Cut: 7}, nil
}
func (o *abortedInAdopt) Adopt(*control.Handover) error { return o.tg.Abort() }
func (o *abortedInAdopt) Decide(context.Context, uint64) (string, error) {
	o.asked = true
	return control.DecidedTarget, nil
}
func (o *abortedInAdopt) Reopen(context.Context) error { return nil }
func (o *abortedInAdopt) Relay() error                 { return nil }

// That a hand-over is adopted is only remembered; it must not make a target forget that it has refused.
func TestAbortWhileAdopting(t *testing.T) {
	o := &abortedInAdopt{}
	rec := &Record{Role: control.RoleTarget, Stage: Ordered}
	rec.Spec.ID, rec.Spec.Group.Epoch = "g-1", 1
	o.tg = NewTarget(rec, o, slog.New(slog.DiscardHandler), nil)
	if err := o.tg.Run(t.Context()); err != nil {
		t.Fatal(err)
	}
	if r, _ := o.tg.View(); r.Stage != Returned || o.asked || len(o.saved) != 2 || o.saved[0] != Refused {
		t.Fatalf("stage %s, saved %v, the store was asked: %v", r.Stage, o.saved, o.asked)
	}
}
