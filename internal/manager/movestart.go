package manager

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"sync"

	"gantline/internal/control"
)

// checkMoveFlags refuses what is not built and what never was.
func checkMoveFlags(in *control.MoveRequest) error {
	for _, f := range []struct {
		flag   string
		value  *string
		values []string
	}{
		{"strategy", &in.Strategy, []string{control.StrategySwitchFirst, control.StrategyCopyFirst}},
		{"backlog", &in.Backlog, []string{control.BacklogDrain, control.BacklogCarry}},
		{"in-flight", &in.InFlight, []string{inFlightFinish, inFlightHold, inFlightError}},
		{"paths", &in.Paths, []string{control.PathsAll, control.PathsOneByOne}},
	} {
		switch n := slices.Index(f.values, *f.value); {
		case *f.value == "":
			*f.value = f.values[0]
		case n < 0:
			return control.Errorf(control.KindUsage, "--%s %q: it is %s", f.flag, *f.value, strings.Join(f.values, " or "))
		}
	}
	switch {
	case in.Mirror:
		return control.NotBuilt("migrate start --mirror")
	case in.StopAt != "" && in.StopAt != control.PhaseRegistered && in.StopAt != control.PhaseSwitched:
		return control.Errorf(control.KindUsage, "--stop-at %q: it is registered or switched", in.StopAt)
	case in.Limit < 0:
		return control.Errorf(control.KindUsage, "--limit %d: bytes a second, 0 for none", in.Limit)
	case strings.Contains(in.Group, "/"):
		return control.CheckNode(in.To)
	}
	if err := control.CheckName("group", in.Group); err != nil {
		return err
	}
	return control.CheckNode(in.To)
}

// moveStart registers a move and sets its loop going; it returns the move's id.
func (m *Manager) moveStart(ctx context.Context, in control.MoveRequest) (string, error) {
	if err := checkMoveFlags(&in); err != nil {
		return "", err
	}
	if strings.Contains(in.Group, "/") {
		return m.loneStart(ctx, in)
	}
	unlock, err := m.locks.lock(ctx, "group/"+in.Group)
	if err != nil {
		return "", err
	}
	defer unlock()
	g, err := load[control.Group](ctx, m, control.KindGroup, in.Group)
	if err != nil {
		return "", err
	}
	latest, exists, err := m.latestMove(ctx, in.Group)
	if err != nil {
		return "", err
	}
	if exists {
		id, err := joinMove(&latest.V, &g.V, in)
		if err = weigh(ctx, err); id != "" || err != nil {
			return id, err
		}
	}
	mg, c, err := m.newMove(ctx, &g.V, in)
	if err != nil {
		return "", err
	}
	if err := m.checkMove(ctx, mg, &g.V); err != nil {
		return "", err
	}
	if planOf(ctx) != nil {
		return mg.ID, nil
	}
	g.V.Migrations++
	g.V.Revision++
	return m.begin(ctx, c.put(g.Key, g.Rev, g.V), mg)
}

// begin stores a move with what else begins with it, in c, and sets its loop going. It returns the move's id.
func (m *Manager) begin(ctx context.Context, c *change, mg *control.Migration) (string, error) {
	c.put(control.Key(control.KindMigration, mg.ID), 0, mg).
		event("migration/"+mg.ID, "started", "command", "move of %s from %s to %s", mg.What(), mg.Source, mg.Target)
	m.point(control.StepRegister, "before")
	if _, err := m.commit(ctx, c); err != nil {
		return "", err
	}
	m.point(control.StepRegister, "after")
	m.moves.kick(ctx, mg.ID)
	return mg.ID, nil
}

// joinMove says what a second start means: the id of a move to the same target, or a refusal.
func joinMove(latest *control.Migration, g *control.Group, in control.MoveRequest) (string, error) {
	to := in.To
	switch {
	case latest.Returning():
		return "", control.Errorf(control.KindRefused, "%s: migration %s is being aborted; wait until it is (`gantline wait migration %s "+
			"--for phase=aborted`)", g.What(), latest.ID, latest.ID)
	case !control.Ended(latest.Phase) && latest.StopAt != "" && latest.StopAt != in.StopAt && latest.Target == to &&
		!control.After(latest.Phase, control.PhasePending):
		return "", control.Errorf(control.KindRefused, "%s: migration %s is to stop when it is %s; let it go on with `gantline migrate "+
			"continue %s`", g.What(), latest.ID, latest.StopAt, latest.ID)
	case !control.Ended(latest.Phase) && latest.Target == to:
		return latest.ID, nil
	case !control.Ended(latest.Phase):
		return "", control.Errorf(control.KindRefused, "%s: migration %s to %s is in phase %q; commit it first",
			g.What(), latest.ID, latest.Target, latest.Phase)
	case latest.Phase == control.PhaseCommitted && latest.Target == to && g.Primary == to:
		return latest.ID, nil
	}
	return "", unacknowledged(latest, g.Primary, g.CopiesTo(), to)
}

