package volume

import (
	"testing"

	"gantline/internal/record"
)

// followed makes a follower of one volume that has these records in its log, durably, and applied none of them.
func followed(t *testing.T, recs []record.Record) *site {
	t.Helper()
	_, seed := seeded(t)
	m := newSite(t, seed, 1, testSize, 4<<20)
	m.follow = true
	m.open()
	if err := m.jnl.Reset(0, record.Table{{Epoch: 1, Incarnation: 1, Node: "a", First: 1}}, nil); err != nil {
		t.Fatal(err)
	}
	for i := range recs {
		r := &recs[i]
		r.Seq, r.Epoch, r.Incarnation = record.Seq(i+1), 1, 1
		if r.Op == record.OpWrite {
			r.Data = stamp(i+1, 4096)
		}
		r.Length, r.CRC = uint32(len(r.Data)), record.Checksum(r.Data)
	}
	if err := m.jnl.Append(recs); err != nil {
		t.Fatal(err)
	}
	if _, err := m.jnl.Sync(); err != nil {
		t.Fatal(err)
	}
	return m
}

// TestNoteOfUnknownVolumeIsReplayed: what a primary says of a volume that the follower has not been told of yet is applied, for it
// changes nothing; so it is no reason not to open after a death.
func TestNoteOfUnknownVolumeIsReplayed(t *testing.T) {
	recs := []record.Record{{Op: record.OpMember, Volume: 2, Data: []byte(`{"number":2}`)},
		{Op: record.OpDigest, Volume: 2, Data: []byte("not read")}, {Op: record.OpWrite, Volume: 1}}
	m := followed(t, recs)
	if err := m.g.Apply(recs); err != nil {
		t.Fatal(err)
	}
	if err := m.g.roundNow(); err != nil { // its devices may be as far as that from now on
		t.Fatal(err)
	}
	m.crash()
	if err := m.tryOpen(); err != nil {
		t.Fatal("after a loss of power:", err)
	}
	if got := read(t, m.vols[0], 0, 4096); string(got) != string(stamp(3, 4096)) || m.g.Applied() != 3 {
		t.Fatalf("applied %d, or the write is not there", m.g.Applied())
	}
	m.close()
}
