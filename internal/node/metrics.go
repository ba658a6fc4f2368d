package node

import (
	"net/http"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promhttp"

	"gantline/internal/control"
	"gantline/internal/latency"
)

// metricsHandler shows the figures of status for scraping, and those that only watching over time makes sense of.
func (n *Node) metricsHandler() http.Handler {
	reg := prometheus.NewRegistry()
	reg.MustRegister(&collector{n})
	return promhttp.HandlerFor(reg, promhttp.HandlerOpts{})
}

// collector asks for a status at each scrape: there is no second set of figures to keep in step.
type collector struct{ n *Node }

var nodeMetrics []*prometheus.Desc

func desc(name, help string, labels ...string) *prometheus.Desc {
	d := prometheus.NewDesc("gantline_"+name, help, labels, nil)
	nodeMetrics = append(nodeMetrics, d)
	return d
}

var (
	metricSeq = desc("group_sequence", "Newest sequence of the group's log here, by cursor: appended, durable, sent, acked, applied.",
		"group", "cursor")
	metricState      = desc("group_state", "1 for the state that the group has here.", "group", "role", "state")
	metricConsistent = desc("group_consistent", "1 if the secondary's recoverable image is a prefix, as this node knows it.", "group")
	metricEpoch      = desc("group_epoch", "Epoch of the group's log here.", "group")
	metricLagOps     = desc("group_lag_writes", "Records that the secondary has not applied; only where that is known.", "group")
	metricLag        = desc("group_lag_bytes", "Bytes of writes that the secondary has not applied.", "group")
	metricCarried    = desc("group_carried_bytes", "Bytes of a log that a move has carried here which the secondary has not got.", "group")
	metricLagTime    = desc("group_lag_seconds", "Age of the oldest write that the secondary has not applied.", "group")
	metricLate       = desc("group_late", "1 if the lag is longer than the group's --rpo.", "group")
	metricStopped    = desc("group_copy_stopped", "1 if the secondary is behind and gets nothing.", "group")
	metricBlocked    = desc("group_blocked", "1 for what holds the group's copying up here, if anything does; numbers in it are written N.", "group", "reason")
	metricOverruns   = desc("group_overruns_total", "Intervals of a periodic group that were over before their copy.", "group")
	metricChanged    = desc("group_changed_bytes", "Bytes that are marked to be copied.", "group")
	metricWAN        = desc("group_wan_bytes_total", "Bytes of frames sent to the secondary.", "group")
	metricBatches    = desc("group_batch_bytes_total", "Bytes of frames with records, before compression and after it.", "group", "stage")
	metricUsed       = desc("journal_used_bytes", "Bytes used of the group's journal here.", "group")
	metricSize       = desc("journal_capacity_bytes", "Bytes that the group's journal here can hold.", "group")
	metricLinkUp     = desc("group_link_up", "1 if the copy link is up.", "group")
	metricConns      = desc("group_link_connections", "TCP connections of the group's stream now.", "group")
	metricRTT        = desc("group_link_rtt_seconds", "Round-trip time of the copy link.", "group")
	metricCopied     = desc("group_copy_done_bytes", "Bytes done of the background copy under way.", "group", "kind")
	metricCopy       = desc("group_copy_total_bytes", "Bytes of the background copy under way.", "group", "kind")
	metricCopyLeft   = desc("group_copy_left_seconds", "Time left of the background copy under way, at its mean rate.", "group", "kind")
	metricCached     = desc("cache_bytes", "Bytes of hosts' writes that are not on the group's devices yet.", "group")
	metricCacheLimit = desc("cache_limit_bytes", "Bytes at which writers wait for the devices.", "group")
	metricCacheWaits = desc("cache_full_waits_total", "Submissions of writes that had to wait because the cache was full.", "group")
	metricRecent     = desc("cache_unsent_bytes", "Bytes of records kept in memory for the secondary.", "group")
	metricSyncs      = desc("log_sync_seconds", "Syncs of the group's log here: how many, and how long they took.", "group")
	metricSynced     = desc("log_synced_records_total", "Records that those syncs have made durable.", "group")
	metricOps        = desc("volume_host_requests_total", "Requests of hosts, by volume and kind.", "volume", "op")
	metricBytes      = desc("volume_host_bytes_total", "Bytes that hosts have read and written.", "volume", "op")
	metricWaits      = desc("volume_host_wait_seconds", "Time from a host's request to its answer, at this node.", "volume", "op")
	metricVolume     = desc("volume_info", "1 for each volume, with what it is.", "volume", "group", "role", "mode")
	metricMove       = desc("migration_phase", "1 for the phase in which this node has a move that it is the target of.", "migration", "phase")
	metricRegions    = desc("migration_regions", "Regions of a move at its target: all of them, and those that are here durably.", "migration", "which")
	metricMoved      = desc("migration_bytes_total", "Bytes that a move's target has fetched: in background, on demand, carried.", "migration", "kind")
	metricPause      = desc("migration_pause_seconds", "How long a move's target has held hosts' requests.", "migration")
)

