package node

import (
	"testing"
	"time"

	"gantline/internal/block"
)

// SIGTERM while a host's request over NBD is held: exit without an error, within 10 s.
func TestStopWithHeldNBDRequest(t *testing.T) {
	r := newRig(t, "a", "b", "c")
	g := r.group(1, 4<<20)
	r.through(g)
	r.stop("a")
	c := r.nbd("b", "v1")
	go func() { _ = do(c, block.OpWrite, 0, filledWith(1), 30*time.Second) }()
	time.Sleep(300 * time.Millisecond)
	n := r.nodes["b"]
	n.caller.Close()
	n.cancel()
	n.cancel = nil
	select {
	case err := <-n.ended:
		if err != nil {
			t.Fatalf("node b ended with an error, so the process exits 1: %v", err)
		}
	case <-time.After(12 * time.Second):
		t.Fatal("node b does not end within 12 s while it holds a request")
	}
}
