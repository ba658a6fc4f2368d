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
	descUp         = prometheus.NewDesc("gantline_peer_up", "1 if a node or gateway is up.", []string{"kind", "name"}, nil)
	descObjects    = prometheus.NewDesc("gantline_objects", "Objects in the store.", []string{"kind"}, nil)
	descMigrations = prometheus.NewDesc("gantline_migrations", "Moves by phase.", []string{"phase"}, nil)
	descRevision   = prometheus.NewDesc("gantline_store_revision", "Revision of the store.", nil, nil)
)

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
	for _, d := range []*prometheus.Desc{descUp, descObjects, descMigrations, descRevision} {
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
	up := func(b bool) float64 {
		if b {
			return 1
		}
		return 0
	}
	for name := range s.nodes {
		gauge(descUp, up(x.m.presence.nodeUp(name)), "node", name)
	}
	gateways, revision, err := x.m.store.List(ctx, control.KindGateway+"/")
	if err != nil {
		return
	}
	for _, e := range gateways {
		name := control.BaseOf(e.Key)
		gauge(descUp, up(x.m.presence.gatewayUp(name)), "gateway", name)
	}
	for kind, n := range map[string]int{
		control.KindNode: len(s.nodes), control.KindGateway: len(gateways), control.KindVolume: len(s.volumes),
		control.KindJournal: len(s.journals), control.KindVvol: len(s.vvols), control.KindGroup: len(s.groups),
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
}
