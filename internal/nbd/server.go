package nbd

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"sync"
	"time"

	"gantline/internal/block"
)

// Peer says who is at the other end.
type Peer struct {
	Network string // "tcp" or "unix"
	Addr    net.Addr
}

// Export is what a connection has opened.
type Export struct {
	Name        string
	Size        int64 // bytes
	ReadOnly    bool
	Description string
	// Target takes the requests. When a read has completed its Data belongs to the server again, which uses it for
	// later reads: the target keeps no slice of it. It may instead have set Data to Length bytes of its own, which
	// must not change any more.
	Target      block.Target
	CanFastZero bool // the target answers OpZero with FlagFastZero as the flag demands
	// Close, if set, is called once, when the connection has ended and all its requests have completed, or did not
	// within the drain limit; requests still open then are to be completed soon after.
	Close func()
}

func (e *Export) close() {
	if e.Close != nil {
		e.Close()
	}
}

// Exports finds what a name means. Methods are called concurrently.
type Exports interface {
	// Open is called for each connection anew. ErrUnknownExport, ErrDenied and block.ErrShutdown are told to the peer
	// as such, any other error as its text.
	Open(ctx context.Context, name string, peer Peer) (*Export, error)
	// List names the exports that this peer may open.
	List(peer Peer) []string
}

// Options of a Server; zero values mean the defaults named.
type Options struct {
	Exports          Exports
	MaxConns         int           // connections at a time, further ones are closed at once; 256
	HandshakeTimeout time.Duration // from accept to the first request; 10 s
	DrainTimeout     time.Duration // for requests in flight once their connection has ended; 10 s
	MaxRequests      int           // requests in flight per connection; 256
	MaxBytes         int64         // bytes of data in flight per connection, at least 32 MiB; 64 MiB
	Log              *slog.Logger  // none: slog.Default
}

func (o Options) withDefaults() Options {
	if o.MaxConns <= 0 {
		o.MaxConns = 256
	}
	if o.HandshakeTimeout <= 0 {
		o.HandshakeTimeout = 10 * time.Second
	}
	if o.DrainTimeout <= 0 {
		o.DrainTimeout = 10 * time.Second
	}
	if o.MaxRequests <= 0 {
		o.MaxRequests = 256
	}
	if o.MaxBytes <= 0 {
		o.MaxBytes = 64 << 20
	}
	o.MaxBytes = max(o.MaxBytes, maxPayload)
	if o.Log == nil {
		o.Log = slog.Default()
	}
	return o
}

// Server serves exports over any number of listeners.
type Server struct {
	opts Options
	all  sync.WaitGroup // a connection each

	mu        sync.Mutex
	closing   bool
	listeners map[net.Listener]struct{}
	conns     map[*session]struct{}
}

// session is a connection from accept to close. conn is nil while it still negotiates.
type session struct {
	sock   net.Conn
	cancel context.CancelFunc // of the negotiation
	conn   *conn
}

// NewServer makes a server; Serve starts it.
func NewServer(opts Options) *Server {
	return &Server{
		opts:      opts.withDefaults(),
		listeners: make(map[net.Listener]struct{}),
		conns:     make(map[*session]struct{}),
	}
}

// Serve accepts connections until ctx ends, Shutdown is called or the listener fails. It closes the listener. It does
// not wait for the connections; Shutdown does.
func (s *Server) Serve(ctx context.Context, l net.Listener) error {
	s.mu.Lock()
	if s.closing {
		s.mu.Unlock()
		l.Close()
		return block.ErrShutdown
	}
	s.listeners[l] = struct{}{}
	s.mu.Unlock()
	stop := context.AfterFunc(ctx, func() { l.Close() })
	defer func() {
		stop()
		l.Close()
		s.mu.Lock()
		delete(s.listeners, l)
		s.mu.Unlock()
	}()
	for {
		sock, err := l.Accept()
		if err == nil {
			s.start(ctx, sock)
			continue
		}
		if ctx.Err() != nil || s.isClosing() {
			return nil
		}
		var ne net.Error
		if errors.As(err, &ne) && ne.Timeout() || isTemporary(err) {
			// Out of descriptors or memory: connections that end give some back.
			s.opts.Log.Warn("nbd: cannot accept a connection for now", "error", err)
			select {
			case <-ctx.Done():
			case <-time.After(50 * time.Millisecond):
			}
			continue
		}
		return fmt.Errorf("nbd: accepting on %s: %w", l.Addr(), err)
	}
}

