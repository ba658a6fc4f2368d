package volume

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sort"
	"sync"
	"time"

	"golang.org/x/time/rate"

	"gantline/internal/block"
	"gantline/internal/copier"
	"gantline/internal/record"
)

// blocks is a volume's changed map at a subscriber, with what a copy under way knows besides.
type blocks struct {
	marks Bitmap

	mu      sync.Mutex
	transit map[int64]struct{} // numbered, not acknowledged
	// collected, inside a step: durable there, as a part of it. These marks stand in the map on disk until the step has
	// been applied, so all that takes the step back, a restart too, leaves them as changed.
	collected bitset
	// inherited, at the target of a move: marked by the source's log, and perhaps on their way from there. See Settle.
	inherited bitset
}

func newBlocks(b Bitmap) *blocks { return &blocks{marks: b, transit: map[int64]struct{}{}} }

// mark sets n marks from first on. A block that had been collected is changed again.
func (b *blocks) mark(first, n int64) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if n == 1 {
		b.marks.Set(first)
	} else {
		b.marks.SetRange(first, n)
	}
	b.collected.clearRange(first, n)
	b.inherited.clearRange(first, n)
}

// forgetCollected clears the marks that were collected: the step has been applied.
func (b *blocks) forgetCollected() {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.collected.each(func(bit int64) { b.marks.Clear(bit) })
	b.collected.reset()
}

func (b *blocks) forgetUnderWay() {
	b.mu.Lock()
	defer b.mu.Unlock()
	clear(b.transit)
	b.collected.reset()
}

// Next, Needs and Left make it a copier.Set: blocks that are marked and not on their way.
func (b *blocks) Next(from int64) (int64, bool) {
	b.mu.Lock()
	defer b.mu.Unlock()
	for {
		bit, ok := b.marks.NextSet(from)
		if !ok || b.free(bit) {
			return bit, ok
		}
		from = bit + 1
	}
}

func (b *blocks) free(bit int64) bool {
	if _, ok := b.transit[bit]; ok {
		return false
	}
	return !b.collected.has(bit)
}

func (b *blocks) Needs(bit int64) bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.marks.Test(bit) && b.free(bit)
}

func (b *blocks) Left() int64 {
	b.mu.Lock()
	defer b.mu.Unlock()
	return max(0, b.marks.Count()-int64(len(b.transit))-b.collected.n)
}

// copied is a block that was numbered and is not acknowledged yet.
type copied struct {
	seq    record.Seq
	volume record.VolumeNumber
	bit    int64 // -1: a range without a mark
	data   []byte
}

// copyRange watches for host writes to a range while it is read.
type copyRange struct {
	volume   record.VolumeNumber
	off, end uint64
	hit      bool // under Group.mu
}

func (c *copyRange) meet(recs []record.Record) {
	for i := range recs {
		r := &recs[i]
		if r.Volume == c.volume && r.Offset < c.end && c.off < r.Offset+uint64(r.Length) {
			c.hit = true
		}
	}
}

const (
	copyAttempts = 16 // reads of a block that hosts keep writing, before it is read under the commit mutex
	holePiece    = 64 << 20
)

// atRest runs read, and then, under the commit mutex, number, such that no write to the range was numbered between the
// beginning of the one and the other: what number appends is the range's content at its sequence.
func (g *Group) atRest(m *member, off, length int64, attempts int, read, number func() error) error {
	c := &copyRange{volume: m.number, off: uint64(off), end: uint64(off + length)}
	for range attempts {
		g.mu.Lock()
		c.hit = false
		g.copying = append(g.copying, c)
		g.mu.Unlock()
		err := read()
		g.mu.Lock()
		i := slices.Index(g.copying, c)
		g.copying = slices.Delete(g.copying, i, i+1)
		if err == nil && !c.hit {
			err = number()
			g.mu.Unlock()
			return err
		}
		g.mu.Unlock()
		if err != nil {
			return err
		}
	}
	return errHit
}

var errHit = errors.New("the range is being written all the time")

