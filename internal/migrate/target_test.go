package migrate

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"testing"
	"testing/synctest"
	"time"

	"gantline/internal/control"
)

// world is everything around a target: its disk, the source, the store, the secondary. Calls fail before or after
// they took effect, and the process dies between any two of them.
type world struct {
	t   *testing.T
	rnd *rand.Rand

	disk []byte // the target's record as saved
	log  bool   // the target's log has the hand-over
	used bool   // and has been served from

	// Source, all durable.
	sealed, reopened bool

	// Store.
	decided string

	// Target, of one process life.
	held, serving, relaying bool
	alive                   bool

	faults  int // calls out of 100 that fail, half of them after their effect
	away    map[string]bool
	regions int
	kill    func() // ends the target's process
	kills   int
}

var errLost = errors.New("connection lost")

// step is called around each effect: it may fail the call or kill the process, and checks the promise every time.
func (w *world) step(who string, effect func()) error {
	w.check()
	if w.away[who] {
		return fmt.Errorf("%s: %w", who, errLost)
	}
	dice := w.rnd.IntN(100)
	if dice < w.faults/2 {
		return errLost
	}
	if w.kills > 0 && w.rnd.IntN(12) == 0 {
		w.kills--
		w.kill()
		return context.Canceled
	}
	effect()
	w.check()
	if w.kills > 0 && w.rnd.IntN(12) == 0 {
		w.kills--
		w.kill()
		return context.Canceled
	}
	if dice < w.faults {
		return errLost
	}
	return nil
}

func (w *world) sourceServes() bool { return !w.sealed || w.reopened }

// check is I3: at no instant do two nodes serve.
func (w *world) check() {
	if w.sourceServes() && w.serving {
		w.t.Fatalf("both serve: sealed %v reopened %v decided %q record %s", w.sealed, w.reopened, w.decided, w.disk)
	}
}

func (w *world) Save(r *Record) error {
	raw, err := json.Marshal(r)
	if err != nil {
		return err
	}
	return w.step("disk", func() { w.disk = raw })
}

// Near and Meet: a target that is filled before is behind now and then. Hosts go back to the source only if that is not
// sealed.
func (w *world) Near(context.Context) error { return w.behind() }
func (w *world) Meet(context.Context) error { return w.behind() }

func (w *world) behind() error {
	if w.sealed || w.rnd.IntN(4) > 0 {
		return nil
	}
	if err := w.Relay(); err != nil {
		return err
	}
	return ErrBehind
}

func (w *world) Pend(context.Context) error {
	return w.step("here", func() { w.held, w.relaying = true, false })
}

func (w *world) Seal(context.Context) (*control.Handover, error) {
	if w.reopened {
		return nil, ErrNotSealed
	}
	if err := w.behind(); err != nil { // the source has cut the target off
		return nil, err
	}
	err := w.step("source", func() { w.sealed = true })
	return &control.Handover{ID: "g-1", Epoch: 1, Cut: 7}, err
}

func (w *world) Adopt(*control.Handover) error {
	return w.step("disk", func() {
		if w.used {
			w.t.Fatal("a log that hosts have written to is begun anew")
		}
		w.log = true
	})
}

func (w *world) Decide(context.Context, uint64) (string, error) {
	err := w.step("store", func() {
		if !w.sealed || !w.log {
			w.t.Fatal("the store was asked before the source was sealed and had handed over")
		}
		if w.decided == "" {
			w.decided = control.DecidedTarget
		}
	})
	return w.decided, err
}

func (w *world) Serve(context.Context) error {
	var r Record
	if err := json.Unmarshal(w.disk, &r); err != nil {
		return err
	}
	if r.Stage != Opened && r.Stage != Drained && r.Stage != Single {
		w.t.Fatalf("serves at stage %s", r.Stage)
	}
	return w.step("here", func() { w.serving, w.used = true, true })
}

func (w *world) Release() error { return w.step("here", func() { w.held = false }) }

func (w *world) Relay() error {
	return w.step("here", func() {
		if !w.sourceServes() {
			w.t.Fatal("relays to a source that does not serve")
		}
		w.relaying, w.held = true, false
	})
}

func (w *world) Reopen(context.Context) error {
	return w.step("source", func() {
		if w.serving {
			w.t.Fatal("source told to reopen while the target serves")
		}
		w.reopened = true
	})
}

func (w *world) Drained(context.Context) (bool, int64, error) {
	err := w.step("source", func() {})
	return w.rnd.IntN(2) == 0, 5, err
}

func (w *world) Single(context.Context) error { return w.step("secondary", func() {}) }

func (w *world) Filled(context.Context) (bool, error) {
	err := w.step("source", func() { w.regions-- })
	return w.regions <= 0, err
}

func (w *world) Normal() error { return w.step("here", func() {}) }

