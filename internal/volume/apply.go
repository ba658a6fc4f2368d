package volume

import (
	"fmt"
	"slices"

	"gantline/internal/record"
)

// Intend announces that the step whose end is upTo will be applied. It is durable on return: from now on recovery and
// Close finish the step from the group's own log, where all of it must be durable, so that no half of it is ever the
// image.
func (g *Group) Intend(upTo record.Seq) error {
	if d := g.log.Cursors().Durable; upTo > d {
		return fmt.Errorf("%w: step ends at %d, durable is %d", ErrNotDurable, upTo, d)
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.intend(upTo)
}

// Announced is the end of the step that was announced last since the group was opened, applied or not; 0 before one was.
func (g *Group) Announced() record.Seq {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.intent
}

func (g *Group) intend(upTo record.Seq) error {
	if g.Role() != RoleFollowing {
		return fmt.Errorf("%w: group %s is %s", ErrRole, g.cfg.Name, g.Role())
	}
	if upTo <= g.intent {
		return nil
	}
	if err := g.saveMeta(func(m *meta) { m.Applied = max(m.Applied, upTo) }); err != nil {
		return err
	}
	g.intent = upTo
	return nil
}

// Apply puts records of a follower's own durable log into the image, in sequence order. What has been applied is
// skipped; a gap (but before a step's begin), a record outside the epoch table or not durable here, and one for an
// unknown volume stop it there with an error, what came before stands. A step must have been announced by Intend, or
// come whole. All volumes of the group advance together: when Apply stands still, all are at Applied.
func (g *Group) Apply(recs []record.Record) error {
	for len(recs) > 0 {
		g.waitRoom()
		n, applied, err := g.applySome(recs)
		if err != nil {
			return fmt.Errorf("group %s: applying: %w", g.cfg.Name, err)
		}
		if r := recs[n-1]; applied && g.cfg.OnRecord != nil && isControl(r.Op) {
			g.cfg.OnRecord(r)
		}
		recs = recs[n:]
	}
	return nil
}

func isControl(op record.Op) bool {
	return op == record.OpMember || op == record.OpDigest || op == record.OpEnd || op == record.OpFence
}

// applySome applies up to and including the next control record and returns how many it has consumed, and whether the
// last of them was applied just now.
func (g *Group) applySome(recs []record.Record) (n int, applied bool, err error) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if err := g.Err(); err != nil {
		return 0, false, err
	}
	if g.Role() != RoleFollowing {
		return 0, false, fmt.Errorf("%w: group is %s", ErrRole, g.Role())
	}
	skip := 0
	for skip < len(recs) && recs[skip].Seq <= g.Tip() {
		skip++
	}
	if skip == len(recs) {
		return skip, false, nil
	}
	table, durable := g.log.Table(), g.log.Cursors().Durable
	tip := g.Tip()
	for n = skip; n < len(recs); {
		if err = g.mayApply(recs[n:], tip, durable, table); err != nil {
			break
		}
		tip = recs[n].Seq
		n++
		if isControl(recs[n-1].Op) {
			break
		}
	}
	if n > skip {
		g.applyRun(recs[skip:n])
		return n, true, nil // an error comes again with the next call
	}
	return 0, false, err
}

// mayApply checks recs[0] against what has been applied so far.
func (g *Group) mayApply(recs []record.Record, tip, durable record.Seq, table record.Table) error {
	r := &recs[0]
	switch {
	case r.Seq != tip+1 && (r.Op != record.OpBegin || r.Seq <= tip):
		return fmt.Errorf("%w: %d after %d", ErrGap, r.Seq, tip)
	case r.Seq > durable:
		return fmt.Errorf("%w: %d, durable is %d", ErrNotDurable, r.Seq, durable)
	case !inTable(table, r):
		return fmt.Errorf("%w: %d in epoch %d.%d", ErrEpoch, r.Seq, r.Epoch, r.Incarnation)
	}
	if r.Op == record.OpBegin && r.Flags&record.FlagAtOnce == 0 {
		if err := g.announceStep(recs); err != nil {
			return err
		}
	}
	if r.Op == record.OpMember {
		return g.holds(r)
	}
	if r.Volume == 0 || r.Op == record.OpDigest {
		return nil
	}
	m := g.member(r.Volume)
	if m == nil {
		g.metaMu.Lock()
		defer g.metaMu.Unlock()
		if slices.Contains(g.meta.Removed, r.Volume) {
			return nil
		}
		return fmt.Errorf("%w: %d, volume %d", ErrUnknownVolume, r.Seq, r.Volume)
	}
	if int64(r.Offset) < 0 || int64(r.Offset)+int64(r.Length) > m.vol.Size() {
		return fmt.Errorf("%d lies outside volume %s of %d bytes: if the primary's is larger, resize that to its size again "+
			"(`gantline volume resize`), and restart this node", r.Seq, m.vol.name, m.vol.Size())
	}
	return nil
}

// announceStep lets a step begin that was announced, or that recs hold whole.
func (g *Group) announceStep(recs []record.Record) error {
	if g.intent > recs[0].Seq {
		return nil
	}
	for i := range recs {
		if recs[i].Op == record.OpEnd {
			return g.intend(recs[i].Seq)
		}
	}
	return fmt.Errorf("%w: begin at %d", ErrStep, recs[0].Seq)
}

// inTable says whether the row that holds the sequence is the record's own: an older epoch is right below its cut and
// wrong beyond it.
func inTable(table record.Table, r *record.Record) bool {
	row, ok := table.At(r.Seq)
	return ok && row.Epoch == r.Epoch && row.Incarnation == r.Incarnation
}

func (g *Group) applyRun(recs []record.Record) {
	g.spread(recs)
	g.passed(recs)
	bytes := int64(0)
	for i := range recs {
		bytes += int64(len(recs[i].Data)) + segmentOverhead
	}
	g.noteCached(bytes)
}

// finishStep applies the rest of an announced step from the group's own log.
func (g *Group) finishStep() error {
	g.mu.Lock()
	upTo := g.intent
	g.mu.Unlock()
	for g.Role() == RoleFollowing && g.Tip() < upTo {
		recs, err := g.log.Read(g.Tip()+1, replayRecords, replayBytes)
		if err != nil {
			return err
		}
		for i := range recs {
			if recs[i].Seq > upTo {
				recs = recs[:i]
				break
			}
		}
		if len(recs) == 0 {
			return fmt.Errorf("%w: the log does not hold the step up to %d", ErrStep, upTo)
		}
		if err := g.Apply(recs); err != nil {
			return err
		}
		if err := g.roundNow(); err != nil {
			return err
		}
	}
	return nil
}