// Copy gives a marked block, or any range of at most BlockSize, a number together with its data. It waits while too
// much copied data is unacknowledged. Zeros go as a trim record, without data.
func (s *Subscriber) Copy(ctx context.Context, n record.VolumeNumber, off, length int64, flags uint8) (record.Seq, error) {
	m := s.g.member(n)
	if m == nil {
		return 0, fmt.Errorf("%w: %d", ErrUnknownVolume, n)
	}
	if off < 0 || length <= 0 || length > s.cfg.BlockSize || off+length > m.vol.Size() {
		return 0, block.ErrRange
	}
	if err := s.reserve(ctx, length); err != nil {
		return 0, err
	}
	data := make([]byte, length)
	var seq record.Seq
	read := func() error { return m.vol.readImage(ctx, m, data, off) }
	number := func() (err error) {
		seq, err = s.numberCopy(m, off, data, flags)
		return err
	}
	err := s.g.atRest(m, off, length, copyAttempts, read, number)
	if errors.Is(err, errHit) {
		err = s.copyHeld(m, off, data, number)
	}
	if err != nil || seq == 0 {
		s.unreserve(length)
	}
	return seq, err
}

// copyHeld reads a block that hosts never leave alone with the commits standing still. It is short: the block is in
// the cache or was just read from the device.
func (s *Subscriber) copyHeld(m *member, off int64, data []byte, number func() error) error {
	s.g.mu.Lock()
	defer s.g.mu.Unlock()
	if m.vol.firstAbsent(nil, off, off+int64(len(data))) >= 0 {
		return errHit // its fetch is under way; tried again by the copier
	}
	if err := m.vol.readImage(context.Background(), m, data, off); err != nil {
		return err
	}
	return number()
}

// reserve takes room in the window of unacknowledged copies.
func (s *Subscriber) reserve(ctx context.Context, n int64) error {
	stop := context.AfterFunc(ctx, s.wake)
	defer stop()
	s.mu.Lock()
	defer s.mu.Unlock()
	for {
		switch {
		case s.State() == SubSuspended:
			return ErrSuspended
		case s.g.Err() != nil:
			return s.g.Err()
		case ctx.Err() != nil:
			return context.Cause(ctx)
		case s.copyBytes+n <= s.g.cfg.CopyBytes || s.copyBytes == 0:
			s.copyBytes += n
			return nil
		}
		s.changed.Wait()
	}
}

func (s *Subscriber) unreserve(n int64) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.copyBytes = max(0, s.copyBytes-n)
	s.changed.Broadcast()
}

// numberCopy appends the copy's record, under the commit mutex. In the log it is empty: the data is the volume's own.
func (s *Subscriber) numberCopy(m *member, off int64, data []byte, flags uint8) (record.Seq, error) {
	if s.State() == SubSuspended {
		return 0, ErrSuspended
	}
	if s.Resting() {
		return 0, fmt.Errorf("%w: subscriber %s comes to rest", ErrRole, s.name)
	}
	if err := s.g.mayNumber(); err != nil {
		return 0, err
	}
	if s.g.member(m.number) != m {
		return 0, fmt.Errorf("%w: %d has left group %s", ErrUnknownVolume, m.number, s.g.cfg.Name)
	}
	rec := record.Record{
		Op: record.OpCopy, Flags: flags | record.FlagEmpty, Volume: m.number,
		Offset: uint64(off), Length: uint32(len(data)), Time: time.Now().UnixNano(),
	}
	held := copied{volume: m.number, bit: -1, data: data}
	if off%s.cfg.BlockSize == 0 && int64(len(data)) == min(s.cfg.BlockSize, m.vol.Size()-off) {
		held.bit = off / s.cfg.BlockSize
	}
	if block.IsZero(data) {
		rec.Op, rec.Flags, held.data = record.OpTrim, flags|record.FlagCopied, nil
	}
	// The sender must never meet the record without its data, so this is there before the record is.
	held.seq = s.g.Tip() + 1
	s.hold(held, m)
	recs := []record.Record{rec}
	if err := s.g.appendOwn(recs); err != nil {
		s.unhold(held)
		return 0, err
	}
	if s.State() == SubSuspended {
		return 0, ErrSuspended // cut off by this very append, which marked the block again
	}
	if held.data == nil {
		s.unreserve(int64(len(data)))
	}
	return held.seq, nil
}

func (s *Subscriber) hold(c copied, m *member) {
	s.mu.Lock()
	s.copies = append(s.copies, c)
	s.mu.Unlock()
	if b := s.volumes()[m.number]; b != nil && c.bit >= 0 {
		b.mu.Lock()
		b.transit[c.bit] = struct{}{}
		b.mu.Unlock()
	}
}

