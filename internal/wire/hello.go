package wire

import (
	"context"
	"encoding/json"
	"fmt"
	"net"
	"time"
)

// Purpose says what a connection is for.
type Purpose string

const (
	PurposeIO     Purpose = "io"
	PurposeStream Purpose = "stream"
	PurposeCall   Purpose = "call"
	PurposeJoin   Purpose = "join" // one more connection of a stream that is open: Bundle
)

// HelloVersion is the version of the hello and of what follows it.
const HelloVersion = 1

// Hello is the first frame each way: who speaks, and for what. The answer repeats the purpose.
type Hello struct {
	Version  int             `json:"version"`
	Purpose  Purpose         `json:"purpose"`
	Role     string          `json:"role"`               // "node", "gateway", "manager", "cli"
	Name     string          `json:"name"`               // of the process, as registered
	Instance string          `json:"instance,omitempty"` // of the installation: tells a new one of an old name
	Group    string          `json:"group,omitempty"`    // stream
	Params   json.RawMessage `json:"params,omitempty"`   // the purpose's own
}

const maxName = 255 // bytes, of each string of a Hello

func parseHello(body []byte) (Hello, error) {
	var h Hello
	if err := json.Unmarshal(body, &h); err != nil {
		return Hello{}, fmt.Errorf("%w: hello: %v", ErrFrame, err)
	}
	if h.Version != HelloVersion {
		return Hello{}, &Error{Kind: KindRefused,
			Message: fmt.Sprintf("hello of version %d, this side speaks %d", h.Version, HelloVersion)}
	}
	switch h.Purpose {
	case PurposeIO, PurposeStream, PurposeCall, PurposeJoin:
	default:
		return Hello{}, &Error{Kind: KindInvalid, Message: fmt.Sprintf("unknown purpose %.40q", h.Purpose)}
	}
	for _, s := range []string{h.Role, h.Name, h.Instance, h.Group} {
		if len(s) > maxName {
			return Hello{}, &Error{Kind: KindInvalid, Message: fmt.Sprintf("name of %d bytes in hello", len(s))}
		}
	}
	return h, nil
}

// Decode reads the hello's parameters into v.
func (h Hello) Decode(v any) error {
	if err := json.Unmarshal(h.Params, v); err != nil {
		return &Error{Kind: KindInvalid, Message: fmt.Sprintf("%s hello from %s %s: parameters: %v", h.Purpose, h.Role, h.Name, err)}
	}
	return nil
}

// WithParams is the hello with v as its parameters.
func (h Hello) WithParams(v any) (Hello, error) {
	raw, err := json.Marshal(v)
	h.Params = raw
	return h, err
}

const handshakeTimeout = 5 * time.Second

// Dial connects to addr, says hello and waits for the answer. A refusal comes as *Error. The connection outlives ctx.
func Dial(ctx context.Context, addr string, hello Hello) (*Conn, Hello, error) {
	ctx, cancel := context.WithTimeout(ctx, handshakeTimeout)
	defer cancel()
	var d net.Dialer
	nc, err := d.DialContext(ctx, "tcp", addr)
	if err != nil {
		return nil, Hello{}, fmt.Errorf("%w", err)
	}
	return Handshake(ctx, nc, hello)
}

// Handshake is Dial on a connection that is there already; it closes it on failure.
func Handshake(ctx context.Context, nc net.Conn, hello Hello) (*Conn, Hello, error) {
	c := NewConn(nc)
	answer, err := c.sayHello(ctx, hello)
	if err != nil {
		c.Close()
		return nil, Hello{}, err
	}
	c.StartKeeper()
	return c, answer, nil
}

func (c *Conn) sayHello(ctx context.Context, hello Hello) (Hello, error) {
	stop := c.closeOn(ctx)
	hello.Version = HelloVersion
	body, err := json.Marshal(&hello)
	if err != nil {
		return Hello{}, err
	}
	if err := c.WriteFrame(TypeHello, body); err != nil {
		return Hello{}, err
	}
	answer, err := c.readHello()
	if err != nil {
		return Hello{}, err
	}
	if !stop() {
		return Hello{}, fmt.Errorf("hello to %v: %w", c.RemoteAddr(), context.Cause(ctx))
	}
	if answer.Purpose != hello.Purpose {
		return Hello{}, fmt.Errorf("%w: hello for %s answered for %s", ErrFrame, hello.Purpose, answer.Purpose)
	}
	return answer, nil
}

// readHello reads a hello, or the error that stands for it.
func (c *Conn) readHello() (Hello, error) {
	c.in.only = TypeHello
	t, body, err := c.ReadFrame()
	if err != nil {
		return Hello{}, err
	}
	if t == TypeError {
		return Hello{}, unmarshalError(body)
	}
	h, err := parseHello(body)
	if err != nil {
		return Hello{}, err
	}
	c.in.only = 0
	return h, nil
}