// Describe is prometheus.Collector's.
func (c *collector) Describe(ch chan<- *prometheus.Desc) {
	for _, d := range nodeMetrics {
		ch <- d
	}
}

// scrape is where the figures of one scrape go.
type scrape chan<- prometheus.Metric

func (s scrape) gauge(d *prometheus.Desc, v float64, l ...string) {
	s <- prometheus.MustNewConstMetric(d, prometheus.GaugeValue, v, l...)
}

func (s scrape) count(d *prometheus.Desc, v float64, l ...string) {
	s <- prometheus.MustNewConstMetric(d, prometheus.CounterValue, v, l...)
}

func (s scrape) yes(d *prometheus.Desc, b bool, l ...string) {
	v := 0.0
	if b {
		v = 1
	}
	s.gauge(d, v, l...)
}

func (s scrape) histogram(d *prometheus.Desc, h latency.Snapshot, l ...string) {
	buckets, sum := make(map[float64]uint64, len(latency.Bounds)), uint64(0)
	for i, bound := range latency.Bounds {
		sum += h.Counts[i]
		buckets[bound.Seconds()] = sum
	}
	s <- prometheus.MustNewConstHistogram(d, h.Count, h.Sum.Seconds(), buckets, l...)
}

// Collect is prometheus.Collector's.
func (c *collector) Collect(ch chan<- prometheus.Metric) {
	s, st := scrape(ch), c.n.status()
	for i := range st.Groups {
		g := &st.Groups[i]
		s.group(g)
		if g.Role == control.RolePrimary || g.Role == control.RoleSource {
			s.feed(g)
		}
		if live := c.n.group(g.Name); live != nil {
			s.inside(live)
		}
	}
	for i := range st.Volumes {
		s.volume(c.n, &st.Volumes[i])
	}
	for i := range st.Migrations {
		if m := &st.Migrations[i]; m.Role == control.RoleTarget {
			s.move(m)
		}
	}
}

// group shows what every role has.
func (s scrape) group(g *control.GroupStatus) {
	s.gauge(metricState, 1, g.Name, g.Role, g.State)
	s.yes(metricConsistent, g.Consistent, g.Name)
	s.gauge(metricEpoch, float64(g.Epoch), g.Name)
	s.gauge(metricSeq, float64(g.Appended), g.Name, "appended")
	s.gauge(metricSeq, float64(g.Durable), g.Name, "durable")
	s.gauge(metricSeq, float64(g.Applied), g.Name, "applied")
	s.gauge(metricUsed, float64(g.JournalUsed), g.Name)
	s.gauge(metricSize, float64(g.JournalCapacity), g.Name)
	s.yes(metricLinkUp, g.LinkUp, g.Name)
	s.count(metricWAN, float64(g.WANBytesSent), g.Name)
	if g.BlockedOn != "" {
		s.gauge(metricBlocked, 1, g.Name, control.Reason(g.BlockedOn))
	}
}

