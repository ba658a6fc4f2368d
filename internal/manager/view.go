package manager

import (
	"context"
	"fmt"
	"slices"
	"strings"

	"gantline/internal/control"
)

// state is all that the store has, read once for one answer.
type state struct {
	nodes      map[string]control.Node
	volumes    []control.Volume
	journals   []control.Journal
	vvols      []control.Vvol
	groups     []control.Group
	migrations []got[control.Migration]
}

func values[T any](list []got[T]) []T {
	out := make([]T, len(list))
	for i := range list {
		out[i] = list[i].V
	}
	return out
}

func (m *Manager) read(ctx context.Context) (*state, error) {
	s := &state{nodes: map[string]control.Node{}}
	nodes, err := loadAll[control.Node](ctx, m, control.KindNode)
	if err != nil {
		return nil, err
	}
	for _, n := range nodes {
		s.nodes[n.V.Name] = n.V
	}
	volumes, err := loadAll[control.Volume](ctx, m, control.KindVolume)
	if err != nil {
		return nil, err
	}
	journals, err := loadAll[control.Journal](ctx, m, control.KindJournal)
	if err != nil {
		return nil, err
	}
	vvols, err := loadAll[control.Vvol](ctx, m, control.KindVvol)
	if err != nil {
		return nil, err
	}
	groups, err := loadAll[control.Group](ctx, m, control.KindGroup)
	if err != nil {
		return nil, err
	}
	s.volumes, s.journals, s.vvols, s.groups = values(volumes), values(journals), values(vvols), values(groups)
	s.migrations, err = loadAll[control.Migration](ctx, m, control.KindMigration)
	return s, err
}

func (s *state) group(name string) *control.Group {
	for i := range s.groups {
		if s.groups[i].Name == name {
			return &s.groups[i]
		}
	}
	return nil
}

func (s *state) vvolsOf(volume string) []string {
	out := []string{}
	for _, v := range s.vvols {
		if slices.Contains(v.Volumes(), volume) {
			out = append(out, v.Name)
		}
	}
	return out
}

func notFound(kind, name string) error {
	return control.Errorf(control.KindNotFound, "%s %s does not exist; `gantline %s list` shows what there is",
		singular(kind), name, verb(kind))
}

// one picks the only element, or says that the named object does not exist. Empty name: all.
func one[T any](list []T, kind, name string) (T, error) {
	if len(list) == 1 {
		return list[0], nil
	}
	var none T
	return none, notFound(kind, name)
}

func (m *Manager) volumeViews(ctx context.Context, name string) ([]control.VolumeView, error) {
	s, err := m.read(ctx)
	if err != nil {
		return nil, err
	}
	var chosen []control.Volume
	var groups []control.Group
	var nodes []string
	for _, v := range s.volumes {
		if full := v.Node + "/" + v.Name; name == "" || name == full {
			chosen = append(chosen, v)
			nodes = append(nodes, v.Node)
			if g := s.group(v.Group); g != nil {
				groups = append(groups, *g)
			}
		}
	}
	out := []control.VolumeView{}
	if len(chosen) == 0 {
		return out, nil
	}
	l := m.look(ctx, groups, s.migrations, nodes...)
	for i := range chosen {
		v := &chosen[i]
		out = append(out, volumeView(v, s.group(v.Group), s.migrations, s.nodes, l, s.vvolsOf(v.Node+"/"+v.Name)))
	}
	return out, nil
}

func (m *Manager) journalViews(ctx context.Context, name string) ([]control.JournalView, error) {
	all, err := loadAll[control.Journal](ctx, m, control.KindJournal)
	if err != nil {
		return nil, err
	}
	var nodes []string
	for _, j := range all {
		if name == "" || j.V.Node+"/"+j.V.Name == name {
			nodes = append(nodes, j.V.Node)
		}
	}
	live := m.live(ctx, nodes...)
	out := []control.JournalView{}
	for _, j := range all {
		full := j.V.Node + "/" + j.V.Name
		if name != "" && full != name {
			continue
		}
		v := control.JournalView{Name: full, Node: j.V.Node, Size: j.V.Size, Group: j.V.Group, Devices: j.V.Devices}
		if v.Devices == nil {
			v.Devices = []string{}
		}
		if st := live[j.V.Node]; st != nil {
			for i := range st.Journals {
				if s := &st.Journals[i]; s.Name == j.V.Name {
					v.UsedBytes, v.CapacityBytes = &s.Used, &s.Capacity
					v.Stored, v.Transferred, v.Applied, v.Discarded = &s.Stored, &s.Transferred, &s.Applied, &s.Discarded
					v.Alarm, v.Cause = &s.Alarm, &s.Cause
				}
			}
		}
		out = append(out, v)
	}
	return out, nil
}

