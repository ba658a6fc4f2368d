package cli

import (
	"context"
	"os"
	"runtime"
	"time"

	"golang.org/x/sys/unix"
)

const (
	// sparePs are for goroutines that are inside a system call of a file: a sync, a round of write-back, and the one of steady.
	// Go gives such a call's place to another goroutine only when its monitor thread looks.
	sparePs = 4
	// steadyCall is how long a call of steady takes. From 10 ms on the monitor thread takes its place away and looks more often.
	steadyCall = 4 * time.Millisecond
	// steadyLook is how often steady looks whether the process is busy: whether it has used busyTime since.
	steadyLook = 100 * time.Millisecond
	busyTime   = 5 * time.Millisecond
)

// spendThreads has Go schedule more goroutines at a time than there are processors, where GOMAXPROCS does not say otherwise.
func spendThreads() {
	if os.Getenv("GOMAXPROCS") == "" {
		runtime.GOMAXPROCS(runtime.GOMAXPROCS(0) + sparePs) // of those that a control group leaves it
	}
}

// steady keeps Go's monitor thread steady until ctx ends: while the process is busy it stays inside system calls, one behind
// the other.
//
// The monitor thread sleeps when no goroutine runs, is woken by the next system call of a file, then looks every 20 µs for a
// while. A node at few requests in flight rests after each batch, so each batch woke it, and paid for it: a wake-up within the
// journal's append, and threads switched four times as often as the work itself needs. While one goroutine is inside a system
// call, the monitor does not sleep, and finding nothing to do it looks ever less often, down to every 10 ms.
func steady(ctx context.Context) {
	pause := unix.NsecToTimespec(int64(steadyCall))
	look := time.NewTicker(steadyLook)
	defer look.Stop()
	for before := cpuTime(); ctx.Err() == nil; {
		select {
		case <-ctx.Done():
		case <-look.C:
		}
		for now := cpuTime(); now-before >= busyTime && ctx.Err() == nil; now = cpuTime() {
			before = now
			for i := 0; i < int(steadyLook/steadyCall) && ctx.Err() == nil; i++ {
				_ = unix.Nanosleep(&pause, nil)
				runtime.Gosched() // else the monitor takes this for one goroutine that does not let others run
			}
		}
		before = cpuTime()
	}
}

// cpuTime is what the process has used of the processors.
func cpuTime() time.Duration {
	var used unix.Rusage
	if unix.Getrusage(unix.RUSAGE_SELF, &used) != nil {
		return 0
	}
	return time.Duration(used.Utime.Nano() + used.Stime.Nano())
}
