package node

import (
	"io"
	"net"
	"sync"
	"sync/atomic"
	"testing"
)

// cutLink stands between a node and those who dial it, and can be cut.
type cutLink struct {
	listen net.Listener
	to     func() string

	mu    sync.Mutex
	down  bool
	conns map[net.Conn]struct{}
	sent  atomic.Int64 // bytes taken from those who dial
}

func newCutLink(t *testing.T, to func() string) *cutLink {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	c := &cutLink{listen: l, to: to, conns: map[net.Conn]struct{}{}}
	t.Cleanup(func() {
		l.Close()
		c.set(true)
	})
	go c.accept()
	return c
}

func (c *cutLink) addr() string { return c.listen.Addr().String() }

func (c *cutLink) accept() {
	for {
		in, err := c.listen.Accept()
		if err != nil {
			return
		}
		go c.join(in)
	}
}

func (c *cutLink) join(in net.Conn) {
	defer in.Close()
	out, err := net.Dial("tcp", c.to())
	if err != nil {
		return
	}
	defer out.Close()
	if !c.add(in, out) {
		return
	}
	go func() {
		_, _ = io.Copy(in, out) // either end, or a cut
		in.Close()
	}()
	n, _ := io.Copy(out, in)
	c.sent.Add(n)
	c.mu.Lock()
	defer c.mu.Unlock()
	delete(c.conns, in)
	delete(c.conns, out)
}

func (c *cutLink) add(conns ...net.Conn) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, conn := range conns {
		if !c.down {
			c.conns[conn] = struct{}{}
		}
	}
	return !c.down
}

// set cuts the link, for good or until it is set again.
func (c *cutLink) set(down bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.down = down
	if down {
		for conn := range c.conns {
			conn.Close()
		}
		clear(c.conns)
	}
}

// flap cuts what is open; what is dialled from now on goes through.
func (c *cutLink) flap() {
	c.set(true)
	c.set(false)
}
