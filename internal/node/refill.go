package node

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"

	"gantline/internal/control"
	"gantline/internal/migrate"
	"gantline/internal/volume"
)

// A target whose source is gone fetches what it lacks from the secondary, where that gives the same bytes. Let N be the cut and the
// secondary have applied s >= N. Its image then has all records up to s and none behind it. What the target lacks of a region is the
// content at N; all records behind N that touch the region are in the target's log, which is not freed past them while the region is
// absent, and are laid over what is fetched, in their order. Those up to s are laid over bytes that have them already, and change
// nothing. The secondary applies nothing that the target could lose (I5), so none of its bytes is of a record that the log lacks.
//
// It does not hold for a secondary that was out of the stream at the cut, or was still being copied to: what is marked is old there.

// refillAfter is how long fetches from the source must have failed. Hosts get no error for it: that takes sourcePatience.
const refillAfter = 3 * time.Second

// refillCall bounds one call to the secondary.
const refillCall = 4 * time.Second

// refiller is the volume.Fetcher of a target's volume.
type refiller struct {
	o    *targetOps
	mv   control.MovedVolume
	from volume.Fetcher // the source

	mu      sync.Mutex
	failing time.Time // since when the source has not answered; zero: it has
	stuck   error     // why the secondary cannot help either, when last asked
	bytes   int64     // from the secondary, in this run
}

// Fetch implements volume.Fetcher.
func (f *refiller) Fetch(ctx context.Context, off int64, p []byte) error {
	if f.o.sourceLost.Load() {
		clear(p)
		return nil
	}
	err := f.from.Fetch(ctx, off, p)
	if err == nil || ctx.Err() != nil && !f.given() {
		f.note(err == nil)
		return err
	}
	f.note(false)
	if !f.given() {
		return err
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), refillCall) // the source may have used up all the time
	defer cancel()
	defer context.AfterFunc(f.o.ctx, cancel)()
	again := f.o.refill(ctx, f.mv, off, p)
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.stuck = again; errors.Is(again, errOnlyThere) {
		return fmt.Errorf("source %s: %w; %w", f.o.spec.Source, err, again)
	} else if again != nil {
		return fmt.Errorf("source %s: %w; secondary %s: %w", f.o.spec.Source, err, f.o.spec.Secondary, again)
	}
	f.bytes += int64(len(p))
	return nil
}

// Hole implements volume.Fetcher: what the source has said of its image at the cut stays true without it.
func (f *refiller) Hole(off, n int64) bool { return f.from.Hole(off, n) }

func (f *refiller) note(answered bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	switch {
	case answered:
		f.failing, f.stuck = time.Time{}, nil
	case f.failing.IsZero():
		f.failing = time.Now()
	}
}

// given: the source has been silent for long enough.
func (f *refiller) given() bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	return !f.failing.IsZero() && time.Since(f.failing) >= refillAfter
}

// lacking is why neither the source nor the secondary gives what is absent; nil: one does, or was not asked yet.
func (f *refiller) lacking() error {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.failing.IsZero() {
		return nil
	}
	return f.stuck
}

// errOnlyThere: a volume in no group, or in one whose secondary was promoted, has no secondary to ask.
var errOnlyThere = errors.New("it is not copied: nobody else has it")

// refill reads from the secondary what the source's volume held at the cut, with what the target's log has since then or not.
func (o *targetOps) refill(ctx context.Context, mv control.MovedVolume, off int64, p []byte) error {
	if o.spec.Secondary == "" {
		return errOnlyThere
	}
	rec := o.n.state.view().Moves[o.spec.ID]
	if rec == nil || rec.Cut() == 0 {
		return errors.New("the move has no cut")
	}
	at := &rec.Handover.Copy
	if at.Suspended || at.Marked || slices.ContainsFunc(at.Members, func(m control.CopyMember) bool { return m.Initial }) {
		return errors.New("it was not in step at the cut, so what it holds may be older")
	}
	in := control.MigrationRefill{ID: o.spec.ID, Number: mv.Number, Offset: off, Length: int64(len(p)), Cut: rec.Cut()}
	var out control.MigrationRefilled
	if err := o.n.call(ctx, o.spec.Secondary, control.CallMigrateRefill, in, &out); err != nil {
		return err
	}
	if len(out.Data) != len(p) {
		return fmt.Errorf("asked for %d bytes, it has answered with %d", len(p), len(out.Data))
	}
	copy(p, out.Data)
	return nil
}

