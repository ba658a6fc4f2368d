package store

import (
	"bytes"
	"context"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"sync"
	"time"

	bolt "go.etcd.io/bbolt"
	bolterrors "go.etcd.io/bbolt/errors"

	"gantline/internal/control"
)

var (
	bucketMeta  = []byte("meta")
	bucketState = []byte("state")
	bucketTwin  = []byte("state2")
	keyRevision = []byte("revision")
	keyEvents   = []byte("events")
)

// ErrLocked: another process has the file open.
var ErrLocked = errors.New("the store is open in another process")

// Bolt is a control.Store in one file.
type Bolt struct {
	db      *bolt.DB
	log     *slog.Logger
	commits sync.Mutex // commits publish in the order of their revisions
	history control.History

	mu     sync.Mutex
	repair map[string]struct{} // keys with one bad copy, written again with the next commit
}

// Open opens or makes the store at path.
func Open(path string, log *slog.Logger) (*Bolt, error) {
	db, err := bolt.Open(path, 0o600, &bolt.Options{Timeout: 200 * time.Millisecond})
	if errors.Is(err, bolterrors.ErrTimeout) {
		return nil, fmt.Errorf("store %s: %w", path, ErrLocked)
	}
	if err != nil {
		return nil, fmt.Errorf("store %s: %w", path, err)
	}
	s := &Bolt{db: db, log: log, repair: map[string]struct{}{}}
	err = db.Update(func(tx *bolt.Tx) error {
		for _, name := range [][]byte{bucketMeta, bucketState, bucketTwin} {
			if _, err := tx.CreateBucketIfNotExists(name); err != nil {
				return err
			}
		}
		s.history.Begin(number(tx, keyRevision))
		return nil
	})
	if err != nil {
		return nil, errors.Join(fmt.Errorf("store %s: %w", path, err), db.Close())
	}
	return s, nil
}

func number(tx *bolt.Tx, key []byte) uint64 {
	if b := tx.Bucket(bucketMeta).Get(key); len(b) == 8 {
		return binary.BigEndian.Uint64(b)
	}
	return 0
}

func setNumber(tx *bolt.Tx, key []byte, n uint64) error {
	return tx.Bucket(bucketMeta).Put(key, binary.BigEndian.AppendUint64(nil, n))
}

// read gives the good copy of an entry; ok is false if there is none at all.
func (s *Bolt) read(tx *bolt.Tx, key string) (e control.Entry, ok bool, err error) {
	first, second := tx.Bucket(bucketState).Get([]byte(key)), tx.Bucket(bucketTwin).Get([]byte(key))
	if first == nil && second == nil {
		return control.Entry{}, false, nil
	}
	rev, value, err1 := decode(key, first)
	if err1 == nil && bytes.Equal(first, second) {
		return control.Entry{Key: key, Value: slices.Clone(value), Revision: rev}, true, nil
	}
	if err1 != nil {
		var err2 error
		if rev, value, err2 = decode(key, second); err2 != nil {
			return control.Entry{}, false, fmt.Errorf("both copies are bad: %w", err2)
		}
	}
	s.mark(key)
	return control.Entry{Key: key, Value: slices.Clone(value), Revision: rev}, true, nil
}

func (s *Bolt) mark(key string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if _, known := s.repair[key]; !known {
		s.repair[key] = struct{}{}
		s.log.Warn("store: one of two copies of an entry is bad; it is repaired from the other", "key", key)
	}
}

func closed(err error) error {
	if errors.Is(err, bolterrors.ErrDatabaseNotOpen) {
		return control.ErrClosed
	}
	return err
}

// Get implements control.Store.
func (s *Bolt) Get(_ context.Context, key string) (e control.Entry, err error) {
	err = s.db.View(func(tx *bolt.Tx) error {
		var ok bool
		if e, ok, err = s.read(tx, key); err == nil && !ok {
			return control.ErrNotFound
		}
		return err
	})
	return e, closed(err)
}

// List implements control.Store.
func (s *Bolt) List(_ context.Context, prefix string) (out []control.Entry, revision uint64, err error) {
	err = s.db.View(func(tx *bolt.Tx) error {
		revision = number(tx, keyRevision)
		for _, key := range keys(tx, prefix) {
			e, ok, err := s.read(tx, key)
			if err != nil {
				return err
			}
			if ok {
				out = append(out, e)
			}
		}
		return nil
	})
	return out, revision, closed(err)
}

