package manager

import (
	"context"
	"net/http"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"github.com/prometheus/client_golang/prometheus/promhttp"

	"gantline/internal/control"
)

// metrics are computed from the store when they are asked for.
type metrics struct {
	m        *Manager
	registry *prometheus.Registry
}

var (
	descUp          = prometheus.NewDesc("gantline_peer_up", "1 if a node or gateway is up.", []string{"kind", "name"}, nil)
	descObjects     = prometheus.NewDesc("gantline_objects", "Objects in the store.", []string{"kind"}, nil)
	descMigrations  = prometheus.NewDesc("gantline_migrations", "Moves by phase.", []string{"phase"}, nil)
	descState       = groupDesc("state", "1 for the state that the group has.", "state")
	descLinkUp      = groupDesc("link_up", "1 if the copy link is up.")
	descLate        = groupDesc("late", "1 if the lag is longer than the group's --rpo.")
	descStopped     = groupDesc("copy_stopped", "1 if the secondary is behind and gets nothing.")
	descConsistent  = groupDesc("consistent", "1 if the secondary's recoverable image is a prefix.")
	descLagWrites   = groupDesc("lag_writes", "Writes that the secondary has not applied.")
	descLagBytes    = groupDesc("lag_bytes", "Bytes of writes that the secondary has not applied.")
	descLagSeconds  = groupDesc("lag_seconds", "Age of the oldest write that the secondary has not applied.")
	descChanged     = groupDesc("changed_bytes", "Bytes that are marked to be copied.")
	descWAN         = groupDesc("wan_bytes_sent", "Bytes of frames sent to the secondary since the group was made.")
	descJournalUsed = groupDesc("journal_used_bytes", "Bytes used of the primary's journal.")
	descJournalSize = groupDesc("journal_capacity_bytes", "Bytes that the primary's journal can hold.")
	descCursor      = groupDesc("sequence", "Newest sequence by cursor: appended, durable, sent, acked, applied.", "cursor")
	descCopyDone    = groupDesc("copy_done_bytes", "Bytes done of the copy under way.", "kind")
	descCopyTotal   = groupDesc("copy_total_bytes", "Bytes of the copy under way.", "kind")
	descCopyLeft    = groupDesc("copy_left_seconds", "Time left of the copy under way, at its mean rate.", "kind")
	descBlocked     = groupDesc("blocked", "1 for what holds the group's copying up, if anything does; numbers in it are written N.", "reason")
	descOverruns    = groupDesc("overruns_total", "Intervals of a periodic group that were over before their copy.")
	descRPO         = groupDesc("rpo_seconds", "The group's --rpo; 0: none.")
	descEpoch       = groupDesc("epoch", "Epoch of the group.")

	descMove    = moveDesc("phase", "1 for the phase of a group's latest move.", "group", "phase")
	descRegions = moveDesc("regions", "Regions of a move at its target: all of them, and those that are there durably.", "which")
	descMoved   = moveDesc("bytes_total", "Bytes that a move's target has fetched, in background or on demand.", "kind")
	descPause   = moveDesc("pause_seconds", "How long a move's target has held hosts' requests.")

	descProblems = prometheus.NewDesc("gantline_problems", "Lines that `status` shows as problems; 0: healthy.", nil, nil)

	descRevision = prometheus.NewDesc("gantline_store_revision", "Revision of the store.", nil, nil)
)

func groupDesc(name, help string, labels ...string) *prometheus.Desc {
	return prometheus.NewDesc("gantline_group_"+name, help, append([]string{"group"}, labels...), nil)
}

func moveDesc(name, help string, labels ...string) *prometheus.Desc {
	return prometheus.NewDesc("gantline_migration_"+name, help, append([]string{"migration"}, labels...), nil)
}

func newMetrics(m *Manager) *metrics {
	x := &metrics{m: m, registry: prometheus.NewRegistry()}
	x.registry.MustRegister(x, collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))
	return x
}

func (x *metrics) handler() http.Handler {
	return promhttp.HandlerFor(x.registry, promhttp.HandlerOpts{})
}

// Describe implements prometheus.Collector.
func (x *metrics) Describe(ch chan<- *prometheus.Desc) {
	for _, d := range []*prometheus.Desc{descUp, descObjects, descMigrations, descRevision, descState, descLinkUp, descLate,
		descStopped, descConsistent, descLagWrites, descLagBytes, descLagSeconds, descChanged, descWAN, descJournalUsed,
		descJournalSize, descCursor, descCopyDone, descCopyTotal, descCopyLeft, descBlocked, descOverruns, descRPO, descEpoch,
		descMove, descRegions, descMoved, descPause, descProblems} {
		ch <- d
	}
}

