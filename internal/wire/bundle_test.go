package wire

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"strings"
	"sync"
	"testing"
	"time"

	"pgregory.net/rapid"

	"gantline/internal/record"
)

// Frames that come by several connections, each in order and all in any order, go out in the order of their places; no more
// is held than the limit and one frame, and a place comes once.
func TestOrder(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		n := rapid.IntRange(1, 60).Draw(t, "frames")
		lanes := make([][]uint64, rapid.IntRange(1, 5).Draw(t, "connections"))
		size := map[uint64]int{}
		for at := range uint64(n) {
			i := rapid.IntRange(0, len(lanes)-1).Draw(t, "connection")
			lanes[i] = append(lanes[i], at)
			size[at] = rapid.SampledFrom([]int{0, 10, maxEarly / 3, maxEarly + 1}).Draw(t, "size")
		}
		var o order
		want, due := uint64(0), 0
		for want < uint64(n) {
			moved := false
			for _, i := range rapid.Permutation([]int{0, 1, 2, 3, 4}[:len(lanes)]).Draw(t, "order") {
				if len(lanes[i]) == 0 {
					continue
				}
				at := lanes[i][0]
				p := piece{kind: TypeHeartbeat, body: make([]byte, size[at])}
				if !o.room(at, p.weight()) {
					if at == o.next {
						t.Fatalf("no room for %d, whose turn it is", at)
					}
					continue
				}
				if at == o.next {
					due = p.weight()
				}
				if err := o.put(at, p); err != nil {
					t.Fatal(err)
				}
				if o.put(at, p) == nil {
					t.Fatalf("place %d was taken twice", at)
				}
				if o.bytes > maxEarly+due {
					t.Fatalf("%d bytes are held", o.bytes)
				}
				lanes[i], moved = lanes[i][1:], true
			}
			for rapid.Bool().Draw(t, "take") || !moved {
				p, ok := o.take()
				if !ok {
					break
				}
				if len(p.body) != size[want] {
					t.Fatalf("frame %d has %d bytes, was written with %d", want, len(p.body), size[want])
				}
				want, moved = want+1, true
			}
			if !moved {
				t.Fatalf("stuck before %d: %v", want, lanes)
			}
		}
		if o.bytes != 0 || len(o.held) != 0 || o.put(0, piece{}) == nil {
			t.Fatalf("left: %+v", o)
		}
	})
}

// ends are both ends of a bundle over TCP, the receiver's served by a server.
type ends struct {
	source, receiver *Bundle
	dials            []net.Conn // of the source, by index
}

