package receiver_test

import (
	"testing"
	"time"

	"gantline/internal/receiver"
	"gantline/internal/record"
	"gantline/internal/wire"
)

// A receiver that gathers before it syncs does not where a host waits: neither for a batch that says so nor for a heartbeat.
func TestUrgentSyncsAtOnce(t *testing.T) {
	s := newSite(t)
	s.delay = time.Hour
	life := s.start(&memStore{})
	if err := life.recv.Believe(receiver.Permit{Epoch: id(1, "a")}); err != nil {
		t.Fatal(err)
	}
	c := s.push()
	send := func(from, to record.Seq, urgent bool) {
		t.Helper()
		if err := c.WriteBatch(wire.Batch{Urgent: urgent, Records: writes(1, from, to, 512)}); err != nil {
			t.Fatal(err)
		}
	}
	durable := func(want record.Seq) {
		t.Helper()
		eventually(t, "durable there", func() bool { return life.recv.Status().Durable == want })
	}
	send(1, 5, false)
	eventually(t, "stored", func() bool { return life.recv.Status().Stored == 5 })
	if d := life.recv.Status().Durable; d != 0 {
		t.Fatalf("durable %d without anybody waiting", d)
	}
	send(6, 9, true)
	durable(9)
	send(10, 12, false)
	if err := c.WriteFrame(wire.TypeHeartbeat, wire.EncodeHeartbeat(wire.Heartbeat{Urgent: true})); err != nil {
		t.Fatal(err)
	}
	durable(12)
	if a := life.recv.Status().Applied; a != 0 {
		t.Fatalf("applied %d above the source's mark", a)
	}
	if err := c.WriteFrame(wire.TypeHeartbeat, wire.EncodeHeartbeat(wire.Heartbeat{Mark: 11})); err != nil {
		t.Fatal(err)
	}
	eventually(t, "applied up to the mark", func() bool { return life.recv.Status().Applied == 11 })
}
