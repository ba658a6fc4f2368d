package main

import (
	"bufio"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"slices"
	"sync"
	"time"
)

// load is a host that writes 4 KiB blocks at random over one NBD connection and notes when each was answered, so that
// figures can be had afterwards for any stretch of time: before a move, during it, around its pause. fio gives sums
// over a whole run only. It speaks the least of NBD that every server knows and shares no code with what it measures.
type load struct {
	conn  net.Conn
	size  int64
	rate  int // writes a second, from a fixed timetable; 0: as fast as it goes
	slots chan uint64

	mu      sync.Mutex
	issued  []time.Time // by slot: when the write was sent, or was due, by the timetable
	samples []sample
	err     error

	cancel context.CancelFunc
	ended  sync.WaitGroup
}

// sample is one write answered. With a timetable the latency counts from when the write was due: a host that waits
// for its turn behind a stalled one has waited too.
type sample struct {
	at      time.Time
	latency time.Duration
}

const (
	nbdMagic        = 0x4e42444d41474943
	nbdOptionMagic  = 0x49484156454F5054
	nbdReplyMagic   = 0x3e889045565a9
	nbdRequestMagic = 0x25609513
	nbdSimpleMagic  = 0x67446698
	nbdOptGo        = 7
	nbdRepAck       = 1
	nbdRepInfo      = 3
	nbdCmdWrite     = 1
)

func startLoad(e endpoint, depth, rate int) (*load, error) {
	conn, err := net.Dial("unix", e.socket)
	if err != nil {
		return nil, err
	}
	l := &load{conn: conn, rate: rate, slots: make(chan uint64, depth), issued: make([]time.Time, depth)}
	conn.SetDeadline(time.Now().Add(startTimeout))
	if l.size, err = handshake(conn, e.export); err != nil {
		conn.Close()
		return nil, fmt.Errorf("%s: %w", e.uri(), err)
	}
	conn.SetDeadline(time.Time{})
	for i := range depth {
		l.slots <- uint64(i)
	}
	ctx, cancel := context.WithCancel(context.Background())
	l.cancel = cancel
	l.ended.Add(2)
	go func() { defer l.ended.Done(); l.send(ctx) }()
	go func() { defer l.ended.Done(); l.receive() }()
	return l, nil
}

// handshake opens the export by NBD_OPT_GO and returns its size.
func handshake(conn net.Conn, export string) (size int64, err error) {
	var hello [18]byte
	if _, err := io.ReadFull(conn, hello[:]); err != nil {
		return 0, err
	}
	if binary.BigEndian.Uint64(hello[:]) != nbdMagic || binary.BigEndian.Uint64(hello[8:]) != nbdOptionMagic {
		return 0, errors.New("not an NBD server of the fixed newstyle")
	}
	var b []byte
	b = binary.BigEndian.AppendUint32(b, 3) // fixed newstyle, no zeroes
	b = binary.BigEndian.AppendUint64(b, nbdOptionMagic)
	b = binary.BigEndian.AppendUint32(b, nbdOptGo)
	b = binary.BigEndian.AppendUint32(b, uint32(4+len(export)+2))
	b = binary.BigEndian.AppendUint32(b, uint32(len(export)))
	b = append(b, export...)
	b = binary.BigEndian.AppendUint16(b, 0)
	if _, err := conn.Write(b); err != nil {
		return 0, err
	}
	for {
		var head [20]byte
		if _, err := io.ReadFull(conn, head[:]); err != nil {
			return 0, err
		}
		kind, n := binary.BigEndian.Uint32(head[12:]), binary.BigEndian.Uint32(head[16:])
		if binary.BigEndian.Uint64(head[:]) != nbdReplyMagic || n > 64<<10 {
			return 0, errors.New("a malformed option reply")
		}
		body := make([]byte, n)
		if _, err := io.ReadFull(conn, body); err != nil {
			return 0, err
		}
		switch {
		case kind == nbdRepAck:
			return size, nil
		case kind == nbdRepInfo && n >= 10 && binary.BigEndian.Uint16(body) == 0:
			size = int64(binary.BigEndian.Uint64(body[2:]))
		case kind >= 1<<31:
			return 0, fmt.Errorf("export refused with %#x %q", kind, body)
		}
	}
}

