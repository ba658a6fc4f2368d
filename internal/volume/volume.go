package volume

import (
	"context"
	"fmt"
	"math"
	"sync"
	"sync/atomic"

	"gantline/internal/block"
	"gantline/internal/record"
)

// Options of a volume; zero values mean the defaults.
type Options struct {
	Mode         Mode  // default ModeNormal
	Size         int64 // bytes of the device, from its beginning, that are the volume's; default all
	HoldRequests int   // held requests, default 4096; at the limit submitters wait
	HoldBytes    int64 // their payload, default 64 MiB
	Readers      int   // reads that wait for a disk or a fetch at once, default 32; beyond maxQueued submitters read
}

// maxQueued bounds the requests that wait for a reader; beyond it the submitting goroutine does the work itself.
const maxQueued = 1024

// Volume is the host-facing end of a device: the stable block.Target that lives through lone operation, membership of
// a group, and the modes of a move. All methods may be called concurrently.
type Volume struct {
	name string
	dev  block.Device
	size atomic.Int64

	gate    gate
	member  atomic.Pointer[member] // nil: lone
	lone    lone
	workers workers
	closed  atomic.Bool
	traffic traffic
	waits   waits

	presence   atomic.Pointer[presence]
	background sync.WaitGroup // requests that came back from the relay and execute here, and writes that wait for a fetch
}

// member is a volume's part of being in a group.
type member struct {
	vol    *Volume
	group  *Group
	number record.VolumeNumber
	cache  *cache

	unflushed atomic.Bool // device writes since the last device flush
	long      longRuns    // the long ones among them
	blind     atomic.Bool // has absent regions, and SetPresence has not told yet which
}

// NewVolume makes a volume of a device, which stays the caller's to close after Close.
func NewVolume(name string, dev block.Device, opt Options) *Volume {
	if opt.Mode == 0 {
		opt.Mode = ModeNormal
	}
	if opt.HoldRequests <= 0 {
		opt.HoldRequests = 4096
	}
	if opt.HoldBytes <= 0 {
		opt.HoldBytes = 64 << 20
	}
	if opt.Readers <= 0 {
		opt.Readers = 32
	}
	v := &Volume{name: name, dev: dev}
	v.size.Store(dev.Size())
	if opt.Size > 0 {
		v.size.Store(min(opt.Size, dev.Size()))
	}
	v.gate.maxHeld, v.gate.maxBytes = opt.HoldRequests, opt.HoldBytes
	v.gate.moved = sync.NewCond(&v.gate.mu)
	v.gate.current.Store(newPeriod(opt.Mode, &v.waits))
	v.workers.limit = opt.Readers
	v.workers.v = v
	v.lone.done = newDoneTable()
	return v
}

func (v *Volume) Name() string         { return v.name }
func (v *Volume) Size() int64          { return v.size.Load() }
func (v *Volume) Device() block.Device { return v.dev }

// Group is nil for a lone volume.
func (v *Volume) Group() *Group {
	if m := v.member.Load(); m != nil {
		return m.group
	}
	return nil
}

// Number inside the group, 0 for a lone volume.
func (v *Volume) Number() record.VolumeNumber {
	if m := v.member.Load(); m != nil {
		return m.number
	}
	return 0
}

// Mode of the volume; a volume of a failed group is failed whatever was set.
func (v *Volume) Mode() Mode {
	if m := v.member.Load(); m != nil && m.group.Err() != nil {
		return ModeFailed
	}
	return v.gate.current.Load().mode
}

// SetRelay names who gets the requests in through mode, from the next SetMode on.
func (v *Volume) SetRelay(t block.Target) {
	v.gate.mu.Lock()
	defer v.gate.mu.Unlock()
	v.gate.relay = t
}

// SetSuccessor names who serves, for the answers in moved mode, from the next SetMode or Seal on.
func (v *Volume) SetSuccessor(e *block.MovedError) {
	v.gate.mu.Lock()
	defer v.gate.mu.Unlock()
	v.gate.successor = e
}

