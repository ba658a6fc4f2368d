package control

import (
	"maps"
	"testing"
)

func TestVvolIsLedByGateway(t *testing.T) {
	v := Vvol{Volume: "a/v"}
	for i, s := range []struct {
		do      func() bool
		changed bool
		volume  string
		at      map[string]string
	}{
		{func() bool { return v.Lead("b/v", "g1") }, true, "a/v", map[string]string{"g1": "b/v"}},
		{func() bool { return v.Lead("b/v", "g1") }, false, "a/v", map[string]string{"g1": "b/v"}},
		{func() bool { return v.Lead("x/v", "g2", "g3") }, true, "a/v", map[string]string{"g1": "b/v", "g2": "x/v", "g3": "x/v"}},
		{func() bool { return v.Relead("a/v", "b/v") }, true, "b/v", map[string]string{"g2": "x/v", "g3": "x/v"}},
		{func() bool { return v.Relead("a/v", "b/v") }, false, "b/v", map[string]string{"g2": "x/v", "g3": "x/v"}},
		{func() bool { return v.Relead("b/v", "a/v") }, true, "a/v", map[string]string{"g2": "x/v", "g3": "x/v"}},
		{func() bool { return v.Lead("a/v", "g2") }, true, "a/v", map[string]string{"g3": "x/v"}},
		{func() bool { return v.Relead("x/v", "a/v") }, true, "a/v", nil},
		{func() bool { return v.Lead("a/v") }, false, "a/v", nil},
		{func() bool { v.Lead("b/v", "g1"); return v.Lead("b/v") }, true, "b/v", nil},
	} {
		if changed := s.do(); changed != s.changed || v.Volume != s.volume || !maps.Equal(v.At, s.at) {
			t.Fatalf("step %d: changed %v, %+v", i, changed, v)
		}
	}
}
