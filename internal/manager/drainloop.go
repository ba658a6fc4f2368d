package manager

import (
	"context"
	"sync"
	"time"

	"gantline/internal/control"
)

type drainAction string

const (
	drainStart  drainAction = "start"  // the item's move
	drainCommit drainAction = "commit" // ask for the removal of the item's source
	drainDone   drainAction = "done"   // the item
	drainFail   drainAction = "fail"   // the item
	drainWait   drainAction = "wait"
	drainEnd    drainAction = "end" // the drain
)

// drainNext is the whole policy of a drain: as many moves at a time as asked for, none more once one was refused or went back;
// what is under way then is waited for. moves has those of the items that have begun.
func drainNext(d *control.Drain, moves map[string]*control.Migration) (drainAction, int) {
	running, stopped := 0, false
	for i, it := range d.Items {
		stopped = stopped || it.Phase == control.DrainFailed
		if it.Phase != control.DrainMoving {
			continue
		}
		switch mg := moves[it.Migration]; {
		case mg == nil, mg.Phase == control.PhaseFailed, mg.Phase == control.PhaseAborted:
			return drainFail, i
		case mg.Phase == control.PhaseFilled && d.Commit && mg.Check.Failed():
			return drainFail, i
		case mg.Phase == control.PhaseCommitted, mg.Phase == control.PhaseFilled && !d.Commit:
			return drainDone, i
		case mg.Phase == control.PhaseFilled && !mg.Commit:
			return drainCommit, i
		}
		running++
	}
	for i, it := range d.Items {
		if it.Phase == control.DrainWaiting && !stopped && running < d.Parallel {
			return drainStart, i
		}
	}
	if running > 0 {
		return drainWait, 0
	}
	return drainEnd, 0
}

// drains runs one loop for each drain under way.
type drains struct {
	m     *Manager
	start chan string

	mu      sync.Mutex
	running map[string]bool
}

func newDrains(m *Manager) *drains {
	return &drains{m: m, start: make(chan string, maxRunning), running: map[string]bool{}}
}

// run carries on what the store says, then what is started.
func (ds *drains) run(ctx context.Context) error {
	var wg sync.WaitGroup
	defer wg.Wait()
	stored, err := loadAll[control.Drain](ctx, ds.m, control.KindOperation)
	if err != nil {
		return err
	}
	begin := func(id string) {
		ds.mu.Lock()
		defer ds.mu.Unlock()
		if ds.running[id] {
			return
		}
		ds.running[id] = true
		wg.Go(func() { ds.carry(ctx, id) })
	}
	for _, d := range stored {
		if d.V.Phase == control.DrainMoving {
			begin(d.V.ID)
		}
	}
	for {
		select {
		case id := <-ds.start:
			begin(id)
		case <-ctx.Done():
			return nil
		}
	}
}

// kick has a drain looked at that was just stored; its loop may have found it there already, as one of an earlier process.
func (ds *drains) kick(ctx context.Context, id string) {
	toldTo(ctx, ds.start, id)
}

// carry is the loop of one drain until its end, and of the next one of the node if that was stored meanwhile.
func (ds *drains) carry(ctx context.Context, id string) {
	var failing time.Time // since when a move's begin finds nobody
	for ctx.Err() == nil {
		ds.mu.Lock()
		d, err := load[control.Drain](ctx, ds.m, control.KindOperation, id)
		if err == nil && d.V.Phase != control.DrainMoving {
			delete(ds.running, id)
			ds.mu.Unlock()
			return
		}
		ds.mu.Unlock()
		if err == nil {
			err = ds.step(ctx, &d.V, &failing)
		}
		if err != nil && ctx.Err() == nil {
			ds.m.log.Error("drain is waiting for the store", "operation", id, "error", err)
			sleep(ctx, retryUndo)
		}
	}
}

