package manager

import (
	"context"
	"fmt"
	"strings"
	"time"

	"gantline/internal/control"
)

// A node that is gone for good in the middle of the move of something that is not copied anywhere: a volume in no group, or a group whose
// secondary was promoted. Each of source and target then has what nobody else has, and so it takes the operator's word to go on without it:
//
//	source, behind the decision, not filled   what is absent at the target reads as zeros; the move ends there
//	target, behind the decision               the source serves again, in e+2, as of the cut
//
// The target that is given up has served in e+1. A gateway that has been told of writes there ends its hosts' connections.

// loseUncopied decides, in c, how such a move goes on without f's node, or refuses. done: f needs no more of this group.
func (m *Manager) loseUncopied(ctx context.Context, c *change, f *lostNode, mg got[control.Migration], g got[control.Group]) (done bool, err error) {
	v := &mg.V
	refuse := func(format string, args ...any) (bool, error) {
		return false, control.Errorf(control.KindRefused, "node "+f.Node+" is in use by migration "+v.ID+" of "+v.What()+" (phase \""+v.Phase+"\"): "+
			format, args...)
	}
	decided := v.Decided == control.DecidedTarget
	switch {
	case !f.forget:
		return refuse("end that first: `gantline migrate abort %s` until it is decided, `gantline migrate commit %s` once it is filled; if the node is "+
			"gone for good, use --forget", v.ID, v.ID)
	case v.Source == f.Node && (v.Phase == control.PhaseFilled || v.SourceLost || v.Returning()):
		c.hold(mg.Key, mg.Rev) // the target has all, or it is known what it lacks; or nobody has it but this node
		f.Groups = append(f.Groups, g.V.Name)
		return g.V.Primary != f.Node, nil
	case !decided:
		return refuse("end that first: `gantline migrate abort %s`", v.ID)
	case v.Target == f.Node && v.Commit && v.Done(control.StepDeregister):
		c.hold(mg.Key, mg.Rev) // the source has been let go of: the volumes are lost with this node
		f.Groups = append(f.Groups, g.V.Name)
		return true, nil
	case v.Target == f.Node && !f.loss:
		return refuse("what hosts have written there since the decision, at %s, is nowhere else; start it. If it is gone for good, --accept-loss has "+
			"%s serve as of then, and ends the connections of hosts", decidedAt(v).Format(time.RFC3339), v.Source)
	case v.Target == f.Node:
		return true, m.loseTarget(ctx, c, f, mg, g)
	}
	lost, err := m.lostWith(ctx, v)
	if err != nil {
		return false, err
	}
	if !f.loss {
		return refuse("nobody else has what is absent at %s: %s; start it. If it is gone for good, --accept-loss has that read as zeros",
			v.Target, strings.Join(lost, ", "))
	}
	v.SourceLost, v.Lost = true, nil
	for _, l := range lost {
		v.Lost = append(v.Lost, "lost, reads as zeros: "+l)
	}
	c.put(mg.Key, mg.Rev, v).event("migration/"+v.ID, "lost", "command", "move of %s from %s to %s: %s is gone for good, and with it: %s", v.What(), v.Source,
		v.Target, v.Source, strings.Join(lost, ", "))
	f.Groups, f.moves = append(f.Groups, g.V.Name), append(f.moves, v.ID)
	return true, nil
}

// lostWith lists what a source that is gone takes with it, by the target's word.
func (m *Manager) lostWith(ctx context.Context, mg *control.Migration) ([]string, error) {
	var st control.MigrationStatus
	if err := m.nodes.call(ctx, mg.Target, control.CallMigrateStatus, control.MigrationID{ID: mg.ID}, &st, callTimeout); err != nil {
		return nil, fmt.Errorf("what is lost with %s is not known: %w", mg.Source, err)
	}
	if len(st.AtRisk) == 0 {
		return nil, control.Errorf(control.KindRefused, "node %s: migration %s: %s has not found out yet what it lacks; repeat the command in some seconds",
			mg.Source, mg.ID, mg.Target)
	}
	return st.AtRisk, nil
}

// loseTarget gives what moved to the source again, in c. What is to be done is done by the loop, until it is acknowledged.
func (m *Manager) loseTarget(ctx context.Context, c *change, f *lostNode, mg got[control.Migration], g got[control.Group]) error {
	v := &mg.V
	var st control.MigrationStatus
	err := m.nodes.call(ctx, v.Source, control.CallMigrateStatus, control.MigrationID{ID: v.ID}, &st, callTimeout)
	if err != nil {
		return fmt.Errorf("whether %s can serve again is not known: %w", v.Source, err)
	}
	if st.Phase == control.PhaseCommitted {
		return control.Errorf(control.KindRefused, "node %s: migration %s is being committed, and %s has been let go of: what moved is lost with %s; "+
			"`gantline migrate commit %s` has to end first", f.Node, v.ID, v.Source, f.Node, v.ID)
	}
	if err := m.leadVvols(ctx, c, v, false); err != nil {
		return err
	}
	for _, mv := range v.Volumes {
		f.led[mv.Target] = true
	}
	ownGroup(&g.V, v, false, v.Epoch+2)
	at := decidedAt(v).Format(time.RFC3339)
	v.TargetLost, v.Commit = true, false
	failMove(v, "", fmt.Sprintf("%s is gone for good; what hosts wrote there since %s is lost, %s serves as of then", v.Target, at, v.Source), true)
	c.put(mg.Key, mg.Rev, v).put(g.Key, g.Rev, g.V).event("migration/"+v.ID, control.PhaseFailed, "command", "move of %s from %s to %s: %s", v.What(),
		v.Source, v.Target, v.Error)
	f.moves = append(f.moves, v.ID)
	return nil
}
