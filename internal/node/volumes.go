package node

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"sync/atomic"

	"golang.org/x/sys/unix"

	"gantline/internal/block"
	"gantline/internal/control"
	"gantline/internal/journal"
	"gantline/internal/volume"
)

// nodeVolume is a volume as it runs. It lives as long as the node does, through lone life and group membership.
type nodeVolume struct {
	name string
	dev  block.Device
	vol  *volume.Volume
	// epoch is the one in which its group is served, as this node knows it; 0 for a lone volume.
	epoch atomic.Uint64
}

// minVolume and maxVolume bound a volume's size in bytes.
const (
	minVolume = 4096
	maxVolume = 1 << 50
)

// createVolume makes a volume durable: first its file or device, then the record. Dead between the two, a file is left
// that the repeated call takes over, since it has the right size and nobody wrote to it.
func (n *Node) createVolume(in control.VolumeCreate) (control.VolumeStatus, error) {
	if in.Size < minVolume || in.Size > maxVolume || in.Size%512 != 0 {
		return control.VolumeStatus{}, invalid("volume %s/%s: size %d bytes must be a multiple of 512 from %d to %d",
			n.cfg.Name, in.Name, in.Size, minVolume, int64(maxVolume))
	}
	n.config.Lock()
	defer n.config.Unlock()
	path := in.Device
	if path == "" {
		path = filepath.Join(n.cfg.DataDir, "volumes", in.Name+".raw")
	}
	d := n.state.view()
	if d.cancelled(in.For) {
		return control.VolumeStatus{}, refused("volume %s/%s: migration %s, for which it was to be made, has been cancelled", n.cfg.Name, in.Name,
			in.For.ID)
	}
	n.exports.revive(in.Name)
	if have := d.Volumes[in.Name]; have != nil {
		if have.Size == in.Size && have.Device == path {
			return n.volumeStatus(in.Name)
		}
		return control.VolumeStatus{}, refused("volume %s/%s exists with size %d on %s", n.cfg.Name, in.Name, have.Size, have.Device)
	}
	if d.Journals[in.Name] != nil {
		return control.VolumeStatus{}, refused("%s/%s is a journal: volumes and journals of a node share one namespace", n.cfg.Name, in.Name)
	}
	if !filepath.IsAbs(path) {
		return control.VolumeStatus{}, invalid("volume %s/%s: device %q must be an absolute path", n.cfg.Name, in.Name, path)
	}
	dev, err := n.makeDevice("volume "+n.cfg.Name+"/"+in.Name, path, in.Size)
	if err != nil {
		return control.VolumeStatus{}, err
	}
	if dev.Size() < in.Size || dev.Size() > in.Size && in.Device == "" {
		err := refused("volume %s/%s: %s has %d bytes, not %d", n.cfg.Name, in.Name, path, dev.Size(), in.Size)
		return control.VolumeStatus{}, errors.Join(err, dev.Close())
	}
	rec := &volumeRecord{Name: in.Name, ID: randomID(), Size: dev.Size(), Device: path}
	if dev.Size() != in.Size {
		return control.VolumeStatus{}, errors.Join(refused("volume %s/%s: %s has %d bytes, not %d: give its exact size",
			n.cfg.Name, in.Name, path, dev.Size(), in.Size), dev.Close())
	}
	if err := n.state.update(func(d *durable) error { d.Volumes[in.Name] = rec; return nil }); err != nil {
		return control.VolumeStatus{}, errors.Join(err, dev.Close())
	}
	n.addVolume(rec, dev)
	return n.volumeStatus(in.Name)
}

// makeDevice opens path, or makes a file of size there. It refuses to fill the file system beyond what it has.
func (n *Node) makeDevice(what, path string, size int64) (block.Device, error) {
	exists, err := n.cfg.Devices.Exists(path)
	if exists {
		dev, err := n.cfg.Devices.Open(path)
		if err != nil {
			return nil, refused("%s: device %s: %v", what, path, err)
		}
		return dev, nil
	}
	if err != nil {
		return nil, refused("%s: device %s: %v", what, path, err)
	}
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		return nil, refused("%s: %v", what, err)
	}
	dev, err := n.cfg.Devices.Create(path, size)
	if err != nil {
		return nil, refused("%s: make %s: %v", what, path, err)
	}
	return dev, nil
}

// freeBytes is the room on the file system that holds path or its nearest parent.
func freeBytes(path string) (int64, error) {
	for {
		var st unix.Statfs_t
		err := unix.Statfs(path, &st)
		if err == nil {
			return int64(st.Bavail) * st.Bsize, nil
		}
		if !errors.Is(err, fs.ErrNotExist) || path == filepath.Dir(path) {
			return 0, fmt.Errorf("room at %s: %w", path, err)
		}
		path = filepath.Dir(path)
	}
}

