package journal

import (
	"fmt"

	"gantline/internal/block"
	"gantline/internal/record"
)

// Recovery tells what Open found.
type Recovery struct {
	Last     record.Seq // the log's last record; all up to here is durable now
	Mark     record.Seq // what was known to be durable before
	End      string     // why the log ends behind Last
	Repaired []string   // management records restored from their second copy
	Joined   int        // devices that were prepared for the journal and have joined it now
}

// Open recovers a journal and takes its devices over; Close closes them. They may be given in any order. On an error
// they stay the caller's, and are unchanged.
//
//  1. Sync every device: after a killed process the page cache is not the disk yet, and nothing is believed before.
//  2. Labels, superblocks: both damaged, foreign, truncated or of another version end here.
//  3. The highest durable mark, wherever it stands.
//  4. Walk the entries from trimmed on. The first that is not good ends the log; at or below the mark it is ErrRot.
//  5. What lies above the mark is written again and synced. A sync that failed in the process before may have left
//     pages in the cache that will never reach the disk, and that a later sync does not know of.
//  6. A new run begins behind the last record, in both superblocks: whatever else is in the rings is void. Devices that
//     were prepared for this journal and have not joined yet join it with that write.
//
// The journal takes records only after OpenRow (a primary) or Resume (a receiver).
func Open(devs []block.Device) (*Journal, error) {
	for i, dev := range devs {
		if err := dev.Flush(); err != nil {
			return nil, fmt.Errorf("sync journal device %d: %w", i, err)
		}
	}
	im, err := load(devs)
	if err != nil {
		return nil, err
	}
	mark, err := im.highestMark()
	if err != nil {
		return nil, err
	}
	w := im.walk()
	again := restart{index: im.s.index(w.last), pos: w.head}
	rec := Recovery{Mark: mark}
	for rec.End == "" {
		e, why, err := w.next()
		if err != nil {
			return nil, err
		}
		if why != "" && e.rec.Seq <= mark {
			return nil, &RotError{Seq: e.rec.Seq, Mark: mark, Why: why}
		}
		if rec.End = why; why == "" && e.rec.Seq <= mark {
			again = restart{index: im.s.index(w.last), pos: w.head}
		}
	}
	rec.Last = w.last
	if err := im.writeAgain(again, w); err != nil {
		return nil, err
	}
	if rec.Repaired, err = im.repairLabels(); err != nil {
		return nil, err
	}
	for slot, err := range im.superOK {
		if err != nil {
			rec.Repaired = append(rec.Repaired, fmt.Sprintf("superblock %c: %v", 'A'+slot, err))
		}
	}
	return begin(im, w, rec)
}

// restart is the place behind the last record that is known to be on the disk.
type restart struct{ index, pos uint64 }

// writeAgain writes the bytes of the records behind from once more, data before entries, and syncs.
func (im *image) writeAgain(from restart, w *walker) error {
	if err := copyOnto(&im.s.dataRing, from.pos, w.head-from.pos); err != nil {
		return err
	}
	entries := im.s.index(w.last) - from.index
	if err := copyOnto(&im.s.entryRing, (from.index+1)%im.s.entries*entrySize, entries*entrySize); err != nil {
		return err
	}
	for i, dev := range im.devs {
		if err := dev.Flush(); err != nil {
			return fmt.Errorf("sync journal device %d: %w", i, err)
		}
	}
	return nil
}

// copyOnto writes n bytes of an area where they stand.
func copyOnto(a *area, pos, n uint64) error {
	buf := make([]byte, min(1<<20, n))
	for n > 0 {
		p := buf[:min(uint64(len(buf)), n)]
		if err := a.read(p, pos); err != nil {
			return fmt.Errorf("read unsynced records: %w", err)
		}
		if _, err := a.write([][]byte{p}, int64(len(p)), pos); err != nil {
			return fmt.Errorf("write unsynced records again: %w", err)
		}
		pos, n = pos+uint64(len(p)), n-uint64(len(p))
	}
	return nil
}

// repairLabels restores damaged copies of labels from the good ones.
func (im *image) repairLabels() (told []string, err error) {
	for i, bad := range im.badAt {
		for _, at := range bad {
			if _, err := im.devs[i].WriteAt(im.labels[i].encode(), int64(at*labelSize)); err != nil {
				return told, fmt.Errorf("repair label of device %d: %w", i, err)
			}
			if err := im.devs[i].Flush(); err != nil {
				return told, fmt.Errorf("sync label of device %d: %w", i, err)
			}
			told = append(told, fmt.Sprintf("label copy %d of device %d", at+1, i))
		}
	}
	return told, nil
}

// begin starts the new run behind the walker's last record.
func begin(im *image, w *walker, rec Recovery) (*Journal, error) {
	next := im.s.clone()
	next.generation++
	next.run++
	next.runFirst, next.durable = w.last+1, w.last
	next.dropGaps(w.last)
	for i := next.devices(); i < len(im.devs); i++ { // prepared, and not joined before the process died
		if err := next.grow(i, im.labels[i].size, w.head); err != nil {
			return nil, err
		}
		rec.Joined++
	}
	next.rings(im.devs)
	// The copy that was attempted last goes first: if its sync failed, only the other one is surely on the disk.
	for _, slot := range [2]int{im.first, 1 - im.first} {
		if err := writeSuper(im.devs[0], slot, next.encode()); err != nil {
			return nil, err
		}
	}
	j := &Journal{
		devs: im.devs, seed: im.seed, recovery: rec,
		s: &next, appended: w.last, durable: w.last, head: w.head,
	}
	j.wake.L = &j.mu
	return j, nil
}