// Collect implements prometheus.Collector.
func (x *metrics) Collect(ch chan<- prometheus.Metric) {
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Second)
	defer cancel()
	s, err := x.m.read(ctx)
	if err != nil {
		return
	}
	gauge := func(d *prometheus.Desc, v float64, labels ...string) {
		ch <- prometheus.MustNewConstMetric(d, prometheus.GaugeValue, v, labels...)
	}
	for name := range s.nodes {
		gauge(descUp, is(x.m.presence.nodeUp(name)), "node", name)
	}
	gateways, revision, err := x.m.store.List(ctx, control.KindGateway+"/")
	if err != nil {
		return
	}
	for _, e := range gateways {
		name := control.BaseOf(e.Key)
		gauge(descUp, is(x.m.presence.gatewayUp(name)), "gateway", name)
	}
	groups := 0 // those made by command
	for i := range s.groups {
		if s.groups[i].Lone == "" {
			groups++
		}
	}
	for kind, n := range map[string]int{
		control.KindNode: len(s.nodes), control.KindGateway: len(gateways), control.KindVolume: len(s.volumes),
		control.KindJournal: len(s.journals), control.KindVvol: len(s.vvols), control.KindGroup: groups,
	} {
		gauge(descObjects, float64(n), kind)
	}
	phases := map[string]int{}
	for _, mg := range s.migrations {
		phases[mg.V.Phase]++
	}
	for phase, n := range phases {
		gauge(descMigrations, float64(n), phase)
	}
	gauge(descRevision, float64(revision))
	count := func(d *prometheus.Desc, v float64, labels ...string) {
		ch <- prometheus.MustNewConstMetric(d, prometheus.CounterValue, v, labels...)
	}
	status, err := x.m.statusView(ctx)
	if err != nil {
		return
	}
	gauge(descProblems, float64(len(status.Problems)))
	for i := range status.Groups {
		groupMetrics(&status.Groups[i], gauge, count)
	}
	latest, err := x.m.latestMoves(ctx)
	if err != nil {
		return
	}
	for i := range status.Migrations {
		if mg := &status.Migrations[i]; latest[mg.Group] == mg.ID {
			moveMetrics(mg, gauge, count)
		}
	}
}

// figure takes a figure of a metric.
type figure func(d *prometheus.Desc, v float64, labels ...string)

// moveMetrics shows what `migrate show` does.
func moveMetrics(mg *control.MigrationView, gauge, count figure) {
	gauge(descMove, 1, mg.ID, mg.Group, mg.Phase)
	known(gauge, descRegions, mg.Regions.Total, mg.ID, "total")
	known(gauge, descRegions, mg.Regions.Present, mg.ID, "present")
	known(count, descMoved, mg.Bytes.Background, mg.ID, "background")
	known(count, descMoved, mg.Bytes.OnDemand, mg.ID, "on-demand")
	known(count, descMoved, mg.Bytes.Carried, mg.ID, "carried")
	if mg.PauseMS != nil {
		gauge(descPause, *mg.PauseMS/1000, mg.ID)
	}
}

// groupMetrics shows what `group show` does; what is not known is left out.
func groupMetrics(g *control.GroupView, gauge, count figure) {
	gauge(descEpoch, float64(g.Epoch), g.Name)
	gauge(descRPO, g.RPOSeconds, g.Name)
	if g.BlockedOn != nil && *g.BlockedOn != "" {
		gauge(descBlocked, 1, g.Name, control.Reason(*g.BlockedOn))
	}
	known(count, descOverruns, g.Overruns, g.Name)
	if g.State != nil {
		gauge(descState, 1, g.Name, *g.State)
	}
	if g.Link != nil {
		gauge(descLinkUp, is(*g.Link == control.StateUp), g.Name)
	}
	for _, b := range []struct {
		d *prometheus.Desc
		v *bool
	}{{descLate, g.Late}, {descStopped, g.Stopped}, {descConsistent, g.Consistent}} {
		if b.v != nil {
			gauge(b.d, is(*b.v), g.Name)
		}
	}
	known(gauge, descLagWrites, g.Lag.Writes, g.Name)
	known(gauge, descLagBytes, g.Lag.Bytes, g.Name)
	known(gauge, descLagSeconds, g.Lag.Seconds, g.Name)
	known(gauge, descChanged, g.ChangedBytes, g.Name)
	known(gauge, descWAN, g.WANBytesSent, g.Name)
	known(gauge, descJournalUsed, g.Journal.UsedBytes, g.Name)
	known(gauge, descJournalSize, g.Journal.CapacityBytes, g.Name)
	known(gauge, descCursor, g.Sequence.Appended, g.Name, "appended")
	known(gauge, descCursor, g.Sequence.Durable, g.Name, "durable")
	known(gauge, descCursor, g.Sequence.Sent, g.Name, "sent")
	known(gauge, descCursor, g.Sequence.Acked, g.Name, "acked")
	known(gauge, descCursor, g.SecondarySequence.Applied, g.Name, "applied")
	if c := g.Copy; c != nil {
		gauge(descCopyDone, float64(c.BytesDone), g.Name, c.Kind)
		gauge(descCopyTotal, float64(c.BytesTotal), g.Name, c.Kind)
		known(gauge, descCopyLeft, c.ETASeconds, g.Name, c.Kind)
	}
}

func is(b bool) float64 {
	if b {
		return 1
	}
	return 0
}

// known shows a figure, unless nobody can tell it now.
func known[N int64 | uint64 | float64](show figure, d *prometheus.Desc, v *N, labels ...string) {
	if v != nil {
		show(d, float64(*v), labels...)
	}
}
