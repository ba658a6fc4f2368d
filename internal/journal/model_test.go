package journal

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"strings"
	"testing"

	"pgregory.net/rapid"

	"gantline/internal/block"
	"gantline/internal/record"
)

// model is what a journal may hold. Every call updates it whether the call succeeds or dies half-way: then both the
// state before and after are allowed.
type model struct {
	t   *rapid.T
	rng *rand.Rand
	mem []*block.Crashable
	j   *Journal

	recs     map[record.Seq]record.Record // the last one tried of each number
	attempt  record.Seq                   // highest number tried
	stored   record.Seq                   // appended without an error
	durable  record.Seq                   // confirmed
	trimmed  record.Seq                   // confirmed
	trimTry  record.Seq
	cutTry   record.Seq // a cut that may or may not have happened; 0: none
	metas    []string   // allowed
	gaps     map[record.Seq]record.Seq
	inc      record.Incarnation
	faulty   bool
	dropped  bool // a sync failed: what was not durable may be gone even while the machine lives
	receiver bool
}

func newModel(t *rapid.T) *model {
	seed := rapid.Int64().Draw(t, "seed")
	m := &model{t: t, rng: rand.New(rand.NewPCG(uint64(seed), 1)), recs: map[record.Seq]record.Record{}, metas: []string{""},
		gaps: map[record.Seq]record.Seq{}}
	m.receiver = rapid.Bool().Draw(t, "receiver")
	sizes := []int64{dataAt0 + 48*pageSize}
	if rapid.Bool().Draw(t, "several devices") {
		sizes = []int64{dataAt0 + pageSize, dataAtN + 3*pageSize, dataAtN + 40*pageSize}
	}
	for i, n := range sizes {
		m.mem = append(m.mem, block.NewCrashable(n, seed+int64(i)))
	}
	if err := create(devices(m.mem), testID, 48, pageSize); err != nil {
		t.Fatal(err)
	}
	m.reopen(true)
	return m
}

// record makes a record whose bytes nobody wrote before, also where the number was used before: worse than what a
// receiver can see, whose sender repeats the same bytes.
func (m *model) record(seq record.Seq) record.Record {
	row, _ := m.j.Table().At(seq)
	r := record.Record{Seq: seq, Epoch: row.Epoch, Incarnation: row.Incarnation, Op: record.OpWrite, Mark: seq, Time: m.rng.Int64()}
	if m.rng.IntN(4) == 0 {
		r.Op = record.OpTrim
		return r
	}
	r.Data = make([]byte, 1+m.rng.IntN(3*pageSize))
	for i := range r.Data {
		r.Data[i] = byte(m.rng.Uint32())
	}
	r.Length, r.CRC = uint32(len(r.Data)), record.Checksum(r.Data)
	return r
}

func (m *model) append(withGap bool) {
	first := m.stored + 1
	if withGap {
		first += record.Seq(1 + m.rng.IntN(200))
	}
	var batch []record.Record
	for i := range 1 + m.rng.IntN(6) {
		batch = append(batch, m.record(first+record.Seq(i)))
	}
	call := m.j.Append
	if withGap {
		batch[0].Op, batch[0].Data, batch[0].Length, batch[0].CRC = record.OpBegin, nil, 0, 0
		call = m.j.AppendAfterGap
	}
	err := call(batch)
	if errors.Is(err, ErrFull) {
		return
	}
	if withGap {
		for seq := range m.gaps {
			if seq >= m.stored {
				delete(m.gaps, seq)
			}
		}
		m.gaps[m.stored] = first
	}
	for _, r := range batch {
		m.recs[r.Seq] = r
	}
	m.attempt = batch[len(batch)-1].Seq
	if m.check(err) {
		m.stored = m.attempt
	}
}

// check accepts an error only where a fault was injected.
func (m *model) check(err error) bool {
	if err == nil {
		return true
	}
	if !m.faulty || !errors.Is(err, ErrBroken) {
		m.t.Fatalf("unexpected: %v", err)
	}
	return false
}

func (m *model) sync() {
	seq, err := m.j.Sync()
	if m.check(err) {
		if seq != m.stored {
			m.t.Fatalf("synced to %d of %d", seq, m.stored)
		}
		m.durable = seq
	}
}

