package nbd

import (
	"errors"
	"net"
	"syscall"
	"time"
)

// socketBuffer is asked for on unix sockets: their default holds one large request at most.
const socketBuffer = 1 << 20

// setSocketOptions makes small replies leave at once and dead peers be noticed. Failures cost speed only.
func setSocketOptions(c net.Conn) {
	switch c := c.(type) {
	case *net.TCPConn:
		_ = c.SetNoDelay(true)
		_ = c.SetKeepAliveConfig(net.KeepAliveConfig{Enable: true, Idle: 15 * time.Second, Interval: 5 * time.Second, Count: 6})
	case *net.UnixConn:
		_ = c.SetWriteBuffer(socketBuffer)
	}
}

// closeWrite ends our side of the stream, so that the peer sees all replies and then the end.
func closeWrite(c net.Conn) {
	if cw, ok := c.(interface{ CloseWrite() error }); ok {
		_ = cw.CloseWrite()
	}
}

// isTemporary says whether accepting may work again later.
func isTemporary(err error) bool {
	for _, no := range []syscall.Errno{syscall.EMFILE, syscall.ENFILE, syscall.ENOBUFS, syscall.ENOMEM, syscall.ECONNABORTED} {
		if errors.Is(err, no) {
			return true
		}
	}
	return false
}
