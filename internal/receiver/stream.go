package receiver

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"

	"gantline/internal/record"
	"gantline/internal/wire"
)

// stream is one connection of one source.
type stream struct {
	conn      *wire.Bundle
	peer      string
	asking    *asking // this side pulls; nil: the source pushes
	right     right   // its bounds are guarded by the receiver's mu, its place in the table by the reading goroutine
	ackWake   chan struct{}
	storeWake chan struct{}
	waits     bool          // for records of an older source
	missing   string        // why the source gives nothing to one who asks; guarded by the receiver's mu
	replaced  chan struct{} // closed when a newer stream of the same source is here
	gone      bool

	ackMu sync.Mutex // keeps acks in order
	acked wire.Ack
}

// errEnded: the stream is over for a reason that the peer need not hear.
var errEnded = errors.New("stream has ended")

// Handle serves one stream that a source pushes until it ends. An error before the hello was answered is the refusal to
// be sent.
func (r *Receiver) Handle(ctx context.Context, in *wire.Incoming) error {
	var h wire.StreamHello
	err := in.Peer.Decode(&h)
	if err == nil && in.Peer.Group != r.cfg.Group {
		err = refuse(ReasonProtocol, "hello for group %q, this is %q", in.Peer.Group, r.cfg.Group)
	}
	if err != nil {
		return err
	}
	conn, err := in.Bundle(wire.Receiver, h.BundleSpec)
	if err != nil {
		return err
	}
	s, ans, err := r.enter(conn, in.Peer.Name, h)
	if err != nil {
		return err
	}
	defer r.leave(s)
	if err := conn.Expect(); err != nil {
		return err
	}
	defer conn.Close()
	if err := in.Answer(ans); err != nil {
		return err
	}
	return r.serve(ctx, s)
}

// serve takes in what comes until the stream ends.
func (r *Receiver) serve(ctx context.Context, s *stream) error {
	var acks sync.WaitGroup
	defer acks.Wait()
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	acks.Go(func() { r.ackLoop(ctx, s) })
	defer context.AfterFunc(ctx, s.conn.Close)()
	err := r.readLoop(ctx, s)
	var ref *Refusal
	if errors.As(err, &ref) {
		r.log.Warn("stream ended", "group", r.cfg.Group, "peer", s.peer, "reason", err)
		s.conn.Refuse(ref)
	}
	return err
}

// enter judges the hello and, when it is accepted, makes this stream its source's only one.
func (r *Receiver) enter(conn *wire.Bundle, peer string, h wire.StreamHello) (s *stream, ans wire.StreamAnswer, err error) {
	defer func() {
		if err != nil {
			r.log.Info("stream refused", "group", r.cfg.Group, "peer", peer, "reason", err)
		}
	}()
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.err != nil {
		return nil, wire.StreamAnswer{}, r.failure()
	}
	have := r.having()
	v, err := r.state.judge(h.Epoch, h.Table, have)
	var ref *Refusal
	if errors.As(err, &ref) {
		ref.table, ref.ack = have.Table, r.ack(0)
		if ref.Reason == ReasonFailed {
			r.failLocked(ref)
		}
	}
	if err != nil {
		return nil, wire.StreamAnswer{}, err
	}
	if len(r.streams) >= maxStreams {
		return nil, wire.StreamAnswer{}, &wire.Error{Kind: wire.KindUnavailable, Message: "too many streams"}
	}
	if v.save {
		if err := r.change(v.next); err != nil {
			return nil, wire.StreamAnswer{}, err
		}
		r.log.Info("copy source", "group", r.cfg.Group, "source", r.state.CopySource())
	}
	r.replace(h.Epoch)
	if err := r.cutBack(v.keep); err != nil {
		return nil, wire.StreamAnswer{}, err
	}
	s = &stream{conn: conn, peer: peer, right: right{id: h.Epoch, table: h.Table, last: v.last, owed: v.owed},
		ackWake: make(chan struct{}, 1), storeWake: make(chan struct{}, 1), replaced: make(chan struct{})}
	r.streams[s] = struct{}{}
	r.rebind()
	a := r.ack(v.last)
	ans = wire.StreamAnswer{Stored: a.Stored, Durable: a.Durable, Applied: a.Applied, Owed: v.owed, Table: r.cfg.Store.Table(),
		Compress: readable(h.Compress)}
	if r.cfg.Capacity != nil {
		ans.Capacity = r.cfg.Capacity()
	}
	return s, ans, nil
}

