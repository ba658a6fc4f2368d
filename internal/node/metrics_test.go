package node

import (
	"fmt"
	"net/http"
	"strings"
	"testing"
	"time"

	dto "github.com/prometheus/client_model/go"
	"github.com/prometheus/common/expfmt"
	"github.com/prometheus/common/model"

	"gantline/internal/control"
	"gantline/internal/proof"
)

// figures are what one scrape has brought, by name and labels in alphabetical order: `name{a="b",c="d"}`.
type figures map[string]*dto.Metric

func (f figures) value(t *testing.T, key string) float64 {
	t.Helper()
	m := f[key]
	switch {
	case m == nil:
		t.Errorf("no %s", key)
		return -1
	case m.Gauge != nil:
		return m.Gauge.GetValue()
	}
	return m.Counter.GetValue()
}

// histogram checks that a histogram is one, and returns how many it counts.
func (f figures) histogram(t *testing.T, key string) (count, sum float64) {
	t.Helper()
	m := f[key]
	if m == nil || m.Histogram == nil {
		t.Errorf("no histogram %s", key)
		return -1, -1
	}
	before := uint64(0)
	for _, b := range m.Histogram.Bucket {
		if b.GetCumulativeCount() < before {
			t.Errorf("%s: bucket up to %v has %d, the one before %d", key, b.GetUpperBound(), b.GetCumulativeCount(), before)
		}
		before = b.GetCumulativeCount()
	}
	if n := m.Histogram.GetSampleCount(); before > n {
		t.Errorf("%s: buckets have %d of %d", key, before, n)
	}
	return float64(m.Histogram.GetSampleCount()), m.Histogram.GetSampleSum()
}

func scrapeNode(t *testing.T, addr string) figures {
	t.Helper()
	res, err := http.Get("http://" + addr + "/metrics")
	if err != nil {
		t.Fatal(err)
	}
	defer res.Body.Close()
	parser := expfmt.NewTextParser(model.LegacyValidation)
	families, err := parser.TextToMetricFamilies(res.Body)
	if err != nil || res.StatusCode != http.StatusOK {
		t.Fatal(res.Status, err)
	}
	f := figures{}
	for name, family := range families {
		if family.GetHelp() == "" {
			t.Errorf("%s has no help", name)
		}
		for _, m := range family.Metric {
			var labels []string
			for _, l := range m.Label {
				labels = append(labels, fmt.Sprintf("%s=%q", l.GetName(), l.GetValue()))
			}
			f[name+"{"+strings.Join(labels, ",")+"}"] = m
		}
	}
	return f
}

// What a node shows for scraping is what hosts have asked and what its status says.
func TestMetrics(t *testing.T) {
	r := newRig(t, "a", "c")
	r.nodes["a"].cfg.HTTP = "127.0.0.1:0"
	var addr string
	r.stop("a")
	r.http = &addr
	r.start("a")
	g := r.group(1, 16<<20)
	g.Compress = control.CompressS2
	r.set(&g, nil)
	load := proof.New(r.disks("a", 1), proof.Options{Seed: 5, Depth: 8, ReadPercent: 20, FlushEvery: 10})
	stop := keepRunning(t, load)
	for range 5 { // beside the load
		scrapeNode(t, addr)
		time.Sleep(50 * time.Millisecond)
	}
	stop()
	r.waitFor("applied", func() bool { st := r.status("a"); return st.Applied == st.Appended })
	f, st := scrapeNode(t, addr), r.status("a")
	for _, op := range []string{"read", "write", "flush", "other"} {
		asked := f.value(t, fmt.Sprintf("gantline_volume_host_requests_total{op=%q,volume=\"v1\"}", op))
		waited, sum := f.histogram(t, fmt.Sprintf("gantline_volume_host_wait_seconds{op=%q,volume=\"v1\"}", op))
		if asked != waited || op != "other" && (asked == 0 || sum <= 0) {
			t.Errorf("%s: %v requests, %v of them waited %v s", op, asked, waited, sum)
		}
	}
	writes := f.value(t, `gantline_volume_host_requests_total{op="write",volume="v1"}`)
	if st.Appended < uint64(writes) {
		t.Errorf("%v writes of hosts, the log has %d records", writes, st.Appended)
	}
	syncs, took := f.histogram(t, `gantline_log_sync_seconds{group="g"}`)
	if synced := f.value(t, `gantline_log_synced_records_total{group="g"}`); synced < writes || syncs == 0 || syncs > synced || took <= 0 {
		t.Errorf("%v syncs in %v s for %v records, hosts have written %v", syncs, took, synced, writes)
	}
	raw, sent := f.value(t, `gantline_group_batch_bytes_total{group="g",stage="raw"}`), f.value(t, `gantline_group_batch_bytes_total{group="g",stage="sent"}`)
	if sent == 0 || sent > raw || raw < 4096*writes/2 {
		t.Errorf("%v bytes of batches were sent as %v", raw, sent)
	}
	for key, want := range map[string]float64{
		`gantline_group_state{group="g",role="primary",state="paired"}`:            1,
		`gantline_group_lag_writes{group="g"}`:                                     0,
		`gantline_group_lag_bytes{group="g"}`:                                      0,
		`gantline_group_lag_seconds{group="g"}`:                                    0,
		`gantline_group_late{group="g"}`:                                           0,
		`gantline_group_copy_stopped{group="g"}`:                                   0,
		`gantline_group_consistent{group="g"}`:                                     1,
		`gantline_group_epoch{group="g"}`:                                          1,
		`gantline_group_overruns_total{group="g"}`:                                 0,
		`gantline_group_link_up{group="g"}`:                                        1,
		`gantline_group_link_connections{group="g"}`:                               float64(st.Connections),
		`gantline_group_sequence{cursor="appended",group="g"}`:                     float64(st.Appended),
		`gantline_group_sequence{cursor="applied",group="g"}`:                      float64(st.Applied),
		`gantline_journal_capacity_bytes{group="g"}`:                               float64(st.JournalCapacity),
		`gantline_cache_limit_bytes{group="g"}`:                                    64 << 20, // an eighth of the node's 512 MiB
		`gantline_cache_full_waits_total{group="g"}`:                               0,
		`gantline_volume_info{group="g",mode="normal",role="primary",volume="v1"}`: 1,
	} {
		if got := f.value(t, key); got != want {
			t.Errorf("%s is %v, want %v", key, got, want)
		}
	}
	for _, key := range []string{`gantline_group_link_rtt_seconds{group="g"}`, `gantline_group_wan_bytes_total{group="g"}`,
		`gantline_volume_host_bytes_total{op="write",volume="v1"}`, `gantline_cache_bytes{group="g"}`, `gantline_cache_unsent_bytes{group="g"}`} {
		if f.value(t, key) < 0 {
			t.Errorf("%s is negative", key)
		}
	}
}