// feed shows what only who sends to the secondary knows.
func (s scrape) feed(g *control.GroupStatus) {
	s.gauge(metricSeq, float64(g.Sent), g.Name, "sent")
	s.gauge(metricSeq, float64(g.Acked), g.Name, "acked")
	s.yes(metricLate, g.Late, g.Name)
	s.yes(metricStopped, g.Stopped, g.Name)
	s.count(metricOverruns, float64(g.Overruns), g.Name)
	s.gauge(metricChanged, float64(g.ChangedBytes), g.Name)
	s.gauge(metricConns, float64(g.Connections), g.Name)
	if g.Heard {
		s.gauge(metricLagOps, float64(g.Appended-min(g.Applied, g.Appended)), g.Name)
		s.gauge(metricLag, float64(g.LagBytes), g.Name)
		s.gauge(metricCarried, float64(g.CarriedBytes), g.Name)
		s.gauge(metricLagTime, g.LagSeconds, g.Name)
	}
	if g.RTTMS != nil {
		s.gauge(metricRTT, *g.RTTMS/1000, g.Name)
	}
	if c := g.Copy; c != nil {
		s.gauge(metricCopied, float64(c.BytesDone), g.Name, c.Kind)
		s.gauge(metricCopy, float64(c.BytesTotal), g.Name, c.Kind)
		if c.ETASeconds != nil {
			s.gauge(metricCopyLeft, *c.ETASeconds, g.Name, c.Kind)
		}
	}
}

// inside shows what a group does that no status has: it makes sense over time only.
func (s scrape) inside(g *group) {
	g.mu.Lock()
	vg, jnl, que, snd := g.vg, g.jnl, g.que, g.snd
	g.mu.Unlock()
	if vg != nil {
		m := vg.Memory()
		s.gauge(metricCached, float64(m.Cached), g.name)
		s.gauge(metricCacheLimit, float64(m.CacheLimit), g.name)
		s.count(metricCacheWaits, float64(m.Waited), g.name)
		s.gauge(metricRecent, float64(m.Recent), g.name)
	}
	var log interface {
		Syncs() (latency.Snapshot, uint64)
	}
	switch {
	case jnl != nil:
		log = jnl
	case que != nil:
		log = que
	}
	if log != nil {
		syncs, records := log.Syncs()
		s.histogram(metricSyncs, syncs, g.name)
		s.count(metricSynced, float64(records), g.name)
	}
	if snd != nil {
		sent := snd.Status()
		s.count(metricBatches, float64(sent.BatchBytes), g.name, "raw")
		s.count(metricBatches, float64(sent.FrameBytes), g.name, "sent")
	}
}

func (s scrape) volume(n *Node, st *control.VolumeStatus) {
	s.gauge(metricVolume, 1, st.Name, st.Group, st.Role, st.Mode)
	v := n.volume(st.Name)
	if v == nil {
		return
	}
	t, w := v.vol.Traffic(), v.vol.Waits()
	for _, op := range []struct {
		name  string
		count uint64
		waits latency.Snapshot
	}{{"read", t.Reads, w.Reads}, {"write", t.Writes, w.Writes}, {"flush", t.Flushes, w.Flushes}, {"other", t.Others, w.Others}} {
		s.count(metricOps, float64(op.count), st.Name, op.name)
		s.histogram(metricWaits, op.waits, st.Name, op.name)
	}
	s.count(metricBytes, float64(t.ReadBytes), st.Name, "read")
	s.count(metricBytes, float64(t.WriteBytes), st.Name, "write")
}

func (s scrape) move(m *control.MigrationStatus) {
	s.gauge(metricMove, 1, m.ID, m.Phase)
	s.gauge(metricRegions, float64(m.Total), m.ID, "total")
	s.gauge(metricRegions, float64(m.Present), m.ID, "present")
	s.count(metricMoved, float64(m.Background), m.ID, "background")
	s.count(metricMoved, float64(m.OnDemand), m.ID, "on-demand")
	if m.Carry != nil {
		s.count(metricMoved, float64(m.Carry.Done), m.ID, "carried")
	}
	if m.PauseMS != nil {
		s.gauge(metricPause, *m.PauseMS/1000, m.ID)
	}
}