func (m *model) trim() {
	if m.durable == m.trimmed || m.j.Err() != nil {
		return
	}
	upTo := m.trimmed + 1 + record.Seq(m.rng.Uint64N(uint64(m.durable-m.trimmed)))
	m.trimTry = upTo
	if m.check(m.j.Trim(upTo)) {
		m.trimmed = upTo
	}
}

func (m *model) meta() {
	text := strings.Repeat(fmt.Sprint(m.rng.Int64()), 1+m.rng.IntN(200))
	if m.check(m.j.SetMeta([]byte(text))) {
		m.metas = nil
	}
	m.metas = append(m.metas, text)
}

func (m *model) cut() {
	if m.stored == m.trimmed || m.j.Err() != nil {
		return
	}
	upTo := m.trimmed + record.Seq(m.rng.Uint64N(uint64(m.stored-m.trimmed)))
	if !m.check(m.j.Cut(upTo)) {
		m.cutTry = upTo + 1
		return
	}
	m.stored = m.j.Cursors().Appended
	if m.stored > upTo {
		m.t.Fatalf("cut to %d left %d", upTo, m.stored)
	}
	m.durable, m.attempt = m.stored, m.stored
	for seq := range m.gaps {
		if seq >= m.stored {
			delete(m.gaps, seq)
		}
	}
	m.begin()
}

func (m *model) reset() {
	base := record.Seq(m.rng.IntN(400))
	m.inc++
	table := record.Table{{Epoch: 1, Incarnation: m.inc, Node: "a", First: 1}}
	before := m.j.ID()
	if !m.check(m.j.Reset(base, table, nil)) {
		// Old or new log: tell by the table after the restart. To keep the model small the journal is made anew.
		m.mem = crash(m.mem)
		if err := create(devices(m.mem), before, 48, pageSize); err != nil {
			m.t.Fatal(err)
		}
		*m = model{t: m.t, rng: m.rng, mem: m.mem, recs: map[record.Seq]record.Record{}, metas: []string{""},
			gaps: map[record.Seq]record.Seq{}, receiver: m.receiver}
		m.reopen(true)
		return
	}
	m.stored, m.durable, m.attempt, m.trimmed, m.trimTry = base, base, base, base, base
	m.recs, m.gaps = map[record.Seq]record.Record{}, map[record.Seq]record.Seq{}
}

// grow has a device join, or dies between its preparation and its joining.
func (m *model) grow() {
	if len(m.mem) > 6 || m.j.Err() != nil {
		return
	}
	dev := block.NewCrashable(dataAtN+int64(2+m.rng.IntN(20))*pageSize, m.rng.Int64())
	if err := Prepare(dev, testID, len(m.mem)); err != nil {
		m.t.Fatal(err)
	}
	m.mem = append(m.mem, dev) // from now on every opening is given it
	_, before := m.j.Space()
	if m.rng.IntN(4) == 0 {
		m.restart(m.rng.IntN(2) == 0)
	} else if !m.check(m.j.Join(dev)) {
		return
	}
	if _, after := m.j.Space(); after <= before {
		m.t.Fatalf("grew from %d to %d", before, after)
	}
	m.compare()
}

// begin opens the log for appending: a receiver in the row that it is in, a primary in a new one.
func (m *model) begin() {
	c := m.j.Cursors()
	cur, ok := m.j.Table().At(c.Appended + 1)
	if m.receiver && ok {
		m.inc = cur.Incarnation
		if err := m.j.Resume(); err != nil {
			m.t.Fatal(err)
		}
		return
	}
	if cur, ok := m.j.Table().Current(); ok {
		m.inc = max(m.inc, cur.Incarnation)
	}
	m.inc++
	row := record.Row{Epoch: 1, Incarnation: m.inc, Node: "a", First: c.Appended + 1}
	if err := m.j.OpenRow(row); err != nil {
		m.t.Fatal(err)
	}
}

// fault arms the n-th write or sync from now on to fail, on whichever device it comes to.
func (m *model) fault() {
	n := 1 + m.rng.IntN(8)
	m.faulty = true
	hook := func(call block.Call, _, _ int64) error {
		if call == block.CallWrite || call == block.CallFlush {
			if n--; n == 0 {
				m.dropped = m.dropped || call == block.CallFlush
				return block.ErrIO
			}
		}
		return nil
	}
	if len(m.mem) > 1 {
		m.mem[m.rng.IntN(len(m.mem))].SetHook(hook) // one device's calls come one after the other, those of several do not
		return
	}
	m.mem[0].SetHook(hook)
}

