package node

import (
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"path/filepath"
	"slices"

	"gantline/internal/block"
	"gantline/internal/control"
	"gantline/internal/journal"
)

// part is a device that is being made ready to join a journal. All of it is written once, which may take long: meanwhile
// Node.config is free, and the journal goes on as it is.
type part struct {
	what, journal, path string
	made                bool // a file of this node's own
	id                  journal.ID
	have                []string // the journal's devices
	dev                 block.Device
	done                chan struct{} // closed when it has joined, or will not
}

// addJournal has a journal grow by a device: prepared, then recorded, then joined. Dead before the record, nothing has
// changed, and a file that was made goes at the next start, or when the repeated call makes it again. Dead behind it, it joins
// when the journal is opened. A call for a journal that is growing waits until that has ended.
func (n *Node) addJournal(ctx context.Context, in control.JournalAdd) (control.JournalStatus, error) {
	p, err := n.beginPart(ctx, in)
	if err != nil {
		return control.JournalStatus{}, err
	}
	if p == nil {
		return n.journalStatus(in.Name) // repeated
	}
	err = journal.Prepare(p.dev, p.id, len(p.have))
	n.config.Lock()
	defer n.config.Unlock()
	delete(n.growing, p.journal)
	close(p.done)
	if err != nil {
		return control.JournalStatus{}, n.dropPart(p, err)
	}
	if err := n.recordPart(p); err != nil {
		return control.JournalStatus{}, err
	}
	if err := n.joinJournal(p.journal, p.dev); err != nil {
		return control.JournalStatus{}, refused("%s: device %s has been recorded and joins when the journal is opened anew: %v", p.what, p.path, err)
	}
	return n.journalStatus(in.Name)
}

// beginPart checks what is asked for and opens the device, or makes the file; nil: it has joined already.
func (n *Node) beginPart(ctx context.Context, in control.JournalAdd) (*part, error) {
	what := "journal " + n.cfg.Name + "/" + in.Name
	if err := n.awaitPart(ctx, what, in.Name); err != nil {
		return nil, err
	}
	defer n.config.Unlock()
	rec := n.state.view().Journals[in.Name]
	if rec == nil {
		return nil, notFound("%s does not exist", what)
	}
	path := in.Device
	if path == "" {
		path = n.journalPath(in.Name, len(in.Have))
	}
	switch {
	case slices.Equal(rec.Devices, append(slices.Clone(in.Have), path)):
		return nil, nil
	case !slices.Equal(rec.Devices, in.Have):
		return nil, refused("%s has the devices %v here, not %v: repeat first what was added last", what, rec.Devices, in.Have)
	case !filepath.IsAbs(path):
		return nil, invalid("%s: device %q must be an absolute path", what, path)
	}
	id, err := journalID(rec.ID)
	if err != nil {
		return nil, refused("%s: %v", what, err)
	}
	dev, err := n.newJournalDevice(what, path, in)
	if err != nil {
		return nil, err
	}
	p := &part{what: what, journal: in.Name, path: path, made: in.Device == "", id: id, have: rec.Devices, dev: dev, done: make(chan struct{})}
	n.growing[in.Name] = p
	return p, nil
}

// awaitPart takes Node.config at a moment in which the journal is not growing.
func (n *Node) awaitPart(ctx context.Context, what, name string) error {
	for {
		n.config.Lock()
		p := n.growing[name]
		if p == nil {
			return nil
		}
		n.config.Unlock()
		select {
		case <-p.done:
		case <-ctx.Done():
			return refused("%s: device %s is still being written once: repeat the command", what, p.path)
		}
	}
}

// recordPart notes a prepared device in the journal's record, if that is still the journal it was prepared for; under
// Node.config.
func (n *Node) recordPart(p *part) error {
	rec := n.state.view().Journals[p.journal]
	if rec == nil || rec.ID != p.id.String() || !slices.Equal(rec.Devices, p.have) {
		return n.dropPart(p, errors.New("the journal was formatted meanwhile: repeat the command"))
	}
	err := n.state.update(func(d *durable) error {
		r := *d.Journals[p.journal]
		r.Devices, r.Size = append(slices.Clone(r.Devices), p.path), r.Size+p.dev.Size()
		d.Journals[p.journal] = &r
		return nil
	})
	if err != nil {
		return errors.Join(err, p.dev.Close())
	}
	return nil
}

// dropPart lets go of a device that will not join.
func (n *Node) dropPart(p *part, err error) error {
	err = errors.Join(refused("%s: device %s: %v", p.what, p.path, err), p.dev.Close())
	if p.made {
		err = errors.Join(err, n.cfg.Devices.Remove(p.path))
	}
	return err
}

// removeParts removes the files of parts that were being written when the process ended. One that has its label already
// stays until the command is repeated: a state put back from a backup may not know of a part that has joined.
func (n *Node) removeParts(d *durable) {
	for name, rec := range d.Journals {
		path := n.journalPath(name, len(rec.Devices))
		if exists, err := n.cfg.Devices.Exists(path); err != nil || !exists {
			continue
		}
		blank, err := n.blankFile(path)
		if err == nil && blank {
			err = n.cfg.Devices.Remove(path)
		}
		if err != nil || !blank {
			n.log.Warn("file of no journal left", "journal", name, "path", path, "cause", err)
			continue
		}
		n.log.Info("unfinished part of a journal removed", "journal", name, "path", path)
	}
}

// blankFile says whether a journal's device has no label: Prepare writes that last.
func (n *Node) blankFile(path string) (bool, error) {
	dev, err := n.cfg.Devices.Open(path)
	if err != nil {
		return false, err
	}
	head := make([]byte, min(64<<10, dev.Size()))
	_, err = dev.ReadAt(head, 0)
	blank := !slices.ContainsFunc(head, func(b byte) bool { return b != 0 })
	return blank, errors.Join(err, dev.Close())
}

// newJournalDevice opens the operator's device, or makes a file. A file of that name that is there is of a call that died.
func (n *Node) newJournalDevice(what, path string, in control.JournalAdd) (block.Device, error) {
	exists, err := n.cfg.Devices.Exists(path)
	switch {
	case err != nil:
		return nil, refused("%s: device %s: %v", what, path, err)
	case in.Device != "" && !exists:
		return nil, refused("%s: device %s does not exist; --size makes a file", what, path)
	case in.Device == "" && exists:
		if err := n.cfg.Devices.Remove(path); err != nil {
			return nil, refused("%s: what an earlier try has left at %s: %v", what, path, err)
		}
	}
	if err := n.roomFor(what, []string{path}, in.Size); err != nil {
		return nil, err
	}
	return n.makeDevice(what, path, in.Size)
}

func journalID(text string) (id journal.ID, err error) {
	b, err := hex.DecodeString(text)
	if err != nil || len(b) != len(id) {
		return id, fmt.Errorf("the record of the journal has the id %q", text)
	}
	copy(id[:], b)
	return id, nil
}

// joinJournal gives a prepared and recorded device to the journal, if that is open. It takes the device over.
func (n *Node) joinJournal(name string, dev block.Device) error {
	for gname, rec := range n.state.view().Groups {
		g := n.group(gname)
		if rec.Journal != name || rec.Role == control.RoleRetired || g == nil {
			continue
		}
		g.mu.Lock()
		jnl := g.jnl
		g.mu.Unlock()
		if jnl == nil {
			continue
		}
		if err := jnl.Join(dev); err != nil {
			return errors.Join(err, dev.Close())
		}
		return nil
	}
	return dev.Close()
}
