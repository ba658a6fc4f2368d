// Package pace holds writers back to a number of bytes a second that may be changed at any time. Several limits may bound
// one writer (its group's and its link's), and several writers may share a limit.
package pace

import (
	"time"

	"golang.org/x/time/rate"
)

// A piece is what is let through at once: a twentieth of a second's bytes, so that a limit holds over short times too,
// and not so little that each piece costs more than it weighs.
const (
	piecesPerSecond = 20
	minPiece        = 512 // bytes
)

// Limiter is one limit. The zero value is not usable; see New. Safe for concurrent use.
type Limiter struct{ rate *rate.Limiter }

// New makes a limiter that lets everything through until Set.
func New() *Limiter { return &Limiter{rate.NewLimiter(rate.Inf, minPiece)} }

// Set changes the limit, bytes a second; 0: none. Who waits already waits for at most one piece by the old one.
func (l *Limiter) Set(bytesPerSecond int64) {
	if bytesPerSecond <= 0 {
		l.rate.SetLimit(rate.Inf)
		return
	}
	l.rate.SetBurst(int(max(bytesPerSecond/piecesPerSecond, minPiece)))
	l.rate.SetLimit(rate.Limit(bytesPerSecond))
}

func (l *Limiter) unlimited() bool { return l.rate.Limit() == rate.Inf }

// Chain is limits that all hold.
type Chain []*Limiter

// Unlimited says that nothing is held back just now.
func (c Chain) Unlimited() bool {
	for _, l := range c {
		if !l.unlimited() {
			return false
		}
	}
	return true
}

// Take waits until some of n bytes may go and returns how many, at least 1; 0 once done is closed.
func (c Chain) Take(done <-chan struct{}, n int) int {
	for _, l := range c {
		if !l.unlimited() {
			n = min(n, max(l.rate.Burst(), 1))
		}
	}
	for _, l := range c {
		if !l.take(done, n) {
			return 0
		}
	}
	return n
}

// take waits for n bytes, in parts where the limit has become smaller than a piece meanwhile.
func (l *Limiter) take(done <-chan struct{}, n int) bool {
	for n > 0 {
		part := n
		if !l.unlimited() {
			part = min(n, max(l.rate.Burst(), 1))
		}
		r := l.rate.ReserveN(time.Now(), part)
		if !r.OK() {
			continue // the limit has just become smaller
		}
		n -= part
		wait := r.Delay()
		if wait <= 0 {
			continue
		}
		timer := time.NewTimer(wait)
		select {
		case <-timer.C:
		case <-done:
			timer.Stop()
			r.Cancel()
			return false
		}
	}
	return true
}
