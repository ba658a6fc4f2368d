package control

import (
	"context"
	"fmt"
)

// Limits of every Store.
const (
	MaxKey     = 512     // bytes
	MaxValue   = 1 << 20 // bytes
	MaxTxn     = 1024    // checks, puts and deletes together
	MaxEvents  = 10_000  // kept; the oldest are dropped
	MaxHistory = 4096    // changes kept for watchers that begin in the past
	maxQueue   = 8192    // changes waiting for one watcher; it is ended with ErrCompacted beyond
)

// Entry is a key with its value and the revision of the transaction that wrote it.
type Entry struct {
	Key      string
	Value    []byte
	Revision uint64
}

// Check demands that a key still has a revision; 0: that it does not exist.
type Check struct {
	Key      string
	Revision uint64
}

// Put writes a key.
type Put struct {
	Key   string
	Value []byte
}

// Txn is a compare-and-swap over several keys: all checks hold and everything is written, or nothing is.
type Txn struct {
	Checks  []Check
	Puts    []Put
	Deletes []string // deleting what is not there is no error
	// Events are kept with the change that caused them; the store sets their Revision.
	Events []Event
}

// Change is one key of one committed transaction. A deleted key has no Value.
type Change struct {
	Key      string
	Value    []byte
	Deleted  bool
	Revision uint64
}

// Store keeps the control state. Revisions rise by one with every committed transaction. All methods may be called
// concurrently. A committed transaction survives a crash of the process and of the machine.
type Store interface {
	// Get returns ErrNotFound for a key that does not exist.
	Get(ctx context.Context, key string) (Entry, error)
	// List returns the entries whose keys begin with prefix, ascending, and the revision at which that was so.
	List(ctx context.Context, prefix string) ([]Entry, uint64, error)
	// Commit returns the new revision, or ErrConflict and nothing changed.
	Commit(ctx context.Context, txn Txn) (uint64, error)
	// Watch delivers all changes with a revision above from, in order, until ctx ends; then, or when the watcher
	// falls too far behind, the channel is closed. ErrCompacted: from is too old.
	Watch(ctx context.Context, from uint64) (<-chan Change, error)
	Close() error
}

// Validate checks a transaction against the limits, before anything is done with it.
func (t *Txn) Validate() error {
	if n := len(t.Checks) + len(t.Puts) + len(t.Deletes) + len(t.Events); n > MaxTxn {
		return fmt.Errorf("transaction of %d operations: %w", n, ErrTooLarge)
	}
	for _, p := range t.Puts {
		if len(p.Key) == 0 || len(p.Key) > MaxKey || len(p.Value) > MaxValue {
			return fmt.Errorf("key %.64q with a value of %d bytes: %w", p.Key, len(p.Value), ErrTooLarge)
		}
	}
	return nil
}

// Key is the place of an object in the store.
func Key(kind, name string) string { return kind + "/" + name }

// EventKey is the place of the n-th event of a revision; ascending keys are ascending in time.
func EventKey(revision uint64, n int) string {
	return fmt.Sprintf("%s/%016x-%04x", KindEvent, revision, n)
}