func (w *world) Fetched() (background, onDemand int64) { return 1, 1 }

// live runs one life of the target's process and reports the stage on disk at its end.
func (w *world) live(limit time.Duration) Stage {
	w.held, w.serving, w.relaying = true, false, false // a process that died holds whatever comes next
	ctx, cancel := context.WithTimeout(w.t.Context(), limit)
	defer cancel()
	w.kill = cancel
	rec := &Record{}
	if err := json.Unmarshal(w.disk, rec); err != nil {
		w.t.Fatal(err)
	}
	target := NewTarget(rec, w, slog.New(slog.DiscardHandler), nil)
	if rec.Stage == Through {
		if err := target.Order(); err != nil && rec.Stage == Through {
			return rec.Stage
		}
	}
	_ = target.Run(ctx)
	w.serving = false // the process is gone
	if err := json.Unmarshal(w.disk, rec); err != nil {
		w.t.Fatal(err)
	}
	return rec.Stage
}

func newWorld(t *testing.T, seed uint64) *world {
	raw, _ := json.Marshal(&Record{Role: control.RoleTarget, Stage: Through,
		Spec: control.MigrationSpec{ID: "g-1", Group: control.Group{Epoch: 1}}})
	return &world{t: t, rnd: rand.New(rand.NewPCG(seed, 1)), disk: raw, away: map[string]bool{}, regions: 3}
}

// Whatever dies and whatever answer is lost, two nodes never serve, and once the faults are over the move has ended
// on one side.
func TestNeverTwoOwners(t *testing.T) {
	base := rand.Uint64()
	ends := map[Stage]int{}
	for i := range uint64(400) {
		seed := base + i
		t.Run(fmt.Sprint(seed), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				w := newWorld(t, seed)
				w.faults, w.kills = w.rnd.IntN(40), w.rnd.IntN(6)
				for _, who := range []string{"source", "store", "secondary"} {
					w.away[who] = w.rnd.IntN(6) == 0
				}
				stage := w.live(20 * time.Second)
				for life := 0; w.kills > 0 && life < 20; life++ {
					stage = w.live(20 * time.Second)
				}
				w.faults, w.kills, w.away = 0, 0, map[string]bool{}
				for range 3 {
					stage = w.live(time.Minute)
				}
				switch stage {
				case Filled:
					if w.sourceServes() {
						t.Fatal("filled, and the source serves")
					}
				case Returned:
					if !w.sourceServes() {
						t.Fatal("returned, and nobody serves")
					}
				default:
					t.Fatalf("the move did not end: stage %s", stage)
				}
				ends[stage]++
			})
		})
	}
	t.Logf("seed %d: ends %v", base, ends)
	if ends[Filled] == 0 || ends[Returned] == 0 {
		t.Fatalf("the faults did not reach both ends: %v", ends)
	}
}

// A store that is away for longer than the hold limit sends the move back; the hosts are relayed again.
func TestStoreAwayGoesBack(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, 1)
		w.away["store"] = true
		began := time.Now()
		if stage := w.live(time.Minute); stage != Returned {
			t.Fatalf("stage %s", stage)
		}
		if held := time.Since(began); held > HoldLimit+2*time.Second {
			t.Fatalf("hosts were held for %v", held)
		}
		if !w.reopened || !w.relaying || w.held {
			t.Fatalf("reopened %v relaying %v held %v", w.reopened, w.relaying, w.held)
		}
	})
}

// The opposite swap has won: the target must not open, however often it asks.
func TestOppositeSwapWins(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, 1)
		w.decided = control.DecidedSource
		if stage := w.live(time.Minute); stage != Returned {
			t.Fatalf("stage %s", stage)
		}
	})
}

// A refusal on disk outlives a store that says otherwise.
func TestRefusalWinsOverTheStore(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, 1)
		var r Record
		if err := json.Unmarshal(w.disk, &r); err != nil {
			t.Fatal(err)
		}
		r.Stage, w.sealed, w.decided = Refused, true, control.DecidedTarget
		w.disk, _ = json.Marshal(&r)
		if stage := w.live(time.Minute); stage != Returned {
			t.Fatalf("stage %s", stage)
		}
	})
}

func TestIllegalStagesAreRefused(t *testing.T) {
	for _, c := range []struct {
		from, to Stage
		ok       bool
	}{
		{Refused, Opened, false}, {Opened, Refused, false}, {Returned, Opened, false}, {Ordered, Opened, false},
		{Filled, Refused, false}, {Adopted, Opened, true}, {Adopted, Refused, true}, {Ordered, Ordered, true},
	} {
		if Legal(c.from, c.to) != c.ok {
			t.Errorf("%s → %s: legal is %v, want %v", c.from, c.to, !c.ok, c.ok)
		}
	}
}
