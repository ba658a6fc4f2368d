package node

import (
	"os"
	"path/filepath"
	"testing"
	"time"

	"gantline/internal/block"
	"gantline/internal/control"
	"gantline/internal/nbd"
	"gantline/internal/route"
	"gantline/internal/wire"
)

// put writes through a gateway's session.
func put(s *route.Session, off int64, b byte, d time.Duration) error {
	done := make(waiter, 1)
	req := &block.Request{Op: block.OpWrite, Offset: off, Length: 4096, Data: filledWith(b), Completer: done}
	s.Submit([]*block.Request{req})
	select {
	case <-done:
		return req.Err
	case <-time.After(d):
		return block.ErrHoldExpired
	}
}

// The manager gives a move up in e+2 (correctMove, endMove with oppose), but the source was not sealed and goes on in e;
// sourceServes then corrects the store back to e. A host must get through.
func TestRouteBackFromEpochThatWasNotOpened(t *testing.T) {
	r := newRig(t, "a", "b", "c")
	g := r.group(1, 4<<20)
	r.through(g)
	s := route.NewSession(route.Config{Route: route.Route{Node: "b", Address: r.nodes["b"].listen, Volume: "v1", Epoch: 1},
		Size: 4 << 20, Self: wire.Hello{Role: "gateway", Name: "gw"}})
	defer s.Close()
	// correctMove: the store says (a, e+2) before the source has said in which epoch it goes on.
	s.Switch(route.Route{Node: "a", Address: r.nodes["a"].listen, Volume: "v1", Epoch: 3}, route.Finish)
	go func() { _ = put(s, 0, 1, time.Second) }()
	time.Sleep(300 * time.Millisecond)
	var out control.ReopenResult
	r.call("a", control.CallMigrateReopen, control.MigrationID{ID: "g-1"}, &out)
	// sourceServes: the store says what the source said.
	s.Switch(route.Route{Node: "a", Address: r.nodes["a"].listen, Volume: "v1", Epoch: out.Epoch}, route.Finish)
	if err := put(s, 4096, 2, 5*time.Second); err != nil {
		t.Fatalf("source serves in epoch %d, the session is at %+v: %v", out.Epoch, s.Status().Route, err)
	}
}

// A group is deleted under a host: its volume goes on as a lone one.
func TestGroupDeletedUnderHost(t *testing.T) {
	r := newRig(t, "a", "c")
	r.group(1, 4<<20)
	s := route.NewSession(route.Config{Route: route.Route{Node: "a", Address: r.nodes["a"].listen, Volume: "v1", Epoch: 1},
		Size: 4 << 20, Self: wire.Hello{Role: "gateway", Name: "gw"}})
	defer s.Close()
	if err := put(s, 0, 1, 5*time.Second); err != nil {
		t.Fatal(err)
	}
	for _, n := range []string{"a", "c"} {
		r.call(n, control.CallGroupDelete, control.NameOnly{Name: "g"}, nil)
	}
	s.Switch(route.Route{Node: "a", Address: r.nodes["a"].listen, Volume: "v1"}, route.Finish)
	if err := put(s, 4096, 2, 5*time.Second); err != nil {
		t.Fatalf("session %+v: %v", s.Status().Route, err)
	}
}

// Status is asked all the time while a move is deregistered: no data race, no panic. Run with -race.
func TestStatusWhileDeregistering(t *testing.T) {
	r := newRig(t, "a", "b", "c")
	g := r.group(1, 4<<20)
	r.filled(g)
	r.waitFor("drained", func() bool { return r.moveStatus("a").Drained })
	stop := make(chan struct{})
	ended := make(chan struct{}, 6)
	for _, n := range []string{"a", "b", "c"} {
		for range 2 {
			go func() {
				defer func() { ended <- struct{}{} }()
				for {
					select {
					case <-stop:
						return
					default:
						_ = r.try(n, control.CallNodeStatus, struct{}{}, nil)
						_ = r.try(n, control.CallMigrateStatus, control.MigrationID{ID: "g-1"}, nil)
					}
				}
			}()
		}
	}
	for _, n := range []string{"c", "b", "a"} {
		r.call(n, control.CallMigrateDeregister, control.MigrationID{ID: "g-1"}, nil)
	}
	close(stop)
	for range 6 {
		<-ended
	}
}

// moveCancel looks at the stage before it has the lock under which it acts.
func TestCancelLooksAgainUnderItsLock(t *testing.T) {
	r := newRig(t, "a", "c")
	n, shut := startHandle(t, r, "b")
	defer shut()
	g := r.group(1, 4<<20)
	r.through(g)
	n.config.Lock() // another change of configuration is under way
	ended := make(chan error, 1)
	go func() {
		ended <- n.moveCancel(t.Context(), control.MigrationEnd{MigrationCancel: control.MigrationCancel{ID: "g-1"}})
	}()
	time.Sleep(200 * time.Millisecond)
	r.call("b", control.CallMigrateRun, control.MigrationID{ID: "g-1"}, nil)
	r.waitFor("filled", func() bool { return r.moveStatus("b").Phase == control.PhaseFilled })
	n.config.Unlock()
	err := <-ended
	if n.state.view().Groups["g"] == nil {
		t.Fatalf("the cancel (%v) has dropped the group of the primary that serves in e+1", err)
	}
}

// The same with a gateway's request, which carries an epoch.
func TestHeldGatewayWriteIsNotAcknowledgedByCancel(t *testing.T) {
	r := newRig(t, "a", "b", "c")
	g := r.group(1, 4<<20)
	r.goBack(g)
	r.stop("b")
	r.start("b") // pending now
	s := route.NewSession(route.Config{Route: route.Route{Node: "b", Address: r.nodes["b"].listen, Volume: "v1", Epoch: 1},
		Size: 4 << 20, Self: wire.Hello{Role: "gateway", Name: "gw"}})
	defer s.Close()
	ended := make(chan error, 1)
	go func() { ended <- put(s, 8192, 3, 5*time.Second) }()
	time.Sleep(500 * time.Millisecond)
	r.call("b", control.CallMigrateCancel, control.MigrationID{ID: "g-1"}, nil)
	got := make([]byte, 4096)
	if err := <-ended; err == nil {
		if e := do(r.nbd("a", "v1"), block.OpRead, 8192, got, 5*time.Second); e != nil || got[0] != 3 {
			t.Errorf("acknowledged write is not at the owner: byte %d, %v", got[0], e)
		}
	}
}

// One volume of a group cannot be opened at the start: the others must not go on without the log.
func TestOneMissingVolumeClosesTheGroup(t *testing.T) {
	r := newRig(t, "a", "c")
	r.group(2, 4<<20)
	r.stop("a")
	if err := os.Rename(filepath.Join(r.nodes["a"].cfg.DataDir, "volumes", "v2.raw"), filepath.Join(t.TempDir(), "away")); err != nil {
		t.Fatal(err)
	}
	r.start("a")
	c, err := nbd.Dial(t.Context(), "tcp", r.nodes["a"].nbd, "v1")
	if err != nil {
		return
	}
	defer c.Close()
	if err := do(c, block.OpWrite, 0, filledWith(9), 5*time.Second); err == nil {
		t.Errorf("a write to v1 was acknowledged that is in no log")
	}
}
