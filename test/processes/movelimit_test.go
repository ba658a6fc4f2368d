package processes

import (
	"bytes"
	"testing"
	"time"

	"gantline/test/site"
)

// The limit of a move's background copy holds for all volumes together, is kept over the target's death, and is lifted at once.
func TestMoveLimitChanges(t *testing.T) {
	t.Parallel()
	s := site.Start(t, nil)
	g := s.Pair("db", 3, 16*mib, "256MiB")
	for _, v := range g.Volumes { // data in all of it: no limit counts holes
		d := s.Dial(s.G, v)
		for off := int64(0); off < 16*mib; off += mib {
			if err := site.Write(d, off, bytes.Repeat([]byte{byte(off>>20) + 1}, int(mib)), 10*time.Second); err != nil {
				t.Fatal(err)
			}
		}
	}
	s.Do("migrate", "start", "db", "--to", "b", "--no-wait", "--limit", "64KiB")
	s.AwaitPhase("db", 20*time.Second, "migrating")
	const limit = mib
	s.Do("migrate", "set", "db", "--limit", "1MiB")
	s.B.Kill()
	s.B.Start()
	copied := func() int64 {
		var bytes int64
		s.WaitFor(10*time.Second, "the target says what it has copied", func() bool {
			b := s.Move("db").Bytes
			if b.Background == nil {
				return false
			}
			bytes = *b.Background
			return true
		})
		return bytes
	}
	before, begun := copied(), time.Now()
	time.Sleep(2 * time.Second)
	got, most := copied()-before, int64((time.Since(begun).Seconds()+2)*float64(limit)) // its burst, and what was under way
	if got > most || got == 0 {
		t.Errorf("%d bytes were copied, the limit allows %d", got, most)
	}
	if v := s.Move("db"); v.Limit != limit || v.Phase != "migrating" {
		t.Errorf("limit %d, phase %s", v.Limit, v.Phase)
	}
	s.Do("migrate", "set", "db", "--limit", "0")
	s.AwaitPhase("db", 15*time.Second, "filled")
}