// openVolume opens a recorded volume at the start of the node.
func (n *Node) openVolume(rec *volumeRecord) error {
	dev, err := n.cfg.Devices.Open(rec.Device)
	if err != nil {
		return err
	}
	if !fitsRecord(dev, rec) {
		return errors.Join(fmt.Errorf("%s has %d bytes, recorded are %d", rec.Device, dev.Size(), rec.Size), dev.Close())
	}
	n.addVolume(rec, dev)
	return nil
}

func (n *Node) addVolume(rec *volumeRecord, dev block.Device) {
	v := &nodeVolume{name: rec.Name, dev: dev}
	opt := volume.Options{Size: rec.Size}
	switch {
	case rec.Moved != nil:
		opt.Mode = volume.ModeMoved
	case n.state.view().owner(rec.Name) != "":
		// Its group says what it does. One that cannot be opened must not have its volumes served as lone ones.
		opt.Mode = volume.ModeFailed
	}
	v.vol = volume.NewVolume(rec.Name, dev, opt)
	if rec.Moved != nil {
		v.vol.SetSuccessor(rec.Moved)
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	n.volumes[rec.Name] = v
}

func (n *Node) brokenCause(name string) error {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.broken[name]
}

func (n *Node) volume(name string) *nodeVolume {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.volumes[name]
}

func (n *Node) deleteVolume(ctx context.Context, in control.NameOnly) error {
	name := in.Name
	n.config.Lock()
	defer n.config.Unlock()
	d := n.state.view()
	rec := d.Volumes[name]
	if rec == nil {
		return nil // repeated
	}
	if user := d.userOf(name); user != "" {
		return refused("volume %s/%s is in use by %s", n.cfg.Name, name, user)
	}
	if in.For != "" && rec.Arrived == in.For {
		return refused("volume %s/%s: migration %s has ended here, and has not gone back: was the manager's store put back from a backup?", n.cfg.Name,
			name, in.For)
	}
	if n.clearing[name] {
		return refused("volume %s/%s is being grown: repeat the command when that has ended", n.cfg.Name, name)
	}
	v := n.volume(name)
	if v == nil {
		return refused("volume %s/%s could not be opened: %v; mend or replace %s and restart the node", n.cfg.Name, name, n.brokenCause(name), rec.Device)
	}
	if err := n.exports.forget(ctx, name); err != nil {
		return refused("volume %s/%s: %v", n.cfg.Name, name, err)
	}
	if err := n.state.update(func(d *durable) error { delete(d.Volumes, name); return nil }); err != nil {
		return err
	}
	n.mu.Lock()
	delete(n.volumes, name)
	n.mu.Unlock()
	if err := errors.Join(v.vol.Close(), v.dev.Close()); err != nil {
		n.log.Warn("volume closed with an error", "volume", name, "cause", err)
	}
	// Only a file that we made is removed; a device, or a file that was there before, is the operator's.
	if rec.Device == filepath.Join(n.cfg.DataDir, "volumes", name+".raw") {
		return n.cfg.Devices.Remove(rec.Device)
	}
	return nil
}

// userOf names the group or move that needs a volume or journal.
func (d *durable) userOf(name string) string {
	for g, rec := range d.Groups {
		if rec.Role == control.RoleRetired {
			continue
		}
		if rec.Journal == name || slices.ContainsFunc(rec.Members, func(m memberRecord) bool { return m.Volume == name }) {
			return "group " + g
		}
	}
	for id, rec := range d.Moves {
		if !runsTarget(rec) {
			continue
		}
		if _, jnl := splitName(rec.Spec.TargetJournal); jnl == name {
			return "migration " + id
		}
		for _, v := range rec.Spec.Volumes {
			if _, vol := splitName(v.Target); vol == name {
				return "migration " + id
			}
		}
	}
	return ""
}

// createJournal formats a journal, then records it. Dead between the two, the repeated call formats again: nothing
// has been appended, since only a recorded journal is ever opened.
func (n *Node) createJournal(in control.JournalCreate) (control.JournalStatus, error) {
	n.config.Lock()
	defer n.config.Unlock()
	what := "journal " + n.cfg.Name + "/" + in.Name
	paths := in.Devices
	if len(paths) == 0 {
		paths = []string{n.journalPath(in.Name, 0)}
	}
	d := n.state.view()
	if d.cancelled(in.For) {
		return control.JournalStatus{}, refused("%s: migration %s, for which it was to be made, has been cancelled", what, in.For.ID)
	}
	if have := d.Journals[in.Name]; have != nil {
		if have.Size == in.Size && slices.Equal(have.Devices, paths) {
			return n.journalStatus(in.Name)
		}
		return control.JournalStatus{}, refused("%s exists with size %d on %v", what, have.Size, have.Devices)
	}
	if d.Volumes[in.Name] != nil {
		return control.JournalStatus{}, refused("%s/%s is a volume: volumes and journals of a node share one namespace", n.cfg.Name, in.Name)
	}
	if err := n.roomFor(what, paths, in.Size); err != nil {
		return control.JournalStatus{}, err
	}
	var devs []block.Device
	closeAll := func() {
		for _, d := range devs {
			_ = d.Close()
		}
	}
	defer closeAll()
	share := in.Size / int64(len(paths)) / 4096 * 4096
	for _, path := range paths {
		if !filepath.IsAbs(path) {
			return control.JournalStatus{}, invalid("%s: device %q must be an absolute path", what, path)
		}
		dev, err := n.makeDevice(what, path, share)
		if err != nil {
			return control.JournalStatus{}, err
		}
		devs = append(devs, dev)
	}
	id := newJournalID()
	if err := journal.Create(devs, id); err != nil {
		n.removeMade(in, paths)
		return control.JournalStatus{}, refused("%s: %v", what, err)
	}
	rec := &journalRecord{Name: in.Name, ID: id.String(), Size: in.Size, Devices: paths}
	if err := n.state.update(func(d *durable) error { d.Journals[in.Name] = rec; return nil }); err != nil {
		return control.JournalStatus{}, err
	}
	return n.journalStatus(in.Name)
}

// removeMade removes files that this call has made and could not use.
func (n *Node) removeMade(in control.JournalCreate, paths []string) {
	if len(in.Devices) == 0 {
		_ = n.cfg.Devices.Remove(paths[0])
	}
}

// roomFor refuses a journal for which the file system has no room: all of it is written when it is made.
func (n *Node) roomFor(what string, paths []string, size int64) error {
	var missing int64
	for _, p := range paths {
		if exists, err := n.cfg.Devices.Exists(p); err == nil && !exists {
			missing += size / int64(len(paths))
		}
	}
	if missing == 0 {
		return nil
	}
	free, err := freeBytes(paths[0])
	if err != nil {
		return refused("%s: %v", what, err)
	}
	if free < missing {
		return refused("%s: needs %d bytes, the file system at %s has %d: free some or name another --device", what, missing, filepath.Dir(paths[0]), free)
	}
	return nil
}

func (n *Node) deleteJournal(name string) error {
	n.config.Lock()
	defer n.config.Unlock()
	d := n.state.view()
	rec := d.Journals[name]
	if rec == nil {
		return nil
	}
	if user := d.userOf(name); user != "" {
		return refused("journal %s/%s is in use by %s", n.cfg.Name, name, user)
	}
	if n.growing[name] != nil {
		return refused("journal %s/%s is being grown: repeat the command when that has ended", n.cfg.Name, name)
	}
	if err := n.state.update(func(d *durable) error { delete(d.Journals, name); return nil }); err != nil {
		return err
	}
	var errs []error
	for i, path := range rec.Devices {
		if path == n.journalPath(name, i) {
			errs = append(errs, n.cfg.Devices.Remove(path))
		}
	}
	return errors.Join(errs...)
}

// prepareJournal formats a journal that another group has had, so that the next one does not find its records.
func (n *Node) prepareJournal(rec *journalRecord) error {
	if !rec.Used {
		return nil
	}
	return n.blankJournal(rec)
}

func (n *Node) blankJournal(rec *journalRecord) error {
	var devs []block.Device
	defer func() {
		for _, d := range devs {
			_ = d.Close()
		}
	}()
	for _, p := range rec.Devices {
		dev, err := n.cfg.Devices.Open(p)
		if err != nil {
			return err
		}
		devs = append(devs, dev)
	}
	id := newJournalID()
	if err := journal.Create(devs, id); err != nil {
		return fmt.Errorf("journal %s/%s: %w", n.cfg.Name, rec.Name, err)
	}
	return n.state.update(func(d *durable) error {
		d.Journals[rec.Name].ID, d.Journals[rec.Name].Used = id.String(), false
		return nil
	})
}

func newJournalID() (id journal.ID) {
	rand.Read(id[:])
	return id
}

// openJournal opens a recorded journal through recovery. The devices belong to the journal afterwards.
func (n *Node) openJournal(name string) (*journal.Journal, error) {
	rec := n.state.view().Journals[name]
	if rec == nil {
		return nil, notFound("journal %s/%s does not exist", n.cfg.Name, name)
	}
	var devs []block.Device
	for _, p := range rec.Devices {
		dev, err := n.cfg.Devices.Open(p)
		if err != nil {
			for _, d := range devs {
				_ = d.Close()
			}
			return nil, fmt.Errorf("journal %s/%s: %w", n.cfg.Name, name, err)
		}
		devs = append(devs, dev)
	}
	j, err := journal.Open(devs)
	if err != nil {
		for _, d := range devs {
			_ = d.Close()
		}
		return nil, fmt.Errorf("journal %s/%s: %w", n.cfg.Name, name, err)
	}
	return j, nil
}
