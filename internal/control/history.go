package control

import (
	"context"
	"sync"
)

// History is the watching half of a Store: the latest changes and who waits for the next. Implementations call Publish
// in the order of revisions. The zero value begins at revision 0; see Begin.
type History struct {
	mu       sync.Mutex
	base     uint64 // changes at or below are not kept
	kept     []Change
	watchers map[*watcher]struct{}
	closed   bool
}

type watcher struct {
	queue  []Change
	wake   chan struct{} // capacity 1
	behind bool
}

// Begin says that changes at or below revision are not known (a store that was just opened).
func (h *History) Begin(revision uint64) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.base = revision
}

// Publish adds the changes of one transaction.
func (h *History) Publish(changes []Change) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.kept = append(h.kept, changes...)
	if over := len(h.kept) - MaxHistory; over > 0 {
		// Whole transactions are dropped: a watcher never sees a part of one.
		h.base = h.kept[over-1].Revision
		for over < len(h.kept) && h.kept[over].Revision == h.base {
			over++
		}
		h.kept = append([]Change(nil), h.kept[over:]...)
	}
	for w := range h.watchers {
		if len(w.queue)+len(changes) > maxQueue {
			w.behind = true
		} else {
			w.queue = append(w.queue, changes...)
		}
		w.signal()
	}
}

func (w *watcher) signal() {
	select {
	case w.wake <- struct{}{}:
	default:
	}
}

// Watch implements Store.Watch.
func (h *History) Watch(ctx context.Context, from uint64) (<-chan Change, error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.closed {
		return nil, ErrClosed
	}
	if from < h.base {
		return nil, ErrCompacted
	}
	w := &watcher{wake: make(chan struct{}, 1)}
	for _, c := range h.kept {
		if c.Revision > from {
			w.queue = append(w.queue, c)
		}
	}
	if h.watchers == nil {
		h.watchers = map[*watcher]struct{}{}
	}
	h.watchers[w] = struct{}{}
	w.signal()
	out := make(chan Change, 64)
	go h.deliver(ctx, w, out)
	return out, nil
}

// deliver ends with the watcher's context or the store, whichever is first.
func (h *History) deliver(ctx context.Context, w *watcher, out chan<- Change) {
	defer close(out)
	defer func() {
		h.mu.Lock()
		delete(h.watchers, w)
		h.mu.Unlock()
	}()
	for {
		select {
		case <-ctx.Done():
			return
		case <-w.wake:
		}
		h.mu.Lock()
		queue, end := w.queue, w.behind || h.closed
		w.queue = nil
		h.mu.Unlock()
		for _, c := range queue {
			select {
			case out <- c:
			case <-ctx.Done():
				return
			}
		}
		if end {
			return
		}
	}
}

// Close ends all watchers.
func (h *History) Close() {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.closed = true
	for w := range h.watchers {
		w.signal()
	}
}