// readable are the offered methods of compression that this side knows.
func readable(offered []string) []string {
	return slices.DeleteFunc(slices.Clone(offered), func(name string) bool { return wire.MethodOf(name) == wire.MethodNone })
}

// replace ends other streams of the source: what is still in their buffers may be of a run of the log that is over.
func (r *Receiver) replace(id record.EpochID) {
	for s := range r.streams {
		if s.right.id == id && !s.gone {
			s.gone = true
			close(s.replaced)
			delete(r.streams, s)
		}
	}
}

// cutBack drops what is stored above keep; under mu.
func (r *Receiver) cutBack(keep record.Seq) error {
	if keep >= r.stored {
		return nil
	}
	r.log.Warn("cut back to the source's log", "group", r.cfg.Group, "from", r.stored, "to", keep)
	err := r.cfg.Applier.Cut(keep)
	if err == nil {
		err = r.cfg.Store.Cut(keep)
	}
	if err != nil {
		r.failLocked(fmt.Errorf("receiver: cut back from %d to %d: %w", r.stored, keep, err))
		return r.failure()
	}
	r.cuts++
	r.durable, r.stored = r.cfg.Store.Cursors()
	r.row, _ = r.cfg.Store.Table().Current()
	r.mark = min(r.mark, r.stored) // heard before, it speaks for the records that were dropped
	return nil
}

// failure is the refusal of a receiver that has stopped; under mu.
func (r *Receiver) failure() error {
	if errors.Is(r.err, ErrStopped) {
		return &wire.Error{Kind: wire.KindUnavailable, Message: "the receiver is stopping"}
	}
	ref := refuse(ReasonFailed, "%v", r.err)
	ref.table, ref.ack = r.cfg.Store.Table(), r.ack(0)
	return ref
}

func (r *Receiver) leave(s *stream) {
	r.mu.Lock()
	delete(r.streams, s)
	r.mu.Unlock()
}

// ackLoop tells the source what is here whenever that has changed, and once in a while anyway.
func (r *Receiver) ackLoop(ctx context.Context, s *stream) {
	ticker := time.NewTicker(r.cfg.AckEvery)
	defer ticker.Stop()
	for {
		repeat := false
		select {
		case <-ctx.Done():
			return
		case <-s.conn.Done():
			return
		case <-s.replaced:
			s.conn.Refuse(refuse(ReasonReplaced, "a newer stream of %s is here", s.right.id.Node))
			return
		case <-r.failed:
			r.mu.Lock()
			cause := r.failure()
			r.mu.Unlock()
			s.conn.Refuse(cause)
			return
		case <-s.ackWake:
		case <-ticker.C:
			repeat = true
		}
		if r.sendAck(s, repeat) != nil {
			return
		}
	}
}

func (r *Receiver) sendAck(s *stream, repeat bool) error {
	s.ackMu.Lock()
	defer s.ackMu.Unlock()
	r.mu.Lock()
	a, silent := r.ack(s.right.last), r.err != nil || s.gone
	r.mu.Unlock()
	if silent || a == s.acked && !repeat {
		return nil
	}
	s.acked = a
	if err := s.conn.Queue(wire.TypeAck, wire.EncodeAck(a)); err != nil {
		return err
	}
	return s.conn.Flush()
}

// readLoop takes in frames until the stream ends.
func (r *Receiver) readLoop(ctx context.Context, s *stream) error {
	for {
		if err := r.ask(s); err != nil {
			return err
		}
		t, body, err := s.conn.ReadFrame()
		if err != nil {
			return err
		}
		if err := r.frame(ctx, s, t, body); err != nil {
			return err
		}
	}
}

// frame takes in one frame.
func (r *Receiver) frame(ctx context.Context, s *stream, t wire.Type, body []byte) error {
	switch {
	case t == wire.TypeBatch, t == wire.TypePacked:
		return r.batches(ctx, s)
	case t == wire.TypeHeartbeat:
		hb, err := wire.DecodeHeartbeat(body)
		if err != nil {
			return refuse(ReasonProtocol, "%v", err)
		}
		if err := r.heard(s, hb.Mark); err != nil {
			return err
		}
		if hb.Urgent {
			r.urge()
		}
		return nil
	case t == wire.TypeMiss && s.asking != nil:
		return r.missed(ctx, s, body)
	case t == wire.TypeError && s.asking != nil:
		e := &wire.Error{Kind: wire.KindInternal, Message: "the source has ended the stream"}
		_ = json.Unmarshal(body, e)
		return e
	}
	return refuse(ReasonProtocol, "%v frame in a stream", t)
}

