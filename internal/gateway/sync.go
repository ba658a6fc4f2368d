package gateway

import (
	"context"
	"errors"
	"reflect"
	"time"
)

// ErrRefused is what Routes.Sync wraps when the manager will never serve this process: another live one has its name.
var ErrRefused = errors.New("gateway refused by the manager")

// Report registers the gateway and confirms what is in force.
type Report struct {
	Name     string       `json:"name"`
	Site     string       `json:"site"`
	Install  string       `json:"install"`  // of the data directory
	Instance string       `json:"instance"` // of the process
	Applied  uint64       `json:"applied"`  // revision of the table in force: all paths are switched
	NBD      []string     `json:"nbd"`      // host:port, unix:PATH
	Since    time.Time    `json:"since"`
	VVols    []VVolReport `json:"vvols"`
}

// VVolReport is a virtual volume as this gateway has it.
type VVolReport struct {
	Name     string `json:"name"`
	Sessions int    `json:"sessions"`
	Epoch    uint64 `json:"epoch"` // highest confirmed by a node or told by the manager
}

// Routes is where the table comes from.
type Routes interface {
	// Sync reports and waits a while for a table of another revision than the one applied. The table it returns is
	// the newest there is, perhaps the same.
	Sync(ctx context.Context, report Report) (Table, error)
}

const (
	syncPause    = 100 * time.Millisecond // at least between two calls that brought nothing
	syncPauseMax = 2 * time.Second
	reportPause  = 300 * time.Millisecond // sessions come and go: they are told together
)

// changed: something is to be reported or stored. Under the lock.
func (g *gateway) changed() {
	select {
	case g.dirty <- struct{}{}:
	default:
	}
}

// sync keeps the table in step with the manager until ctx ends.
//
// A revision tells tables apart within one history of the manager's store. A manager that was away may come back with
// another one, restored from a backup, where the same number means another table: until it has answered, nothing counts
// as applied, so that it sends its table whatever the number.
func (g *gateway) sync(ctx context.Context) error {
	pause, unsure := syncPause, true
	for ctx.Err() == nil {
		start := time.Now()
		t, err := g.poll(ctx, unsure)
		switch {
		case ctx.Err() != nil:
			return nil
		case errors.Is(err, ErrRefused):
			return err
		case errors.Is(err, errChanged):
			pause = syncPause
		case err != nil:
			unsure = true
			if !g.away.Swap(true) {
				g.cfg.Log.Warn("manager is away, serving by the table there is", "error", err)
			}
			pause = min(2*pause, syncPauseMax)
		default:
			if g.away.Swap(false) {
				g.cfg.Log.Info("manager is back")
			}
			pause = syncPause
			fresh := unsure || t.Revision != g.report().Applied || !g.synced
			used, err := g.accept(t, fresh)
			if err != nil {
				return err
			}
			unsure = unsure && !used
			if used && fresh {
				continue // confirmed at once
			}
		}
		if err := g.persist(); err != nil {
			return err
		}
		select {
		case <-ctx.Done():
		case <-time.After(max(pause-time.Since(start), 0)):
		}
	}
	return nil
}

var errChanged = errors.New("report has changed")

// poll is one Sync, cut short when there is something new to report. unsure: the table may be of another history.
func (g *gateway) poll(ctx context.Context, unsure bool) (Table, error) {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	report := g.report()
	done := make(chan struct{})
	watched := make(chan struct{})
	go func() {
		defer close(watched)
		for {
			select {
			case <-done:
				return
			case <-g.dirty:
			}
			select {
			case <-done:
				g.mu.Lock()
				g.changed() // for the next poll
				g.mu.Unlock()
				return
			case <-time.After(reportPause):
			}
			if !reflect.DeepEqual(report, g.report()) {
				cancel(errChanged)
				return
			}
		}
	}()
	told := report
	if unsure {
		told.Applied = 0
	}
	t, err := g.cfg.Routes.Sync(ctx, told)
	close(done)
	<-watched
	if err != nil && context.Cause(ctx) == errChanged {
		err = errChanged
	}
	return t, err
}

// accept takes a table into force and then to disk; only then it is confirmed. A table that makes no sense is not
// used.
func (g *gateway) accept(t Table, fresh bool) (used bool, err error) {
	if err := t.check(); err != nil {
		g.cfg.Log.Error("table from the manager is not used", "error", err)
		return false, nil
	}
	if fresh {
		g.apply(t)
	}
	g.synced = true
	if err := g.persist(); err != nil {
		return false, err
	}
	g.readyOnce.Do(func() { close(g.registered) })
	return true, nil
}

// persist writes the table if it is not on disk as it is in force. A gateway that cannot must not go on: after a
// restart it would send hosts to a node of the past.
func (g *gateway) persist() error {
	st := stored{Name: g.cfg.Name, Install: g.install, Synced: g.synced, Table: g.table()}
	if reflect.DeepEqual(st, g.onDisk) {
		return nil
	}
	if err := save(g.file, st); err != nil {
		return err
	}
	g.onDisk = st
	return nil
}