// bundled connects n connections; the one that dials is the source.
func bundled(t *testing.T, n int) *ends {
	t.Helper()
	e := &ends{dials: make([]net.Conn, 0, n)}
	there := make(chan *Bundle, 1)
	over := make(chan struct{})
	spec := BundleSpec{Connections: n, Session: fmt.Sprintf("session-%d", rand.Uint64())}
	addr := serve(t, Handlers{Stream: func(ctx context.Context, in *Incoming) error {
		b, err := in.Bundle(Receiver, spec)
		if err == nil {
			err = b.Expect()
		}
		if err != nil {
			return err
		}
		defer b.Close()
		if err := in.Answer(struct{}{}); err != nil {
			return err
		}
		there <- b
		<-over
		return nil
	}}, Limits{})
	var mu sync.Mutex
	dial := func(ctx context.Context) (net.Conn, error) {
		var d net.Dialer
		nc, err := d.DialContext(ctx, "tcp", addr)
		mu.Lock()
		defer mu.Unlock()
		e.dials = append(e.dials, nc)
		return nc, err
	}
	hello := Hello{Purpose: PurposeStream, Role: "node", Name: "a", Group: "g"}
	nc, err := dial(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	main, _, err := Handshake(t.Context(), nc, hello)
	if err != nil {
		t.Fatal(err)
	}
	if e.source, err = DialBundle(t.Context(), main, Source, spec, hello, dial); err != nil {
		t.Fatal(err)
	}
	e.receiver = <-there
	t.Cleanup(func() { e.source.Close(); close(over) })
	return e
}

func batchOf(seq record.Seq, size int) Batch {
	data := make([]byte, size)
	for i := range data {
		data[i] = byte(uint64(seq) + uint64(i)*7)
	}
	return Batch{Mark: seq, Records: []record.Record{{Seq: seq, Epoch: 1, Op: record.OpWrite, Length: uint32(size), Data: data, CRC: record.Checksum(data)}}}
}

// Batches, compressed or not, and heartbeats between them come in order, by all connections.
func TestBundleKeepsOrder(t *testing.T) {
	e := bundled(t, 4)
	const frames = 3000
	sent := make(chan error, 1)
	go func() {
		var p Packer
		for seq := record.Seq(1); seq <= frames; seq++ {
			var err error
			if seq%10 == 0 {
				err = e.source.WriteFrame(TypeHeartbeat, EncodeHeartbeat(Heartbeat{Mark: seq}))
			} else {
				_, err = e.source.WritePacked(batchOf(seq, rand.IntN(40_000)), Method(rand.IntN(2)), &p)
			}
			if err != nil {
				sent <- err
				return
			}
		}
		sent <- nil
	}()
	for want := record.Seq(1); want <= frames; want++ {
		kind, body, err := e.receiver.ReadFrame()
		if err != nil {
			t.Fatal(want, err)
		}
		switch {
		case want%10 == 0 && kind == TypeHeartbeat:
			if h, err := DecodeHeartbeat(body); err != nil || h.Mark != want {
				t.Fatalf("heartbeat %d, want %d (%v)", h.Mark, want, err)
			}
		case want%10 != 0 && (kind == TypeBatch || kind == TypePacked):
			if b, err := e.receiver.Batch(); err != nil || b.Mark != want || b.Records[0].Seq != want {
				t.Fatalf("batch %d, want %d (%v)", b.Mark, want, err)
			}
		default:
			t.Fatalf("frame %d is a %v", want, kind)
		}
	}
	if err := <-sent; err != nil {
		t.Fatal(err)
	}
	for i, c := range e.source.each() {
		if c.SentBytes() < 1<<20 {
			t.Errorf("connection %d has carried %d bytes", i, c.SentBytes())
		}
	}
	if err := e.receiver.WriteFrame(TypeAck, EncodeAck(Ack{Stored: 7})); err != nil {
		t.Fatal(err)
	}
	if kind, _, err := e.source.ReadFrame(); err != nil || kind != TypeAck {
		t.Fatal(kind, err)
	}
	e.source.Bye()
	if _, _, err := e.receiver.ReadFrame(); !errors.Is(err, ErrBye) {
		t.Errorf("after a bye: %v", err)
	}
}

// All that was written before a bye arrives, whichever connection is the slowest.
func TestBundleByeIsLast(t *testing.T) {
	for range 20 {
		e := bundled(t, 3)
		for seq := record.Seq(1); seq <= 100; seq++ {
			if _, err := e.source.WritePacked(batchOf(seq, 1+rand.IntN(50_000)), MethodNone, nil); err != nil {
				t.Fatal(err)
			}
		}
		go e.source.Bye()
		got := 0
		for {
			_, _, err := e.receiver.ReadFrame()
			if errors.Is(err, ErrBye) {
				break
			}
			if err != nil {
				t.Fatalf("after %d frames: %v", got, err)
			}
			got++
		}
		if got != 100 {
			t.Fatalf("%d of 100 frames", got)
		}
	}
}

// A connection that dies, at whatever byte, ends the stream at both ends, and nothing has come but a prefix.
func TestBundleDeath(t *testing.T) {
	for range 30 {
		e := bundled(t, 3)
		go func() {
			for seq := record.Seq(1); ; seq++ {
				if _, err := e.source.WritePacked(batchOf(seq, 1+rand.IntN(30_000)), MethodNone, nil); err != nil {
					return
				}
			}
		}()
		go func() {
			time.Sleep(time.Duration(rand.IntN(5000)) * time.Microsecond)
			_ = e.dials[rand.IntN(3)].Close()
		}()
		for want := record.Seq(1); ; want++ {
			_, _, err := e.receiver.ReadFrame()
			if err != nil {
				break
			}
			if b, err := e.receiver.Batch(); err != nil || b.Mark != want {
				t.Fatalf("batch %d, want %d (%v)", b.Mark, want, err)
			}
		}
		if _, _, err := e.source.ReadFrame(); err == nil {
			t.Fatal("the source still reads")
		}
		for _, b := range []*Bundle{e.source, e.receiver} {
			select {
			case <-b.Done():
			case <-time.After(5 * time.Second):
				t.Fatal("a bundle has not ended with its connection")
			}
		}
	}
}

// A refusal is heard, though each connection closes by itself.
func TestBundleRefusal(t *testing.T) {
	for range 20 {
		e := bundled(t, 4)
		if err := e.receiver.Await(); err != nil {
			t.Fatal(err)
		}
		go e.receiver.Refuse(&Error{Kind: KindRefused, Message: "no more of this"})
		kind, body, err := e.source.ReadFrame()
		if err != nil || kind != TypeError || !strings.Contains(string(body), "no more of this") {
			t.Fatal(kind, err)
		}
	}
}

// What does not belong to a stream does not get in: an unknown session, a place that is taken or that there is not, another
// peer, a stream that has ended.
func TestBundleStrangers(t *testing.T) {
	e := bundled(t, 3)
	addr := e.dials[0].RemoteAddr().String()
	join := func(name string, j joining) error {
		hello, err := Hello{Purpose: PurposeJoin, Role: "node", Name: name, Group: "g"}.WithParams(j)
		if err != nil {
			t.Fatal(err)
		}
		c, _, err := Dial(t.Context(), addr, hello)
		if err == nil {
			c.Close()
		}
		return err
	}
	session := e.source.spec.Session
	for name, try := range map[string]error{
		"another session": join("a", joining{"session-x", 1}),
		"no session":      join("a", joining{"", 1}),
		"a taken place":   join("a", joining{session, 1}),
		"the first place": join("a", joining{session, 0}),
		"a place beyond":  join("a", joining{session, 3}),
		"another peer":    join("b", joining{session, 1}),
	} {
		var refused *Error
		if !errors.As(try, &refused) {
			t.Errorf("%s: %v", name, try)
		}
	}
	if _, err := e.source.WritePacked(batchOf(1, 10), MethodNone, nil); err != nil {
		t.Fatal(err)
	}
	if _, _, err := e.receiver.ReadFrame(); err != nil {
		t.Fatal("the stream has suffered:", err)
	}
	e.source.Close()
	<-e.receiver.Done()
	e.receiver.Close()
	if err := join("a", joining{session, 1}); err == nil || !strings.Contains(err.Error(), "no stream of this session") {
		t.Errorf("after the end: %v", err)
	}
}

// Frames without a place, places without a frame, places twice or backwards end the stream.
func TestBundlePlaces(t *testing.T) {
	place := func(at byte) []byte { return rawFrame(TypePlace, []byte{at, 0, 0, 0, 0, 0, 0, 0}) }
	beat := rawFrame(TypeHeartbeat, EncodeHeartbeat(Heartbeat{Mark: 1}))
	for name, frames := range map[string][][]byte{
		"no place":    {beat},
		"no frame":    {place(0), place(1)},
		"twice":       {place(0), beat, place(0), beat},
		"backwards":   {place(5), beat, place(4), beat},
		"short place": {rawFrame(TypePlace, []byte{0})},
	} {
		t.Run(name, func(t *testing.T) {
			e := bundled(t, 2)
			for _, f := range frames {
				_, _ = e.dials[1].Write(f) // it may have been closed for the one before
			}
			for {
				_, _, err := e.receiver.ReadFrame()
				if errors.Is(err, ErrFrame) {
					return
				}
				if err != nil {
					t.Fatal(err)
				}
			}
		})
	}
}

// A receiver that does not take what is due holds no more than the limit: the rest stays in the sockets.
func TestBundleIsBounded(t *testing.T) {
	e := bundled(t, 3)
	go func() {
		for seq := record.Seq(1); seq <= 80; seq++ {
			if _, err := e.source.WritePacked(batchOf(seq, 1<<20), MethodNone, nil); err != nil {
				return
			}
		}
	}()
	time.Sleep(500 * time.Millisecond)
	e.receiver.mu.Lock()
	held := e.receiver.order.bytes
	e.receiver.mu.Unlock()
	if held < 1<<20 || held > maxEarly+(1<<20)+pieceOverhead {
		t.Errorf("%d bytes are held", held)
	}
	for want := record.Seq(1); want <= 80; want++ {
		if _, _, err := e.receiver.ReadFrame(); err != nil {
			t.Fatal(err)
		}
		if b, _ := e.receiver.Batch(); b.Mark != want {
			t.Fatalf("batch %d, want %d", b.Mark, want)
		}
	}
}

// One connection that fails to come fails the whole, and leaves nothing open.
func TestBundleThatDoesNotComeTogether(t *testing.T) {
	here, there := tcpPair(t)
	defer there.Close()
	main := NewConn(here)
	defer main.Close()
	n := 0
	var mu sync.Mutex
	_, err := DialBundle(t.Context(), main, Source, BundleSpec{Connections: 4, Session: "s"}, Hello{},
		func(ctx context.Context) (net.Conn, error) {
			mu.Lock()
			defer mu.Unlock()
			if n++; n == 2 {
				return nil, io.ErrNoProgress
			}
			a, b := tcpPair(t)
			t.Cleanup(func() { b.Close() })
			return a, nil
		})
	if !errors.Is(err, io.ErrNoProgress) || !strings.Contains(err.Error(), "of 4") {
		t.Fatal(err)
	}
}

// The connections of a stream take one place of those that a server has for all.
func TestJoinedCountAsOne(t *testing.T) {
	s := bundled(t, 4).receiver.server
	counted := func() int {
		s.mu.Lock()
		defer s.mu.Unlock()
		return len(s.conns)
	}
	for end := time.Now().Add(5 * time.Second); counted() != 1; time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("a stream of four counts as %d", counted())
		}
	}
}

// A connection that is refused fails the whole with the reason, not with what the others end with.
func TestBundleTellsWhyAConnectionWasRefused(t *testing.T) {
	here, there := tcpPair(t)
	defer there.Close()
	main := NewConn(here)
	defer main.Close()
	_, err := DialBundle(t.Context(), main, Source, BundleSpec{Connections: 4, Session: "s"}, Hello{Role: "node", Name: "a"},
		func(context.Context) (net.Conn, error) {
			a, b := tcpPair(t)
			c := NewConn(b)
			t.Cleanup(func() { c.Close() })
			go func() {
				var j joining
				h, err := c.readHello()
				if err == nil && h.Decode(&j) == nil && j.Index == 3 {
					time.Sleep(10 * time.Millisecond) // the others' ends come first
					c.Refuse(&Error{Kind: KindRefused, Message: "by the test"})
				}
				c.Close()
			}()
			return a, nil
		})
	if KindOf(err) != KindRefused || !strings.Contains(err.Error(), "by the test") || !strings.Contains(err.Error(), "4 of 4") {
		t.Fatal(err)
	}
}