// What is gathered from small batches into one append is bounded: in records, and in bytes, for a compressed batch may
// be many times as large as what the connection has buffered of it.
const (
	maxGather      = 2048
	maxGatherBytes = 8 << 20
)

// batches stores the batch just read and those behind it that are in the buffer already.
func (r *Receiver) batches(ctx context.Context, s *stream) error {
	b, err := s.conn.Batch()
	if err != nil {
		return refuse(ReasonProtocol, "%v", err)
	}
	if err := s.asking.answered(1); err != nil {
		return err
	}
	recs, mark, urgent := b.Records, b.Mark, b.Urgent
	for bytes := dataOf(recs); len(recs) < maxGather && bytes < maxGatherBytes && s.conn.Buffered(); {
		t, body, err := s.conn.ReadFrame()
		if err != nil {
			break // stored first; the error comes again
		}
		if t != wire.TypeBatch && t != wire.TypePacked {
			// In its turn: what came before it is stored first.
			if err := r.takeAll(ctx, s, recs, mark, urgent); err != nil {
				return err
			}
			return r.frame(ctx, s, t, body)
		}
		more, err := s.conn.Batch()
		if err != nil {
			return refuse(ReasonProtocol, "%v", err)
		}
		if err := s.asking.answered(1); err != nil {
			return err
		}
		bytes += dataOf(more.Records)
		recs, mark, urgent = append(recs, more.Records...), max(mark, more.Mark), urgent || more.Urgent
	}
	return r.takeAll(ctx, s, recs, mark, urgent)
}

// takeAll stores what was gathered, believes its mark, and acknowledges.
func (r *Receiver) takeAll(ctx context.Context, s *stream, recs []record.Record, mark record.Seq, urgent bool) error {
	if err := r.take(ctx, s, recs, mark); err != nil {
		return err
	}
	if urgent {
		r.urge()
	}
	if err := r.heard(s, mark); err != nil {
		return err
	}
	return r.sendAck(s, false)
}

func dataOf(recs []record.Record) (bytes int) {
	for i := range recs {
		bytes += len(recs[i].Data)
	}
	return bytes
}

// heard believes the source's durable mark, as far as its epoch reaches.
func (r *Receiver) heard(s *stream, mark record.Seq) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	if err := r.alive(s); err != nil {
		return err
	}
	r.lastHeard = time.Now()
	if mark = s.believed(mark); mark > r.mark {
		r.mark = mark
		r.cfg.Applier.Mark(mark)
	}
	return nil
}

// believed is as much of a mark as the source can speak for; under the receiver's mu.
func (s *stream) believed(mark record.Seq) record.Seq {
	if s.right.last != 0 {
		return min(mark, s.right.last)
	}
	return mark
}

// alive is called under mu.
func (r *Receiver) alive(s *stream) error {
	if r.err != nil {
		return r.failure()
	}
	if s.gone {
		return refuse(ReasonReplaced, "a newer stream of %s is here", s.right.id.Node)
	}
	return nil
}

// take stores the records, waiting where it must. They are stored with the mark that came with them: after a restart
// with the sources gone, it tells how far they may be applied.
func (r *Receiver) take(ctx context.Context, s *stream, recs []record.Record, mark record.Seq) error {
	if err := r.admit(s, recs, mark); err != nil {
		return err
	}
	for {
		wait, err := r.store(s, &recs)
		if err != nil {
			return err
		}
		if wait == 0 {
			return nil
		}
		// What is stored of them may have to be applied, and freed, before there is room for the rest.
		if err := r.heard(s, mark); err != nil {
			return err
		}
		if err := r.pause(ctx, s, wait); err != nil {
			return err
		}
	}
}

// pause waits for something to change, or for d.
func (r *Receiver) pause(ctx context.Context, s *stream, d time.Duration) error {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-s.storeWake:
	case <-timer.C:
	case <-s.replaced:
	case <-s.conn.Done():
		return s.conn.Err()
	case <-ctx.Done():
		return errEnded
	}
	return nil
}

