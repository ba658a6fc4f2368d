package manager

import (
	"context"
	"path/filepath"
	"slices"
	"time"

	"gantline/internal/control"
)

// Sizes of volumes and journals, bytes.
const (
	sector         = 512
	maxVolume      = 1 << 50
	minJournal     = 1 << 20
	defaultJournal = 1 << 30 // of a group that names none
	maxDevices     = 16
)

func checkSize(kind, name string, size, least int64) error {
	if size < least || size > maxVolume || size%sector != 0 {
		return control.Errorf(control.KindUsage, "%s %s: size %d: it is a multiple of %d between %d and %d bytes",
			kind, name, size, sector, least, int64(maxVolume))
	}
	return nil
}

func checkDevice(path string) error {
	if path != "" && !filepath.IsAbs(path) || len(path) > 4096 {
		return control.Errorf(control.KindUsage, "device %q: it is an absolute path on the node", path)
	}
	return nil
}

// nameFree refuses a name that the node's other kind has: volumes and journals of a node share one namespace.
func (m *Manager) nameFree(ctx context.Context, kind, full string) error {
	other := control.KindJournal
	if kind == control.KindJournal {
		other = control.KindVolume
	}
	_, err := m.store.Get(ctx, control.Key(other, full))
	if err == nil {
		return control.Errorf(control.KindRefused,
			"%s %s: there is a %s of that name; volumes and journals of a node share one namespace",
			singular(kind), full, singular(other))
	}
	return nil
}

// room refuses one object more than the limit.
func (m *Manager) room(ctx context.Context, kind string) error {
	entries, _, err := m.store.List(ctx, kind+"/")
	if err != nil {
		return err
	}
	if len(entries) >= maxObjects {
		return control.Errorf(control.KindRefused, "there are %d %s, the most allowed", len(entries), kind)
	}
	return nil
}

func (m *Manager) volumeCreate(ctx context.Context, in control.VolumeRequest) error {
	node, name, err := control.SplitOwned("volume", in.Name)
	if err != nil {
		return err
	}
	if err := checkSize("volume", in.Name, in.Size, 4096); err != nil {
		return err
	}
	if err := checkDevice(in.Device); err != nil {
		return err
	}
	unlock, err := m.locks.lock(ctx, "owned/"+in.Name)
	if err != nil {
		return err
	}
	defer unlock()
	old, exists, err := find[control.Volume](ctx, m, control.KindVolume, in.Name)
	if err != nil {
		return err
	}
	if exists {
		if old.V.Size != in.Size || in.Device != "" && in.Device != old.V.Device {
			return control.Errorf(control.KindRefused,
				"volume %s exists with %d bytes on %s; delete it first or choose another name", in.Name, old.V.Size, old.V.Device)
		}
		return nil
	}
	if err := m.nameFree(ctx, control.KindVolume, in.Name); err != nil {
		return err
	}
	if err := m.room(ctx, control.KindVolume); err != nil {
		return err
	}
	v, err := m.makeVolume(ctx, node, control.VolumeCreate{Name: name, Size: in.Size, Device: in.Device})
	if err != nil {
		return err
	}
	_, err = m.commit(ctx, m.change().put(old.Key, 0, v).
		event("volume/"+in.Name, "created", "command", "volume %s created with %d bytes", in.Name, in.Size))
	return err
}

// makeVolume has a node make a volume; repeating it is harmless.
func (m *Manager) makeVolume(ctx context.Context, node string, in control.VolumeCreate) (control.Volume, error) {
	var st control.VolumeStatus
	if err := m.do(ctx, node, control.CallVolumeCreate, in.Name, in, &st, callTimeout); err != nil {
		return control.Volume{}, err
	}
	return control.Volume{Node: node, Name: in.Name, ID: st.ID, Size: in.Size, Device: st.Device}, nil
}

// vvolsOf lists the virtual volumes that lead to a volume.
func (m *Manager) vvolsOf(ctx context.Context, volume string) ([]string, error) {
	vvols, err := loadAll[control.Vvol](ctx, m, control.KindVvol)
	if err != nil {
		return nil, err
	}
	out := []string{}
	for _, v := range vvols {
		if slices.Contains(v.V.Volumes(), volume) {
			out = append(out, v.V.Name)
		}
	}
	return out, nil
}

// removeBase is what a removal may take behind other work of the node.
const removeBase = 30 * time.Second

// removeLimit is how long a node may take to flush and remove a file of so many bytes: as to write it, 10 minutes at most.
func removeLimit(size int64) time.Duration {
	return min(removeBase+time.Duration(size/slowestDisk)*time.Second, unknownFill)
}