func (m *Manager) vvolViews(ctx context.Context, name string) ([]control.VvolView, error) {
	vvols, err := loadAll[control.Vvol](ctx, m, control.KindVvol)
	if err != nil {
		return nil, err
	}
	groups, err := m.groupOfVolume(ctx)
	if err != nil {
		return nil, err
	}
	gateways, err := loadAll[control.Gateway](ctx, m, control.KindGateway)
	if err != nil {
		return nil, err
	}
	out := []control.VvolView{}
	for _, g := range vvols {
		if name != "" && g.V.Name != name {
			continue
		}
		v := control.VvolView{Name: g.V.Name, Volume: g.V.Volume, Size: g.V.Size, Hosts: g.V.Hosts, URIs: []string{},
			Gateways: []control.VvolGatewayView{}}
		if v.Hosts == nil {
			v.Hosts = []control.Host{}
		}
		if gr := groups[v.Volume]; gr != nil {
			v.Epoch = gr.Epoch
		}
		for _, gw := range gateways {
			v.URIs = append(v.URIs, uris(v.Name, gw.V.NBD)...)
			at := m.vvolAt(gw.V.Name, v.Name)
			at.Volume = g.V.VolumeAt(gw.V.Name)
			v.Gateways = append(v.Gateways, at)
		}
		out = append(out, v)
	}
	return out, nil
}

// vvolAt is a virtual volume as a gateway has it; one that is up and does not list it has no session.
func (m *Manager) vvolAt(gateway, vvol string) control.VvolGatewayView {
	v := control.VvolGatewayView{Name: gateway}
	_, list, up := m.presence.gateway(gateway)
	if !up {
		return v
	}
	v.Sessions = ptr(0)
	for _, gv := range list {
		if gv.Name == vvol {
			v.Sessions, v.Epoch = ptr(gv.Sessions), ptr(gv.Epoch)
		}
	}
	return v
}

func (m *Manager) groupViews(ctx context.Context, name string) ([]control.GroupView, error) {
	s, err := m.read(ctx)
	if err != nil {
		return nil, err
	}
	var chosen []control.Group
	for _, g := range s.groups {
		if (name == "" || g.Name == name) && g.Lone == "" {
			chosen = append(chosen, g)
		}
	}
	out := []control.GroupView{}
	if len(chosen) == 0 {
		return out, nil
	}
	l := m.look(ctx, chosen, s.migrations)
	for i := range chosen {
		out = append(out, groupView(&chosen[i], s.migrations, l))
	}
	return out, nil
}

func (m *Manager) pairViews(ctx context.Context) ([]control.PairListView, error) {
	groups, err := m.groupViews(ctx, "")
	if err != nil {
		return nil, err
	}
	out := []control.PairListView{}
	for _, g := range groups {
		for _, p := range g.Pairs {
			out = append(out, control.PairListView{Group: g.Name, Primary: p.Primary, Secondary: p.Secondary, Size: p.Size, State: g.State})
		}
	}
	return out, nil
}

