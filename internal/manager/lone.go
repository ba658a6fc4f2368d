package manager

import (
	"context"
	"errors"
	"slices"
	"strconv"
	"strings"
	"time"

	"gantline/internal/control"
)

// The move of a volume that is in no group. It is the move of a group that has this volume, no secondary and a log in memory, so that
// no journal is needed at either node. The group is made with the move's record, in one transaction, and goes in the one that ends
// the move: committed, aborted or gone back, the volume is in no group again. The node that serves is told to end it before that;
// a manager that dies in between tells it again. The record of the move stays, for who asks how it has ended.

// maxLoneMoves is how many records of moves that have ended are kept of volumes in no group; the oldest goes first. A volume's latest
// replaces those before it.
const maxLoneMoves = 256

// loneStart is moveStart for a volume in no group.
func (m *Manager) loneStart(ctx context.Context, in control.MoveRequest) (string, error) {
	full := in.Group
	if _, _, err := control.SplitOwned("volume", full); err != nil {
		return "", err
	}
	switch {
	case in.Journal != "":
		return "", control.Errorf(control.KindUsage, "volume %s is in no group: its move needs no journal, --journal does not go with it", full)
	case in.Backlog == control.BacklogCarry:
		return "", control.Errorf(control.KindUsage, "volume %s is in no group: it has no backlog, --backlog carry does not go with it", full)
	case in.Mirror:
		return "", control.NotBuilt("migrate start --mirror of a volume in no group")
	}
	unlock, err := m.locks.lock(ctx, "group/"+control.LoneGroup(full), "owned/"+full)
	if err != nil {
		return "", err
	}
	defer unlock()
	return attempt(ctx, func() (string, error) {
		g, known, err := find[control.Group](ctx, m, control.KindGroup, control.LoneGroup(full))
		if err != nil {
			return "", err
		}
		latest, exists, err := m.latestMove(ctx, control.LoneGroup(full))
		if err != nil {
			return "", err
		}
		if known && exists {
			if id, err := joinMove(&latest.V, &g.V, in); id != "" || err != nil {
				return id, err
			}
			return "", control.Errorf(control.KindRefused, "volume %s: migration %s has not ended yet", full, latest.V.ID)
		}
		if id, err := m.loneAgain(ctx, full, latest, exists, in); id != "" || err != nil {
			return id, err
		}
		return m.loneMove(ctx, full, latest, exists, in)
	})
}

// loneAgain says what another start means behind the latest move of a volume: the id of that one, if the volume has gone there by it,
// or a refusal.
func (m *Manager) loneAgain(ctx context.Context, full string, latest got[control.Migration], exists bool, in control.MoveRequest) (string, error) {
	there := exists && latest.V.Phase == control.PhaseCommitted && latest.V.Target == in.To
	v, known, err := find[control.Volume](ctx, m, control.KindVolume, full)
	switch {
	case err != nil:
		return "", err
	case !known && there:
		return latest.V.ID, nil // and what was left at the source has been deleted
	case !known:
		return "", notFound(control.KindVolume, full)
	case v.V.Group != "":
		return "", control.Errorf(control.KindRefused, "volume %s is in %s, %s", full, inGroup(v.V.Group),
			map[bool]string{true: "commit it first", false: "which moves as one"}[control.ForMove(v.V.Group)])
	}
	st := m.live(ctx, v.V.Node)[v.V.Node]
	if st == nil {
		return "", control.Errorf(control.KindUnreachable, "node %s does not answer; is its process running?", v.V.Node)
	}
	i := slices.IndexFunc(st.Volumes, func(s control.VolumeStatus) bool { return s.Name == v.V.Name })
	switch {
	case i < 0:
		return "", control.Errorf(control.KindRefused, "volume %s: its node does not have it", full)
	case st.Volumes[i].Role == control.RoleRetired && there:
		return latest.V.ID, nil
	case st.Volumes[i].Role == control.RoleRetired:
		return "", control.Errorf(control.KindRefused, "volume %s was given up by a move, and is of the past: it may be deleted", full)
	case st.Volumes[i].Role != control.RoleLone:
		return "", control.Errorf(control.KindRefused, "volume %s: its node has it as %s in group %q", full, st.Volumes[i].Role, st.Volumes[i].Group)
	}
	if !exists {
		return "", nil
	}
	return "", unacknowledged(&latest.V, v.V.Node, in.To)
}

