package manager

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"

	"gantline/internal/control"
)

// A store that was put back from a backup knows earlier states of groups than their nodes do. What nodes have stored counts:
// a node does nothing with an older spec and answers with what it holds. Where that can be taken over as it is, the
// store is corrected; else the group is left alone, no command changes it, and `status` says why. Both are told.

// oldStore is the error of an operation that met such a group. The nodes were told nothing.
type oldStore struct{ error }

func (e oldStore) Unwrap() error { return e.error }

func isOldStore(err error) bool {
	var e oldStore
	return errors.As(err, &e)
}

// storeIsOld: a node holds a newer state of a group than it was told.
func (m *Manager) storeIsOld(ctx context.Context, node string, held *control.Group) error {
	g, err := load[control.Group](ctx, m, control.KindGroup, held.Name)
	if err != nil {
		return err
	}
	if g.V.Revision >= held.Revision { // what it was told has been replaced meanwhile
		m.pusher.kick()
		return control.Errorf(control.KindFailed, "group %s is being changed: try again", held.Name)
	}
	was := fmt.Sprintf("group %s: the store has revision %d of it, node %s holds %d", held.Name, g.V.Revision, node, held.Revision)
	fixed, unfit := m.correction(ctx, g, node, held)
	if unfit == "" {
		_, err := m.commit(ctx, fixed.event("group/"+held.Name, "store-corrected", was,
			"%s: the store was put back from an older backup; it has taken over what the node holds", was))
		if err != nil {
			return err
		}
		return oldStore{control.Errorf(control.KindRefused, "%s: the store was put back from an older backup, and has been corrected by "+
			"what the node holds; look at the group, then repeat the command", was)}
	}
	why := was + ": the store was put back from an older backup, and cannot be corrected by itself: " + unfit +
		"; put a newer one in its place. The nodes go on as they are, and until then no command changes the group"
	if m.pusher.block(held.Name, why) {
		m.tell(ctx, "group/"+held.Name, "store-old", unfit, "%s", why)
	}
	return oldStore{control.Errorf(control.KindRefused, "%s", why)}
}

// correction makes the store's record of a group that which a node holds; unfit says why it cannot be done. Of the primary's
// journal in an epoch that the store knows, it knows more than a node which is not the primary.
func (m *Manager) correction(ctx context.Context, g got[control.Group], node string, held *control.Group) (c *change, unfit string) {
	if node != held.Primary && g.V.Primary == held.Primary && held.Epoch <= g.V.Epoch {
		same := *held
		same.PrimaryJournal = g.V.PrimaryJournal
		held = &same
	}
	if g.V.Primary != held.Primary || g.V.Secondary != held.Secondary || g.V.PrimaryJournal != held.PrimaryJournal ||
		g.V.SecondaryJournal != held.SecondaryJournal {
		return nil, fmt.Sprintf("the nodes have it from %s (%s) to %s (%s)", held.Primary, held.PrimaryJournal, held.Secondary, held.SecondaryJournal)
	}
	if mg, exists, err := m.latestMove(ctx, held.Name); err != nil {
		return nil, err.Error()
	} else if exists && !control.Ended(mg.V.Phase) {
		return nil, "migration " + mg.V.ID + " is under way"
	}
	volumes, err := loadAll[control.Volume](ctx, m, control.KindVolume)
	if err != nil {
		return nil, err.Error()
	}
	owners := map[string]string{}
	for _, p := range held.Pairs {
		owners[p.Primary], owners[p.Secondary] = held.Name, held.Name
	}
	c = m.change()
	for _, v := range volumes {
		full := v.V.Node + "/" + v.V.Name
		owner := owners[full]
		delete(owners, full)
		switch {
		case owner != "" && v.V.Group != "" && v.V.Group != owner:
			return nil, fmt.Sprintf("volume %s is in group %s here, in %s there", full, v.V.Group, owner)
		case owner == "" && v.V.Group != held.Name, owner == v.V.Group:
			continue
		}
		v.V.Group = owner
		c.put(v.Key, v.Rev, v.V)
	}
	if len(owners) > 0 {
		return nil, "the store has no volume " + slices.Sorted(maps.Keys(owners))[0]
	}
	next := *held
	next.Epoch = max(held.Epoch, g.V.Epoch)
	return c.put(g.Key, g.Rev, next), ""
}

// block notes a group whose record is too old to be used; false: it was noted before.
func (p *pusher) block(group, why string) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	_, before := p.old[group]
	p.old[group] = why
	return !before
}

// tooOld says why groups are left alone, by their names.
func (p *pusher) tooOld() []string {
	p.mu.Lock()
	defer p.mu.Unlock()
	out := []string{}
	for _, group := range slices.Sorted(maps.Keys(p.old)) {
		out = append(out, p.old[group])
	}
	return out
}

// mayPut refuses to write groups whose records are too old.
func (p *pusher) mayPut(puts []control.Put) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, put := range puts {
		if name, ok := strings.CutPrefix(put.Key, control.KindGroup+"/"); ok && p.old[name] != "" {
			return oldStore{control.Errorf(control.KindRefused, "%s", p.old[name])}
		}
	}
	return nil
}

// unblock forgets a group that was deleted.
func (p *pusher) unblock(group string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	delete(p.old, group)
}
