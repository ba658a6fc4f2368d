package volume

import (
	"bytes"
	"testing"

	"gantline/internal/block"
	"gantline/internal/record"
)

// A preview is seen by readers alone: in data and extents, over what is applied, until it is dropped; no device has it.
func TestPreviewIsSeenAndNotKept(t *testing.T) {
	_, seed := seeded(t)
	s := newSite(t, seed, 2, testSize, 4<<20)
	s.follow = true
	s.open()
	row := record.Row{Epoch: 1, Incarnation: 1, Node: "n", First: 1}
	if err := s.jnl.OpenRow(row); err != nil {
		t.Fatal(err)
	}
	rec := func(seq record.Seq, n record.VolumeNumber, off uint64, op record.Op) record.Record {
		r := record.Record{Seq: seq, Epoch: 1, Incarnation: 1, Op: op, Volume: n, Offset: off, Length: 4096}
		if op == record.OpWrite {
			r.Data = stamp(int(seq), 4096)
			r.CRC = record.Checksum(r.Data)
		}
		return r
	}
	recs := []record.Record{rec(1, 1, 0, record.OpWrite), rec(2, 2, 4096, record.OpWrite), rec(3, 1, 0, record.OpWrite),
		rec(4, 1, 8192, record.OpWrite), rec(5, 2, 4096, record.OpTrim)}
	if err := s.jnl.Append(recs); err != nil {
		t.Fatal(err)
	}
	if _, err := s.jnl.Sync(); err != nil {
		t.Fatal(err)
	}
	if err := s.g.Apply(recs[:2]); err != nil {
		t.Fatal(err)
	}
	is := func(vol int, off int64, want []byte) {
		t.Helper()
		if !bytes.Equal(read(t, s.vols[vol], off, 4096), want) {
			t.Fatalf("volume %d at %d holds something else", vol, off)
		}
	}
	if err := s.g.SetPreview(recs[2:]); err != nil {
		t.Fatal(err)
	}
	is(0, 0, stamp(3, 4096))
	is(0, 8192, stamp(4, 4096))
	is(1, 4096, make([]byte, 4096))
	r, w := newRequest(block.OpExtents, 0, 16384)
	if err := submit(s.vols[0], r, w); err != nil {
		t.Fatal(err)
	}
	if e := r.Extents; len(e) != 4 || e[2].Offset != 8192 || e[2].Type != block.ExtentData {
		t.Fatalf("extents %+v", e)
	}
	// A digest is compared with the image itself.
	digest := digestRecord{run: 1, length: 64 << 10, sums: sumBlocks(nil, append(stamp(1, 4096), make([]byte, 60<<10)...))}
	c, err := s.g.Compare(t.Context(), &record.Record{Seq: 2, Op: record.OpDigest, Volume: 1, Data: digest.encode()})
	if err != nil || len(c.Different) > 0 {
		t.Fatalf("with a preview: %+v, %v", c.Different, err)
	}
	s.g.DropPreview()
	is(0, 0, stamp(1, 4096))
	is(0, 8192, make([]byte, 4096))
	is(1, 4096, stamp(2, 4096))
	if err := s.g.SetPreview(recs[2:]); err != nil {
		t.Fatal(err)
	}
	s.close()
	if d := deviceBytes(t, s.devs[0]); !bytes.Equal(d[:4096], stamp(1, 4096)) {
		t.Fatal("the device has more than was applied")
	}
}

// A reader who has seen the preview on one volume sees it on every other: it is shown on all at once.
func TestPreviewIsShownOnAllVolumesAtOnce(t *testing.T) {
	const volumes = 12
	_, seed := seeded(t)
	s := newSite(t, seed, volumes, testSize, 4<<20)
	s.follow = true
	s.open()
	var recs []record.Record
	for n := range volumes {
		r := record.Record{Seq: record.Seq(n + 1), Epoch: 1, Incarnation: 1, Op: record.OpWrite, Volume: record.VolumeNumber(n + 1), Length: 4096,
			Data: stamp(1, 4096)}
		r.CRC = record.Checksum(r.Data)
		recs = append(recs, r)
	}
	shown := func(vol int) bool { return bytes.Equal(read(t, s.vols[vol], 0, 4096), recs[0].Data) }
	for range 1000 {
		done := make(chan bool)
		go func() {
			for first := range volumes / 2 {
				for !shown(first) {
				}
				if !shown(volumes - 1 - first) {
					done <- false
					return
				}
			}
			done <- true
		}()
		if err := s.g.SetPreview(recs); err != nil {
			t.Fatal(err)
		}
		if !<-done {
			t.Fatal("shown on one volume, and not on a later one")
		}
		s.g.DropPreview()
	}
}
