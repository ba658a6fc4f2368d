package block

import (
	"slices"
	"testing"
)

// connection counts the system calls it would make for its answers; tag tells its completers apart.
type connection struct{ corks, queued, calls int }

type completer struct {
	c   *connection
	tag int
}

func (c *connection) send() {
	if c.corks == 0 && c.queued > 0 {
		c.calls, c.queued = c.calls+1, 0
	}
}

func (k *completer) Complete(*Request) { k.c.queued++; k.c.send() }
func (k *completer) Cork()             { k.c.corks++ }
func (k *completer) Uncork()           { k.c.corks--; k.c.send() }

type plain struct{ n int }

func (p *plain) Complete(*Request) { p.n++ }

func TestAnswersOfOneConnectionLeaveTogether(t *testing.T) {
	var a, b connection
	var p plain
	own := &completer{c: &a}
	var answers Answers
	for range 4 {
		answers.Finish(&Request{Completer: own}, nil)
	}
	for i := range 4 { // a completer for each request
		answers.Finish(&Request{Completer: &completer{c: &b, tag: i}}, nil)
	}
	answers.Finish(&Request{Completer: &p}, nil)
	answers.Finish(&Request{Completer: own}, ErrIO)
	answers.Done()
	answers.Done()
	if got := []int{a.calls, a.queued, a.corks, b.calls, b.queued, b.corks, p.n}; !slices.Equal(got, []int{2, 0, 0, 1, 0, 0, 1}) {
		t.Errorf("calls, queued and corks of both, answers of the plain one: %v", got)
	}
}
