package processes

import (
	"fmt"
	"math/rand/v2"
	"os"
	"strings"
	"testing"

	"gantline/internal/proof"
	"gantline/test/site"
)

// Groups of other forms move like those with a journal: with a process dying at a step of the move, hosts see no error and
// the images are equal at the end. One kill point by chance for each form; all in a campaign.
func TestMoveOfForms(t *testing.T) {
	t.Parallel()
	seed := site.Seed(t)
	rnd := rand.New(rand.NewPCG(seed, 11))
	some := []killPoint{{"a", "seal", "before"}, {"a", "seal", "after"}, {"b", "seal", "after"}, {"b", "decide", "after"},
		{"b", "run", "before"}, {"b", "fill", "before"}, {"c", "single", "before"}}
	for _, form := range []struct {
		name, journal string
		flags         []string
	}{
		{"periodic", "256MiB", []string{"--mode", "periodic", "--interval", "300ms"}},
		{"queue", "640MiB", nil}, // a quarter of it takes all that may be in doubt
		{"periodic-queue", "640MiB", []string{"--mode", "periodic", "--interval", "300ms"}},
	} {
		points := []killPoint{some[rnd.IntN(len(some))]}
		switch {
		case site.Campaign() > 0 || os.Getenv("GANTLINE_KILL_POINTS") != "":
			points = chosen(seed)
		case testing.Short():
			points = nil
		}
		for _, k := range points {
			t.Run(fmt.Sprintf("%s-%v", form.name, k), func(t *testing.T) {
				t.Parallel()
				s := site.Start(t, k.env())
				pair := s.Pair
				if strings.Contains(form.name, "queue") {
					pair = s.PairOnQueue
				}
				m := &move{Site: s, t: t, k: k, g: pair("db", 2, 64*mib, form.journal, form.flags...)}
				m.wan = func(hosts proof.Stats) {
					// Each write may cost a marked block, and a death all that is in doubt.
					limit := hosts.Writes*(2*64<<10) + 2*2*64*mib
					if sent := s.Group("db").WANBytesSent; sent == nil || *sent > limit {
						t.Errorf("%v bytes over the WAN, wanted at most %d", deref(sent), limit)
					}
				}
				m.run(seed)
			})
		}
	}
}
