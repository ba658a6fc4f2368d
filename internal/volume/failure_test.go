package volume

import (
	"errors"
	"testing"
	"time"

	"gantline/internal/block"
)

var errInjected = errors.New("injected")

// TestFailedLogSyncFailsTheGroup: nothing is acknowledged after it, nothing retried; recovery goes on.
func TestFailedLogSyncFailsTheGroup(t *testing.T) {
	_, seed := seeded(t)
	s := newSite(t, seed, 1, testSize, 4<<20)
	told := make(chan error, 1)
	s.cfg.OnFailed = func(err error) { told <- err }
	s.cfg.SyncDelay = time.Hour
	s.open()
	if err := write(s.vols[0], 0, stamp(1, 4096), block.FlagFUA); err != nil {
		t.Fatal(err)
	}
	struck := 0
	s.jdev.SetHook(func(c block.Call, _, _ int64) error {
		if c == block.CallFlush {
			struck++
			return errInjected
		}
		return nil
	})
	if err := write(s.vols[0], 0, stamp(2, 4096), 0); err != nil {
		t.Fatal(err)
	}
	if err := flush(s.vols[0]); !errors.Is(err, block.ErrIO) || struck == 0 {
		t.Fatalf("flush: %v, %d syncs failed", err, struck)
	}
	if err := <-told; !errors.Is(err, ErrFailed) || !errors.Is(err, errInjected) {
		t.Fatal(err)
	}
	s.jdev.SetHook(nil)
	for _, err := range []error{flush(s.vols[0]), write(s.vols[0], 0, stamp(3, 4096), 0), s.g.Checkpoint(t.Context())} {
		if err == nil {
			t.Fatal("a failed group goes on")
		}
	}
	if s.vols[0].Mode() != ModeFailed {
		t.Fatalf("mode %s", s.vols[0].Mode())
	}
	s.crash()
	s.cfg.OnFailed = nil
	s.open()
	if got := read(t, s.vols[0], 0, 1); got[0] != 1 && got[0] != 2 {
		t.Fatalf("block holds %d", got[0])
	}
	s.close()
}

// TestFailedDeviceFlushMovesNoCheckpoint: all that the device may have lost is still in the log.
func TestFailedDeviceFlushMovesNoCheckpoint(t *testing.T) {
	_, seed := seeded(t)
	for _, call := range []block.Call{block.CallFlush, block.CallWrite} {
		s := newSite(t, seed, 1, testSize, 4<<20)
		s.open()
		for i := range 10 {
			if err := write(s.vols[0], int64(i)*4096, stamp(i+1, 4096), block.FlagFUA); err != nil {
				t.Fatal(err)
			}
		}
		struck := false
		s.devs[0].SetHook(func(c block.Call, _, _ int64) error {
			if c == call {
				struck = true
				return errInjected
			}
			return nil
		})
		if err := s.g.Checkpoint(t.Context()); err == nil || !struck {
			t.Fatalf("%s: checkpoint passed (struck %v)", call, struck)
		}
		if c := s.jnl.Cursors(); c.Trimmed != 0 {
			t.Fatalf("%s: trimmed to %d", call, c.Trimmed)
		}
		s.crash()
		s.open()
		for i := range 10 {
			if got := read(t, s.vols[0], int64(i)*4096, 4096); string(got) != string(stamp(i+1, 4096)) {
				t.Fatalf("%s: block %d holds %d", call, i, got[0])
			}
		}
		s.close()
	}
}

// TestFailedAppendFailsTheGroup: the write is answered with an error and never seen.
func TestFailedAppendFailsTheGroup(t *testing.T) {
	_, seed := seeded(t)
	s := newSite(t, seed, 1, testSize, 4<<20)
	s.open()
	s.jdev.SetHook(func(c block.Call, _, _ int64) error {
		if c == block.CallWrite {
			return errInjected
		}
		return nil
	})
	if err := write(s.vols[0], 0, stamp(1, 4096), 0); !errors.Is(err, block.ErrIO) {
		t.Fatalf("write: %v", err)
	}
	if s.g.Err() == nil || s.g.Appended() != 0 {
		t.Fatalf("group %v, appended %d", s.g.Err(), s.g.Appended())
	}
	s.crash()
}

// TestLoneVolume: straight to the device; a failed flush is never made good by a later one; joining keeps the content.
func TestLoneVolume(t *testing.T) {
	_, seed := seeded(t)
	s := newSite(t, seed, 1, testSize, 4<<20)
	s.open()
	dev := block.NewCrashable(testSize, int64(seed)+9)
	v := NewVolume("lone", dev, Options{})
	if err := write(v, 4096, stamp(7, 4096), block.FlagFUA); err != nil {
		t.Fatal(err)
	}
	if dev.Unsynced() != 0 {
		t.Fatal("an acknowledged FUA write is not durable")
	}
	if err := s.g.Add(t.Context(), Member{Number: 2, Volume: v}, []byte(`{"change":"add"}`)); err != nil {
		t.Fatal(err)
	}
	if err := write(v, 8192, stamp(8, 4096), 0); err != nil {
		t.Fatal(err)
	}
	if s.g.Appended() != 2 {
		t.Fatalf("appended %d", s.g.Appended())
	}
	if err := s.g.Remove(t.Context(), 2, nil); err != nil {
		t.Fatal(err)
	}
	if got := deviceBytes(t, dev)[4096:12288]; string(got) != string(append(stamp(7, 4096), stamp(8, 4096)...)) {
		t.Fatal("the device is not complete after leaving the group")
	}
	if err := s.g.Add(t.Context(), Member{Number: 2, Volume: v}, nil); !errors.Is(err, ErrBusy) {
		t.Fatalf("a number was used again: %v", err)
	}
	dev.SetHook(func(c block.Call, _, _ int64) error {
		if c == block.CallFlush {
			return errInjected
		}
		return nil
	})
	if err := flush(v); err == nil {
		t.Fatal("flush succeeded")
	}
	dev.SetHook(nil)
	if flush(v) == nil || write(v, 0, stamp(1, 4096), 0) == nil {
		t.Fatal("a lone volume goes on after a failed flush")
	}
	s.close()
}
