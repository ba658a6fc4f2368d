package manager

import (
	"context"
	"encoding/json"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"gantline/internal/control"
)

// putBack makes the store's record of a group what it was, as a restored backup does, and starts the manager anew.
func (s *system) putBack(old got[control.Group], without ...string) {
	s.t.Helper()
	s.stop()
	now, err := s.store.Get(s.t.Context(), old.Key)
	if err != nil {
		s.t.Fatal(err)
	}
	value, err := json.Marshal(old.V)
	if err != nil {
		s.t.Fatal(err)
	}
	txn := control.Txn{Checks: []control.Check{{Key: old.Key, Revision: now.Revision}}, Puts: []control.Put{{Key: old.Key, Value: value}},
		Deletes: without}
	if _, err := s.store.Commit(s.t.Context(), txn); err != nil {
		s.t.Fatal(err)
	}
	s.start()
}

func (s *system) stored(name string) got[control.Group] {
	s.t.Helper()
	g, err := load[control.Group](s.t.Context(), s.m, control.KindGroup, name)
	if err != nil {
		s.t.Fatal(err)
	}
	return g
}

// held is what a node was told of the group.
func (s *system) held(node string) control.Group {
	n := s.nodes[node]
	n.Lock()
	defer n.Unlock()
	return n.Specs["g"].Group
}

// TestOldStoreIsCorrected: the store was put back to before a setting and a pair. What nodes hold is taken over, and told; no
// node is told the older state, and commands go on from the newer.
func TestOldStoreIsCorrected(t *testing.T) {
	s := newSystem(t, "a", "c")
	s.pair()
	for _, v := range []string{"a/v2", "c/v2"} {
		s.must("POST", "/v1/volumes", control.VolumeRequest{Name: v, Size: 1 << 20}, nil)
	}
	old := s.stored("g")
	limit := int64(1 << 20)
	s.must("POST", "/v1/groups/g/set", control.SettingsChange{Limit: &limit}, nil)
	s.must("POST", "/v1/groups/g/pairs", control.PairRequest{Primary: "a/v2", Secondary: "c/v2"}, nil)
	want := s.stored("g").V
	s.putBack(old)
	s.eventually("corrected", func() bool { return s.stored("g").V.Revision == want.Revision })
	if g := s.stored("g").V; g.Limit != limit || len(g.Pairs) != 2 || g.NextNumber != want.NextNumber {
		t.Fatalf("the store has %+v, the nodes had %+v", g, want)
	}
	for _, node := range []string{"a", "c"} {
		if g := s.held(node); g.Revision != want.Revision || g.Limit != limit {
			t.Fatalf("node %s holds %+v", node, g)
		}
	}
	entries, _, err := s.store.List(t.Context(), control.KindEvent+"/")
	if err != nil || !slices.ContainsFunc(entries, func(e control.Entry) bool { return strings.Contains(string(e.Value), "store-corrected") }) {
		t.Fatalf("nobody is told, %v", err)
	}
	limit = 2 << 20
	s.must("POST", "/v1/groups/g/set", control.SettingsChange{Limit: &limit}, nil)
	if g := s.held("a"); g.Revision <= want.Revision || g.Limit != limit || len(g.Pairs) != 2 {
		t.Fatalf("node a holds %+v", g)
	}
}

// TestOldStoreIsRefused: the store lacks a volume of a pair that the nodes have. The group is left alone: no command changes it,
// the nodes are told nothing, and the status says why.
func TestOldStoreIsRefused(t *testing.T) {
	s := newSystem(t, "a", "c")
	s.pair()
	old := s.stored("g")
	limit := int64(1 << 20)
	s.must("POST", "/v1/groups/g/set", control.SettingsChange{Limit: &limit}, nil)
	want := s.stored("g").V
	s.putBack(old, control.Key(control.KindVolume, "c/v1"))
	var st control.StatusView
	s.eventually("told", func() bool {
		return s.client.Do(context.Background(), "GET", "/v1/status", nil, &st) == nil &&
			slices.ContainsFunc(st.Problems, func(p string) bool { return strings.Contains(p, "older backup") })
	})
	s.refused(control.KindRefused, "older backup", "POST", "/v1/groups/g/set", control.SettingsChange{Limit: new(int64)})
	s.refused(control.KindRefused, "older backup", "POST", "/v1/groups/g/suspend", struct{}{})
	for _, node := range []string{"a", "c"} {
		if g := s.held(node); g.Revision != want.Revision || g.Limit != limit {
			t.Fatalf("node %s holds %+v", node, g)
		}
	}
}

