package manager

import (
	"encoding/json"
	"maps"
	"slices"
	"strings"
	"testing"

	"gantline/internal/control"
)

// The fields that users may rely on. More may be added; none may go, and none is left out when its value is not known.
var shapes = map[string]string{
	"/v1/groups/g": "name mode log transfer retain state epoch primary secondary link copy_source sequence.appended " +
		"sequence.durable sequence.sent sequence.acked secondary_sequence.stored secondary_sequence.durable " +
		"secondary_sequence.applied lag.writes lag.bytes lag.seconds changed_bytes consistent wan_bytes_sent blocked_on " +
		"journal.used_bytes journal.capacity_bytes copy pairs.0.primary pairs.0.secondary pairs.0.size",
	"/v1/migrations/g-1": "id group source target strategy backlog mirror phase modes cut epoch pause_ms regions.total " +
		"regions.present bytes.background bytes.on_demand wan_bytes_sent at_risk blocked_on error steps.0.step steps.0.at",
	"/v1/vvols/disk": "name volume size epoch hosts.0.name hosts.0.read_only uris gateways.0.name gateways.0.sessions gateways.0.epoch",
	"/v1/volumes/c/v1": "name node id size role mode group device journal state applied changed_bytes present_bytes " +
		"copy_sources.0.node copy_sources.0.address copy_sources.0.volume copy_sources.0.valid copy_targets " +
		"migration_source migration_target",
	"/v1/nodes/a":      "name site address state volumes journals clusters",
	"/v1/journals/a/g": "name size used_bytes group devices stored transferred applied discarded",
	"/v1/links/a:c":    "from to address state rtt_ms connections limit sent_bytes",
	"/v1/status":       "healthy groups.0.name nodes.0.name gateways.0.name migrations.0.id",
}

func has(v any, path string) bool {
	for part := range strings.SplitSeq(path, ".") {
		switch o := v.(type) {
		case map[string]any:
			next, ok := o[part]
			if !ok {
				return false
			}
			v = next
		case []any:
			if part != "0" || len(o) == 0 {
				return false
			}
			v = o[0]
		default:
			return false
		}
	}
	return true
}

func TestShapes(t *testing.T) {
	s := newSystem(t, "a", "b", "c")
	s.pair()
	s.must("POST", "/v1/vvols/disk/allow", control.HostRequest{Host: "127.0.0.1"}, nil)
	gw := &fakeGateway{name: "gw", client: s.client}
	gw.start(t)
	s.eventually("the gateway is there", func() bool { return len(gw.routes()) == 1 })
	s.must("POST", "/v1/migrations", control.MoveRequest{Group: "g", To: "b"}, nil)
	s.waitPhase("g-1", control.PhaseFilled)
	check := func(when string) {
		for _, path := range slices.Sorted(maps.Keys(shapes)) {
			var v any
			s.must("GET", path, nil, &v)
			for field := range strings.FieldsSeq(shapes[path]) {
				if !has(v, field) {
					body, _ := json.Marshal(v)
					t.Errorf("%s: %s has no %s: %s", when, path, field, body)
				}
			}
		}
	}
	check("all up")
	var v control.VolumeView
	s.must("GET", "/v1/volumes/c/v1", nil, &v)
	if len(v.CopySources) != 2 {
		t.Errorf("the secondary has %d copy sources between move and commit, not 2 (S604)", len(v.CopySources))
	}
	s.must("GET", "/v1/volumes/a/v1", nil, &v)
	if v.MigrationTarget == nil || v.MigrationTarget.Volume != "b/v1" {
		t.Errorf("the source's migration target is %+v", v.MigrationTarget)
	}

	// What a dead node would know is null.
	s.nodes["c"].Stop()
	s.nodes["b"].Stop()
	check("secondary and primary away")
	g := s.group()
	if g.State != nil || g.Lag.Writes != nil || g.Sequence.Appended != nil || g.WANBytesSent != nil || g.Consistent != nil {
		body, _ := json.Marshal(g)
		t.Errorf("shown though not known: %s", body)
	}
	if mv := s.move("g-1"); mv.BlockedOn == nil || !strings.Contains(*mv.BlockedOn, "node b") || mv.Modes["b/v1"] != nil || mv.PauseMS == nil {
		t.Errorf("move without its target: %+v", mv)
	}
}

func TestLagIsTrueOrNull(t *testing.T) {
	p := &control.GroupStatus{Appended: 10, Heard: true, LagBytes: 4096, LagSeconds: 1.5}
	for name, c := range map[string]struct {
		p, s  *control.GroupStatus
		lag   any
		bytes any
	}{
		"behind":                  {p, &control.GroupStatus{Applied: 7}, uint64(3), int64(4096)},
		"equal":                   {p, &control.GroupStatus{Applied: 10}, uint64(0), int64(0)},
		"blocks still to copy":    {&control.GroupStatus{Appended: 10, Heard: true, ChangedBytes: 65536}, &control.GroupStatus{Applied: 10}, nil, nil},
		"secondary away":          {p, nil, nil, int64(4096)},
		"primary away":            {nil, &control.GroupStatus{Applied: 7}, nil, nil},
		"never heard in this run": {&control.GroupStatus{Appended: 10}, nil, nil, nil},
	} {
		v := lagOf(c.p, c.s)
		if got := deref(v.Writes); got != c.lag {
			t.Errorf("%s: writes %v, want %v", name, got, c.lag)
		}
		if got := deref(v.Bytes); got != c.bytes {
			t.Errorf("%s: bytes %v, want %v", name, got, c.bytes)
		}
	}
}

// A store from an old backup names a primary that is none any more: that is told as it is, not as a node that is away.
func TestAStoreOlderThanTheNodesIsTold(t *testing.T) {
	g := &control.Group{Name: "g", Primary: "b", Secondary: "c", Epoch: 4, Pairs: []control.Pair{{Number: 1}}}
	l := look{then: map[string]*control.NodeStatus{"b": {}, "a": {Groups: []control.GroupStatus{{Name: "g", Role: control.RolePrimary, Epoch: 5}}}},
		first: map[string]*control.NodeStatus{"c": {Groups: []control.GroupStatus{{Name: "g", Role: control.RoleSecondary, Epoch: 5}}}}}
	v := groupView(g, nil, l)
	if v.State != nil || v.Error == nil || !strings.Contains(*v.Error, "node a serves it in epoch 5") {
		t.Fatalf("state %v, error %v", deref(v.State), deref(v.Error))
	}
	delete(l.then, "b")
	if v = groupView(g, nil, l); v.Error != nil && strings.Contains(*v.Error, "does not have") {
		t.Fatalf("a node that is away: %s", *v.Error)
	}
}

func deref[T any](p *T) any {
	if p == nil {
		return nil
	}
	return *p
}