// maxRefill bounds one answer, in bytes.
const maxRefill = 4 << 20

// moveRefill answers at the secondary with what is applied there, which is at least all up to the cut.
func (n *Node) moveRefill(ctx context.Context, in control.MigrationRefill) (control.MigrationRefilled, error) {
	_, rec, err := n.move(in.ID)
	if err != nil {
		return control.MigrationRefilled{}, err
	}
	g := n.group(rec.Spec.Group.Name)
	if rec.Role != control.RoleSecondary || rec.Stage == migrate.Deregistered || g == nil {
		return control.MigrationRefilled{}, refused("migration %s: node %s is not its secondary", in.ID, n.cfg.Name)
	}
	g.mu.Lock()
	app, vg := g.app, g.vg
	g.mu.Unlock()
	var vol *nodeVolume
	if r := n.state.view().Groups[g.name]; r != nil { // it may be deleted meanwhile
		if m := r.member(in.Number); m != nil {
			vol = n.volume(m.Volume)
		}
	}
	if app == nil || vg == nil || vol == nil {
		return control.MigrationRefilled{}, refused("migration %s: group %s is not open on node %s", in.ID, g.name, n.cfg.Name)
	}
	st := app.Status()
	switch {
	case st.Err != nil:
		return control.MigrationRefilled{}, refused("group %s has stopped on node %s: %v", g.name, n.cfg.Name, st.Err)
	case !st.State.Consistent:
		return control.MigrationRefilled{}, refused("group %s is inside a resync on node %s", g.name, n.cfg.Name)
	case uint64(st.State.Applied) < in.Cut:
		return control.MigrationRefilled{}, refused("it has the records up to %d, and still lacks those up to the cut, %d", st.State.Applied, in.Cut)
	case in.Length < 0 || in.Length > maxRefill:
		return control.MigrationRefilled{}, invalid("a refill of %d bytes; at most %d", in.Length, maxRefill)
	}
	data := make([]byte, in.Length)
	if err := vol.vol.ReadApplied(ctx, data, in.Offset); err != nil {
		return control.MigrationRefilled{}, err
	}
	return control.MigrationRefilled{Data: data}, nil
}

// maxRisks is how many extents of a volume are listed as at risk.
const maxRisks = 32

// risks lists what of a volume is at the source only, while that is away and the secondary does not have it; and the way out.
func (o *targetOps) risks(d *targetDisk) (list []string, blocked string) {
	why := d.fetch.lacking()
	if why == nil || o.sourceLost.Load() {
		return nil, ""
	}
	absent, left := d.vol.vol.Absent(maxRisks)
	for _, e := range absent {
		list = append(list, fmt.Sprintf("%s: %d bytes at %d", d.mv.Target, e.Length, e.Offset))
	}
	if left > 0 {
		list = append(list, fmt.Sprintf("%s: %d bytes more", d.mv.Target, left))
	}
	if len(list) == 0 {
		return nil, ""
	}
	if rec := o.n.state.move(o.spec.ID); rec != nil && rec.Carried {
		return list, fmt.Sprintf("what is absent was at %s, which is away; %s gives it once it has the records up to the cut, which this node "+
			"sends (%v)", o.spec.Source, o.spec.Secondary, why)
	}
	if o.spec.Secondary == "" {
		return list, fmt.Sprintf("what is absent is at %s only, which is away; start it. The volume is not copied, so that nobody else has it: "+
			"hosts get errors there until %s is back. If it is gone for good, `gantline node remove %s --forget --accept-loss` has that read as "+
			"zeros", o.spec.Source, o.spec.Source, o.spec.Source)
	}
	return list, fmt.Sprintf("what is absent is at %s only, which is away (secondary %s: %v); start it. If it is gone for good, `gantline group "+
		"promote %s --force` has %s serve what it has", o.spec.Source, o.spec.Secondary, why, o.spec.Group.Name, o.spec.Secondary)
}
