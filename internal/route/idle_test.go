package route

import (
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// A session that has nothing to send, or nobody to send it to, sleeps: it must not take processors from the nodes, least
// of all while a volume changes hands.
func TestASessionWithoutANodeSleeps(t *testing.T) {
	for name, submit := range map[string]bool{"idle": false, "node away": true} {
		t.Run(name, func(t *testing.T) {
			h := newHost(t, Config{Route: Route{Node: "n", Address: "127.0.0.1:1", Volume: "v"}, Size: 1 << 20})
			if submit {
				h.send(1)
			}
			time.Sleep(50 * time.Millisecond)
			begin := processorTime(t)
			time.Sleep(500 * time.Millisecond)
			if used := processorTime(t) - begin; used > 150*time.Millisecond {
				t.Errorf("%v of processor time in 500 ms", used)
			}
		})
	}
}

func processorTime(t *testing.T) time.Duration {
	var u unix.Rusage
	if err := unix.Getrusage(unix.RUSAGE_SELF, &u); err != nil {
		t.Fatal(err)
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}