func (m *Manager) nodeViews(ctx context.Context, name string) ([]control.NodeView, error) {
	s, err := m.read(ctx)
	if err != nil {
		return nil, err
	}
	nodes, err := loadAll[control.Node](ctx, m, control.KindNode)
	if err != nil {
		return nil, err
	}
	out := []control.NodeView{}
	for _, n := range nodes {
		if name != "" && n.V.Name != name {
			continue
		}
		v := control.NodeView{Name: n.V.Name, Site: n.V.Site, Address: n.V.Address, Peer: n.V.PeerAddress(), State: control.StateDown, Since: n.V.Since,
			Volumes: []string{}, Journals: []string{}, Clusters: []string{}, NBD: n.V.NBD}
		if v.NBD == nil {
			v.NBD = []string{}
		}
		if m.presence.nodeUp(n.V.Name) {
			v.State = control.StateUp
		}
		for _, o := range s.volumes {
			if o.Node == n.V.Name {
				v.Volumes = append(v.Volumes, o.Node+"/"+o.Name)
			}
		}
		for _, o := range s.journals {
			if o.Node == n.V.Name {
				v.Journals = append(v.Journals, o.Node+"/"+o.Name)
			}
		}
		out = append(out, v)
	}
	return out, nil
}

func (m *Manager) gatewayViews(ctx context.Context, name string) ([]control.GatewayView, error) {
	gateways, err := loadAll[control.Gateway](ctx, m, control.KindGateway)
	if err != nil {
		return nil, err
	}
	wanted := m.routes.wanted()
	out := []control.GatewayView{}
	for _, g := range gateways {
		if name != "" && g.V.Name != name {
			continue
		}
		v := control.GatewayView{Name: g.V.Name, Site: g.V.Site, State: control.StateDown, NBD: g.V.NBD, Since: g.V.Since,
			Wanted: wanted, Vvols: []control.GatewayedVvol{}}
		if v.NBD == nil {
			v.NBD = []string{}
		}
		if applied, vvols, up := m.presence.gateway(g.V.Name); up {
			v.State, v.Applied, v.Sessions = control.StateUp, &applied, ptr(0)
			v.Vvols = append(v.Vvols, vvols...)
			for _, gv := range vvols {
				*v.Sessions += gv.Sessions
			}
		}
		out = append(out, v)
	}
	return out, nil
}

// migrationViews composes `migrate show`. name is an id, or a group's name, or that of a volume in none, for its latest move.
func (m *Manager) migrationViews(ctx context.Context, name string) ([]control.MigrationView, error) {
	s, err := m.read(ctx)
	if err != nil {
		return nil, err
	}
	if g := s.group(name); g != nil && latestID(g) == "" {
		return nil, control.Errorf(control.KindNotFound, "group %s has never been moved", g.Name)
	} else if name != "" {
		name = s.moveNamed(name)
	}
	var groups []control.Group
	var targets []string
	for _, mg := range s.migrations {
		if (name == "" || mg.V.ID == name) && !control.Ended(mg.V.Phase) {
			targets = append(targets, mg.V.Target)
			if g := s.group(mg.V.Group); g != nil {
				groups = append(groups, *g)
			}
		}
	}
	l := m.look(ctx, groups, s.migrations, targets...)
	out := []control.MigrationView{}
	for _, mg := range s.migrations {
		if name == "" || mg.V.ID == name {
			v := migrationView(&mg.V, s.group(mg.V.Group), s.migrations, l)
			if waits := m.moves.waiting(mg.V.ID); mg.V.Returning() || len(mg.V.Undo) > 0 && waits != "" {
				v.BlockedOn = &waits
			}
			if p := mg.V.NextPath(); p != nil && mg.V.Phase == control.PhaseThrough && mg.V.Abort == "" {
				v.BlockedOn = ptr(pathsWait(&mg.V, p))
			}
			if mg.V.Stopped() {
				v.BlockedOn = ptr("`gantline migrate continue " + mg.V.ID + "`, as --stop-at has it")
			}
			out = append(out, v)
		}
	}
	return out, nil
}

