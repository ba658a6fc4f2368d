package control

import (
	"strings"
	"testing"
)

// Places that go on are one; more than can be listed are counted.
func TestMoveCheckCountsWhatItDoesNotList(t *testing.T) {
	var c MoveCheck
	add := func(off int64, next bool) { c.Add(VerifyExtent{Volume: "b/v1", Offset: off, Length: 10}, next) }
	add(0, false)
	add(10, true)
	for i := range int64(MaxPlaces + 4) {
		add(100+20*i, false)
	}
	add(110+20*(MaxPlaces+3), true) // goes on where nothing is listed
	if c.Places != MaxPlaces+5 || len(c.Different) != MaxPlaces || c.DifferentBytes != 10*(MaxPlaces+7) {
		t.Errorf("%d places, %d listed, %d bytes", c.Places, len(c.Different), c.DifferentBytes)
	}
	if first := c.Different[0]; first.Length != 20 || c.Different[MaxPlaces-1].Length != 10 {
		t.Errorf("%+v … %+v", first, c.Different[MaxPlaces-1])
	}
	if s := c.List(2); !strings.Contains(s, "b/v1: 20 bytes at 0; b/v1: 10 bytes at 100; and 259 places more") {
		t.Error(s)
	}
}