func (m *Manager) volumeDelete(ctx context.Context, full string) error {
	node, name, err := control.SplitOwned("volume", full)
	if err != nil {
		return err
	}
	unlock, err := m.locks.lock(ctx, "owned/"+full)
	if err != nil {
		return err
	}
	defer unlock()
	v, err := load[control.Volume](ctx, m, control.KindVolume, full)
	if err != nil {
		return err
	}
	if control.ForMove(v.V.Group) {
		return control.Errorf(control.KindRefused, "volume %s is in use by %s", full, inGroup(v.V.Group))
	} else if v.V.Group != "" {
		return control.Errorf(control.KindRefused, "volume %s is in use by group %s; delete the group first", full, v.V.Group)
	}
	vvols, err := m.vvolsOf(ctx, full)
	if err != nil {
		return err
	}
	if len(vvols) > 0 {
		return control.Errorf(control.KindRefused,
			"volume %s is in use: virtual volume %s leads to it; delete or switch that first", full, vvols[0])
	}
	if err := m.do(ctx, node, control.CallVolumeDelete, name, control.NameOnly{Name: name}, nil, removeLimit(v.V.Size)); err != nil &&
		control.KindOf(err) != control.KindNotFound {
		return err
	}
	_, err = m.commit(ctx, m.change().del(v.Key, v.Rev).
		event("volume/"+full, "deleted", "command", "volume %s deleted", full))
	return err
}

func (m *Manager) journalCreate(ctx context.Context, in control.JournalRequest, auto bool) (control.Journal, error) {
	node, name, err := control.SplitOwned("journal", in.Name)
	if err != nil {
		return control.Journal{}, err
	}
	if err := checkSize("journal", in.Name, in.Size, minJournal); err != nil {
		return control.Journal{}, err
	}
	if len(in.Devices) > maxDevices {
		return control.Journal{}, control.Errorf(control.KindUsage, "journal %s: at most %d devices", in.Name, maxDevices)
	}
	for _, d := range in.Devices {
		if err := checkDevice(d); err != nil {
			return control.Journal{}, err
		}
	}
	unlock, err := m.locks.lock(ctx, "owned/"+in.Name)
	if err != nil {
		return control.Journal{}, err
	}
	defer unlock()
	old, exists, err := find[control.Journal](ctx, m, control.KindJournal, in.Name)
	if err != nil {
		return control.Journal{}, err
	}
	if exists {
		if old.V.Size != in.Size || len(in.Devices) > 0 && !slices.Equal(in.Devices, old.V.Devices) {
			return control.Journal{}, control.Errorf(control.KindRefused,
				"journal %s exists with %d bytes on %v; delete it first or choose another name", in.Name, old.V.Size, old.V.Devices)
		}
		return old.V, nil
	}
	if err := m.nameFree(ctx, control.KindJournal, in.Name); err != nil {
		return control.Journal{}, err
	}
	if err := m.room(ctx, control.KindJournal); err != nil {
		return control.Journal{}, err
	}
	j, err := m.makeJournal(ctx, node, control.JournalCreate{Name: name, Size: in.Size, Devices: in.Devices})
	if err != nil {
		return control.Journal{}, err
	}
	j.Auto = auto
	_, err = m.commit(ctx, m.change().put(old.Key, 0, j).
		event("journal/"+in.Name, "created", "command", "journal %s created with %d bytes", in.Name, in.Size))
	return j, err
}

// makeJournal has a node make a journal, which writes all of it once.
func (m *Manager) makeJournal(ctx context.Context, node string, in control.JournalCreate) (control.Journal, error) {
	var st control.JournalStatus
	limit := callTimeout + time.Duration(in.Size/slowestDisk)*time.Second
	if err := m.do(ctx, node, control.CallJournalCreate, in.Name, in, &st, limit); err != nil {
		return control.Journal{}, err
	}
	return control.Journal{Node: node, Name: in.Name, Size: in.Size, Devices: st.Devices}, nil
}

func (m *Manager) journalDelete(ctx context.Context, full string) error {
	node, name, err := control.SplitOwned("journal", full)
	if err != nil {
		return err
	}
	unlock, err := m.locks.lock(ctx, "owned/"+full)
	if err != nil {
		return err
	}
	defer unlock()
	j, err := load[control.Journal](ctx, m, control.KindJournal, full)
	if err != nil {
		return err
	}
	if j.V.Group != "" {
		return control.Errorf(control.KindRefused, "journal %s is in use by group %s; delete the group first", full, j.V.Group)
	}
	if err := m.do(ctx, node, control.CallJournalDelete, name, control.NameOnly{Name: name}, nil, removeLimit(j.V.Size)); err != nil &&
		control.KindOf(err) != control.KindNotFound {
		return err
	}
	_, err = m.commit(ctx, m.change().del(j.Key, j.Rev).
		event("journal/"+full, "deleted", "command", "journal %s deleted", full))
	return err
}
