package manager

import (
	"context"
	"encoding/json"
	"slices"
	"sync"
	"time"

	"gantline/internal/control"
)

const (
	retryCall  = 500 * time.Millisecond // between calls that find nobody
	watchFast  = 50 * time.Millisecond  // while hosts are held, or about to be
	watchSlow  = 200 * time.Millisecond // while regions are copied
	retryUndo  = 2 * time.Second
	maxRunning = 1024 // loops at a time
)

// moves runs one loop for each move that has something left to do.
type moves struct {
	m     *Manager
	start chan string

	mu      sync.Mutex
	running map[string]bool
	waits   map[string]string // moves that go back → what they wait for
}

func newMoves(m *Manager) *moves {
	return &moves{m: m, start: make(chan string, maxRunning), running: map[string]bool{},
		waits: map[string]string{}}
}

// note keeps what a move that goes back waits for, in this process only.
func (ms *moves) note(id, waits string) {
	ms.mu.Lock()
	defer ms.mu.Unlock()
	delete(ms.waits, id)
	if waits != "" {
		ms.waits[id] = waits
	}
}

func (ms *moves) waiting(id string) string {
	ms.mu.Lock()
	defer ms.mu.Unlock()
	return ms.waits[id]
}

// run carries on what the store says, then what is started.
func (ms *moves) run(ctx context.Context, stored []control.Entry) error {
	var wg sync.WaitGroup
	defer wg.Wait()
	begin := func(id string) {
		ms.mu.Lock()
		defer ms.mu.Unlock()
		if ms.running[id] {
			return
		}
		ms.running[id] = true
		wg.Go(func() { ms.carry(ctx, id) })
	}
	for _, e := range stored {
		var mg control.Migration
		if err := json.Unmarshal(e.Value, &mg); err != nil {
			return err
		}
		if moveNext(&mg, moveFacts{}) != moveStop {
			begin(mg.ID)
		}
	}
	for {
		select {
		case id := <-ms.start:
			begin(id)
		case <-ctx.Done():
			return nil
		}
	}
}

// kick has a move looked at; more than the channel holds cannot be waiting, since one group has one move.
func (ms *moves) kick(ctx context.Context, id string) {
	toldTo(ctx, ms.start, id)
}

// toldTo sends at once if there is room, be it that whoever asked has gone away meanwhile: what is stored is to be done.
func toldTo(ctx context.Context, start chan<- string, id string) {
	select {
	case start <- id:
		return
	default:
	}
	select {
	case start <- id:
	case <-ctx.Done():
	}
}

// carry is the loop of one move until it has nothing left to do.
func (ms *moves) carry(ctx context.Context, id string) {
	r := &moveRunner{m: ms.m, id: id}
	for {
		err := r.loop(ctx)
		if ctx.Err() != nil {
			return
		}
		if err != nil {
			// The store failed, not a node: nothing can be decided without it.
			ms.m.log.Error("move is waiting for the store", "migration", id, "error", err)
			sleep(ctx, retryUndo)
			continue
		}
		ms.mu.Lock()
		mg, err := load[control.Migration](ctx, ms.m, control.KindMigration, id)
		if err == nil && moveNext(&mg.V, moveFacts{}) != moveStop { // a commit was asked for while the loop ended
			ms.mu.Unlock()
			continue
		}
		delete(ms.running, id)
		ms.mu.Unlock()
		return
	}
}

func sleep(ctx context.Context, d time.Duration) {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
	case <-ctx.Done():
	}
}

// moveRunner is the dull half: it gathers facts and does what moveNext says.
type moveRunner struct {
	m       *Manager
	id      string
	facts   moveFacts
	failing time.Time // since when the present step's calls find nobody
	silent  time.Time // since when the target does not answer
	told    time.Time // when the secondary was last tried to be told
	step    moveAction
	waits   string // why a commit waits, as last told
}

func (r *moveRunner) loop(ctx context.Context) error {
	for ctx.Err() == nil {
		mg, err := load[control.Migration](ctx, r.m, control.KindMigration, r.id)
		if control.KindOf(err) == control.KindNotFound {
			return nil
		}
		if err != nil {
			return err
		}
		r.tick()
		action := moveNext(&mg.V, r.facts)
		if action != r.step {
			r.m.log.Debug("move", "migration", r.id, "phase", mg.V.Phase, "action", string(action))
			r.step, r.failing, r.facts.Failing = action, time.Time{}, 0
		}
		if action == moveStop {
			return nil
		}
		if err := r.act(ctx, action, &mg.V); err != nil {
			return err
		}
	}
	return nil
}

func (r *moveRunner) tick() {
	if !r.failing.IsZero() {
		r.facts.Failing = time.Since(r.failing)
	}
	if !r.silent.IsZero() {
		r.facts.Silent = time.Since(r.silent)
	}
}