// unacknowledged refuses to begin while one of the nodes has not heard how the latest move has ended.
func unacknowledged(latest *control.Migration, nodes ...string) error {
	for _, entry := range latest.Undo {
		if node := parseUndo(entry).node; slices.Contains(nodes, node) {
			return control.Errorf(control.KindRefused, "%s: node %s has not acknowledged the end of migration %s yet; is it running?", latest.What(),
				node, latest.ID)
		}
	}
	return nil
}

// newMove builds the record, with the transaction that takes the target's existing volumes and journal.
func (m *Manager) newMove(ctx context.Context, g *control.Group, in control.MoveRequest) (*control.Migration, *change, error) {
	refuse := func(format string, args ...any) error {
		return control.Errorf(control.KindRefused, g.What()+" cannot move: "+format, args...)
	}
	if _, err := load[control.Node](ctx, m, control.KindNode, in.To); err != nil {
		return nil, nil, err
	}
	switch {
	case in.To == g.Primary && g.Lone != "":
		return nil, nil, refuse("it is on %s already", in.To)
	case in.To == g.Primary:
		return nil, nil, refuse("%s is its primary already", in.To)
	case in.To == g.CopiesTo():
		return nil, nil, refuse("%s is its secondary", in.To)
	case in.To == g.Secondary:
		return nil, nil, refuse("%s was its primary until %s was promoted, and keeps what only it has; the way back (`group failback`) is not built "+
			"yet", in.To, g.Promotion.By(g.Primary))
	}
	if why := control.CannotCarry(g); in.Backlog == control.BacklogCarry && why != "" {
		return nil, nil, refuse("%s", why)
	}
	mg := &control.Migration{
		ID: fmt.Sprintf("%s-%d", g.Name, g.Migrations+1), Group: g.Name, Source: g.Primary, Target: in.To, Strategy: in.Strategy,
		Backlog: in.Backlog, InFlight: in.InFlight, Paths: in.Paths, Limit: in.Limit, Commit: in.Commit, Epoch: g.Epoch, StopAt: in.StopAt,
		SourceJournal: g.PrimaryJournal, Steps: []control.Step{}, MadeVolumes: []string{}, Undo: []string{},
	}
	c := m.change()
	there := m.live(ctx, in.To)[in.To]
	if there == nil {
		return nil, nil, control.Errorf(control.KindUnreachable, "node %s does not answer; is its process running?", in.To)
	}
	mapped := 0
	for _, p := range g.Pairs {
		mv := control.MovedVolume{Number: p.Number, Source: p.Primary, Target: in.Map[p.Primary], Size: p.Size}
		if mv.Target == "" {
			mv.Target = in.To + "/" + control.BaseOf(p.Primary)
			if err := weigh(ctx, m.absent(ctx, c, mv.Target, there, "--map "+p.Primary+"="+mv.Target)); err != nil {
				return nil, nil, err
			}
			mg.MadeVolumes = append(mg.MadeVolumes, mv.Target)
		} else {
			mapped++
			if err := weigh(ctx, m.takeTarget(ctx, c, mg, mv)); err != nil {
				return nil, nil, err
			}
		}
		mg.Volumes = append(mg.Volumes, mv)
	}
	if mapped != len(in.Map) {
		return nil, nil, control.Errorf(control.KindUsage, "--map names %d volumes, of which %d are what moves with %s",
			len(in.Map), mapped, g.What())
	}
	err := weigh(ctx, m.moveJournal(ctx, c, mg, in.Journal, there))
	return mg, c, err
}

// absent refuses a name that the target has already, in the store or on the node.
func (m *Manager) absent(ctx context.Context, c *change, full string, there *control.NodeStatus, use string) error {
	base := control.BaseOf(full)
	has := slices.ContainsFunc(there.Volumes, func(v control.VolumeStatus) bool { return v.Name == base }) ||
		slices.ContainsFunc(there.Journals, func(j control.JournalStatus) bool { return j.Name == base })
	for _, kind := range []string{control.KindVolume, control.KindJournal} {
		key := control.Key(kind, full)
		if _, err := m.store.Get(ctx, key); err == nil {
			has = true
		}
		c.hold(key, 0)
	}
	if has {
		return control.Errorf(control.KindRefused, "%s is there already; to have it overwritten name it with %s, or delete it", full, use)
	}
	return nil
}

