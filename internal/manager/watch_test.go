package manager

import (
	"context"
	"io"
	"net/http"
	"strings"
	"testing"
	"time"

	"gantline/internal/control"
)

// What a node notices is told once, whoever restarts in between.
func TestNodesEventsAreTakenOver(t *testing.T) {
	s := newSystem(t, "a", "c")
	s.pair()
	n := s.nodes["a"]
	notice := func(number uint64, kind string) {
		n.Lock()
		defer n.Unlock()
		n.Events = append(n.Events, control.NodeEvent{Number: number, At: time.Unix(int64(number), 0).UTC(), Object: "group/g",
			Kind: kind, Cause: "peer is silent", Message: "group g: " + kind})
	}
	told := func() string {
		entries, _, err := s.store.List(context.Background(), control.KindEvent+"/")
		if err != nil {
			t.Fatal(err)
		}
		kinds := ""
		for _, e := range entries {
			if strings.Contains(string(e.Value), "peer is silent") {
				_, kind, _ := strings.Cut(string(e.Value), "group g: ")
				kinds += " " + kind[:strings.Index(kind, `"`)]
			}
		}
		return kinds
	}
	notice(1, "link-down")
	notice(2, "late")
	s.eventually("both are told", func() bool { return told() == " link-down late" })
	s.stop()
	s.start()
	notice(3, "link-up")
	s.eventually("the third is told, and no other again", func() bool { return told() == " link-down late link-up" })
	n.Stop()
	n.Events = nil
	notice(1, "stopped")
	if err := n.Start(s.client, "run2"); err != nil {
		t.Fatal(err)
	}
	s.eventually("another run counts anew", func() bool { return told() == " link-down late link-up stopped" })
	n.Lock()
	n.Groups["g"].Late, n.Groups["g"].LagSeconds = true, 9
	n.Unlock()
	var st control.StatusView
	s.must("GET", "/v1/status", nil, &st)
	if g := s.group(); g.Late == nil || !*g.Late || st.Healthy || !strings.Contains(strings.Join(st.Problems, ";"), "is late") {
		t.Errorf("a late group: %+v, %q", g.Late, st.Problems)
	}
}

func TestMetricsOfGroups(t *testing.T) {
	s := newSystem(t, "a", "c")
	s.pair()
	scrape := func() string {
		r, err := http.Get("http://" + s.addr + "/metrics")
		if err != nil {
			t.Fatal(err)
		}
		defer r.Body.Close()
		body, err := io.ReadAll(r.Body)
		if err != nil || r.StatusCode != http.StatusOK {
			t.Fatal(r.Status, err)
		}
		return string(body)
	}
	body := scrape()
	for _, want := range []string{`gantline_group_state{group="g",state="paired"} 1`, `gantline_group_link_up{group="g"} 1`,
		`gantline_group_lag_writes{group="g"} 0`, `gantline_group_late{group="g"} 0`, `gantline_group_sequence{cursor="applied",group="g"} 100`} {
		if !strings.Contains(body, want) {
			t.Errorf("no %s", want)
		}
	}
	s.nodes["c"].Stop()
	if body := scrape(); strings.Contains(body, `gantline_group_lag_writes`) || !strings.Contains(body, `gantline_group_state{group="g"`) {
		t.Error("with the secondary away a lag in writes is shown, or the state is not")
	}
}
