package wire

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"sync"
	"time"
)

// Handlers take a connection over for its purpose once its hello is in. A nil handler refuses its purpose.
type Handlers struct {
	// Self is put into every answer: role, name, instance.
	Self Hello

	// IO and Stream must call in.Answer before anything else, or return an error, which is sent as the refusal. The
	// connection is closed when they return. ctx ends when the server stops.
	IO     func(ctx context.Context, in *Incoming) error
	Stream func(ctx context.Context, in *Incoming) error

	// Call serves one method; calls of a connection run side by side. ctx ends with the caller's deadline, when it
	// gives up, or with its connection. An *Error, or an error with WireKind, keeps its kind.
	Call func(ctx context.Context, peer Hello, method string, params json.RawMessage) (any, error)

	// ErrorKind, if not nil, gives kinds to errors of Call that bring none; "" leaves it at that.
	ErrorKind func(error) Kind

	// Refused, if not nil, is told of connections that ended before they were answered.
	Refused func(remote net.Addr, err error)
}

// Incoming is an accepted connection whose hello has been read but not yet answered.
type Incoming struct {
	*Conn
	Peer     Hello
	self     Hello
	server   *Server
	answered bool
}

// Answer accepts the connection; params are the purpose's own answer.
func (in *Incoming) Answer(params any) error {
	h := in.self
	h.Version, h.Purpose, h.Group = HelloVersion, in.Peer.Purpose, in.Peer.Group
	h, err := h.WithParams(params)
	if err != nil {
		return err
	}
	body, err := json.Marshal(&h)
	if err != nil {
		return err
	}
	in.answered = true
	if err := in.WriteFrame(TypeHello, body); err != nil {
		return err
	}
	in.StartKeeper()
	return nil
}

// Limits bound what strangers can make a server hold.
type Limits struct {
	Connections int           // more are refused; 0: 1024; those that have joined a stream count as one with it
	Handshake   time.Duration // a hello must be in and answered by then; 0: 5 s
}

// Server accepts connections and hands them to the handler of their purpose.
type Server struct {
	limits   Limits
	handlers Handlers

	mu    sync.Mutex
	conns map[*Conn]struct{}
	// bundles are the streams of several connections that were accepted here, by session.
	bundles map[string]*Bundle
	work    sync.WaitGroup
}

// NewServer makes a server; Serve may be called for several listeners.
func NewServer(h Handlers, l Limits) *Server {
	if l.Connections == 0 {
		l.Connections = 1024
	}
	if l.Handshake == 0 {
		l.Handshake = handshakeTimeout
	}
	return &Server{limits: l, handlers: h, conns: map[*Conn]struct{}{}, bundles: map[string]*Bundle{}}
}

// Serve accepts until ctx ends or the listener fails, closes the listener and its connections, and returns when all
// handlers have returned.
func (s *Server) Serve(ctx context.Context, l net.Listener) error {
	ctx, cancel := context.WithCancel(ctx)
	defer s.work.Wait()
	defer cancel()
	stop := context.AfterFunc(ctx, func() { _ = l.Close() })
	defer stop()
	defer l.Close()
	for {
		nc, err := l.Accept()
		if ctx.Err() != nil {
			if err == nil {
				_ = nc.Close()
			}
			return nil
		}
		if err != nil {
			if temporary(err) {
				time.Sleep(50 * time.Millisecond)
				continue
			}
			return fmt.Errorf("accept on %v: %w", l.Addr(), err)
		}
		s.work.Go(func() { s.serve(ctx, nc) })
	}
}

// temporary: out of descriptors or the peer gave up; the listener itself is well.
func temporary(err error) bool {
	var ne net.Error
	return errors.As(err, &ne) && ne.Temporary() //nolint:staticcheck // accept is what it is still good for
}

func (s *Server) serve(ctx context.Context, nc net.Conn) {
	c := NewConn(nc)
	defer c.Close()
	defer c.closeOn(ctx)()
	in := &Incoming{Conn: c, self: s.handlers.Self, server: s}
	err := s.admit(c)
	if err == nil {
		defer s.forget(c)
		err = s.handle(ctx, in)
	}
	if err != nil && !in.answered {
		if s.handlers.Refused != nil {
			s.handlers.Refused(nc.RemoteAddr(), err)
		}
		c.Refuse(err)
	}
}

func (s *Server) admit(c *Conn) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.conns) >= s.limits.Connections {
		return &Error{Kind: KindUnavailable, Message: fmt.Sprintf("%d connections are open, the most allowed", len(s.conns))}
	}
	s.conns[c] = struct{}{}
	return nil
}

func (s *Server) forget(c *Conn) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.conns, c)
}

func (s *Server) handle(ctx context.Context, in *Incoming) error {
	// The timer covers reading the hello only: a handler may need its time to answer (a session that drains).
	timer := time.AfterFunc(s.limits.Handshake, func() {
		in.fail(fmt.Errorf("%w: no hello within %v", ErrSilent, s.limits.Handshake))
	})
	peer, err := in.readHello()
	timer.Stop()
	if err != nil {
		return err
	}
	in.Peer = peer
	refused := &Error{Kind: KindRefused, Message: fmt.Sprintf("%s connections are not served here", peer.Purpose)}
	switch peer.Purpose {
	case PurposeIO:
		if s.handlers.IO != nil {
			return s.handlers.IO(ctx, in)
		}
	case PurposeStream:
		if s.handlers.Stream != nil {
			return s.handlers.Stream(ctx, in)
		}
	case PurposeJoin:
		return s.join(in)
	case PurposeCall:
		if s.handlers.Call != nil {
			return s.serveCalls(ctx, in)
		}
	}
	return refused
}

// expect lets connections join a bundle from now on.
func (s *Server) expect(b *Bundle) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.bundles[b.spec.Session] != nil {
		return &Error{Kind: KindRefused, Message: "another stream has this session"}
	}
	s.bundles[b.spec.Session] = b
	return nil
}

func (s *Server) forgetBundle(b *Bundle) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.bundles[b.spec.Session] == b {
		delete(s.bundles, b.spec.Session)
	}
}

// join gives a connection to the stream that it names.
func (s *Server) join(in *Incoming) error {
	var j joining
	if err := in.Peer.Decode(&j); err != nil {
		return err
	}
	s.mu.Lock()
	b := s.bundles[j.Session]
	s.mu.Unlock()
	if b == nil || j.Session == "" {
		return &Error{Kind: KindUnavailable, Message: "no stream of this session is open here: it has ended, or was another process's"}
	}
	return b.join(in, j.Index)
}
