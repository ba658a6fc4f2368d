package node

import (
	"net/http"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promhttp"

	"gantline/internal/control"
)

// metricsHandler shows the figures of status for scraping.
func (n *Node) metricsHandler() http.Handler {
	reg := prometheus.NewRegistry()
	reg.MustRegister(&collector{n})
	return promhttp.HandlerFor(reg, promhttp.HandlerOpts{})
}

// collector asks for a status at each scrape: there is no second set of figures to keep in step.
type collector struct{ n *Node }

func desc(name, help string, labels ...string) *prometheus.Desc {
	return prometheus.NewDesc("gantline_"+name, help, labels, nil)
}

var (
	metricSeq = desc("group_sequence", "Newest sequence of the group's log here, by cursor: appended, durable, sent, acked, applied.",
		"group", "cursor")
	metricState   = desc("group_state", "1 for the state that the group has here.", "group", "role", "state")
	metricLagOps  = desc("group_lag_writes", "Records that the secondary has not applied; only where that is known.", "group")
	metricLag     = desc("group_lag_bytes", "Bytes of writes that the secondary has not applied.", "group")
	metricLagTime = desc("group_lag_seconds", "Age of the oldest write that the secondary has not applied.", "group")
	metricLate    = desc("group_late", "1 if the lag is longer than the group's --rpo.", "group")
	metricStopped = desc("group_copy_stopped", "1 if the secondary is behind and gets nothing.", "group")
	metricChanged = desc("group_changed_bytes", "Bytes that are marked to be copied.", "group")
	metricWAN     = desc("group_wan_bytes_total", "Bytes of frames sent to the secondary.", "group")
	metricUsed    = desc("journal_used_bytes", "Bytes used of the group's journal here.", "group")
	metricSize    = desc("journal_capacity_bytes", "Bytes that the group's journal here can hold.", "group")
	metricLinkUp  = desc("group_link_up", "1 if the copy link is up.", "group")
	metricRTT     = desc("group_link_rtt_seconds", "Round-trip time of the copy link.", "group")
	metricCopied  = desc("group_copy_done_bytes", "Bytes done of the background copy under way.", "group", "kind")
	metricCopy    = desc("group_copy_total_bytes", "Bytes of the background copy under way.", "group", "kind")
	metricOps     = desc("volume_host_requests_total", "Requests of hosts, by volume and kind.", "volume", "op")
	metricBytes   = desc("volume_host_bytes_total", "Bytes that hosts have read and written.", "volume", "op")
)

// Describe is prometheus.Collector's.
func (c *collector) Describe(ch chan<- *prometheus.Desc) {
	for _, d := range []*prometheus.Desc{metricSeq, metricState, metricLagOps, metricLag, metricLagTime, metricLate, metricStopped,
		metricChanged, metricWAN, metricUsed, metricSize, metricLinkUp, metricRTT, metricCopied, metricCopy, metricOps, metricBytes} {
		ch <- d
	}
}

// Collect is prometheus.Collector's.
func (c *collector) Collect(ch chan<- prometheus.Metric) {
	gauge := func(d *prometheus.Desc, v float64, l ...string) {
		ch <- prometheus.MustNewConstMetric(d, prometheus.GaugeValue, v, l...)
	}
	count := func(d *prometheus.Desc, v float64, l ...string) {
		ch <- prometheus.MustNewConstMetric(d, prometheus.CounterValue, v, l...)
	}
	for _, g := range c.n.status().Groups {
		groupMetrics(&g, gauge)
		count(metricWAN, float64(g.WANBytesSent), g.Name)
	}
	c.n.mu.Lock()
	volumes := make(map[string]*nodeVolume, len(c.n.volumes))
	for name, v := range c.n.volumes {
		volumes[name] = v
	}
	c.n.mu.Unlock()
	for name, v := range volumes {
		t := v.vol.Traffic()
		count(metricOps, float64(t.Reads), name, "read")
		count(metricOps, float64(t.Writes), name, "write")
		count(metricOps, float64(t.Flushes), name, "flush")
		count(metricOps, float64(t.Others), name, "other")
		count(metricBytes, float64(t.ReadBytes), name, "read")
		count(metricBytes, float64(t.WriteBytes), name, "write")
	}
}

func groupMetrics(g *control.GroupStatus, gauge func(*prometheus.Desc, float64, ...string)) {
	yes := func(b bool) float64 {
		if b {
			return 1
		}
		return 0
	}
	gauge(metricState, 1, g.Name, g.Role, g.State)
	gauge(metricSeq, float64(g.Appended), g.Name, "appended")
	gauge(metricSeq, float64(g.Durable), g.Name, "durable")
	gauge(metricSeq, float64(g.Applied), g.Name, "applied")
	gauge(metricUsed, float64(g.JournalUsed), g.Name)
	gauge(metricSize, float64(g.JournalCapacity), g.Name)
	gauge(metricLinkUp, yes(g.LinkUp), g.Name)
	if g.Role == control.RoleSecondary {
		return
	}
	gauge(metricSeq, float64(g.Sent), g.Name, "sent")
	gauge(metricSeq, float64(g.Acked), g.Name, "acked")
	gauge(metricLate, yes(g.Late), g.Name)
	gauge(metricStopped, yes(g.Stopped), g.Name)
	gauge(metricChanged, float64(g.ChangedBytes), g.Name)
	if g.Heard {
		gauge(metricLagOps, float64(g.Appended-min(g.Applied, g.Appended)), g.Name)
		gauge(metricLag, float64(g.LagBytes), g.Name)
		gauge(metricLagTime, g.LagSeconds, g.Name)
	}
	if g.RTTMS != nil {
		gauge(metricRTT, *g.RTTMS/1000, g.Name)
	}
	if g.Copy != nil {
		gauge(metricCopied, float64(g.Copy.BytesDone), g.Name, g.Copy.Kind)
		gauge(metricCopy, float64(g.Copy.BytesTotal), g.Name, g.Copy.Kind)
	}
}
