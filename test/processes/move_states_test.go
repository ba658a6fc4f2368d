package processes

import (
	"fmt"
	"math/rand/v2"
	"os"
	"strings"
	"testing"
	"time"

	"gantline/internal/proof"
	"gantline/test/site"
)

// Groups that are suspended, or inside the step of a resync, move like those that are paired, with a process dying at a step of
// the move: hosts see no error, the secondary's image is a prefix all the time, what is marked is sent from the target. A kill
// point of each state by chance; in a campaign all of them, and with a log in memory too.
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
		states = append(states, "suspended-queue", "resyncing-queue")
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
		for _, k := range points {
			t.Run(fmt.Sprintf("%s-%v", name, k), func(t *testing.T) {
				t.Parallel()
				env := map[string][]string{}
				if k.process != "" {
					env[k.process] = site.KillAt(k.step, k.edge)
				}
				s := site.Start(t, env)
				pair := s.Pair
				if queue {
					pair = s.PairOnQueue
				}
				m := &move{Site: s, t: t, k: k, g: pair("db", 2, 64*mib, "320MiB")}
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
				m.wan = func(hosts proof.Stats) { // the blocks that the load uses, in each of at most three steps
					limit := hosts.Bytes + 3*2*32*mib + 16*mib
					if sent := s.Group("db").WANBytesSent; sent == nil || *sent > limit {
						t.Errorf("%v bytes over the WAN, wanted at most %d", deref(sent), limit)
					}
				}
				m.run(seed)
			})
		}
	}
}
