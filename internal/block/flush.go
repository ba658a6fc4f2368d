package block

import "sync"

// flusher runs a device's fdatasync for any number of callers: one at a time, shared by all who were waiting when it
// began.
//
// It is not only a saving. Linux tells a write-back error once per open file: of two fdatasync calls side by side one
// fails, and the other, whose data is lost as well, may return nil. So the calls are serialised, and a failure is
// given to everyone who was waiting when it happened.
type flusher struct {
	sync func() error

	mu       sync.Mutex
	wake     sync.Cond
	running  bool
	waiting  int    // callers behind the running one
	started  uint64 // runs begun
	done     uint64 // runs ended
	failures uint64
	first    error // of the first failure
	last     error // of the latest
}

func newFlusher(sync func() error) *flusher {
	f := &flusher{sync: sync}
	f.wake.L = &f.mu
	return f
}

// Flush returns nil once a run of sync that began after Flush was called has ended well.
func (f *flusher) Flush() error {
	f.mu.Lock()
	defer f.mu.Unlock()
	failures, want := f.failures, f.started+1
	for f.done < want && f.failures == failures {
		if f.running {
			f.waiting++
			f.wake.Wait()
			f.waiting--
			continue
		}
		f.run()
	}
	if f.failures != failures {
		return f.last
	}
	return nil
}

// lost notes a failure that something else than sync was told of: whoever waits for a Flush now gets it too.
func (f *flusher) lost(err error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.failed(err)
	f.wake.Broadcast()
}

// run does one sync; it is called and returns with mu locked.
func (f *flusher) run() {
	f.running = true
	f.started++
	f.mu.Unlock()
	err := f.sync()
	f.mu.Lock()
	f.running = false
	f.done = f.started
	if err != nil {
		f.failed(err)
	}
	f.wake.Broadcast()
}

// failed counts a failure, with mu locked.
func (f *flusher) failed(err error) {
	f.failures++
	f.last = err
	if f.first == nil {
		f.first = err
	}
}

// Failed returns the first failure, nil if there was none.
func (f *flusher) Failed() error {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.first
}
