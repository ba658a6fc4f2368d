package node

import (
	"math/rand/v2"
	"testing"
	"time"

	"gantline/internal/control"
	"gantline/internal/proof"
)

// The primary restarts at any point of a step, is suspended at once, and resumed: the interrupted interval is repeated.
func TestRestartInsideSteps(t *testing.T) { onEachLog(t, restartInsideSteps) }

func restartInsideSteps(t *testing.T, with func(func(*control.Settings)) func(*control.Settings)) {
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	rnd := rand.New(rand.NewPCG(seed, 1))
	r := newRig(t, "a", "c")
	r.pair(with(every(100*time.Millisecond)), 2, 16<<20, 64<<20, 160<<20) // a quarter of it is more than can be in doubt
	l := proof.New(r.disks("a", 2), proof.Options{Seed: seed, Depth: 8, FlushEvery: 20, Rate: 2000, Span: 4 << 20})
	for range flaps(t) / 6 {
		stop := keepRunning(t, l)
		time.Sleep(time.Duration(rnd.IntN(250)) * time.Millisecond)
		stop()
		r.stop("a")
		r.start("a")
		l.SetDisks(r.disks("a", 2))
		stop = keepRunning(t, l)
		time.Sleep(time.Duration(rnd.IntN(2)*rnd.IntN(30)) * time.Millisecond)
		r.call("a", control.CallGroupSuspend, control.GroupSuspend{Name: "g"}, nil)
		time.Sleep(time.Duration(rnd.IntN(200)) * time.Millisecond)
		r.call("a", control.CallGroupResume, control.GroupResume{Name: "g"}, nil)
		r.waitFor("paired again", func() bool { return r.status("a").State == "paired" })
		stop()
	}
	r.waitFor("in step", inStep(r))
	r.check(l, "c", 2, true)
}
