package node

import (
	"context"
	"sync"

	"gantline/internal/receiver"
	"gantline/internal/sender"
	"gantline/internal/volume"
)

// scope is a set of goroutines under one context; stop joins them.
type scope struct {
	ctx    context.Context
	cancel context.CancelFunc
	work   sync.WaitGroup

	mu    sync.Mutex
	ended bool // nothing is begun any more
}

// newScope is not a child of the node's context: a group stops in its own order, after its clients.
func newScope() *scope {
	s := &scope{}
	s.ctx, s.cancel = context.WithCancel(context.Background())
	return s
}

func (s *scope) stop() {
	if s == nil {
		return
	}
	s.mu.Lock()
	s.ended = true
	s.mu.Unlock()
	s.cancel()
	s.work.Wait()
}

// begin runs f in the scope, from outside it; false: it has ended, or was never there.
func (s *scope) begin(f func()) bool {
	if s == nil {
		return false
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if !s.ended {
		s.work.Go(f)
	}
	return !s.ended
}

// feeds is what feeds the secondary just now: the first is nil before there is a pair, the others before it is fed.
func (g *group) feeds() (*volume.Subscriber, *sender.Sender, *scope) {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.sub, g.snd, g.feed
}

// sender is nil before the secondary is fed.
func (g *group) sender() *sender.Sender {
	_, snd, _ := g.feeds()
	return snd
}

// stopFeed ends what feeds the secondary, or what makes this one.
func (g *group) stopFeed() {
	_, _, feed := g.feeds()
	feed.stop()
}

// receiver is nil at a group that is no secondary, or not open yet.
func (g *group) receiver() *receiver.Receiver {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.rcv
}

// running is nil before the group is open, and once it is closed.
func (g *group) running() *volume.Group {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.vg
}

// steered takes steer for a command; refused once the group is closed, or is being sealed: what it hands over stands.
func (g *group) steered() (release func(), err error) {
	g.steer.Lock()
	if g.running() == nil {
		g.steer.Unlock()
		return nil, refused("group %s is closed on node %s", g.name, g.n.cfg.Name)
	}
	if g.sealing || g.sealed() {
		g.steer.Unlock()
		return nil, refused("group %s is just moving away from node %s: try again", g.name, g.n.cfg.Name)
	}
	return g.steer.Unlock, nil
}

// members are those of the group's record; none if that is gone.
func (g *group) members() []memberRecord {
	if rec := g.n.state.view().Groups[g.name]; rec != nil {
		return rec.Members
	}
	return nil
}
