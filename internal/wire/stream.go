package wire

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net"

	"gantline/internal/record"
)

// Batch carries records of a group's log, in sequence order.
type Batch struct {
	Mark    record.Seq // the primary's durable mark as the receiver may believe it
	Urgent  bool       // a host waits for what is stored now to be durable there
	Records []record.Record
}

// Ack is what a receiver has; cumulative.
type Ack struct {
	Stored, Durable, Applied record.Seq
}

// Heartbeat carries the durable mark when there is nothing else to send, or when somebody waits for what it says.
type Heartbeat struct {
	Mark   record.Seq
	Urgent bool // as in a batch
}

// Range is what a receiver that pulls asks for: records from From on, at most so many, and so many bytes of data unless
// the first alone has more. What the connection has brought already does not come again. One batch answers it, or a
// Miss. An ask frees nothing: acknowledgements do.
type Range struct {
	From       record.Seq // at least 1
	MaxRecords uint32     // at least 1
	MaxBytes   uint32
}

// MissReason says why a range is not answered by records.
type MissReason uint8

const (
	MissNotStored MissReason = 1 // beyond what is durable, or what is to be sent before the next transfer: ask again
	MissTrimmed   MissReason = 2 // freed: a resync must begin
	MissSuspended MissReason = 3 // the copying is suspended
)

// Miss answers the oldest ranges that are still unanswered.
type Miss struct {
	Reason  MissReason
	Ranges  uint32     // how many of them, at least 1
	Durable record.Seq // the source's log is durable up to here
}

// A batch's body: mark u64, number of records u32, flags u32; then that many entries; then their data, one behind the
// other, without padding. An entry:
//
//	0   seq u64          24  offset u64      48  session u64
//	8   epoch u64        32  length u32      56  request u64
//	16  incarnation u32  36  crc u32         64  mark u64
//	20  op u8            40  time i64        72  data length u32
//	21  flags u8                             76  0 u32
//	22  volume u16
const (
	batchHeadSize = 16
	heartbeatSize = 16
	entrySize     = 80

	flagUrgent = 1 << 0 // of a batch or a heartbeat

	// MaxBatchRecords bounds the records of one batch.
	MaxBatchRecords = 16384
)

// BatchSize is the size of the frame that carries n records with so many bytes of data.
func BatchSize(n, bytes int) int { return headerSize + batchHeadSize + n*entrySize + bytes }

// EncodeBatch returns the body of a batch: one buffer with everything but the data, then the records' data, which is
// not copied.
func EncodeBatch(b Batch) (net.Buffers, error) {
	if len(b.Records) > MaxBatchRecords {
		return nil, fmt.Errorf("batch of %d records, limit %d", len(b.Records), MaxBatchRecords)
	}
	head := make([]byte, batchHeadSize+len(b.Records)*entrySize)
	out := make(net.Buffers, 1, 1+len(b.Records))
	out[0] = head
	binary.LittleEndian.PutUint64(head, uint64(b.Mark))
	binary.LittleEndian.PutUint32(head[8:], uint32(len(b.Records)))
	binary.LittleEndian.PutUint32(head[12:], flagsOf(b.Urgent))
	size := len(head)
	for i := range b.Records {
		r := &b.Records[i]
		putEntry(head[batchHeadSize+i*entrySize:], r)
		if len(r.Data) > 0 {
			out = append(out, r.Data)
		}
		if len(r.Data) > MaxPayload {
			return nil, fmt.Errorf("record %d of %d bytes, limit %d", r.Seq, len(r.Data), MaxPayload)
		}
		size += len(r.Data)
	}
	if size > MaxBatchBody {
		return nil, fmt.Errorf("batch of %d bytes, limit %d", size, MaxBatchBody)
	}
	return out, nil
}

func putEntry(e []byte, r *record.Record) {
	le := binary.LittleEndian
	le.PutUint64(e[0:], uint64(r.Seq))
	le.PutUint64(e[8:], r.Epoch)
	le.PutUint32(e[16:], uint32(r.Incarnation))
	e[20], e[21] = byte(r.Op), r.Flags
	le.PutUint16(e[22:], uint16(r.Volume))
	le.PutUint64(e[24:], r.Offset)
	le.PutUint32(e[32:], r.Length)
	le.PutUint32(e[36:], r.CRC)
	le.PutUint64(e[40:], uint64(r.Time))
	le.PutUint64(e[48:], r.Session)
	le.PutUint64(e[56:], r.Request)
	le.PutUint64(e[64:], uint64(r.Mark))
	le.PutUint32(e[72:], uint32(len(r.Data)))
}

