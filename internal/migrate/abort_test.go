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
