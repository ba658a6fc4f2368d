package demo

import (
	"bytes"
	"testing"
	"time"
)

func TestEveryCheckHolds(t *testing.T) {
	var out bytes.Buffer
	report, err := Run(t.Context(), Options{Volumes: 2, Size: 16 << 20, Load: time.Second, Rate: 1500}, &out)
	t.Log(out.String())
	if err != nil {
		t.Fatal(err)
	}
	if !report.OK || report.Host.Writes < 1000 || report.Migration.PauseMS <= 0 || report.WAN.SentBytes < report.WAN.HostBytes {
		t.Fatalf("%+v", report)
	}
}
