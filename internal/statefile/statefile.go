// Package statefile keeps a small record on disk twice, so that one bad copy is repaired from the other and told
// (DESIGN I13). A Save that returned nil survives a power loss; one that did not return leaves the old record or the new.
package statefile

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io/fs"
	"os"
	"path/filepath"
	"sync"

	"golang.org/x/sys/unix"
)

// A copy is: magic "GTLSTATE", version u32, generation u64, length u32, crc32c u32 of all before it and the body, body.
const (
	magic      = "GTLSTATE"
	version    = 1
	headerSize = 8 + 4 + 8 + 4 + 4
	// preparedSize is what a copy's file has from the start.
	preparedSize = 64 << 10
	// MaxSize bounds a record: what is larger is not a state record of ours.
	MaxSize = 64 << 20
)

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// ErrDamaged: both copies are there and neither can be believed.
var ErrDamaged = errors.New("both copies of the record are damaged")

// File is a record stored as PATH.a and PATH.b. Safe for concurrent use.
type File struct {
	mu         sync.Mutex
	path       string
	generation uint64
}

// Open reads the newest good copy. body is nil if there is none yet. repaired tells in words what was mended.
func Open(path string) (f *File, body []byte, repaired string, err error) {
	f = &File{path: path}
	a, genA, errA := readCopy(path + ".a")
	b, genB, errB := readCopy(path + ".b")
	switch {
	case errors.Is(errA, fs.ErrNotExist) && errors.Is(errB, fs.ErrNotExist):
		return f, nil, "", nil
	case errA != nil && errB != nil:
		return nil, nil, "", fmt.Errorf("%s: %w: %v; %v", path, ErrDamaged, errA, errB)
	}
	good, gen := a, genA
	if errA != nil || errB == nil && genB > genA {
		good, gen = b, genB
	}
	f.generation = gen
	if errA != nil || errB != nil || genA != genB {
		// The copy that is bad, missing or older is written again. Older is what a death between the two leaves.
		if damaged(errA) {
			repaired = fmt.Sprintf("%s.a was bad (%v) and was written again from the other copy", path, errA)
		}
		if damaged(errB) {
			repaired = fmt.Sprintf("%s.b was bad (%v) and was written again from the other copy", path, errB)
		}
		if err := f.Save(good); err != nil {
			return nil, nil, "", err
		}
	}
	return f, good, repaired, nil
}

func damaged(err error) bool { return err != nil && !errors.Is(err, fs.ErrNotExist) }

// Save makes body durable, one copy after the other: whatever dies, and whatever a half-written sector holds then, the
// copy not being written is whole.
func (f *File) Save(body []byte) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	if len(body) > MaxSize {
		return fmt.Errorf("%s: record of %d bytes is over the limit of %d", f.path, len(body), MaxSize)
	}
	gen := f.generation + 1
	raw := encode(gen, body)
	for _, suffix := range []string{".a", ".b"} {
		if err := replace(f.path+suffix, raw); err != nil {
			return fmt.Errorf("save %s%s: %w", f.path, suffix, err)
		}
	}
	f.generation = gen
	return nil
}

func encode(gen uint64, body []byte) []byte {
	raw := make([]byte, headerSize, headerSize+len(body))
	copy(raw, magic)
	binary.LittleEndian.PutUint32(raw[8:], version)
	binary.LittleEndian.PutUint64(raw[12:], gen)
	binary.LittleEndian.PutUint32(raw[20:], uint32(len(body)))
	crc := crc32.Update(crc32.Checksum(raw[:24], castagnoli), castagnoli, body)
	binary.LittleEndian.PutUint32(raw[24:], crc)
	return append(raw, body...)
}

func readCopy(path string) (body []byte, gen uint64, err error) {
	raw, err := os.ReadFile(path)
	if err != nil {
		return nil, 0, err
	}
	if len(bytes.TrimRight(raw, "\x00")) == 0 {
		return nil, 0, fs.ErrNotExist // died between making the file and the first Save
	}
	if len(raw) < headerSize || !bytes.Equal(raw[:8], []byte(magic)) {
		return nil, 0, fmt.Errorf("%s is not a state record", path)
	}
	if v := binary.LittleEndian.Uint32(raw[8:]); v != version {
		return nil, 0, fmt.Errorf("%s has format version %d, this program reads %d", path, v, version)
	}
	if n := binary.LittleEndian.Uint32(raw[20:]); int64(n) > int64(len(raw)-headerSize) {
		return nil, 0, fmt.Errorf("%s has room for %d bytes of body, its header says %d", path, len(raw)-headerSize, n)
	}
	body = raw[headerSize:][:binary.LittleEndian.Uint32(raw[20:])]
	crc := crc32.Update(crc32.Checksum(raw[:24], castagnoli), castagnoli, body)
	if crc != binary.LittleEndian.Uint32(raw[24:]) {
		return nil, 0, fmt.Errorf("%s: checksum does not match", path)
	}
	return body, binary.LittleEndian.Uint64(raw[12:]), nil
}

// replace overwrites one copy in place and makes it durable. The file keeps its written blocks, so a Save of the usual
// size costs two fdatasyncs and no commit of the file system's own journal: moves save while hosts wait.
func replace(path string, raw []byte) error {
	f, err := os.OpenFile(path, os.O_WRONLY, 0)
	if errors.Is(err, fs.ErrNotExist) {
		f, err = create(path)
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

// create makes a file of preparedSize written zeros, whose name is durable.
func create(path string) (*os.File, error) {
	f, err := os.OpenFile(path, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o600)
	if err != nil {
		return nil, err
	}
	_, err = f.Write(make([]byte, preparedSize))
	if err == nil {
		err = f.Sync()
	}
	if err == nil {
		err = syncDir(filepath.Dir(path))
	}
	if err != nil {
		f.Close()
		return nil, err
	}
	return f, nil
}

func syncDir(path string) error {
	dir, err := os.Open(path)
	if err != nil {
		return err
	}
	return errors.Join(dir.Sync(), dir.Close())
}