// takeTarget takes a mapped volume, which will be overwritten.
func (m *Manager) takeTarget(ctx context.Context, c *change, mg *control.Migration, mv control.MovedVolume) error {
	node, _, err := control.SplitOwned("volume", mv.Target)
	if err != nil {
		return err
	}
	refuse := func(format string, args ...any) error {
		return control.Errorf(control.KindRefused, "volume "+mv.Target+" cannot be a target: "+format, args...)
	}
	if node != mg.Target {
		return refuse("it is on node %s, the move goes to %s", node, mg.Target)
	}
	v, err := load[control.Volume](ctx, m, control.KindVolume, mv.Target)
	if err != nil {
		return err
	}
	vvols, err := m.vvolsOf(ctx, mv.Target)
	switch {
	case err != nil:
		return err
	case v.V.Group != "":
		return refuse("it is in %s", inGroup(v.V.Group))
	case v.V.Size != mv.Size:
		return refuse("it has %d bytes, %s has %d", v.V.Size, mv.Source, mv.Size)
	case len(vvols) > 0:
		return refuse("virtual volume %s leads to it", vvols[0])
	case slices.ContainsFunc(mg.Volumes, func(o control.MovedVolume) bool { return o.Target == mv.Target }):
		return refuse("two volumes are mapped to it")
	}
	v.V.Group = mg.Group
	c.put(v.Key, v.Rev, v.V)
	return nil
}

func (m *Manager) moveJournal(ctx context.Context, c *change, mg *control.Migration, named string, there *control.NodeStatus) error {
	queue := mg.SourceJournal == ""
	if queue && named != "" {
		return control.Errorf(control.KindUsage, "group %s has its log in memory (--log queue): --journal does not go with it", mg.Group)
	}
	if queue {
		return nil
	}
	if named == "" {
		src, err := load[control.Journal](ctx, m, control.KindJournal, mg.SourceJournal)
		if err != nil {
			return err
		}
		mg.TargetJournal = mg.Target + "/" + control.BaseOf(mg.SourceJournal)
		mg.MadeJournal, mg.JournalSize = mg.TargetJournal, src.V.Size
		return m.absent(ctx, c, mg.TargetJournal, there, "--journal "+mg.TargetJournal)
	}
	node, _, err := control.SplitOwned("journal", named)
	if err != nil {
		return err
	}
	j, err := load[control.Journal](ctx, m, control.KindJournal, named)
	switch {
	case err != nil:
		return err
	case node != mg.Target:
		return control.Errorf(control.KindRefused, "journal %s is on node %s, the move goes to %s", named, node, mg.Target)
	case j.V.Group != "":
		return control.Errorf(control.KindRefused, "journal %s serves group %s; groups never share one", named, j.V.Group)
	}
	mg.TargetJournal = named
	j.V.Group = mg.Group
	c.put(j.Key, j.Rev, j.V)
	return nil
}

// checkMove asks the three nodes whether the move could be made now. In a dry run it fills in the plan.
func (m *Manager) checkMove(ctx context.Context, mg *control.Migration, g *control.Group) error {
	spec, err := m.specOf(ctx, mg, g)
	if err != nil {
		return err
	}
	nodes := []string{mg.Source, g.CopiesTo(), mg.Target}
	checks, errs := make([]control.MigrationCheck, len(nodes)), make([]error, len(nodes))
	var wg sync.WaitGroup
	for i, node := range nodes {
		if node == "" {
			continue // no secondary
		}
		wg.Go(func() {
			errs[i] = m.nodes.call(ctx, node, control.CallMigrateCheck, spec, &checks[i], callTimeout)
		})
	}
	wg.Wait()
	// One that the source cannot reach either need not be told before: see tellSecondary.
	if errs[0] == nil && checks[0].LinkDown && errs[1] != nil && unreachable(errs[1]) {
		mg.Untold, errs[1] = true, nil
	}
	var refusals []string
	for i, node := range nodes {
		if errs[i] != nil {
			return errs[i]
		}
		for _, r := range checks[i].Refusals {
			refusals = append(refusals, "node "+node+": "+r)
		}
	}
	if start := wanBytes(g, nil, m.look(ctx, []control.Group{*g}, nil)); start != nil {
		mg.WANBytesStart = *start
	}
	data, free := checks[0].DataBytes, checks[2].FreeBytes
	space := mg.JournalSize
	if len(mg.MadeVolumes) > 0 {
		space += data
	}
	space += checks[0].CarrySize
	if free > 0 && space > free {
		why := noRoom(mg.Target, space, free)
		if carry := checks[0].CarrySize; carry > 0 {
			why += fmt.Sprintf(": %d of them for what %s has not got (--backlog carry): make room below its data directory, or move without", carry,
				g.Secondary)
		}
		refusals = append(refusals, why)
	}
	if p := planOf(ctx); p != nil {
		known, err := m.figures(ctx, mg)
		if err != nil {
			return err
		}
		p.set(movePlan(mg, g, append(p.refusals(), refusals...), space, data, checks[0].CarrySize, known))
		p.free = free
		return nil
	}
	if len(refusals) > 0 {
		return control.Errorf(control.KindRefused, "%s cannot move to %s: %s", g.What(), mg.Target, strings.Join(refusals, "; "))
	}
	return nil
}

