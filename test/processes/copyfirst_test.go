package processes

import (
	"fmt"
	"math/rand/v2"
	"os"
	"slices"
	"strings"
	"testing"

	"gantline/internal/proof"
	"gantline/test/site"
)

// A copy-first move with a process dying while the target is copied to, or later at a step that differs from those of the
// other strategy: the copy goes on where it was, hosts see no error, nothing goes over the WAN twice, and the images are
// equal.
func TestCopyFirstKillPoints(t *testing.T) {
	t.Parallel()
	seed := site.Seed(t)
	points := []killPoint{
		{"b", "copy", "before"}, {"a", "copy", "after"}, // always
		{"a", "copy", "before"}, {"b", "copy", "after"}, {"manager", "copy", "before"}, {"manager", "copy", "after"},
		{"c", "copying", ""}, {"g", "copying", ""}, {"a", "copying", ""}, {"b", "copying", ""},
		{"b", "pend", "after"}, {"a", "seal", "before"}, {"a", "seal", "after"}, {"b", "seal", "after"}, {"b", "decide", "after"},
		{"b", "source", "after"}, {"b", "run", "before"}, {"b", "single", "before"}, {"manager", "decide", "after"},
	}
	rnd := rand.New(rand.NewPCG(seed, 12))
	switch names := os.Getenv("GANTLINE_KILL_POINTS"); {
	case names != "":
		points = slices.DeleteFunc(points, func(k killPoint) bool { return !slices.Contains(strings.Split(names, ","), k.String()) })
	case site.Campaign() > 0:
	case testing.Short():
		points = points[:1]
	default:
		points = append(points[:2], points[2+rnd.IntN(len(points)-2)])
	}
	for _, k := range points {
		queue := rnd.IntN(3) == 0
		t.Run(fmt.Sprintf("%v-queue=%v", k, queue), func(t *testing.T) {
			t.Parallel()
			env := map[string][]string{}
			if k.edge != "" {
				env[k.process] = site.KillAt(k.step, k.edge)
			}
			s := site.Start(t, env)
			pair, journal := s.Pair, "64MiB"
			if queue {
				pair, journal = s.PairOnQueue, "640MiB" // a quarter of it takes all that may be in doubt
			}
			m := &move{Site: s, t: t, k: k, g: pair("db", 2, 64*mib, journal),
				flags: []string{"--strategy", "copy-first", "--limit", "24MiB"}}
			m.wan = func(hosts proof.Stats) {
				if !queue { // which sends again all that is in doubt at a death
					wanFits(t, s, hosts.Bytes+16*mib, 1)
				}
			}
			m.run(seed)
		})
	}
}