func getEntry(e []byte) (record.Record, int) {
	le := binary.LittleEndian
	return record.Record{
		Seq:         record.Seq(le.Uint64(e[0:])),
		Epoch:       le.Uint64(e[8:]),
		Incarnation: record.Incarnation(le.Uint32(e[16:])),
		Op:          record.Op(e[20]),
		Flags:       e[21],
		Volume:      record.VolumeNumber(le.Uint16(e[22:])),
		Offset:      le.Uint64(e[24:]),
		Length:      le.Uint32(e[32:]),
		CRC:         le.Uint32(e[36:]),
		Time:        int64(le.Uint64(e[40:])),
		Session:     le.Uint64(e[48:]),
		Request:     le.Uint64(e[56:]),
		Mark:        record.Seq(le.Uint64(e[64:])),
	}, int(le.Uint32(e[72:]))
}

// DecodeBatch reads a batch's body. The records' data are slices of it. Each record's CRC is checked against its data:
// it was computed where the host's write was numbered, so it also guards every hop before this one.
func DecodeBatch(body []byte) (Batch, error) {
	b, _, err := decodeBatch(body)
	return b, err
}

// errRecordSum: a record's data is not what was numbered.
var errRecordSum = errors.New("fails its checksum")

// decodeBatch also returns the checksum of the whole body, whatever is wrong with it; it reads no byte twice.
func decodeBatch(body []byte) (b Batch, sum uint32, err error) {
	b, sum, err = decodeRecords(body)
	if err != nil {
		return Batch{}, record.Checksum(body), err
	}
	return b, sum, nil
}

func decodeRecords(body []byte) (Batch, uint32, error) {
	if len(body) < batchHeadSize {
		return Batch{}, 0, fmt.Errorf("%w: batch of %d bytes", ErrFrame, len(body))
	}
	n := int(binary.LittleEndian.Uint32(body[8:]))
	if n > MaxBatchRecords || batchHeadSize+n*entrySize > len(body) {
		return Batch{}, 0, fmt.Errorf("%w: batch of %d bytes with %d records", ErrFrame, len(body), n)
	}
	urgent, err := readFlags(body[12:])
	if err != nil {
		return Batch{}, 0, err
	}
	b := Batch{Mark: record.Seq(binary.LittleEndian.Uint64(body)), Urgent: urgent, Records: make([]record.Record, n)}
	head, data := body[:batchHeadSize+n*entrySize], body[batchHeadSize+n*entrySize:]
	sum := record.Checksum(head)
	for i := range b.Records {
		r, size := getEntry(head[batchHeadSize+i*entrySize:])
		if size > len(data) {
			return Batch{}, 0, fmt.Errorf("%w: data of record %d ends beyond the batch", ErrFrame, r.Seq)
		}
		if size > 0 {
			r.Data, data = data[:size:size], data[size:]
			crc := record.Checksum(r.Data)
			if crc != r.CRC {
				return Batch{}, 0, fmt.Errorf("%w: record %d %w", ErrFrame, r.Seq, errRecordSum)
			}
			sum = record.Join(sum, crc, size)
		}
		b.Records[i] = r
	}
	if len(data) != 0 {
		return Batch{}, 0, fmt.Errorf("%w: %d bytes behind the batch's data", ErrFrame, len(data))
	}
	return b, sum, nil
}

// Batch is what the frame holds that ReadFrame has returned last, a batch, packed or not: it was decoded, and all its checksums checked,
// when the frame was. For the reading goroutine only.
func (c *Conn) Batch() (Batch, error) {
	b := c.in.batch
	c.in.batch = Batch{}
	return b, c.in.malformed
}

// framer writes frames: a connection, or a bundle of them.
type framer interface {
	writeFrame(t Type, parts [][]byte, sums []uint32) error
}

// WriteBatch writes a batch as one frame and waits while too much is queued. The records' checksums are taken for those of
// their data: wherever a byte of it has changed since, the receiver will find it.
func (c *Conn) WriteBatch(b Batch) error {
	_, err := c.WritePacked(b, MethodNone, nil)
	return err
}

// WritePacked is WriteBatch with the frame compressed by m where p finds that of use. It returns the frame's size in bytes.
func (c *Conn) WritePacked(b Batch, m Method, p *Packer) (size int, err error) {
	return writePacked(c, b, m, p)
}

// WritePacked is Conn.WritePacked.
func (b *Bundle) WritePacked(batch Batch, m Method, p *Packer) (size int, err error) {
	return writePacked(b, batch, m, p)
}

func writePacked(f framer, b Batch, m Method, p *Packer) (size int, err error) {
	parts, err := EncodeBatch(b)
	if err != nil {
		return 0, err
	}
	sums := make([]uint32, 1, len(parts))
	sums[0] = record.Checksum(parts[0])
	for i := range b.Records {
		if len(b.Records[i].Data) > 0 {
			sums = append(sums, b.Records[i].CRC)
		}
	}
	if m != MethodNone {
		if packed, ok := p.Pack(m, parts, sums); ok {
			return headerSize + len(packed), f.writeFrame(TypePacked, [][]byte{packed}, nil)
		}
	}
	for _, p := range parts {
		size += len(p)
	}
	return headerSize + size, f.writeFrame(TypeBatch, parts, sums)
}