func migrationView(mg *control.Migration, g *control.Group, migrations []got[control.Migration], l look) control.MigrationView {
	rec := *mg
	rec.Steps = append([]control.Step(nil), mg.Steps...)
	v := control.MigrationView{
		ID: mg.ID, Group: mg.Object(), Source: mg.Source, Target: mg.Target, Strategy: mg.Strategy, Backlog: mg.Backlog,
		Mirror: mg.Mirror, Modes: map[string]*string{}, AtRisk: []string{}, Error: mg.Error, Decided: mg.Decided,
		InFlight: mg.InFlight, Limit: mg.Limit, Volumes: mg.Volumes, BlockedOn: ptr(""), Paths: mg.Paths, Gateways: mg.Gateways,
	}
	if v.Paths == "" {
		v.Paths = control.PathsAll
	}
	if v.Gateways == nil {
		v.Gateways = []control.MovePath{}
	}
	for _, mv := range mg.Volumes {
		v.Modes[mv.Target] = nil
	}
	v.Check = mg.Check
	v.AtRisk = append(v.AtRisk, mg.Lost...)
	if !control.Ended(mg.Phase) {
		if st := migrationOf(l.node(mg.Target), mg.ID); st != nil {
			v.Check = checkOf(mg, st)
			mergeStatus(&rec, st)
			v.BlockedOn = &st.BlockedOn
			v.AtRisk = append(v.AtRisk, st.AtRisk...)
			for vol, mode := range st.Modes {
				v.Modes[vol] = ptr(mode)
			}
		} else if mg.Phase != "" {
			v.BlockedOn = ptr("node " + mg.Target + " does not answer")
		}
		if g != nil && mg.Phase == control.PhaseMigrating && *v.BlockedOn == "" && g.CopiesTo() != "" && l.node(g.Secondary) == nil {
			v.BlockedOn = ptr(fmt.Sprintf("secondary %s does not answer; if it is gone for good, `gantline node remove %s --forget` has the move "+
				"end without it", g.Secondary, g.Secondary))
		}
		if g != nil {
			if sum := wanBytes(g, migrations, l); sum != nil {
				rec.Seen.WANBytesSent = ptr(*sum - mg.WANBytesStart)
			} else {
				rec.Seen.WANBytesSent = nil
			}
		}
	}
	// Figures are the target's of this moment; phase and steps are the stored ones, because other commands go by those: who
	// has seen "filled" here is not refused for its absence there.
	seen := rec.Seen
	v.Phase, v.Steps, v.Cut, v.Epoch, v.PauseMS = mg.Phase, mg.Steps, seen.Cut, seen.Epoch, seen.PauseMS
	v.Regions = control.RegionsView{Total: seen.Total, Present: seen.Present}
	v.Bytes = control.MovedBytesView{Background: seen.Background, OnDemand: seen.OnDemand, Twice: seen.Twice, Carried: seen.Carried,
		CarryTotal: seen.CarryTotal}
	v.WANBytesSent = seen.WANBytesSent
	if v.Steps == nil {
		v.Steps = []control.Step{}
	}
	return v
}

// statusView is the whole at a glance, with what is wrong.
func (m *Manager) statusView(ctx context.Context) (control.StatusView, error) {
	var v control.StatusView
	var err error
	if v.Groups, err = m.groupViews(ctx, ""); err != nil {
		return v, err
	}
	if v.Nodes, err = m.nodeViews(ctx, ""); err != nil {
		return v, err
	}
	if v.Gateways, err = m.gatewayViews(ctx, ""); err != nil {
		return v, err
	}
	if v.Migrations, err = m.migrationViews(ctx, ""); err != nil {
		return v, err
	}
	v.Problems = m.pusher.tooOld()
	problem := func(format string, args ...any) { v.Problems = append(v.Problems, fmt.Sprintf(format, args...)) }
	for _, n := range v.Nodes {
		if n.State != control.StateUp {
			problem("node %s is down", n.Name)
		}
	}
	for _, g := range v.Gateways {
		if g.State != control.StateUp {
			problem("gateway %s is down", g.Name)
		}
	}
	for _, g := range v.Groups {
		switch {
		case g.State == nil && g.Error != nil && *g.Error != "":
			problem("group %s: %s", g.Name, *g.Error)
		case g.State == nil:
			problem("group %s: its state is not known, node %s does not answer", g.Name, g.Primary)
		case *g.State == "suspended" && g.Promoted != nil:
			problem("group %s: %s", g.Name, *g.BlockedOn)
		case *g.State == "failed" || *g.State == "split-brain" || *g.State == "suspended" || *g.State == control.RoleSuperseded:
			problem("group %s is %s", g.Name, *g.State)
		case *g.State != "empty" && g.Link != nil && *g.Link == control.StateDown:
			problem("group %s: the link to %s is down", g.Name, g.Secondary)
		case g.Stopped != nil && *g.Stopped:
			problem("group %s: copying has stopped: %s", g.Name, *g.BlockedOn)
		case g.Late != nil && *g.Late:
			problem("group %s is late: the secondary is more than %v s behind", g.Name, g.RPOSeconds)
		}
	}
	journals, err := loadAll[control.Journal](ctx, m, control.KindJournal)
	if err != nil {
		return v, err
	}
	for _, j := range journals {
		if j.V.Alarm > 0 {
			problem("journal %s/%s is more than %d %% full: %s", j.V.Node, j.V.Name, j.V.Alarm, j.V.Cause)
		}
	}
	latest, err := m.latestMoves(ctx)
	if err != nil {
		return v, err
	}
	for _, mg := range v.Migrations {
		if mg.Phase == control.PhaseFailed && latest[mg.Group] == mg.ID {
			problem("migration %s has failed: %s", mg.ID, mg.Error)
		}
		if mg.Check.Failed() && mg.Phase == control.PhaseFilled {
			problem("%s", differs(mg.ID, mg.Source, mg.Target, mg.Check))
		}
	}
	v.Healthy = len(v.Problems) == 0
	return v, nil
}

