package processes

import (
	"strings"
	"testing"
	"time"

	"gantline/internal/control"
	"gantline/internal/proof"
	"gantline/test/site"
)

// A group whose secondary was promoted moves on, and once more: hosts see no error, and what the old primary lacks stays marked. That one
// is away from before the promotion until the node that was promoted is gone for good: it hears from where the group is now that it is superseded.
func TestMovePromoted(t *testing.T) {
	t.Parallel()
	s := site.Start(t, nil)
	g := s.Pair("db", 2, 32*mib, "128MiB")
	load := proof.New(s.Disks(s.G, g), proof.Options{Seed: site.Seed(t), Depth: 8, MaxBlocks: 8, ReadPercent: 20, FlushEvery: 30, Rate: 600, Span: 16 * mib})
	running := site.Run(load)
	time.Sleep(300 * time.Millisecond)
	_ = running.Stop()
	s.AwaitInStep("db", 20*time.Second)
	s.A.Kill()
	s.Do("group", "promote", "db", "--force")
	refused(s, "was its primary until c was promoted", "migrate", "start", "db", "--to", "a")
	refused(s, "there is no backlog", "migrate", "start", "db", "--to", "b", "--backlog", "carry")

	load.SetDisks(s.Disks(s.G, g)) // connections of before the promotion have ended
	running = site.Run(load)
	time.Sleep(300 * time.Millisecond)
	marked := s.Group("db").ChangedBytes
	s.Do("migrate", "start", "db", "--to", "b", "--strategy", "copy-first", "--stop-at", "switched")
	s.Do("migrate", "abort", "db")
	s.Do("migrate", "start", "db", "--to", "b")
	v := s.Group("db")
	if v.Primary != "b" || v.Promoted == nil || v.Promoted.Node != "c" || deref(v.State) != "suspended" || marked == nil || v.ChangedBytes == nil ||
		*v.ChangedBytes < *marked {
		t.Fatalf("%+v, %v marked before", v, deref(marked))
	}
	s.Do("migrate", "commit", "db")
	refused(s, "nothing is copied back", "group", "resume", "db")
	s.B.Kill()
	s.B.Start()
	s.C.Kill()
	s.A.Start()
	s.WaitFor(10*time.Second, "the old primary hears of it", func() bool {
		r := own(s, s.A, "group", "show", "db", "-o", "json")
		return r.Code == 0 && strings.Contains(r.Out, `"superseded"`)
	})
	s.WaitFor(10*time.Second, "that is shown", func() bool { return !strings.Contains(*s.Group("db").BlockedOn, "has not heard") })
	s.C.Start()
	maps := []string{"migrate", "start", "db", "--to", "c", "--yes", "--journal", "c/db-log"}
	for _, v := range g.Volumes {
		maps = append(maps, "--map", "b/"+v+"=c/"+v)
	}
	s.Do(maps...)
	s.Do("migrate", "commit", "db")
	if err := running.Stop(); err != nil {
		t.Errorf("the host saw an error: %v", err)
	}
	s.Equal(load, "where the group is now", s.Exports(s.C, g))
	if n := s.Group("db").Nodes["a"]; n == nil || *n != control.RoleSuperseded {
		t.Errorf("the old primary is %v", deref(n))
	}
	s.A.Kill()
	s.A.Start() // it asks c, which was promoted and serves again
	if r := own(s, s.A, "group", "show", "db", "-o", "json"); !strings.Contains(r.Out, `"superseded"`) {
		t.Error(r)
	}
	if err := load.Forget(s.Exports(s.C, g)); err != nil {
		t.Fatal(err)
	}
	goOn(s, load, s.G, g)
	s.Equal(load, "written on", s.Exports(s.C, g))
}