// loneMove makes the group and the move's record, and sets the loop going.
func (m *Manager) loneMove(ctx context.Context, full string, latest got[control.Migration], exists bool, in control.MoveRequest) (string, error) {
	v, err := load[control.Volume](ctx, m, control.KindVolume, full)
	if err != nil {
		return "", err
	}
	if err := m.room(ctx, control.KindGroup); err != nil {
		return "", err
	}
	g := &control.Group{Name: control.LoneGroup(full), Lone: full, Settings: control.DefaultSettings(), Primary: v.V.Node, NextNumber: 2, Revision: 1,
		Pairs: []control.Pair{{Number: 1, Primary: full, Size: v.V.Size}}}
	g.Log = control.LogQueue
	past, err := m.newEpoch(ctx, g)
	if err != nil {
		return "", err
	}
	if exists {
		g.Migrations = moveNumber(&latest.V)
	}
	mg, c, err := m.newMove(ctx, g, in)
	if err != nil {
		return "", err
	}
	mg.Lone = full
	if err := m.checkMove(ctx, mg, g); err != nil {
		return "", err
	}
	if planOf(ctx) != nil {
		return mg.ID, nil
	}
	g.Migrations++
	v.V.Group = g.Name
	if err := m.forgetLone(ctx, c, g.Name); err != nil {
		return "", err
	}
	return m.begin(ctx, c.hold(past.Key, past.Rev).put(v.Key, v.Rev, v.V).put(control.Key(control.KindGroup, g.Name), 0, g), mg)
}

// newEpoch gives a group that is made for a move an epoch above all that gateways may have heard of for its volume, which has been in
// other groups before, perhaps, that are there still.
func (m *Manager) newEpoch(ctx context.Context, g *control.Group) (got[pastEpochs], error) {
	past, _, err := find[pastEpochs](ctx, m, keyPast, "groups")
	if err != nil {
		return past, err
	}
	g.Epoch = past.V.Highest + 1
	groups, err := loadAll[control.Group](ctx, m, control.KindGroup)
	for _, o := range groups {
		g.Epoch = max(g.Epoch, o.V.Epoch+3) // its move may have opened the two behind
	}
	return past, err
}

// latestLone is the latest move of a volume in no group, by the name of the group that it moves in.
func (m *Manager) latestLone(ctx context.Context, group string) (latest got[control.Migration], exists bool, err error) {
	all, err := loadAll[control.Migration](ctx, m, control.KindMigration)
	for _, mg := range all {
		if mg.V.Group == group && (!exists || moveNumber(&mg.V) > moveNumber(&latest.V)) {
			latest, exists = mg, true
		}
	}
	return latest, exists, err
}

// moveNumber is N of a move's id G-N.
func moveNumber(mg *control.Migration) int {
	n, _ := strconv.Atoi(mg.ID[strings.LastIndexByte(mg.ID, '-')+1:]) // it is one of ours
	return n
}

// forgetLone removes, in c, records of moves that have ended: those of the volume that moves anew, and the oldest of more than are kept.
func (m *Manager) forgetLone(ctx context.Context, c *change, name string) error {
	all, err := loadAll[control.Migration](ctx, m, control.KindMigration)
	if err != nil {
		return err
	}
	var kept []got[control.Migration]
	for _, mg := range all {
		switch {
		case mg.V.Lone == "" || !control.Ended(mg.V.Phase) || len(mg.V.Undo) > 0:
		case mg.V.Group == name:
			c.del(mg.Key, mg.Rev)
		default:
			kept = append(kept, mg)
		}
	}
	slices.SortFunc(kept, func(a, b got[control.Migration]) int { return lastStep(&a.V).Compare(lastStep(&b.V)) })
	for _, mg := range kept[:max(0, len(kept)-maxLoneMoves+1)] {
		c.del(mg.Key, mg.Rev)
	}
	return nil
}

// lastStep is when a move has come to its latest step; one that has come to none is the oldest.
func lastStep(mg *control.Migration) (at time.Time) {
	for _, s := range mg.Steps {
		if s.At.After(at) {
			at = s.At
		}
	}
	return at
}