// act returns an error only if the store failed. What nodes answer becomes facts.
func (r *moveRunner) act(ctx context.Context, action moveAction, mg *control.Migration) error {
	switch action {
	case moveRegister:
		return r.try(ctx, func() error { return r.m.registerMove(ctx, mg) })
	case moveCopying:
		return r.try(ctx, func() error { return r.m.copyMove(ctx, mg) })
	case moveThrough:
		return r.try(ctx, func() error { return r.m.throughMove(ctx, mg) })
	case movePath:
		return r.try(ctx, func() error { return r.m.pathMove(ctx, mg) })
	case moveSwitch:
		return r.try(ctx, func() error { return r.m.switchMove(ctx, mg) })
	case moveConfirm:
		return r.m.confirmMove(ctx, mg)
	case moveRun:
		return r.run(ctx, mg)
	case moveWatch:
		return r.watch(ctx, mg)
	case moveBack:
		why := r.facts.Refusal
		if why == "" {
			why = "a node did not answer for " + givesUp.String()
		}
		return r.m.endMove(ctx, mg.ID, why, false)
	case moveOppose:
		why := "the target did not answer for " + givesUp.String() + " before the decision"
		if r.facts.Refusal != "" {
			why = r.facts.Refusal
		}
		return r.m.endMove(ctx, mg.ID, why, true)
	case moveCorrect:
		why := r.facts.Target.Error
		if why == "" {
			why = "the target has refused to take over"
		}
		return r.m.correctMove(ctx, mg.ID, why)
	case moveUndo:
		return r.undo(ctx, mg)
	case moveAborted:
		return r.m.abortedMove(ctx, mg.ID)
	case moveDeregister:
		return r.deregister(ctx, mg)
	}
	return nil
}

// try makes a step's calls. Nobody there: it is tried again for a while. A no becomes a fact. Errors that carry no kind
// are the store's.
func (r *moveRunner) try(ctx context.Context, f func() error) error {
	err := f()
	switch {
	case err == nil:
		r.failing, r.facts.Failing, r.facts.Refusal = time.Time{}, 0, ""
		return nil
	case unreachable(err):
		if r.failing.IsZero() {
			r.failing = time.Now()
		}
		r.m.log.Info("move waits for a node", "migration", r.id, "step", string(r.step), "error", err)
		sleep(ctx, retryCall)
		return nil
	case isNodeError(err):
		r.facts.Refusal = err.Error()
		return nil
	}
	return err
}

func (r *moveRunner) run(ctx context.Context, mg *control.Migration) error {
	if !mg.RunAsked {
		asked := false // not if it was aborted meanwhile
		_, err := r.m.editMove(ctx, mg.ID, func(_ *change, v *control.Migration) bool {
			asked = !v.Returning() && !control.Ended(v.Phase)
			v.RunAsked = v.RunAsked || asked
			return asked
		})
		if err != nil || !asked {
			return err
		}
	}
	return r.try(ctx, func() error {
		err := r.m.do(ctx, mg.Target, control.CallMigrateRun, mg.ID, control.MigrationID{ID: mg.ID}, nil, callTimeout)
		if err == nil {
			r.facts.RunAcked = true
		} else if unreachable(err) {
			r.facts.Target = nil // look first when it is back
			if r.silent.IsZero() {
				r.silent = time.Now()
			}
		}
		return err
	})
}

// tellLate tells a secondary that could not be reached. It is tried now and then, and not while hosts are held.
func (r *moveRunner) tellLate(ctx context.Context, mg *control.Migration) error {
	if !mg.Untold || !control.After(mg.Phase, control.PhaseMigrating) || time.Since(r.told) < retryUndo {
		return nil
	}
	r.told = time.Now()
	err := r.m.tellSecondary(ctx, mg)
	if err != nil && isNodeError(err) {
		r.m.log.Info("the secondary is not told of the move yet", "migration", r.id, "error", err)
		return nil
	}
	return err
}

// watch looks at the target and takes over what it says.
func (r *moveRunner) watch(ctx context.Context, mg *control.Migration) error {
	if err := r.tellLate(ctx, mg); err != nil {
		return err
	}
	st := &control.MigrationStatus{}
	err := r.m.nodes.call(ctx, mg.Target, control.CallMigrateStatus, control.MigrationID{ID: mg.ID}, st, liveTimeout)
	if err != nil {
		if r.silent.IsZero() {
			r.silent = time.Now()
		}
		if control.KindOf(err) == control.KindNotFound {
			// It answers, but not with this move: it has lost it, and has not opened e+1 unless that was decided.
			r.facts.Refusal = err.Error()
		}
		r.facts.Target, r.facts.RunAcked = nil, false // a new run of it must be asked again
		sleep(ctx, retryCall)
		return nil
	}
	r.silent, r.facts.Silent, r.facts.Target = time.Time{}, 0, st
	if mg.Limit != mg.LimitTold {
		if err := r.m.tellLimit(ctx, mg.ID); err != nil && !isNodeError(err) {
			return err
		}
	}
	if mg.SourceLost && !st.SourceLost && st.Phase == control.PhaseMigrating {
		if err := r.m.nodes.call(ctx, mg.Target, control.CallMigrateAbandon, control.MigrationAbandon{ID: mg.ID, SourceLost: true}, nil,
			liveTimeout); err != nil {
			r.m.log.Info("the loss of the source is not told yet", "migration", mg.ID, "node", mg.Target, "error", err)
		}
	}
	if st.Phase == control.PhaseMigrating && !st.Abandoned {
		if err := r.m.abandonSecondary(ctx, mg); err != nil {
			return err
		}
	}
	probe := cloneMove(mg)
	if mergeStatus(probe, st) {
		if err := r.m.mergeMove(ctx, mg.ID, st); err != nil {
			return err
		}
	}
	switch {
	case st.Refused, control.After(probe.Phase, control.PhaseFilled):
	case control.After(probe.Phase, control.PhaseMigrating):
		sleep(ctx, watchSlow)
	default:
		sleep(ctx, watchFast)
	}
	return nil
}

func cloneMove(mg *control.Migration) *control.Migration {
	c := *mg
	c.Steps = slices.Clone(mg.Steps)
	return &c
}

// isNodeError says that an error has a kind: a node, or a check of ours, said it, not the store.
func isNodeError(err error) bool {
	var e *control.Error
	return asError(err, &e)
}
