package wire

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"io"
	"net"
	"strings"
	"testing"
	"time"

	"go.uber.org/goleak"

	"gantline/internal/record"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// serve runs a server on a free port until the test ends and returns its address.
func serve(t testing.TB, h Handlers, l Limits) string {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	s := NewServer(h, l)
	go func() { done <- s.Serve(ctx, ln) }()
	t.Cleanup(func() {
		cancel()
		select {
		case err := <-done:
			if err != nil {
				t.Errorf("Serve: %v", err)
			}
		case <-time.After(10 * time.Second):
			t.Error("Serve does not return")
		}
	})
	return ln.Addr().String()
}

func TestBatchCrossesAsItIs(t *testing.T) {
	want := Batch{Mark: 41}
	for i := range 5 {
		data := bytes.Repeat([]byte{byte(i + 1)}, i*1000)
		if i == 0 {
			data = nil
		}
		r := record.Record{Seq: record.Seq(40 + i), Epoch: 3, Incarnation: 2, Op: record.OpWrite, Flags: 1, Volume: 7,
			Offset: 1 << 40, Length: uint32(len(data)), Time: -5, Session: 9, Request: 8, Mark: 39, Data: data}
		if data != nil {
			r.CRC = record.Checksum(data)
		}
		want.Records = append(want.Records, r)
	}
	got := make(chan Batch, 1)
	addr := serve(t, Handlers{Stream: func(_ context.Context, in *Incoming) error {
		if err := in.Answer(map[string]int{"have": 3}); err != nil {
			return err
		}
		_, body, err := in.ReadFrame()
		if err != nil {
			return err
		}
		b, err := DecodeBatch(body)
		got <- b
		return err
	}}, Limits{})
	c, answer, err := Dial(t.Context(), addr, Hello{Purpose: PurposeStream, Role: "node", Name: "a", Group: "g"})
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if answer.Group != "g" || string(answer.Params) != `{"have":3}` {
		t.Fatalf("answer %+v", answer)
	}
	if err := c.WriteBatch(want); err != nil {
		t.Fatal(err)
	}
	b := <-got
	a1, _ := json.Marshal(want)
	a2, _ := json.Marshal(b)
	if !bytes.Equal(a1, a2) {
		t.Fatalf("got %s\nwant %s", a2, a1)
	}
}

func TestBatchWithChangedDataIsRefused(t *testing.T) {
	data := []byte("what the host wrote")
	parts, err := EncodeBatch(Batch{Records: []record.Record{{Seq: 1, Data: data, CRC: record.Checksum(data) + 1}}})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := DecodeBatch(bytes.Join(parts, nil)); !errors.Is(err, ErrFrame) {
		t.Fatalf("err = %v", err)
	}
}

func TestCallKeepsKindsAndRunsSideBySide(t *testing.T) {
	release := make(chan struct{})
	addr := serve(t, Handlers{Call: func(ctx context.Context, peer Hello, method string, params json.RawMessage) (any, error) {
		switch method {
		case "wait":
			select {
			case <-release:
				return peer.Name, nil
			case <-ctx.Done():
				return nil, ctx.Err()
			}
		case "release":
			close(release)
			return params, nil
		}
		return nil, &Error{Kind: KindNotFound, Message: "no method " + method, Detail: json.RawMessage(`{"x":1}`)}
	}}, Limits{})
	c := NewCaller(addr, Hello{Role: "manager", Name: "m"})
	defer c.Close()
	done := make(chan error, 1)
	var name string
	go func() { done <- c.Call(t.Context(), "wait", nil, &name) }()
	var e *Error
	if err := c.Call(t.Context(), "nope", nil, nil); !errors.As(err, &e) || e.Kind != KindNotFound || string(e.Detail) != `{"x":1}` {
		t.Fatalf("err = %#v", err)
	}
	short, cancel := context.WithTimeout(t.Context(), 30*time.Millisecond)
	defer cancel()
	if err := c.Call(short, "wait", nil, nil); KindOf(err) != KindUnavailable {
		t.Fatalf("err = %v", err)
	}
	var out struct{ A int }
	if err := c.Call(t.Context(), "release", map[string]int{"A": 5}, &out); err != nil || out.A != 5 {
		t.Fatalf("out %v err %v", out, err)
	}
	if err := <-done; err != nil || name != "m" {
		t.Fatalf("name %q err %v", name, err)
	}
}

func TestCallerComesBackAfterALoss(t *testing.T) {
	conns := make(chan *Conn, 8)
	addr := serve(t, Handlers{Call: func(_ context.Context, _ Hello, _ string, _ json.RawMessage) (any, error) { return 1, nil },
		Self: Hello{Name: "b"}}, Limits{})
	c := NewCaller(addr, Hello{Name: "m"})
	defer c.Close()
	for range 3 {
		if err := c.Call(t.Context(), "x", nil, nil); err != nil {
			t.Fatal(err)
		}
		conns <- c.conn.conn
		c.conn.conn.fail(io.ErrUnexpectedEOF)
	}
}

func TestStrangersAreToldWhatIsWrong(t *testing.T) {
	told := make(chan error, 1)
	addr := serve(t, Handlers{Refused: func(_ net.Addr, err error) { told <- err }}, Limits{Connections: 2, Handshake: 200 * time.Millisecond})
	for _, c := range []struct{ name, send, want string }{
		{"another protocol", "GET / HTTP/1.1\r\nHost: x\r\n\r\n", "magic"},
		{"nothing", "", "no hello within"},
		{"a batch first", string(rawFrame(TypeBatch, make([]byte, 100))), "where hello is due"},
		{"broken checksum", strings.Replace(string(rawFrame(TypeHello, []byte(`{"version":1}`))), "version", "vErsion", 1), "checksum"},
		{"another version", string(rawFrame(TypeHello, []byte(`{"version":9}`))), "version 9"},
		{"unserved", string(rawFrame(TypeHello, []byte(`{"version":1,"purpose":"io"}`))), "not served"},
	} {
		t.Run(c.name, func(t *testing.T) {
			nc, err := net.Dial("tcp", addr)
			if err != nil {
				t.Fatal(err)
			}
			defer nc.Close()
			_, _ = nc.Write([]byte(c.send))
			if err := <-told; !strings.Contains(err.Error(), c.want) {
				t.Errorf("told %v, want %q", err, c.want)
			}
			_ = nc.SetReadDeadline(time.Now().Add(5 * time.Second))
			if _, err := io.ReadAll(nc); errors.Is(err, context.DeadlineExceeded) {
				t.Error("the connection stays open")
			}
		})
	}
}

func rawFrame(t Type, body []byte) []byte {
	f := make([]byte, headerSize, headerSize+len(body))
	putHeader(f, t, len(body))
	crc := record.Extend(0, f[:12])
	crc = record.Extend(crc, body)
	f[12], f[13], f[14], f[15] = byte(crc), byte(crc>>8), byte(crc>>16), byte(crc>>24)
	return append(f, body...)
}
