package receiver_test

import (
	"fmt"
	"sync/atomic"
	"testing"

	"gantline/internal/receiver"
	"gantline/internal/record"
	"gantline/internal/wire"
)

// cutStore tells of its first sync that records were dropped while it ran.
type cutStore struct {
	*memStore
	syncs atomic.Int32
}

func (c *cutStore) Sync() (record.Seq, error) {
	if c.syncs.Add(1) == 1 {
		return 0, fmt.Errorf("%w: a test", receiver.ErrCut)
	}
	return c.memStore.Sync()
}

// A sync that meets a cut is no failure: it is asked for again.
func TestSyncMeetsCut(t *testing.T) {
	s := newSite(t)
	store := &cutStore{memStore: &memStore{}}
	life := s.start(store)
	if err := life.recv.Believe(receiver.Permit{Epoch: id(1, "a")}); err != nil {
		t.Fatal(err)
	}
	if err := s.push().WriteBatch(wire.Batch{Urgent: true, Records: writes(1, 1, 5, 512)}); err != nil {
		t.Fatal(err)
	}
	eventually(t, "durable there", func() bool { return life.recv.Status().Durable == 5 })
	if st := life.recv.Status(); st.Err != nil || store.syncs.Load() < 2 {
		t.Fatalf("%d syncs, %v", store.syncs.Load(), st.Err)
	}
}