func noRoom(node string, need, free int64) string {
	return fmt.Sprintf("node %s: %d bytes are needed, %d are free", node, need, free)
}

func movePlan(mg *control.Migration, g *control.Group, refusals []string, space, data, carry int64, known moveFigures) control.PlanView {
	v := control.PlanView{Refusals: refusals, SpaceBytes: &space, Seconds: known.seconds(mg.Limit, data), PauseMS: known.pauseMS}
	add := func(format string, args ...any) { v.Plan = append(v.Plan, fmt.Sprintf(format, args...)) }
	for _, name := range mg.MadeVolumes {
		add("make volume %s", name)
	}
	if mg.MadeJournal != "" {
		add("make journal %s of %d bytes", mg.MadeJournal, mg.JournalSize)
	}
	switch {
	case g.CopiesTo() == "":
		add("register the move with %s and %s", mg.Source, mg.Target)
	case mg.Untold:
		add("register the move with %s and %s, and with %s when it is back", mg.Source, mg.Target, g.Secondary)
	default:
		add("register the move with %s, %s and %s", g.Secondary, mg.Source, mg.Target)
	}
	first := mg.Strategy == control.StrategyCopyFirst
	if first {
		add("copy %d bytes from %s to %s, and have it follow what hosts write", data, mg.Source, mg.Target)
	}
	how := map[bool]string{true: ", gateway by gateway"}[mg.Paths == control.PathsOneByOne]
	for _, mv := range mg.Volumes {
		add("lead hosts of %s to %s%s", mv.Source, mv.Target, how)
	}
	add("seal epoch %d at %s, go on in epoch %d at %s", mg.Epoch, mg.Source, mg.Epoch+1, mg.Target)
	if !first {
		add("copy %d bytes from %s to %s in the background", data, mg.Source, mg.Target)
	}
	if mg.Backlog == control.BacklogCarry {
		add("carry the log of what %s has not got at the cut from %s to %s, which sends it: room for %d bytes", g.Secondary, mg.Source,
			mg.Target, carry)
	}
	if mg.StopAt != "" {
		add("stop when the move is %s, until `gantline migrate continue %s`", mg.StopAt, mg.ID)
	}
	if mg.Commit {
		add("deregister %s", mg.Source)
	}
	return v
}

// moveCommit asks for the removal of the source; the loop does it. It returns the move's id.
func (m *Manager) moveCommit(ctx context.Context, name string, in control.MoveCommitRequest) (string, error) {
	mg, err := m.moveNamed(ctx, name)
	if err != nil {
		return "", err
	}
	id := mg.V.ID
	if mg.V.Active() { // the store lags what `migrate show` has just said
		var st control.MigrationStatus
		if m.nodes.call(ctx, mg.V.Target, control.CallMigrateStatus, control.MigrationID{ID: id}, &st, liveTimeout) == nil {
			if err := m.mergeMove(ctx, id, &st); err != nil {
				return "", err
			}
			if mg, err = load[control.Migration](ctx, m, control.KindMigration, id); err != nil {
				return "", err
			}
		}
	}
	if mg.V.Returning() {
		return "", control.Errorf(control.KindRefused, "migration %s is being aborted: there is nothing to commit", id)
	}
	switch mg.V.Phase {
	case control.PhaseCommitted:
		return id, nil
	case control.PhaseFailed, control.PhaseAborted:
		return "", control.Errorf(control.KindRefused, "migration %s has %s: there is nothing to commit", id, mg.V.Phase)
	}
	if err := m.commitGuard(ctx, &mg.V); err != nil {
		return "", err
	}
	if _, err := m.editMove(ctx, id, func(_ *change, v *control.Migration) bool {
		return askCommit(v, in.AcceptDifferences)
	}); err != nil {
		return "", err
	}
	if planOf(ctx) == nil {
		m.moves.kick(ctx, id)
	}
	return id, nil
}
