package volume

import (
	"sync/atomic"
	"time"
)

// calmAfter is how long hosts must have been quiet for a background copy to take all it can.
const calmAfter = 100 * time.Millisecond

// calm tells a background copy whether hosts use the same disks and processors, from a count of what they have asked.
type calm struct {
	seen   atomic.Uint64 // the count when busy was asked last
	seenAt atomic.Int64  // when that was a new one, since began
}

func (c *calm) busy(ops uint64) bool {
	now := int64(time.Since(began))
	if c.seen.Swap(ops) != ops {
		c.seenAt.Store(now)
		return true
	}
	return now-c.seenAt.Load() < int64(calmAfter)
}

// HostOps counts the requests that the group's volumes have executed for hosts in this run.
func (g *Group) HostOps() uint64 {
	sum := uint64(0)
	for _, m := range *g.members.Load() {
		if m != nil {
			sum += m.vol.traffic.requests()
		}
	}
	return sum
}