// keys is the union of both copies' keys: an entry that one of them has lost is still found.
func keys(tx *bolt.Tx, prefix string) []string {
	var out []string
	for _, name := range [][]byte{bucketState, bucketTwin} {
		c := tx.Bucket(name).Cursor()
		for k, _ := c.Seek([]byte(prefix)); k != nil && bytes.HasPrefix(k, []byte(prefix)); k, _ = c.Next() {
			out = append(out, string(k))
		}
	}
	slices.Sort(out)
	return slices.Compact(out)
}

// Commit implements control.Store.
func (s *Bolt) Commit(_ context.Context, txn control.Txn) (uint64, error) {
	if err := txn.Validate(); err != nil {
		return 0, err
	}
	s.commits.Lock()
	defer s.commits.Unlock()
	var rev uint64
	var changes []control.Change
	err := s.db.Update(func(tx *bolt.Tx) error {
		changes = nil
		for _, c := range txn.Checks {
			e, _, err := s.read(tx, c.Key)
			if err != nil {
				return err
			}
			if e.Revision != c.Revision {
				return control.ErrConflict
			}
		}
		rev = number(tx, keyRevision) + 1
		var err error
		changes, err = s.write(tx, txn, rev)
		return err
	})
	if err != nil {
		return 0, closed(err)
	}
	s.history.Publish(changes)
	return rev, nil
}

func (s *Bolt) write(tx *bolt.Tx, txn control.Txn, rev uint64) ([]control.Change, error) {
	if err := s.repairAll(tx); err != nil {
		return nil, err
	}
	var changes []control.Change
	puts := slices.Clone(txn.Puts)
	for i, ev := range txn.Events {
		ev.Revision = rev
		value, err := json.Marshal(ev)
		if err != nil {
			return nil, err
		}
		puts = append(puts, control.Put{Key: control.EventKey(rev, i), Value: value})
	}
	for _, p := range puts {
		if err := put(tx, p.Key, rev, p.Value); err != nil {
			return nil, err
		}
		changes = append(changes, control.Change{Key: p.Key, Value: slices.Clone(p.Value), Revision: rev})
	}
	for _, key := range txn.Deletes {
		had, err := remove(tx, key)
		if err != nil {
			return nil, err
		}
		if had {
			changes = append(changes, control.Change{Key: key, Deleted: true, Revision: rev})
		}
	}
	if err := dropEvents(tx, uint64(len(txn.Events))); err != nil {
		return nil, err
	}
	return changes, setNumber(tx, keyRevision, rev)
}

func put(tx *bolt.Tx, key string, rev uint64, value []byte) error {
	b := encode(key, rev, value)
	if err := tx.Bucket(bucketState).Put([]byte(key), b); err != nil {
		return err
	}
	return tx.Bucket(bucketTwin).Put([]byte(key), b)
}

func remove(tx *bolt.Tx, key string) (had bool, err error) {
	for _, name := range [][]byte{bucketState, bucketTwin} {
		b := tx.Bucket(name)
		had = had || b.Get([]byte(key)) != nil
		if err := b.Delete([]byte(key)); err != nil {
			return had, err
		}
	}
	return had, nil
}

// repairAll writes entries of which one copy was found bad again, with the revision they have.
func (s *Bolt) repairAll(tx *bolt.Tx) error {
	s.mu.Lock()
	todo := s.repair
	s.repair = map[string]struct{}{}
	s.mu.Unlock()
	for key := range todo {
		e, ok, err := s.read(tx, key)
		if err != nil {
			return err
		}
		if !ok {
			continue
		}
		if err := put(tx, key, e.Revision, e.Value); err != nil {
			return err
		}
		s.mu.Lock()
		delete(s.repair, key) // read has marked it again
		s.mu.Unlock()
	}
	return nil
}

// dropEvents forgets the oldest events beyond the limit; a tenth at a time, so that it costs little on average.
func dropEvents(tx *bolt.Tx, added uint64) error {
	if added == 0 {
		return nil
	}
	kept := number(tx, keyEvents) + added
	if kept > control.MaxEvents {
		all := keys(tx, control.KindEvent+"/")
		drop := len(all) - control.MaxEvents*9/10
		for _, key := range all[:max(drop, 0)] {
			if _, err := remove(tx, key); err != nil {
				return err
			}
		}
		kept = uint64(len(all) - max(drop, 0))
	}
	return setNumber(tx, keyEvents, kept)
}

// Watch implements control.Store.
func (s *Bolt) Watch(ctx context.Context, from uint64) (<-chan control.Change, error) {
	return s.history.Watch(ctx, from)
}

// Close ends all watchers and unlocks the file.
func (s *Bolt) Close() error {
	s.history.Close()
	return s.db.Close()
}
