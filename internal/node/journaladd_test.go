package node

import (
	"context"
	"os"
	"path/filepath"
	"testing"
	"time"

	"gantline/internal/block"
	"gantline/internal/control"
)

// stalling devices stand still in the first write to a new part of a journal.
type stalling struct {
	machine
	begun, goOn chan struct{}
}

type stallingDevice struct {
	block.Device
	s *stalling
}

func (s *stalling) Create(path string, size int64) (block.Device, error) {
	d, err := s.machine.Create(path, size)
	if err != nil || filepath.Base(path) != "jg.1.jnl" {
		return d, err
	}
	return &stallingDevice{d, s}, nil
}

func (d *stallingDevice) WriteAt(p []byte, off int64) (int, error) {
	if off == 0 {
		select {
		case <-d.s.begun:
		default:
			close(d.s.begun)
		}
		<-d.s.goOn
	}
	return d.Device.WriteAt(p, off)
}

// TestNodeWorksWhileAJournalGrows: while a new part is written, hosts write, and the node takes other commands. The journal
// cannot be formatted or deleted under it, and the repeated command waits for its end.
func TestNodeWorksWhileAJournalGrows(t *testing.T) {
	s := &stalling{begun: make(chan struct{}), goOn: make(chan struct{})}
	r := newRig(t, "a", "c")
	r.stop("a")
	r.nodes["a"].cfg.Devices = s
	r.start("a")
	r.group(1, 1<<20)
	had := r.journal("a", "jg")
	add := control.JournalAdd{Name: "jg", Size: 4 << 20, Have: had.Devices}
	ended := make(chan error, 2)
	for range 2 { // and its repetition
		go func() { ended <- r.try("a", control.CallJournalAdd, add, nil) }()
	}
	<-s.begun
	ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
	defer cancel()
	for what, call := range map[string]func() error{
		"volume create": func() error {
			return r.nodes["a"].caller.Call(ctx, control.CallVolumeCreate, control.VolumeCreate{Name: "v2", Size: 1 << 20}, nil)
		},
		"group verify": func() error {
			return r.nodes["a"].caller.Call(ctx, control.CallGroupVerify, control.GroupVerify{Name: "g"}, nil)
		},
	} {
		if err := call(); err != nil {
			t.Errorf("%s while a journal grows: %v", what, err)
		}
	}
	writeTo(t, r.disks("a", 1)[0].Target, 0, 4096, 1)
	if err := r.try("a", control.CallJournalDelete, control.NameOnly{Name: "jg"}, nil); err == nil {
		t.Error("a journal that grows was deleted")
	}
	if j := r.journal("a", "jg"); j.Size != had.Size || len(ended) > 0 {
		t.Fatalf("%+v before the part is written", j)
	}
	close(s.goOn)
	for range 2 {
		if err := <-ended; err != nil {
			t.Error(err)
		}
	}
	if j := r.journal("a", "jg"); j.Size != had.Size+4<<20 || len(j.Devices) != 2 || j.Capacity <= had.Capacity {
		t.Fatalf("grown from %+v to %+v", had, j)
	}
}

// TestUnfinishedPartGoes: a node that died while it wrote a part has none of it left; a part with a label is left alone.
func TestUnfinishedPartGoes(t *testing.T) {
	r := newRig(t, "a")
	for _, name := range []string{"jg", "jh"} {
		r.call("a", control.CallJournalCreate, control.JournalCreate{Name: name, Size: 4 << 20}, nil)
	}
	r.stop("a")
	dir := filepath.Join(r.nodes["a"].cfg.DataDir, "journals")
	labelled := make([]byte, 1<<20)
	labelled[0] = 'x'
	for name, data := range map[string][]byte{"jg.1.jnl": make([]byte, 1<<20), "jh.1.jnl": labelled} {
		if err := os.WriteFile(filepath.Join(dir, name), data, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	r.start("a")
	if _, err := os.Stat(filepath.Join(dir, "jg.1.jnl")); !os.IsNotExist(err) {
		t.Errorf("the unfinished part: %v", err)
	}
	if _, err := os.Stat(filepath.Join(dir, "jh.1.jnl")); err != nil {
		t.Errorf("the part with a label: %v", err)
	}
	for _, name := range []string{"jg", "jh"} {
		have := r.journal("a", name)
		r.call("a", control.CallJournalAdd, control.JournalAdd{Name: name, Size: 1 << 20, Have: have.Devices}, nil)
	}
}
