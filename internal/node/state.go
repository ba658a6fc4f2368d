package node

import (
	"crypto/rand"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"log/slog"
	"maps"
	"path/filepath"
	"slices"
	"sync"
	"sync/atomic"

	"gantline/internal/block"
	"gantline/internal/control"
	"gantline/internal/migrate"
	"gantline/internal/record"
	"gantline/internal/statefile"
)

// volumeRecord is a volume on this node.
type volumeRecord struct {
	Name   string `json:"name"`
	ID     string `json:"id"`
	Size   int64  `json:"size"` // bytes
	Device string `json:"device"`
	// Growing, if not 0, is a larger size that the device may have already; or it is Size, and the log of the group that the
	// volume is a primary of may lack the record which says so.
	Growing int64 `json:"growing,omitempty"`
	// Arrived is the latest move that has ended here with the volume in no group.
	Arrived string `json:"arrived,omitempty"`
	// Taken is the epoch in which this node has taken the volume back from a target that was given up with what hosts had written there;
	// 0: it has not.
	Taken uint64 `json:"taken,omitempty"`
	// Moved says who serves what this volume held: it was the source of a finished move, or the target of one that was
	// given up. It refuses hosts until it is deleted or named as the target of another move.
	Moved *block.MovedError `json:"moved,omitempty"`
}

// journalRecord is a journal on this node; devices in the order they were formatted in.
type journalRecord struct {
	Name    string   `json:"name"`
	ID      string   `json:"id"`
	Size    int64    `json:"size"` // bytes, all devices
	Devices []string `json:"devices"`
	// Used: a group has had it. The next one formats it first.
	Used bool `json:"used"`
}

// groupRecord is a group this node has a role in.
type groupRecord struct {
	Spec    control.GroupSpec `json:"spec"`
	Role    string            `json:"role"`    // control.Role…
	Journal string            `json:"journal"` // of this node
	Members []memberRecord    `json:"members"`
	// Belief is, at a secondary, whom it copies from (receiver's encoding).
	Belief json.RawMessage `json:"belief,omitempty"`
	// Resume: a resync was asked for and has not ended; a restart goes on with it. AtOnce: it may leave the secondary
	// inconsistent on the way.
	Resume bool `json:"resume"`
	AtOnce bool `json:"at_once"`
	// Halted: suspended by command, until it is resumed by command.
	Halted bool `json:"halted,omitempty"`
	// Overruns counts the intervals of a periodic group that were not finished in time.
	Overruns int64 `json:"overruns,omitempty"`
	// Losses counts how often the log has failed: what it had not made durable may be gone.
	Losses int `json:"losses"`
	// Inconsistent, at a secondary: the image is between two cuts (a step applied at once has not ended).
	Inconsistent bool `json:"inconsistent"`
	// Partial: superseded as the target of a move that was not filled. Its volumes lack regions, and are never opened as they are.
	Partial bool `json:"partial,omitempty"`
	// Epoch is the one in which this node serves or will: as primary, as target of a move, reopened as its source.
	Epoch uint64 `json:"epoch"`
	// Promoted: this node was the secondary, and is the primary since. What it has written since stands in its changed maps.
	Promoted *control.Promotion `json:"promoted,omitempty"`
	// Superseded, with RoleSuperseded: who was promoted in this node's place.
	Superseded *control.Reign `json:"superseded,omitempty"`
	// CutMarked, with Superseded: all that lies behind its cut is marked, durably. Its records may be freed then.
	CutMarked bool `json:"cut_marked,omitempty"`
	// Verify is the verify under way, or the last, at a primary.
	Verify *control.VerifyStatus `json:"verify,omitempty"`
	// RemovedAt has, at a primary, the sequences at which volumes have left by command: their secondaries are to have applied
	// them before they let go too. Those of pairs that the manager does not know any more are forgotten.
	RemovedAt map[uint16]record.Seq `json:"removed_at,omitempty"`
	// Carried is, at a primary, the log of what was carried here by a move, until the secondary has it.
	Carried *carriedRecord `json:"carried,omitempty"`
	// WANBase is what other nodes had sent to the secondary before this one became primary.
	WANBase int64 `json:"wan_base"`
}

// memberRecord is one volume of a group on this node.
type memberRecord struct {
	Number uint16 `json:"number"`
	Volume string `json:"volume"` // local name
	// Initial: its initial copy is not finished (primary), or it is not part of the image yet (secondary).
	Initial bool `json:"initial"`
	// Equal, with Initial: both sides are said to hold the same, and no sample has been compared yet.
	Equal bool `json:"equal,omitempty"`
	// Marked: what has to be copied stands in the changed map.
	Marked bool `json:"marked"`
	// CopiedAt, at a secondary: the record behind which the volume is part of the image, 0: its initial copy has not ended.
	CopiedAt uint64 `json:"copied_at,omitempty"`
	// Leaving: a command removes its pair. Only then is a volume that has left the log a lone one again; one that left it for
	// another reason, as when a source retires, stays closed to hosts.
	Leaving bool `json:"leaving,omitempty"`
}

// owner names the group or move that decides what a volume does; empty for a lone volume.
func (d *durable) owner(volume string) string {
	for name, g := range d.Groups {
		if g.Role != control.RoleRetired && slices.ContainsFunc(g.Members, func(m memberRecord) bool { return m.Volume == volume }) {
			return name
		}
	}
	return ""
}

