package receiver_test

import (
	"testing"
)

// TestBundle and TestBundlePull play the streams' stories on three connections each, which break one by one: see newSite.
func TestBundle(t *testing.T)     { bundleStories(t) }
func TestBundlePull(t *testing.T) { bundleStories(t) }

func bundleStories(t *testing.T) {
	t.Run("stream", TestStream)
	t.Run("link cut anywhere", TestLinkCutAnywhere)
	t.Run("two sources", TestTwoSources)
	t.Run("full log", TestFullLog)
	t.Run("resync behind gap", TestResyncBehindGap)
	t.Run("sources gone", TestRestartWithSourcesGone)
}
