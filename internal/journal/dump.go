package journal

import (
	"fmt"
	"io"
	"time"

	"gantline/internal/block"
	"gantline/internal/record"
)

// Report is what Check found.
type Report struct {
	ID        ID
	Trimmed   record.Seq
	Last      record.Seq // the log's last record
	Mark      record.Seq // known to have been durable
	Records   int64
	DataBytes int64
	End       string   // why the log ends behind Last
	Leftovers int64    // intact entries that are not part of the log
	Problems  []string // damage; empty: the journal is sound
}

// Check reads a journal through without changing it. An error means that it could not be read at all; damage that a
// recovery would repair, or stop at, is in Problems. The journal must not be open.
func Check(devs []block.Device) (Report, error) { return inspect(devs, nil) }

// Dump writes a journal for people to read: labels, superblocks, epoch table, a line per record, why the log ends, and
// what else lies in the rings. It does not change it, and goes on past damage as far as it can. The error is that of w,
// or says what could not be read.
func Dump(w io.Writer, devs []block.Device) error {
	p := &printer{w: w}
	p.devices(devs)
	_, err := inspect(devs, p)
	if p.err != nil {
		return p.err
	}
	return err
}

// inspect walks over a journal; p may be nil.
func inspect(devs []block.Device, p *printer) (Report, error) {
	im, err := load(devs)
	if err != nil {
		p.line("cannot be opened: %v", err)
		p.raw(devs)
		return Report{}, err
	}
	r := Report{ID: im.s.id, Trimmed: im.s.trimmed}
	for i, bad := range im.badAt {
		for _, at := range bad {
			r.Problems = append(r.Problems, fmt.Sprintf("device %d: label copy %d is damaged", i, at+1))
		}
	}
	for slot, err := range im.superOK {
		if err != nil {
			r.Problems = append(r.Problems, fmt.Sprintf("superblock %c: %v", 'A'+slot, err))
		}
	}
	p.super(im)
	if r.Mark, err = im.highestMark(); err != nil {
		p.line("%v", err)
		return r, err
	}
	if err := records(im, &r, p); err != nil {
		p.line("%v", err)
		return r, err
	}
	p.line("log ends at sequence %d, durable mark %d: %s", r.Last, r.Mark, r.End)
	if err := leftovers(im, &r, p); err != nil {
		p.line("%v", err)
		return r, err
	}
	for _, problem := range r.Problems {
		p.line("PROBLEM: %s", problem)
	}
	return r, nil
}

// records goes through the log to its end.
func records(im *image, r *Report, p *printer) error {
	w := im.walk()
	for r.End == "" {
		e, why, err := w.next()
		if err != nil {
			return err
		}
		if why == "" {
			r.Records++
			r.DataBytes += int64(e.length)
			p.record(&e)
			continue
		}
		r.End = fmt.Sprintf("sequence %d: %s", e.rec.Seq, why)
		if e.rec.Seq <= r.Mark {
			r.Problems = append(r.Problems, fmt.Sprintf("rot: sequence %d was durable (mark %d): %s", e.rec.Seq, r.Mark, why))
		}
	}
	r.Last = w.last
	return nil
}

// leftovers counts intact entries outside the log: freed ones, and what lies beyond its end.
func leftovers(im *image, r *Report, p *printer) error {
	buf := make([]byte, min(1<<20, im.s.entryRing.size))
	for off := int64(0); off < im.s.entryRing.size; off += int64(len(buf)) {
		b := buf[:min(int64(len(buf)), im.s.entryRing.size-off)]
		if err := im.s.entryRing.read(b, uint64(off)); err != nil {
			return err
		}
		for ; len(b) >= entrySize; b = b[entrySize:] {
			e, why := decodeEntry(b, im.seed)
			if why != "" || e.rec.Seq > im.s.trimmed && e.rec.Seq <= r.Last {
				continue
			}
			r.Leftovers++
			if e.rec.Seq > r.Last {
				p.line("  beyond the end: %s", describe(&e))
			}
		}
	}
	p.line("%d entries in the ring are not part of the log", r.Leftovers)
	return nil
}

// printer writes lines until one fails. A nil printer writes nothing.
type printer struct {
	w   io.Writer
	err error
}

