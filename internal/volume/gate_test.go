package volume

import (
	"context"
	"errors"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"gantline/internal/block"
	"gantline/internal/record"
)

// source is the other end of through mode; it may be sealed, and answers when it is told to.
type source struct {
	mu     sync.Mutex
	sealed bool
	slow   chan struct{}
	got    atomic.Int64
}

func (s *source) Submit(reqs []*block.Request) {
	s.mu.Lock()
	sealed, slow := s.sealed, s.slow
	s.mu.Unlock()
	for _, r := range reqs {
		s.got.Add(1)
		go func() {
			if slow != nil {
				<-slow
			}
			s.mu.Lock()
			sealed := sealed || s.sealed
			s.mu.Unlock()
			if sealed {
				r.Finish(&block.MovedError{Node: "b", Epoch: 2})
			} else {
				r.Finish(nil)
			}
		}()
	}
}

func TestHeldRequestsAreReleasedInOrder(t *testing.T) {
	_, seed := seeded(t)
	s := newSite(t, seed, 1, testSize, 4<<20)
	s.opt = Options{Mode: ModePending, HoldRequests: 10}
	s.open()
	v := s.vols[0]
	var answered atomic.Int64
	var last *block.Request
	submitted := make(chan struct{})
	go func() {
		for i := 1; i <= 25; i++ {
			r := &block.Request{Op: block.OpWrite, Length: 4096, Data: stamp(i, 4096), Completer: counting{&answered}}
			last = r
			v.Submit([]*block.Request{r})
		}
		close(submitted)
	}()
	for n := 0; n < 10; n, _ = v.Held() {
		time.Sleep(time.Millisecond)
	}
	time.Sleep(20 * time.Millisecond)
	if n, bytes := v.Held(); n != 10 || bytes != 10*4096 || answered.Load() != 0 {
		t.Fatalf("%d held, %d bytes, %d answered; 10 are allowed", n, bytes, answered.Load())
	}
	if err := v.SetMode(t.Context(), ModeNormal, true); err != nil {
		t.Fatal(err)
	}
	<-submitted
	if err := v.Drain(t.Context()); err != nil {
		t.Fatal(err)
	}
	if answered.Load() != 25 || last.Err != nil {
		t.Fatalf("%d answered", answered.Load())
	}
	if got := read(t, v, 0, 4096); string(got) != string(stamp(25, 4096)) {
		t.Fatalf("the last write is not the last applied: %d", got[0])
	}
	s.close()
}

type counting struct{ n *atomic.Int64 }

func (c counting) Complete(*block.Request) { c.n.Add(1) }

// TestDrainWaitsForWhatWasAdmitted: a relayed request that the source still works on is waited for; new ones are not.
func TestDrainWaitsForWhatWasAdmitted(t *testing.T) {
	_, seed := seeded(t)
	s := newSite(t, seed, 1, testSize, 4<<20)
	s.open()
	v := s.vols[0]
	src := &source{slow: make(chan struct{})}
	v.SetRelay(src)
	if err := v.SetMode(t.Context(), ModeThrough, true); err != nil {
		t.Fatal(err)
	}
	r, w := newRequest(block.OpRead, 0, 4096)
	v.Submit([]*block.Request{r})
	short, cancel := context.WithTimeout(t.Context(), 20*time.Millisecond)
	defer cancel()
	if err := v.SetMode(short, ModePending, true); !errors.Is(err, context.DeadlineExceeded) {
		t.Fatalf("drained while a request was with the source: %v", err)
	}
	close(src.slow)
	if err := v.Drain(t.Context()); err != nil {
		t.Fatal(err)
	}
	select {
	case <-w:
	default:
		t.Fatal("drained before the request was answered")
	}
	s.close()
}

