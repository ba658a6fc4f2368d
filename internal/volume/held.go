package volume

import (
	"errors"
	"sync"
	"sync/atomic"
	"time"
)

// heldBackFor is how long a write waits for room in a log that a subscriber holds back which must not be cut off; heldBackLook,
// how often it looks.
const (
	heldBackFor  = 10 * time.Second
	heldBackLook = 20 * time.Millisecond
)

// heldBack lets in those who wait for such room one after the other, in the order in which they came.
type heldBack struct {
	turn     sync.Mutex
	waiting  atomic.Int32
	patience time.Duration // heldBackFor
}

// crowded says whether somebody waits: who comes now is behind them.
func (g *Group) crowded() bool { return g.held.waiting.Load() > 0 }

// whenRoom runs try, which takes the commit mutex itself, and, if it fails with ErrHeldBack, again once there is room.
func (g *Group) whenRoom(try func() error) error {
	if !g.crowded() {
		if err := try(); !errors.Is(err, ErrHeldBack) {
			return err
		}
	}
	return g.awaitTurn(try)
}

// awaitTurn runs try again and again while it fails with ErrHeldBack, for patience at most. It waits with the commit mutex
// free: whoever only looks, decides, or acknowledges is not held up.
func (g *Group) awaitTurn(try func() error) error {
	g.held.waiting.Add(1)
	defer g.held.waiting.Add(-1)
	end := time.Now().Add(g.held.patience)
	g.held.turn.Lock()
	defer g.held.turn.Unlock()
	for {
		trimmed := g.log.Cursors().Trimmed
		err := try()
		if !errors.Is(err, ErrHeldBack) || time.Now().After(end) {
			return err
		}
		for g.log.Cursors().Trimmed == trimmed && g.someoneStays() && !g.superseded.Load() && g.Err() == nil {
			if _, _, refusal := g.replicated(); refusal != nil || time.Now().After(end) {
				return err
			}
			if g.unneeded(g.Tip()) > trimmed {
				if err := g.checkpoint(); err != nil {
					return g.hostError(err)
				}
			}
			time.Sleep(heldBackLook)
		}
	}
}
