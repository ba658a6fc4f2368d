package volume

import (
	"fmt"
	"math/rand/v2"
	"testing"
	"time"

	"gantline/internal/block"
)

const (
	testVolumes = 3
	testSize    = 256 << 10
)

// load writes and flushes at random over all volumes, one request at a time, and notes what it did. It ends when a
// request fails. It returns how many events were covered by an acknowledged flush.
func load(rng *rand.Rand, s *site, h *history, steps int) (durable int, err error) {
	for range steps {
		v := rng.IntN(len(s.vols))
		switch k := rng.IntN(20); {
		case k < 2:
			upTo := len(h.events)
			if err := flush(s.vols[v]); err != nil {
				return durable, err
			}
			durable = upTo
		default:
			e := event{vol: v, off: rng.Int64N(testSize/512-32) * 512, n: (rng.Int64N(32) + 1) * 512}
			if k < 12 {
				e.off, e.n = e.off&^4095, 4096
			}
			r, w := newRequest(block.OpWrite, e.off, e.n)
			switch {
			case k == 18:
				r.Op = block.OpZero
			case k == 19:
				r.Op = block.OpTrim
			default:
				e.data = stamp(len(h.events)+1, e.n)
				r.Data = e.data
			}
			if rng.IntN(10) == 0 {
				r.Flags |= block.FlagFUA
			}
			h.events = append(h.events, e)
			if err := submit(s.vols[v], r, w); err != nil {
				return durable, err
			}
			if r.Flags&block.FlagFUA != 0 {
				durable = len(h.events)
			}
		}
	}
	return durable, nil
}

// TestCrashKeepsAPrefixWithEveryFlushedWrite is I1 and I2 for a primary: after a power loss the image of all volumes
// together is that of the first k writes, for one k, and k covers what any FLUSH or FUA had acknowledged.
func TestCrashKeepsAPrefixWithEveryFlushedWrite(t *testing.T) {
	rng, seed := seeded(t)
	rounds := roundsOf(16, 40)
	if testing.Short() {
		rounds = 10
	}
	s := newSite(t, seed, testVolumes, testSize, 4<<20)
	s.cfg = Config{CacheBytes: 256 << 10, RoundBytes: 64 << 10, RoundDelay: 2 * time.Millisecond, CheckpointFilled: 0.2}
	h := &history{}
	for i := range rounds {
		s.open()
		durable, err := load(rng, s, h, 20+rng.IntN(300))
		if err != nil {
			t.Fatalf("round %d: %v", i, err)
		}
		killed := rng.IntN(4) == 0
		if killed {
			s.kill()
			durable = len(h.events)
		} else {
			s.crash()
		}
		s.open()
		var got [][]byte
		for _, v := range s.vols {
			got = append(got, image(t, v))
		}
		k := h.isPrefix(got, 0)
		if k < 0 {
			t.Fatalf("round %d (killed %v): the image is no prefix of the %d writes", i, killed, len(h.events))
		}
		// The same image may stand for several k (overwrites with zeros of zeros): take the latest.
		for next := h.isPrefix(got, min(k+1, len(h.events))); k < len(h.events) && next > k; next = h.isPrefix(got, min(k+1, len(h.events))) {
			k = next
			if k == len(h.events) {
				break
			}
		}
		if k < durable {
			t.Fatalf("round %d (killed %v): %d writes survived, %d were acknowledged as durable", i, killed, k, durable)
		}
		h.events = h.events[:k]
		switch rng.IntN(3) {
		case 0:
			s.close()
			for v, d := range s.devs {
				if want := h.images(testVolumes, testSize, k)[v]; string(deviceBytes(t, d)) != string(want) {
					t.Fatalf("round %d: the device of volume %d is not complete after Close", i, v)
				}
			}
			s.reopenDevices()
		case 1:
			s.crash()
		default:
			s.kill()
		}
	}
}

func (s *site) reopenDevices() {
	if s.mem != nil {
		s.mem.each((*block.Crashable).Kill)
	} else {
		s.jdev = s.jdev.Kill()
	}
	for i := range s.devs {
		s.devs[i] = s.devs[i].Kill()
	}
}

// TestCrashAtEveryDeviceCall cuts the power at each single write or flush of a short history, on journal and devices.
func TestCrashAtEveryDeviceCall(t *testing.T) {
	_, seed := seeded(t)
	for at := 1; ; at++ {
		if !crashAtCall(t, seed, at) {
			if at < 20 {
				t.Fatalf("the history had only %d calls", at)
			}
			return
		}
		if testing.Short() && at > 120 {
			return
		}
	}
}

// crashAtCall returns false if the history ended before that call.
func crashAtCall(t *testing.T, seed uint64, at int) bool {
	rng := rand.New(rand.NewPCG(seed, 2))
	s := newSite(t, seed, testVolumes, testSize, 4<<20)
	s.cfg = Config{RoundBytes: 32 << 10, RoundDelay: time.Millisecond, CheckpointFilled: 0.01}
	s.open()
	calls := make(chan struct{}, 1<<16)
	struck := fmt.Errorf("power is about to go")
	hook := func(call block.Call, _, _ int64) error {
		if call == block.CallRead || call == block.CallReadNowait || call == block.CallExtents {
			return nil
		}
		calls <- struct{}{}
		if len(calls) >= at {
			return struck
		}
		return nil
	}
	s.jdev.SetHook(hook)
	for _, d := range s.devs {
		d.SetHook(hook)
	}
	h := &history{}
	durable, err := load(rng, s, h, 60)
	if err == nil {
		err = s.g.Checkpoint(t.Context())
	}
	s.crash()
	s.cfg.Members = nil
	s.open()
	var got [][]byte
	for _, v := range s.vols {
		got = append(got, image(t, v))
	}
	if k := h.isPrefix(got, durable); k < 0 {
		t.Fatalf("call %d: the image is no prefix of %d writes from the %d durable ones on", at, len(h.events), durable)
	}
	s.close()
	return err != nil
}
