package cli

import (
	"context"
	"testing"
	"time"
)

// The call that keeps the monitor thread steady ends with its role, while the process is busy too; and busy is told from idle.
func TestSteadyEnds(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan struct{})
	go func() { defer close(done); steady(ctx) }()
	before := cpuTime()
	for limit := time.Now().Add(10 * time.Second); cpuTime()-before < 2*busyTime; {
		if time.Now().After(limit) {
			t.Fatal("a busy process uses no time of the processors")
		}
	}
	cancel()
	select {
	case <-done:
	case <-time.After(10 * time.Second):
		t.Fatal("it does not end")
	}
}
