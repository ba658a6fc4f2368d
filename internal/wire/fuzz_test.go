package wire

import (
	"bytes"
	"encoding/json"
	"errors"
	"io"
	"testing"
	"testing/iotest"

	"gantline/internal/block"
	"gantline/internal/record"
)

// FuzzFrames feeds a byte stream in pieces; whatever it is, the reader ends with an error, holds little, and what it
// accepts it accepts again when written anew.
func FuzzFrames(f *testing.F) {
	f.Add([]byte("GET / HTTP/1.1\r\n\r\n"), uint8(1))
	f.Add(rawFrame(TypePing, nil), uint8(3))
	f.Add(append(rawFrame(TypeHello, []byte(`{"version":1}`)), rawFrame(TypeAck, make([]byte, 24))...), uint8(7))
	f.Add(rawFrame(TypeBatch, make([]byte, 1000))[:500], uint8(200))
	f.Fuzz(func(t *testing.T, stream []byte, step uint8) {
		src := io.Reader(bytes.NewReader(stream))
		if step%2 == 1 {
			src = iotest.OneByteReader(src)
		}
		r := frameReader{src: src}
		var again []byte
		for {
			ready := r.have()
			typ, body, err := r.next()
			if err != nil {
				if _, _, err2 := r.next(); !errors.Is(err2, err) {
					t.Fatalf("error %v became %v", err, err2)
				}
				break
			}
			_ = ready
			again = append(again, rawFrame(typ, body)...)
		}
		if !bytes.HasPrefix(stream, again) {
			t.Fatal("frames written anew differ")
		}
	})
}

func FuzzHello(f *testing.F) {
	f.Add([]byte(`{"version":1,"purpose":"io","name":"a","params":{"volume":"v","session":18446744073709551615}}`))
	f.Add([]byte(`{"version":1,"purpose":"stream","params":[`))
	f.Fuzz(func(t *testing.T, body []byte) {
		h, err := parseHello(body)
		if err != nil {
			return
		}
		var p IOParams
		_ = h.Decode(&p)
		b, err := json.Marshal(&h)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := parseHello(b); err != nil {
			t.Fatalf("accepted once, then %v", err)
		}
	})
}

func FuzzBodies(f *testing.F) {
	data := []byte("data")
	parts, _ := EncodeBatch(Batch{Mark: 1, Records: []record.Record{{Seq: 1, Data: data, CRC: record.Checksum(data)}, {Seq: 2}}})
	f.Add(bytes.Join(parts, nil))
	req := make([]byte, requestSize)
	putRequest(req, &block.Request{Op: block.OpRead, Length: 4096}, 1, 2)
	f.Add(req)
	f.Add(EncodeRange(Range{From: 7, MaxRecords: 8, MaxBytes: 9}))
	f.Add(EncodeMiss(Miss{Reason: MissTrimmed, Ranges: 2, Durable: 3}))
	f.Add(encodeExtents([]block.Extent{{Offset: 1, Length: 2}}))
	f.Fuzz(func(t *testing.T, body []byte) {
		if b, err := DecodeBatch(body); err == nil {
			parts, err := EncodeBatch(b)
			if err != nil {
				t.Fatalf("decoded, but not encoded: %v", err)
			}
			if got := bytes.Join(parts, nil); len(got) != len(body) {
				t.Fatalf("%d bytes became %d", len(body), len(got))
			}
		}
		var r block.Request
		if _, _, err := getRequest(body, &r); err == nil && (r.Length < 0 || r.Op == block.OpRead && r.Length > MaxPayload) {
			t.Fatalf("request %+v accepted", r)
		}
		_, _ = decodeExtents(body)
		_, _ = DecodeAck(body)
		if r, err := DecodeRange(body); err == nil && !bytes.Equal(EncodeRange(r), body) {
			t.Fatalf("range %+v of %x", r, body)
		}
		if m, err := DecodeMiss(body); err == nil && !bytes.Equal(EncodeMiss(m), body) {
			t.Fatalf("miss %+v of %x", m, body)
		}
		if rep, err := getReply(body); err == nil && rep.code != codeOK {
			_ = errorOf(rep.code, rep.payload)
		}
	})
}
