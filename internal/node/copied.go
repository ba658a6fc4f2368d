package node

import (
	"context"
	"encoding/json"
	"time"

	"gantline/internal/record"
	"gantline/internal/volume"
)

// copiedNote is the member record by which a primary says that a volume's initial copy is complete: all of it lies before
// that record. A secondary may be promoted only if it has it, for each of its volumes.
type copiedNote struct {
	Copied uint16 `json:"copied"`
}

// copiedLook is how often the secondary's acknowledgement of such a record is looked for.
const copiedLook = 5 * time.Millisecond

// tellCopied has the secondary know that volumes are copied. False: it was cut off meanwhile, and is to be told anew.
func (g *group) tellCopied(ctx context.Context, members []memberRecord) (bool, error) {
	var last record.Seq
	for _, m := range members {
		payload, err := json.Marshal(copiedNote{m.Number})
		if err != nil {
			return false, err
		}
		if last, err = g.vg.Append(record.OpMember, record.VolumeNumber(m.Number), payload); err != nil {
			return false, err
		}
	}
	tick := time.NewTicker(copiedLook)
	defer tick.Stop()
	for {
		if _, _, applied := g.sub.Cursor(); applied >= last {
			return true, nil
		}
		if g.sub.State() != volume.SubStreaming {
			return false, nil
		}
		select {
		case <-ctx.Done():
			return false, context.Cause(ctx)
		case <-tick.C:
		}
	}
}

// copiedOf is the volume that a record says to be copied, 0 for all other records.
func copiedOf(r *record.Record) uint16 {
	if r.Op != record.OpMember {
		return 0
	}
	var note copiedNote
	if json.Unmarshal(r.Data, &note) != nil {
		return 0
	}
	return note.Copied
}

// noteCopied keeps which volumes are complete, from which record on, before any of recs is applied: one that is applied may
// not be read again.
func (g *group) noteCopied(recs []record.Record) error {
	for i := range recs {
		number := copiedOf(&recs[i])
		if number == 0 {
			continue
		}
		if rec := g.n.state.view().Groups[g.name]; rec == nil || rec.member(number) == nil || rec.member(number).CopiedAt != 0 {
			continue
		}
		if err := g.updateMember(number, func(m *memberRecord) { m.CopiedAt = uint64(recs[i].Seq) }); err != nil {
			return err
		}
	}
	return nil
}
