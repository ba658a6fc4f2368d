package manager

import (
	"testing"

	"gantline/internal/control"
)

// A link is there because a group copies over it; what is set for it reaches the sending node, stays after a restart of
// the manager, and after the group.
func TestLinks(t *testing.T) {
	s := newSystem(t, "a", "b", "c")
	links := func() []control.LinkView {
		var v []control.LinkView
		s.must("GET", "/v1/links", nil, &v)
		return v
	}
	if got := links(); len(got) != 0 {
		t.Fatalf("links of no group: %+v", got)
	}
	s.refused(control.KindNotFound, "does not exist", "GET", "/v1/links/a:c", nil)
	s.pair()
	got := links()
	if len(got) != 1 || got[0].From != "a" || got[0].To != "c" || got[0].Limit != 0 || got[0].Connections != 1 ||
		got[0].State == nil || *got[0].State != "up" || got[0].SentBytes == nil || len(got[0].Groups) != 1 || got[0].Address == "" {
		t.Fatalf("links %+v", got)
	}
	told := func() control.LinkSettings {
		n := s.nodes["a"]
		n.Lock()
		defer n.Unlock()
		return n.Specs["g"].Links["c"]
	}
	limit := func(n int64) control.LinkRequest { return control.LinkRequest{Limit: &n} }
	var v control.LinkView
	s.must("POST", "/v1/links/a:c", limit(1<<20), &v)
	if v.Limit != 1<<20 || told().Limit != 1<<20 {
		t.Fatalf("set to %+v, told %+v", v, told())
	}
	connections := func(n int) control.LinkRequest { return control.LinkRequest{Connections: &n} }
	s.must("POST", "/v1/links/a:c", connections(4), &v)
	if v.Connections != 4 || v.Limit != 1<<20 || told() != (control.LinkSettings{Limit: 1 << 20, Connections: 4}) {
		t.Fatalf("set to %+v, told %+v", v, told())
	}
	s.refused(control.KindUsage, "outside 1 to 16", "POST", "/v1/links/a:c", connections(17))
	s.refused(control.KindUsage, "outside 4096", "POST", "/v1/links/a:c", limit(5))
	s.refused(control.KindUsage, "nothing to change", "POST", "/v1/links/a:c", control.LinkRequest{})
	s.refused(control.KindNotFound, "does not exist", "POST", "/v1/links/a:z", limit(1<<20))
	s.refused(control.KindUsage, "FROM:TO", "POST", "/v1/links/ac", limit(1<<20))
	s.refused(control.KindUsage, "both ends", "POST", "/v1/links/a:a", limit(1<<20))
	s.must("POST", "/v1/links/b:c", limit(1<<21), nil) // before anything copies over it
	if got := links(); len(got) != 2 || got[1].Name != "b:c" || got[1].State != nil || got[1].SentBytes != nil {
		t.Fatalf("links %+v", got)
	}
	s.nodes["a"].Stop()
	s.must("GET", "/v1/links/a:c", nil, &v)
	if v.State != nil || v.RTTMS != nil || v.SentBytes != nil || v.Limit != 1<<20 {
		t.Fatalf("with its node away: %+v", v)
	}
	s.must("POST", "/v1/links/a:c", limit(0), nil)
	if err := s.nodes["a"].Start(s.client, "run2"); err != nil {
		t.Fatal(err)
	}
	s.eventually("the node that was away is told", func() bool { return told().Limit == 0 })
}