// SetMode switches. What is held is released in order in the new mode, before anything that comes later. With drain it
// returns only when all that was admitted before the switch has been answered or is held.
func (v *Volume) SetMode(ctx context.Context, m Mode, drain bool) error {
	if _, ok := modeNames[m]; !ok {
		return fmt.Errorf("volume %s: %s is no mode", v.name, m)
	}
	v.gate.change(m, v.execute)
	if !drain {
		return nil
	}
	return v.Drain(ctx)
}

// Drain waits until all requests admitted before the call have been answered or are held. New ones go on.
func (v *Volume) Drain(ctx context.Context) error {
	v.gate.renew()
	if err := v.gate.drain(ctx); err != nil {
		return fmt.Errorf("draining volume %s: %w", v.name, err)
	}
	return nil
}

// Held requests and their bytes.
func (v *Volume) Held() (requests int, bytes int64) {
	v.gate.mu.Lock()
	defer v.gate.mu.Unlock()
	return len(v.gate.held), v.gate.heldBytes
}

// Submit implements block.Target.
func (v *Volume) Submit(reqs []*block.Request) { v.SubmitAt(0, reqs) }

// SubmitAt is Submit for requests that state the epoch their sender believes in; 0: none. A higher epoch than the one
// the group serves in means that this node missed a change of owner: the answer is `moved`, checked when applying.
func (v *Volume) SubmitAt(epoch uint64, reqs []*block.Request) {
	begin(reqs)
	for len(reqs) > 0 {
		p := v.gate.enter(len(reqs))
		if p.mode == ModePending {
			p.leave(len(reqs))
			reqs = v.gate.hold(p, epoch, reqs)
			continue
		}
		v.execute(p, epoch, reqs)
		return
	}
}

// execute runs admitted requests in their period's mode; each leaves the period when it is answered.
func (v *Volume) execute(p *period, epoch uint64, reqs []*block.Request) {
	switch p.mode {
	case ModeThrough:
		v.relayTo(p, epoch, reqs)
	case ModeFailed:
		err := block.ErrIO
		if v.closed.Load() {
			err = block.ErrShutdown
		}
		v.refuse(p, reqs, err)
	case ModeMoved:
		v.answerMoved(p, reqs)
	default:
		v.traffic.add(reqs)
		b := batches.Get().(*batch)
		b.run(v, p, epoch, reqs)
		b.release()
	}
}

func (v *Volume) refuse(p *period, reqs []*block.Request, err error) {
	for _, r := range reqs {
		r.Finish(err)
	}
	p.leave(len(reqs))
}

// answerMoved serves what the target of a move fetches from its sealed source, and sends all others away.
func (v *Volume) answerMoved(p *period, reqs []*block.Request) {
	for _, r := range reqs {
		if r.Flags&block.FlagFetch != 0 && (r.Op == block.OpRead || r.Op == block.OpExtents) {
			if err := v.check(r); err != nil {
				v.refuse(p, []*block.Request{r}, err)
				continue
			}
			v.read(p, r)
			continue
		}
		v.refuse(p, []*block.Request{r}, p.movedError(v.name))
	}
}

func (p *period) movedError(volume string) error {
	if p.moved != nil {
		return p.moved
	}
	return &block.MovedError{Volume: volume}
}

// finish answers a request that was executed, and counts how long that has taken.
func (v *Volume) finish(p *period, r *block.Request, err error) { p.finish(r, err, clock()) }

// check refuses requests that no mode may execute.
func (v *Volume) check(r *block.Request) error {
	if r.Offset < 0 || r.Length < 0 || r.Offset > v.Size() || r.Length > v.Size()-r.Offset {
		return block.ErrRange
	}
	if r.Length > math.MaxUint32 || (r.Op == block.OpWrite || r.Op == block.OpRead) && int64(len(r.Data)) != r.Length {
		return block.ErrInvalid
	}
	return nil
}

// Close refuses new requests, answers the held ones with an error, and waits for those under way. The group, if any,
// must have been closed before; a lone volume's device is flushed.
func (v *Volume) Close() error {
	v.closed.Store(true)
	v.gate.change(ModeFailed, v.execute)
	if err := v.Drain(context.Background()); err != nil {
		return err
	}
	v.background.Wait()
	v.workers.wait()
	if v.member.Load() == nil {
		return v.dev.Flush()
	}
	return nil
}
