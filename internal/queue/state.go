package queue

import (
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"

	"gantline/internal/block"
	"gantline/internal/record"
)

// The state stands twice on its device, at 0 and at slotSize, little-endian:
//
//	+0 magic "GTLQUEUE" · +8 version u32 · +12 flags u32 · +16 generation u64 · +24 reserved u64 · +32 table length u32
//	+36 meta length u32 · +40 crc32c u32 of all else · +44 epoch table (package record) · owner's blob
//
// A save writes both copies, a flush behind each. Whatever dies, the copy not being written is whole.
const (
	stateMagic   = "GTLQUEUE"
	stateVersion = 1
	stateHead    = 44
	slotSize     = 256 << 10
	// StateSize is what the state's device must have, in bytes.
	StateSize = 2 * slotSize
	// MaxMeta bounds the owner's blob, in bytes.
	MaxMeta = 16 << 10
)

// flagFailed: the run before ended with a failed flush or write. What it had not flushed may be read from the page cache
// and yet never reach the disk.
const flagFailed = 1

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// state is what outlives the process. A value is never changed once it is in force.
type state struct {
	generation uint64
	reserved   record.Seq // no number above it has been used
	failed     bool
	table      record.Table
	meta       []byte
}

func (s *state) encode() []byte {
	le := binary.LittleEndian
	table := record.AppendTable(nil, s.table)
	b := make([]byte, stateHead, stateHead+len(table)+len(s.meta))
	copy(b, stateMagic)
	le.PutUint32(b[8:], stateVersion)
	if s.failed {
		le.PutUint32(b[12:], flagFailed)
	}
	le.PutUint64(b[16:], s.generation)
	le.PutUint64(b[24:], uint64(s.reserved))
	le.PutUint32(b[32:], uint32(len(table)))
	le.PutUint32(b[36:], uint32(len(s.meta)))
	b = append(append(b, table...), s.meta...)
	le.PutUint32(b[40:], stateSum(b))
	return b
}

// stateSum is over all bytes but its own place.
func stateSum(b []byte) uint32 {
	return crc32.Update(crc32.Checksum(b[:40], castagnoli), castagnoli, b[stateHead:])
}

func decodeState(b []byte) (*state, error) {
	le := binary.LittleEndian
	if len(b) < stateHead || string(b[:8]) != stateMagic {
		return nil, errors.New("it is no queue's state")
	}
	if v := le.Uint32(b[8:]); v != stateVersion {
		return nil, fmt.Errorf("it has format version %d, this program reads %d", v, stateVersion)
	}
	table, meta := int64(le.Uint32(b[32:])), int64(le.Uint32(b[36:]))
	if table > record.MaxTableBytes || meta > MaxMeta || stateHead+table+meta > int64(len(b)) {
		return nil, fmt.Errorf("it states %d and %d bytes", table, meta)
	}
	b = b[:stateHead+table+meta]
	if stateSum(b) != le.Uint32(b[40:]) {
		return nil, errors.New("its checksum does not match")
	}
	s := &state{
		generation: le.Uint64(b[16:]), reserved: record.Seq(le.Uint64(b[24:])),
		failed: le.Uint32(b[12:])&flagFailed != 0, meta: append([]byte(nil), b[stateHead+table:]...),
	}
	if s.reserved > record.MaxSeq {
		return nil, fmt.Errorf("number %d is out of range", s.reserved)
	}
	var rest []byte
	var err error
	if s.table, rest, err = record.DecodeTable(b[stateHead : stateHead+table]); err != nil {
		return nil, err
	}
	if len(rest) != 0 {
		return nil, fmt.Errorf("%d bytes behind the epoch table", len(rest))
	}
	return s, nil
}

// save writes one copy and makes it durable.
func saveState(dev block.Device, slot int, b []byte) error {
	if len(b) > slotSize {
		return fmt.Errorf("state of %d bytes, at most %d can be kept", len(b), slotSize)
	}
	if _, err := dev.WriteAt(b, int64(slot)*slotSize); err != nil {
		return fmt.Errorf("write state copy %d: %w", slot+1, err)
	}
	if err := dev.Flush(); err != nil {
		return fmt.Errorf("sync state copy %d: %w", slot+1, err)
	}
	return nil
}

// loadState reads the newest good copy. first is the copy that must be written first from now on: of the other one it is
// sure that it is on the disk, for it was not the one that was attempted last.
func loadState(dev block.Device) (s *state, first int, repaired string, err error) {
	if dev.Size() < StateSize {
		return nil, 0, "", fmt.Errorf("%w: %d bytes are too few", ErrDamaged, dev.Size())
	}
	var copies [2]*state
	var errs [2]error
	buf := make([]byte, slotSize)
	for slot := range copies {
		if _, errs[slot] = dev.ReadAt(buf, int64(slot)*slotSize); errs[slot] == nil {
			copies[slot], errs[slot] = decodeState(buf)
		}
	}
	switch a, b := copies[0], copies[1]; {
	case a == nil && b == nil:
		return nil, 0, "", fmt.Errorf("%w: copy 1: %w; copy 2: %w", ErrDamaged, errs[0], errs[1])
	case a == nil:
		return b, 0, fmt.Sprintf("copy 1 of the state was bad (%v)", errs[0]), nil
	case b == nil:
		return a, 1, fmt.Sprintf("copy 2 of the state was bad (%v)", errs[1]), nil
	case a.generation > b.generation:
		return a, 0, "", nil
	default:
		return b, 1, "", nil
	}
}

// Create makes an empty queue's state on dev, durably, over whatever it held: the first number will be 1.
func Create(dev block.Device) error {
	if dev.Size() < StateSize {
		return fmt.Errorf("queue state needs %d bytes, the device has %d", StateSize, dev.Size())
	}
	s := state{generation: 1}
	for slot := range 2 {
		if err := saveState(dev, slot, s.encode()); err != nil {
			return err
		}
	}
	return nil
}
