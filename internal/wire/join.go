package wire

import (
	"context"
	"errors"
	"fmt"
	"net"
	"slices"
	"sync"
	"time"
)

// Bundle makes a stream's bundle of an accepted connection; Expect has the others come.
func (in *Incoming) Bundle(side Side, spec BundleSpec) (*Bundle, error) {
	if err := spec.Check(); err != nil {
		return nil, err
	}
	b := newBundle(in.Conn, side, spec)
	b.peer, b.server = in.Peer, in.server
	return b, nil
}

// Expect lets the further connections in, from now until Close. It comes before the hello is answered.
func (b *Bundle) Expect() error {
	if b.single() {
		return nil
	}
	if err := b.server.expect(b); err != nil {
		return err
	}
	b.begin()
	return nil
}

// DialBundle makes the further connections of a stream whose hello is over on main, all at once, and closes all of them if
// one fails; main stays the caller's to close then. hello has role, name, instance and group as on main.
func DialBundle(ctx context.Context, main *Conn, side Side, spec BundleSpec, hello Hello, dial func(context.Context) (net.Conn, error)) (*Bundle, error) {
	if err := spec.Check(); err != nil {
		return nil, err
	}
	b := newBundle(main, side, spec)
	if b.single() {
		return b, nil
	}
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	errs := make([]error, len(b.conns))
	var all sync.WaitGroup
	for i := 1; i < len(b.conns); i++ {
		all.Go(func() {
			var err error
			if b.conns[i], err = dialJoin(ctx, joining{Session: spec.Session, Index: i}, hello, dial); err != nil {
				errs[i] = b.of(i, err)
				if !refusedBy(err) { // the reason may be about to come on another
					select {
					case <-ctx.Done():
					case <-time.After(refusalGrace):
					}
				}
				cancel(errs[i]) // the others need not go on; what they end with is no cause
			}
		})
	}
	all.Wait()
	for _, err := range errs {
		if refusedBy(err) {
			b.closeJoined()
			return nil, err
		}
	}
	if err := context.Cause(ctx); err != nil {
		b.closeJoined()
		return nil, err
	}
	b.begin()
	for i := 1; i < len(b.conns); i++ {
		b.readers.Go(func() { b.read(i, b.conns[i]) })
	}
	return b, nil
}

// refusalGrace is how long a connection's plain end waits for another's to be refused: a peer that refuses one closes the rest.
const refusalGrace = 100 * time.Millisecond

func refusedBy(err error) bool {
	var refusal *Error
	return errors.As(err, &refusal)
}

func (b *Bundle) closeJoined() {
	for _, c := range b.conns[1:] {
		if c != nil {
			c.Close()
		}
	}
}

// joining is the parameters of a hello by which a connection joins a bundle.
type joining struct {
	Session string `json:"session"`
	Index   int    `json:"index"` // from 1 on
}

func dialJoin(ctx context.Context, j joining, hello Hello, dial func(context.Context) (net.Conn, error)) (*Conn, error) {
	hello.Purpose = PurposeJoin
	hello, err := hello.WithParams(j)
	if err != nil {
		return nil, err
	}
	nc, err := dial(ctx)
	if err != nil {
		return nil, err
	}
	c, _, err := Handshake(ctx, nc, hello)
	return c, err
}

// join takes a further connection in and reads it until it ends.
func (b *Bundle) join(in *Incoming, index int) error {
	p, q := &b.peer, &in.Peer
	if p.Role != q.Role || p.Name != q.Name || p.Instance != q.Instance || p.Group != q.Group {
		return &Error{Kind: KindRefused, Message: fmt.Sprintf("the stream is %s %s's, not %s %s's", p.Role, p.Name, q.Role, q.Name)}
	}
	b.mu.Lock()
	free := index >= 1 && index < len(b.claims) && !b.claims[index] && b.err == nil
	if free {
		b.claims[index] = true
	}
	b.mu.Unlock()
	if !free {
		return &Error{Kind: KindInvalid, Message: fmt.Sprintf("the stream has no place for connection %d", index+1)}
	}
	if err := in.Answer(struct{}{}); err != nil {
		b.fail(b.of(index, err))
		return err
	}
	// From here on the whole may end it: not while it is being answered.
	b.mu.Lock()
	if err := b.err; err != nil || b.parts {
		b.mu.Unlock()
		return errors.Join(err, ErrClosed)
	}
	b.conns[index] = in.Conn
	b.turn.Broadcast()
	b.mu.Unlock()
	in.server.forget(in.Conn) // it is one of the stream's, which counts as one, and has MaxBundle at most
	b.read(index, in.Conn)
	return nil
}

// Await returns when all connections are there, or with the error that the stream has ended with. A peer that has been
// answered on each of them may have gone on a moment before.
func (b *Bundle) Await() error {
	b.mu.Lock()
	defer b.mu.Unlock()
	for b.err == nil && slices.Contains(b.conns, nil) {
		b.turn.Wait()
	}
	return b.err
}
