package volume

import (
	"encoding/binary"
	"fmt"
	"math/bits"
	"slices"
	"sync"

	"gantline/internal/block"
)

const (
	// sessionWindow is how far a session's numbers may run ahead of its oldest unanswered one. Numbers further below
	// the newest than this count as answered to their host; a write with such a number is refused, never executed.
	sessionWindow = 4096
	// maxSessions bounds the table. At the limit the session that has been silent longest is forgotten; a replay of
	// its requests would execute again, which its gateway does not do: it has long been cut off by its silence.
	maxSessions = 4096

	doneVersion = 1
)

// doneTable remembers which writes of which sessions have been logged, so that a replay is answered without executing
// it again. It is rebuilt from the log's entries and the checkpoint's snapshot, and travels with a hand-over.
//
// A number becomes done only after its record has been appended; all changes are made under the group's commit mutex.
// A replay of a request that is still on its way therefore comes behind it: the commit mutex is where it waits.
type doneTable struct {
	mu       sync.Mutex
	sessions map[uint64]*session
	clock    uint64
	batch    uint64
}

// session of a host connection: numbers in (newest-sessionWindow, newest] have a bit, at number mod sessionWindow.
type session struct {
	newest, floor  uint64
	used           uint64 // doneTable.clock at the last use
	batch, inBatch uint64 // newest number met in that batch
	bits           [sessionWindow / 64]uint64
}

type doneState uint8

const (
	doneNot   doneState = 1
	doneYes   doneState = 2
	doneStale doneState = 3 // so old that it is not known; must not execute
	doneMaybe doneState = 4 // not done, but this batch may hold the same number already
)

func newDoneTable() *doneTable { return &doneTable{sessions: map[uint64]*session{}} }

func (s *session) low() uint64 {
	if s.newest > sessionWindow {
		return max(s.floor, s.newest-sessionWindow)
	}
	return s.floor
}

func (s *session) test(n uint64) bool {
	return s.bits[n%sessionWindow/64]&(1<<(n%64)) != 0
}

// look answers whether a write has been done, and lifts the session's floor.
func (t *doneTable) look(id, number, floor uint64) doneState {
	s := t.sessions[id]
	if s == nil {
		return doneNot
	}
	s.floor = max(s.floor, floor)
	switch {
	case number <= s.floor:
		return doneYes // answered to its host: a late duplicate
	case number <= s.low():
		return doneStale
	case number <= s.newest && s.test(number):
		return doneYes
	case s.batch == t.batch && number <= s.inBatch:
		return doneMaybe
	}
	s.batch, s.inBatch = t.batch, number
	return doneNot
}

// lift raises the floors of the sessions that have just been met for the first time.
func (t *doneTable) lift(reqs []*block.Request) {
	t.mu.Lock()
	defer t.mu.Unlock()
	for _, r := range reqs {
		if s := t.sessions[r.Session]; s != nil {
			s.floor = max(s.floor, r.Floor)
		}
	}
}

// set records a write as done.
func (t *doneTable) set(id, number, floor uint64) {
	s := t.sessions[id]
	if s == nil {
		if len(t.sessions) >= maxSessions {
			t.forgetOldest()
		}
		s = &session{}
		t.sessions[id] = s
	}
	t.clock++
	s.used = t.clock
	s.floor = max(s.floor, floor)
	if number > s.newest {
		s.advance(number)
	}
	if number > s.low() {
		s.bits[number%sessionWindow/64] |= 1 << (number % 64)
	}
}

// advance clears the bits of the numbers between the newest and n, whose places held older numbers.
func (s *session) advance(n uint64) {
	if n-s.newest >= sessionWindow {
		s.bits = [sessionWindow / 64]uint64{}
	} else {
		for i := s.newest + 1; i <= n; i++ {
			s.bits[i%sessionWindow/64] &^= 1 << (i % 64)
		}
	}
	s.newest = n
}

func (t *doneTable) forgetOldest() {
	var oldest uint64
	used := ^uint64(0)
	for id, s := range t.sessions {
		if s.used < used {
			oldest, used = id, s.used
		}
	}
	delete(t.sessions, oldest)
}

