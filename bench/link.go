package main

import (
	"context"
	"errors"
	"io"
	"net"
	"sync"
	"time"

	"golang.org/x/time/rate"
)

// link is a line between two sites: a relay on loopback that lets so many bytes a second through in each direction, and
// that can be cut. A cut closes what goes through it and refuses what comes.
type link struct {
	listen net.Listener
	limit  int // bytes a second, each way

	mu   sync.Mutex
	to   string
	cut  bool
	open map[net.Conn]bool
	work sync.WaitGroup
}

func newLink(bytesPerSecond int) (*link, error) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return nil, err
	}
	k := &link{listen: l, limit: bytesPerSecond, open: map[net.Conn]bool{}}
	k.work.Go(k.accept)
	return k, nil
}

func (k *link) address() string { return k.listen.Addr().String() }

// lead sets where the line ends.
func (k *link) lead(to string) {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.to = to
}

func (k *link) accept() {
	up, down := newRate(k.limit), newRate(k.limit) // shared by all connections: it is one line
	for {
		in, err := k.listen.Accept()
		if err != nil {
			return
		}
		k.mu.Lock()
		to, cut := k.to, k.cut
		k.mu.Unlock()
		if cut || to == "" {
			in.Close()
			continue
		}
		out, err := net.Dial("tcp", to)
		if err != nil {
			in.Close()
			continue
		}
		k.mu.Lock()
		k.open[in], k.open[out] = true, true
		k.mu.Unlock()
		k.work.Go(func() { k.relay(out, in, up) })
		k.work.Go(func() { k.relay(in, out, down) })
	}
}

// chunk is the most that passes at once.
const chunk = 128 << 10

func newRate(bytesPerSecond int) *rate.Limiter {
	return rate.NewLimiter(rate.Limit(bytesPerSecond), chunk)
}

func (k *link) relay(to, from net.Conn, limit *rate.Limiter) {
	defer func() {
		from.Close()
		to.Close()
		k.mu.Lock()
		defer k.mu.Unlock()
		delete(k.open, from)
		delete(k.open, to)
	}()
	buf := make([]byte, chunk)
	for {
		n, err := from.Read(buf)
		if n > 0 {
			if limit.WaitN(context.Background(), n) != nil {
				return
			}
			if _, err := to.Write(buf[:n]); err != nil {
				return
			}
		}
		if err != nil {
			return
		}
	}
}

// set cuts the line or brings it back.
func (k *link) set(cut bool) {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.cut = cut
	if !cut {
		return
	}
	for c := range k.open {
		c.Close()
	}
}

func (k *link) close() error {
	if k == nil {
		return nil
	}
	err := k.listen.Close()
	k.set(true)
	k.work.Wait()
	return err
}

// probe measures what the line carries, in bytes a second, with a sender that does nothing else.
func (k *link) probe(t time.Duration) (float64, error) {
	sink, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return 0, err
	}
	defer sink.Close()
	k.lead(sink.Addr().String())
	out, err := net.Dial("tcp", k.address())
	if err != nil {
		return 0, err
	}
	defer out.Close()
	in, err := sink.Accept()
	if err != nil {
		return 0, err
	}
	begin := time.Now()
	go func() {
		buf := make([]byte, 1<<20)
		for time.Since(begin) < t {
			if _, err := out.Write(buf); err != nil {
				return
			}
		}
		out.Close()
	}()
	n, err := io.Copy(io.Discard, in)
	if err != nil && !errors.Is(err, net.ErrClosed) {
		return 0, err
	}
	return float64(n) / time.Since(begin).Seconds(), in.Close()
}
