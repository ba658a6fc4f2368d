package powerloss

import (
	"fmt"
	"os"
	"slices"
	"testing"
	"time"

	"gantline/internal/control"
)

// cutLink is a link between two processes that carries nothing: both ways, so that connections end and none is made; or one way,
// so that what one says does not reach the other, nothing ends, and all of it arrives late.
type cutLink struct{ from, to, way string }

func (c cutLink) String() string { return c.from + "-" + c.to + "-" + c.way }

// links are those between the processes of a move from a to b, with c as the secondary.
func links() []cutLink {
	var all []cutLink
	for _, pair := range [][2]string{{"gw", "a"}, {"gw", "b"}, {"gw", "manager"}, {"a", "b"}, {"a", "c"}, {"b", "c"}, {"manager", "a"}, {"manager", "b"},
		{"manager", "c"}} {
		all = append(all, cutLink{pair[0], pair[1], "both"}, cutLink{pair[0], pair[1], "oneway"}, cutLink{pair[1], pair[0], "oneway"})
	}
	return all
}

func (s *site) setLink(c cutLink, cut bool) {
	if c.way == "oneway" {
		s.net.silence(c.from, c.to, cut)
		return
	}
	s.net.link(c.from, c.to, !cut)
	s.net.link(c.to, c.from, !cut)
}

// cutMoments are where in a move links are cut.
var cutMoments = []moment{
	{"b", control.StepThrough, "after"}, {"gw", control.StepSwitch, "before"}, {"gw", control.StepSwitch, "after"}, {"a", control.StepSeal, "before"}, {"a", control.StepSeal, "after"}, {"b", control.StepDecide, "before"},
	{"b", control.StepDecide, "after"}, {"b", control.StepRun, "after"}, {"b", control.StepDrained, "before"}, {"c", control.StepSingle, "before"},
}

// decided says that the target is the primary whatever happens from here on.
func (m moment) decided() bool {
	return slices.Contains([]string{control.StepSource, control.StepRun, control.StepDrained, control.StepSingle, control.StepFill}, m.step) ||
		m.step == control.StepDecide && m.edge == "after"
}

// A link between two processes of a move is cut at a step of it, for less and for more than hosts are held. The secondary is a prefix
// meanwhile. The move ends, or, if it was not decided, goes back and can be done again; nobody serves beside another; hosts wait for as
// long as the link was cut and what a hold and the notice of silence take, and meet errors only for regions that the source alone has.
// A plain run has three rows by chance, GANTLINE_CAMPAIGN=n all of them n times, GANTLINE_LINK=a-b-both,b@run.after those of a name.
func TestMoveCutLinks(t *testing.T) {
	_, rnd := seedOf(t)
	type row struct {
		cut  cutLink
		at   moment
		down time.Duration
	}
	var rows []row
	for _, c := range links() {
		for _, at := range cutMoments {
			for _, d := range []time.Duration{1200 * time.Millisecond, 7 * time.Second} {
				rows = append(rows, row{c, at, d})
			}
		}
	}
	name := func(r row) string { return fmt.Sprintf("%v,%v,%v", r.cut, r.at, r.down) }
	if only := os.Getenv("GANTLINE_LINK"); only != "" {
		rows = slices.DeleteFunc(rows, func(r row) bool { return len(name(r)) < len(only) || name(r)[:len(only)] != only })
	} else if campaign() == 0 {
		rnd.Shuffle(len(rows), func(i, j int) { rows[i], rows[j] = rows[j], rows[i] })
		rows = rows[:3]
	}
	for range max(1, campaign()) {
		for _, r := range rows {
			t.Run(name(r), func(t *testing.T) {
				t.Parallel()
				cutDuring(t, r.cut, r.at, r.down)
			})
		}
	}
}

// afterCut is how long hosts may wait besides the time in which the link was cut: a target's hold, and the silence after which an end
// gives a connection up and is reached again.
const afterCut = 15 * time.Second

func cutDuring(t *testing.T, c cutLink, at moment, down time.Duration) {
	seed, rnd := seedOf(t)
	s := newSite(t, seed, rnd)
	s.load.resume()
	time.Sleep(200 * time.Millisecond)
	wan, bytes := s.net.sent("a", "c")+s.net.sent("b", "c"), s.written()
	took := s.trapTo(at, func() { s.setLink(c, true) })
	id := s.startMove()
	select {
	case <-took:
	case <-time.After(30 * time.Second):
		t.Fatalf("the move never came to %v: %+v", at, s.move(id))
	}
	begin := time.Now()
	time.Sleep(down)
	v := s.lookAtSecondary()
	s.say("%v cut at %v for %v: %s; the secondary is a prefix, %d behind", c, at, down, s.move(id).Phase, v.behind)
	s.setLink(c, false)
	down = time.Since(begin)
	m := s.ended(id)
	s.say("%s: %s", m.Phase, m.Error)
	if at.decided() && m.Phase != control.PhaseFilled {
		t.Errorf("the move was decided, and %s: %s", m.Phase, m.Error)
	}
	s.afterMove(at, id, m)
	sent, wrote := s.net.sent("a", "c")+s.net.sent("b", "c")-wan, s.written()-bytes
	if sent > wrote+wrote/2+s.marked+4<<20 {
		t.Errorf("%d bytes were sent to the secondary while hosts wrote %d (I4)", sent, wrote)
	}
	n, errs, first := s.load.counts()
	// A decision that the manager alone is asked for comes without the source too, once that has handed over.
	fetches := (c.from == "a" && c.to == "b" || c.from == "b" && c.to == "a") && m.Phase == control.PhaseFilled && down > patience
	if errs > 0 && !fetches {
		t.Errorf("hosts met %d errors: %v", errs, first)
	}
	if s.load.longest > down+afterCut {
		t.Errorf("hosts waited for %v", s.load.longest)
	}
	t.Logf("%d writes, %d errors (%v), longest wait %v, WAN %d bytes for %d written", n, errs, first, s.load.longest, sent, wrote)
}
