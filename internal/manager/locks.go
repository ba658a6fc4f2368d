package manager

import (
	"context"
	"slices"
	"sync"

	"gantline/internal/control"
)

// keyLocks keeps two operations from working on one object at the same time. They are a convenience that gives clear
// errors instead of lost races; what keeps the state right are the revisions checked in every transaction.
type keyLocks struct {
	mu    sync.Mutex
	locks map[string]*keyLock
}

type keyLock struct {
	held chan struct{} // capacity 1
	refs int
}

// lock takes all keys, in one order, or none.
func (l *keyLocks) lock(ctx context.Context, keys ...string) (unlock func(), err error) {
	slices.Sort(keys)
	keys = slices.Compact(keys)
	var taken []string
	release := func() {
		for _, k := range taken {
			l.put(k, true)
		}
	}
	for _, k := range keys {
		kl := l.get(k)
		select {
		case kl.held <- struct{}{}:
			taken = append(taken, k)
		case <-ctx.Done():
			l.put(k, false)
			release()
			return nil, control.Errorf(control.KindTimeout, "%s: another operation is still working on it", k)
		}
	}
	return release, nil
}

// try is lock for one key, or false at once if somebody has it.
func (l *keyLocks) try(key string) (unlock func(), ok bool) {
	kl := l.get(key)
	select {
	case kl.held <- struct{}{}:
		return func() { l.put(key, true) }, true
	default:
		l.put(key, false)
		return nil, false
	}
}

func (l *keyLocks) get(key string) *keyLock {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.locks == nil {
		l.locks = map[string]*keyLock{}
	}
	kl := l.locks[key]
	if kl == nil {
		kl = &keyLock{held: make(chan struct{}, 1)}
		l.locks[key] = kl
	}
	kl.refs++
	return kl
}

func (l *keyLocks) put(key string, held bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	kl := l.locks[key]
	if held {
		<-kl.held
	}
	if kl.refs--; kl.refs == 0 {
		delete(l.locks, key)
	}
}
