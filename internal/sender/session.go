package sender

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"time"

	"gantline/internal/record"
	"gantline/internal/wire"
)

// errTable: the log has begun a row that the hello has not shown; the stream begins anew with the new table.
var errTable = errors.New("the log has begun a new row of its epoch table")

// session is one connection. The sending goroutine owns all of it but what it reaches through s.
type session struct {
	s       *Sender
	conn    *wire.Bundle
	table   record.Table // as shown in the hello
	lastRow int          // where the record before was found
	counted atomic.Int64 // bytes told to Config.Sent
	methods map[wire.Method]bool
	packer  wire.Packer

	failed error // of a send on another goroutine
	held   bool  // records wait for their time, as of the last look
	asks   *asks // of a receiver that pulls; nil: this side pushes

	beat   context.Context // ends when a heartbeat is due
	unbeat context.CancelFunc
	mark   record.Seq // last one sent
	urged  record.Seq // the receiver has been told to be durable up to here
}

// start takes over what the receiver has.
func (t *session) start(a wire.StreamAnswer) error {
	s := t.s
	has := wire.Ack{Stored: a.Stored, Durable: a.Durable, Applied: a.Applied}
	if row := t.table[len(t.table)-1]; row.Closed && has.Stored > row.Last {
		// Later epochs are not ours to count.
		has = wire.Ack{Stored: row.Last, Durable: min(has.Durable, row.Last), Applied: min(has.Applied, row.Last)}
	}
	if durable := s.cfg.Source.Durable(); has.Stored > durable {
		return fmt.Errorf("%w: the receiver has stored %d, the log here may be sent up to %d", ErrAck, has.Stored, durable)
	}
	s.mu.Lock()
	s.window.Restart(has, max(has.Stored, a.Owed))
	s.status.LastHeard, s.status.Heard, s.status.ReceiversTable = time.Now(), true, a.Table
	s.status.Capacity = a.Capacity
	s.drain()
	s.mu.Unlock()
	if err := s.tell(has); err != nil {
		return err
	}
	s.become(StateStreaming, "")
	return nil
}

// run sends until something ends the stream. It joins the goroutine that reads acks.
func (t *session) run(parent context.Context) error {
	ctx, cancel := context.WithCancelCause(parent)
	var reader sync.WaitGroup
	reader.Go(func() { cancel(t.readAcks()) })
	said := make(chan struct{})
	running := context.AfterFunc(parent, func() {
		t.conn.Bye() // within its time, whatever the pump is waiting for
		close(said)
	})
	err := t.pump(ctx)
	if !running() {
		<-said
	}
	t.conn.Close()
	cancel(err)
	reader.Wait()
	t.count()
	t.unbeat()
	return context.Cause(ctx)
}

func (t *session) readAcks() error {
	for {
		kind, body, err := t.conn.ReadFrame()
		if err != nil {
			return fmt.Errorf("link down: %w", err)
		}
		switch kind {
		case wire.TypeAck:
			t.count() // what is acknowledged has been written, if not by the sending goroutine
			a, err := wire.DecodeAck(body)
			if err == nil {
				err = t.s.acked(a)
			}
			if err != nil {
				return err
			}
		case wire.TypeRange:
			if err := t.asked(body); err != nil {
				return err
			}
		case wire.TypeError:
			e := &wire.Error{Kind: wire.KindInternal, Message: "the receiver has ended the stream"}
			_ = json.Unmarshal(body, e)
			return refusalOf(e)
		default:
			return fmt.Errorf("%w: %v frame in a stream", wire.ErrFrame, kind)
		}
	}
}

// pump sends what may be sent, and a heartbeat when nothing was for a while.
func (t *session) pump(ctx context.Context) error {
	t.rearm(ctx)
	for ctx.Err() == nil {
		if t.beat.Err() != nil {
			if err := t.heartbeat(ctx); err != nil {
				return err
			}
		}
		next, limit, room := t.look()
		switch {
		case t.owesWord(next, limit):
			if err := t.heartbeat(ctx); err != nil {
				return err
			}
		case !room || next > limit && limit < t.s.cfg.Source.Durable():
			// The receiver's window is full, it has asked for nothing, what there is waits for its time, or all that this log has
			// for it is sent.
			t.pause(ctx)
		case next > limit:
			err := t.s.cfg.Source.Wait(t.beat, next-1, t.sendAlong)
			if t.failed != nil {
				return t.failed
			}
			if err != nil && t.beat.Err() == nil {
				if !t.s.cfg.CutOff(err) {
					return fmt.Errorf("wait for record %d: %w", next, err)
				}
				if err := t.resync(ctx, next, err); err != nil {
					return err
				}
			}
		default:
			if err := t.send(ctx, next, limit); err != nil {
				return err
			}
		}
	}
	return context.Cause(ctx)
}

