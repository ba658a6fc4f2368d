package powerloss

import (
	"testing"
	"time"

	"gantline/internal/block"
)

func do(t block.Target, r *block.Request) error {
	w := make(waiter, 1)
	r.Completer = w
	t.Submit([]*block.Request{r})
	<-w
	return r.Err
}

// With the link down the primary's journal holds what the secondary lacks. The primary is killed by a power loss and
// restarted with a disk whose flushes take their time.
func TestRestartKeepsWhatSecondaryLacks(t *testing.T) {
	seed, rnd := seedOf(t)
	s := newSite(t, seed, rnd)
	s.net.link("*", "c", false)
	disk := (*s.load.targets.Load())[0]
	data := make([]byte, 16*blockSize)
	write := func(b int64, n uint64) {
		for i := range int64(16) {
			stamp(data[i*blockSize:], seed, 0, b+i, n)
		}
		s.must(do(disk, &block.Request{Op: block.OpWrite, Offset: b * blockSize, Length: int64(len(data)), Data: append([]byte(nil), data...)}))
	}
	total := int64(0)
	for total < journalSize*6/10 {
		write((total/int64(len(data)))%8*16, 1)
		total += int64(len(data))
	}
	s.must(do(disk, &block.Request{Op: block.OpFlush}))
	time.Sleep(1500 * time.Millisecond)
	write(0, 1)
	s.must(do(disk, &block.Request{Op: block.OpFlush}))
	before := s.mustStatus("a")
	t.Logf("before: %+v", before)
	s.crash("a")
	s.node["a"].disks.setHook(func(path string, call block.Call, _, _ int64) error {
		if call == block.CallFlush && isJournal(path) {
			time.Sleep(100 * time.Millisecond)
		}
		return nil
	})
	s.restart("a")
	s.node["a"].disks.setHook(nil)
	s.net.link("*", "c", true)
	for end := time.Now().Add(8 * time.Second); time.Now().Before(end); time.Sleep(100 * time.Millisecond) {
		if st, err := s.status("a"); err == nil && st.LinkUp && st.Applied == st.Appended {
			return
		}
	}
	st := s.mustStatus("a")
	t.Errorf("8 s after the link is back: %+v", st)
}
