package gateway

import (
	"errors"
	"fmt"
	"net"
	"os"
	"syscall"
	"time"
)

// hostAddr is the remote address of a host's connection with the means to end that connection: what an export learns
// of its peer is its address.
type hostAddr struct {
	net.Addr
	end func() error
}

type tcpHost struct {
	*net.TCPConn
	addr hostAddr
}

func (c *tcpHost) RemoteAddr() net.Addr { return &c.addr }

type unixHost struct {
	*net.UnixConn
	addr hostAddr
}

func (c *unixHost) RemoteAddr() net.Addr { return &c.addr }

const unixBuffer = 1 << 20 // the default of a unix socket holds one large request at most

// hostListener makes the connections it accepts endable, and sets their options, which a server that sees only the
// wrapping cannot.
type hostListener struct{ net.Listener }

func (l hostListener) Accept() (net.Conn, error) {
	c, err := l.Listener.Accept()
	if err != nil {
		return nil, err
	}
	switch c := c.(type) {
	case *net.TCPConn:
		_ = c.SetKeepAliveConfig(net.KeepAliveConfig{Enable: true, Idle: 15 * time.Second, Interval: 5 * time.Second, Count: 6})
		return &tcpHost{c, hostAddr{c.RemoteAddr(), c.Close}}, nil
	case *net.UnixConn:
		_ = c.SetWriteBuffer(unixBuffer)
		return &unixHost{c, hostAddr{c.RemoteAddr(), c.Close}}, nil
	}
	return c, nil
}

// listenTCP refuses what is not loopback: traffic is not encrypted.
func listenTCP(addr string) (net.Listener, error) {
	a, err := net.ResolveTCPAddr("tcp", addr)
	if err != nil {
		return nil, fmt.Errorf("listen address %q: %w", addr, err)
	}
	if !a.IP.IsLoopback() {
		return nil, fmt.Errorf("listen address %s is not loopback: connections are not encrypted yet, so only loopback is allowed", addr)
	}
	return net.ListenTCP("tcp", a)
}

// listenUnix replaces a socket that a dead process has left, not one that is served.
func listenUnix(path string) (net.Listener, error) {
	l, err := net.Listen("unix", path)
	if !errors.Is(err, syscall.EADDRINUSE) {
		return l, err
	}
	if c, derr := net.Dial("unix", path); derr == nil {
		_ = c.Close()
		return nil, fmt.Errorf("unix socket %s is served by another process", path)
	} else if !errors.Is(derr, syscall.ECONNREFUSED) {
		return nil, err
	}
	if err := os.Remove(path); err != nil {
		return nil, err
	}
	return net.Listen("unix", path)
}
