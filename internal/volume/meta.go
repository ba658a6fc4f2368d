package volume

import (
	"encoding/binary"
	"encoding/json"
	"fmt"
	"maps"
	"slices"
	"sync"

	"gantline/internal/record"
)

const (
	metaVersion  = 1
	maxMetaBytes = 16 << 10 // what a Log takes
	maxDoneBytes = 12 << 10 // of it, the table of done requests; the sessions silent longest are left out
	maxSubs      = 16
	maxRemoved   = 512
)

// meta is the group's blob in its log: what recovery needs besides the records. The log keeps it twice, checksummed.
//
//	length u32 of the JSON, JSON, table of done requests to the end
type meta struct {
	Version    int                   `json:"version"`
	Checkpoint record.Seq            `json:"checkpoint"` // the devices hold all records up to it
	Applied    record.Seq            `json:"applied"`    // follower: the devices may hold records up to it
	Following  bool                  `json:"following"`
	Subs       map[string]metaSub    `json:"subscribers,omitempty"`
	Filling    []record.VolumeNumber `json:"filling,omitempty"` // have absent regions
	Removed    []record.VolumeNumber `json:"removed,omitempty"`
	// Sealed is the end of an epoch in a log that keeps no records, and so no fence. It counts until a later one is opened.
	Sealed *metaSeal `json:"sealed,omitempty"`

	done []byte
}

type metaSeal struct {
	Cut   record.Seq     `json:"cut"`
	Epoch uint64         `json:"epoch"` // that it has ended
	Next  record.EpochID `json:"next"`
}

// metaSub is what outlives a restart of a subscriber besides its changed maps.
type metaSub struct {
	Acked     record.Seq `json:"acked"`
	Suspended bool       `json:"suspended"`
	Sync      bool       `json:"sync,omitempty"`  // it has all that was answered to hosts, who wait for it
	Stale     record.Seq `json:"stale,omitempty"` // it was promised all, until it was cut off: it lacks what begins here
	// Relied is how far it has said to have all, by what Retain counts: it never has less, or has been put back.
	Relied record.Seq `json:"relied,omitempty"`
	// Applied is, suspended, what it had applied when it last said so; for display.
	Applied record.Seq `json:"applied,omitempty"`
	// Inherited: this log begins where another's ended, and the subscriber has said nothing here yet.
	Inherited bool `json:"inherited,omitempty"`
}

type metaStore struct {
	metaMu sync.Mutex
	meta   meta
}

func (g *Group) saveMeta(change func(m *meta)) error { return g.saveMetaBy(change, g.log.SetMeta) }

func (g *Group) removedCount() int {
	g.metaMu.Lock()
	defer g.metaMu.Unlock()
	return len(g.meta.Removed)
}

// wasRemoved says whether a number was that of a volume which has left the group.
func (g *Group) wasRemoved(n record.VolumeNumber) bool {
	g.metaMu.Lock()
	defer g.metaMu.Unlock()
	return slices.Contains(g.meta.Removed, n)
}

// isFilling says whether a volume had absent regions when the log was closed.
func (g *Group) isFilling(n record.VolumeNumber) bool {
	g.metaMu.Lock()
	defer g.metaMu.Unlock()
	return slices.Contains(g.meta.Filling, n)
}

// isFollowing is what the blob says.
func (g *Group) isFollowing() bool {
	g.metaMu.Lock()
	defer g.metaMu.Unlock()
	return g.meta.Following
}

// saveMetaBy saves by a call of the log that makes the blob durable along with something else.
func (g *Group) saveMetaBy(change func(m *meta), save func([]byte) error) error {
	g.metaMu.Lock()
	defer g.metaMu.Unlock()
	m := g.meta
	m.Subs = maps.Clone(m.Subs)
	if m.Subs == nil {
		m.Subs = map[string]metaSub{}
	}
	for _, s := range *g.subs.Load() {
		m.Subs[s.name] = s.forMeta()
	}
	m.Filling = nil
	for _, mem := range g.each() {
		if mem.blind.Load() || mem.vol.presence.Load() != nil {
			m.Filling = append(m.Filling, mem.number)
		}
	}
	change(&m)
	b, err := m.encode()
	if err == nil {
		err = save(b)
	}
	if err != nil {
		return g.fail(fmt.Errorf("saving the checkpoint: %w", err))
	}
	g.meta = m
	return nil
}

// mayHaveApplied is the durable bound of what a follower's devices may hold.
func (g *Group) mayHaveApplied() record.Seq {
	g.metaMu.Lock()
	defer g.metaMu.Unlock()
	return g.meta.Applied
}

func (m *meta) encode() ([]byte, error) {
	m.Version = metaVersion
	head, err := json.Marshal(m)
	if err != nil {
		return nil, err
	}
	out := binary.LittleEndian.AppendUint32(nil, uint32(len(head)))
	out = append(append(out, head...), m.done...)
	if len(out) > maxMetaBytes {
		return nil, fmt.Errorf("%d bytes, at most %d can be kept", len(out), maxMetaBytes)
	}
	return out, nil
}

func decodeMeta(b []byte) (meta, error) {
	m := meta{Subs: map[string]metaSub{}}
	if len(b) == 0 {
		return m, nil
	}
	if len(b) < 4 || int64(binary.LittleEndian.Uint32(b)) > int64(len(b)-4) {
		return m, fmt.Errorf("%w: it is cut short", ErrMeta)
	}
	n := 4 + int(binary.LittleEndian.Uint32(b))
	if err := json.Unmarshal(b[4:n], &m); err != nil {
		return m, fmt.Errorf("%w: %w", ErrMeta, err)
	}
	if m.Version != metaVersion {
		return m, fmt.Errorf("%w: version %d is not known", ErrMeta, m.Version)
	}
	if m.Subs == nil {
		m.Subs = map[string]metaSub{}
	}
	m.done = append([]byte(nil), b[n:]...)
	return m, nil
}
