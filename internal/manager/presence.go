package manager

import (
	"maps"
	"slices"
	"sync"
	"time"

	"gantline/internal/control"
)

// aliveFor is how long after its last word a node or a gateway counts as up. Nodes report every 2 s; a gateway whose
// poll is being held counts as up for as long as its connection stands.
const aliveFor = 6 * time.Second

// presence knows who is up. It is not stored: after a restart everybody is heard again within seconds.
type presence struct {
	mu       sync.Mutex
	nodes    map[string]*seen
	gateways map[string]*seen
	changed  chan struct{} // closed and replaced when a gateway has reported
}

type seen struct {
	last     time.Time
	instance string
	polls    int // being held
	applied  uint64
	vvols    []control.GatewayedVvol
}

func newPresence() *presence {
	return &presence{nodes: map[string]*seen{}, gateways: map[string]*seen{}, changed: make(chan struct{})}
}

func (s *seen) up() bool { return s != nil && (s.polls > 0 || time.Since(s.last) < aliveFor) }

// nodeSeen notes a report; again says that this run of the node was not known.
func (p *presence) nodeSeen(name, instance string) (again bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	s := p.nodes[name]
	again = s == nil || s.instance != instance
	p.nodes[name] = &seen{last: time.Now(), instance: instance}
	return again
}

func (p *presence) nodeUp(name string) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.nodes[name].up()
}

func (p *presence) gatewayUp(name string) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.gateways[name].up()
}

// gatewaySeen notes a report at its begin; gatewayDone the end of the poll that it opened.
func (p *presence) gatewaySeen(name, instance string, r control.GatewayReport) {
	p.mu.Lock()
	defer p.mu.Unlock()
	s := p.gateways[name]
	if s == nil {
		s = &seen{}
		p.gateways[name] = s
	}
	s.last, s.instance, s.applied, s.vvols = time.Now(), instance, r.Applied, r.Vvols
	s.polls++
	close(p.changed)
	p.changed = make(chan struct{})
}

func (p *presence) gatewayDone(name string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if s := p.gateways[name]; s != nil {
		s.polls--
		s.last = time.Now()
	}
}

func (p *presence) forget(name string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	delete(p.nodes, name)
	delete(p.gateways, name)
}

// gateway is what a gateway said last; ok is false if it is not up.
func (p *presence) gateway(name string) (applied uint64, vvols []control.GatewayedVvol, ok bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	s := p.gateways[name]
	if !s.up() {
		return 0, nil, false
	}
	return s.applied, slices.Clone(s.vvols), true
}

// has says whether a gateway has confirmed a revision, and gives a channel for the next report.
func (p *presence) has(name string, revision uint64) (bool, <-chan struct{}) {
	p.mu.Lock()
	defer p.mu.Unlock()
	s := p.gateways[name]
	return s.up() && s.applied >= revision, p.changed
}

// behind lists the gateways that are up and have not confirmed a revision, and gives a channel for the next report.
func (p *presence) behind(revision uint64) ([]string, <-chan struct{}) {
	p.mu.Lock()
	defer p.mu.Unlock()
	var out []string
	for _, name := range slices.Sorted(maps.Keys(p.gateways)) {
		if s := p.gateways[name]; s.up() && s.applied < revision {
			out = append(out, name)
		}
	}
	return out, p.changed
}