// admit checks that the source may send these records.
func (r *Receiver) admit(s *stream, recs []record.Record, mark record.Seq) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	if err := r.alive(s); err != nil {
		return err
	}
	if err := s.right.check(recs); err != nil {
		return err
	}
	mark = s.believed(mark)
	for i := range recs {
		recs[i].Mark = max(recs[i].Mark, mark)
	}
	return r.fence(recs)
}

// store appends what of recs may be stored now and takes it off recs. wait: the rest may not yet; try again when
// something has changed or the time is over.
func (r *Receiver) store(s *stream, recs *[]record.Record) (wait time.Duration, err error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if err := r.alive(s); err != nil {
		return 0, err
	}
	fresh, early, err := s.right.sift(*recs, r.stored)
	s.waits, s.missing = early, ""
	r.repeated += int64(len(*recs) - len(fresh))
	*recs = fresh
	if err != nil || early {
		return r.cfg.AckEvery, err
	}
	for n := run(fresh); len(fresh) > 0; {
		if err := r.dropUnfinished(&fresh[0]); err != nil {
			return 0, err
		}
		err := r.append(s, fresh[:n])
		switch {
		case errors.Is(err, ErrFull) && n > 1:
			n /= 2 // there may be room for some
		case errors.Is(err, ErrFull):
			r.full, *recs = true, fresh
			return fullRetry, r.stepFits()
		case err != nil:
			r.failLocked(err)
			return 0, r.failure()
		default:
			fresh = fresh[n:]
			n = run(fresh)
		}
	}
	return 0, nil
}

// stepFits is asked while the store is full: where all before an unfinished step has been applied, only the step is in the
// way, and it goes by nothing but its end, for which there will never be room. Under mu.
func (r *Receiver) stepFits() error {
	before, ok := r.cfg.Applier.Unfinished()
	switch {
	case !ok || r.applied < before:
		r.stuck = time.Time{}
	case r.stuck.IsZero():
		r.stuck = time.Now()
	case time.Since(r.stuck) >= r.cfg.StepPatience:
		ref := refuse(ReasonStep, "the step that began at %d has come to %d and fills the journal here, which must hold it whole",
			before+1, r.stored)
		ref.ack = r.ack(0) // tells this step's refusal from that of one before
		return ref
	}
	return nil
}

// dropUnfinished frees what a step has stored that a new begin gives up: none of it will be applied, and it may fill the
// log so that the new step has no room. Under mu.
func (r *Receiver) dropUnfinished(next *record.Record) error {
	if next.Op != record.OpBegin {
		return nil
	}
	before, ok := r.cfg.Applier.Unfinished()
	if !ok {
		return nil
	}
	return r.cutBack(before)
}

// fence believes a fence among the records before it is stored: the source's log has it for good, and should this
// process die in between, the knowledge of the cut is not lost with the connection.
func (r *Receiver) fence(recs []record.Record) error {
	rec, f, err := fenceOf(recs)
	if rec == nil {
		return err
	}
	next := r.state.fence(rec.Epoch, f, r.durable)
	if err := r.change(next); err != nil {
		return err
	}
	r.rebind()
	return nil
}

// append stores one run of records of one row; under mu.
func (r *Receiver) append(s *stream, recs []record.Record) error {
	if recs[0].Epoch != r.row.Epoch || recs[0].Incarnation != r.row.Incarnation {
		if err := r.openRows(s, &recs[0]); err != nil {
			return err
		}
	}
	put := r.cfg.Store.Append
	if recs[0].Seq != r.stored+1 {
		put = r.cfg.Store.AppendAfterGap
	}
	if err := put(recs); err != nil {
		return fmt.Errorf("receiver: store records %d to %d: %w", recs[0].Seq, recs[len(recs)-1].Seq, err)
	}
	r.stored = recs[len(recs)-1].Seq
	r.full, r.stuck = false, time.Time{}
	r.cfg.Applier.Stored(recs)
	r.toBeSynced(recs)
	for other := range r.streams {
		if other != s {
			poke(other.storeWake)
			poke(other.ackWake)
		}
	}
	return nil
}

// openRows opens the row of rec, and those between it and the newest one here: an epoch may have ended without records.
func (r *Receiver) openRows(s *stream, rec *record.Record) error {
	for _, row := range s.right.rows(r.row, r.row.Epoch != 0, rec) {
		if err := r.cfg.Store.OpenRow(row); err != nil {
			return fmt.Errorf("receiver: open epoch %d incarnation %d at %d: %w", row.Epoch, row.Incarnation, row.First, err)
		}
		r.row = row
	}
	return nil
}
