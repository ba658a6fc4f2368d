package node

import (
	"os"
	"path/filepath"
	"testing"
)

// What a process has counted outlives it without having been closed: the file has it at once.
func TestWANCounterSurvivesKill(t *testing.T) {
	path := filepath.Join(t.TempDir(), "g.wan")
	var killed, next wanCounter
	if err := killed.open(path); err != nil {
		t.Fatal(err)
	}
	killed.add(5)
	killed.add(1 << 40)
	if err := next.open(path); err != nil {
		t.Fatal(err)
	}
	if got := next.total(); got != 1<<40+5 {
		t.Errorf("after a kill the count is %d", got)
	}
	for _, w := range []*wanCounter{&killed, &next} {
		if err := w.close(); err != nil {
			t.Fatal(err)
		}
		w.add(1) // a late sender
		if err := w.close(); err != nil {
			t.Errorf("closed twice: %v", err)
		}
	}
	if err := os.WriteFile(path, []byte("torn"), 0o600); err != nil {
		t.Fatal(err)
	}
	var torn wanCounter
	if err := torn.open(path); err != nil || torn.total() != 0 {
		t.Errorf("a torn file counts %d, %v", torn.total(), err)
	}
	if err := torn.close(); err != nil {
		t.Error(err)
	}
}