// TestCommitGuardAsksWhoServes: a target that does not know the move is let through only as the group's primary.
func TestCommitGuardAsksWhoServes(t *testing.T) {
	s := newSystem(t, "a", "b", "c")
	s.pair()
	mg := &control.Migration{ID: "g-1", Group: "g", Source: "a", Target: "b", Phase: control.PhaseFilled, Epoch: 1}
	if err := s.m.commitGuard(t.Context(), mg); control.KindOf(err) != control.KindRefused {
		t.Fatalf("a target that knows nothing: %v", err)
	}
	n := s.nodes["b"]
	n.Lock()
	n.Groups["g"] = &control.GroupStatus{Name: "g", Role: control.RolePrimary, State: "paired", Epoch: 2}
	n.Unlock()
	if err := s.m.commitGuard(t.Context(), mg); err != nil {
		t.Fatalf("a target that was deregistered: %v", err)
	}
}

// TestVvolInAMoveStays: a move that has the group in hand switches its virtual volumes, so none is deleted under it.
func TestVvolInAMoveStays(t *testing.T) {
	s := newSystem(t, "a", "c")
	s.pair()
	g := s.stored("g")
	g.V.Migrations = 1
	mg := control.Migration{ID: "g-1", Group: "g", Source: "a", Target: "b", Phase: control.PhaseThrough, Epoch: 1}
	if _, err := s.m.commit(t.Context(), s.m.change().put(g.Key, g.Rev, g.V).put(control.Key(control.KindMigration, mg.ID), 0, mg)); err != nil {
		t.Fatal(err)
	}
	s.refused(control.KindRefused, "migration g-1 has group g in hand", "DELETE", "/v1/vvols/disk", nil)
}

// deadlines notes how long each call may take.
type deadlines struct {
	Caller
	mu  *sync.Mutex
	all map[string]time.Duration
}

func (d *deadlines) Call(ctx context.Context, method string, in, out any) error {
	if end, ok := ctx.Deadline(); ok {
		d.mu.Lock()
		d.all[method] = time.Until(end)
		d.mu.Unlock()
	}
	return d.Caller.Call(ctx, method, in, out)
}

// TestRemovalsHaveTime: a node flushes and removes a file of terabytes in more than the time of an ordinary call.
func TestRemovalsHaveTime(t *testing.T) {
	s := newSystem(t)
	d := deadlines{mu: &sync.Mutex{}, all: map[string]time.Duration{}}
	s.m.nodes.dial = func(address string) Caller { return &deadlines{DialWire(address), d.mu, d.all} }
	s.addNode("a")
	s.must("POST", "/v1/volumes", control.VolumeRequest{Name: "a/v1", Size: 1 << 30}, nil)
	s.must("DELETE", "/v1/volumes/a/v1", nil, nil)
	d.mu.Lock()
	defer d.mu.Unlock()
	if has := d.all[control.CallVolumeDelete]; has <= 10*callTimeout || has > unknownFill {
		t.Fatalf("a removal of 1 GiB may take %v", has)
	}
}

// TestOldStoreKnowsThePrimarysJournal: a secondary may still name the journal of before a move. Who is not the primary is
// believed about it only in an epoch that the store does not know.
func TestOldStoreKnowsThePrimarysJournal(t *testing.T) {
	s := newSystem(t, "a", "c")
	s.pair()
	g := s.stored("g")
	for _, c := range []struct {
		node  string
		epoch uint64
		fits  bool
	}{{"c", g.V.Epoch, true}, {"c", g.V.Epoch + 1, false}, {"a", g.V.Epoch, false}} {
		held := g.V
		held.PrimaryJournal, held.Epoch = "x/before", c.epoch
		held.Revision++
		change, unfit := s.m.correction(t.Context(), g, c.node, &held)
		if fits := unfit == ""; fits != c.fits {
			t.Errorf("node %s in epoch %d: %q", c.node, c.epoch, unfit)
		}
		if change == nil {
			continue
		}
		if _, err := s.m.commit(t.Context(), change); err != nil {
			t.Fatal(err)
		}
		if now := s.stored("g").V; now.PrimaryJournal != g.V.PrimaryJournal || now.Revision != held.Revision {
			t.Errorf("the store has %+v", now)
		}
	}
}
