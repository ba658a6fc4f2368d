package migrate

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"time"

	"gantline/internal/control"
)

// ErrNotSealed is the source's answer to a seal that cannot be: the pair has left its state, or the move was returned.
var ErrNotSealed = errors.New("the source refuses to seal")

// ErrBehind: the target lags, and hosts go on at the source meanwhile. The hold is tried again.
var ErrBehind = errors.New("the target is not in step with the source")

// Ops is what the target's loop has done by its node. Every method may be called again after a crash, or after it has
// failed, with the same effect as once. None may block longer than its context allows.
type Ops interface {
	// Save makes the record durable; when it has returned nil the stage may be acted on. The first with stage opened may leave
	// a second copy of it behind, if the next Save brings it.
	Save(r *Record) error
	// Near is nil once the hold may begin: at once, or, where the target is filled before, when it has come close to the source.
	// Until then hosts are not held.
	Near(ctx context.Context) error
	// Meet is nil once a target that is filled before has all that the source has numbered; hosts are held. ErrBehind: they are
	// not held any more, for the source has to go on first.
	Meet(ctx context.Context) error
	// Pend holds new requests of all volumes of the move and waits until those relayed are answered.
	Pend(ctx context.Context) error
	// Seal has the source seal and hand over. ErrBehind, of a target that is filled before: it has fallen out of step, nothing is
	// sealed, and hosts are not held any more.
	Seal(ctx context.Context) (*control.Handover, error)
	// Adopt makes the log and the maps here continue the source's at its cut; nothing is served yet.
	Adopt(h *control.Handover) error
	// Decide asks the store for its one compare-and-swap and returns its word.
	Decide(ctx context.Context, cut uint64) (string, error)
	// Serve opens e+1 in the log here and begins to feed the secondary.
	Serve(ctx context.Context) error
	// Release lets held requests run here: data migrating mode.
	Release() error
	// Relay lets held requests run at the source again: through mode.
	Relay() error
	// Reopen has the source go on as primary.
	Reopen(ctx context.Context) error
	// Drained asks the source whether the secondary has all ≤ N durable, and what it has sent there, in bytes.
	Drained(ctx context.Context) (bool, int64, error)
	// Single has the secondary copy from here alone.
	Single(ctx context.Context) error
	// Filled waits a little for the copier and says whether every region is here, durably, and the pair past the cut.
	Filled(ctx context.Context) (bool, error)
	// Normal ends data migrating mode.
	Normal() error
	// Fetched is what this process has fetched from the source, in bytes.
	Fetched() (background, onDemand int64)
}

// Target carries out a move at its target. Create it with NewTarget; Run it once.
type Target struct {
	ops   Ops
	log   *slog.Logger
	point func(step, edge string)
	now   func() time.Time

	mu      sync.Mutex
	rec     *Record
	facts   Facts
	blocked string

	heldSince time.Time
	wake      chan struct{}
	acting    Action // under way
	interrupt context.CancelFunc
}

// NewTarget takes over the record as it stands on disk.
func NewTarget(rec *Record, ops Ops, log *slog.Logger, point func(step, edge string)) *Target {
	if point == nil {
		point = func(string, string) {}
	}
	return &Target{ops: ops, log: log, point: point, now: time.Now, rec: rec, wake: make(chan struct{}, 1)}
}

// Order has the target take over (S705); it returns when the order is on disk.
func (t *Target) Order() error {
	t.mu.Lock()
	stage := t.rec.Stage
	t.mu.Unlock()
	if stage != Registered && stage != Through {
		return nil // ordered before
	}
	if stage == Registered {
		return fmt.Errorf("move %s: not in through mode yet: call %s first", t.rec.Spec.ID, control.CallMigrateThrough)
	}
	if err := t.update(func(r *Record) { r.Stage = Ordered }); err != nil {
		return err
	}
	select {
	case t.wake <- struct{}{}:
	default:
	}
	return nil
}