// joinLone has the source take the volume into the move's group.
func (m *Manager) joinLone(ctx context.Context, name string) error {
	unlock, err := m.locks.lock(ctx, "group/"+name)
	if err != nil {
		return err
	}
	defer unlock()
	g, err := load[control.Group](ctx, m, control.KindGroup, name)
	if err != nil {
		return err
	}
	away, err := m.pushGroup(ctx, &g.V)
	if err == nil && len(away) > 0 {
		err = control.Errorf(control.KindUnreachable, "node %s does not answer; is its process running?", away[0])
	}
	return err
}

// endLone has the node that serves end the group of a lone volume's move, and then end stores, in one transaction with the group's end,
// what that is the end of. Nobody tells a node of the group in between, or after it.
func (m *Manager) endLone(ctx context.Context, mg *control.Migration, node string, end func(c *change, v *control.Migration) bool) error {
	unlock, err := m.locks.lock(ctx, "group/"+mg.Group)
	if err != nil {
		return err
	}
	defer unlock()
	if _, exists, err := find[control.Node](ctx, m, control.KindNode, node); err != nil {
		return err
	} else if exists {
		err := m.do(ctx, node, control.CallGroupDelete, mg.Group, control.NameOnly{Name: mg.Group}, nil, callTimeout)
		if err != nil && control.KindOf(err) != control.KindNotFound {
			return err
		}
	}
	m.point(control.PointUngroup, "before")
	var failed error
	_, err = m.editMove(ctx, mg.ID, func(c *change, v *control.Migration) bool {
		if !end(c, v) {
			return false
		}
		failed = m.dropLone(ctx, c, v)
		return failed == nil
	})
	if err = errors.Join(err, failed); err == nil {
		m.point(control.PointUngroup, "after")
	}
	return err
}

// dropLone removes the group of a lone volume's move, in c: the volumes of the side that serves are in no group any more.
func (m *Manager) dropLone(ctx context.Context, c *change, mg *control.Migration) error {
	g, exists, err := find[control.Group](ctx, m, control.KindGroup, mg.Group)
	if err != nil || !exists {
		return err
	}
	for _, p := range g.V.Pairs {
		v, exists, err := find[control.Volume](ctx, m, control.KindVolume, p.Primary)
		if err != nil {
			return err
		}
		if exists && v.V.Group == mg.Group {
			v.V.Group = ""
			c.put(v.Key, v.Rev, v.V)
		}
	}
	c.del(g.Key, g.Rev)
	g.V.Epoch = max(g.V.Epoch, mg.Epoch+2) // whoever has heard of the move may have heard of that
	return m.rememberEpochs(ctx, c, &g.V, []got[control.Migration]{{V: *mg}})
}

// commitLone ends the move of a lone volume, of which both nodes have let go: from the first transaction on a repeat does not ask
// them whether they may.
func (m *Manager) commitLone(ctx context.Context, mg *control.Migration) error {
	m.point(control.StepDeregister, "before")
	_, err := m.editMove(ctx, mg.ID, func(_ *change, v *control.Migration) bool {
		return v.Note(control.StepAt(control.StepDeregister, time.Now()))
	})
	if err != nil {
		return err
	}
	m.point(control.StepDeregister, "after")
	// The source has retired: the record of that goes too.
	if err := m.nodes.call(ctx, mg.Source, control.CallGroupDelete, control.NameOnly{Name: mg.Group}, nil, callTimeout); err != nil &&
		control.KindOf(err) != control.KindNotFound {
		return err
	}
	var failed error
	err = m.endLone(ctx, mg, mg.Target, func(c *change, v *control.Migration) bool {
		if !v.Advance(control.PhaseCommitted) {
			return false
		}
		_, failed = m.freeSide(ctx, c, v, false, false)
		return failed == nil
	})
	return errors.Join(err, failed)
}

// inGroup names what a volume is in, for people.
func inGroup(name string) string {
	if control.ForMove(name) {
		return "a move that has not ended (`gantline migrate show " + name + "`)"
	}
	return "group " + name
}

// byCommand refuses a command on a group that was made for a move: nobody knows it but the move.
func byCommand(name string) error {
	if control.ForMove(name) {
		return notFound(control.KindGroup, name)
	}
	return nil
}
