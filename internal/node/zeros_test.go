package node

import (
	"testing"

	"gantline/internal/block"
)

// What a source has not spoken of is no hole, nor what has a byte of data; a region is one only as a whole.
func TestZeroMapKnowsWhatItWasTold(t *testing.T) {
	const far = int64(5 * zeroWindow)
	var z zeroMap
	if z.hole(0, regionSize) || z.known(0) {
		t.Fatal("it knows something without an answer")
	}
	z.add(5, dataIn([]block.Extent{
		{Offset: far, Length: 4 * regionSize, Type: block.ExtentHole},
		{Offset: far + 4*regionSize, Length: 4096, Type: block.ExtentData},
		{Offset: far + 4*regionSize + 4096, Length: zeroWindow - 5*regionSize - 4096, Type: block.ExtentZero},
	}, far, zeroWindow)) // it does not speak of the last region
	for _, c := range []struct {
		off, n int64
		want   bool
	}{
		{far, 4 * regionSize, true},
		{far, 5 * regionSize, false},
		{far + 4*regionSize, regionSize, false},
		{far + 5*regionSize, regionSize, true},
		{far + zeroWindow - 2*regionSize, regionSize, true},
		{far + zeroWindow - regionSize, regionSize, false},
		{far + zeroWindow - 2*regionSize, 2 * regionSize, false},
		{far - regionSize, 2 * regionSize, false}, // nothing is known of the first
		{far + 5*regionSize, 4096, true},
	} {
		if got := z.hole(c.off, c.n); got != c.want {
			t.Errorf("%d bytes at %d: hole %v", c.n, c.off, got)
		}
	}
	for w := range int64(zeroWindows + 1) {
		z.add(w+10, nil)
	}
	if len(z.windows) > zeroWindows {
		t.Errorf("%d answers are kept", len(z.windows))
	}
}
