package node

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"gantline/internal/block"
	"gantline/internal/control"
)

// A history of one group, and what is told of it.
func TestWatch(t *testing.T) {
	var w watch
	st := control.GroupStatus{Name: "g", Role: control.RolePrimary, State: "paired", Peer: "c", LinkUp: true, Heard: true}
	want := expect{rpo: 5 * time.Second}
	for _, step := range []struct {
		at     time.Duration
		change func()
		want   string // kinds
		cause  string
	}{
		{0, func() {}, "", ""},
		{1, func() { st.Appended, st.LagSeconds = 10, 1 }, "", ""},
		{2, func() { st.LinkUp, st.BlockedOn, st.LagSeconds = false, "peer is silent for 5s", 2 }, "link-down", "peer is silent"},
		{6, func() { st.LagSeconds = 5.1 }, "late", "peer is silent"},
		{7, func() { st.LagSeconds = 6.1 }, "", ""},
		{9, func() { st.LagSeconds = 8.1 }, "", ""},
		{11, func() { st.LagSeconds = 10.1 }, "stopped", "peer is silent"},
		{12, func() { st.LinkUp, st.BlockedOn = true, "" }, "link-up", "open again"},
		{13, func() { st.Sent, st.Acked, st.Applied, st.LagSeconds = 10, 10, 10, 0 }, "in-time going-on", "small enough"},
		{20, func() { st.Appended, want.pause = 11, 30*time.Second }, "", ""},
		{50, func() {}, "", ""}, // it was asked to wait
		{53, func() { st.Sent, st.Acked, st.Applied = 11, 11, 11 }, "", ""},
		{60, func() { want.pause = 0 }, "", ""}, // at rest nothing is late or stopped
		{61, func() { st.State, st.BlockedOn = "suspended", "by command" }, "state", "by command"},
		{62, func() { st.State, st.BlockedOn = "resyncing", "" }, "state", "resumed"},
		{63, func() { st.State = "paired" }, "state", "applied the resync"},
		{64, func() { st.Appended, st.LagSeconds, st.Heard = 20, 9, false }, "", ""}, // how far it is behind is not known
		{65, func() { st.State, st.Error = "failed", "no space" }, "state", "no space"},
	} {
		step.change()
		got, causes := "", ""
		for _, e := range w.look(&st, want, step.at*time.Second) {
			got, causes = got+" "+e.Kind, causes+" "+e.Cause
		}
		if strings.TrimSpace(got) != step.want || !strings.Contains(causes, step.cause) {
			t.Errorf("at %d s: told %q because %q, want %q because %q", step.at, got, causes, step.want, step.cause)
		}
	}
}

// A node keeps the newest events for a manager that is away.
func TestEventsAreBounded(t *testing.T) {
	var e events
	for i := range 3 * maxEvents {
		e.add([]control.NodeEvent{{Message: fmt.Sprint(i)}})
	}
	if got := e.after(0); len(got) != maxEvents || got[maxEvents-1].Number != 3*maxEvents {
		t.Errorf("%d kept", len(got))
	}
	if got := e.after(3*maxEvents - 2); len(got) != 2 {
		t.Errorf("%d after the last but two", len(got))
	}
}

// A link that is cut and a lag above the bound are told with their cause, and over when they are over.
func TestLateAndLinkAreTold(t *testing.T) {
	r, w := wanRig(t)
	g := r.group(1, 16<<20)
	g.RPOMS = 1000
	r.set(&g, nil)
	told := func() string {
		var out control.NodeEvents
		r.call("a", control.CallNodeEvents, control.EventsAfter{}, &out)
		kinds := ""
		for _, e := range out.Events {
			if e.Cause == "" || e.Object != "group/g" || e.At.IsZero() {
				t.Errorf("event %+v", e)
			}
			kinds += " " + e.Kind
		}
		return kinds
	}
	w.set(true)
	done := make(waiter, 1)
	r.disks("a", 1)[0].Target.Submit([]*block.Request{{Op: block.OpWrite, Length: 4096, Data: make([]byte, 4096), Completer: done}})
	<-done
	r.waitFor("late", func() bool { return strings.Contains(told(), "late") && r.status("a").Late })
	r.waitFor("link down", func() bool { return strings.Contains(told(), "link-down") })
	w.set(false)
	r.waitFor("over", func() bool {
		return strings.Contains(told(), "link-up") && strings.Contains(told(), "in-time") && !r.status("a").Late
	})
}