func (g *groupRecord) member(number uint16) *memberRecord {
	for i := range g.Members {
		if g.Members[i].Number == number {
			return &g.Members[i]
		}
	}
	return nil
}

// durable is all that a node keeps in its state file.
type durable struct {
	Name     string                     `json:"name"`
	Install  string                     `json:"install"`
	Volumes  map[string]*volumeRecord   `json:"volumes"`
	Journals map[string]*journalRecord  `json:"journals"`
	Groups   map[string]*groupRecord    `json:"groups"`
	Moves    map[string]*migrate.Record `json:"moves"`
	// Links has the settings of links from this node, by the node at their other end.
	Links map[string]control.LinkSettings `json:"links,omitempty"`
	// Cancelled are moves that have gone back, the latest last.
	Cancelled []control.MigrationCancel `json:"cancelled,omitempty"`
	// Given are volumes that groups have given up here, the latest last.
	Given []givenUp `json:"given,omitempty"`
}

// maxCancelled is how many cancelled moves are remembered; the oldest is forgotten first. It matters only while a registration of
// the move may still be on its way.
const maxCancelled = 64

// cancel forgets a move for good: a registration that comes later is refused.
func (d *durable) cancel(c control.MigrationCancel) {
	if m := d.Moves[c.ID]; m != nil && (c.Epoch == 0 || c.Epoch == m.Spec.Group.Epoch) {
		delete(d.Moves, c.ID)
	}
	if c.Epoch == 0 || slices.Contains(d.Cancelled, c) {
		return
	}
	d.Cancelled = append(slices.Clone(d.Cancelled[max(0, len(d.Cancelled)+1-maxCancelled):]), c)
}

// cancelled says whether a move is remembered as forgotten for good.
func (d *durable) cancelled(c control.MigrationCancel) bool { return slices.Contains(d.Cancelled, c) }

// state guards the durable record. Every change goes through update: it is on disk when update returns nil.
type state struct {
	mu   sync.Mutex // of changes; who only reads does not wait for one that is being saved
	file *statefile.File
	now  atomic.Pointer[inForce]
}

// inForce is the record as it stands on disk; replaced, never changed.
type inForce struct {
	raw  []byte
	once sync.Once
	d    *durable // read from raw when it is first asked for, so that nobody who has changed a record still has it
}

func (f *inForce) record() *durable {
	f.once.Do(func() { f.d = f.copy() })
	return f.d
}

func (f *inForce) copy() *durable {
	d := &durable{}
	if err := json.Unmarshal(f.raw, d); err != nil {
		panic("node state does not survive its own encoding: " + err.Error())
	}
	d.init()
	return d
}

func openState(dir, name string, log *slog.Logger) (*state, error) {
	file, body, repaired, err := statefile.Open(filepath.Join(dir, "node.state"))
	if err != nil {
		return nil, err
	}
	if repaired != "" {
		log.Warn("state repaired", "cause", repaired)
	}
	s, first := &state{file: file}, &durable{Name: name, Install: randomID()}
	if body == nil {
		first.init()
		if body, err = json.Marshal(first); err != nil {
			return nil, err
		}
		if err := file.Save(body); err != nil {
			return nil, err
		}
	}
	if err := json.Unmarshal(body, first); err != nil {
		return nil, fmt.Errorf("node state in %s: %w", dir, err)
	}
	if first.Name != name {
		return nil, fmt.Errorf("data directory %s belongs to node %q, not %q: start it under that name or give another --data-dir",
			dir, first.Name, name)
	}
	s.now.Store(&inForce{raw: body})
	return s, nil
}

func (d *durable) init() {
	if d.Volumes == nil {
		d.Volumes = map[string]*volumeRecord{}
	}
	if d.Journals == nil {
		d.Journals = map[string]*journalRecord{}
	}
	if d.Groups == nil {
		d.Groups = map[string]*groupRecord{}
	}
	if d.Moves == nil {
		d.Moves = map[string]*migrate.Record{}
	}
}

// update changes a copy, makes it durable and only then lets it count. On an error nothing has changed.
func (s *state) update(change func(*durable) error) error { return s.updateBy(change, s.file.Save) }

// updateSoon is update with the second copy of the file left to the next one, which must follow soon: hosts wait for it.
func (s *state) updateSoon(change func(*durable) error) error {
	return s.updateBy(change, s.file.SaveOne)
}

func (s *state) updateBy(change func(*durable) error, save func([]byte) error) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	next := s.view()
	if err := change(next); err != nil {
		return err
	}
	raw, err := json.Marshal(next)
	if err != nil {
		return err
	}
	f := &inForce{raw: raw}
	var read sync.WaitGroup
	read.Go(func() { f.record() }) // while the disk works: whoever waits for the save asks next
	err = save(raw)
	read.Wait()
	if err == nil {
		s.now.Store(f)
	}
	return err
}

// view gives a copy that the caller may keep and change. It costs reading all of it anew: not for where hosts wait.
func (s *state) view() *durable { return s.now.Load().copy() }

// group is what is recorded of a group, nil if nothing is. It is shared: the caller must not change it.
func (s *state) group(name string) *groupRecord { return s.now.Load().record().Groups[name] }

// move is what is recorded of a move, likewise.
func (s *state) move(id string) *migrate.Record { return s.now.Load().record().Moves[id] }

func randomID() string {
	var b [16]byte
	rand.Read(b[:])
	return hex.EncodeToString(b[:])
}

func sortedKeys[V any](m map[string]V) []string {
	return slices.Sorted(maps.Keys(m))
}