func (s *Subscriber) unhold(c copied) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if n := len(s.copies); n > 0 && s.copies[n-1].seq == c.seq {
		s.copies = s.copies[:n-1]
	}
	if b := s.volumes()[c.volume]; b != nil && c.bit >= 0 {
		b.mu.Lock()
		delete(b.transit, c.bit)
		b.mu.Unlock()
	}
}

// attachData gives a copy record its data, if it was copied for this subscriber and is not acknowledged.
func (s *Subscriber) attachData(r *record.Record) {
	s.mu.Lock()
	defer s.mu.Unlock()
	i := sort.Search(len(s.copies), func(i int) bool { return s.copies[i].seq >= r.Seq })
	if i < len(s.copies) && s.copies[i].seq == r.Seq && s.copies[i].data != nil {
		r.Data = s.copies[i].data
		r.Flags &^= record.FlagEmpty
		r.CRC = record.Checksum(r.Data)
	}
}

// ackCopies, under mu, lets go of the copies that are durable there, and here: a mark that was cleared for a record which
// this log then loses would be missing for good. Outside a step their marks go: all later writes to
// the block are in the stream. Inside one they are collected, until the step has been applied.
func (s *Subscriber) ackCopies() {
	n, durable := 0, min(s.durable, s.g.Durable())
	for n < len(s.copies) && s.copies[n].seq <= durable {
		c := &s.copies[n]
		s.copyBytes -= int64(len(c.data))
		if b := s.volumes()[c.volume]; b != nil && c.bit >= 0 {
			b.mu.Lock()
			delete(b.transit, c.bit)
			if s.State() == SubResyncing {
				b.collected.set(c.bit)
			} else {
				b.marks.Clear(c.bit)
			}
			b.mu.Unlock()
		}
		n++
	}
	if n > 0 {
		clear(s.copies[:n])
		s.copies = s.copies[n:]
	}
}

// MarkData marks all data of a volume for an initial copy. Its holes are told to the subscriber by trim records, so
// that nothing old shows through there.
func (s *Subscriber) MarkData(n record.VolumeNumber) error {
	m, b := s.g.member(n), s.volumes()[n]
	if m == nil || b == nil {
		return fmt.Errorf("%w: %d at subscriber %s", ErrUnknownVolume, n, s.name)
	}
	for off := int64(0); off < m.vol.Size(); off += holePiece {
		length := min(holePiece, m.vol.Size()-off)
		err := s.markPiece(m, off, length)
		if errors.Is(err, errHit) {
			s.markExtent(record.OpCopy, n, off, length)
			err = nil
		}
		if err != nil {
			return err
		}
	}
	return b.marks.Flush()
}

func (s *Subscriber) markPiece(m *member, off, length int64) error {
	var extents []block.Extent
	read := func() (err error) {
		extents, err = m.vol.extents(m, off, length)
		return err
	}
	number := func() error {
		var recs []record.Record
		for _, e := range extents {
			if e.Type == block.ExtentData {
				s.markExtent(record.OpCopy, m.number, e.Offset, e.Length)
				continue
			}
			recs = append(recs, record.Record{
				Op: record.OpTrim, Flags: record.FlagAtOnce | record.FlagCopied, Volume: m.number,
				Offset: uint64(e.Offset), Length: uint32(e.Length), Time: time.Now().UnixNano(),
			})
		}
		if len(recs) == 0 {
			return nil
		}
		if err := s.g.mayNumber(); err != nil {
			return err
		}
		return s.g.appendOwn(recs)
	}
	return s.g.atRest(m, off, length, 3, read, number)
}

// CopyOptions of RunCopy.
type CopyOptions struct {
	Parallel int
	Limit    *rate.Limiter // bytes
	AtOnce   bool          // initial copy: applied at once, outside a step
}

// RunCopy copies until no mark is left that the subscriber does not have durably. ErrSuspended: it was cut off.
func (s *Subscriber) RunCopy(ctx context.Context, opt CopyOptions) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	flags := uint8(0)
	if opt.AtOnce {
		flags = record.FlagAtOnce
	}
	s.mu.Lock()
	s.copyTotal = s.ChangedBytes()
	s.mu.Unlock()
	defer s.keepFlushed(ctx, cancel)()
	for {
		for _, n := range sortedKeys(s.volumes()) {
			if err := s.copyVolume(ctx, cancel, n, opt, flags); err != nil {
				return err
			}
		}
		if left, err := s.awaitCopies(ctx); err != nil || !left {
			return err
		}
	}
}

