package processes

import (
	"fmt"
	"math/rand/v2"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"gantline/internal/proof"
	"gantline/test/site"
)

// Groups that are suspended, inside the step of a resync, or whose secondary is away, move like those that are paired, with a process
// dying at a step of the move: hosts see no error, the secondary's image is a prefix all the time, what is marked is sent from the target. A kill
// point of each of the first two by chance; in a campaign all of them, and with a log in memory too.
func TestMoveOfStates(t *testing.T) {
	t.Parallel()
	seed := site.Seed(t)
	rnd := rand.New(rand.NewPCG(seed, 12))
	some := []killPoint{{"a", "seal", "before"}, {"a", "seal", "after"}, {"b", "seal", "before"}, {"b", "seal", "after"},
		{"b", "run", "before"}, {"b", "drained", "after"}, {"b", "single", "after"}, {"b", "fill", "before"}, {"c", "single", "before"},
		{"c", "single", "after"}}
	states := []string{"suspended", "resyncing"}
	campaign := site.Campaign() > 0 || os.Getenv("GANTLINE_KILL_POINTS") != ""
	if campaign {
		states = append(states, "suspended-queue", "resyncing-queue", "away")
	}
	for _, name := range states {
		state, queue := strings.CutSuffix(name, "-queue")
		points := []killPoint{some[rnd.IntN(len(some))]}
		switch {
		case campaign:
			points = chosen(seed)
		case testing.Short():
			points = []killPoint{{}}
		}
		if state == "away" { // what comes behind these needs the secondary
			points = slices.DeleteFunc(points, func(k killPoint) bool {
				return k.process == "c" || slices.Contains([]string{"drained", "single", "fill", "deregister"}, k.step)
			})
		}
		for _, k := range points {
			t.Run(fmt.Sprintf("%s-%v", name, k), func(t *testing.T) {
				t.Parallel()
				s := site.Start(t, k.env())
				m := &move{Site: s, t: t, k: k}
				if queue { // a step then has the regions in doubt too
					m.g = s.PairOnQueue("db", 2, 64*mib, "768MiB")
				} else {
					m.g = s.Pair("db", 2, 64*mib, "320MiB")
				}
				m.enter = func() {
					s.Do("group", "suspend", "db")
					time.Sleep(300 * time.Millisecond)
					if state == "resyncing" {
						s.Do("group", "set", "db", "--limit", "1MiB")
						s.Do("group", "resume", "db", "--no-wait")
					}
				}
				m.leave = func() {
					if state == "suspended" {
						if state := s.Group("db").State; state == nil || *state != "suspended" {
							t.Errorf("the group is %v behind the move", deref(state))
						}
						s.Do("group", "resume", "db")
						return
					}
					s.Do("group", "set", "db", "--limit", "0")
				}
				if state == "away" {
					m.leave = nil
					m.enter = func() {
						s.C.Kill()
						s.WaitFor(10*time.Second, "the link is down", func() bool { return deref(s.Group("db").Link) == "down" })
					}
					m.back = func() {
						m.AwaitPhase("db", 60*time.Second, "migrating", "failed")
						s.C.Start()
					}
				}
				m.wan = func(hosts proof.Stats) { // the blocks that the load uses, in each of at most three steps
					limit := hosts.Bytes + 3*2*32*mib + 16*mib
					if queue {
						limit += 3 * 2 * 32 * mib // what dirty wrote is in doubt as well, by regions of 1 MiB
					}
					if sent := s.Group("db").WANBytesSent; sent == nil || *sent > limit {
						t.Errorf("%v bytes over the WAN, wanted at most %d", deref(sent), limit)
					}
				}
				m.run(seed)
			})
		}
	}
}
