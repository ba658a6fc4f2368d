package node

import (
	"math/rand/v2"
	"os"
	"strconv"
	"testing"
	"time"

	"gantline/internal/control"
	"gantline/internal/proof"
	"gantline/internal/volume"
)

// flaps is how often the link is cut: GANTLINE_FLAPS, or a slice that takes seconds.
func flaps(t *testing.T) int {
	n, err := strconv.Atoi(os.Getenv("GANTLINE_FLAPS"))
	if err != nil || n < 1 {
		n = 60
	}
	t.Logf("%d flaps", n)
	return n
}

// quick has a node dial again at once, so that many flaps fit into a short time.
func (r *rig) quick(name string) {
	r.t.Helper()
	r.stop(name)
	r.nodes[name].cfg.linkRetry = 10 * time.Millisecond
	r.start(name)
}

// A link that is cut over and over under a load that flushes after each write. At the end status and images agree, and the
// secondary has been sent nothing that it had: only what was on its way at a cut went again.
func TestFlaps(t *testing.T) {
	for _, mode := range []string{control.ModeAsync, control.ModePeriodic} {
		t.Run(mode, func(t *testing.T) {
			seed := rand.Uint64()
			t.Logf("seed %d", seed)
			rnd := rand.New(rand.NewPCG(seed, 1))
			n := flaps(t)
			r := newRig(t, "a", "c")
			r.quick("a")
			settings := async
			if mode == control.ModePeriodic {
				settings = every(150 * time.Millisecond)
			}
			_, link := r.pair(settings, 2, 16<<20, 64<<20, 64<<20)
			before := r.status("a").WANBytesSent
			l := proof.New(r.disks("a", 2), proof.Options{Seed: seed, Depth: 4, FlushEvery: 1, Rate: 1000, Span: 8 << 20})
			stop := keepRunning(t, l)
			snd := r.nodes["a"].node.group("g").snd
			flight, cuts := 0, 0
			for cuts < n {
				time.Sleep(time.Duration(5+rnd.IntN(30)) * time.Millisecond)
				if !r.nodes["a"].node.group("g").status().LinkUp {
					continue // not up yet: this would be no flap
				}
				flight += snd.Status().FlightBytes
				link.flap()
				cuts++
			}
			stop()
			r.waitFor("in step", inStep(r))
			r.check(l, "c", 2, true)
			r.check(l, "a", 2, true)
			if again := r.nodes["c"].node.group("g").rcv.Status().Repeated; again != 0 {
				t.Errorf("%d records were sent that the secondary had", again)
			}
			sent, wrote := r.status("a").WANBytesSent-before, l.Stats().Bytes
			if most := wrote + wrote/20 + int64(flight) + int64(cuts)*(64<<10); mode == control.ModeAsync && sent > most {
				t.Errorf("sent %d bytes, the host wrote %d, %d were on their way at cuts", sent, wrote, flight)
			}
			t.Logf("%d cuts, host %d bytes, sent %d, on their way at cuts %d; %+v", cuts, wrote, sent, flight, l.Stats())
		})
	}
}

// A resync over a link that is cut over and over numbers and sends each changed block once.
func TestResyncUnderFlaps(t *testing.T) {
	rnd := rand.New(rand.NewPCG(rand.Uint64(), 1))
	r := newRig(t, "a", "c")
	r.quick("a")
	const blocks = 512
	_, link := r.pair(async, 1, 64<<20, 64<<20, 256<<20)
	disk := r.disks("a", 1)[0].Target
	r.call("a", control.CallGroupSuspend, control.GroupSuspend{Name: "g"}, nil)
	for i := range int64(blocks) {
		writeTo(t, disk, i<<16, 4096, byte(i+1))
	}
	before := r.status("a")
	if before.ChangedBytes != blocks<<16 {
		t.Fatalf("%d bytes marked", before.ChangedBytes)
	}
	r.call("a", control.CallGroupResume, control.GroupResume{Name: "g"}, nil)
	g := r.nodes["a"].node.group("g")
	cuts, most := 0, min(20*flaps(t), 5000)
	for g.sub.State() != volume.SubStreaming && cuts < most {
		time.Sleep(time.Duration(3+rnd.IntN(20)) * time.Millisecond)
		if g.status().LinkUp {
			link.flap()
			cuts++
		}
	}
	r.waitFor("in step", inStep(r))
	st := r.status("a")
	if n := st.Appended - before.Appended; n != blocks+2 {
		t.Errorf("%d records for %d blocks, begin and end", n, blocks)
	}
	if again := r.nodes["c"].node.group("g").rcv.Status().Repeated; again != 0 {
		t.Errorf("%d records were sent that the secondary had", again)
	}
	t.Logf("%d cuts, %d bytes sent for %d", cuts, st.WANBytesSent-before.WANBytesSent, blocks<<16)
}
