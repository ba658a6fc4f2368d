package node

import (
	"errors"
	"fmt"
	"slices"
	"time"

	"gantline/internal/control"
	"gantline/internal/receiver"
	"gantline/internal/record"
	"gantline/internal/volume"
)

// promotion is what would be done, and what speaks against it.
type promotion struct {
	group, self, from      string
	epoch                  uint64
	applied, cut, stored   record.Seq
	mark                   record.Seq // the old primary's durable mark, as heard
	heard                  time.Time  // of the old primary; zero: not in this run
	live, synchronous, unk bool       // connected now; mode sync; the cut lies before a record of an unknown volume
	refusals               []string
	moves                  []string // under way: they end with it
}

// planPromotion looks at what is here. The stream may still run: what it finds is exact once that has ended.
func (g *group) planPromotion(rec *groupRecord) (*promotion, error) {
	g.mu.Lock()
	rcv, app, vg, jnl := g.rcv, g.app, g.vg, g.jnl
	g.mu.Unlock()
	if rcv == nil || app == nil || vg == nil {
		if err := g.Err(); err != nil {
			return nil, refused("it has stopped here, and holds no image that can be told: %v", err)
		}
		return nil, refused("it is being opened here: repeat the command")
	}
	rs, as := rcv.Status(), app.Status()
	p := &promotion{group: g.name, self: g.n.cfg.Name, from: g.ousted(rec), stored: rs.Stored, applied: as.State.Applied,
		mark: rs.Mark, heard: rs.LastHeard, live: len(rs.Connected) > 0, synchronous: rec.Spec.Group.Mode == control.ModeSync}
	p.epoch = g.nextEpoch(rec, &rs)
	if err := errors.Join(vg.Err(), as.Err, jnl.Err()); err != nil {
		p.refuse("what it holds here cannot be served: %v", err)
		return p, nil
	}
	if len(rec.Members) == 0 {
		p.refuse("it has no pair, so there is nothing to be served")
	}
	p.moves = g.n.movesOf(g.name)
	inside := vg.Announced() > p.applied || !as.State.Consistent // before the next line: what is announced then is in it
	at, consistent := app.LastConsistent()
	if !consistent {
		p.refuse("it holds no consistent image: a resync with --allow-inconsistent has not ended here")
	}
	copied, upTo, err := g.scan(p.applied+1, at, inside)
	if err != nil {
		return nil, err
	}
	p.unk, p.cut = upTo < at, upTo
	if p.unk && inside && p.cut == p.applied {
		p.refuse("it stands inside a step, behind record %d, whose rest is of a volume that it was never told of: it holds no consistent "+
			"image; the manager tells this node of the pair once it reaches it: repeat the command then", p.applied)
	}
	for _, m := range rec.Members {
		if m.CopiedAt == 0 {
			m.CopiedAt = uint64(copied[m.Number])
		}
		if m.CopiedAt == 0 || m.CopiedAt > uint64(p.cut) {
			p.refuse("the initial copy of volume %s/%s has not ended: it holds no image; `gantline pair remove` takes it out while the "+
				"primary is there", g.n.cfg.Name, m.Volume)
		}
	}
	return p, nil
}

func (p *promotion) refuse(format string, args ...any) {
	p.refusals = append(p.refusals, fmt.Sprintf(format, args...))
}

// untoldEpochs are those of a move that this node has not been told of, because nobody could reach it: the target's and the source's.
const untoldEpochs = 2

// nextEpoch lies above every epoch that this node has heard of, also of those that were only permitted, and above those that a move
// may have taken since.
func (g *group) nextEpoch(rec *groupRecord, rs *receiver.Status) uint64 {
	top := max(rec.Epoch, rec.Spec.Group.Epoch)
	for _, row := range g.vg.Table() {
		top = max(top, row.Epoch)
	}
	for _, s := range rs.Sources {
		top = max(top, s.Epoch.Number)
	}
	for _, s := range rs.Permitted {
		top = max(top, s.Epoch.Number)
	}
	for _, m := range g.n.state.view().Moves {
		if m.Spec.Group.Name == g.name {
			top = max(top, m.SourceEpoch())
		}
	}
	return top + untoldEpochs + 1
}

// scan reads what is stored and not applied: it gives the volumes that these records say to be copied, and the last record
// before one of a volume that this node was never told of, which could not be applied, and whose step is left out whole.
// inStep: what is applied ends inside a step. If that is the one, it cannot be left out, and the answer is from-1.
func (g *group) scan(from, upTo record.Seq, inStep bool) (map[uint16]record.Seq, record.Seq, error) {
	copied := map[uint16]record.Seq{}
	before, last := from-1, from-1 // the last one outside a step, and the last one read
	found := false
	err := g.eachStored(from, upTo, func(r *record.Record) bool {
		if r.Op == record.OpBegin && !inStep { // where one is open it has been given up for this one
			inStep, before = true, last
		}
		if found = g.strange(r); found {
			return false
		}
		if n := copiedOf(r); n != 0 {
			copied[n] = r.Seq
		}
		inStep, last = inStep && r.Op != record.OpEnd, r.Seq
		return true
	})
	switch {
	case err != nil:
		return nil, 0, err
	case !found:
		return copied, upTo, nil
	case inStep:
		return copied, before, nil
	}
	return copied, last, nil
}

