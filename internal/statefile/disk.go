package statefile

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"
)

// onDisk is a copy in a file of this name. It has preparedSize written zeros from the start and is overwritten in place: a save
// of the usual size costs one fdatasync a copy and no commit of the file system's own journal. Moves save while hosts wait.
type onDisk string

func (p onDisk) String() string { return string(p) }

func (p onDisk) Read() ([]byte, error) { return os.ReadFile(string(p)) }

// Make syncs one that is there too, with its name: the process that made it may have died before.
func (p onDisk) Make() error {
	f, err := os.OpenFile(string(p), os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o600)
	switch {
	case err == nil:
		_, err = f.Write(make([]byte, preparedSize))
	case errors.Is(err, fs.ErrExist):
		f, err = os.OpenFile(string(p), os.O_WRONLY, 0)
	}
	if f == nil {
		return err
	}
	if err == nil {
		err = f.Sync()
	}
	if err == nil {
		err = syncDir(filepath.Dir(string(p)))
	}
	return errors.Join(err, f.Close())
}

func (p onDisk) Write(raw []byte) error {
	f, err := os.OpenFile(string(p), os.O_WRONLY, 0)
	if errors.Is(err, fs.ErrNotExist) { // it was removed, and is repaired
		if err := p.Make(); err != nil {
			return err
		}
		f, err = os.OpenFile(string(p), os.O_WRONLY, 0)
	}
	if err != nil {
		return err
	}
	_, err = f.WriteAt(raw, 0)
	if err == nil {
		err = unix.Fdatasync(int(f.Fd()))
	}
	return errors.Join(err, f.Close())
}

func syncDir(path string) error {
	dir, err := os.Open(path)
	if err != nil {
		return err
	}
	return errors.Join(dir.Sync(), dir.Close())
}
