package powerloss

import (
	"testing"
	"time"

	"gantline/internal/block"
)

// A write that was answered and under no flush may be gone when the primary has lost its power, as on any disk. The host
// must hear of it: a flush that succeeds afterwards would make it believe that the write is durable (I1). So its
// connection ends, as if the disk had gone away under it.
func TestFlushAfterPowerLoss(t *testing.T) {
	seed, rnd := seedOf(t)
	s := newSite(t, seed, rnd)
	s.tells = true
	for i := range int64(20) {
		s.slow("a", time.Second)
		p := make([]byte, blockSize)
		stamp(p, seed, 0, i, uint64(i+1))
		s.must(s.ask(&block.Request{Op: block.OpWrite, Offset: i * blockSize, Length: blockSize, Data: p}))
		s.crash("a")
		s.node["a"].disks.setHook(nil)
		s.restart("a")
		if err := s.ask(&block.Request{Op: block.OpFlush}); err != nil {
			return // the host has been told
		}
		q := make([]byte, blockSize)
		s.must(s.ask(&block.Request{Op: block.OpRead, Offset: i * blockSize, Length: blockSize, Data: q}))
		if string(p) != string(q) {
			t.Fatalf("write %d was answered, then a flush was, and it is gone: the primary lost its power in between, and nobody told the host", i+1)
		}
	}
	t.Fatal("no host was told in 20 power losses")
}

// ask sends one request of a host.
func (s *site) ask(r *block.Request) error {
	w := make(waiter, 1)
	r.Completer = w
	s.hosts[0].Submit([]*block.Request{r})
	<-w
	return r.Err
}
