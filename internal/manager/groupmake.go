package manager

import (
	"context"
	"errors"

	"golang.org/x/sync/errgroup"

	"gantline/internal/control"
)

// storeGroup makes a new group durable, with its journals, in an epoch above all that gateways may have heard of.
func (m *Manager) storeGroup(ctx context.Context, key string, g *control.Group) error {
	c := m.change()
	for _, name := range []string{g.PrimaryJournal, g.SecondaryJournal} {
		if name == "" {
			continue // the log is a queue
		}
		if err := m.takeJournal(ctx, c, g, name); err != nil {
			return err
		}
	}
	if j, exists, err := find[control.Journal](ctx, m, control.KindJournal, g.SecondaryJournal); err != nil {
		return err
	} else if exists {
		g.SecondaryJournalSize = j.V.Size
	}
	past, _, err := find[pastEpochs](ctx, m, keyPast, "groups")
	if err != nil {
		return err
	}
	g.Epoch = past.V.Highest + 1
	c.hold(past.Key, past.Rev).put(key, 0, g).event("group/"+g.Name, "created", "command", "group %s from %s to %s, %s, %s",
		g.Name, g.Primary, g.Secondary, g.Mode, g.Log)
	_, err = m.commit(ctx, c)
	return err
}

// keyPast is where the store keeps what must outlive its object.
const keyPast = "past"

// pastEpochs has the highest epoch that a deleted group may have had. Gateways believe the highest epoch of a group that
// they have heard of: one that slept through the end of a group and the beginning of the next of that name would take
// every route of it for one of the past.
type pastEpochs struct {
	Highest uint64 `json:"highest"`
}

// rememberEpochs raises pastEpochs, in c, above all epochs of a group that is about to be deleted. A group that never had
// a pair has never been in a route.
func (m *Manager) rememberEpochs(ctx context.Context, c *change, g *control.Group, moves []got[control.Migration]) error {
	past, _, err := find[pastEpochs](ctx, m, keyPast, "groups")
	if err != nil || g.NextNumber == 1 {
		return err
	}
	highest := g.Epoch
	for _, mg := range moves {
		if mg.V.Group == g.Name && mg.V.Decided == control.DecidedSource { // its nodes may have opened e+2 untold
			highest = max(highest, mg.V.Epoch+2)
		}
	}
	if highest > past.V.Highest {
		c.put(past.Key, past.Rev, pastEpochs{Highest: highest})
	}
	return nil
}

// makeJournals makes NODE/GROUP where no journal is named and one is needed, on both nodes at a time: each writes all of it once. It lists
// those that were not there before, also with an error.
func (m *Manager) makeJournals(ctx context.Context, g *control.Group) (made []string, err error) {
	var work errgroup.Group
	for _, j := range []struct {
		name *string
		node string
	}{{&g.PrimaryJournal, g.Primary}, {&g.SecondaryJournal, g.Secondary}} {
		if *j.name != "" || j.name == &g.PrimaryJournal && g.Log == control.LogQueue {
			continue
		}
		*j.name = j.node + "/" + g.Name
		_, exists, err := find[control.Journal](ctx, m, control.KindJournal, *j.name)
		if err != nil {
			return nil, errors.Join(err, work.Wait())
		}
		if !exists {
			made = append(made, *j.name)
		}
		work.Go(func() error {
			_, err := m.journalCreate(ctx, control.JournalRequest{Name: *j.name, Size: defaultJournal}, true)
			return err
		})
	}
	return made, work.Wait()
}

// unmakeJournals takes back what makeJournals made for a group that was then refused.
func (m *Manager) unmakeJournals(ctx context.Context, made []string) {
	ctx = context.WithoutCancel(ctx) // who asked may be gone by now
	for _, name := range made {
		if err := m.journalDelete(ctx, name); err != nil && control.KindOf(err) != control.KindNotFound {
			m.log.Warn("journal of a refused group was left", "journal", name, "error", err)
		}
	}
}

// takeJournal gives a journal to a group, in c.
func (m *Manager) takeJournal(ctx context.Context, c *change, g *control.Group, name string) error {
	j, exists, err := find[control.Journal](ctx, m, control.KindJournal, name)
	switch {
	case err != nil:
		return err
	case !exists && planOf(ctx) != nil && name == control.NodeOf(name)+"/"+g.Name:
		return nil // it would have been made
	case !exists:
		return notFound(control.KindJournal, name)
	case j.V.Group != "":
		return control.Errorf(control.KindRefused, "journal %s serves group %s; groups never share one", name, j.V.Group)
	}
	j.V.Group = g.Name
	c.put(j.Key, j.Rev, j.V)
	return nil
}
