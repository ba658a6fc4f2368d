package node

import (
	"context"
	"encoding/binary"
	"errors"
	"log/slog"
	"os"
	"path/filepath"
	"sync/atomic"
	"time"
)

// wanCounter counts bytes put on links to a group's secondary by this node, across restarts. A killed process keeps all
// but its last second: the count is a figure for people and for tests of what was sent, nothing is decided by it.
type wanCounter struct {
	path  string
	count atomic.Int64
	saved int64
}

func openWAN(dir, group string) *wanCounter {
	w := &wanCounter{path: filepath.Join(dir, "maps", group+".wan")}
	if raw, err := os.ReadFile(w.path); err == nil && len(raw) == 8 {
		w.saved = int64(binary.LittleEndian.Uint64(raw))
		w.count.Store(w.saved)
	}
	return w
}

func (w *wanCounter) add(n int64)  { w.count.Add(n) }
func (w *wanCounter) total() int64 { return w.count.Load() }

func (w *wanCounter) keep(ctx context.Context, log *slog.Logger) {
	tick := time.NewTicker(time.Second)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
			if err := w.save(); err != nil {
				log.Warn("byte count not kept", "path", w.path, "cause", err)
			}
		}
	}
}

func (w *wanCounter) save() error {
	now := w.count.Load()
	if now == w.saved {
		return nil
	}
	raw := binary.LittleEndian.AppendUint64(nil, uint64(now))
	f, err := os.OpenFile(w.path, os.O_CREATE|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	_, err = f.WriteAt(raw, 0)
	if err == nil {
		w.saved = now
	}
	return errors.Join(err, f.Close())
}

func (w *wanCounter) close() error { return w.save() }