// encode writes the table, latest used sessions first, in at most limit bytes; sessions that do not fit are left out.
//
//	version u8, then per session: id u64, floor uvarint, newest uvarint, runs uvarint,
//	and as many runs of {not done, done} uvarints from max(floor, newest-sessionWindow)+1 on
func (t *doneTable) encode(limit int) []byte {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.encodeLocked(limit)
}

func (t *doneTable) encodeLocked(limit int) []byte {
	ids := make([]uint64, 0, len(t.sessions))
	for id := range t.sessions {
		ids = append(ids, id)
	}
	slices.SortFunc(ids, func(a, b uint64) int {
		if t.sessions[a].used > t.sessions[b].used {
			return -1
		}
		return 1
	})
	out := []byte{doneVersion}
	for _, id := range ids {
		one := t.sessions[id].encode(id)
		if len(out)+len(one) > limit {
			break
		}
		out = append(out, one...)
	}
	return out
}

func (s *session) encode(id uint64) []byte {
	var runs []byte
	count := uint64(0)
	for n := s.low() + 1; n <= s.newest; {
		start := n
		for n <= s.newest && !s.test(n) {
			n++
		}
		middle := n
		for n <= s.newest && s.test(n) {
			n++
		}
		runs = binary.AppendUvarint(runs, middle-start)
		runs = binary.AppendUvarint(runs, n-middle)
		count++
	}
	out := binary.LittleEndian.AppendUint64(nil, id)
	out = binary.AppendUvarint(out, s.floor)
	out = binary.AppendUvarint(out, s.newest)
	out = binary.AppendUvarint(out, count)
	return append(out, runs...)
}

// decode merges an encoded table into t; damaged input changes nothing.
func (t *doneTable) decode(b []byte) error {
	if len(b) == 0 {
		return nil
	}
	if b[0] != doneVersion {
		return fmt.Errorf("table of done requests: version %d is not known", b[0])
	}
	parsed := map[uint64]*session{}
	for b = b[1:]; len(b) > 0; {
		id, s, rest, err := decodeSession(b)
		if err != nil {
			return err
		}
		if len(parsed) >= maxSessions {
			return fmt.Errorf("table of done requests: more than %d sessions", maxSessions)
		}
		parsed[id], b = s, rest
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	used := uint64(len(parsed))
	t.clock += used
	for id, s := range parsed {
		if old := t.sessions[id]; old != nil && old.newest >= s.newest {
			old.merge(s)
			continue
		} else if old != nil {
			s.merge(old)
		}
		s.used = t.clock
		if t.sessions[id] == nil && len(t.sessions) >= maxSessions {
			t.forgetOldest()
		}
		t.sessions[id] = s
	}
	return nil
}

// merge adds what an older view of the same session knows.
func (s *session) merge(older *session) {
	s.floor = max(s.floor, older.floor)
	for n := s.low() + 1; n <= older.newest; n++ {
		if n > older.low() && older.test(n) {
			s.bits[n%sessionWindow/64] |= 1 << (n % 64)
		}
	}
}

func decodeSession(b []byte) (uint64, *session, []byte, error) {
	bad := fmt.Errorf("table of done requests is damaged")
	if len(b) < 8 {
		return 0, nil, nil, bad
	}
	id := binary.LittleEndian.Uint64(b)
	b = b[8:]
	next := func() uint64 {
		v, n := binary.Uvarint(b)
		if n <= 0 {
			b = nil
			return ^uint64(0)
		}
		b = b[n:]
		return v
	}
	s := &session{floor: next(), newest: next()}
	runs := next()
	if b == nil && runs != 0 || runs > sessionWindow {
		return 0, nil, nil, bad
	}
	for n := s.low() + 1; runs > 0; runs-- {
		not, done := next(), next()
		if not > sessionWindow || done > sessionWindow || n+not+done > s.newest+1 {
			return 0, nil, nil, bad
		}
		n += not
		for range done {
			s.bits[n%sessionWindow/64] |= 1 << (n % 64)
			n++
		}
	}
	return id, s, b, nil
}

// count of done numbers of a session that are still told apart; for tests and status.
func (s *session) count() int {
	total := 0
	for _, w := range s.bits {
		total += bits.OnesCount64(w)
	}
	return total
}

// replace takes over all sessions of another table.
func (t *doneTable) replace(from *doneTable) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.sessions, t.clock = from.sessions, from.clock
}
