package processes

import (
	"testing"

	"gantline/test/site"
)

const (
	mib = int64(1) << 20
	gib = int64(1) << 30
)

func TestMain(m *testing.M) { site.Main(m) }