// restart is a power loss, a killed process or a mere reopening, and what comes after.
func (m *model) restart(power bool) {
	switch {
	case power:
		m.mem = crash(m.mem)
	case m.rng.IntN(2) == 0:
		m.mem = kill(m.mem)
	default:
		for _, d := range m.mem {
			d.SetHook(nil)
		}
	}
	m.faulty = false
	m.reopen(power)
}

// reopen checks what recovery found against what is allowed.
func (m *model) reopen(power bool) {
	j, err := Open(devices(m.mem))
	if err != nil {
		m.t.Fatalf("open: %v", err)
	}
	m.j = j
	c := j.Cursors()
	least := m.stored
	if power || m.dropped {
		least = m.durable
	}
	m.dropped = false
	if m.cutTry > 0 {
		least = min(least, m.before(m.cutTry-1))
	}
	if c.Appended < least || c.Appended > m.attempt || c.Durable != c.Appended {
		m.t.Fatalf("recovered %+v, allowed %d to %d; %+v", c, least, m.attempt, j.Recovery())
	}
	if c.Trimmed != m.trimmed && c.Trimmed != m.trimTry {
		m.t.Fatalf("trimmed to %d, allowed %d or %d", c.Trimmed, m.trimmed, m.trimTry)
	}
	meta := string(j.Meta())
	known := false
	for _, text := range m.metas {
		known = known || text == meta
	}
	if !known {
		m.t.Fatalf("owner's data is %q, allowed %q", meta, m.metas)
	}
	m.metas, m.trimmed, m.trimTry, m.cutTry = []string{meta}, c.Trimmed, c.Trimmed, 0
	m.stored, m.durable, m.attempt = c.Appended, c.Appended, c.Appended
	for seq, begin := range m.gaps {
		if begin > c.Appended {
			delete(m.gaps, seq)
		}
	}
	m.compare()
	m.begin()
}

// before is the last record at or below seq.
func (m *model) before(seq record.Seq) record.Seq {
	for after, begin := range m.gaps {
		if seq > after && seq < begin {
			return max(after, m.trimmed)
		}
	}
	return seq
}

// compare reads the whole log and expects the last bytes written for each number, in order, gaps where they belong.
func (m *model) compare() {
	want := m.trimmed + 1
	for want <= m.stored {
		if m.before(want) != want { // in a gap
			want++
			continue
		}
		got, err := m.j.Read(want, 1+m.rng.IntN(20), m.rng.IntN(60000))
		if err != nil {
			m.t.Fatalf("read %d of %+v: %v", want, m.j.Cursors(), err)
		}
		for _, r := range got {
			if r.Seq != want || !same(r, m.recs[want]) {
				m.t.Fatalf("record %d (wanted %d) differs from what was appended", r.Seq, want)
			}
			want++
		}
	}
}

// TestAgainstModel plays random histories with crashes and faults.
func TestAgainstModel(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		m := newModel(t)
		for range rapid.IntRange(1, 60).Draw(t, "steps") {
			step := rapid.IntRange(0, 21).Draw(t, "step")
			if m.j.Err() != nil {
				step = 16 + step%4
			}
			switch step {
			case 20, 21:
				m.grow()
			case 0, 1, 2, 3, 4, 5, 6:
				m.append(false)
			case 7:
				m.append(m.receiver)
			case 8, 9, 10:
				m.sync()
			case 11, 12:
				m.trim()
			case 13:
				m.meta()
			case 14:
				m.fault()
			case 15:
				if m.receiver && m.rng.IntN(3) == 0 {
					m.reset()
				} else if m.receiver && !m.faulty {
					m.cut()
				}
			case 16, 17:
				m.restart(true)
			case 18:
				m.restart(false)
			default:
				if m.j.Err() == nil {
					m.compare()
				} else {
					m.restart(m.rng.IntN(2) == 0)
				}
			}
		}
		m.mem = crash(m.mem)
		m.faulty = false
		m.reopen(true)
	})
}