// look returns the first sequence to be sent, and the last one that may be.
func (t *session) look() (next, limit record.Seq, room bool) {
	s := t.s
	durable, hurry := s.cfg.Source.Durable(), s.gathers() && s.cfg.Hurry()
	s.mu.Lock()
	defer s.mu.Unlock()
	next = s.window.Next()
	hurry = hurry || s.stopAt != 0 || next <= s.hurry
	limit, again := s.gate.look(time.Now(), next, durable, func() int64 { return s.cfg.Waiting(next - 1) }, hurry)
	s.held = ""
	if t.held = next > limit && limit < durable; t.held {
		s.held = s.gate.gather.held(again, durable-limit)
	}
	if s.stopAt != 0 {
		limit = min(limit, s.stopAt)
	}
	ask, asked := t.asks.first()
	return max(next, ask.From), limit, s.window.Room() && asked
}

// gathers says that records may wait for others to be transferred with.
func (s *Sender) gathers() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.gate.gather != Gather{}
}

// heldLook is how often records that wait for their time are looked at: more may have come, or haste.
const heldLook = 20 * time.Millisecond

// pause waits for an ack or a wake-up, at most until a heartbeat is due.
func (t *session) pause(ctx context.Context) {
	var soon <-chan time.Time
	if t.held {
		timer := time.NewTimer(heldLook)
		defer timer.Stop()
		soon = timer.C
	}
	select {
	case <-t.s.wake:
	case <-soon:
	case <-t.beat.Done():
	case <-ctx.Done():
	}
}

// rearm sets the time of the next heartbeat.
func (t *session) rearm(ctx context.Context) {
	if t.unbeat != nil {
		t.unbeat()
	}
	t.beat, t.unbeat = context.WithTimeout(ctx, t.s.cfg.Heartbeat)
}

// owesWord: the receiver has all that a host waits for and must be told to make it durable; or it has all there is, and
// may apply more of it than it knows.
func (t *session) owesWord(next, limit record.Seq) bool {
	if urgent := t.s.cfg.Urgent(); urgent > t.urged && urgent < next {
		return true
	}
	return next > limit && t.mark < next-1 && t.s.cfg.Mark() > t.mark
}

func (t *session) heartbeat(ctx context.Context) error {
	if err := ctx.Err(); err != nil {
		return context.Cause(ctx)
	}
	t.rearm(ctx)
	t.count()
	if err := t.expire(); err != nil {
		return err
	}
	t.s.mu.Lock()
	sent := t.s.window.LastSent()
	t.s.mu.Unlock()
	h := wire.Heartbeat{Mark: t.s.cfg.Mark(), Urgent: t.urge(sent)}
	t.mark = h.Mark
	return t.conn.WriteFrame(wire.TypeHeartbeat, wire.EncodeHeartbeat(h))
}

// urge says whether a frame behind which the receiver has everything up to sent is to hurry it.
func (t *session) urge(sent record.Seq) bool {
	urgent := t.s.cfg.Urgent()
	if urgent <= t.urged || urgent > sent {
		return false
	}
	t.urged = urgent
	return true
}

// send reads a batch from the log and puts it on the link.
func (t *session) send(ctx context.Context, next, limit record.Seq) error {
	s := t.s
	mark := s.cfg.Mark()
	recs, bytes, err := t.read(next, limit)
	if err != nil && s.cfg.CutOff(err) {
		return t.resync(ctx, next, errors.Unwrap(err))
	}
	if err != nil {
		return err
	}
	if len(recs) == 0 {
		if limit < s.cfg.Source.Durable() {
			t.pause(ctx) // what follows the gap lies beyond the end
			return nil
		}
		// What follows the gap is not durable yet; an error of the wait comes again with the next look.
		_ = s.cfg.Source.Wait(t.beat, limit, nil)
		return nil
	}
	return t.ship(recs, bytes, mark, limit)
}

// sendAlong sends what has come while the sending goroutine waits, on the goroutine that has brought it. Where anything would
// have to be waited for, or has gone wrong, the sending goroutine is to look: there is no more.
func (t *session) sendAlong() (after record.Seq, more bool) {
	s := t.s
	mark := s.cfg.Mark()
	next, limit, room := t.look()
	after = next - 1
	if next > limit || !room || t.asks != nil || s.gathers() || t.method() != wire.MethodNone || t.beat.Err() != nil || !t.conn.Idle() {
		return after, false
	}
	recs, bytes, err := t.read(next, limit)
	if err != nil || len(recs) == 0 {
		return after, false
	}
	if t.failed = t.ship(recs, bytes, mark, limit); t.failed != nil {
		return after, false
	}
	return recs[len(recs)-1].Seq, true
}

