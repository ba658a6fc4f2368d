// Package statefile keeps a small record on disk twice, so that one bad copy is repaired from the other and told
// (DESIGN I13). A Save that returned nil survives a power loss; one that did not return leaves the old record or the new.
//
// Generation n is written to copy n mod 2 first, then to the other. So from the moment at which a generation counts, it is
// durable in the copy that the next one does not begin with: whatever dies while a copy is written, and whatever a
// half-written sector holds then, the newest record that anybody was told of is whole. After a save that failed at its second
// copy, or was to make one copy only, the next one begins with the copy that is behind.
package statefile

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io/fs"
	"sync"
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

// errEmpty: the copy's file is there, and nothing was ever written to it.
var errEmpty = errors.New("never written")

// File is a record stored as PATH.a and PATH.b. Safe for concurrent use.
type File struct {
	mu         sync.Mutex
	path       string
	copies     [2]media
	generation uint64 // durable in copy generation mod 2, perhaps in both
}

// media is where one copy lies.
type media interface {
	fmt.Stringer
	// Read returns all of it; fs.ErrNotExist if it was never made.
	Read() ([]byte, error)
	// Make makes it durably, empty; one that is there stays as it is.
	Make() error
	// Write overwrites it from its beginning, durably.
	Write(raw []byte) error
}

// Open reads the newest good copy. body is nil if there is none yet. repaired tells in words what was mended.
func Open(path string) (f *File, body []byte, repaired string, err error) {
	return open(path, [2]media{onDisk(path + ".a"), onDisk(path + ".b")})
}

func open(path string, copies [2]media) (f *File, body []byte, repaired string, err error) {
	f = &File{path: path, copies: copies}
	var errs [2]error
	var bodies [2][]byte
	var gens [2]uint64
	for i, c := range copies {
		bodies[i], gens[i], errs[i] = readCopy(c)
	}
	missing := func(i int) bool { return errors.Is(errs[i], fs.ErrNotExist) || errors.Is(errs[i], errEmpty) }
	newest := 0
	switch {
	case missing(0) && missing(1):
		return f, nil, "", nil
	case errs[0] != nil && errs[1] != nil:
		if errors.Is(errs[0], errEmpty) || errors.Is(errs[1], errEmpty) {
			return f, nil, "", nil // the first save of all was torn: it never returned
		}
		return nil, nil, "", fmt.Errorf("%s: %w: %v; %v", path, ErrDamaged, errs[0], errs[1])
	case errs[0] != nil || errs[1] == nil && gens[1] > gens[0]:
		newest = 1
	}
	f.generation = gens[newest]
	if errs[0] == nil && errs[1] == nil && gens[0] == gens[1] {
		return f, bodies[newest], "", nil // the second copy is begun when the first is durable
	}
	for i, err := range errs {
		if err != nil && !missing(i) {
			repaired = fmt.Sprintf("%s was bad (%v) and was written again from the other copy", copies[i], err)
		}
	}
	// The newest one first, the same bytes where they stand: what was read may be in the page cache only, of a process that was
	// killed or whose sync failed, and then the other copy, which is older, is the one that is on the disk.
	raw := encode(f.generation, bodies[newest])
	for _, c := range [2]media{copies[newest], copies[1-newest]} {
		if err := c.Write(raw); err != nil {
			return nil, nil, "", fmt.Errorf("repair %s: %w", c, err)
		}
	}
	return f, bodies[newest], repaired, nil
}

// Save makes body durable in both copies, one after the other.
func (f *File) Save(body []byte) error { return f.save(body, 2) }

// SaveOne makes body durable in one copy, as a Save is that dies between the two: it costs one sync, and the next Save brings
// the other. Until then a copy that goes bad takes the record back to the one before; the caller has to be able to tell.
func (f *File) SaveOne(body []byte) error { return f.save(body, 1) }

// save writes to so many copies; with one the other stays behind.
func (f *File) save(body []byte, copies int) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	if len(body) > MaxSize {
		return fmt.Errorf("%s: record of %d bytes is over the limit of %d", f.path, len(body), MaxSize)
	}
	if f.generation == 0 {
		// Both are there before the first is written: a bad copy beside an empty one was the first save, torn.
		copies = 2
		for _, c := range f.copies {
			if err := c.Make(); err != nil {
				return fmt.Errorf("make %s: %w", c, err)
			}
		}
	}
	gen := f.generation + 1
	raw := encode(gen, body)
	for i := range copies {
		c := f.copies[(gen+uint64(i))%2]
		if err := c.Write(raw); err != nil {
			return fmt.Errorf("save %s: %w", c, err)
		}
		f.generation = gen // as soon as one copy has it: the next save must begin with the other
	}
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

func readCopy(c media) (body []byte, gen uint64, err error) {
	raw, err := c.Read()
	if err != nil {
		return nil, 0, err
	}
	if len(bytes.TrimRight(raw, "\x00")) == 0 {
		return nil, 0, errEmpty
	}
	if len(raw) < headerSize || !bytes.Equal(raw[:8], []byte(magic)) {
		return nil, 0, fmt.Errorf("%s is not a state record", c)
	}
	if v := binary.LittleEndian.Uint32(raw[8:]); v != version {
		return nil, 0, fmt.Errorf("%s has format version %d, this program reads %d", c, v, version)
	}
	if n := binary.LittleEndian.Uint32(raw[20:]); int64(n) > int64(len(raw)-headerSize) {
		return nil, 0, fmt.Errorf("%s has room for %d bytes of body, its header says %d", c, len(raw)-headerSize, n)
	}
	body = raw[headerSize:][:binary.LittleEndian.Uint32(raw[20:])]
	crc := crc32.Update(crc32.Checksum(raw[:24], castagnoli), castagnoli, body)
	if crc != binary.LittleEndian.Uint32(raw[24:]) {
		return nil, 0, fmt.Errorf("%s: checksum does not match", c)
	}
	return body, binary.LittleEndian.Uint64(raw[12:]), nil
}
