package gateway

import (
	"context"
	"errors"
	"io"
	"net"
	"net/http"
	"net/http/pprof"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promhttp"
)

func (g *gateway) listenHTTP(ready *Ready) (net.Listener, error) {
	if g.cfg.HTTP == "" {
		return nil, nil
	}
	l, err := listenTCP(g.cfg.HTTP)
	if err != nil {
		return nil, err
	}
	ready.HTTP = l.Addr().String()
	return l, nil
}

// serveHTTP serves /livez, /readyz, /metrics and Go's profiles until ctx ends.
func (g *gateway) serveHTTP(ctx context.Context, l net.Listener) error {
	if l == nil {
		return nil
	}
	registry := prometheus.NewRegistry()
	registry.MustRegister(g)
	mux := http.NewServeMux()
	mux.Handle("GET /metrics", promhttp.HandlerFor(registry, promhttp.HandlerOpts{}))
	mux.HandleFunc("GET /debug/pprof/", pprof.Index)
	mux.HandleFunc("GET /debug/pprof/profile", pprof.Profile)
	mux.HandleFunc("GET /debug/pprof/trace", pprof.Trace)
	mux.HandleFunc("GET /livez", func(w http.ResponseWriter, _ *http.Request) { _, _ = io.WriteString(w, "ok\n") })
	mux.HandleFunc("GET /readyz", func(w http.ResponseWriter, _ *http.Request) {
		if !g.ready.Load() {
			http.Error(w, "no table yet, or stopping", http.StatusServiceUnavailable)
			return
		}
		_, _ = io.WriteString(w, "ok\n")
	})
	server := &http.Server{Handler: mux, ReadHeaderTimeout: 5 * time.Second, IdleTimeout: time.Minute, MaxHeaderBytes: 16 << 10}
	stopped := make(chan struct{})
	stop := context.AfterFunc(ctx, func() {
		defer close(stopped)
		_ = server.Close()
	})
	err := server.Serve(l)
	if !stop() {
		<-stopped
	}
	if errors.Is(err, http.ErrServerClosed) {
		return nil
	}
	return err
}

var (
	descSessions = prometheus.NewDesc("gantline_gateway_sessions", "Host connections that have a virtual volume open.", []string{"vvol"}, nil)
	descWaiting  = prometheus.NewDesc("gantline_gateway_waiting_requests", "Requests that wait for a node.", []string{"vvol"}, nil)
	descInFlight = prometheus.NewDesc("gantline_gateway_in_flight_requests", "Requests sent to a node and not answered.", []string{"vvol"}, nil)
	descEpoch    = prometheus.NewDesc("gantline_gateway_epoch", "Epoch of a virtual volume's route.", []string{"vvol"}, nil)
	descRevision = prometheus.NewDesc("gantline_gateway_table_revision", "Revision of the table in force.", nil, nil)
	descManager  = prometheus.NewDesc("gantline_gateway_manager_up", "1 if the manager answers.", nil, nil)
)

// Describe is prometheus.Collector's.
func (g *gateway) Describe(ch chan<- *prometheus.Desc) {
	for _, d := range []*prometheus.Desc{descSessions, descWaiting, descInFlight, descEpoch, descRevision, descManager} {
		ch <- d
	}
}

// Collect is prometheus.Collector's.
func (g *gateway) Collect(ch chan<- prometheus.Metric) {
	gauge := func(d *prometheus.Desc, v float64, labels ...string) {
		ch <- prometheus.MustNewConstMetric(d, prometheus.GaugeValue, v, labels...)
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	for name, v := range g.vvols {
		waiting, inFlight := 0, 0
		for s := range v.sessions {
			st := s.Status()
			waiting += st.Waiting
			inFlight += st.InFlight
		}
		gauge(descSessions, float64(len(v.sessions)), name)
		gauge(descWaiting, float64(waiting), name)
		gauge(descInFlight, float64(inFlight), name)
		gauge(descEpoch, float64(v.Epoch), name)
	}
	gauge(descRevision, float64(g.revision))
	up := 1.0
	if g.away.Load() {
		up = 0
	}
	gauge(descManager, up)
}