func (p *printer) line(format string, args ...any) {
	if p == nil || p.err != nil {
		return
	}
	_, p.err = fmt.Fprintf(p.w, format+"\n", args...)
}

// devices prints labels and superblocks as they stand, whether or not they fit together.
func (p *printer) devices(devs []block.Device) {
	for i, dev := range devs {
		p.line("device %d: %d bytes", i, dev.Size())
		home := false
		for at := range 2 {
			l, err := readLabel(dev, at)
			if err != nil {
				p.line("  label copy %d: %v", at+1, err)
				continue
			}
			home = home || l.index == 0
			p.line("  label copy %d: journal %v, device %d of %d, %d bytes", at+1, l.id, l.index, l.count, l.size)
		}
		if !home || dev.Size() < dataAt0 {
			continue
		}
		b := make([]byte, superSlot)
		for slot := range 2 {
			if _, err := dev.ReadAt(b, superAt+int64(slot)*superSlot); err != nil {
				p.line("  superblock %c: %v", 'A'+slot, err)
				continue
			}
			s, err := decodeSuper(b)
			if err != nil {
				p.line("  superblock %c: %v", 'A'+slot, err)
				continue
			}
			p.line("  superblock %c: generation %d, run %d from sequence %d, trimmed %d, durable %d", 'A'+slot, s.generation,
				s.run, s.runFirst, s.trimmed, s.durable)
		}
	}
}

// raw prints the intact entries of devices that are no journal any more, wherever they lie.
func (p *printer) raw(devs []block.Device) {
	if p == nil {
		return
	}
	for i, dev := range devs {
		l, _, err := chooseLabel(dev)
		if err != nil {
			continue // without the journal's id no entry can be told from other bytes
		}
		buf := make([]byte, 1<<20)
		for off := int64(dataAtN); off < dev.Size() && p.err == nil; off += int64(len(buf)) {
			b := buf[:min(int64(len(buf)), dev.Size()-off)]
			if _, err := dev.ReadAt(b, off); err != nil {
				p.line("device %d at %d: %v", i, off, err)
				continue
			}
			for ; len(b) >= entrySize; b = b[entrySize:] {
				if e, why := decodeEntry(b, l.id.seed()); why == "" {
					p.line("  entry on device %d: %s", i, describe(&e))
				}
			}
		}
	}
}

func (p *printer) super(im *image) {
	if p == nil {
		return
	}
	s := im.s
	p.line("journal %v: %d entries, %d bytes of data area, %d bytes of owner's data", s.id, s.entries, im.s.dataRing.size, len(s.meta))
	for i, list := range [2][]extent{s.management, s.data} {
		for _, e := range list {
			p.line("  %s area: device %d, offset %d, %d bytes", [2]string{"management", "data"}[i], e.device, e.off, e.length)
		}
	}
	for _, r := range s.table {
		last := "open"
		if r.Closed {
			last = fmt.Sprint(r.Last)
		}
		p.line("  row: epoch %d incarnation %d of %s, sequence %d to %s", r.Epoch, r.Incarnation, r.Node, r.First, last)
	}
	for _, g := range s.gaps {
		p.line("  gap: between sequence %d and %d", g.after, g.begin)
	}
}

func (p *printer) record(e *entry) {
	if p != nil {
		p.line("  %s", describe(e))
	}
}

var opNames = map[record.Op]string{
	record.OpWrite: "write", record.OpZero: "zero", record.OpTrim: "trim", record.OpCopy: "copy", record.OpBegin: "begin",
	record.OpEnd: "end", record.OpMember: "member", record.OpDigest: "digest", record.OpFence: "fence",
}

func describe(e *entry) string {
	r := &e.rec
	op := opNames[r.Op]
	if op == "" {
		op = fmt.Sprintf("op %d", r.Op)
	}
	return fmt.Sprintf("%d e%d.%d run %d %s volume %d offset %d length %d flags %#x data %d@%d crc %08x session %x request %d mark %d durable %d %s",
		r.Seq, r.Epoch, r.Incarnation, e.run, op, r.Volume, r.Offset, r.Length, r.Flags, e.length, e.pos, r.CRC,
		r.Session, r.Request, r.Mark, e.durable, time.Unix(0, r.Time).UTC().Format(time.RFC3339Nano))
}
