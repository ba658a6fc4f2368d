package apply

import (
	"fmt"
	"slices"

	"gantline/internal/record"
)

// maxSegments bounds what the machine remembers: runs and steps that are stored and not yet applied.
const maxSegments = 1 << 16

// Reason says what the next record waits for.
type Reason uint8

const (
	WaitNothing Reason = 1 // all that is stored has been applied
	WaitDurable Reason = 2 // Seq is not durable here yet
	WaitMark    Reason = 3 // Seq lies above the primary's durable mark
	WaitEnd     Reason = 4 // the step that began at Seq has not ended
	WaitNever   Reason = 5 // after Final: the step that began at Seq will not end
)

func (r Reason) String() string {
	switch r {
	case WaitNothing:
		return "nothing stored"
	case WaitDurable:
		return "not durable here"
	case WaitMark:
		return "above the primary's mark"
	case WaitEnd:
		return "step not ended"
	case WaitNever:
		return "step given up"
	}
	return fmt.Sprintf("reason %d", uint8(r))
}

// Action is the machine's answer: apply From..To, or (Wait not zero) wait, because of Seq.
type Action struct {
	From, To record.Seq
	// Whole: the range belongs to a step, which is on the volumes only when Applied(To) has been called.
	Whole bool
	// Breaks: with this range the image stops being a prefix; State must be durable with Consistent false before.
	Breaks bool

	Wait Reason
	Seq  record.Seq
}

// State is what its owner keeps durable beside the checkpoint of the volumes.
type State struct {
	Applied    record.Seq `json:"applied"`
	Consistent bool       `json:"consistent"`
}

// segment is a run of records that share a fate. Segments ascend; between two of them there may be a gap, and then
// the later one starts with a begin.
type segment struct {
	first, last record.Seq
	step        bool // starts with a begin and is applied whole
	atOnce      bool // starts with a begin and is applied as it comes
	ended       bool // its end is record last
	dropped     bool // an unfinished step in front of a newer begin
}

// Machine holds applied ≤ min(durable, mark) and applied ≤ durable ≤ stored. It is not safe for concurrent use.
type Machine struct {
	state   State
	stored  record.Seq
	durable record.Seq
	mark    record.Seq
	issued  record.Seq // highest sequence that a caller of Next was told to apply
	final   bool
	segs    []segment // not yet wholly applied
}

// New starts from what was applied; the records above it are reported by Stored, in order.
func New(s State) *Machine {
	return &Machine{state: s, stored: s.Applied, durable: s.Applied, mark: s.Applied, issued: s.Applied}
}

// State returns what has been applied.
func (m *Machine) State() State { return m.state }

// StoredSeq returns the last record reported.
func (m *Machine) StoredSeq() record.Seq { return m.stored }

// MarkSeq returns the highest mark heard.
func (m *Machine) MarkSeq() record.Seq { return m.mark }

// Stored reports the record that the log has stored next. After an error nothing has changed.
func (m *Machine) Stored(seq record.Seq, op record.Op, flags uint8) error {
	if seq <= m.stored || seq != m.stored+1 && op != record.OpBegin {
		return fmt.Errorf("%w: record %d behind %d", ErrGap, seq, m.stored)
	}
	switch op {
	case record.OpBegin:
		if len(m.segs) >= maxSegments {
			return fmt.Errorf("%w: %d", ErrTooManySteps, maxSegments)
		}
		if tail := m.tail(); tail != nil && tail.step && !tail.ended {
			tail.dropped = true
		}
		atOnce := flags&record.FlagAtOnce != 0
		m.segs = append(m.segs, segment{first: seq, last: seq, step: !atOnce, atOnce: atOnce})
	case record.OpEnd:
		// Where no step is open its begin has been applied: this end finishes what was under way at a restart.
		if err := m.extend(seq); err != nil {
			return err
		}
		m.tail().ended = true
	default:
		if err := m.extend(seq); err != nil {
			return err
		}
	}
	m.stored = seq
	return nil
}

// extend adds seq to the last segment, or begins a plain one.
func (m *Machine) extend(seq record.Seq) error {
	if tail := m.tail(); tail != nil && !tail.ended {
		tail.last = seq
		return nil
	}
	if len(m.segs) >= maxSegments {
		return fmt.Errorf("%w: %d", ErrTooManySteps, maxSegments)
	}
	m.segs = append(m.segs, segment{first: seq, last: seq})
	return nil
}

func (m *Machine) tail() *segment {
	if len(m.segs) == 0 {
		return nil
	}
	return &m.segs[len(m.segs)-1]
}

// Unfinished is the last record stored or applied before a step at the end of what is stored that has neither ended nor
// begun to be applied.
func (m *Machine) Unfinished() (before record.Seq, ok bool) {
	tail := m.tail()
	if tail == nil || !tail.step || tail.ended || m.issued >= tail.first {
		return 0, false
	}
	before = m.state.Applied
	if n := len(m.segs); n > 1 {
		before = max(before, m.segs[n-2].last)
	}
	return before, true // less than tail.first-1 if the step lies behind a gap
}