// step returns an error only if the store failed.
func (ds *drains) step(ctx context.Context, d *control.Drain, failing *time.Time) error {
	moves := map[string]*control.Migration{}
	for _, it := range d.Items {
		if it.Phase != control.DrainMoving {
			continue
		}
		mg, exists, err := find[control.Migration](ctx, ds.m, control.KindMigration, it.Migration)
		if err != nil {
			return err
		}
		if exists {
			moves[it.Migration] = &mg.V
		}
	}
	action, i := drainNext(d, moves)
	switch action {
	case drainStart:
		return ds.begin(ctx, d, i, failing)
	case drainCommit:
		mg := d.Items[i].Migration
		_, err := ds.m.editMove(ctx, mg, func(_ *change, v *control.Migration) bool {
			return askCommit(v, false)
		})
		if err == nil {
			ds.m.moves.kick(ctx, mg)
		}
		return err
	case drainDone:
		return ds.note(ctx, d.ID, i, func(it *control.DrainItem) { it.Phase = control.DrainDone })
	case drainFail:
		why := "its record is gone"
		if mg := moves[d.Items[i].Migration]; mg != nil && mg.Check.Failed() {
			return ds.fail(ctx, d, i, control.Errorf(control.KindDifferent, "%s", differs(mg.ID, mg.Source, mg.Target, mg.Check)))
		} else if mg != nil {
			why = mg.Phase + ": " + mg.Error
		}
		return ds.fail(ctx, d, i, control.Errorf(control.KindFailed, "migration %s has %s", d.Items[i].Migration, why))
	case drainWait:
		sleep(ctx, watchSlow)
		return nil
	}
	return ds.end(ctx, d.ID)
}

// begin starts an item's move, or joins it.
func (ds *drains) begin(ctx context.Context, d *control.Drain, i int, failing *time.Time) error {
	id, err := ds.m.moveStart(ctx, drainRequest(d, d.Items[i]))
	switch {
	case err == nil:
		*failing = time.Time{}
		return ds.note(ctx, d.ID, i, func(it *control.DrainItem) { it.Migration, it.Phase = id, control.DrainMoving })
	case unreachable(err):
		if failing.IsZero() {
			*failing = time.Now()
		}
		if time.Since(*failing) < givesUp {
			sleep(ctx, retryCall)
			return nil
		}
		return ds.fail(ctx, d, i, err)
	case isNodeError(err):
		return ds.fail(ctx, d, i, err)
	}
	return err
}

// drainRequest is the move that an item of a drain asks for.
func drainRequest(d *control.Drain, it control.DrainItem) control.MoveRequest {
	return control.MoveRequest{Group: it.Object, To: d.To, Commit: d.Commit}
}

// setParallel changes how many moves of a drain under way are made at a time; 0 leaves it. Those that have begun go on.
func (ds *drains) setParallel(ctx context.Context, d *control.Drain, n int) error {
	if n == 0 || n == d.Parallel {
		return nil
	}
	return ds.edit(ctx, d.ID, func(c *change, d *control.Drain) {
		c.event("node/"+d.Node, "drain", "command", "the drain of node %s makes %d moves at a time (was %d)", d.Node, n, d.Parallel)
		d.Parallel = n
	})
}

// note changes one item. Only this loop writes items while the drain is under way.
func (ds *drains) note(ctx context.Context, id string, i int, edit func(*control.DrainItem)) error {
	return ds.edit(ctx, id, func(_ *change, d *control.Drain) { edit(&d.Items[i]) })
}

func (ds *drains) fail(ctx context.Context, d *control.Drain, i int, why error) error {
	return ds.edit(ctx, d.ID, func(_ *change, d *control.Drain) {
		d.Items[i].Phase, d.Items[i].Error = control.DrainFailed, why.Error()
		if d.Error == "" {
			d.Error, d.Kind = "the drain of node "+d.Node+" has stopped at "+d.Items[i].Object+": "+why.Error(), control.KindOf(why)
		}
	})
}

func (ds *drains) end(ctx context.Context, id string) error {
	return ds.edit(ctx, id, func(c *change, d *control.Drain) {
		d.Phase = control.DrainDone
		if d.Error != "" {
			d.Phase = control.DrainFailed
			c.event("node/"+d.Node, "drain-failed", "drain", "%s", d.Error)
			return
		}
		c.event("node/"+d.Node, "drained", "drain", "node %s is drained to %s: %d objects", d.Node, d.To, len(d.Items))
	})
}

func (ds *drains) edit(ctx context.Context, id string, edit func(*change, *control.Drain)) error {
	_, err := attempt(ctx, func() (uint64, error) {
		d, err := load[control.Drain](ctx, ds.m, control.KindOperation, id)
		if err != nil {
			return 0, err
		}
		c := ds.m.change()
		edit(c, &d.V)
		return ds.m.commit(ctx, c.put(d.Key, d.Rev, d.V))
	})
	return err
}