// Abort has the target promise durably never to take over, once it may have been ordered to; it returns when that is on disk.
// The source then goes on at once, whatever is under way here. Beyond the promise to serve it is an error.
func (t *Target) Abort() error {
	if r, _ := t.View(); r.Stage == Ordered || r.Stage == Adopted {
		t.point(control.PointRefuse, "before")
		err := t.update(func(r *Record) {
			if r.Stage == Ordered || r.Stage == Adopted {
				r.Stage, r.Error, r.Aborted = Refused, "aborted by command", true
			}
		})
		if err != nil {
			return err
		}
		t.point(control.PointRefuse, "after")
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	switch t.rec.Stage {
	case Registered, Through, Refused, Returned, Deregistered:
	default:
		return fmt.Errorf("move %s: the target is past the point of return (%s)", t.rec.Spec.ID, t.rec.Stage)
	}
	if t.interrupt != nil && t.acting != Return {
		t.interrupt()
	}
	return nil
}

// View copies the record and says what the loop waits for.
func (t *Target) View() (Record, string) {
	t.mu.Lock()
	defer t.mu.Unlock()
	r := *t.rec
	r.Steps = append([]control.Step(nil), t.rec.Steps...)
	return r, t.blocked
}

// Update changes the record and makes it durable before it counts: on an error the record stays as it was.
func (t *Target) Update(change func(*Record)) error { return t.update(change) }

func (t *Target) update(change func(*Record)) error { return t.change(change, t.ops.Save) }

func (t *Target) change(change func(*Record), save func(*Record) error) error {
	t.mu.Lock()
	defer t.mu.Unlock()
	next := *t.rec
	next.Steps = append([]control.Step(nil), t.rec.Steps...)
	change(&next)
	if !Legal(t.rec.Stage, next.Stage) {
		return fmt.Errorf("move %s: stage %s cannot follow %s", next.Spec.ID, next.Stage, t.rec.Stage)
	}
	if err := save(&next); err != nil {
		return fmt.Errorf("move %s: record stage %s: %w", next.Spec.ID, next.Stage, err)
	}
	t.rec = &next
	return nil
}

// note records a step in memory only: it is made durable with the next stage. Nothing depends on it.
func (t *Target) note(step string) {
	_ = t.remember(func(r *Record) { r.Note(step, t.now()) }) // staying at a stage is legal
}

// remember is update in memory only. A restart finds the record as it was, and must be as good with that.
func (t *Target) remember(change func(*Record)) error {
	return t.change(change, func(*Record) error { return nil })
}

const (
	retryHeld = 20 * time.Millisecond // while hosts wait
	retryCalm = 200 * time.Millisecond
)

// Run drives the move to its end, or until ctx is done.
func (t *Target) Run(ctx context.Context) error {
	for {
		t.mu.Lock()
		if !t.heldSince.IsZero() {
			t.facts.Held = t.now().Sub(t.heldSince)
		}
		act := Next(t.rec, t.facts)
		holding := t.facts.Pending
		t.mu.Unlock()
		if act == Stop {
			return nil
		}
		if act == Wait {
			select {
			case <-ctx.Done():
				return context.Cause(ctx)
			case <-t.wake:
			}
			continue
		}
		err := t.do(ctx, act)
		t.block(act, err)
		if err == nil {
			continue
		}
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		pause := retryCalm
		if holding {
			pause = retryHeld
		}
		select {
		case <-ctx.Done():
			return context.Cause(ctx)
		case <-time.After(pause):
		}
	}
}

func (t *Target) block(act Action, err error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	was := t.blocked
	t.blocked = ""
	if err != nil && !errors.Is(err, errNotYet) {
		t.blocked = fmt.Sprintf("%s: %v", act, err)
	}
	if t.blocked != "" && t.blocked != was {
		t.log.Warn("move waits", "id", t.rec.Spec.ID, "action", string(act), "cause", err)
	}
}

// errNotYet: asked and answered, only not so far yet.
var errNotYet = errors.New("not yet")

func (t *Target) do(ctx context.Context, act Action) error {
	// While hosts wait no action may outlast what is left of the hold.
	limit := 10 * time.Second
	if (t.facts.Pending || act == Pend) && act != Return {
		limit = max(HoldLimit-t.facts.Held, 50*time.Millisecond)
	}
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	t.mu.Lock()
	t.acting, t.interrupt = act, cancel
	t.mu.Unlock()
	switch act {
	case Pend:
		return t.pend(ctx)
	case Seal:
		return t.seal(ctx)
	case Decide:
		return t.decide(ctx)
	case Open:
		return t.open()
	case Run:
		return t.run(ctx)
	case AskDrained:
		return t.askDrained(ctx)
	case AskSingle:
		return t.askSingle(ctx)
	case AskFilled:
		return t.askFilled(ctx)
	case Refuse:
		return t.refuse()
	case Return:
		return t.giveBack(ctx)
	}
	return fmt.Errorf("unknown action %s", act)
}

func (t *Target) pend(ctx context.Context) error {
	t.mu.Lock()
	ordered, held := t.rec.Stage == Ordered, !t.heldSince.IsZero()
	t.mu.Unlock()
	if ordered && !held {
		if err := t.ops.Near(ctx); err != nil {
			return err
		}
	}
	t.point(control.StepPend, "before")
	t.mu.Lock()
	if t.heldSince.IsZero() {
		t.heldSince = t.now()
	}
	t.mu.Unlock()
	if err := t.ops.Pend(ctx); err != nil {
		return err
	}
	if ordered {
		if err := t.meet(ctx); err != nil {
			return err
		}
	}
	t.mu.Lock()
	t.facts.Pending = true
	t.mu.Unlock()
	t.note(control.StepPend)
	t.point(control.StepPend, "after")
	return nil
}

// meet ends the hold if the target does not come in step: what hosts were held until now is no part of the next try.
func (t *Target) meet(ctx context.Context) error {
	err := t.ops.Meet(ctx)
	if errors.Is(err, ErrBehind) {
		t.letGo()
	}
	return err
}

// letGo: hosts go on at the source, and are held anew for the next try.
func (t *Target) letGo() {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.heldSince, t.facts.Held, t.facts.Pending = time.Time{}, 0, false
}

// seal: dead after the source has sealed, at any point until "opened" is on disk, we ask again and get the same. What has to be
// durable before the store is asked is the hand-over itself, and that is in the log when Adopt returns: the stage is only
// remembered, and saves hosts a write of the record. A target that is found as ordered adopts the same once more, whether the
// store has named it or not; if the source is gone by then, it refuses: nothing has been written here, so nothing is lost by that.
// One that is filled before lacks nothing, and is to go on without the source: there the stage is on disk.
func (t *Target) seal(ctx context.Context) error {
	t.point(control.StepSeal, "before")
	h, err := t.ops.Seal(ctx)
	if err != nil {
		if errors.Is(err, ErrNotSealed) {
			t.fail(err)
		}
		if errors.Is(err, ErrBehind) {
			t.letGo()
		}
		return err
	}
	if err := t.ops.Adopt(h); err != nil {
		return err
	}
	// The log has taken over table and done requests; the record keeps the figures only, and stays small to save.
	kept := *h
	kept.Table, kept.Done = nil, nil
	keep := t.remember
	if now, _ := t.View(); now.Spec.CopyFirst() {
		keep = t.update
	}
	err = keep(func(r *Record) {
		r.Handover = &kept
		r.Stage = Adopted
		r.Note(control.StepSeal, t.now())
	})
	if err == nil { // else it was aborted meanwhile
		t.point(control.StepSeal, "after")
	}
	return err
}

// fail lets the hold run out at once: the move cannot succeed any more.
func (t *Target) fail(err error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.rec.Stage != Ordered { // aborted meanwhile, for another reason
		return
	}
	next := *t.rec
	next.Error = err.Error()
	t.rec = &next
	t.heldSince = t.now().Add(-HoldLimit - time.Second)
}

func (t *Target) decide(ctx context.Context) error {
	t.point(control.StepDecide, "before")
	word, err := t.ops.Decide(ctx, t.rec.Cut())
	if err != nil {
		return err
	}
	t.mu.Lock()
	t.facts.Decided = word
	t.mu.Unlock()
	if word == control.DecidedTarget {
		t.note(control.StepDecide)
	}
	t.point(control.StepDecide, "after")
	return nil
}

// open is the promise: from its Save on this node serves e+1 and nothing goes back. Hosts wait, so Save may leave one of the
// record's two copies behind; run saves again as soon as they do not.
func (t *Target) open() error {
	t.point(control.StepSource, "before")
	err := t.update(func(r *Record) {
		r.Stage = Opened
		r.Note(control.StepSource, t.now())
	})
	if err == nil {
		t.point(control.StepSource, "after")
	}
	return err
}

func (t *Target) run(ctx context.Context) error {
	t.point(control.StepRun, "before")
	err := t.ops.Serve(ctx)
	if err == nil {
		err = t.ops.Release()
	}
	if err != nil {
		return errors.Join(err, t.update(func(*Record) {})) // both copies, while it is tried again
	}
	t.mu.Lock()
	t.facts.Running, t.facts.Pending = true, false
	var pause *float64
	if !t.heldSince.IsZero() {
		held := t.now().Sub(t.heldSince)
		for _, s := range t.rec.Steps {
			if s.Step == control.StepPend { // hosts were held before a restart too
				held = max(held, t.now().Sub(s.At))
			}
		}
		ms := float64(held.Microseconds()) / 1000
		pause = &ms
		t.heldSince = time.Time{}
	}
	t.mu.Unlock()
	err = t.update(func(r *Record) {
		r.Note(control.StepRun, t.now())
		if r.PauseMS == nil {
			r.PauseMS = pause
		}
	})
	t.point(control.StepRun, "after")
	return err
}

func (t *Target) askDrained(ctx context.Context) error {
	done, bytes, err := t.ops.Drained(ctx)
	if err != nil {
		return err
	}
	if !done {
		return errNotYet
	}
	t.point(control.StepDrained, "before")
	err = t.update(func(r *Record) {
		r.Stage = Drained
		r.WANBytes = bytes
		r.Note(control.StepDrained, t.now())
	})
	if err == nil {
		t.point(control.StepDrained, "after")
	}
	return err
}

func (t *Target) askSingle(ctx context.Context) error {
	t.point(control.StepSingle, "before")
	if err := t.ops.Single(ctx); err != nil {
		return err
	}
	err := t.update(func(r *Record) {
		r.Stage = Single
		r.Note(control.StepSingle, t.now())
	})
	if err == nil {
		t.point(control.StepSingle, "after")
	}
	return err
}

func (t *Target) askFilled(ctx context.Context) error {
	done, err := t.ops.Filled(ctx)
	if err != nil {
		return err
	}
	if !done {
		return errNotYet
	}
	t.point(control.StepFill, "before")
	background, onDemand := t.ops.Fetched()
	if err := t.ops.Normal(); err != nil {
		return err
	}
	err = t.update(func(r *Record) {
		r.Stage = Filled
		r.Background, r.OnDemand = r.Background+background, r.OnDemand+onDemand
		r.Note(control.StepFill, t.now())
	})
	if err == nil {
		t.point(control.StepFill, "after")
	}
	return err
}

func (t *Target) refuse() error {
	t.point(control.PointRefuse, "before")
	err := t.update(func(r *Record) {
		r.Stage = Refused
		if r.Error == "" {
			r.Error = fmt.Sprintf("hosts' requests were held for more than %v: %s; the source goes on", HoldLimit, t.blocked)
		}
	})
	if err == nil {
		t.point(control.PointRefuse, "after")
	}
	return err
}

// giveBack: relaying begins only when the source serves again; until then requests stay held. A source that is dead
// leaves them held, as it would without a move.
func (t *Target) giveBack(ctx context.Context) error {
	if err := t.ops.Reopen(ctx); err != nil {
		return err
	}
	if err := t.ops.Relay(); err != nil {
		return err
	}
	t.mu.Lock()
	t.facts.Pending = false
	t.heldSince = time.Time{}
	t.mu.Unlock()
	return t.update(func(r *Record) { r.Stage, r.Returned = Returned, true })
}