func (s *Server) isClosing() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.closing
}

// Conns counts the connections there are.
func (s *Server) Conns() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return len(s.conns)
}

// start admits a connection and serves it in a goroutine of its own.
func (s *Server) start(ctx context.Context, sock net.Conn) {
	ctx, cancel := context.WithTimeout(ctx, s.opts.HandshakeTimeout)
	ses := &session{sock: sock, cancel: cancel}
	s.mu.Lock()
	full := len(s.conns) >= s.opts.MaxConns
	if full || s.closing {
		s.mu.Unlock()
		cancel()
		sock.Close()
		if full {
			s.opts.Log.Warn("nbd: connection refused", "peer", sock.RemoteAddr(), "error", ErrTooManyConns, "limit", s.opts.MaxConns)
		}
		return
	}
	s.conns[ses] = struct{}{}
	s.all.Add(1)
	s.mu.Unlock()
	go func() {
		defer s.all.Done()
		defer cancel()
		err := s.serve(ctx, ses)
		s.mu.Lock()
		delete(s.conns, ses)
		s.mu.Unlock()
		if err != nil {
			s.opts.Log.Info("nbd: connection ended", "peer", sock.RemoteAddr(), "error", err)
		}
	}()
}

// serve runs a connection from its first byte to its last. ctx is that of the negotiation.
func (s *Server) serve(ctx context.Context, ses *session) error {
	sock := ses.sock
	defer sock.Close()
	setSocketOptions(sock)
	if err := sock.SetDeadline(time.Now().Add(s.opts.HandshakeTimeout)); err != nil {
		return err
	}
	h := newHandshake(ctx, sock, s.opts.Exports, peerOf(sock))
	neg, err := h.run()
	if err != nil || neg == nil {
		return err
	}
	c := newConn(sock, neg, s.opts)
	s.mu.Lock()
	// The deadline is cleared under the lock: a Shutdown from now on finds the connection and ends it by one.
	err = sock.SetDeadline(time.Time{})
	ses.conn = c
	if s.closing {
		c.shut()
	}
	s.mu.Unlock()
	if err == nil {
		err = c.run()
	}
	c.finish(err)
	return err
}

// Shutdown stops accepting, ends handshakes, answers new requests with ESHUTDOWN, lets requests in flight finish and
// be answered until ctx ends, then closes all connections and waits for their goroutines. One whose target does not
// return from Submit even then is left behind, with an error.
func (s *Server) Shutdown(ctx context.Context) error {
	s.mu.Lock()
	s.closing = true
	for l := range s.listeners {
		l.Close()
	}
	var open []*conn
	for ses := range s.conns {
		if ses.conn == nil {
			ses.cancel()
			ses.sock.Close()
			continue
		}
		ses.conn.shut()
		open = append(open, ses.conn)
	}
	s.mu.Unlock()

	done := make(chan struct{})
	go func() {
		s.all.Wait()
		close(done)
	}()
	select {
	case <-done:
		return nil
	case <-ctx.Done():
	}
	for _, c := range open {
		c.abandon()
	}
	select {
	case <-done:
		return context.Cause(ctx)
	case <-time.After(abandonTime):
		return fmt.Errorf("nbd: %d connections are stuck in their targets: %w", s.Conns(), context.Cause(ctx))
	}
}

// abandonTime is what closing a connection may take that waits for nothing.
const abandonTime = time.Second

func peerOf(sock net.Conn) Peer {
	p := Peer{Addr: sock.RemoteAddr()}
	if p.Addr != nil {
		p.Network = p.Addr.Network()
	}
	return p
}
