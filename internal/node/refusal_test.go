package node

import (
	"context"
	"encoding/json"
	"net"
	"sync"
	"testing"
	"time"

	"gantline/internal/control"
	"gantline/internal/receiver"
	"gantline/internal/record"
	"gantline/internal/wire"
)

// handmade is a secondary played by hand: it has room for everything, but may refuse a step whose begin it has stored,
// and is slow to answer the next hello.
type handmade struct {
	mu      sync.Mutex
	has     wire.Ack
	refuse  bool          // the next step
	greet   chan struct{} // closed: hellos are answered
	refused chan struct{}
}

func (h *handmade) stream(ctx context.Context, in *wire.Incoming) error {
	h.mu.Lock()
	greet := h.greet
	h.mu.Unlock()
	select {
	case <-greet:
	case <-ctx.Done():
		return ctx.Err()
	}
	h.mu.Lock()
	has := h.has
	h.mu.Unlock()
	if err := in.Answer(wire.StreamAnswer{Stored: has.Stored, Durable: has.Durable, Applied: has.Applied, Capacity: 64 << 20}); err != nil {
		return err
	}
	step := false
	for {
		kind, body, err := in.ReadFrame()
		if err != nil {
			return err
		}
		if kind != wire.TypeBatch {
			continue
		}
		b, err := wire.DecodeBatch(body)
		if err != nil {
			return err
		}
		h.mu.Lock()
		for _, r := range b.Records {
			step = step && r.Op != record.OpEnd || r.Op == record.OpBegin
			h.has.Stored, h.has.Durable = r.Seq, r.Seq
			if !step {
				h.has.Applied = r.Seq
			}
		}
		has, refuse := h.has, h.refuse && step
		if refuse {
			h.refuse, h.greet = false, make(chan struct{})
		}
		h.mu.Unlock()
		if refuse {
			detail, _ := json.Marshal(wire.StreamRefusal{Reason: string(receiver.ReasonStep), Stored: has.Stored})
			in.Refuse(&wire.Error{Kind: wire.KindRefused, Message: "the step fills the journal here", Detail: detail})
			close(h.refused)
			return nil
		}
		if err := in.WriteFrame(wire.TypeAck, wire.EncodeAck(has)); err != nil {
			return err
		}
	}
}

// serve answers until the test ends.
func (h *handmade) serve(t *testing.T) (addr string) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	var wg sync.WaitGroup
	wg.Go(func() {
		_ = wire.NewServer(wire.Handlers{Self: wire.Hello{Role: "node", Name: "c"}, Stream: h.stream}, wire.Limits{}).Serve(ctx, l)
	})
	t.Cleanup(func() { cancel(); wg.Wait() })
	return l.Addr().String()
}

// TestStaleRefusal: a step was too large for the secondary and was given up. Its refusal is still what the sender has heard
// last when the next step begins, and does not end that one too.
func TestStaleRefusal(t *testing.T) {
	r := newRig(t, "a")
	h := &handmade{greet: make(chan struct{}), refused: make(chan struct{})}
	close(h.greet)
	g := control.Group{Name: "g", Settings: control.DefaultSettings(), Epoch: 1, Primary: "a", Secondary: "c",
		PrimaryJournal: "a/jg", SecondaryJournal: "c/jg", Revision: 1,
		Pairs: []control.Pair{{Number: 1, Primary: "a/v1", Secondary: "c/v1", Size: 1 << 20}}}
	r.call("a", control.CallJournalCreate, control.JournalCreate{Name: "jg", Size: 16 << 20}, nil)
	r.call("a", control.CallVolumeCreate, control.VolumeCreate{Name: "v1", Size: 1 << 20}, nil)
	r.call("a", control.CallGroupConfigure, control.GroupSpec{Group: g, Role: control.RolePrimary,
		Address: map[string]string{"a": r.nodes["a"].listen, "c": h.serve(t)}}, nil)
	r.waitFor("paired", func() bool { return r.status("a").State == "paired" && r.status("a").LinkUp })
	r.call("a", control.CallGroupSuspend, control.GroupSuspend{Name: "g"}, nil)
	writeTo(t, r.disks("a", 1)[0].Target, 0, 4096, 1)
	h.mu.Lock()
	h.refuse = true
	h.mu.Unlock()
	r.call("a", control.CallGroupResume, control.GroupResume{Name: "g"}, nil)
	<-h.refused
	sub := r.nodes["a"].node.group("g").sub
	first, _ := sub.Begin()
	var again record.Seq
	r.waitFor("in another step", func() bool {
		begin, ok := sub.Begin()
		again = begin
		return ok && begin != first
	})
	for end := time.Now().Add(2*stepLook + stepLook/2); time.Now().Before(end); time.Sleep(10 * time.Millisecond) {
		if begin, ok := sub.Begin(); !ok || begin != again {
			t.Fatalf("the step that began at %d has ended, refused by a word of the one before: %+v", again, r.status("a"))
		}
	}
	h.mu.Lock()
	close(h.greet)
	h.mu.Unlock()
	r.waitFor("paired", func() bool { return r.status("a").State == "paired" && r.status("a").ChangedBytes == 0 })
}