// copyFlush is how often the maps are made durable while marks are cleared by a copy: what a killed process copies again.
const copyFlush = time.Second

// keepFlushed makes the maps durable now and then, until the result is called. A mark that was cleared may be forgotten
// at any time: its block is durable at the subscriber.
func (s *Subscriber) keepFlushed(ctx context.Context, cancel context.CancelCauseFunc) (stop func()) {
	ctx, end := context.WithCancel(ctx)
	done := make(chan struct{})
	go func() {
		defer close(done)
		ticker := time.NewTicker(copyFlush)
		defer ticker.Stop()
		for {
			select {
			case <-ctx.Done():
				return
			case <-ticker.C:
			}
			if s.State() == SubResyncing {
				continue // nothing is cleared before the end
			}
			if err := s.flushMaps(); err != nil {
				cancel(s.g.fail(fmt.Errorf("changed map of %s: %w", s.name, err)))
				return
			}
		}
	}()
	return func() {
		end()
		<-done
	}
}

func (s *Subscriber) copyVolume(ctx context.Context, cancel context.CancelCauseFunc, n record.VolumeNumber, opt CopyOptions, flags uint8) error {
	m, set := s.g.member(n), s.volumes()[n]
	if m == nil || set == nil {
		return nil // removed; its marks mean nothing any more
	}
	whole := ctx
	ctx, leave := context.WithCancelCause(whole)
	defer leave(nil)
	var hosts calm
	work := func(ctx context.Context, off, length int64) error {
		_, err := s.Copy(ctx, n, off, length, flags)
		if errors.Is(err, ErrUnknownVolume) {
			leave(err) // it has left the group: the others are copied
		}
		if errors.Is(err, ErrSuspended) || errors.Is(err, ErrFailed) || errors.Is(err, ErrRole) {
			cancel(err) // nothing that a retry would help
		}
		return err
	}
	err := copier.New(copier.Config{
		Set: set, Region: s.cfg.BlockSize, Size: m.vol.Size, Work: work,
		Parallel: opt.Parallel, Limit: opt.Limit, Busy: func() bool { return hosts.busy(s.g.HostOps()) },
	}).Run(ctx)
	switch {
	case whole.Err() != nil:
		return context.Cause(whole)
	case errors.Is(err, ErrUnknownVolume):
		return nil
	}
	return err
}

// left are the marked blocks of a volume that are not on their way; none of one that has left the group.
func (s *Subscriber) left(n record.VolumeNumber, b *blocks) int64 {
	if s.g.member(n) == nil {
		return 0
	}
	return b.Left()
}

// awaitCopies waits until all that was numbered is acknowledged and says whether marks are left to copy.
func (s *Subscriber) awaitCopies(ctx context.Context) (left bool, err error) {
	stop := context.AfterFunc(ctx, s.wake)
	defer stop()
	s.mu.Lock()
	defer s.mu.Unlock()
	for len(s.copies) > 0 {
		switch {
		case s.State() == SubSuspended:
			return false, ErrSuspended
		case s.g.Err() != nil:
			return false, s.g.Err()
		case ctx.Err() != nil:
			return false, context.Cause(ctx)
		}
		s.changed.Wait()
	}
	if s.State() == SubSuspended {
		return false, ErrSuspended
	}
	for n, b := range s.volumes() {
		if s.left(n, b) > 0 {
			return true, nil
		}
	}
	return false, nil
}

// Underway is how many copied blocks are numbered and not acknowledged.
func (s *Subscriber) Underway() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return len(s.copies)
}

// CopyProgress is of the marks of all volumes, in bytes.
type CopyProgress struct{ Total, Done, Left int64 }

// CopyProgress of the copy under way, or the last.
func (s *Subscriber) CopyProgress() CopyProgress {
	left := int64(0)
	for _, b := range s.volumes() {
		b.mu.Lock()
		left += max(0, b.marks.Count()-b.collected.n) * s.cfg.BlockSize
		b.mu.Unlock()
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	total := max(s.copyTotal, left)
	return CopyProgress{Total: total, Done: total - left, Left: left}
}