// latestMoves has the latest move of each group, and of each volume in none that is there still, by what `migrate show` calls it.
func (m *Manager) latestMoves(ctx context.Context) (map[string]string, error) {
	s, err := m.read(ctx)
	if err != nil {
		return nil, err
	}
	latest := map[string]string{}
	for i := range s.groups {
		latest[s.groups[i].Name] = latestID(&s.groups[i])
	}
	highest := map[string]int{}
	for i := range s.migrations {
		mg := &s.migrations[i].V
		there := slices.ContainsFunc(s.volumes, func(v control.Volume) bool { return v.Node+"/"+v.Name == mg.Lone })
		if n := moveNumber(mg); there && n > highest[mg.Lone] {
			highest[mg.Lone], latest[mg.Lone] = n, mg.ID
		}
	}
	return latest, nil
}

// moveNamed is the id of a move: the name itself, or that of the latest move of a group or of a volume in none.
func (s *state) moveNamed(name string) string {
	name = control.LoneGroup(name)
	if g := s.group(name); g != nil {
		return latestID(g)
	}
	id, highest := name, 0
	for i := range s.migrations {
		if mg := &s.migrations[i].V; mg.Group == name && moveNumber(mg) > highest {
			id, highest = mg.ID, moveNumber(mg)
		}
	}
	return id
}

// operationViews are the moves and copies under way.
func (m *Manager) operationViews(ctx context.Context, id string) ([]control.OperationView, error) {
	st, err := m.statusView(ctx)
	if err != nil {
		return nil, err
	}
	out := []control.OperationView{}
	drains, err := m.drainViews(ctx, id, st.Migrations)
	if err != nil {
		return nil, err
	}
	out = append(out, drains...)
	add := func(o control.OperationView) {
		o.Items = []control.DrainItem{}
		if id == "" || o.ID == id {
			out = append(out, o)
		}
	}
	for _, mg := range st.Migrations {
		if control.Ended(mg.Phase) || mg.Phase == control.PhaseFilled {
			continue
		}
		kind := map[bool]string{true: "volume/", false: "group/"}[strings.Contains(mg.Group, "/")]
		o := control.OperationView{ID: mg.ID, Kind: "migrate", Object: kind + mg.Group, Phase: mg.Phase, Error: mg.Error}
		if mg.Regions.Total != nil && mg.Regions.Present != nil && *mg.Regions.Total > 0 {
			o.Percent = ptr(100 * float64(*mg.Regions.Present) / float64(*mg.Regions.Total))
		}
		add(o)
	}
	for _, g := range st.Groups {
		if g.Copy != nil && g.Copy.Kind != "migration" { // that one is the move itself
			add(control.OperationView{ID: "copy-" + g.Name, Kind: g.Copy.Kind, Object: "group/" + g.Name, Phase: *g.State,
				Percent: &g.Copy.Percent, ETASeconds: g.Copy.ETASeconds})
		}
	}
	return out, nil
}