// EncodeAck and its like return the body of their frame.
func EncodeAck(a Ack) []byte {
	b := binary.LittleEndian.AppendUint64(make([]byte, 0, 24), uint64(a.Stored))
	b = binary.LittleEndian.AppendUint64(b, uint64(a.Durable))
	return binary.LittleEndian.AppendUint64(b, uint64(a.Applied))
}

// DecodeAck checks applied ≤ durable ≤ stored.
func DecodeAck(body []byte) (Ack, error) {
	if len(body) != 24 {
		return Ack{}, fmt.Errorf("%w: ack of %d bytes", ErrFrame, len(body))
	}
	le := binary.LittleEndian
	a := Ack{record.Seq(le.Uint64(body)), record.Seq(le.Uint64(body[8:])), record.Seq(le.Uint64(body[16:]))}
	if a.Applied > a.Durable || a.Durable > a.Stored {
		return Ack{}, fmt.Errorf("%w: ack with applied %d, durable %d, stored %d", ErrFrame, a.Applied, a.Durable, a.Stored)
	}
	return a, nil
}

func flagsOf(urgent bool) uint32 {
	if urgent {
		return flagUrgent
	}
	return 0
}

func readFlags(b []byte) (urgent bool, err error) {
	f := binary.LittleEndian.Uint32(b)
	if f&^flagUrgent != 0 {
		return false, fmt.Errorf("%w: unknown flags %#x", ErrFrame, f)
	}
	return f&flagUrgent != 0, nil
}

// EncodeHeartbeat: mark u64, flags u32, 0 u32.
func EncodeHeartbeat(h Heartbeat) []byte {
	b := binary.LittleEndian.AppendUint64(make([]byte, 0, heartbeatSize), uint64(h.Mark))
	b = binary.LittleEndian.AppendUint32(b, flagsOf(h.Urgent))
	return binary.LittleEndian.AppendUint32(b, 0)
}

func DecodeHeartbeat(body []byte) (Heartbeat, error) {
	if len(body) != heartbeatSize {
		return Heartbeat{}, fmt.Errorf("%w: heartbeat of %d bytes", ErrFrame, len(body))
	}
	urgent, err := readFlags(body[8:])
	return Heartbeat{Mark: record.Seq(binary.LittleEndian.Uint64(body)), Urgent: urgent}, err
}

func EncodeRange(r Range) []byte {
	b := binary.LittleEndian.AppendUint64(make([]byte, 0, 16), uint64(r.From))
	b = binary.LittleEndian.AppendUint32(b, r.MaxRecords)
	return binary.LittleEndian.AppendUint32(b, r.MaxBytes)
}

// DecodeRange refuses a range of nothing.
func DecodeRange(body []byte) (Range, error) {
	if len(body) != 16 {
		return Range{}, fmt.Errorf("%w: range of %d bytes", ErrFrame, len(body))
	}
	le := binary.LittleEndian
	r := Range{record.Seq(le.Uint64(body)), le.Uint32(body[8:]), le.Uint32(body[12:])}
	if r.From == 0 || r.From > record.MaxSeq || r.MaxRecords == 0 {
		return Range{}, fmt.Errorf("%w: range of %d records from %d on", ErrFrame, r.MaxRecords, r.From)
	}
	return r, nil
}

// A miss: reason u8, 0 ×3, ranges u32, durable u64.
const missSize = 16

func EncodeMiss(m Miss) []byte {
	b := binary.LittleEndian.AppendUint32(make([]byte, 0, missSize), uint32(m.Reason))
	b = binary.LittleEndian.AppendUint32(b, m.Ranges)
	return binary.LittleEndian.AppendUint64(b, uint64(m.Durable))
}

// DecodeMiss refuses a reason that there is not.
func DecodeMiss(body []byte) (Miss, error) {
	if len(body) != missSize {
		return Miss{}, fmt.Errorf("%w: miss of %d bytes", ErrFrame, len(body))
	}
	le := binary.LittleEndian
	m := Miss{Ranges: le.Uint32(body[4:]), Durable: record.Seq(le.Uint64(body[8:]))}
	if r := le.Uint32(body); r < uint32(MissNotStored) || r > uint32(MissSuspended) || m.Ranges == 0 {
		return Miss{}, fmt.Errorf("%w: miss of reason %d for %d ranges", ErrFrame, r, m.Ranges)
	}
	m.Reason = MissReason(body[0])
	return m, nil
}