func (l *load) send(ctx context.Context) {
	random := rand.New(rand.NewPCG(1, 2))
	request := make([]byte, 28+blockSize)
	for i := 28; i < len(request); i += 8 {
		binary.LittleEndian.PutUint64(request[i:], random.Uint64())
	}
	begin := time.Now()
	for n := int64(0); ; n++ {
		due := time.Now()
		if l.rate > 0 {
			due = begin.Add(time.Duration(n) * time.Second / time.Duration(l.rate))
			if wait := time.Until(due); wait > 0 {
				time.Sleep(wait)
			}
		}
		var slot uint64
		select {
		case slot = <-l.slots:
		case <-ctx.Done():
			return
		}
		if l.rate == 0 {
			due = time.Now()
		}
		if ctx.Err() != nil {
			return
		}
		l.mu.Lock()
		l.issued[slot] = due
		l.mu.Unlock()
		binary.BigEndian.PutUint32(request, nbdRequestMagic)
		binary.BigEndian.PutUint32(request[4:], nbdCmdWrite)
		binary.BigEndian.PutUint64(request[8:], slot)
		binary.BigEndian.PutUint64(request[16:], uint64(random.Int64N(l.size/blockSize))*blockSize)
		binary.BigEndian.PutUint32(request[24:], blockSize)
		binary.LittleEndian.PutUint64(request[28:], random.Uint64()|1)
		if _, err := l.conn.Write(request); err != nil {
			l.fail(err)
			return
		}
	}
}

func (l *load) receive() {
	in := bufio.NewReaderSize(l.conn, 64<<10)
	var reply [16]byte
	for {
		if _, err := io.ReadFull(in, reply[:]); err != nil {
			l.fail(err)
			return
		}
		slot := binary.BigEndian.Uint64(reply[8:])
		if binary.BigEndian.Uint32(reply[:]) != nbdSimpleMagic || slot >= uint64(len(l.issued)) {
			l.fail(errors.New("a malformed reply"))
			return
		}
		if code := binary.BigEndian.Uint32(reply[4:]); code != 0 {
			l.fail(fmt.Errorf("a write was answered with error %d", code))
			return
		}
		now := time.Now()
		l.mu.Lock()
		l.samples = append(l.samples, sample{at: now, latency: now.Sub(l.issued[slot])})
		l.mu.Unlock()
		l.slots <- slot
	}
}

// fail notes the first error; what follows the end of the load is none.
func (l *load) fail(err error) {
	l.mu.Lock()
	if l.err == nil {
		l.err = err
	}
	l.mu.Unlock()
	l.cancel()
}

// stop ends the load; an error that a host would have seen before is returned.
func (l *load) stop() error {
	l.mu.Lock()
	err := l.err
	l.err = errors.Join(err, errors.New("stopped"))
	l.mu.Unlock()
	l.cancel()
	// What is in flight is answered first, so that the server has no half-read request to complain of.
	for range cap(l.slots) {
		if err != nil {
			break
		}
		select {
		case <-l.slots:
		case <-time.After(time.Second):
		}
	}
	l.conn.Close()
	l.ended.Wait()
	return err
}

// stretch has the figures of the writes answered in a stretch of time.
type stretch struct {
	perSecond float64
	p99       time.Duration
	longest   time.Duration // between two answers
	at        time.Duration // when that was over, from the stretch's beginning
}

func (l *load) between(from, to time.Time) (s stretch, err error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	var latencies []time.Duration
	last := from
	for _, x := range l.samples {
		if x.at.Before(from) || x.at.After(to) {
			continue
		}
		latencies = append(latencies, x.latency)
		if gap := x.at.Sub(last); gap > s.longest {
			s.longest, s.at = gap, x.at.Sub(from)
		}
		last = x.at
	}
	if len(latencies) == 0 {
		return s, errors.Join(errors.New("no write was answered in the time measured"), l.err)
	}
	if gap := to.Sub(last); gap > s.longest {
		s.longest, s.at = gap, to.Sub(from)
	}
	slices.Sort(latencies)
	s.p99 = latencies[len(latencies)*99/100]
	s.perSecond = float64(len(latencies)) / to.Sub(from).Seconds()
	return s, nil
}