// read takes from the log what the next batch may hold.
func (t *session) read(next, limit record.Seq) (recs []record.Record, bytes int, err error) {
	s := t.s
	maxRecords, maxBytes := s.cfg.BatchRecords, s.cfg.BatchBytes
	if ask, ok := t.asks.first(); ok && t.asks != nil {
		maxRecords, maxBytes = min(maxRecords, int(ask.MaxRecords)), min(maxBytes, int(ask.MaxBytes))
	}
	recs, err = s.cfg.Source.Read(next, maxRecords, maxBytes)
	if err != nil {
		return nil, 0, fmt.Errorf("read the log from %d: %w", next, err)
	}
	return t.check(recs, next, limit)
}

// ship puts a batch on the link. mark was taken before it was read.
func (t *session) ship(recs []record.Record, bytes int, mark, limit record.Seq) error {
	s := t.s
	last := recs[len(recs)-1].Seq
	s.mu.Lock()
	resumed := s.status.State != StateStreaming
	if last <= s.window.LastSent() {
		s.mu.Unlock()
		return nil // another source has sent them meanwhile
	}
	for i := range recs {
		if recs[i].Op == record.OpBegin {
			s.window.Begun(recs[i].Seq)
		}
	}
	err := s.window.Sent(last, len(recs), bytes, limit)
	s.mu.Unlock()
	if err != nil {
		return err
	}
	if resumed {
		s.become(StateStreaming, "")
	}
	t.mark = mark
	t.asks.answered()
	size, err := t.conn.WritePacked(wire.Batch{Mark: mark, Urgent: t.urge(last), Records: recs}, t.method(), &t.packer)
	s.mu.Lock()
	s.status.BatchBytes += int64(wire.BatchSize(len(recs), bytes))
	s.status.FrameBytes += int64(size)
	s.mu.Unlock()
	t.count()
	return err
}

// method is how the next batch is compressed.
func (t *session) method() wire.Method {
	if m := t.s.cfg.Compress(); t.methods[m] {
		return m
	}
	return wire.MethodNone
}

// resync waits for a step to begin. One who asks is told.
func (t *session) resync(ctx context.Context, next record.Seq, cause error) error {
	s := t.s
	reason := wire.MissSuspended
	if s.cfg.Trimmed(cause) {
		s.mu.Lock()
		moved := s.window.Next() > next
		s.mu.Unlock()
		if moved {
			return nil // it has been given them by another source meanwhile
		}
		reason = wire.MissTrimmed
		s.cfg.OnTrimmed(next)
	}
	s.become(StateResync, cause.Error())
	if err := t.miss(reason); err != nil {
		return err
	}
	t.pause(ctx)
	return nil
}

// check takes what may be sent of what the log has returned, and counts its data.
func (t *session) check(recs []record.Record, next, limit record.Seq) (ok []record.Record, bytes int, err error) {
	if len(recs) == 0 {
		return nil, 0, nil
	}
	if recs[0].Seq < next || recs[0].Seq > next && recs[0].Op != record.OpBegin {
		return nil, 0, fmt.Errorf("the log returned other records than those from %d on", next)
	}
	for i := range recs {
		r := &recs[i]
		if r.Seq > limit {
			return recs[:i], bytes, nil
		}
		if r.Seq != recs[0].Seq+record.Seq(i) {
			return nil, 0, fmt.Errorf("the log returned record %d behind %d", r.Seq, recs[i-1].Seq)
		}
		if !t.shown(r) {
			if i == 0 {
				return nil, 0, errTable
			}
			return recs[:i], bytes, nil
		}
		bytes += len(r.Data)
	}
	return recs, bytes, nil
}

// shown says whether the record lies in a row that the hello has shown.
func (t *session) shown(r *record.Record) bool {
	in := func(i int) bool {
		row := &t.table[i]
		return r.Epoch == row.Epoch && r.Incarnation == row.Incarnation && row.Contains(r.Seq)
	}
	if in(t.lastRow) {
		return true
	}
	for i := len(t.table) - 1; i >= 0; i-- {
		if in(i) {
			t.lastRow = i
			return true
		}
	}
	return false
}

// count tells how many bytes have been put on the link since the last time. A full socket is written to later, by the
// connection: so this is asked for again at acks, heartbeats and the session's end.
func (t *session) count() {
	for {
		n, old := t.conn.SentBytes(), t.counted.Load()
		if n <= old {
			return
		}
		if t.counted.CompareAndSwap(old, n) {
			t.s.cfg.Sent(n - old)
			return
		}
	}
}