// TestRelayedRequestsOfASealedSourceExecuteHere: none is lost, none executes twice, through all of the switch.
func TestRelayedRequestsOfASealedSourceExecuteHere(t *testing.T) {
	_, seed := seeded(t)
	for _, pendFirst := range []bool{true, false} {
		s := newSite(t, seed, 1, testSize, 4<<20)
		s.open()
		v := s.vols[0]
		src := &source{}
		v.SetRelay(src)
		if err := v.SetMode(t.Context(), ModeThrough, true); err != nil {
			t.Fatal(err)
		}
		base := s.g.Appended()
		var wg sync.WaitGroup
		var stop atomic.Bool
		var ok, failed atomic.Int64
		for range 4 {
			wg.Go(func() {
				for !stop.Load() {
					if write(v, 0, stamp(1, 4096), 0) == nil {
						ok.Add(1)
					} else {
						failed.Add(1)
					}
				}
			})
		}
		time.Sleep(5 * time.Millisecond)
		if pendFirst {
			v.SetMode(t.Context(), ModePending, false)
		}
		src.mu.Lock()
		src.sealed = true
		src.mu.Unlock()
		time.Sleep(5 * time.Millisecond)
		if err := v.SetMode(t.Context(), ModeMigrating, true); err != nil {
			t.Fatal(err)
		}
		time.Sleep(5 * time.Millisecond)
		stop.Store(true)
		wg.Wait()
		if n, _ := v.Held(); n != 0 || failed.Load() != 0 || s.g.Appended() == base {
			t.Fatalf("%d held, %d failed, %d executed here", n, failed.Load(), s.g.Appended()-base)
		}
		s.close()
	}
}

// TestSealEndsTheEpoch: all that was admitted is below the fence, everything later is answered `moved`, also after a
// restart, until another row is opened.
func TestSealEndsTheEpoch(t *testing.T) {
	_, seed := seeded(t)
	s := newSite(t, seed, 2, testSize, 4<<20)
	s.open()
	var wg sync.WaitGroup
	var ok atomic.Int64
	for i := range 4 {
		wg.Go(func() {
			for {
				err := write(s.vols[i%2], 0, stamp(1, 4096), block.Flags(i/2)*block.FlagFUA)
				var moved *block.MovedError
				if errors.As(err, &moved) {
					if moved.Node != "b" || moved.Epoch != 2 {
						t.Errorf("moved to %s in epoch %d", moved.Node, moved.Epoch)
					}
					return
				} else if err != nil {
					t.Error(err)
					return
				}
				ok.Add(1)
			}
		})
	}
	time.Sleep(20 * time.Millisecond)
	next := record.EpochID{Number: 2, Node: "b"}
	cut, err := s.g.Seal(t.Context(), next)
	if err != nil {
		t.Fatal(err)
	}
	wg.Wait()
	if want := record.Seq(ok.Load() + 1); cut != want || s.g.Durable() != cut {
		t.Fatalf("cut at %d, durable %d, %d writes were answered", cut, s.g.Durable(), ok.Load())
	}
	if again, err := s.g.Seal(t.Context(), next); err != nil || again != cut {
		t.Fatalf("sealing again: %d, %v", again, err)
	}
	if _, err := s.g.Seal(t.Context(), record.EpochID{Number: 2, Node: "c"}); !errors.Is(err, ErrRole) {
		t.Fatalf("sealed for somebody else: %v", err)
	}
	if err := s.g.Checkpoint(t.Context()); err != nil {
		t.Fatal(err)
	}
	s.crash()
	s.open()
	if again, to, ok := s.g.Sealed(); !ok || again != cut || to != next {
		t.Fatalf("after a crash: sealed %v at %d for %v", ok, again, to)
	}
	if err := write(s.vols[0], 0, stamp(2, 4096), 0); err == nil {
		t.Fatal("a sealed group took a write after a restart")
	}
	if err := s.g.Serve(record.Row{Epoch: 1, Incarnation: 9, Node: "n", First: cut + 1}); !errors.Is(err, ErrEpoch) {
		t.Fatalf("the sealed epoch was opened again: %v", err)
	}
	if err := s.g.Serve(record.Row{Epoch: 3, Incarnation: 1, Node: "n", First: cut + 1}); err != nil {
		t.Fatal(err)
	}
	if err := write(s.vols[0], 0, stamp(2, 4096), 0); err != nil {
		t.Fatal(err)
	}
	var moved *block.MovedError
	r, w := newRequest(block.OpWrite, 0, 4096)
	r.Data = stamp(3, 4096)
	s.vols[0].SubmitAt(4, []*block.Request{r})
	if <-w; !errors.As(r.Err, &moved) {
		t.Fatalf("a request of a later epoch was answered %v", r.Err)
	}
	s.close()
}
