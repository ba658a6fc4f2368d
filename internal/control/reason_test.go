package control

import (
	"strings"
	"testing"
)

func TestReason(t *testing.T) {
	for why, want := range map[string]string{
		"": "", "the log is full": "the log is full",
		"link down: dial tcp 10.0.0.12:4711: refused": "link down: dial tcp N.N.N.N:N: refused",
		"a\xffb 1": "a?b N",
	} {
		if got := Reason(why); got != want {
			t.Errorf("%q: %q, want %q", why, got, want)
		}
	}
	if got := Reason(strings.Repeat("é", 500)); len(got) > maxReason+8 {
		t.Errorf("%d bytes", len(got))
	}
}