// eachStored reads the log from one record to another, until one is refused.
func (g *group) eachStored(from, upTo record.Seq, each func(*record.Record) bool) error {
	const records, bytes = 4096, 4 << 20
	for from <= upTo {
		recs, err := groupLog{g.jnl}.Read(from, records, bytes)
		if err != nil {
			return err
		}
		if len(recs) == 0 {
			return fmt.Errorf("the journal has no record %d", from)
		}
		for i := range recs {
			if recs[i].Seq > upTo || !each(&recs[i]) {
				return nil
			}
		}
		from = recs[len(recs)-1].Seq + 1
	}
	return nil
}

// unknownUpTo gives the volumes that this node was never told of, with their first records, among what is stored and not
// applied. A recovery reads all of it once it is announced, also steps that were given up.
func (g *group) unknownUpTo(upTo record.Seq) (map[record.VolumeNumber]record.Seq, error) {
	unknown, seen := map[record.VolumeNumber]record.Seq{}, map[record.VolumeNumber]bool{}
	err := g.eachStored(g.vg.Applied()+1, upTo, func(r *record.Record) bool {
		n := numberOf(r)
		if !seen[n] && g.unknown(n) {
			unknown[n] = r.Seq
		}
		seen[n] = true
		return true
	})
	return unknown, err
}

// strange: a record, or the note that its copy is complete, of a volume that is neither in the group here nor has left it.
func (g *group) strange(r *record.Record) bool { return g.unknown(numberOf(r)) }

// numberOf is the volume that must be known here before a record is applied, 0 for none.
func numberOf(r *record.Record) record.VolumeNumber {
	switch r.Op {
	case record.OpMember:
		return record.VolumeNumber(copiedOf(r))
	case record.OpDigest:
		return 0
	}
	return r.Volume
}

func (g *group) unknown(number record.VolumeNumber) bool {
	if number == 0 || g.vg.Volume(number) != nil {
		return false
	}
	gone, err := volume.Removed(groupLog{g.jnl})
	return err != nil || !slices.Contains(gone, number)
}

func (p *promotion) needsForce() string {
	return fmt.Sprintf("--force is needed: it does not ask %s, which is to be taken for lost. %s; %s. A hand-over that loses nothing is not "+
		"built yet", p.from, p.losses(), p.supersedes())
}

// losses says what is lost, as far as it is known here.
func (p *promotion) losses() string {
	known := uint64(0)
	if p.mark > p.cut {
		known = uint64(p.mark - p.cut)
	}
	text := fmt.Sprintf("Writes of %s behind record %d are lost; how many is not known here", p.from, p.cut)
	if known > 0 {
		text = fmt.Sprintf("Writes of %s behind record %d are lost: %d are known of, there may be more", p.from, p.cut, known)
	}
	if p.synchronous {
		text += "; none that was answered while the group was paired"
	}
	if !p.heard.IsZero() {
		text += fmt.Sprintf("; last heard of %s at %s", p.from, p.heard.UTC().Format(time.RFC3339))
	}
	return text
}

func (p *promotion) supersedes() string {
	if p.live {
		return fmt.Sprintf("node %s is connected and serves hosts now: it is superseded and refuses them from then on", p.from)
	}
	return fmt.Sprintf("node %s is superseded: it refuses hosts once it hears of it", p.from)
}

func (p *promotion) view() *control.PlanView {
	v := &control.PlanView{Plan: []string{}, Refusals: p.refusals}
	if v.Refusals == nil {
		v.Refusals = []string{}
	}
	if p.cut > p.applied {
		v.Plan = append(v.Plan, fmt.Sprintf("node %s: apply records %d to %d, which are stored", p.self, p.applied+1, p.cut))
	}
	if p.stored > p.cut {
		why := "of a step whose end has not come"
		if p.unk {
			why = "from the first one of a volume that this node was never told of"
		}
		v.Plan = append(v.Plan, fmt.Sprintf("node %s: drop records %d to %d, %s", p.self, p.cut+1, p.stored, why))
	}
	v.Plan = append(v.Plan, fmt.Sprintf("node %s: serve group %s in epoch %d from record %d on", p.self, p.group, p.epoch, p.cut+1),
		p.losses(), p.supersedes())
	return v
}
