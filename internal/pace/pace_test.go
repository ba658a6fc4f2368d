package pace

import (
	"testing"
	"testing/synctest"
	"time"
)

// pass counts what goes through in d.
func pass(c Chain, d time.Duration) int {
	done := make(chan struct{})
	timer := time.AfterFunc(d, func() { close(done) })
	defer timer.Stop()
	sum := 0
	for {
		n := c.Take(done, 1<<20)
		if n == 0 {
			return sum
		}
		sum += n
	}
}

func near(t *testing.T, what string, got, want int) {
	t.Helper()
	if got < want*95/100 || got > want*105/100 {
		t.Errorf("%s: %d bytes, want %d", what, got, want)
	}
}

// TestLimits: requests larger than a piece are split, the lowest limit holds, and it is changed while somebody waits.
func TestLimits(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		group, link := New(), New()
		c := Chain{group, link}
		if !c.Unlimited() || c.Take(nil, 1<<30) != 1<<30 {
			t.Error("without limits something was held back")
		}
		group.Set(1 << 20)
		near(t, "one limit", pass(c, 2*time.Second), 2<<20)
		link.Set(100_000)
		near(t, "the lower of two", pass(c, 2*time.Second), 200_000)
		time.AfterFunc(time.Second, func() { link.Set(0) })
		near(t, "raised on the way", pass(c, 2*time.Second), 1<<20+100_000)
		group.Set(4096)
		near(t, "the least", pass(c, 10*time.Second), 40960)
	})
}

// TestSharedLimit: two writers have one limit together.
func TestSharedLimit(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		link := New()
		link.Set(1 << 20)
		sum := make(chan int)
		for range 2 {
			go func() { sum <- pass(Chain{New(), link}, 2*time.Second) }()
		}
		a, b := <-sum, <-sum
		near(t, "both", a+b, 2<<20)
		near(t, "one of them", a, 1<<20)
	})
}

func TestTakeEndsWithItsConnection(t *testing.T) {
	l := New()
	l.Set(4096)
	done := make(chan struct{})
	close(done)
	c := Chain{l}
	for range 100 {
		if c.Take(done, 1<<20) == 0 {
			return
		}
	}
	t.Error("Take goes on after its connection's end")
}