// Durable reports that the log here has made everything up to seq durable.
func (m *Machine) Durable(seq record.Seq) { m.durable = max(m.durable, min(seq, m.stored)) }

// Mark reports that the primary could reproduce everything up to seq after its own power loss.
func (m *Machine) Mark(seq record.Seq) { m.mark = max(m.mark, seq) }

// Final says that no source will send more: the mark no longer holds anything back, and a step that has not ended is
// given up. What Next still hands out is the recoverable image.
func (m *Machine) Final() { m.final = true }

// Next says what to do now. It may be called again before Applied; the answer then covers at least as much.
func (m *Machine) Next() Action {
	for len(m.segs) > 0 && (m.segs[0].last <= m.state.Applied || m.segs[0].dropped && m.droppable()) {
		m.segs = m.segs[1:]
	}
	seg := m.head()
	if seg == nil {
		return Action{Wait: WaitNothing, Seq: m.stored + 1}
	}
	if seg.step && !seg.ended {
		if m.final {
			return Action{Wait: WaitNever, Seq: seg.first}
		}
		return Action{Wait: WaitEnd, Seq: seg.first}
	}
	from := max(seg.first, m.state.Applied+1)
	need := from
	if seg.step {
		need = seg.last
	}
	if m.durable < need {
		return Action{Wait: WaitDurable, Seq: need}
	}
	mark := m.mark
	if m.final {
		mark = m.stored
	}
	if mark < need {
		return Action{Wait: WaitMark, Seq: need}
	}
	a := Action{From: from, To: min(seg.last, m.durable, mark), Whole: seg.step}
	a.Breaks = seg.atOnce && m.state.Consistent
	m.issued = max(m.issued, a.To)
	return a
}

// head is the first segment that still counts: a dropped step is stepped over, but stays known until the step behind
// it is under way, because a cut may bring it back.
func (m *Machine) head() *segment {
	for i := range m.segs {
		if !m.segs[i].dropped {
			return &m.segs[i]
		}
	}
	return nil
}

// droppable: something behind the dropped step at the front has been handed out, so no cut can bring it back.
func (m *Machine) droppable() bool { return m.issued > m.segs[0].last }

// Applied reports that the sink has everything up to seq, which Next has handed out.
func (m *Machine) Applied(seq record.Seq) error {
	seg := m.head()
	if seg == nil || seq <= m.state.Applied || seq < seg.first || seq > m.issued || seq > seg.last {
		return fmt.Errorf("%w: applied %d, issued %d, reported %d", ErrRange, m.state.Applied, m.issued, seq)
	}
	if seg.ended && seq == seg.last {
		m.state.Consistent = true // a whole step also mends what an unfinished one at once has broken
	} else if seg.atOnce {
		m.state.Consistent = false
	}
	m.state.Applied = seq
	return nil
}

// Break records that the image is about to stop being a prefix (Action.Breaks).
func (m *Machine) Break() { m.state.Consistent = false }

// Cut takes back what was stored above upTo. What has been handed out by Next cannot be taken back.
func (m *Machine) Cut(upTo record.Seq) error {
	if upTo < m.issued {
		return fmt.Errorf("%w: cut back to %d, %d is at the volumes", ErrApplied, upTo, m.issued)
	}
	if upTo >= m.stored {
		return nil
	}
	for tail := m.tail(); tail != nil && tail.first > upTo; tail = m.tail() {
		m.segs = m.segs[:len(m.segs)-1]
	}
	m.stored = m.state.Applied
	if tail := m.tail(); tail != nil {
		// The end, or the newer begin, that decided the tail's fate may be gone.
		if tail.last > upTo {
			tail.last, tail.ended = upTo, false
		}
		tail.dropped = false
		m.stored = max(m.stored, tail.last)
	}
	m.durable = min(m.durable, m.stored)
	// What comes instead is other records: only a source that has them can speak for them.
	m.mark = min(m.mark, m.stored)
	return nil
}

// LastConsistent is the last sequence at which the image would be a prefix if no source ever came back; false if it would not
// be at any. The machine itself does not change.
func (m *Machine) LastConsistent() (record.Seq, bool) {
	c := *m
	c.segs = slices.Clone(m.segs)
	c.Final()
	at, ok := c.state.Applied, c.state.Consistent
	for {
		a := c.Next()
		if a.Wait != 0 || c.Applied(a.To) != nil {
			return at, ok
		}
		if c.state.Consistent {
			at, ok = a.To, true
		}
	}
}

// Takeover lists what Next would hand out if no source ever came back. The machine itself does not change.
func (m *Machine) Takeover() []Action {
	c := *m
	c.segs = slices.Clone(m.segs)
	c.Final()
	var list []Action
	for {
		a := c.Next()
		if a.Wait != 0 || c.Applied(a.To) != nil {
			return list
		}
		list = append(list, a)
	}
}
